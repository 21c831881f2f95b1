"""Other code imports the extensions by their names, causal-conv1d's too.

Each such door opens where nothing is installed. The numbers are held to loops in float64.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.hook.stand_in import causal_conv1d_cuda, selective_scan_cuda
from jetson_mamba.hook.stand_in.causal_conv1d import causal_conv1d_interface as interface
from jetson_mamba.hook.stand_in.causal_conv1d import cpp_functions
from tests.hook.sandbox import REPOSITORY, Sandbox
from tests.references.causal_conv1d import convolve, update
from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm
from tools.releases import release_path

DOORS = """
import selective_scan_cuda
import selective_scan_cuda_core
import selective_scan_cuda_oflex
import selective_scan_cuda_ndstate
import selective_scan_cuda_nrow
import causal_conv1d_cuda
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref, causal_conv1d_update_ref
from causal_conv1d.causal_conv1d_interface import CausalConv1dFn, causal_conv1d_fn
from causal_conv1d.cpp_functions import causal_conv1d_fwd_function, causal_conv1d_bwd_function
from causal_conv1d.cpp_functions import causal_conv1d_update_function
from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states
from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states_ref
from importlib.metadata import version; assert version('causal-conv1d') == '1.7.0+jetson.mamba'
from importlib.metadata import version; assert version('causal_conv1d') == '1.7.0+jetson.mamba'
from importlib.metadata import metadata; assert metadata('causal-conv1d')['Name']
"""
TRY = f"""
import jetson_mamba
for line in {DOORS.strip().splitlines()!r}:
    try:
        exec(line, {{}})
    except ImportError as error:
        print(type(error).__name__, line)
    else:
        print("open", line)
"""


def test_each_door_opens_where_nothing_is_installed(sandbox: Sandbox) -> None:
    printed = sandbox.output(TRY, recorder=False).splitlines()
    assert printed == [f"open {line}" for line in DOORS.strip().splitlines()]


@pytest.mark.parametrize("switch", ["JETSON_MAMBA_STAND_IN", "JETSON_MAMBA"])
def test_each_stays_shut_where_stand_ins_are_switched_off(sandbox: Sandbox, switch: str) -> None:
    printed = sandbox.output(TRY, recorder=False, environment={switch: "off"}).splitlines()
    assert len(printed) == len(DOORS.strip().splitlines())
    for line in printed:
        assert line.startswith(("ModuleNotFoundError ", "PackageNotFoundError "))


# What is given, and its gradients.


def tensors(
    width: int = 4, channel_last: bool = True, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    batch, dim, seqlen = 2, 8, 9
    x = torch.randn(batch, seqlen, dim).transpose(1, 2)
    states = torch.randn(batch, width - 1, dim).transpose(1, 2)
    return {
        "x": (x if channel_last else x.contiguous()).to(dtype),
        "weight": torch.randn(dim, width).to(dtype),
        "bias": torch.randn(dim).to(dtype),
        "dout": torch.randn(batch, seqlen, dim).transpose(1, 2).to(dtype),
        "initial": states.to(dtype),
        "dfinal": torch.randn_like(states).to(dtype),
        "seq_idx": torch.tensor([[0] * 5 + [1] * 4, [0] * 2 + [1] * 7], dtype=torch.int32),
    }


def reference(
    given: dict[str, Tensor], names: tuple[str, ...], silu: bool, seq_idx: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Output, final states, and the gradients of the named ones of x, weight, bias, initial."""
    leaves = {name: given[name].double().detach().requires_grad_() for name in names}
    out, final = convolve(
        leaves["x"],
        leaves["weight"],
        leaves.get("bias"),
        seq_idx,
        leaves.get("initial"),
        silu,
    )
    loss = (out * given["dout"]).sum()
    if "initial" in names:
        loss = loss + (final * given["dfinal"]).sum()
    found = torch.autograd.grad(loss, list(leaves.values()))
    return out.detach(), final.detach(), dict(zip(names, found))


