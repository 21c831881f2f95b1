"""What kernels are not made for is refused with the reason, so that another backend serves."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.ops.causal_conv1d import cuda as convolution
from jetson_mamba.ops.causal_conv1d.contract import Case as ConvolutionCase
from jetson_mamba.ops.decoding import cuda as decoding
from jetson_mamba.ops.decoding.contract import Case as StepCase
from jetson_mamba.ops.norms import cuda as norms
from jetson_mamba.ops.norms.contract import Case as NormCase
from jetson_mamba.ops.selective_scan import cuda as scan
from jetson_mamba.ops.selective_scan.contract import Case as ScanCase
from jetson_mamba.ops.ssd import cuda as ssd
from jetson_mamba.ops.ssd import cuda_forward
from jetson_mamba.ops.ssd.contract import Case as SsdCase
from jetson_mamba.ops.swiglu import cuda as swiglu
from jetson_mamba.ops.swiglu.contract import Case as GateCase

GPU, CPU, META = (torch.device(kind) for kind in ("cuda", "cpu", "meta"))
FLOAT, HALF, BRAIN, WIDE = torch.float32, torch.float16, torch.bfloat16, torch.float64
CASES: dict[ModuleType, Any] = {
    convolution: ConvolutionCase(GPU, BRAIN, FLOAT, 4),
    decoding: StepCase(GPU, FLOAT, BRAIN, HALF, FLOAT),
    norms: NormCase(GPU, HALF, FLOAT),
    scan: ScanCase(GPU, HALF, False, 256),
    swiglu: GateCase(GPU, BRAIN),
    ssd: SsdCase(GPU, FLOAT, number=BRAIN, headdim=64, dstate=128),
}


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with room, without a kernel that is compiled."""
    monkeypatch.setattr(compiler, "load", lambda *given: None)
    monkeypatch.setattr(compiler, "require", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 7))
    monkeypatch.setattr(cuda_forward, "room", lambda index: 163 * 1024)
    for module in CASES:
        for name in ("index_of", "processors"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda of: 0)


@pytest.mark.parametrize("backend", CASES)
def test_a_case_of_the_kernels_is_taken(backend: Any) -> None:
    assert backend.load(CASES[backend]) is not None


@pytest.mark.parametrize("device", [CPU, META])
@pytest.mark.parametrize("backend", CASES)
def test_another_device_is_refused(backend: Any, device: torch.device) -> None:
    with pytest.raises(Unavailable, match="CUDA devices"):
        backend.load(CASES[backend]._replace(device=device))


@pytest.mark.parametrize(
    ("backend", "change", "reason"),
    [
        *(
            (convolution, {"width": width}, f"the kernels are for widths 2 to 4, not {width}")
            for width in (1, 5)
        ),
        *(
            (backend, {field: WIDE}, f"float32, float16 and bfloat16, not {said}torch.float64")
            for backend, said, fields in (
                (convolution, "", ("dtype", "weight_dtype")),
                (norms, "", ("dtype", "weight_dtype")),
                (decoding, "", ("state_dtype", "dtype", "step_dtype", "weight_dtype")),
                (scan, "for ", ("dtype",)),
                (swiglu, "", ("dtype",)),
                (ssd, "for ", ("dtype", "number")),
            )
            for field in fields
        ),
        (scan, {"dstate": 257}, "made for dstate up to 256, not 257"),
        (ssd, {"dtype": HALF}, "float32, float16 and bfloat16, not for torch.float16"),
        (ssd, {"rounds_states": True}, "keeps no states between chunks that could be rounded"),
        (ssd, {"dstate": 257}, "made for dstate up to 256 of torch.bfloat16, not 257"),
        (ssd, {"dstate": 129, "number": FLOAT}, "made for dstate up to 128 of torch.float32, not"),
    ],
)
def test_what_they_are_not_made_for_is_refused_with_the_reason(
    backend: Any, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(Unavailable) as refused:
        backend.load(CASES[backend]._replace(**change))
    assert reason in str(refused.value)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("dtype", [FLOAT, HALF, BRAIN])
def test_every_width_and_dtype_of_the_convolution_is_taken(width: int, dtype: torch.dtype) -> None:
    assert convolution.load(ConvolutionCase(GPU, dtype, FLOAT, width)) is not None


@pytest.mark.parametrize("backend", [scan, ssd])
def test_another_vendors_gpu_is_refused(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.0")
    with pytest.raises(Unavailable, match="made for NVIDIA GPUs"):
        backend.load(CASES[backend])


@pytest.mark.parametrize(
    ("capability", "taken"), [((7, 2), False), ((7, 5), False), ((8, 0), True)]
)
def test_ssd_needs_what_ampere_has(
    capability: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    if taken:
        assert ssd.load(CASES[ssd]) is ssd.IMPLEMENTATION
    else:
        with pytest.raises(Unavailable, match=r"compute capability 8\.0 or more"):
            ssd.load(CASES[ssd])


def test_ssd_needs_shared_memory_for_its_largest_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    variant = cuda_forward.Variant(BRAIN, 64, 128, False, 0)
    needed = max(variant.shared_bytes(kernel) for kernel in ssd.KERNELS)
    for room, taken in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(cuda_forward, "room", lambda index, room=room: room)
        if taken:
            assert ssd.load(CASES[ssd]) is ssd.IMPLEMENTATION
        else:
            with pytest.raises(Unavailable, match=f"needs {needed} bytes of shared memory, of whi"):
                ssd.load(CASES[ssd])


def test_without_a_compiler_ssd_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def require() -> None:
        raise Unavailable("NVRTC is not installed")

    monkeypatch.setattr(compiler, "require", require)
    with pytest.raises(Unavailable, match="NVRTC is not installed"):
        ssd.load(CASES[ssd])
