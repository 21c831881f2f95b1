"""What NVIDIA's packages are asked for, with packages that are imitated: no GPU is needed."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import through_packages
from jetson_mamba.kernels.through_packages import OVERLAP

DEVICE, RAW_STREAM = 2, 99


class Result(IntEnum):
    """Of the driver and of NVRTC."""

    NVRTC_SUCCESS = 0
    WRONG = 1

    def __str__(self) -> str:
        return self.name


class Packages:
    """``cuda.core`` and the bindings; ``events`` are what they were asked for, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.mode = "strict"
        self.refuses = False
        self.log = b"all is well\0"
        outer = self

        class Device:
            def __init__(self, index: int) -> None:
                self.index = index

            def set_current(self) -> None:
                outer.events.append(("current", self.index))

        class LaunchConfig(SimpleNamespace):
            programmatic_stream_serialization = False

        self.core = SimpleNamespace(
            Device=Device,
            LaunchConfig=LaunchConfig,
            launch=lambda *arguments: None,
            ObjectCode=SimpleNamespace(from_cubin=self.loaded),
            Stream=SimpleNamespace(from_handle=lambda handle: SimpleNamespace(handle=handle)),
        )
        self.driver = SimpleNamespace(
            CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED="relaxed"),
            CUfunction_attribute=SimpleNamespace(
                CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="most shared"
            ),
            CUkernel=lambda handle: ("kernel", handle),
            CUdevice=lambda index: ("device", index),
            cuThreadExchangeStreamCaptureMode=self.exchanged,
            cuKernelSetAttribute=self.allowed,
        )
        self.nvrtc = SimpleNamespace(
            nvrtcResult=Result,
            nvrtcVersion=lambda: (Result.NVRTC_SUCCESS, 13, 2),
            nvrtcGetSupportedArchs=lambda: (Result.NVRTC_SUCCESS, [80, 87, 90]),
            nvrtcCreateProgram=lambda *given: self.did("create", *given, gives="program"),
            nvrtcCompileProgram=self.compiled,
            nvrtcDestroyProgram=lambda program: self.did("destroy", program),
            nvrtcGetProgramLogSize=lambda program: (Result.NVRTC_SUCCESS, len(self.log)),
            nvrtcGetProgramLog=lambda program, room: self.did("log", len(room)),
            nvrtcGetPTXSize=lambda program: (Result.NVRTC_SUCCESS, 3),
            nvrtcGetPTX=lambda program, room: self.did("PTX", len(room)),
        )

    def did(self, *event: Any, gives: Any = None) -> tuple[Any, ...]:
        """Note it, and succeed."""
        self.events.append(event)
        return (Result.NVRTC_SUCCESS,) if gives is None else (Result.NVRTC_SUCCESS, gives)

    def exchanged(self, mode: str) -> tuple[Any, ...]:
        """As cuThreadExchangeStreamCaptureMode."""
        before, self.mode = self.mode, mode
        return self.did("mode", mode, gives=before)

    def loaded(self, cubin: bytes) -> Any:
        """As ObjectCode.from_cubin."""
        self.events.append(("load", cubin))
        if self.refuses:
            raise RuntimeError("no such cubin")
        return SimpleNamespace(get_kernel=lambda entry: SimpleNamespace(handle=7, entry=entry))

    def allowed(self, *given: Any) -> tuple[Any, ...]:
        """As cuKernelSetAttribute."""
        self.events.append(("attribute", *given))
        return (Result.WRONG,) if self.refuses else (Result.NVRTC_SUCCESS,)

    def compiled(self, program: str, count: int, options: list[bytes]) -> tuple[Any, ...]:
        """As nvrtcCompileProgram."""
        self.events.append(("compile", program, count, options))
        return (Result.WRONG,) if self.refuses else (Result.NVRTC_SUCCESS,)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Packages:
    found = Packages()
    modules = {
        "cuda.core": found.core,
        "cuda.bindings.driver": found.driver,
        "cuda.bindings.nvrtc": found.nvrtc,
    }
    monkeypatch.setattr(through_packages, "import_module", modules.__getitem__)

    def device(index: int) -> Any:
        found.events.append(("on", index))
        return nullcontext()

    def stream(index: int) -> None:
        found.events.append(("stream", index))

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    raw = "_cuda_getCurrentRawStream"
    monkeypatch.setattr(torch._C, raw, lambda index: RAW_STREAM + index, raising=False)
    monkeypatch.setattr(through_packages, "_thread", threading.local())
    monkeypatch.setattr(through_packages, "_streams", {})
    return found


