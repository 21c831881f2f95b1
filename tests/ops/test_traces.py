"""The ops are right where something records what they do.

The convolution, the scan and a block's inner part.
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Callable, Tuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.ops import (
    causal_conv1d_fn,
    mamba_chunk_scan_combined,
    mamba_inner_fn,
    selective_scan_fn,
    selective_state_update,
)
from jetson_mamba.ops.causal_conv1d import causal_conv1d_update
from jetson_mamba.ops.causal_conv1d import op as convolving
from jetson_mamba.ops.selective_scan import composed
from jetson_mamba.ops.selective_scan import op as scanning
from tests import interpreters
from tests.references.tolerance import relative_norm

# What torch says of its own tracers.
pytestmark = pytest.mark.filterwarnings("ignore")
Call = Callable[..., Any]
DIM, DSTATE = 4, 3


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape)


def scanned(is_complex: bool) -> tuple[Call, Callable[[int, int], tuple[Tensor, ...]]]:
    A = -torch.rand(DIM, DSTATE)
    if is_complex:
        A = torch.complex(A, drawn(DIM, DSTATE))
    D, bias = drawn(DIM), drawn(DIM)

    def call(u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor) -> Any:
        return selective_scan_fn(u, delta, A, B, C, D, z, bias, True, True)

    def made(batch: int, seqlen: int) -> tuple[Tensor, ...]:
        u, delta, z = (drawn(batch, DIM, seqlen) for _ in range(3))
        width = seqlen * (2 if is_complex else 1)
        return u, delta, drawn(batch, DSTATE, width), drawn(batch, 1, DSTATE, width), z

    return call, made


def convolved(width: int) -> tuple[Call, Callable[[int, int], tuple[Tensor, ...]]]:
    weight, bias = drawn(DIM, width), drawn(DIM)

    def call(x: Tensor, states: Tensor) -> Any:
        return causal_conv1d_fn(x, weight, bias, None, states, True, None, "silu")

    return call, lambda batch, seqlen: (drawn(batch, DIM, seqlen), drawn(batch, DIM, width - 1))


def stepped() -> tuple[Call, Callable[[int, int], tuple[Tensor, ...]]]:
    weight = drawn(DIM, 4)

    def call(x: Tensor, state: Tensor) -> Any:
        state = state * 1
        return causal_conv1d_update(x, state, weight, None, "silu"), state

    return call, lambda batch, seqlen: (drawn(batch, DIM, seqlen), drawn(batch, DIM, 5))


def whole() -> tuple[Call, Callable[[int, int], tuple[Tensor, ...]]]:
    rank = 2
    weights: dict[str, Any] = {
        "conv1d_weight": drawn(DIM, 1, 4),
        "conv1d_bias": drawn(DIM),
        "x_proj_weight": drawn(rank + 2 * DSTATE, DIM) / 3,
        "delta_proj_weight": drawn(DIM, rank),
        "out_proj_weight": drawn(5, DIM),
        "out_proj_bias": drawn(5),
        "A": -torch.rand(DIM, DSTATE),
        "D": drawn(DIM),
        "delta_bias": drawn(DIM),
    }

    def call(xz: Tensor) -> Any:
        return mamba_inner_fn(xz, **weights)

    return call, lambda batch, seqlen: (drawn(batch, 2 * DIM, seqlen),)


def step_of_the_scan() -> tuple[Call, Callable[[int, int], tuple[Tensor, ...]]]:
    A, D = -torch.rand(1, DIM, DSTATE), drawn(1, DIM)

    def call(state: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Any:
        state = state * 1
        of = torch.ones_like(x[:, 0, 0], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        out = selective_state_update(state, x, dt, A, B, C, D, x, None, True, of)
        return out, state

    def made(batch: int, seqlen: int) -> tuple[Tensor, ...]:
        each, matrix = (batch, 1, DIM), (batch, 1, DSTATE)
        states = drawn(batch + 2, 1, DIM, DSTATE)
        return states, drawn(*each), drawn(*each), drawn(*matrix), drawn(*matrix)

    return call, made


torch.manual_seed(0)
FUNCTIONS = {
    "scan": scanned(False),
    "complex scan": scanned(True),
    "convolution": convolved(4),
    "step of the convolution": stepped(),
    "step of the scan": step_of_the_scan(),
    "block": whole(),
}
Made = Tuple[Call, Callable[[int, int], Tuple[Tensor, ...]]]
each_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def agree(found: Any, expected: Any) -> None:
    if isinstance(found, Tensor):
        found, expected = (found,), (expected,)
    assert len(found) == len(expected)
    for each, right in zip(found, expected):
        assert relative_norm(each, right) < 1e-5


@pytest.mark.parametrize("recorded", [True, False])
@each_function
def test_a_trace_is_right_at_its_sizes_and_at_others(function: Made, recorded: bool) -> None:
    call, made = function
    batch, seqlen = 2, 6 if function is not FUNCTIONS["block"] else 70
    others = ((batch, seqlen + 1), (batch + 1, seqlen), (1, 1), (2 * batch, seqlen // 2), (1, 300))
    with torch.set_grad_enabled(recorded):
        traced: Any = torch.jit.trace(call, made(batch, seqlen))
        stored = io.BytesIO()
        torch.jit.save(traced, stored)
        stored.seek(0)
        for each in (traced, torch.jit.load(stored)):
            for size in ((batch, seqlen), *others):
                given = made(*size)
                agree(each(*given), call(*given))


@each_function
def test_a_trace_is_taken_without_a_word(function: Made) -> None:
    """What is only checked is no part of it, and nothing is decided by a number of it."""
    call, made = function
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.jit.trace(call, made(2, 6), check_trace=False)
    of_tracer = [each.message for each in said if each.category.__name__ == "TracerWarning"]
    assert of_tracer == []


def test_a_trace_refuses_what_it_is_not_right_for_and_says_what_to_do() -> None:
    x, states = drawn(2, DIM, 6), drawn(2, DIM, 3)

    def convolution(x: Tensor, weight: Tensor, states: Tensor) -> Any:
        return causal_conv1d_fn(x, weight, None, None, states)

    traced: Any = torch.jit.trace(convolution, (x, drawn(DIM, 4), states))
    with pytest.raises(torch.jit.Error, match=r"expected 4 on axis 1.*take another trace"):
        traced(x, drawn(DIM, 3), states[..., :2])


def ssd(**others: Any) -> Call:
    """Mamba-2's scan of two heads, with constants."""
    A = -torch.rand(2)

    def call(x: Tensor) -> Any:
        given = {"dt": x[..., 0], "B": x[:, :, :1], "C": x[:, :, 1:], **others}
        return mamba_chunk_scan_combined(x, A=A, chunk_size=4, **given)

    return call


