"""The ssd op by upstream's functions, without a GPU.

These are imitated here by functions of the same parameters that compute with PyTorch.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.errors import Unavailable
from jetson_mamba.ops.norms import parts
from jetson_mamba.ops.ssd import pytorch, triton
from jetson_mamba.ops.ssd.contract import Case, Implementation, Mixer, Scan
from tests.references.tolerance import relative_norm

NONE = float("inf")
PLAIN = pytorch.IMPLEMENTATION
FIELDS = ("x", "dt", "A", "B", "C", "chunk_size")


def scan_of(*given: Any, **others: Any) -> Scan:
    named: dict[str, Any] = {**dict.fromkeys(Scan._fields), **dict(zip(FIELDS, given)), **others}
    return Scan(**named)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    dt_softplus: bool = False,
    dt_limit: Any = (0.0, NONE),
    state_dtype: Any = None,
) -> tuple[Tensor, ...]:
    """As upstream's forward pass."""
    named = {name: each for name, each in locals().items() if name not in FIELDS}
    out, state, states = PLAIN.scan_forward(scan_of(x, dt, A, B, C, chunk_size, **named))
    others = (out, dt, dt, state)
    return (out, *others, state, *([] if states is None else [states]))


def backward(
    dout: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    out: Tensor,
    chunk_size: int,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    initial_states: Any = None,
    dfinal_states: Any = None,
    seq_idx: Any = None,
    dt_softplus: bool = False,
    dt_limit: Any = (0.0, NONE),
    dx: Any = None,
    ddt: Any = None,
    dB: Any = None,
    dC: Any = None,
    state_dtype: Any = None,
) -> tuple[Any, ...]:
    """As upstream's backward pass, in float32 but where it is told to write."""
    assert out.shape == x.shape and z is None
    given = scan_of(
        *(x, dt, A, B, C, chunk_size),
        **{"D": D, "dt_bias": dt_bias, "initial_states": initial_states, "seq_idx": seq_idx},
        dt_softplus=dt_softplus,
        dt_limit=dt_limit,
        state_dtype=state_dtype,
    )
    found = PLAIN.scan_backward(given, dout, dfinal_states)
    for target, each in zip((dx, ddt, dB, dC), (found.x, found.dt, found.B, found.C)):
        target.copy_(each)
    others = [None if each is None else each.float() for each in found[5:8]]
    return dx, ddt, found.A.float(), dB, dC, others[0], None, others[1], others[2]


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    eps: float,
    z: Any = None,
    out: Any = None,
    group_size: Any = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Any:
    """As upstream's norm with a gate."""
    return parts.gated_norm_forward(
        x, weight, bias, eps, z, out, group_size, norm_before_gate, is_rms_norm
    )


def norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Any,
    eps: float,
    mean: Any,
    rstd: Tensor,
    z: Any = None,
    group_size: Any = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    recompute_output: bool = False,
    dz: Any = None,
    out: Any = None,
) -> Any:
    """As upstream's backward pass of it."""
    assert dy.is_contiguous() and weight.is_contiguous() and x.shape == dy.shape
    rows = rstd.view(-1, dy.shape[0])
    grouped = x.float().unflatten(-1, (-1, group_size or x.shape[-1]))
    gated = (
        grouped
        if norm_before_gate
        else grouped
        * torch.nn.functional.silu(z.float().unflatten(-1, (-1, group_size or x.shape[-1])))
    )
    assert torch.allclose(rows, (gated.square().mean(-1) + eps).rsqrt().t(), rtol=1e-4)
    return parts.gated_norm_backward(
        *(dy, x, weight, bias, eps, mean, rstd, z, group_size, norm_before_gate, is_rms_norm),
        *(recompute_output, dz, out),
    )


UPSTREAM = (forward, backward, norm, norm_backward)


@pytest.fixture
def backend() -> Implementation:
    return triton._backend.__wrapped__(*UPSTREAM)


HEADS, HEADDIM, DSTATE, SEQLEN = 4, 16, 8, 21


def scan() -> Scan:
    torch.manual_seed(0)
    matrix = (2, SEQLEN, 2, DSTATE)
    return scan_of(
        torch.randn(2, SEQLEN, HEADS, HEADDIM),
        torch.randn(2, SEQLEN, HEADS),
        -torch.rand(HEADS) - 0.1,
        torch.randn(matrix),
        torch.randn(matrix),
        8,
        D=torch.randn(HEADS, HEADDIM),
        dt_bias=torch.randn(HEADS),
        dt_softplus=True,
        dt_limit=(0.0, NONE),
    )


