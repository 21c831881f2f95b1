"""A GPU limited to some of its multiprocessors: what is planned, and where kernels then run."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import torch

from benchmarks import processors
from jetson_mamba.kernels import compiler, tensors
from jetson_mamba.ops.causal_conv1d import cuda
from jetson_mamba.ops.causal_conv1d.contract import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]
MANY = 1024
WHERE = b"""
extern "C" __global__ void where(long long* seen) {
    unsigned processor;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(processor));
    seen[processor] = 1;
}
"""


@pytest.fixture
def where() -> Iterator[Any]:
    """A function that says how many multiprocessors a large grid, or a replayed one, ran on."""
    major, minor = torch.cuda.get_device_capability()
    options = [f"--gpu-architecture=sm_{major}{minor}"]
    code, log = compiler._nvrtc().compile_text("where.cu", WHERE, {}, options, "CUBIN")
    assert code, log
    kernel = compiler._driver().Kernel(code, "where", torch.cuda.current_device())
    launch = compiler.Launch(kernel, (100_000, 1, 1), (32, 1, 1))
    seen = torch.zeros(MANY, dtype=torch.int64, device="cuda")

    def run() -> None:
        launch(compiler.current_stream(torch.cuda.current_device()), seen.data_ptr())

    def count(call: Any = run) -> int:
        seen.zero_()
        call()
        torch.cuda.synchronize()
        return int(seen.sum())

    count.run = run  # type: ignore[attr-defined]
    yield count


@pytest.mark.parametrize("wanted", [8, 16, 20])
def test_kernels_keep_to_the_multiprocessors_that_are_set_apart(where: Any, wanted: int) -> None:
    index = torch.cuda.current_device()
    there = torch.cuda.get_device_properties(index).multi_processor_count
    with processors.limited(wanted) as used:
        assert tensors.processors(index) == wanted
        if used == there:
            pytest.skip("this driver sets none apart")
        assert wanted <= used < wanted + 8
        assert where() == used
        assert where(processors.captured(where.run)) == used
    assert tensors.processors(index) == there
    assert where() == there


def test_a_convolution_planned_for_few_multiprocessors_has_the_same_results() -> None:
    x = torch.randn(2, 512, 1000, device="cuda")
    weight, bias = torch.randn(512, 4, device="cuda"), torch.randn(512, device="cuda")
    case = Case(torch.device("cuda", torch.cuda.current_device()), x.dtype, x.dtype, 4)
    arguments = (x, weight, bias, None, None, None, True)
    expected = cuda.load(case).forward(*arguments)
    with processors.limited(8):
        found = cuda.load(case).forward(*arguments)
    assert torch.equal(found, expected)


def test_more_multiprocessors_than_there_are_is_an_error() -> None:
    limited = processors.limited(100_000)
    with pytest.raises(SystemExit, match=r"--processors 100000: expected 1 to \d+"), limited:
        pass
