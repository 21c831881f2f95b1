"""The kernels on a CPU: compiled by a C++ compiler, each thread of a block a fibre.

What surrounds the kernels runs as it is; in place of NVRTC and the driver stand the two of here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

from jetson_mamba.kernels import chains, compiler
from jetson_mamba.kernels.chains import Place

HERE = Path(__file__).parent / "emulation"
KERNELS = Path(compiler.__file__).parent
# Of the kernels' own; the others are those of here.
HEADERS = tuple(path for path in sorted(KERNELS.glob("*.cuh")) if not (HERE / path.name).exists())
# What no compiler for a CPU takes, and what stands there for it.
OTHERWISE = (
    ("extern __shared__", "extern"),
    # A hint alone.
    (r'asm volatile\("prefetch\.global\.L2[^;]*;[^;]*;', ""),
    # The emulation has its own.
    (r"void multiply\(float", "void multiply_on_a_gpu(float"),
)
MOST_ARGUMENTS = 64


class EmulatedKernel(NamedTuple):
    """A kernel in a library of its own."""

    run: Any


class EmulatedLaunch:
    """A kernel with its grid, in place of :class:`compiler.Launch`."""

    def __init__(
        self,
        kernel: EmulatedKernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        overlapping: bool = False,
        shared_bytes: int = 0,
    ) -> None:
        self._run = kernel.run
        self._grid = (ctypes.c_longlong * 3)(*grid)
        self._block = (ctypes.c_longlong * 2)(*block[:2])
        self._shared_bytes = shared_bytes

    def __call__(self, stream: object, *arguments: int) -> None:
        """Run every block of the grid, one after the other."""
        given = (ctypes.c_longlong * MOST_ARGUMENTS)(*arguments)
        self._run(self._grid, self._block, self._shared_bytes, given)


class EmulatedChain:
    """Launches with their arguments, in place of :class:`chains.Chain`."""

    def __init__(self, launches: Any, sources: int) -> None:
        self._launches = launches

    def __call__(self, device_index: int, *addresses: int) -> None:
        """Run all, one after the other."""
        for launch, arguments in self._launches:
            launch(
                None,
                *(
                    addresses[each.source] + each.offset if isinstance(each, Place) else each
                    for each in arguments
                ),
            )


class Emulator:
    """Compiles kernels into a directory and keeps them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(
        self, source_name: str, entry: str, defines: tuple[tuple[str, str], ...], index: int
    ) -> EmulatedKernel:
        """As :func:`compiler.load` does."""
        text = b"".join(
            path.read_bytes() for path in (KERNELS / source_name, *HEADERS, *sorted(HERE.iterdir()))
        )
        name = hashlib.sha256(text + repr((source_name, entry, defines)).encode()).hexdigest()[:24]
        library = self._directory / f"{name}.so"
        if not library.exists():
            # Headers of here stand before those of the kernels: each is found by its plain name.
            work = Path(tempfile.mkdtemp(dir=self._directory))
            for path in (KERNELS / source_name, *HEADERS):
                (work / path.name).write_text(for_a_cpu(path.read_text("utf-8")), "utf-8")
            for path in HERE.iterdir():
                shutil.copy(path, work / path.name)
            options = [f"-D{key}={value}" for key, value in defines]
            subprocess.run(
                [
                    # Else what blocks share would be one for all libraries that are loaded.
                    *("g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-fno-gnu-unique"),
                    *options,
                    *("-include", "cstdio", f'-DKERNEL_SOURCE="{source_name}"'),
                    *(f"-DKERNEL={entry}", str(work / "run.cpp"), "-o", str(work / "made")),
                ],
                check=True,
                env={**os.environ, "LC_ALL": "C"},
            )
            # Another process may make the same.
            (work / "made").replace(library)
        return EmulatedKernel(ctypes.CDLL(str(library)).run)


def for_a_cpu(text: str) -> str:
    """A source without what only a GPU has."""
    for pattern, other in OTHERWISE:
        text = re.sub(pattern, other, text)
    return text


def emulate(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let kernels run on tensors of the CPU."""
    monkeypatch.setattr(compiler, "load", Emulator(directory).load)
    monkeypatch.setattr(compiler, "Launch", EmulatedLaunch)
    monkeypatch.setattr(chains, "Chain", EmulatedChain)
    monkeypatch.setattr(compiler, "current_device", lambda: -1)
    monkeypatch.setattr(compiler, "current_stream", lambda index: None)


def serve(monkeypatch: pytest.MonkeyPatch, backend: ModuleType, processors: int = 1) -> None:
    """Let a backend of an op take what is on a CPU for its GPU, of so many multiprocessors."""
    load = backend.load
    on_a_gpu = torch.device("cuda")
    monkeypatch.setattr(backend, "load", lambda case: load(case._replace(device=on_a_gpu)))
    for name, function in (
        ("index_of", lambda device: -1),
        ("processors", lambda index: processors),
    ):
        if hasattr(backend, name):
            monkeypatch.setattr(backend, name, function)