def close(actual: Any, expected: Tensor, tolerance: float = 1e-6) -> bool:
    return relative_norm(actual, expected) < tolerance


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_newest_functions_write_what_they_are_given(silu: bool, bias: bool) -> None:
    given = tensors()
    b = given["bias"] if bias else None
    names = ("x", "weight", *(("bias",) if bias else ()), "initial")
    expected, final, gradients = reference(given, names, silu)
    out = torch.full_like(given["x"], float("nan"))
    states = torch.full_like(given["initial"], float("nan"))
    fwd = causal_conv1d_cuda.causal_conv1d_fwd
    x, weight, initial = given["x"], given["weight"], given["initial"]
    assert fwd(x, weight, b, None, initial, out, states, silu) is None
    assert close(out, expected) and close(states, final)
    dx, dinitial = torch.full_like(x, float("nan")), torch.full_like(initial, float("nan"))
    dweight = torch.ones(weight.shape)
    dbias = torch.ones(8) if bias else None
    bwd = causal_conv1d_cuda.causal_conv1d_bwd
    dout, dfinal = given["dout"], given["dfinal"]
    args = (x, weight, b, dout, None, initial, dfinal, dx, dweight, dbias, dinitial, silu)
    assert bwd(*args) is None
    assert close(dx, gradients["x"]) and close(dinitial, gradients["initial"])
    assert close(dweight - 1, gradients["weight"], 1e-5)
    if dbias is not None:
        assert close(dbias - 1, gradients["bias"], 1e-5)


@pytest.mark.parametrize("silu", [True, False])
def test_calls_of_every_earlier_release_are_understood(silu: bool) -> None:
    given = tensors()
    x, weight, bias, dout = (given[name] for name in ("x", "weight", "bias", "dout"))
    expected, _, gradients = reference(given, ("x", "weight", "bias"), silu)
    fwd, bwd = causal_conv1d_cuda.causal_conv1d_fwd, causal_conv1d_cuda.causal_conv1d_bwd
    calls: list[tuple[tuple[Any, ...], tuple[Any, ...], int]] = [
        ((silu,), (None, silu), 3),
        ((None, silu), (None, None, silu), 3),
        ((None, None, None, silu), (None, None, None, None, False, silu), 4),
    ]
    for forward, backward, results in calls:
        assert close(fwd(x, weight, bias, *forward), expected)
        found = bwd(x, weight, bias, dout, *backward)
        assert len(found) == results
        for gradient, name in zip(found, gradients):
            assert close(gradient, gradients[name]), name
    packed, _, _ = reference(given, ("x", "weight"), silu, given["seq_idx"])
    assert close(fwd(x, weight, None, given["seq_idx"], silu), packed)
    target = torch.empty_like(x)
    assert bwd(x, weight, bias, dout, target, silu)[0] is target


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("causal_conv1d_fwd", 6),
        ("causal_conv1d_fwd", 9),
        ("causal_conv1d_bwd", 8),
        ("causal_conv1d_update", 4),
        ("causal_conv1d_update", 9),
    ],
)
def test_a_call_of_no_release_is_an_error_that_names_the_function(
    function: str, arguments: int
) -> None:
    with pytest.raises(TypeError, match=rf"{function}\(\): incompatible function arguments"):
        getattr(causal_conv1d_cuda, function)(*[None] * arguments)


@pytest.mark.parametrize("form", ["5", "6", "7", "8", "function", "ref"])
@pytest.mark.parametrize("silu", [True, False])
def test_steps_of_decoding(form: str, silu: bool) -> None:
    given = tensors()
    x, weight, bias = given["x"][..., :1].contiguous(), given["weight"], given["bias"]
    state = torch.randn(3, 8, 4, dtype=torch.float64)
    rows = torch.tensor([2, 0], dtype=torch.int32) if form in ("7", "8", "function") else None
    cache = torch.tensor([3, 5], dtype=torch.int32) if form not in ("5",) else None
    if rows is None:
        state = state[:2]
    expected, after = update(x, state, weight, bias, silu, cache, rows)
    call = causal_conv1d_cuda.causal_conv1d_update
    out: Any
    if form == "5":
        out = call(x.squeeze(-1), state, weight, bias, silu).unsqueeze(-1)
    elif form == "6":
        out = call(x, state, weight, bias, silu, cache)
    elif form == "7":
        out = call(x, state, weight, bias, silu, cache, rows)
    elif form == "8":
        out = torch.full_like(x, float("nan"))
        assert call(x, state, weight, bias, out, silu, cache, rows) is None
    elif form == "function":
        out = cpp_functions.causal_conv1d_update_function(x, state, weight, bias, silu, cache, rows)
    else:
        activation = "silu" if silu else None
        out = interface.causal_conv1d_update_ref(x, state, weight, bias, activation, cache)
    assert close(out, expected) and close(state, after)


