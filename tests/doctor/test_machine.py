"""What is read of a board, from files as its vendor lays them down."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jetson_mamba.report import machine as module
from jetson_mamba.report.machine import Gpu, driver, elf_machine, machine, python
from jetson_mamba.report.private import without_home
from jetson_mamba.report.torch_build import Torch, lacks_kernels_for


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture(autouse=True)
def no_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.x"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic", "36.4.3", "6.x"),
        ("# R36 (release), REVISION: 3.0, GCID: 36191598, BOARD: generic", "36.3.0", "6.0"),
        ("# R36 (release), REVISION: 2.0, GCID: 35084178, BOARD: generic", "36.2.0", "6.0"),
        ("# R36 (release), REVISION: 20.1, GCID: 1, BOARD: none", "36.20.1", "6.x"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic", "38.2.0", "7.x"),
        ("# R39 (release), REVISION: 0, GCID: 1, BOARD: generic", "39.0", "7.x"),
        ("# R34 (release), REVISION: 1.1, GCID: 30414990, BOARD: t186ref", "34.1.1", "5.x"),
        ("# R32 (release), REVISION: 7.4, GCID: 33514132, BOARD: t210ref", "32.7.4", "4.x"),
        ("# R99 (release), REVISION: 1.0, GCID: 1, BOARD: later", "99.1.0", None),
        ("something else", None, None),
    ],
)
def test_jetpack_follows_from_the_l4t_release(
    release: str, l4t: str | None, jetpack: str | None, tmp_path: Path
) -> None:
    write(tmp_path, "etc/nv_tegra_release", release)
    found = machine(str(tmp_path))
    assert (found.l4t, found.jetpack) == (l4t, jetpack)


def test_the_package_nvidia_jetpack_says_it_more_precisely(tmp_path: Path) -> None:
    write(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1")
    write(
        tmp_path,
        "var/lib/dpkg/status",
        "Package: nvidia-jetpack-runtime\nVersion: 1.0\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n",
    )
    assert machine(str(tmp_path)).jetpack == "6.2"


@pytest.mark.parametrize(
    ("model", "capability"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", "8.7"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "7.2"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "11.0"),
        ("quill: Jetson TX2", "6.2"),
        ("NVIDIA Jetson Nano Developer Kit", "5.3"),
        ("NVIDIA Jetson TX1", "5.3"),
    ],
)
def test_the_name_of_the_board_tells_its_gpu(model: str, capability: str, tmp_path: Path) -> None:
    write(tmp_path, "proc/device-tree/model", model + "\0")
    found = machine(str(tmp_path))
    assert found.board == model
    assert found.gpus == (Gpu(model, capability, None, "the name of the board"),)


MODES = (
    "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=15W >\n< POWER_MODEL ID=12 NAME=OTHER >\n< PM_CONFIG DEFAULT=0 >\n"
)


@pytest.mark.parametrize(
    ("status", "modes", "expected"),
    [
        ("pmode:0002 fmode:quiet", MODES, "15W (2)"),
        (None, MODES, "MAXN (0)"),
        ("pmode:0003", MODES, "number 3"),
        (None, None, None),
    ],
)
def test_the_power_mode_is_what_nvpmodel_has_set(
    status: str | None, modes: str | None, expected: str | None, tmp_path: Path
) -> None:
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
    if status:
        write(tmp_path, "var/lib/nvpmodel/status", status)
    if modes:
        write(tmp_path, "etc/nvpmodel.conf", modes)
    assert machine(str(tmp_path)).power_mode == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("NV Power Mode: MODE_30W\n2\n", "MODE_30W (2)"),
        ("NV Fan Mode:quiet\n", None),
    ],
)
def test_nvpmodel_is_asked_where_no_file_tells(
    said: str, expected: str | None, tmp_path: Path
) -> None:
    write(tmp_path, "proc/device-tree/model", "NVIDIA Jetson Orin Nano\0")
    tool = tmp_path / "nvpmodel"
    tool.write_text(f"#!/bin/sh\n[ \"$1\" = -q ] && printf '{said}'\n".replace("\n'", "\\n'"))
    tool.chmod(0o755)
    assert machine(str(tmp_path)).power_mode == expected


def test_what_is_free_of_memory_and_swap_is_read(tmp_path: Path) -> None:
    for name in ("memory_bytes", "available_bytes", "swap_bytes", "swap_free_bytes"):
        assert getattr(machine(str(tmp_path)), name) is None
    text = "MemTotal: 7800 kB\nMemAvailable: 5000 kB\nSwapTotal: 3900 kB\nSwapFree: 3800 kB\n"
    write(tmp_path, "proc/meminfo", text)
    found = machine(str(tmp_path))
    assert found.memory_bytes == 7800 * 1024
    sizes = (found.available_bytes, found.swap_bytes, found.swap_free_bytes)
    assert sizes == (5000 * 1024, 3900 * 1024, 3800 * 1024)


def test_what_is_no_text_is_read_as_far_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"Jetson \xff Orin\0")
    assert machine(str(tmp_path)).board == "Jetson \ufffd Orin"


def test_a_report_tells_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/data/people/anna")
    told = {"a": ["/data/people/anna/x.py: no", "(/home/bob/venv)", "/data/people/annabel", 3]}
    assert without_home(told) == {"a": ["~/x.py: no", "(~/venv)", "/data/people/annabel", 3]}


def test_a_machine_that_is_no_board_has_none_of_it(tmp_path: Path) -> None:
    found = machine(str(tmp_path))
    assert (found.board, found.l4t, found.jetpack, found.nvcc) == (None, None, None, None)
    assert found.gpus == ()


RTX = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24564 << 20, "nvidia-smi")
T4 = Gpu("Tesla T4", "7.5", 15360 << 20, "nvidia-smi")
ORIN = Gpu("NVIDIA Jetson Orin Nano", "8.7", None, "the name of the board")


@pytest.mark.parametrize(
    ("told", "board", "gpus"),
    [
        ("NVIDIA GeForce RTX 4090, 8.9, 24564\n", False, (RTX,)),
        ("NVIDIA GeForce RTX 4090, 8.9, 24564\nTesla T4, 7.5, 15360\n", True, (RTX, T4)),
        # Of an integrated one it knows neither, and older ones know no capability at all.
        ("Orin (nvgpu), [N/A], [N/A]\n", True, (ORIN,)),
        ("Orin (nvgpu), [N/A], [N/A]\n", False, (Gpu("Orin (nvgpu)", None, None, "nvidia-smi"),)),
        ("Orin (nvgpu), 8.7\n", False, (Gpu("Orin (nvgpu)", "8.7", None, "nvidia-smi"),)),
        ("Orin (nvgpu)\n", False, (Gpu("Orin (nvgpu)", None, None, "nvidia-smi"),)),
        ("Orin (nvgpu)\n", True, (ORIN,)),
        ("", True, (ORIN,)),
        (None, False, ()),
    ],
)
def test_a_gpu_is_as_nvidia_smi_tells_else_as_the_board_does(
    told: str | None,
    board: bool,
    gpus: tuple[Gpu, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if board:
        write(tmp_path, "proc/device-tree/model", ORIN.name + "\0")
    asked = "--query-gpu=name,compute_cap,memory.total --format=csv,noheader,nounits"
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = "{asked}" ] && echo told\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert module._output("nvidia-smi", *asked.split()) == "told\n"
    monkeypatch.setattr(
        module,
        "_output",
        lambda *command: told if command == ("nvidia-smi", *asked.split()) else None,
    )
    assert machine(str(tmp_path)).gpus == gpus


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("echo all is well", "all is well\n"),
        ("printf 'a\\377b'", "a\ufffdb"),
        ("echo half; exit 1", None),
        (None, None),
    ],
)
def test_what_a_program_prints_counts_where_it_ends_well(
    text: str | None, output: str | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "program").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "program").chmod(0o755)
    assert module._output("program") == output


def test_a_program_that_does_not_end_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: object, timeout: float = 0, **options: object) -> None:
        assert 1 <= timeout <= 60
        raise subprocess.TimeoutExpired("program", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    assert module._output("program") is None


def test_the_system_and_the_interpreter_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("system", "release", "machine", "python_version"):
        monkeypatch.setattr(platform, name, lambda name=name: f"the {name}")
    found = machine(str(tmp_path))
    assert (found.system, found.architecture) == ("the system the release", "the machine")
    for base, is_virtual in (("/usr", True), (sys.prefix, False)):
        monkeypatch.setattr(sys, "base_prefix", base)
        here = python()
        assert here.virtual_environment is is_virtual
    assert (here.version, here.executable) == ("the python_version", sys.executable)
    assert here.abi == sysconfig.get_config_var("SOABI")
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: None)
    assert python().abi == ""


def test_the_compiler_is_found_where_torch_looks_for_it(tmp_path: Path) -> None:
    write(tmp_path, "usr/local/cuda/bin/nvcc", "#!/bin/sh\necho release 12.6, V12.6.1\n")
    (tmp_path / "usr/local/cuda/bin/nvcc").chmod(0o755)
    write(tmp_path, "usr/local/cuda/bin/ptxas", "")
    (tmp_path / "usr/local/cuda/bin/ptxas").chmod(0o755)
    found = machine(str(tmp_path))
    assert found.ptxas == str(tmp_path / "usr/local/cuda/bin/ptxas")
    assert found.nvcc == str(tmp_path / "usr/local/cuda/bin/nvcc")
    assert found.cuda_toolkit == "12.6"


@pytest.mark.parametrize(
    ("number", "name"),
    [(40, "armv7l"), (62, "x86_64"), (183, "aarch64"), (243, "ELF machine 243")],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_a_compiled_file_tells_its_architecture(
    number: int, name: str, order: str, tmp_path: Path
) -> None:
    file = tmp_path / "extension.so"
    header = b"\x7fELF\x02" + (b"\1" if order == "<" else b"\2") + bytes(10)
    header += struct.pack(f"{order}HH", 3, number)
    file.write_bytes(header + b"more")
    assert elf_machine(str(file)) == name
    file.write_bytes(header)
    assert elf_machine(str(file)) == name
    for other in (header[:19], b"no ELF file, but long enough to be read", b""):
        file.write_bytes(other)
        assert elf_machine(str(file)) is None
    file.unlink()
    assert elf_machine(str(file)) is None


@pytest.mark.parametrize(
    ("architectures", "capability", "lacks"),
    [
        (("sm_80", "sm_86"), "8.7", False),  # machine code of the same major version
        (("sm_87",), "8.6", True),
        (("sm_70", "compute_70"), "8.7", False),  # PTX, compiled at the first launch
        (("sm_90", "compute_90"), "8.7", True),
        (("sm_90a", "sm_100a"), "10.0", False),
        ((), "8.7", False),
    ],
)
def test_kernels_serve_their_gpu_and_later_ones(
    architectures: tuple[str, ...], capability: str, lacks: bool
) -> None:
    torch = Torch("2", None, "12.6", None, True, architectures, True, None)
    assert lacks_kernels_for(torch, capability) is lacks


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue May 13 UTC 2025\nGCC",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build",
    ],
)
def test_the_release_of_the_driver_is_what_its_module_says(text: str, tmp_path: Path) -> None:
    write(tmp_path, "proc/driver/nvidia/version", text)
    assert driver(str(tmp_path)) == "580.159.04"


def test_the_driver_of_a_board_is_that_of_its_l4t_release(tmp_path: Path) -> None:
    assert driver(str(tmp_path)) is None
    write(tmp_path, "etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1")
    assert driver(str(tmp_path)) == "L4T 36.4.3"
