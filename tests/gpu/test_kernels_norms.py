"""The norms' CUDA kernels against the definition in float64, on a GPU.

Every call is made with memory that torch fills with NaN, so that an element left unwritten is
found; lengths lie around the edges of vectors, warps and what a thread holds of a row.
"""

from __future__ import annotations

import itertools
import random
from typing import Any, Iterator, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.ops import layer_norm_fn, layernorm_fn, rms_norm_fn
from jetson_mamba.ops.norms import cuda
from jetson_mamba.ops.norms.contract import Case, Gate, Options
from jetson_mamba.ops.norms.serving import rows_of
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # What the reference calls need not be deterministic.
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]

# Of a rounding to the dtype, and what comes besides.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 2.8e-3}
ROWS = (1, 3, 130, 1000)
GROUPS = ((1, 1), (1, 7), (3, 16), (1, 100), (2, 384), (1, 1536), (1, 1540), (8, 640), (1, 8192))


class Setup(NamedTuple):
    """One norm, forward and backward."""

    rows: int
    groups: int
    group: int
    dtype: torch.dtype
    weight_dtype: torch.dtype
    residual: torch.dtype | None
    total: torch.dtype | None
    gate: Gate
    is_rms_norm: bool
    bias: bool
    sliced: bool


def setups() -> list[Setup]:
    """Every length with every gate and dtype; the other choices drawn once, always the same."""
    draw = random.Random(3)
    chosen = []
    for (groups, group), gate, dtype in itertools.product(GROUPS, Gate, TOLERANCE):
        residual = draw.choice((None, dtype, torch.float32)) if gate == Gate.NONE else None
        total = draw.choice((dtype, torch.float32))
        chosen.append(
            Setup(
                draw.choice(ROWS),
                groups,
                group,
                dtype,
                draw.choice((dtype, torch.float32)),
                residual,
                total if residual is not None else None,
                gate,
                draw.random() < 0.5,
                draw.random() < 0.5,
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


@pytest.fixture
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetson_mamba.ops.norms.op.triton_runs_on", lambda device: False)


def definition(
    options: Options, x: Tensor, residual: Any, z: Any, weight: Tensor, bias: Any
) -> tuple[Tensor, Tensor]:
    """The output and the sum."""
    total = x if residual is None else x + residual
    gated = total * functional.silu(z) if options.gate == Gate.INPUT else total
    grouped = gated.unflatten(-1, (-1, options.group))
    if not options.is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    normed = grouped / (grouped.square().mean(-1, keepdim=True) + options.eps).sqrt()
    out = normed.flatten(-2) * weight
    if bias is not None:
        out = out + bias
    return (out * functional.silu(z) if options.gate == Gate.OUTPUT else out), total


@pytest.mark.parametrize("setup", setups(), ids=str)
def test_both_passes_agree_with_the_definition(setup: Setup) -> None:
    dim = setup.groups * setup.group
    options = Options(0.01, setup.group, setup.is_rms_norm, setup.gate)

    def drawn(dtype: torch.dtype) -> Tensor:
        columns = dim + 13 if setup.sliced else dim
        return torch.randn(setup.rows, columns, device="cuda").to(dtype)[:, columns - dim :]

    x = drawn(setup.dtype)
    residual = None if setup.residual is None else drawn(setup.residual)
    z = None if setup.gate == Gate.NONE else drawn(setup.dtype)
    weight = (torch.rand(dim, device="cuda") + 0.5).to(setup.weight_dtype)
    bias = torch.randn(dim, device="cuda").to(setup.weight_dtype) if setup.bias else None
    kernels = cuda.load(Case(x.device, setup.dtype, setup.weight_dtype))
    found = kernels.forward(
        *(x, residual, z, weight, bias, setup.total, setup.dtype, options, True)
    )
    given = [x, residual, z, weight, bias]
    exact = [None if each is None else each.double().requires_grad_() for each in given]
    out, total = definition(options, *exact)  # type: ignore[arg-type]
    assert relative_norm(found.out, out) < TOLERANCE[setup.dtype]
    assert found.rstd is not None and found.rstd.isfinite().all()
    source, dtotal = x, None
    gradients = [drawn(setup.dtype)]
    if setup.total is not None:
        assert found.total is not None
        assert relative_norm(found.total, total) < TOLERANCE[setup.total]
        source, dtotal = found.total, drawn(setup.total)
        gradients.append(dtotal)
    actual = kernels.backward(
        *(source, z, weight, bias, gradients[0], dtotal, setup.residual, options, None)
    )
    results = (out, total)[: len(gradients)]
    wanted = [each for each in exact if each is not None]
    right = iter(torch.autograd.grad(results, wanted, [each.double() for each in gradients]))
    narrowest = max(TOLERANCE[each.dtype] for each in (x, source))
    for name, tensor, gradient in zip(("x", "residual", "z", "weight", "bias"), exact, actual):
        assert (tensor is None) == (gradient is None), name
        if gradient is not None:
            expected = next(right)
            scale = TOLERANCE[gradient.dtype] if gradient.dtype != torch.float32 else 0.0
            # A row of one is all the same after a norm: what is left is rounding.
            if setup.group > 1 or name in ("weight", "bias"):
                assert relative_norm(gradient, expected) < max(scale, 4 * narrowest), name


def test_two_calls_give_the_same_bits() -> None:
    x, z, dout = (torch.randn(4097, 1536, device="cuda").bfloat16() for _ in range(3))
    weight = torch.rand(1536, device="cuda")
    kernels = cuda.load(Case(x.device, x.dtype, weight.dtype))
    options = Options(1e-5, 1536, True, Gate.INPUT)
    first, second = (
        kernels.backward(x, z, weight, None, dout, None, None, options, None) for _ in range(2)
    )
    for one, other in zip(first, second):
        assert one is None or (other is not None and torch.equal(one, other))


@pytest.mark.usefixtures("_without_triton")
@pytest.mark.parametrize("residual_in_fp32", [False, True])
@pytest.mark.parametrize("function", [layer_norm_fn, rms_norm_fn])
def test_a_fused_norm_trains_as_the_plain_one(function: Any, residual_in_fp32: bool) -> None:
    x = torch.randn(2, 50, 96, device="cuda").bfloat16()
    residual = torch.randn(2, 50, 96, device="cuda")
    weight = torch.rand(96, device="cuda")

    def results(device: str, dtype: torch.dtype | None) -> list[Tensor]:
        given = [each.detach().to(device, dtype).requires_grad_() for each in (x, residual, weight)]
        options = {"prenorm": True, "residual_in_fp32": residual_in_fp32}
        first, total = function(given[0], given[2], None, **options)
        out, total = function(first, given[2], None, residual=total + given[1], **options)
        loss = (out.double() * 0.5).square().sum() + total.double().sin().sum()
        return [out, total, *torch.autograd.grad(loss, given)]

    for found, expected in zip(results("cuda", None), results("cpu", torch.float64)):
        assert relative_norm(found, expected) < 2e-2


def test_a_gated_norm_of_columns_writes_where_it_is_asked_to() -> None:
    whole = torch.randn(2, 30, 200, device="cuda").bfloat16()
    x = torch.randn(2, 30, 64, device="cuda").bfloat16()
    z, weight = whole[..., 8:72], torch.rand(64, device="cuda")
    target = torch.zeros_like(whole)
    kernels = cuda.load(Case(x.device, x.dtype, weight.dtype))
    options = Options(1e-5, 64, True, Gate.OUTPUT)
    rows = (rows_of(x), rows_of(z), weight, None, rows_of(x), None, None, options)
    into = kernels.backward(*rows, rows_of(target[..., 8:72]))
    apart = kernels.backward(*rows, None)
    assert apart.z is not None and torch.equal(target[..., 8:72].flatten(0, 1), apart.z)
    assert not target[..., :8].any() and not target[..., 72:].any()
    assert torch.equal(into.x, apart.x)


@pytest.mark.usefixtures("_without_triton")
def test_second_derivatives_are_those_of_the_plain_operations() -> None:
    x, z = (torch.randn(5, 32, device="cuda", requires_grad=True) for _ in range(2))
    weight = torch.rand(32, device="cuda", requires_grad=True)

    def second(*given: Tensor) -> tuple[Tensor, ...]:
        out = layernorm_fn(given[0], given[2], None, z=given[1], is_rms_norm=True)
        first = torch.autograd.grad(out.square().sum(), given, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in first), given)  # type: ignore[arg-type]

    exact = [each.detach().cpu().double().requires_grad_() for each in (x, z, weight)]
    for found, expected in zip(second(x, z, weight), second(*exact)):
        assert relative_norm(found, expected) < 1e-5
