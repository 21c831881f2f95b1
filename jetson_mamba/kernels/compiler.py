"""The package's CUDA C++ on its way from source, by NVRTC, to launches on torch's streams.

NVRTC and the driver are reached through NVIDIA's ``cuda-bindings`` and ``cuda-core``
(``through_packages.py``) or, where these are not installed or do not fit torch's CUDA, as the
libraries that they are (``through_libraries.py``): nothing here is compiled against torch, so no
ABI can mismatch. A kernel is specialised by preprocessor definitions, compiled to machine code of
one architecture, and kept in the user's cache under the digest of all that went into it.

Two conventions bind the sources to a :class:`Launch`: every parameter of a kernel is an integer or
a pointer of 64 bits (``long long``, ``T*``), because that is how ``cuda.core`` passes Python's
``int`` at the least cost; and every header is a file of this package, included by its plain name.
"""

from __future__ import annotations

import hashlib
import pkgutil
import re
import sys
import threading
from functools import partial
from typing import Any, Callable, NamedTuple, Tuple, Union

import torch

from jetson_mamba import cache, forks
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import ahead, through_libraries, through_packages

OPTIONS = ("--std=c++17", "--device-as-default-execution-space")
# Says what a kernel takes; the first releases of NVRTC 11 do not know it.
TELLING = "--ptxas-options=-v"
CACHE_DIRECTORY = "cubins"
# What a block may take of shared memory without being allowed more.
SHARED_BYTES_OF_ALL = 48 * 1024
# The first CUDA that the packages are for.
FIRST_CUDA_OF_PACKAGES = 12


class CompileError(RuntimeError):
    """NVRTC refused a source; the message is its log."""


class Compiled(NamedTuple):
    """The machine code of one kernel and what it takes of a multiprocessor."""

    cubin: bytes
    registers: int
    spill_bytes: int
    static_shared_bytes: int
    log: str


# A source and its definitions.
Program = Tuple[str, Tuple[Tuple[str, str], ...]]
Kernel = Union[through_packages.Kernel, through_libraries.Kernel]


class Launch:
    """A kernel with its grid and block, to be started any number of times.

    ``shared_bytes`` is what a block takes of shared memory beside what its kernel declares.
    ``overlapping``: the blocks may start while the kernel launched before drains, where the
    device can do that. The kernel then calls ``wait_for_the_kernel_before`` (``numbers.cuh``)
    ahead of its first access to memory.
    """

    __slots__ = (
        *("_configuration", "_handle", "_start"),
        *("block", "grid", "kernel", "overlapping", "shared_bytes"),
    )

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        overlapping: bool = False,
        shared_bytes: int = 0,
    ) -> None:
        if shared_bytes > SHARED_BYTES_OF_ALL:
            kernel.allow(shared_bytes)
        self.kernel, self.grid, self.block = kernel, grid, block
        self.overlapping, self.shared_bytes = overlapping, shared_bytes
        self._start, self._configuration, self._handle = kernel.prepared(
            grid, block, shared_bytes, overlapping
        )

    def __call__(self, stream: Any, *arguments: int) -> None:
        """Start the kernel on a stream of :func:`current_stream`, and return at once.

        ``arguments`` are sizes, strides and ``tensor.data_ptr()``.
        """
        self._start(stream, self._configuration, self._handle, *arguments)


def current_device() -> int:
    """The index of torch's current device. A launch is made while its kernel's device is."""
    return int(torch._C._cuda_getDevice())


def current_stream(device_index: int) -> Any:
    """torch's current stream of its current device, as a :class:`Launch` takes it."""
    return _driver().current_stream(device_index)


_lock = forks.lock(sys.modules[__name__], "_lock")
_programs = ahead.Programs()
_loaded: dict[tuple[str, str, tuple[tuple[str, str], ...], int], Kernel] = {}


def require() -> None:
    """Raise :class:`Unavailable` where NVRTC, or a way to the driver, is missing."""
    _driver()
    _nvrtc()


def load(
    source_name: str, entry: str, defines: tuple[tuple[str, str], ...], device_index: int
) -> Kernel:
    """The kernel ``entry`` of a source, compiled for a device at its first use and remembered.

    Raises :class:`Unavailable` where NVRTC, the driver or a suitable device is missing, and
    :class:`CompileError` where NVRTC refuses the source.
    """
    key = (source_name, entry, defines, device_index)
    kernel = _loaded.get(key)
    if kernel is not None:
        return kernel
    if _asking.programs is not None:
        _asking.programs.append((source_name, defines))
        return _NotLoaded()  # type: ignore[return-value]
    driver = _driver()
    if torch.version.cuda is None or not torch.cuda.is_available():
        raise Unavailable("this torch has no CUDA device")
    # Other programs are compiled meanwhile.
    code = cubin(source_name, defines, _architecture(device_index))
    with _lock:
        kernel = _loaded.get(key)
        if kernel is None:
            kernel = _loaded[key] = driver.Kernel(code, entry, device_index)
    return kernel


