"""The CUDA kernels of ssd against the recurrence in float64, on a GPU, over all kinds of scans.

What all backends promise is tested in ``test_ssd_ways.py``; here stand the kernels' own cases:
sizes that fill no tile, time cut into segments and heads shared out, results that are equal in
every run, memory that is written in full.
"""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.ops.ssd import cuda_backward, cuda_forward
from jetson_mamba.ops.ssd.contract import Scan
from tests.gpu.ssd_cases import BRAIN, CASES, FLOAT, HALF, backward_errors, drawn, forward_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # What the reference calls need not be deterministic.
    pytest.mark.filterwarnings("ignore:.*deterministic"),
]

# Relative norm of the error that no result exceeds, and of sums of many signs: A's and dt_bias's
# gradients, which are small beside what they are summed of.
TOLERANCE = {FLOAT: 1e-5, HALF: 1e-3, BRAIN: 6e-3}
TOLERANCE_OF_SUMS = {FLOAT: 1e-4, HALF: 3e-3, BRAIN: 5e-2}
SUMS = ("dA", "ddt_bias")


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans hold what a test replaces."""
    monkeypatch.setattr(cuda_forward, "_plans", Memo(8))
    monkeypatch.setattr(cuda_backward, "_plans", Memo(8))


def segments_at_most(chunks: int, *others: object) -> tuple[int, int]:
    """Eight at most, so that some are of several chunks."""
    length = -(-chunks // 8)
    return length, -(-chunks // length)


def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut time into segments and share heads out, as where they are too few for a GPU."""
    monkeypatch.setattr(cuda_forward, "segments_of", segments_at_most)
    monkeypatch.setattr(cuda_forward, "walks_along_time", lambda *sizes: False)
    monkeypatch.setattr(cuda_backward, "walks_along_time", lambda *sizes: False)
    monkeypatch.setattr(cuda_backward, "slots_of", lambda heads, blocks, index: 2)


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither, as where they fill it."""
    monkeypatch.setattr(cuda_forward, "segments_of", lambda chunks, *others: (chunks, 1))
    monkeypatch.setattr(cuda_forward, "walks_along_time", lambda *sizes: True)
    monkeypatch.setattr(cuda_backward, "walks_along_time", lambda *sizes: True)
    monkeypatch.setattr(cuda_backward, "slots_of", lambda heads, blocks, index: 1)


# Kernels of fp32 take no more states than 128, which the op knows.
NAMES = [name for name in CASES if name != "many states fp32"]


@pytest.mark.parametrize("divided", (cut, whole))
@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_scan_agrees_with_float64(
    name: str, divided: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    divided(monkeypatch)
    scan = drawn(**CASES[name], device="cuda")
    dtype = scan.x.dtype
    for key, (error, _) in {**forward_errors(scan), **backward_errors(scan)}.items():
        most = (TOLERANCE_OF_SUMS if key in SUMS else TOLERANCE)[dtype]
        assert error <= most, f"{key}: {error:.1e}, expected at most {most:.1e}"


@pytest.mark.parametrize("divided", (cut, whole))
@pytest.mark.parametrize("size", (16, 64))
@pytest.mark.parametrize("seqlen", (1, 31, 32, 33, 63, 65, 128, 200, 513, 1100))
def test_lengths_around_chunks(
    seqlen: int, size: int, divided: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    divided(monkeypatch)
    for dtype in TOLERANCE:
        scan = drawn(seqlen=seqlen, headdim=size, dstate=size, dtype=dtype, device="cuda")
        for key, (error, _) in {**forward_errors(scan), **backward_errors(scan)}.items():
            assert error <= (TOLERANCE_OF_SUMS if key in SUMS else TOLERANCE)[dtype], key


def results(scan: Scan) -> list[Tensor]:
    torch.manual_seed(1)
    dout = torch.randn(scan.x.shape).to(scan.x)
    gradients = cuda_backward.backward(scan._replace(z=None), dout, None)
    return [each for each in (*cuda_forward.forward(scan), *gradients) if each is not None]


def test_results_are_equal_in_every_run() -> None:
    scan = drawn(batch=2, seqlen=400, heads=8, device="cuda")
    first = results(scan)
    for _ in range(3):
        assert all(torch.equal(*pair) for pair in zip(first, results(scan)))


def test_runs_inside_a_graph_capture() -> None:
    scan = drawn(device="cuda")
    expected = results(scan)
    graph = torch.cuda.CUDAGraph()
    dout = torch.randn(scan.x.shape, device="cuda").to(scan.x)
    cuda_backward.backward(scan, dout, None)
    with torch.cuda.graph(graph):
        out, state = cuda_forward.forward(scan)
        gradients = cuda_backward.backward(scan, dout, None)
    out.fill_(float("nan"))
    state.fill_(float("nan"))
    gradients.x.fill_(float("nan"))
    graph.replay()
    assert torch.equal(out, expected[0])
    assert torch.equal(state, expected[1])
    assert torch.equal(gradients.x, cuda_backward.backward(scan, dout, None).x)
