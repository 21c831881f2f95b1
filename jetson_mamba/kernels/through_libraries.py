"""The libraries that CUDA itself installs, for kernels where NVIDIA's packages do not serve.

JetPack 5 has Python 3.8 and CUDA 11.4, for which there is no ``cuda-core``; its toolkit has NVRTC
all the same, and its driver ``libcuda``. Both are called by ctypes here, by the functions of CUDA
11.2 (CUDA Driver API, "Execution Control"; NVRTC, "Compilation"), so that a board needs nothing
more. ``through_packages.py`` has the same names; ``compiler.py`` chooses.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import torch

from jetson_mamba.errors import Unavailable

# By the major release of CUDA. All of 11 from 11.2 on have the name of that one.
NVRTC_NAMES = {"11": "libnvrtc.so.11.2", "12": "libnvrtc.so.12", "13": "libnvrtc.so.13"}
TOOLKIT_FOLDERS = ("lib64", "lib", "targets/aarch64-linux/lib", "targets/x86_64-linux/lib")
_DRIVER_FUNCTIONS = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuThreadExchangeStreamCaptureMode": (POINTER(c_int),),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}
_NVRTC_FUNCTIONS = {
    "nvrtcVersion": (POINTER(c_int), POINTER(c_int)),
    "nvrtcGetNumSupportedArchs": (POINTER(c_int),),
    "nvrtcGetSupportedArchs": (POINTER(c_int),),
    "nvrtcCreateProgram": (
        *(POINTER(c_void_p), c_char_p, c_char_p, c_int),
        *(POINTER(c_char_p), POINTER(c_char_p)),
    ),
    "nvrtcCompileProgram": (c_void_p, c_int, POINTER(c_char_p)),
    "nvrtcDestroyProgram": (POINTER(c_void_p),),
    **{
        f"nvrtcGet{what}{part}": (c_void_p, POINTER(c_size_t) if part else c_void_p)
        for what in ("ProgramLog", "CUBIN", "PTX")
        for part in ("Size", "")
    },
}
# The driver's numbers: an attribute of a function, a mode of captures, keys of a launch.
_MAX_DYNAMIC_SHARED_BYTES = 8
_RELAXED = 2
PARAMETERS, PARAMETERS_SIZE = 1, 2


class Kernel:
    """A kernel that is loaded on one device. No launch overlaps with the one before it."""

    overlaps = False

    def __init__(self, cubin: bytes, entry: str, device_index: int) -> None:
        self._module, self.handle = c_void_p(), c_void_p()
        with torch.cuda.device(device_index):
            _make_current(device_index)
            # Loading may allocate, which a capture in progress on this thread would forbid.
            mode = c_int(_RELAXED)
            _call("cuThreadExchangeStreamCaptureMode", byref(mode))
            try:
                _call("cuModuleLoadData", byref(self._module), cubin)
                _call("cuModuleGetFunction", byref(self.handle), self._module, entry.encode())
            finally:
                _call("cuThreadExchangeStreamCaptureMode", byref(mode))

    @property
    def address(self) -> int:
        """What the driver knows it by."""
        return int(self.handle.value or 0)

    def allow(self, shared_bytes: int) -> None:
        """Let blocks take this much of shared memory."""
        _call("cuFuncSetAttribute", self.handle, _MAX_DYNAMIC_SHARED_BYTES, shared_bytes)

    def prepared(
        self,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        shared_bytes: int,
        overlapping: bool,
    ) -> tuple[Callable[..., None], Any, Any]:
        """A function that starts the kernel, and what it takes after the stream."""
        return _start, (driver().cuLaunchKernel, (*grid, *block, shared_bytes)), self.handle


def current_stream(device_index: int) -> int:
    """torch's current stream of its current device, as a launch takes it."""
    if not hasattr(_thread, "ready"):
        # torch makes a context current in a thread lazily; the driver needs one.
        _make_current(device_index)
        _thread.ready = True
    return int(torch._C._cuda_getCurrentRawStream(device_index))


_thread = threading.local()


def require() -> None:
    """Raise :class:`Unavailable` where the driver's library is missing."""
    driver()


def version() -> str:
    """The release of NVRTC, as ``11.4``."""
    return _version(_nvrtc())


def architectures() -> Sequence[int]:
    """What NVRTC compiles for, as 87."""
    count = c_int()
    _check_nvrtc(_nvrtc().nvrtcGetNumSupportedArchs(byref(count)))
    known = (c_int * count.value)()
    _check_nvrtc(_nvrtc().nvrtcGetSupportedArchs(known))
    return list(known)