@pytest.mark.parametrize("silu", [True, False])
def test_the_functions_of_cpp_functions(silu: bool) -> None:
    given = tensors()
    names = ("x", "weight", "bias", "initial")
    expected, final, gradients = reference(given, names, silu)
    states = torch.full_like(given["initial"], float("nan"))
    x, weight, bias = (given[name].requires_grad_() for name in ("x", "weight", "bias"))
    initial, dout, dfinal = given["initial"], given["dout"], given["dfinal"]
    forward = cpp_functions.causal_conv1d_fwd_function
    out = forward(x, weight, bias, None, initial, states, silu)
    assert close(out, expected) and close(states, final) and not out.requires_grad
    target = torch.empty_like(given["x"])
    backward = cpp_functions.causal_conv1d_bwd_function
    found = backward(x, weight, bias, dout, None, initial, dfinal, target, True, silu)
    assert found[0] is target
    for gradient, name in zip(found, names):
        assert close(gradient, gradients[name]), name


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, b, i, a: interface.CausalConv1dFn.apply(x, w, b, None, i, True, None, a),
        lambda x, w, b, i, a: interface.causal_conv1d_ref(x, w, b, i, True, None, a),
        lambda x, w, b, i, a: interface.causal_conv1d_fn(x, w, b, None, i, True, None, a),
    ],
)
def test_the_names_of_the_interface_have_gradients(call: Callable[..., Any]) -> None:
    given = tensors()
    names = ("x", "weight", "bias", "initial")
    expected, final, gradients = reference(given, names, True)
    leaves = [given[name].requires_grad_() for name in names]
    out, states = call(*leaves, "silu")
    assert close(out, expected) and close(states, final)
    ((out * given["dout"]).sum() + (states * given["dfinal"]).sum()).backward()
    for leaf, name in zip(leaves, names):
        assert close(leaf.grad, gradients[name]), name


@pytest.mark.parametrize("gated", [True, False])
def test_the_scan_and_its_gradients(gated: bool) -> None:
    torch.manual_seed(0)
    u, delta, z, dout = torch.randn(4, 2, 8, 11, dtype=torch.float64).unbind(0)
    A, bias, D = -torch.rand(8, 4).double(), torch.randn(8).double(), torch.randn(8).double()
    B, C = torch.randn(2, 2, 2, 4, 11, dtype=torch.float64).unbind(0)
    gate = z if gated else None
    leaves: list[Any] = [each.detach().requires_grad_() for each in (u, delta, A, B, C, D, bias)]
    zs = [z.detach().requires_grad_()] if gated else []
    scan: Any = selective_scan_reference
    out, gated_out, states, _ = scan(*leaves[:6], zs[0] if gated else None, leaves[6], True)
    expected = torch.autograd.grad((gated_out * dout).sum(), [*leaves, *zs])
    found = selective_scan_cuda.fwd(u, delta, A, B, C, D, gate, bias, True)
    assert len(found) == 2 + gated
    assert close(found[0], out.detach())
    assert close(found[1][:, :, -1, 1::2], states[..., -1].detach())
    if gated:
        assert close(found[2], gated_out.detach())
    dz = torch.full_like(z, float("nan")) if gated else None
    arguments = (dout, found[1], found[0] if gated else None, dz, True, False)
    gradients = selective_scan_cuda.bwd(u, delta, A, B, C, D, gate, bias, *arguments)
    for actual, gradient in zip(gradients, expected):
        assert close(actual, gradient)
    if gated:
        assert gradients[7] is dz


# Names that moved between releases.