def test_a_kernel_is_loaded_in_a_context_of_its_device_whatever_is_captured(
    packages: Packages,
) -> None:
    kernel = through_packages.Kernel(b"code", "entry", DEVICE)
    assert packages.events == [
        *(("on", DEVICE), ("stream", DEVICE), ("current", DEVICE)),
        *(("mode", "relaxed"), ("load", b"code"), ("mode", "strict")),
    ]
    assert kernel.handle.entry == "entry"
    # Also where that fails, the capture is as it was.
    packages.refuses = True
    with pytest.raises(RuntimeError, match="no such cubin"):
        through_packages.Kernel(b"code", "entry", DEVICE)
    assert packages.mode == "strict"


@pytest.mark.parametrize(
    ("capability", "knows", "overlaps"),
    [((9, 0), True, True), ((10, 0), True, True), ((8, 9), True, False), ((9, 0), False, False)],
)
def test_kernels_overlap_on_hopper_and_later_where_the_package_can_say_so(
    capability: tuple[int, int],
    knows: bool,
    overlaps: bool,
    packages: Packages,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    if not knows:
        monkeypatch.delattr(packages.core.LaunchConfig, OVERLAP)
    kernel = through_packages.Kernel(b"code", "entry", DEVICE)
    assert kernel.overlaps is overlaps
    for overlapping in (False, True):
        start, configuration, handle = kernel.prepared((1, 2, 3), (4, 5, 6), 7, overlapping)
        assert start is packages.core.launch and handle is kernel.handle
        wanted = {"grid": (1, 2, 3), "block": (4, 5, 6), "shmem_size": 7}
        if overlapping and overlaps:
            wanted[OVERLAP] = True
        assert vars(configuration) == wanted


def test_a_kernel_is_allowed_more_shared_memory(packages: Packages) -> None:
    kernel = through_packages.Kernel(b"code", "entry", DEVICE)
    kernel.allow(99_000)
    assert packages.events[-1] == (
        *("attribute", "most shared", 99_000),
        *(("kernel", 7), ("device", DEVICE)),
    )
    packages.refuses = True
    with pytest.raises(RuntimeError, match="Result: WRONG"):
        kernel.allow(99_000)


def test_the_current_stream_is_found_once_and_each_thread_has_a_context(
    packages: Packages,
) -> None:
    first = through_packages.current_stream(DEVICE)
    assert first.handle == RAW_STREAM + DEVICE
    assert through_packages.current_stream(DEVICE) is first
    assert through_packages.current_stream(0).handle == RAW_STREAM
    assert packages.events == [("current", DEVICE)]
    other = threading.Thread(target=through_packages.current_stream, args=(DEVICE,))
    other.start()
    other.join()
    assert packages.events == [("current", DEVICE)] * 2


def test_what_nvrtc_is_and_compiles_for(packages: Packages) -> None:
    assert through_packages.version() == "13.2"
    assert list(through_packages.architectures()) == [80, 87, 90]


@pytest.mark.parametrize("refuses", [False, True])
def test_a_text_is_compiled_with_its_headers(refuses: bool, packages: Packages) -> None:
    packages.refuses = refuses
    headers = {"a.cuh": b"int a;", "b.cuh": b"int b;"}
    code, log = through_packages.compile_text("x.cu", b"int x;", headers, ["-one", "-two"], "PTX")
    assert code == (None if refuses else bytes(3))
    made, compiled, *read, ended = packages.events
    names, texts = [b"a.cuh", b"b.cuh"], [b"int a;", b"int b;"]
    assert made == ("create", b"int x;", b"x.cu", 2, texts, names)
    assert compiled == ("compile", "program", 2, [b"-one", b"-two"])
    assert read == [("log", len(packages.log)), *([] if refuses else [("PTX", 3)])]
    assert ended == ("destroy", "program")
    # Of an empty log the status is what is known.
    assert ("WRONG" in log) is refuses


def test_without_the_package_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"no {name}")

    monkeypatch.setattr(through_packages, "import_module", missing)
    with pytest.raises(Unavailable, match=r"cuda-core 1\.0 or later is not installed \(no cuda"):
        through_packages.require()
    with pytest.raises(Unavailable, match=r"NVRTC is not installed \(no cuda\.bindings\.nvrtc\)"):
        through_packages.version()


@pytest.mark.parametrize("name", ["launch", "LaunchConfig", "ObjectCode", "Stream", "Device"])
def test_a_package_before_1_0_is_none(name: str, packages: Packages) -> None:
    through_packages.require()
    delattr(packages.core, name)
    with pytest.raises(Unavailable, match=rf"cuda-core 1\.0 or later.*{name}"):
        through_packages.require()
