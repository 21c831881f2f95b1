"""The package's CUDA C++ on its way from source, by NVRTC, to launches on torch's streams.

NVRTC and the driver are reached through NVIDIA's ``cuda-bindings`` and ``cuda-core``: nothing
here is compiled against torch, so no ABI can mismatch. A kernel is specialised by preprocessor
definitions, compiled to machine code of one architecture, and kept in the user's cache under
the digest of all that went into it. Neither package is imported before a kernel is asked for.

Two conventions bind the sources to a :class:`Launch`: every integer and pointer parameter of a
kernel is 64 bits wide (``long long``, ``T*``), because that is how ``cuda.core`` passes Python's
``int`` at the least cost; and every header is a file of this package, included by its plain name.
"""

from __future__ import annotations

import hashlib
import pkgutil
import re
import sys
import threading
from importlib import import_module
from typing import Any, NamedTuple

import torch

from jetson_mamba import cache, forks
from jetson_mamba.errors import Unavailable

OPTIONS = ("--std=c++17", "--ptxas-options=-v", "--device-as-default-execution-space")
CACHE_DIRECTORY = "cubins"
# What a block may take of shared memory without being allowed more.
SHARED_BYTES_OF_ALL = 48 * 1024
OVERLAP = "programmatic_stream_serialization"


class CompileError(RuntimeError):
    """NVRTC refused a source; the message is its log."""


class Compiled(NamedTuple):
    """The machine code of one kernel and what it takes of a multiprocessor."""

    cubin: bytes
    registers: int
    spill_bytes: int
    static_shared_bytes: int
    log: str


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

    def allow(self, shared_bytes: int) -> None:
        """Let blocks take this much of shared memory, where that is more than every block may."""
        if shared_bytes <= SHARED_BYTES_OF_ALL:
            return
        driver = _driver()
        _checked(
            driver.cuKernelSetAttribute(
                driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared_bytes,
                driver.CUkernel(int(self.handle.handle)),
                driver.CUdevice(self._device_index),
            )
        )


class Launch:
    """A kernel with its grid and block, to be started any number of times.

    ``shared_bytes`` is what a block takes of shared memory beside what its kernel declares.
    ``overlapping``: the blocks may start while the kernel launched before drains, where the
    device can do that. The kernel then calls ``wait_for_the_kernel_before`` (``numbers.cuh``)
    ahead of its first access to memory.
    """

    __slots__ = ("_configuration", "_kernel", "_start")

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        overlapping: bool = False,
        shared_bytes: int = 0,
    ) -> None:
        core = _cuda_core()
        options = {OVERLAP: True} if overlapping and kernel.overlaps else {}
        kernel.allow(shared_bytes)
        self._start = core.launch
        self._configuration = core.LaunchConfig(
            grid=grid, block=block, shmem_size=shared_bytes, **options
        )
        self._kernel = kernel.handle

    def __call__(self, stream: Any, *arguments: int) -> None:
        """Start the kernel on a stream of :func:`current_stream`, and return at once.

        ``arguments`` are sizes, strides and ``tensor.data_ptr()``.
        """
        self._start(stream, self._configuration, self._kernel, *arguments)


def current_device() -> int:
    """The index of torch's current device. A launch is made while its kernel's device is."""
    return int(torch._C._cuda_getDevice())


def current_stream(device_index: int) -> Any:
    """torch's current stream of its current device, as a :class:`Launch` takes it."""
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
_lock = forks.lock(sys.modules[__name__], "_lock")
_loaded: dict[tuple[str, str, tuple[tuple[str, str], ...], int], Kernel] = {}


def require() -> None:
    """Raise :class:`Unavailable` where ``cuda-core`` or NVRTC is missing."""
    _cuda_core()
    _nvrtc()


def load(
    source_name: str, entry: str, defines: tuple[tuple[str, str], ...], device_index: int
) -> Kernel:
    """The kernel ``entry`` of a source, compiled for a device at its first use and remembered.

    Raises :class:`Unavailable` where ``cuda-core``, NVRTC or a suitable device is missing, and
    :class:`CompileError` where NVRTC refuses the source.
    """
    key = (source_name, entry, defines, device_index)
    kernel = _loaded.get(key)
    if kernel is not None:
        return kernel
    with _lock:
        kernel = _loaded.get(key)
        if kernel is None:
            _cuda_core()
            if torch.version.cuda is None or not torch.cuda.is_available():
                raise Unavailable("this torch has no CUDA device")
            major, minor = torch.cuda.get_device_capability(device_index)
            code = cubin(source_name, defines, architecture_of((major, minor)))
            kernel = _loaded[key] = Kernel(code, entry, device_index)
    return kernel


def architecture_of(capability: tuple[int, int]) -> str:
    """The architecture of a compute capability; of 9.0 with what no later one has."""
    return f"sm_{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")