def compile_text(
    name: str, text: bytes, headers: dict[str, bytes], options: Sequence[str], kind: str
) -> tuple[bytes | None, str]:
    """The code (``kind`` CUBIN or PTX), None where NVRTC refuses the text, and its log."""
    nvrtc = _nvrtc()
    program = c_void_p()
    texts, names = _strings(headers.values()), _strings(each.encode() for each in headers)
    _check_nvrtc(
        nvrtc.nvrtcCreateProgram(byref(program), text, name.encode(), len(headers), texts, names)
    )
    try:
        given = _strings(each.encode() for each in options)
        refused = nvrtc.nvrtcCompileProgram(program, len(options), given)
        log = _read(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        return (None if refused else _read(nvrtc, kind, program)), log
    finally:
        nvrtc.nvrtcDestroyProgram(byref(program))


def _read(nvrtc: Any, what: str, program: c_void_p) -> bytes:
    size = c_size_t()
    _check_nvrtc(getattr(nvrtc, f"nvrtcGet{what}Size")(program, byref(size)))
    room = ctypes.create_string_buffer(size.value)
    _check_nvrtc(getattr(nvrtc, f"nvrtcGet{what}")(program, room))
    return room.raw


def _strings(each: Any) -> Any:
    values = list(each)
    return (c_char_p * len(values))(*values)


def _start(
    stream: int,
    configuration: tuple[Any, tuple[int, ...]],
    kernel: c_void_p,
    *arguments: int,
) -> None:
    """Start a kernel. Its parameters, 64 bits each, lie one after another.

    Before them lies what tells the driver so: keys and values up to a zero, the parameters' size.
    """
    launch, geometry = configuration
    layout = _layout(len(arguments))
    room = layout.room()
    at = ctypes.addressof(room)
    size, first = at + layout.size, at + layout.first
    layout.pack(*(room, 0, PARAMETERS, first, PARAMETERS_SIZE, size, 0, layout.bytes), *arguments)
    error = launch(kernel, *geometry, stream, None, at)
    if error:
        raise failed("cuLaunchKernel", error)


class _Layout(NamedTuple):
    """How what a launch hands over lies in memory: where the size is, and the first parameter."""

    room: Any
    pack: Any
    size: int
    first: int
    bytes: int


@lru_cache(maxsize=None)
def _layout(count: int) -> _Layout:
    packed = struct.Struct(f"{6 + count}q")
    return _Layout(ctypes.c_char * packed.size, packed.pack_into, 40, 48, 8 * count)


def _make_current(device_index: int) -> None:
    device, context = c_int(), c_void_p()
    _call("cuInit", 0)
    # torch numbers the devices as the driver does: both read CUDA_VISIBLE_DEVICES.
    _call("cuDeviceGet", byref(device), device_index)
    _call("cuDevicePrimaryCtxRetain", byref(context), device.value)
    _call("cuCtxSetCurrent", context)


def _call(function: str, *arguments: Any) -> None:
    error = getattr(driver(), function)(*arguments)
    if error:
        raise failed(function, error)


def failed(function: str, error: int) -> RuntimeError:
    """What to raise where a function of the driver gives an error."""
    name = c_char_p()
    driver().cuGetErrorName(error, byref(name))
    return RuntimeError(f"{function}: {(name.value or b'unknown error').decode()} ({error})")


def _check_nvrtc(error: int) -> None:
    if error:
        raise RuntimeError(f"NVRTC {version()}: error {error}")


def _version(nvrtc: Any) -> str:
    major, minor = c_int(), c_int()
    nvrtc.nvrtcVersion(byref(major), byref(minor))
    return f"{major.value}.{minor.value}"


@lru_cache(maxsize=None)
def driver() -> Any:
    """The driver's library; raises :class:`Unavailable` where it is missing."""
    try:
        return _declared(ctypes.CDLL("libcuda.so.1"), _DRIVER_FUNCTIONS)
    except (OSError, AttributeError) as error:
        raise Unavailable(f"the driver's library cannot be loaded ({error})") from error


@lru_cache(maxsize=None)
def _nvrtc() -> Any:
    tried = []
    for path in _places():
        try:
            # It asks for this one by name, which is found where it has been loaded.
            for beside in Path(path).parent.glob("libnvrtc-builtins.so.*") if "/" in path else ():
                ctypes.CDLL(str(beside))
            return _declared(ctypes.CDLL(path), _NVRTC_FUNCTIONS)
        except (OSError, AttributeError) as error:
            tried.append(str(error))
    raise Unavailable(f"NVRTC is not installed ({'; '.join(tried)})")


def _declared(library: Any, functions: dict[str, Any]) -> Any:
    for name, arguments in functions.items():
        getattr(library, name).argtypes = arguments
    return library


def _places() -> Iterator[str]:
    """Where NVRTC may be: of torch's CUDA, whose driver takes its code; of any, without one."""
    major = (torch.version.cuda or "").split(".")[0]
    named = [NVRTC_NAMES.get(major, f"libnvrtc.so.{major}")] if major else NVRTC_NAMES.values()
    spec = find_spec("nvidia")
    packages = [Path(each) for each in (spec and spec.submodule_search_locations) or ()]
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    for name in named:
        for folder in packages:
            yield from map(str, sorted(folder.glob(f"*/lib/{name}")))
        yield name
        for root in filter(None, roots):
            for each in TOOLKIT_FOLDERS:
                if (Path(root) / each / name).exists():
                    yield str(Path(root) / each / name)
