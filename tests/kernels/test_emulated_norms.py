"""The kernels of the norms agree on a CPU with float64.

All that surrounds them runs with them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.ops.norms import cuda, pytorch
from jetson_mamba.ops.norms.contract import Case, Gate, Implementation, Options
from tests.kernels.emulated import emulate, serve
from tests.references.tolerance import relative_norm

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
FLOAT, BRAIN = torch.float32, torch.bfloat16
TOLERANCE = {FLOAT: 2e-6, BRAIN: 6e-3}


@pytest.fixture(autouse=True)
def on_the_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, libraries)
    serve(monkeypatch, cuda)


class Setup(NamedTuple):
    """One norm, forward and backward; ``apart`` columns lie between one row and the next."""

    rows: int
    groups: int
    group: int
    dtype: torch.dtype
    residual: torch.dtype | None = None
    gate: Gate = Gate.NONE
    is_rms_norm: bool = True
    bias: bool = False
    apart: int = 0


def definition(
    options: Options, x: Tensor, residual: Any, z: Any, weight: Tensor, bias: Any
) -> tuple[Tensor, Tensor]:
    """The output and the sum with the residual."""
    total = x if residual is None else x + residual
    gated = total * functional.silu(z) if options.gate == Gate.INPUT else total
    grouped = gated.unflatten(-1, (-1, options.group))
    if not options.is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    out = (grouped / (grouped.square().mean(-1, keepdim=True) + options.eps).sqrt()).flatten(-2)
    out = out * weight if bias is None else out * weight + bias
    return (out * functional.silu(z) if options.gate == Gate.OUTPUT else out), total


SETUPS = (
    Setup(5, 1, 32, FLOAT, is_rms_norm=False, bias=True, gate=Gate.OUTPUT),
    Setup(3, 2, 40, FLOAT, residual=FLOAT, apart=4),
    Setup(3, 1, 7, BRAIN, residual=FLOAT, is_rms_norm=False),
    Setup(2, 2, 64, BRAIN, gate=Gate.INPUT, bias=True, apart=13),
    # More than a run of the threads of a row.
    Setup(9, 1, 2600, FLOAT),
)


BACKENDS: dict[str, Callable[[Case], Implementation]] = {
    "cuda": lambda case: cuda.load(case),  # noqa: PLW0108 - which a test changes
    # What the kernels are held to by their trial.
    "pytorch": lambda case: pytorch.IMPLEMENTATION,
}


@pytest.mark.parametrize("made", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_both_passes_agree_with_the_definition(
    setup: Setup, made: Callable[[Case], Implementation]
) -> None:
    torch.manual_seed(0)
    dim = setup.groups * setup.group
    options = Options(0.01, setup.group, setup.is_rms_norm, setup.gate)

    def drawn(dtype: torch.dtype) -> Tensor:
        columns = dim + setup.apart
        return torch.randn(setup.rows, columns).to(dtype)[:, setup.apart :]

    x = drawn(setup.dtype)
    residual = None if setup.residual is None else drawn(setup.residual)
    z = None if setup.gate == Gate.NONE else drawn(setup.dtype)
    weight, bias = torch.rand(dim) + 0.5, torch.randn(dim) if setup.bias else None
    kernels = made(Case(x.device, setup.dtype, weight.dtype))
    found = kernels.forward(
        *(x, residual, z, weight, bias, setup.residual, setup.dtype, options, True)
    )
    exact: list[Any] = [
        None if each is None else each.double().requires_grad_()
        for each in (x, residual, z, weight, bias)
    ]
    out, total = definition(options, *exact)
    assert relative_norm(found.out, out) < TOLERANCE[setup.dtype]
    gated = exact[0] if z is None or setup.gate != Gate.INPUT else x * functional.silu(exact[2])
    grouped = (total if residual is not None else gated).unflatten(-1, (-1, setup.group))
    if not setup.is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    rstd = (grouped.square().mean(-1) + options.eps).rsqrt().t()
    assert found.rstd is not None and relative_norm(found.rstd, rstd) < 1e-2
    source, dtotal, gradients = x, None, [drawn(setup.dtype)]
    if residual is not None:
        assert found.total is not None and found.total.dtype == setup.residual
        assert relative_norm(found.total, total) < TOLERANCE[FLOAT]
        source, dtotal = found.total, drawn(found.total.dtype)
        gradients.append(dtotal)
    actual = kernels.backward(
        *(source, z, weight, bias, gradients[0], dtotal, setup.residual, options, None)
    )
    wanted = [each for each in exact if each is not None]
    right = iter(
        torch.autograd.grad(
            (out, total)[: len(gradients)], wanted, [each.double() for each in gradients]
        )
    )
    for name, tensor, gradient in zip(("x", "residual", "z", "weight", "bias"), exact, actual):
        assert (tensor is None) == (gradient is None), name
        if gradient is not None:
            assert relative_norm(gradient, next(right)) < TOLERANCE[setup.dtype], name


def test_the_gradient_of_a_gate_is_written_where_it_is_asked_for() -> None:
    torch.manual_seed(0)
    x, z, dout = (torch.randn(4, 32) for _ in range(3))
    weight, whole = torch.rand(32), torch.zeros(4, 40)
    kernels = cuda.load(Case(x.device, FLOAT, FLOAT))
    options = Options(1e-5, 32, True, Gate.OUTPUT)
    apart = kernels.backward(x, z, weight, None, dout, None, None, options, None)
    into = kernels.backward(x, z, weight, None, dout, None, None, options, whole[:, 8:])
    assert apart.z is not None and apart.z.any() and torch.equal(whole[:, 8:], apart.z)
    assert not whole[:, :8].any() and into.z is not None
    assert into.z.data_ptr() == whole[:, 8:].data_ptr()
    assert torch.equal(into.x, apart.x)


FORWARD, BACKWARD, ODD = cuda.LONGEST_FORWARD, cuda.LONGEST_BACKWARD, cuda.LONGEST_ODD


def test_rows_are_taken_as_far_as_registers_hold_them() -> None:
    lengths = (1, 2, ODD, ODD + 1, BACKWARD, BACKWARD + 1, BACKWARD + 2, FORWARD, FORWARD + 1)
    assert ODD < BACKWARD < FORWARD and ODD % 2 == BACKWARD % 2 == 0
    taken = {length: (cuda.takes(length, False), cuda.takes(length, True)) for length in lengths}
    assert taken == {
        **dict.fromkeys((1, 2, ODD, BACKWARD), (True, True)),
        # Of an odd length one element is taken at a time, for which there are fewer registers.
        **dict.fromkeys((ODD + 1, BACKWARD + 1, BACKWARD + 2, FORWARD), (True, False)),
        FORWARD + 1: (False, False),
    }


@pytest.mark.parametrize("is_backward", [False, True])
@pytest.mark.parametrize("few_rows", [False, True])
@pytest.mark.parametrize("vector", [1, 2, 4, 8])
def test_threads_of_a_block_share_all_of_a_row(
    vector: int, few_rows: bool, is_backward: bool
) -> None:
    """Whole warps, no more than a block has, and no more elements each than its registers hold."""
    longest = FORWARD if not is_backward else BACKWARD if vector > 1 else ODD
    most = max(elements for elements, _ in cuda.FORWARD_ELEMENTS) if not is_backward else 24
    around = {1, 31, 32, 33, 100, 128, 129, 640, 1000, 4096, longest // vector - 1}
    for runs in sorted(around | {longest // vector}):
        group = runs * vector
        if group > longest:
            continue
        for rows in (1, 3, 1000):
            span = cuda.span_of(group, vector, rows, is_backward, few_rows)
            assert span is not None
            assert span.vector * span.threads * span.rounds >= group
            assert span.vector * span.threads * (span.rounds - 1) < group
            assert span.threads % 32 == 0 and span.threads * span.rows <= 1024
            assert 1 <= span.rows <= max(1, min(rows, cuda.BLOCK_THREADS // span.threads))
            assert span.rounds * span.vector <= max(most, span.vector * 4)
            if few_rows and runs <= 512:
                assert span.rounds == 1
    longest = BACKWARD if is_backward else FORWARD
    assert cuda.span_of(longest + 2 * vector, vector, 3, is_backward, few_rows) is None