SCANS: dict[str, Callable[[Scan], Scan]] = {
    "plain": lambda given: given,
    "gated": lambda given: given._replace(z=torch.randn(given.x.shape)),
    "with states": lambda given: given._replace(
        initial_states=torch.randn(2, HEADS, HEADDIM, DSTATE)
    ),
    "with sequences": lambda given: given._replace(
        seq_idx=(torch.arange(SEQLEN) // 6).int().expand(2, -1).contiguous()
    ),
    "without what may be left out": lambda given: given._replace(
        D=None, dt_bias=None, dt=given.dt.abs(), dt_softplus=False
    ),
    "within limits": lambda given: given._replace(dt_limit=(0.2, 0.7)),
    "of 16 bits": lambda given: given._replace(
        x=given.x.bfloat16(), B=given.B.bfloat16(), C=given.C.bfloat16(), dt=given.dt.bfloat16()
    ),
    "of rounded states": lambda given: given._replace(state_dtype=torch.float32),
}


def leaves_of(given: Any) -> dict[str, Any]:
    return {
        name: each.clone().requires_grad_()
        for name, each in given._asdict().items()
        if isinstance(each, Tensor) and each.is_floating_point()
    }


@pytest.mark.parametrize("kind", SCANS)
def test_a_scan_and_its_gradients_are_what_the_functions_compute(
    kind: str, backend: Implementation
) -> None:
    given = SCANS[kind](scan())
    results = []
    for implementation in (backend, PLAIN):
        leaves = leaves_of(given)
        for _ in range(2):  # the second call may be a repetition
            out, state, _ = implementation.scan(given._replace(**leaves))
            loss = out.double().square().sum() + state.double().sin().sum()
            gradients = torch.autograd.grad(loss, list(leaves.values()))
        results.append([out, state, *gradients])
        with torch.no_grad():
            forward_only = implementation.scan_forward(given._replace(z=None))
        results[-1] += forward_only[:2]
    for one, other in zip(*results):
        assert one.dtype == other.dtype and relative_norm(one, other) < 2e-3
    without = scan_of()._replace(**{**given._asdict(), "z": None})
    dout = torch.randn(given.x.shape).to(given.x.dtype)
    direct = [each.scan_backward(without, dout, None) for each in (backend, PLAIN)]
    for name, one, other in zip(direct[0]._fields, *direct):
        assert (one is None) == (other is None), name
        assert one is None or (one.dtype == other.dtype and relative_norm(one, other) < 2e-3), name


def test_packed_sequences_have_states_and_no_gradients(backend: Implementation) -> None:
    given = scan()
    first = given._replace(x=given.x[:1], dt=given.dt[:1], B=given.B[:1], C=given.C[:1])
    ends = torch.tensor([0, 5, 12, SEQLEN], dtype=torch.int32)
    which = (torch.arange(SEQLEN)[None] >= ends[1:-1, None]).sum(0, dtype=torch.int32)[None]
    packed = first._replace(cu_seqlens=ends, seq_idx=which)
    for one, other in zip(backend.scan(packed), PLAIN.scan(packed)):
        assert one is not None and other is not None and relative_norm(one, other) < 1e-5
    x = packed.x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="return_varlen_states"):
        backend.scan(packed._replace(x=x))[0].sum().backward()


def mixer(norm_before_gate: bool = False) -> Mixer:
    torch.manual_seed(0)
    channels = HEADS * HEADDIM + 2 * 2 * DSTATE
    return Mixer(
        zxbcdt=torch.randn(2, SEQLEN, HEADS * HEADDIM + channels + HEADS),
        conv1d_weight=torch.randn(channels, 4),
        conv1d_bias=torch.randn(channels),
        dt_bias=torch.randn(HEADS),
        A=-torch.rand(HEADS) - 0.1,
        D=torch.randn(HEADS),
        rmsnorm_weight=torch.rand(HEADS * HEADDIM) + 0.5,
        outproj_weight=torch.randn(8, HEADS * HEADDIM),
        outproj_bias=torch.randn(8),
        initial_states=None,
        seq_idx=None,
        chunk_size=8,
        dt_limit=(0.0, NONE),
        activation="silu",
        rmsnorm_eps=1e-5,
        headdim=HEADDIM,
        ngroups=2,
        norm_before_gate=norm_before_gate,
    )


