"""NVIDIA's own packages, ``cuda-bindings`` with ``cuda-core``, as the way of kernels to a GPU.

They find the libraries themselves. Neither is imported before a kernel is asked for.
``through_libraries.py`` has the same names; ``compiler.py`` chooses.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import Any, Callable, Sequence

import torch

from jetson_mamba.errors import Unavailable

OVERLAP = "programmatic_stream_serialization"


class Kernel:
    """A kernel that is loaded on one device."""

    def __init__(self, cubin: bytes, entry: str, device_index: int) -> None:
        core, driver = _cuda_core(), _driver()
        with torch.cuda.device(device_index):
            # The context must exist before a module is loaded into it.
            torch.cuda.current_stream(device_index)
            core.Device(device_index).set_current()
            # Loading may allocate, which a capture in progress on this thread would forbid.
            mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            before = _checked(driver.cuThreadExchangeStreamCaptureMode(mode))
            try:
                self._module = core.ObjectCode.from_cubin(cubin)
                self.handle = self._module.get_kernel(entry)
            finally:
                _checked(driver.cuThreadExchangeStreamCaptureMode(before))
        # cuda-core 1.0 has no such option, and GPUs before Hopper no such hardware.
        is_able = torch.cuda.get_device_capability(device_index) >= (9, 0)
        self.overlaps = is_able and hasattr(core.LaunchConfig, OVERLAP)
        self._device_index = device_index

    @property
    def address(self) -> int:
        """What the driver knows it by."""
        return int(self.handle.handle)

    def allow(self, shared_bytes: int) -> None:
        """Let blocks take this much of shared memory."""
        driver = _driver()
        _checked(
            driver.cuKernelSetAttribute(
                driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes,
                driver.CUkernel(self.address),
                driver.CUdevice(self._device_index),
            )
        )

    def prepared(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        overlapping: bool,
    ) -> tuple[Callable[..., None], Any, Any]:
        """A function that starts the kernel, and what it takes after the stream."""
        core = _cuda_core()
        options = {OVERLAP: True} if overlapping and self.overlaps else {}
        configuration = core.LaunchConfig(
            grid=grid, block=block, shmem_size=shared_bytes, **options
        )
        return core.launch, configuration, self.handle


def current_stream(device_index: int) -> Any:
    """torch's current stream of its current device, as a launch takes it."""
    if not hasattr(_thread, "ready"):
        # torch makes a context current in a thread lazily; the driver needs one.
        _cuda_core().Device(device_index).set_current()
        _thread.ready = True
    handle = torch._C._cuda_getCurrentRawStream(device_index)
    stream = _streams.get((device_index, handle))
    if stream is None:
        stream = _streams[device_index, handle] = _cuda_core().Stream.from_handle(handle)
    return stream


_thread = threading.local()
_streams: dict[tuple[int, int], Any] = {}


def require() -> None:
    """Raise :class:`Unavailable` where ``cuda-core`` is missing or older than 1.0."""
    _cuda_core()


def version() -> str:
    """The release of NVRTC, as ``13.0``; :class:`Unavailable` where there is none."""
    _status, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


def architectures() -> Sequence[int]:
    """What NVRTC compiles for, as 87."""
    known: Sequence[int] = _checked(_nvrtc().nvrtcGetSupportedArchs())
    return known


def compile_text(
    name: str, text: bytes, headers: dict[str, bytes], options: Sequence[str], kind: str
) -> tuple[bytes | None, str]:
    """The code (``kind`` CUBIN or PTX), None where NVRTC refuses the text, and its log."""
    nvrtc = _nvrtc()
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            text,
            name.encode(),
            len(headers),
            list(headers.values()),
            [each.encode() for each in headers],
        )
    )
    try:
        given = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(given), given)
        log = _read(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        refused = status != nvrtc.nvrtcResult.NVRTC_SUCCESS
        return (None if refused else _read(nvrtc, kind, program)), log or (
            str(status) if refused else ""
        )
    finally:
        _checked(nvrtc.nvrtcDestroyProgram(program))


def _read(nvrtc: Any, what: str, program: Any) -> bytes:
    room = bytes(_checked(getattr(nvrtc, f"nvrtcGet{what}Size")(program)))
    _checked(getattr(nvrtc, f"nvrtcGet{what}")(program, room))
    return room


def _checked(result: tuple[Any, ...]) -> Any:
    """The value of a binding's ``(status, value)``; an error unless the status is success."""
    status = result[0]
    if int(status):
        raise RuntimeError(f"{type(status).__name__}: {status.name}")
    return result[1] if len(result) > 1 else None


def _cuda_core() -> Any:
    # A quarter of a second, paid only where a kernel is used.
    try:
        core = import_module("cuda.core")
        for name in ("launch", "LaunchConfig", "ObjectCode", "Stream", "Device"):
            getattr(core, name)
    except (ImportError, AttributeError) as error:
        raise Unavailable(f"cuda-core 1.0 or later is not installed ({error})") from error
    return core


def _driver() -> Any:
    return import_module("cuda.bindings.driver")


def _nvrtc() -> Any:
    try:
        nvrtc = import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()  # finds the library itself
    except Exception as error:
        raise Unavailable(f"NVRTC is not installed ({error})") from error
    return nvrtc
