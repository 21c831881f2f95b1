"""The convolution's CUDA kernels against the definition in float64, on a GPU.

Every call is made with memory that torch fills with NaN, so that an element left unwritten is
found; lengths lie around the edges of vectors, warps and tiles.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.causal_conv1d import cuda, pytorch
from jetson_mamba.ops.causal_conv1d.contract import Case, Implementation

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # What the reference calls need not be deterministic.
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]

# Relative norm of the error. Rounding a result to bfloat16 is up to 2^-8 of it, 2^-9.2 in the mean.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3.5e-4, torch.bfloat16: 2.8e-3}
LAYOUTS = ("time", "channels", "time slice", "channels slice", "general")
LENGTHS = (1, 2, 3, 7, 64, 255, 257, 2047, 2048, 2049)


class Setup(NamedTuple):
    """One call."""

    layout: str
    seqlen: int
    dim: int
    dtype: torch.dtype
    weight_dtype: torch.dtype
    width: int
    silu: bool
    bias: bool
    sequences: bool
    states: bool


def setups() -> list[Setup]:
    """Every layout with every length; the other choices drawn once, always the same."""
    draw = random.Random(5)
    chosen = []
    for layout, seqlen in itertools.product(LAYOUTS, LENGTHS):
        for dtype in TOLERANCE:
            chosen.append(
                Setup(
                    layout,
                    seqlen,
                    draw.choice((8, 24, 37, 136)),
                    dtype,
                    draw.choice((dtype, torch.float32)),
                    draw.choice((2, 3, 4, 4)),
                    draw.random() < 0.7,
                    draw.random() < 0.7,
                    draw.random() < 0.3,
                    draw.random() < 0.3,
                )
            )
    return chosen


@pytest.fixture(autouse=True)
def _nan_in_empty_memory() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def implementation(dtype: torch.dtype, weight_dtype: torch.dtype, width: int) -> Implementation:
    return cuda.load(Case(torch.device("cuda", 0), dtype, weight_dtype, width))


def tensor(layout: str, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    batch, dim, seqlen = shape
    if layout == "time":
        return torch.randn(shape, device="cuda").to(dtype)
    if layout == "channels":
        return torch.randn(batch, seqlen, dim, device="cuda").to(dtype).transpose(1, 2)
    if layout == "time slice":
        return torch.randn(batch, 2 * dim, seqlen, device="cuda").to(dtype)[:, dim:]
    if layout == "channels slice":
        whole = torch.randn(batch, seqlen, dim + 16, device="cuda").to(dtype)
        return whole[..., 8 : 8 + dim].transpose(1, 2)
    return torch.randn(batch, dim * 2, seqlen * 3, device="cuda").to(dtype)[:, ::2, ::3]


def indices(batch: int, seqlen: int) -> Tensor:
    """Sequences of random lengths, with some padding."""
    starts = torch.rand(batch, seqlen, device="cuda") < 0.2
    numbers = starts.int().cumsum(1).int()
    return torch.where(numbers % 5 == 3, -1, numbers).int()


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Output and final states, from the definition, tap by tap, in the arguments' dtype."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    past = x.new_zeros(batch, dim, width - 1) if initial is None else initial
    inputs = torch.cat((past, x), 2)
    z = x.new_zeros(x.shape) if bias is None else bias[:, None].expand_as(x)
    for k in range(width):
        tap = inputs[..., k : k + seqlen]
        if seq_idx is not None:
            numbers = torch.cat((seq_idx[:, :1].expand(-1, width - 1), seq_idx), 1)
            tap = tap * (numbers[:, k : k + seqlen] == seq_idx)[:, None]
        z = z + weight[:, k, None] * tap
    out = torch.nn.functional.silu(z) if silu else z
    if seq_idx is not None:
        out = out * (seq_idx >= 0)[:, None]
    return out, inputs[..., seqlen:]


def check(name: str, actual: Tensor | None, expected: Tensor | None) -> None:
    assert actual is not None and expected is not None
    assert actual.shape == expected.shape, name
    expected = expected.detach()
    error = float((actual.double() - expected).norm())
    assert error <= TOLERANCE[actual.dtype] * float(expected.norm()) + 1e-30, name


@pytest.mark.parametrize("setup", setups(), ids=str)
def test_forward_and_backward_agree_with_float64(setup: Setup) -> None:
    s, batch = setup, 3
    kernels = implementation(s.dtype, s.weight_dtype, s.width)
    x = tensor(s.layout, (batch, s.dim, s.seqlen), s.dtype)
    dout = tensor(s.layout, (batch, s.dim, s.seqlen), s.dtype)
    weight = torch.randn(s.dim, s.width, device="cuda").to(s.weight_dtype)
    bias = torch.randn(s.dim, device="cuda").to(s.weight_dtype) if s.bias else None
    seq_idx = indices(batch, s.seqlen) if s.sequences else None
    initial = final = dfinal = None
    if s.states:
        initial = tensor("channels", (batch, s.dim, s.width - 1), s.dtype)
        dfinal = tensor("channels", (batch, s.dim, s.width - 1), s.dtype)
        final = torch.empty_like(initial)
    wide: Any = [t.double().requires_grad_() for t in (x, weight, bias, initial) if t is not None]
    wide_x, wide_weight = wide[:2]
    wide_bias = wide[2] if s.bias else None
    wide_initial = wide[-1] if s.states else None
    wide_out, wide_final = reference(wide_x, wide_weight, wide_bias, seq_idx, wide_initial, s.silu)

    out = kernels.forward(x, weight, bias, seq_idx, initial, final, s.silu)
    check("out", out, wide_out)
    if final is not None:
        assert torch.equal(final.double(), wide_final)

    ends = (wide_out,) if dfinal is None else (wide_out, wide_final)
    gradients = (dout.double(),) if dfinal is None else (dout.double(), dfinal.double())
    wide_gradients = torch.autograd.grad(ends, wide, gradients, allow_unused=True)
    target = tensor(s.layout, (batch, s.dim, s.seqlen), s.dtype).fill_(float("nan"))
    dx, dweight, dbias, dinitial = kernels.backward(
        x, weight, bias, dout, seq_idx, initial, dfinal, target, s.states, s.silu
    )
    assert dx is target
    check("dx", dx, wide_gradients[0])
    assert dweight.dtype == weight.dtype
    check("dweight", dweight, wide_gradients[1])
    if s.bias:
        check("dbias", dbias, wide_gradients[2])
    else:
        assert dbias is None
    if s.states:
        check("dinitial", dinitial, wide_gradients[-1])
    else:
        assert dinitial is None


def test_gradient_of_initial_states_is_given_without_initial_states() -> None:
    kernels = implementation(torch.float32, torch.float32, 4)
    for layout in LAYOUTS:
        x, dout = (tensor(layout, (2, 16, 2), torch.float32) for _ in range(2))
        weight = torch.randn(16, 4, device="cuda")
        zeros = torch.zeros(2, 16, 3, device="cuda", dtype=torch.float64, requires_grad=True)
        out, _ = reference(x.double(), weight.double(), None, None, zeros, True)
        (expected,) = torch.autograd.grad(out, zeros, dout.double())
        check(
            "dinitial",
            kernels.backward(x, weight, None, dout, None, None, None, None, True, True)[3],
            expected,
        )


def test_dout_and_dx_may_be_laid_out_otherwise_than_x() -> None:
    kernels = implementation(torch.float32, torch.float32, 4)
    weight = torch.randn(24, 4, device="cuda")
    for layouts in itertools.permutations(LAYOUTS, 3):
        x, dout, dx = (tensor(layout, (2, 24, 70), torch.float32) for layout in layouts)
        wide = x.double().requires_grad_()
        out, _ = reference(wide, weight.double(), None, None, None, True)
        (expected,) = torch.autograd.grad(out, wide, dout.double())
        kernels.backward(x, weight, None, dout, None, None, None, dx, False, True)
        check("dx", dx, expected)


def test_final_states_may_be_written_over_the_initial_states() -> None:
    kernels = implementation(torch.float32, torch.float32, 4)
    weight = torch.randn(64, 4, device="cuda")
    for layout, seqlen in itertools.product(LAYOUTS, (1, 2, 5, 3000)):
        x = tensor(layout, (2, 64, seqlen), torch.float32)
        states = torch.randn(2, 64, 3, device="cuda")
        expected, final = reference(x.double(), weight.double(), None, None, states.double(), False)
        check("out", kernels.forward(x, weight, None, None, states, states, False), expected)
        assert torch.equal(states.double(), final)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seqlen", [1, 3, 9])
@pytest.mark.parametrize("length", [3, 4, 11])
@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("indexed", [False, True])
def test_update_agrees_with_pytorch(
    dtype: torch.dtype, seqlen: int, length: int, ring: bool, indexed: bool
) -> None:
    for width, channels_first in itertools.product((2, 4), (False, True)):
        x = tensor("time" if channels_first else "channels", (3, 70, seqlen), dtype)
        weight = torch.randn(70, width, device="cuda").to(dtype)
        bias = torch.randn(70, device="cuda").to(dtype)
        state = tensor("time" if channels_first else "channels", (5, 70, length), dtype)
        rows = torch.tensor([4, -1, 1], device="cuda", dtype=torch.int32) if indexed else None
        state = state if indexed else state[:3]
        seqlens = torch.tensor([0, 5, 13], device="cuda", dtype=torch.int32) if ring else None
        wide_state = state.double()
        expected = pytorch.update(
            x.double(), wide_state, weight.double(), bias.double(), seqlens, rows, True
        )
        out = implementation(dtype, dtype, width).update(
            x, state, weight, bias, seqlens, rows, True
        )
        check("out", out, expected)
        assert torch.equal(state.double(), wide_state)


def test_results_are_the_same_every_time() -> None:
    kernels = implementation(torch.float32, torch.float32, 4)
    for layout in LAYOUTS:
        x, dout = (tensor(layout, (4, 96, 1500), torch.float32) for _ in range(2))
        weight, bias = torch.randn(96, 4, device="cuda"), torch.randn(96, device="cuda")
        first, second = (
            kernels.backward(x, weight, bias, dout, None, None, None, None, False, True)[:3]
            for _ in range(2)
        )
        for once, again in zip(first, second):
            assert once is not None and again is not None and torch.equal(once, again)


def test_kernels_run_in_a_captured_graph_and_on_another_stream() -> None:
    torch.use_deterministic_algorithms(False)
    kernels = implementation(torch.bfloat16, torch.float32, 3)
    x = torch.randn(2, 64, 512, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(64, 3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    # This width is compiled and loaded while the capture runs.
    with torch.cuda.graph(graph):
        out = kernels.forward(x, weight, None, None, None, None, True)
        dx = kernels.backward(x, weight, None, x, None, None, None, None, False, True)[0]
    x.copy_(torch.randn_like(x))
    graph.replay()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        assert torch.equal(out, kernels.forward(x, weight, None, None, None, None, True))
        again = kernels.backward(x, weight, None, x, None, None, None, None, False, True)[0]
    stream.synchronize()
    assert torch.equal(dx, again)