def with_columns(given: Mixer) -> Mixer:
    wide = torch.cat([torch.randn(2, SEQLEN, 12), given.zxbcdt], -1)
    return given._replace(zxbcdt=wide, outproj_weight=torch.randn(8, HEADS * HEADDIM + 6))


MIXERS: dict[str, Callable[[], Mixer]] = {
    "whole": mixer,
    "normed before": lambda: mixer(norm_before_gate=True),
    "without a norm": lambda: mixer()._replace(rmsnorm_weight=None),
    "with columns": lambda: with_columns(mixer()),
    "without a projection": lambda: mixer()._replace(outproj_weight=None, outproj_bias=None),
}


@pytest.mark.parametrize("kind", MIXERS)
def test_a_mixer_is_what_the_functions_compute(kind: str, backend: Implementation) -> None:
    given = MIXERS[kind]()
    results = []
    for implementation in (backend, PLAIN):
        leaves = leaves_of(given)
        out, state = implementation.mixer(given._replace(**leaves))
        loss = out.double().square().sum() + state.double().sin().sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        with torch.no_grad():
            results.append([out, state, *gradients, *implementation.mixer_forward(given)])
    for one, other in zip(*results):
        assert one.dtype == other.dtype and relative_norm(one, other) < 1e-5


@pytest.mark.parametrize("kind", ["whole", "normed before"])
def test_a_core_and_its_gradients_are_what_the_functions_compute(
    kind: str, backend: Implementation
) -> None:
    given = MIXERS[kind]()
    kept = [each.core_forward(given) for each in (backend, PLAIN)]
    for name, one, other in zip(kept[0]._fields, *kept):
        assert relative_norm(one, other) < 1e-5, name
    dout, dstate = torch.randn(kept[0].out.shape), torch.randn(kept[0].final_states.shape)
    for last in (None, dstate):
        gradients = [each.core_backward(given, kept[0], dout, last) for each in (backend, PLAIN)]
        for name, one, other in zip(gradients[0]._fields, *gradients):
            assert one is not None and other is not None
            assert relative_norm(one, other) < 1e-5, name


CASE = Case(torch.device("cuda"), torch.float32)


@pytest.fixture
def launchers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Those of an upstream that is imported, where Triton runs."""
    found = dict(zip(triton._PARAMETERS, UPSTREAM))
    monkeypatch.setattr(triton, "triton_runs_on", lambda device: device.type == "cuda")
    monkeypatch.setattr(triton, "launchers_of", lambda op: found or None)
    triton._backend.cache_clear()
    return found


def test_an_upstream_of_these_functions_serves(launchers: dict[str, Any]) -> None:
    assert triton.load(CASE).scan is not None
    assert triton.load(CASE._replace(rounds_states=True)).scan is not None


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (CASE._replace(device=torch.device("cpu")), "Triton has no kernels for cpu"),
        (CASE._replace(dtype=torch.float64), "compute in float32, not in torch.float64"),
    ],
)
def test_what_its_kernels_are_not_for_is_refused(
    case: Case, reason: str, launchers: dict[str, Any]
) -> None:
    with pytest.raises(Unavailable, match=reason):
        triton.load(case)


def without(function: Any, name: str) -> Any:
    """It, were it without a parameter."""
    signature = inspect.signature(function)
    others = [each for each in signature.parameters.values() if each.name != name]

    def other(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    other.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
    return other


@pytest.mark.parametrize("name", triton._PARAMETERS)
def test_an_upstream_without_one_of_the_functions_is_refused(
    name: str, launchers: dict[str, Any]
) -> None:
    function = launchers[name]
    for parameter in triton._PARAMETERS[name]:
        launchers[name] = without(function, parameter)
        with pytest.raises(Unavailable, match=f"has {name} without {parameter}$"):
            triton.load(CASE)
    del launchers[name]
    with pytest.raises(Unavailable, match=f"{triton.MODULE} has no {name}"):
        triton.load(CASE)
    launchers.clear()
    with pytest.raises(Unavailable, match=f"no {triton.MODULE} is imported"):
        triton.load(CASE)


@pytest.mark.parametrize("number", [0, 1])
def test_a_release_without_a_dtype_of_states_serves_what_asks_for_none(
    number: int, launchers: dict[str, Any]
) -> None:
    name = [*triton._PARAMETERS][number]
    launchers[name] = without(launchers[name], "state_dtype")
    assert triton.load(CASE).scan is not None
    with pytest.raises(Unavailable, match="know no state_dtype"):
        triton.load(CASE._replace(rounds_states=True))