def scan(**others: Any) -> Call:
    """A selective scan with constants."""
    A = -torch.rand(DIM, DSTATE)

    def call(u: Tensor) -> Any:
        given = {"delta": u, "B": u[:, None, :DSTATE], "C": u[:, None, 1:], **others}
        return selective_scan_fn(u, A=A, **given)

    return call


def convolution(**others: Any) -> Call:
    return lambda x: causal_conv1d_fn(x, WEIGHT, **others)


def further(conv_state: Tensor, **others: Any) -> Call:
    return lambda x: causal_conv1d_update(x, conv_state * 1, WEIGHT, **others)


def token(**others: Any) -> Call:
    """A step of the state with constants."""
    A = -torch.rand(DIM, DSTATE)

    def call(x: Tensor) -> Any:
        x = x[..., 0]
        given = {"dt": x, "B": x[:, :DSTATE], "C": x[:, 1:], "state": x[..., None] * A, **others}
        return selective_state_update(given.pop("state") * 1, x, A=A, **given)

    return call


WEIGHT = drawn(DIM, 4)
ONE = torch.int32
# What a function holds beside the input of a trace, of a batch of 1 and 6 steps.
CONSTANTS: dict[str, Call] = {
    "seq_idx of the convolution": convolution(seq_idx=torch.zeros(1, 6, dtype=ONE)),
    "initial_states of the convolution": convolution(initial_states=drawn(1, DIM, 3)),
    "conv_state": further(drawn(1, DIM, 4)),
    "cache_seqlens": further(drawn(1, DIM, 4), cache_seqlens=torch.ones(1, dtype=ONE)),
    "conv_state_indices": further(drawn(5, DIM, 4), conv_state_indices=torch.ones(1, dtype=ONE)),
    **{f"{name} of ssd": ssd(**{name: drawn(1, 6, 1, 2)}) for name in ("B", "C")},
    "z of ssd": ssd(z=drawn(1, 6, 2, 2)),
    "dt of ssd": ssd(dt=torch.rand(1, 6, 2)),
    "seq_idx of ssd": ssd(seq_idx=torch.zeros(1, 6, dtype=ONE)),
    "initial_states of ssd": ssd(initial_states=drawn(1, 2, 2, 2)),
    **{f"{name} of the scan": scan(**{name: drawn(1, DIM, 6)}) for name in ("delta", "z")},
    **{f"{name} of the scan": scan(**{name: drawn(1, 1, DSTATE, 6)}) for name in ("B", "C")},
    "state": token(state=drawn(1, DIM, DSTATE)),
    **{f"{name} of a token": token(**{name: drawn(1, DIM)}) for name in ("dt", "z")},
    **{f"{name} of a token": token(**{name: drawn(1, DSTATE)}) for name in ("B", "C")},
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_trace_refuses_its_constants_beside_an_input_of_other_sizes(name: str) -> None:
    """As a call does: one that has a batch of 1 is not taken for that of any batch."""
    call = CONSTANTS[name]
    of_steps = (lambda n: (n, 2, 2)) if name.endswith("of ssd") else (lambda n: (DIM, n))
    x = drawn(1, *of_steps(6))
    traced: Any = torch.jit.trace(call, (x,))
    agree(traced(x + 1), call(x + 1))
    word = name.partition(" ")[0]
    others = [drawn(3, *of_steps(6))]
    if not any(part in name for part in ("state", "cache", "token")):
        others.append(drawn(1, *of_steps(9)))
    for other in others:
        with pytest.raises((ValueError, RuntimeError)):
            call(other)
        with pytest.raises(torch.jit.Error, match=f"{word} of shape.*expected .*another trace"):
            traced(other)


def test_a_trace_of_the_scan_refuses_more_steps_than_it_has_levels_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(composed, "TRACED_LEVELS", 1)
    call, made = FUNCTIONS["scan"]
    for seqlen, most in ((6, 16), (20, 256)):
        traced: Any = torch.jit.trace(call, made(2, seqlen))
        given = made(1, most)
        agree(traced(*given), call(*given))
        with pytest.raises(torch.jit.Error, match="take another trace"):
            traced(*made(1, most + 1))


@each_function
def test_a_trace_has_the_gradients_of_what_it_is_of(function: Made) -> None:
    call, made = function
    if function in (FUNCTIONS["step of the convolution"], FUNCTIONS["step of the scan"]):
        pytest.skip("it has no gradients")
    traced: Any = torch.jit.trace(call, made(2, 6))
    found = []
    given = made(2, 6)
    for each in (traced, call):
        leaves = [tensor.clone().requires_grad_() for tensor in given]
        results = each(*leaves)
        out = results if isinstance(results, Tensor) else results[0]
        out.square().sum().backward()
        found.append([leaf.grad for leaf in leaves if leaf.grad is not None])
    agree(found[0], found[1])


@each_function
def test_onnx_by_a_trace(function: Made, tmp_path: Any) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    if function is FUNCTIONS["complex scan"]:
        pytest.skip("ONNX has no complex numbers")
    call, made = function

    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Any:
            return call(*given)

    given, path = made(2, 40), str(tmp_path / "of.onnx")
    names = [f"given{i}" for i in range(len(given))]
    free = [name for name, each in zip(names, given) if each.shape[-1] == 40]
    axes = {name: {0: "batch", each.dim() - 1: "seqlen"} for name, each in zip(names, given)}
    axes = {name: each if name in free else {0: "batch"} for name, each in axes.items()}
    with torch.no_grad():
        torch.onnx.export(
            *(Module(), given, path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            dynamic_axes=axes,
        )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in ((2, 40), (1, 7), (3, 130)):
        given = made(*size)
        expected = call(*given)
        found = session.run(None, {name: each.numpy() for name, each in zip(names, given)})
        expected = (expected,) if isinstance(expected, Tensor) else expected
        agree([torch.from_numpy(each) for each in found], expected)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@each_function
def test_a_graph_of_make_fx_computes_the_same(function: Made, mode: Any) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    call, made = function
    graph = make_fx(call, tracing_mode=mode, _allow_non_fake_inputs=True)(*made(2, 6))
    sizes = ((2, 6), (3, 9)) if mode == "symbolic" else ((2, 6),)
    for each in sizes:
        given = made(*each)
        agree(graph(*given), call(*given))


@each_function
def test_a_graph_of_make_fx_of_gradients_computes_the_same(function: Made) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    call, made = function
    if function in (FUNCTIONS["step of the convolution"], FUNCTIONS["step of the scan"]):
        pytest.skip("it has no gradients")

    def gradients(*given: Tensor) -> Any:
        results = call(*given)
        out = results if isinstance(results, Tensor) else results[0]
        return torch.autograd.grad(out.square().sum(), given)

    def leaves(given: tuple[Tensor, ...]) -> list[Tensor]:
        return [each.clone().requires_grad_() for each in given]

    graph = make_fx(gradients)(*leaves(made(2, 6)))
    given = made(2, 6)
    agree(graph(*leaves(given)), gradients(*leaves(given)))


@each_function
def test_shapes_come_of_tensors_without_numbers(function: Made) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    call, made = function
    given = made(2, 6)
    expected = call(*given)
    expected = (expected,) if isinstance(expected, Tensor) else expected

    def like(found: Any) -> None:
        found = (found,) if isinstance(found, Tensor) else found
        for each, right in zip(found, expected):
            assert (each.shape, each.dtype) == (right.shape, right.dtype)

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for recorded in (True, False):
            with torch.set_grad_enabled(recorded):
                like(call(*[mode.from_tensor(each) for each in given]))


@pytest.mark.parametrize("recorded", [True, False])
@each_function
def test_a_default_device_has_no_say_in_what_is_computed(
    monkeypatch: pytest.MonkeyPatch, function: Made, recorded: bool
) -> None:
    call, made = function
    given = made(2, 40)
    for op in (convolving, scanning):  # As at a first call, which chooses a backend.
        monkeypatch.setattr(op, "OP", Op(op.OP.name, op.OP._package, op.OP.order, op.OP._trial))
    with torch.device("meta"), torch.set_grad_enabled(recorded):
        leaves = [each.detach().requires_grad_(recorded) for each in given]
        found = call(*leaves)
        out = found if isinstance(found, Tensor) else found[0]
        if out.requires_grad:
            out.sum().backward()
            assert leaves[0].grad is not None and leaves[0].grad.device.type == "cpu"
    agree(found, call(*given))


@pytest.mark.parametrize("recorded", [True, False])
def test_meta_tensors_have_shapes(recorded: bool) -> None:
    with torch.device("meta"), torch.set_grad_enabled(recorded):
        u = torch.randn(2, DIM, 6, requires_grad=recorded)
        A, B = torch.randn(DIM, DSTATE), torch.randn(2, 1, DSTATE, 6)
        out, last_state = selective_scan_fn(u, u, A, B, B, None, u, None, True, True)
        assert out.is_meta and out.shape == u.shape and last_state.shape == (2, DIM, DSTATE)
        weight = torch.randn(DIM, 4)
        convolved, states = causal_conv1d_fn(u, weight, return_final_states=True)
        assert convolved.is_meta and convolved.shape == u.shape and states.shape == (2, DIM, 3)
        assert causal_conv1d_update(u[..., 0], torch.zeros(2, DIM, 4), weight).shape == (2, DIM)
        if recorded:
            (out.sum() + convolved.sum()).backward()
            assert u.grad is not None and u.grad.shape == u.shape


def test_a_fake_device_that_is_not_here_has_shapes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.no_grad():
        u = torch.randn(2, DIM, 6, device="cuda")
        A, B = torch.randn(DIM, DSTATE, device="cuda"), torch.randn(2, DSTATE, 6, device="cuda")
        B = B.unsqueeze(1)
        scan = torch.ops.jetson_mamba.selective_scan.default
        out, x, _ = scan(u, u, A, B, B, None, None, None, True)
        assert out.device.type == "cuda" and x.shape == (2, DIM, 2 * DSTATE)


def test_operations_are_counted_alike_at_the_first_and_at_later_calls() -> None:
    """In a process of its own: the first call chooses the backends."""
    program = """
import torch
from torch.utils.flop_counter import FlopCounterMode
from tests.ops.test_traces import FUNCTIONS
counted = []
for _ in range(3):
    for call, made in FUNCTIONS.values():
        given = [each.requires_grad_() for each in made(2, 6)]
        with FlopCounterMode(display=False) as counter:
            results = call(*given)
            out = results if isinstance(results, torch.Tensor) else results[0]
            if out.requires_grad:
                out.sum().backward()
        counted.append(counter.get_total_flops())
of = len(counted) // 3
assert counted[:of] == counted[of:2 * of] == counted[2 * of:], counted
assert counted[of - 1] > 0
"""
    done = interpreters.run(["-c", program], modules=interpreters.COMPILER)
    assert done.returncode == 0, done.stderr
