"""Mamba-3 is computed on any GPU.

Upstream's kernels run where they run, and elsewhere it is computed as well.
"""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import mamba3 as benchmark
from jetson_mamba import kernel_packages, ops
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
CUDA = torch.device("cuda")
SISO = "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined"
# Upstream rounds to bfloat16 on the way.
TOLERANCE = 3e-2


@pytest.fixture
def module() -> Any:
    pytest.importorskip("mamba_ssm")
    return importlib.import_module(SISO)


@pytest.fixture
def calls(module: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often upstream's autograd function is applied."""
    found: list[str] = []
    apply = module._Mamba3Function.apply

    def counted(*arguments: Any) -> Any:
        found.append("own")
        return apply(*arguments)

    monkeypatch.setattr(module._Mamba3Function, "apply", counted)
    return found


def results(call: Any, given: dict[str, Any], **options: Any) -> list[Tensor]:
    outs = call(**given, **options)
    out, *states = outs if isinstance(outs, tuple) else (outs,)
    torch.manual_seed(1)
    leaves = [each for each in given.values() if isinstance(each, Tensor) and each.requires_grad]
    return [out, *states, *torch.autograd.grad(out, leaves, torch.randn_like(out))]


@pytest.mark.parametrize("options", [{}, {"return_final_states": True}])
def test_upstreams_kernels_run_and_the_op_is_what_they_compute(
    module: Any, calls: list[str], options: dict[str, Any]
) -> None:
    given = benchmark.arguments(192, CUDA)
    upstream = results(module.mamba3_siso_combined, given, **options)
    assert calls == ["own"]
    for place, (ours, theirs) in enumerate(
        zip(results(ops.mamba3_siso_combined, given, **options), upstream)
    ):
        assert relative_norm(ours, theirs.float()) < TOLERANCE, place


def test_packed_sequences(module: Any, calls: list[str]) -> None:
    given = {
        name: (each[:1].detach().requires_grad_() if each.shape[0] == benchmark.BATCH else each)
        for name, each in benchmark.arguments(192, CUDA).items()
    }
    ends = torch.tensor([0, 50, 64, 192], dtype=torch.int32, device=CUDA)
    upstream = results(module.mamba3_siso_combined, given, cu_seqlens=ends)
    assert calls == ["own"]
    ours = results(ops.mamba3_siso_combined, given, cu_seqlens=ends)
    for place, (one, other) in enumerate(zip(ours, upstream)):
        assert relative_norm(one, other.float()) < TOLERANCE, place


@pytest.mark.parametrize("mimo", [True, False])
def test_a_block_trains_and_steps(module: Any, calls: list[str], mimo: bool) -> None:
    from mamba_ssm import Mamba3

    torch.manual_seed(0)
    block = Mamba3(256, d_state=64, headdim=64, is_mimo=mimo, chunk_size=16, layer_idx=0).to(CUDA)
    u = torch.randn(2, 65, 256, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        out = block(u)
        out.float().square().mean().backward()
    assert all(each.grad is not None for each in block.parameters())
    assert calls == ([] if mimo else ["own"])
    if kernel_packages.is_importable("cute"):
        pytest.skip("CuTe is there: its kernel takes the step")
    wide = Mamba3(256, d_state=64, headdim=64, is_mimo=mimo, chunk_size=16, layer_idx=0)
    wide.load_state_dict(block.state_dict())
    whole = wide(u.cpu())
    states = block.allocate_inference_cache(2, 65)
    with torch.no_grad():
        for step in range(3):
            stepped, *_ = block.step(u[:, step], *states)
            assert relative_norm(stepped.cpu(), whole[:, step]) < 1e-3


def test_a_kernel_that_cannot_run_is_told_once() -> None:
    def broken(Q: Tensor, **_: Any) -> Tensor:
        raise RuntimeError("out of resource: shared memory")

    def served(Q: Tensor, **_: Any) -> Tensor:
        return Q + 1

    x = torch.zeros(2, device=CUDA)
    wrapped = ops.on_a_gpu(broken, served)
    with pytest.warns(RuntimeWarning, match="shared memory"):
        assert float(wrapped(x).sum()) == 2
    assert float(wrapped(Q=x).sum()) == 2


def test_the_parts_of_mamba_2_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mamba_ssm")
    chunk_state: Any = importlib.import_module("mamba_ssm.ops.triton.ssd_chunk_state")
    dt, A = torch.randn(2, 100, 8, device=CUDA), -torch.rand(8, device=CUDA)
    with pytest.raises(AssertionError):
        # Upstream's own assertion says that its own function was called.
        chunk_state._chunk_cumsum_fwd(dt, A[:4], 64)
    found = chunk_state._chunk_cumsum_fwd(dt, A, 64, dt_softplus=True)
    for actual, right in zip(found, ops.chunk_cumsum_forward(dt, A, 64, dt_softplus=True)):
        assert relative_norm(actual, right) < 1e-5
