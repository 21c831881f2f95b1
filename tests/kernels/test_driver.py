"""What the driver, which is imitated, is asked for where kernels are launched by ctypes."""

from __future__ import annotations

import ctypes
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler, through_libraries

DEVICE, CONTEXT, MODULE, FUNCTION = 40, 41, 42, 43
# What the driver's header calls 2 and 8.
RELAXED, MAX_DYNAMIC_SHARED_SIZE_BYTES = 2, 8
MADE_CURRENT = [
    ("cuInit", 0),
    ("cuDeviceGet", 3),
    ("cuDevicePrimaryCtxRetain", DEVICE),
    ("cuCtxSetCurrent", CONTEXT),
]


class Driver:
    """Notes what is asked, and answers; a function named in ``fails`` gives an error."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.mode = 0
        self.fails = ""

    def __getattr__(self, name: str) -> Any:
        def ask(*given: Any) -> int:
            place: Any = getattr(given[0], "_obj", None)
            values = [getattr(each, "value", each) for each in given if not hasattr(each, "_obj")]
            if name == "cuGetErrorName":
                given[1]._obj.value = b"CUDA_ERROR_OF_A_KIND"
                return 0
            if name == "cuThreadExchangeStreamCaptureMode":
                self.mode, place.value = place.value, self.mode
                values = [self.mode]
            self.asked.append((name, *values))
            answers = {
                "cuDeviceGet": DEVICE,
                "cuDevicePrimaryCtxRetain": CONTEXT,
                "cuModuleLoadData": MODULE,
                "cuModuleGetFunction": FUNCTION,
            }
            if name in answers:
                place.value = answers[name]
            return 700 if name == self.fails else 0

        return ask


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()

    @contextmanager
    def device(index: int) -> Iterator[None]:
        found.asked.append(("device", index))
        yield
        found.asked.append(("device left",))

    monkeypatch.setattr(through_libraries, "driver", lambda: found)
    monkeypatch.setattr(through_libraries, "_thread", threading.local())
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(
        torch._C, "_cuda_getCurrentRawStream", lambda index: 100 + index, raising=False
    )
    return found


def test_a_kernel_is_loaded_on_its_device_whatever_is_captured_meanwhile(driver: Driver) -> None:
    kernel = through_libraries.Kernel(b"cubin", "entry", 3)
    assert driver.asked == [
        ("device", 3),
        *MADE_CURRENT,
        ("cuThreadExchangeStreamCaptureMode", RELAXED),
        ("cuModuleLoadData", b"cubin"),
        ("cuModuleGetFunction", MODULE, b"entry"),
        ("cuThreadExchangeStreamCaptureMode", 0),
        ("device left",),
    ]
    assert kernel.address == FUNCTION and kernel.overlaps is False


def test_a_kernel_that_cannot_be_loaded_leaves_the_mode_of_captures_as_it_was(
    driver: Driver,
) -> None:
    driver.fails = "cuModuleLoadData"
    with pytest.raises(RuntimeError, match=r"cuModuleLoadData: CUDA_ERROR_OF_A_KIND \(700\)"):
        through_libraries.Kernel(b"cubin", "entry", 3)
    assert driver.mode == 0
    assert driver.asked[-1] == ("cuThreadExchangeStreamCaptureMode", 0)


@pytest.mark.parametrize(("shared_bytes", "is_asked"), [(48 * 1024, False), (48 * 1024 + 1, True)])
def test_more_shared_memory_than_all_may_take_is_asked_for(
    shared_bytes: int, is_asked: bool, driver: Driver
) -> None:
    kernel = through_libraries.Kernel(b"cubin", "entry", 3)
    driver.asked.clear()
    launch = compiler.Launch(kernel, (1, 2, 3), (4, 5, 6), shared_bytes=shared_bytes)
    asked = ("cuFuncSetAttribute", FUNCTION, MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
    assert driver.asked == ([asked] if is_asked else [])
    assert launch.overlapping is False and launch.shared_bytes == shared_bytes
    assert (launch.kernel, launch.grid, launch.block) == (kernel, (1, 2, 3), (4, 5, 6))
    launch(7, 1, 2)
    name, function, *geometry, stream, parameters, _ = driver.asked[-1]
    assert (name, function, parameters) == ("cuLaunchKernel", FUNCTION, None)
    assert (geometry, stream) == ([1, 2, 3, 4, 5, 6, shared_bytes], 7)


def test_a_thread_has_a_context_before_its_first_launch(driver: Driver) -> None:
    for _ in range(2):
        assert through_libraries.current_stream(3) == 103
    assert driver.asked == MADE_CURRENT
    other = threading.Thread(target=through_libraries.current_stream, args=(3,))
    other.start()
    other.join()
    assert driver.asked == MADE_CURRENT * 2


def test_the_drivers_functions_are_told_what_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else ctypes would hand over addresses of 64 bits as 32."""
    names: list[str] = []

    class Library:
        def __getattr__(self, name: str) -> Any:
            made = SimpleNamespace()
            self.__dict__[name] = made
            return made

    def load(name: str) -> Library:
        names.append(name)
        return Library()

    monkeypatch.setattr(ctypes, "CDLL", load)
    found = through_libraries.driver.__wrapped__()
    assert names == ["libcuda.so.1"]
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
    assert found.cuLaunchKernel.argtypes == (pointer, *(size,) * 7, pointer, pointer, pointer)
    assert found.cuFuncSetAttribute.argtypes == (pointer, number, number)
    assert found.cuCtxSetCurrent.argtypes == (pointer,)
    assert found.cuModuleGetFunction.argtypes[1:] == (pointer, ctypes.c_char_p)
    for name, arguments in vars(found).items():
        assert arguments.argtypes == through_libraries._DRIVER_FUNCTIONS[name]
    monkeypatch.setattr(through_libraries, "_places", lambda: iter(["libnvrtc.so.12"]))
    nvrtc = through_libraries._nvrtc.__wrapped__()
    assert names[1:] == ["libnvrtc.so.12"]
    for what in ("ProgramLog", "CUBIN", "PTX"):
        sized = getattr(nvrtc, f"nvrtcGet{what}Size").argtypes
        assert sized[0] is pointer and sized[1]._type_ is ctypes.c_size_t
        assert getattr(nvrtc, f"nvrtcGet{what}").argtypes == (pointer, pointer)


