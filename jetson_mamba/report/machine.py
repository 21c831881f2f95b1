"""Reads the board, its software, its GPUs, its interpreter from where the vendor puts them.

Everything here works without torch. ``root`` is the top of the file system.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

# JetPack is numbered for its major release of Jetson Linux (L4T); 6.0 has another CUDA than the
# rest of 6.
JETPACK_OF_L4T = {
    **{"32": "4.x", "34": "5.x", "35": "5.x", "36": "6.x", "38": "7.x", "39": "7.x"},
    **{"36.2": "6.0", "36.3": "6.0"},
}
# By the names in the device tree.
CAPABILITY_OF_BOARD = (
    ("thor", "11.0"),
    ("orin", "8.7"),
    ("xavier", "7.2"),
    ("tx2", "6.2"),
    ("nano", "5.3"),
    ("tx1", "5.3"),
)
ELF_MACHINES = {40: "armv7l", 62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True)
class Gpu:
    """A GPU, its compute capability such as "8.7", and who says so."""

    name: str
    capability: str | None
    memory_bytes: int | None
    told_by: str


@dataclass(frozen=True)
class Machine:
    """The board and what its vendor installed on it; None where there is none.

    ``power_mode`` is nvpmodel's, with its number, such as "15W (2)".
    """

    system: str
    architecture: str
    board: str | None
    l4t: str | None
    jetpack: str | None
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]
    nvcc: str | None
    cuda_toolkit: str | None
    ptxas: str | None = None
    available_bytes: int | None = None
    swap_bytes: int | None = None
    swap_free_bytes: int | None = None
    power_mode: str | None = None


@dataclass(frozen=True)
class Python:
    """The interpreter. ``abi`` is what an extension's file name must carry."""

    version: str
    executable: str
    abi: str
    virtual_environment: bool


def python() -> Python:
    """The interpreter that runs this."""
    return Python(
        version=platform.python_version(),
        executable=sys.executable,
        abi=str(sysconfig.get_config_var("SOABI") or ""),
        virtual_environment=sys.prefix != sys.base_prefix,
    )


def machine(root: str = "/") -> Machine:
    """The machine, with the GPUs that can be known of without torch."""
    board = _read(root, "proc/device-tree/model")
    l4t = _l4t(_read(root, "etc/nv_tegra_release"))
    nvcc = find_nvcc(root)
    meminfo = _read(root, "proc/meminfo")
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        board=board,
        l4t=l4t,
        jetpack=_jetpack(root, l4t),
        memory_bytes=_bytes(meminfo, "MemTotal"),
        gpus=_gpus(board),
        nvcc=nvcc,
        cuda_toolkit=_toolkit(nvcc),
        ptxas=_ptxas(root, nvcc),
        available_bytes=_bytes(meminfo, "MemAvailable"),
        swap_bytes=_bytes(meminfo, "SwapTotal"),
        swap_free_bytes=_bytes(meminfo, "SwapFree"),
        power_mode=_power_mode(root) if board or l4t else None,
    )


def find_nvcc(root: str = "/") -> str | None:
    """The CUDA compiler that a build would use, looked for where torch looks for it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=os.path.join(home, "bin"))
    return shutil.which("nvcc") or shutil.which(
        "nvcc", path=os.path.join(root, "usr", "local", "cuda", "bin")
    )


def _ptxas(root: str, nvcc: str | None) -> str | None:
    """The assembler of the CUDA toolkit, which may be there without its compiler."""
    folders = [os.path.dirname(nvcc)] if nvcc else []
    folders.append(os.path.join(root, "usr", "local", "cuda", "bin"))
    return shutil.which("ptxas", path=os.pathsep.join(folders))


def driver(root: str = "/") -> str | None:
    """The release of NVIDIA's driver, else the L4T release that it belongs to on a Jetson."""
    told = _read(root, "proc/driver/nvidia/version")
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", told or "")
    if match:
        return match[1]
    l4t = _l4t(_read(root, "etc/nv_tegra_release"))
    return f"L4T {l4t}" if l4t else None


def elf_machine(path: str) -> str | None:
    """The architecture that a compiled file is for; None for what is not an ELF file."""
    try:
        with open(path, "rb") as file:
            header = file.read(20)
    except OSError:
        return None
    if len(header) < 20 or header[:4] != b"\x7fELF":
        return None
    (number,) = struct.unpack("<H" if header[5] == 1 else ">H", header[18:20])
    return ELF_MACHINES.get(number, f"ELF machine {number}")


def _read(root: str, path: str) -> str | None:
    try:
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
            return file.read().strip("\0\n ") or None
    except OSError:
        return None


def _l4t(release: str | None) -> str | None:
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release or "")
    return f"{match[1]}.{match[2]}" if match else None


def _jetpack(root: str, l4t: str | None) -> str | None:
    """The version of the package nvidia-jetpack, else what the L4T release belongs to."""
    if l4t is None:
        return None
    for paragraph in (_read(root, "var/lib/dpkg/status") or "").split("\n\n"):
        if paragraph.startswith("Package: nvidia-jetpack\n"):
            version = re.search(r"^Version: ([\d.]+)", paragraph, re.MULTILINE)
            if version:
                return version[1]
    major, _, rest = l4t.partition(".")
    release = f"{major}.{rest.partition('.')[0]}"
    return JETPACK_OF_L4T.get(release, JETPACK_OF_L4T.get(major))


def _bytes(meminfo: str | None, name: str) -> int | None:
    match = re.search(rf"^{name}:\s+(\d+) kB", meminfo or "", re.MULTILINE)
    return 1024 * int(match[1]) if match else None


def _power_mode(root: str) -> str | None:
    """What nvpmodel was last set to, else what it starts with; asked only where no file tells."""
    told = re.search(r"pmode:\s*(\d+)", _read(root, "var/lib/nvpmodel/status") or "")
    modes = _read(root, "etc/nvpmodel.conf") or ""
    told = told or re.search(r"PM_CONFIG\s+DEFAULT=(\d+)", modes)
    if told:
        number = int(told[1])
        name = re.search(rf"POWER_MODEL\s+ID={number}\s+NAME=([^\s>]+)", modes)
        return f"{name[1]} ({number})" if name else f"number {number}"
    asked = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", _output("nvpmodel", "-q") or "")
    return f"{asked[1]} ({asked[2]})" if asked else None


def _gpus(board: str | None) -> tuple[Gpu, ...]:
    told = shutil.which("nvidia-smi") and _output(
        "nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"
    )
    gpus = []
    for line in (told or "").splitlines():
        name, capability, memory = [*(each.strip() for each in line.split(",")), "", ""][:3]
        gpus.append(
            Gpu(
                name,
                capability if re.fullmatch(r"\d+\.\d+", capability) else None,
                int(memory) << 20 if memory.isdigit() else None,
                "nvidia-smi",
            )
        )
    if gpus and gpus[0].capability:
        return tuple(gpus)
    for word, capability in CAPABILITY_OF_BOARD:
        if board and word in board.lower():
            return (Gpu(board, capability, None, "the name of the board"),)
    return tuple(gpus)


def _toolkit(nvcc: str | None) -> str | None:
    match = re.search(r"release (\d+\.\d+)", (nvcc and _output(nvcc, "--version")) or "")
    return match[1] if match else None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