def begin(plan: Callable[[], object], device_index: int) -> None:
    """Compile what ``plan`` loads, all of it at once, since it will soon be asked for.

    Returns at once. ``plan`` is called with kernels that are none, and may do nothing but make a
    :class:`Launch` of each.
    """
    directory = cache.private_directory(CACHE_DIRECTORY)
    if directory is None or not ahead.has_cores():
        return
    programs: list[Program] = []
    _asking.programs = programs
    try:
        plan()
    finally:
        _asking.programs = None
    architecture = _architecture(device_index)
    ahead.begin(
        [
            partial(cubin, source_name, defines, architecture)
            for source_name, defines in dict.fromkeys(programs)
        ]
    )


class _Asking(threading.local):
    """What a plan loads on this thread, where that is all that is asked."""

    programs: list[Program] | None = None


_asking = _Asking()


class _NotLoaded:
    """In place of a kernel, where it is asked which there are to be."""

    def allow(self, shared_bytes: int) -> None:
        """As that of a kernel."""

    def prepared(self, *_: Any) -> tuple[None, None, None]:
        """As that of a kernel."""
        return None, None, None


def _architecture(device_index: int) -> str:
    major, minor = torch.cuda.get_device_capability(device_index)
    return architecture_of((major, minor))


def architecture_of(capability: tuple[int, int]) -> str:
    """The architecture of a compute capability; of 9.0 with what no later one has.

    NVRTC knows that from CUDA 12 on.
    """
    hopper = capability == (9, 0) and int(nvrtc_version().split(".")[0]) >= 12
    return f"sm_{capability[0]}{capability[1]}" + ("a" if hopper else "")


def compile_source(
    source_name: str, entry: str, defines: tuple[tuple[str, str], ...], architecture: str
) -> Compiled:
    """Compile ``entry`` for ``architecture`` (``sm_87``), past the cache; needs no GPU.

    Raises :class:`Unavailable` where NVRTC is missing or does not know the architecture, and
    :class:`CompileError` where it refuses the source.
    """
    code, log = _compile(source_name, defines, architecture, more=(TELLING,))
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
    more: tuple[str, ...] = (),
) -> tuple[bytes, str]:
    """The code and the log, which may be empty: NVRTC keeps results of its own."""
    if architecture.rstrip("a") not in supported_architectures():
        raise Unavailable(f"NVRTC {nvrtc_version()} does not compile for {architecture}")
    headers = sources(source_name)
    text = headers.pop(source_name)
    options = [*_options(defines, architecture), *more]
    code, log = _nvrtc().compile_text(source_name, text, headers, options, kind)
    if code is None:
        raise CompileError(f"{source_name} for {architecture}: {log.strip() or 'no reason given'}")
    return code, log


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
    return frozenset(f"sm_{number}" for number in _nvrtc().architectures())


def nvrtc_version() -> str:
    """The release of the installed NVRTC, as ``13.0``."""
    return str(_nvrtc().version())


def cubin(source_name: str, defines: tuple[tuple[str, str], ...], architecture: str) -> bytes:
    """The machine code of a kernel: from the cache, else compiled and kept where possible."""
    name = cache_name(source_name, defines, architecture)
    directory = cache.private_directory(CACHE_DIRECTORY)

    def made() -> bytes:
        kept = cache.read(directory, name) if directory else None
        if kept is not None:
            return kept
        code, _ = _compile(source_name, defines, architecture)
        if directory:
            cache.write(directory, name, code)
        return code

    return _programs.code(name, made)


def cache_name(source_name: str, defines: tuple[tuple[str, str], ...], architecture: str) -> str:
    """The file name of a cubin: the digest of everything that decides its content."""
    digest = hashlib.sha256()
    for part in (nvrtc_version(), *_options(defines, architecture)):
        digest.update(part.encode() + b"\0")
    for name, text in sorted(sources(source_name).items()):
        digest.update(name.encode() + b"\0" + hashlib.sha256(text).digest())
    stem, _ = source_name.split(".")
    return f"{stem}-{architecture}-{digest.hexdigest()}.cubin"


def _options(defines: tuple[tuple[str, str], ...], architecture: str) -> list[str]:
    return [
        f"--gpu-architecture={architecture}",
        *OPTIONS,
        *(f"--define-macro={name}={value}" for name, value in defines),
    ]


def _driver() -> Any:
    """The module through which kernels are loaded and launched."""
    return _first("require")


def _nvrtc() -> Any:
    """The module through which NVRTC is called."""
    return _first("version")


# By what is needed. All threads have kernels, streams and launches of one module.
_found: dict[str, Any] = {}
_finding = forks.lock(sys.modules[__name__], "_finding")


def _first(needed: str) -> Any:
    """The first of the two modules whose function of this name finds what it needs."""
    found = _found.get(needed)
    if found is None:
        # One at a time: whoever asks while another thread imports a package sees half of it.
        with _finding:
            found = _found.get(needed)
            if found is None:
                found = _found[needed] = _find_first(needed)
    return found


def _find_first(needed: str) -> Any:
    cuda = torch.version.cuda
    are_for_it = cuda is None or int(cuda.split(".")[0]) >= FIRST_CUDA_OF_PACKAGES
    reasons = []
    for module in (through_packages, through_libraries)[0 if are_for_it else 1 :]:
        try:
            getattr(module, needed)()
        except Unavailable as reason:
            reasons.append(str(reason))
        else:
            return module
    raise Unavailable("; ".join(reasons))