@pytest.mark.parametrize(
    ("release", "name", "order"),
    [
        ("2.3.2.post1", "layernorm", "residual, 1e-3, False, True"),
        ("1.2.2", "layer_norm", "residual, None, None, None, 1e-3, 0.0, None, False, True"),
    ],
)
def test_the_norms_under_their_other_name(
    sandbox: Sandbox, release: str, name: str, order: str
) -> None:
    """With the arguments in the order that belongs to the name."""
    pytest.importorskip("triton")
    code = f"""
import jetson_mamba, torch, warnings
from mamba_ssm.ops.triton.{name} import RMSNorm, layer_norm_fn, rms_norm_fn, layer_norm_linear_fn
import mamba_ssm.ops.triton.{name} as module
x, residual = torch.randn(2, 2, 3, 8)
weight, bias = torch.randn(2, 8)
with torch.no_grad():
    out = layer_norm_fn(x, weight, bias, {order})
    wide = (x + residual).double()
    expected = torch.nn.functional.layer_norm(wide, (8,), weight.double(), bias.double(), 1e-3)
    print(float((out - expected).norm() / expected.norm()) < 1e-5)
    rms = rms_norm_fn(x, weight, None, eps=1e-3)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    print(float((rms - expected).norm() / expected.norm()) < 1e-5)
    print(RMSNorm(8)(x).shape == x.shape, module.__name__)
states = {{each.name: each for each in jetson_mamba.status().targets}}
found = states[module.__name__]
print(found.state, found.reason)
try:
    layer_norm_fn(x, weight, bias, no_such_argument=x)
except TypeError as error:
    print("no_such_argument" in str(error))
import causal_conv1d
"""
    printed = sandbox.output(
        code,
        recorder=False,
        options=("-W", "ignore"),  # what torch says of upstream's text
        environment={
            "PYTHONPATH": os.pathsep.join(
                (str(release_path(release)), str(REPOSITORY), *sys.path[-1:])
            )
        },
    ).splitlines()
    other = "layer_norm" if name == "layernorm" else "layernorm"
    assert printed == [
        *("True", "True"),
        f"True mamba_ssm.ops.triton.{name}",
        f"original this release has mamba_ssm.ops.triton.{other} in its place",
        "True",
    ]


def test_a_release_that_has_neither_norm_has_neither(sandbox: Sandbox) -> None:
    for name in ("layernorm", "layer_norm"):
        done = sandbox.run(f"import mamba_ssm.ops.triton.{name}")
        assert f"No module named 'mamba_ssm.ops.triton.{name}'" in done.stderr


# Of each function by the number of its arguments: those after the ones that all releases have.
IN_ORDER = {
    "fwd": {
        4: "silu",
        5: "seq_idx silu",
        7: "seq_idx initial_states final_states_out silu",
        8: "seq_idx initial_states out final_states_out silu",
    },
    "bwd": {
        6: "dx silu",
        7: "seq_idx dx silu",
        10: "seq_idx initial_states dfinal_states dx return_dinitial_states silu",
        12: "seq_idx initial_states dfinal_states dx dweight dbias dinitial_states silu",
    },
    "update": {
        5: "silu",
        6: "silu cache_seqlens",
        7: "silu cache_seqlens conv_state_indices",
        8: "out silu cache_seqlens conv_state_indices",
    },
}


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(("kind", "count"), [(k, n) for k in IN_ORDER for n in IN_ORDER[k]])
def test_a_call_of_any_release_means_what_it_meant_there(
    kind: str, count: int, silu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jetson_mamba.hook.stand_in import causal_conv1d_cuda as stand_in

    called: list[Any] = []
    result = torch.tensor([1.0])
    op = {"fwd": "fn"}.get(kind, kind)

    def noted(*given: Any, **named: Any) -> Any:
        called.append((given, named))
        return [result] * 4 if kind == "bwd" else result

    monkeypatch.setattr(f"jetson_mamba.ops.causal_conv1d_{op}", noted)
    names = IN_ORDER[kind][count].split()
    first = [f"first {place}" for place in range(count - len(names))]
    into = {"out", "dweight", "dbias", "dinitial_states"}
    rest: dict[str, Any] = {name: torch.zeros(1) if name in into else name for name in names}
    rest["silu"] = silu
    returned = getattr(stand_in, f"causal_conv1d_{kind}")(*first, *rest.values())
    expected: dict[str, Any] = {
        name: each for name, each in rest.items() if name not in {*into, "silu"}
    }
    expected["activation"] = "silu" if silu else None
    if count == 12:
        expected["return_dinitial_states"] = True
    assert called == [(tuple(first), expected)]
    newest = count == max(IN_ORDER[kind])
    if newest:
        assert returned is None
        assert all(rest[name] == 1 for name in into & set(rest))
    elif kind == "bwd":
        assert returned == [result] * (4 if count == 10 else 3)
    else:
        assert returned is result