def test_without_a_driver_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match=r"cannot be loaded \(libcuda\.so\.1: cannot open"):
        through_libraries.driver.__wrapped__()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is compiled and loaded; nothing is."""
    made: list[tuple[Any, ...]] = []

    def kernel(*given: Any) -> Any:
        made.append(("kernel", *given))
        return SimpleNamespace(of=given)

    def cubin(*given: Any) -> bytes:
        made.append(("cubin", *given))
        return b"code"

    monkeypatch.setattr(compiler, "_driver", lambda: SimpleNamespace(Kernel=kernel))
    monkeypatch.setattr(compiler, "cubin", cubin)
    monkeypatch.setattr(compiler, "_loaded", {})
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: "12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, index))
    return made


def test_a_kernel_is_compiled_for_its_device_and_remembered(
    compiled: list[tuple[Any, ...]],
) -> None:
    kinds = [
        ("a.cu", "a", (("X", "1"),), 0),
        ("a.cu", "a", (("X", "2"),), 0),
        ("a.cu", "b", (("X", "1"),), 0),
        ("b.cu", "a", (("X", "1"),), 0),
        ("a.cu", "a", (("X", "1"),), 7),
    ]
    found = [compiler.load(*kind) for kind in kinds]
    assert len(set(map(id, found))) == len(kinds)
    assert [compiler.load(*kind) for kind in kinds] == found
    assert compiled == [
        each
        for source, entry, defines, index in kinds
        for each in (
            ("cubin", source, defines, f"sm_8{index}"),
            ("kernel", b"code", entry, index),
        )
    ]


@pytest.mark.parametrize("lacks", ["cuda", "device"])
def test_without_a_device_a_kernel_is_unavailable(
    lacks: str, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if lacks == "cuda":
        monkeypatch.setattr(torch.version, "cuda", None)
    else:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unavailable, match="no CUDA device"):
        compiler.load("a.cu", "a", (), 0)


@pytest.mark.parametrize(
    ("capability", "nvrtc", "name"),
    [
        ((8, 7), "12.4", "sm_87"),
        ((9, 0), "11.8", "sm_90"),
        ((9, 0), "12.0", "sm_90a"),
        ((9, 0), "13.0", "sm_90a"),
        ((12, 0), "13.0", "sm_120"),
    ],
)
def test_an_architecture_is_of_its_capability(
    capability: tuple[int, int], nvrtc: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: nvrtc)
    assert compiler.architecture_of(capability) == name
