"""The selective scan's CUDA kernels against the loop over time in float64, on a GPU.

What all backends promise is tested in ``test_selective_scan.py``; here stand the kernels' own
cases: time cut into segments, blocks that take several sets of channels, results that are equal
in every run, memory that is written in full.
"""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.ops.selective_scan import cuda, plans
from jetson_mamba.ops.selective_scan.contract import Returning, Scan
from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # What the reference calls need not be deterministic.
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]

# Relative norm of the error that no result exceeds.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 4e-3}
# Of a 16-bit result, beyond its rounding: dB and dC are summed from products of 11 bits.
BEYOND_ROUNDING = 5e-4
# Of float32 results of 16-bit scans, whose softplus is good to 8e-6.
TOLERANCE_OF_WEIGHTS = 2e-5
# Made from `out` as it was stored, and so rounded twice.
FROM_STORED_OUT = ("dz", "again")
GRADIENTS = ("du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias")


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans hold what a test replaces."""
    monkeypatch.setattr(cuda, "_forward_plans", Memo(8))
    monkeypatch.setattr(cuda, "_backward_plans", Memo(8))


def drawn(
    batch: int = 2,
    dim: int = 40,
    seqlen: int = 70,
    dstate: int = 16,
    dtype: torch.dtype = torch.float32,
    groups: int = 1,
    stiff: bool = False,
) -> Scan:
    torch.manual_seed(0)
    rows = (batch, dim, seqlen)
    A = -(torch.rand(dim, dstate) + 0.1) * torch.arange(1.0, dstate + 1)
    delta = torch.randn(rows) - 2
    if stiff:
        A = -torch.logspace(-4, 2, dim * dstate).view(dim, dstate)
        delta = torch.logspace(-3, 1, seqlen) * (0.5 + 0.5 * torch.rand(rows))
    fields: tuple[Any, ...] = (
        torch.randn(rows).to(dtype),
        delta.to(dtype),
        A,
        torch.randn(batch, groups, dstate, seqlen).to(dtype),
        torch.randn(batch, groups, dstate, seqlen).to(dtype),
        torch.randn(dim),
        torch.randn(rows).to(dtype),
        None if stiff else torch.rand(dim) - 0.5,
        not stiff,
    )
    moved: Any = [field.cuda() if isinstance(field, Tensor) else field for field in fields]
    return Scan(*moved)


def both(scan: Scan) -> tuple[Any, Any, Tensor]:
    torch.manual_seed(1)
    dout = torch.randn_like(scan.u)
    scanned = cuda.forward(scan)
    gradients = cuda.backward(scan, Returning(dout, scanned.x, scanned.out, None, True))
    return scanned, gradients, dout


def equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def hold_to_reference(scan: Scan) -> None:
    scanned, gradients, dout = both(scan)
    leaves = [None if field is None else field.double().requires_grad_() for field in scan[:8]]
    call: Any = selective_scan_reference
    out, gated, states, _ = call(*leaves, scan.delta_softplus)
    given = [leaf for leaf in leaves if leaf is not None]
    names = [name for name, leaf in zip(GRADIENTS, leaves) if leaf is not None]
    expected = dict(zip(names, torch.autograd.grad(gated, given, dout.double())))
    found = {name: getattr(gradients, name) for name in names}
    expected.update(out=out, out_z=gated, again=gated, last_state=states[..., -1])
    found.update(
        out=scanned.out,
        out_z=scanned.out_z,
        again=gradients.out_z,
        last_state=scanned.x[:, :, -1, 1::2],
    )
    errors = {name: relative_norm(found[name], expected[name]) for name in expected}
    dtype = scan.u.dtype
    assert all(error <= TOLERANCE[dtype] for error in errors.values()), errors
    if dtype == torch.float32:
        return
    rounded = torch.where(out == 0, 1, out.to(dtype) / out)
    for name, error in errors.items():
        right = expected[name]
        bound = relative_norm(right.to(dtype), right) + BEYOND_ROUNDING
        if name in FROM_STORED_OUT:
            # Each number of these is a multiple of one of out.
            bound += relative_norm(right * rounded, right)
        if found[name].dtype == torch.float32:
            bound = TOLERANCE_OF_WEIGHTS
        assert error <= bound, f"{name}: {error:.1e}, expected at most {bound:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("seqlen", (1, 7, 64, 2047, 2048, 2049))
def test_lengths_around_tiles_and_segments(seqlen: int, dtype: torch.dtype) -> None:
    hold_to_reference(drawn(batch=1, dim=36, seqlen=seqlen, dtype=dtype))


def test_a_long_sequence() -> None:
    hold_to_reference(drawn(batch=1, dim=8, seqlen=8192))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_slow_and_fast_decays_and_long_steps(dtype: torch.dtype) -> None:
    hold_to_reference(drawn(batch=1, dim=20, seqlen=600, dtype=dtype, stiff=True))


@pytest.mark.parametrize("dstate", (1, 4, 8, 10, 24, 32, 64, 100, 128, 256))
def test_numbers_of_states(dstate: int) -> None:
    hold_to_reference(drawn(dim=11, dstate=dstate))
    hold_to_reference(drawn(dim=12, dstate=dstate, dtype=torch.bfloat16, groups=3))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_time_in_segments(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_segments", lambda seqlen, blocks, index, step, shortest: (256, 4))
    hold_to_reference(drawn(seqlen=1000, dtype=dtype))


def test_blocks_that_take_several_sets_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "_slots", lambda *_: 2)
    hold_to_reference(drawn(dim=200))
    hold_to_reference(drawn(dim=30, dstate=128))


@pytest.mark.parametrize("gated", (False, True))
@pytest.mark.parametrize("is_segmented", (False, True))
def test_the_output_alone_is_what_the_forward_pass_gives_last(
    gated: bool, is_segmented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_segmented:
        monkeypatch.setattr(
            plans, "_segments", lambda seqlen, blocks, index, step, shortest: (256, 2)
        )
    for seqlen, dtype, dstate in ((504, torch.bfloat16, 16), (331, torch.float32, 10)):
        scan = drawn(seqlen=seqlen, dtype=dtype, dstate=dstate)
        scan = scan if gated else scan._replace(z=None)
        assert torch.equal(cuda.output(scan), cuda.forward(scan).output)


def test_results_are_equal_in_every_run() -> None:
    scan = drawn(batch=4, dim=600, seqlen=500, dtype=torch.bfloat16)
    first = both(scan)
    for _ in range(3):
        again = both(scan)
        for one, other in zip((*first[0], *first[1]), (*again[0], *again[1])):
            assert equal(one, other)


def test_backward_makes_the_states_again_where_x_is_none() -> None:
    scan = drawn(seqlen=300)
    scanned, expected, dout = both(scan)
    found = cuda.backward(scan, Returning(dout, None, scanned.out, None, True))
    assert all(equal(one, other) for one, other in zip(expected, found))


def test_runs_inside_a_graph_capture() -> None:
    scan = drawn(dtype=torch.bfloat16)
    scanned, gradients, dout = both(scan)
    expected = [*scanned, *gradients]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scanned = cuda.forward(scan)
        gradients = cuda.backward(scan, Returning(dout, scanned.x, scanned.out, None, True))
    found = [*scanned, *gradients]
    for tensor in found:
        if tensor is not None:
            tensor.fill_(float("nan"))
    graph.replay()
    assert all(equal(one, other) for one, other in zip(expected, found))