def compile_source(
    source_name: str, entry: str, defines: tuple[tuple[str, str], ...], architecture: str
) -> Compiled:
    """Compile ``entry`` for ``architecture`` (``sm_87``), past the cache; needs no GPU.

    Raises :class:`Unavailable` where NVRTC is missing or does not know the architecture, and
    :class:`CompileError` where it refuses the source.
    """
    code, log = _compile(source_name, defines, architecture)
    return Compiled(code, *resources(log, entry), log)


def ptx(source_name: str, defines: tuple[tuple[str, str], ...], architecture: str) -> str:
    """The PTX of a source for ``architecture`` (``sm_87``), which later ones take too; no GPU.

    It is of the version that goes with NVRTC's own release, and an older driver refuses it. Raises
    as :func:`compile_source` does.
    """
    code, _ = _compile(source_name, defines, architecture, "PTX")
    return code.rstrip(b"\0").decode()


def _compile(
    source_name: str,
    defines: tuple[tuple[str, str], ...],
    architecture: str,
    kind: str = "CUBIN",
) -> tuple[bytes, str]:
    """The code and the log, which may be empty: NVRTC keeps results of its own."""
    nvrtc = _nvrtc()
    if architecture.rstrip("a") not in supported_architectures():
        raise Unavailable(f"NVRTC {nvrtc_version()} does not compile for {architecture}")
    texts = sources(source_name)
    headers = [name for name in texts if name != source_name]
    program = _checked(
        nvrtc.nvrtcCreateProgram(
            texts[source_name],
            source_name.encode(),
            len(headers),
            [texts[name] for name in headers],
            [name.encode() for name in headers],
        )
    )
    try:
        options = [option.encode() for option in _options(defines, architecture)]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
        text = bytes(log)
        _checked(nvrtc.nvrtcGetProgramLog(program, text))
        message = text.rstrip(b"\0").decode(errors="replace")
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"{source_name} for {architecture}: {message.strip() or status}")
        code = bytes(_checked(getattr(nvrtc, f"nvrtcGet{kind}Size")(program)))
        _checked(getattr(nvrtc, f"nvrtcGet{kind}")(program, code))
    finally:
        _checked(nvrtc.nvrtcDestroyProgram(program))
    return code, message


def resources(log: str, entry: str) -> tuple[int, int, int]:
    """Registers a thread, bytes spilled and static shared bytes of ``entry``, from ptxas' log."""
    name = re.escape(entry)
    section = re.search(
        rf"Compiling entry function '{name}'(.*?)(?=Compiling entry function|\Z)", log, re.DOTALL
    )
    registers = section and re.search(r"Used (\d+) registers", section[1])
    if not section or not registers:
        raise CompileError(f"no resource usage of {entry} in the compiler's log: {log.strip()}")
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", section[1])
    shared = re.search(r"(\d+) bytes smem", section[1])
    return int(registers[1]), sum(map(int, spills)), int(shared[1]) if shared else 0


def sources(source_name: str) -> dict[str, bytes]:
    """The text of a source and of every header that it includes, by name."""
    texts: dict[str, bytes] = {}
    pending = [source_name]
    while pending:
        name = pending.pop()
        if name in texts:
            continue
        text = pkgutil.get_data(__package__, name)
        if text is None:
            raise FileNotFoundError(f"{__package__}: no source named {name}")
        texts[name] = text
        pending += re.findall(r'^\s*#\s*include\s+"([^"]+)"', text.decode(), re.MULTILINE)
    return texts


def supported_architectures() -> frozenset[str]:
    """The architectures that the installed NVRTC compiles for, as ``sm_87``."""
    return frozenset(f"sm_{number}" for number in _checked(_nvrtc().nvrtcGetSupportedArchs()))


def nvrtc_version() -> str:
    """The release of the installed NVRTC, as ``13.0``."""
    _status, major, minor = _nvrtc().nvrtcVersion()
    return f"{major}.{minor}"


def cubin(source_name: str, defines: tuple[tuple[str, str], ...], architecture: str) -> bytes:
    """The machine code of a kernel: from the cache, else compiled and kept where possible."""
    name = cache_name(source_name, defines, architecture)
    directory = cache.private_directory(CACHE_DIRECTORY)
    kept = cache.read(directory, name) if directory else None
    if kept is not None:
        return kept
    code, _ = _compile(source_name, defines, architecture)
    if directory:
        cache.write(directory, name, code)
    return code


def cache_name(source_name: str, defines: tuple[tuple[str, str], ...], architecture: str) -> str:
    """The file name of a cubin: the digest of everything that decides its content."""
    digest = hashlib.sha256()
    for part in (nvrtc_version(), *_options(defines, architecture)):
        digest.update(part.encode() + b"\0")
    for name, text in sorted(sources(source_name).items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(text).digest())
    stem = source_name.rsplit(".", 1)[0]
    return f"{stem}-{architecture}-{digest.hexdigest()}.cubin"


def _options(defines: tuple[tuple[str, str], ...], architecture: str) -> list[str]:
    return [
        f"--gpu-architecture={architecture}",
        *OPTIONS,
        *(f"--define-macro={name}={value}" for name, value in defines),
    ]


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
