"""What is installed is read without importing any of it. Distributions and extensions."""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.report import extensions, installed, machine, probe, torch_build
from jetson_mamba.report.findings import registry


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine to which markers are held."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "10", "12"))
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.parametrize(
    ("marker", "holds"),
    [
        ("", True),
        (" platform_system == 'Linux' ", True),
        ('platform_system == "Windows"', False),
        ("platform_machine != 'x86_64' and sys_platform == 'linux'", True),
        ("platform_machine == 'x86_64' and sys_platform == 'linux'", False),
        ("sys_platform == 'linux' and platform_machine == 'x86_64'", False),
        # 3.10 is later than 3.9, though not as text.
        ("python_version >= '3.9'", True),
        ("python_version > '3.10'", False),
        ("python_version >= '3.10'", True),
        ("python_version < '3.10'", False),
        ("python_version <= '3.10'", True),
        ("python_version < '3.13'", True),
        # What is not understood holds nothing.
        ("extra == 'cuda'", False),
        ("python_version ~= '3.9'", False),
        ("platform_system == 'Linux' or python_version < '3'", False),
    ],
)
@pytest.mark.usefixtures("here")
def test_the_triton_of_a_torch_is_the_one_of_a_marker_that_holds(marker: str, holds: bool) -> None:
    requires = ("filelock", "pytorch-triton==9.9", f"triton==3.4.0;{marker}", "triton>=2")
    torch = installed.Distribution("torch", "2.8.0", (), "/site", requires)
    assert installed.triton_requirement([torch]) == ("3.4.0" if holds else None)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("triton==3.1.0", "3.1.0"),
        ("triton (==3.1.0)", "3.1.0"),
        ("triton == 3.1.0+git123", "3.1.0+git123"),
        ("triton>=3.1.0", None),
        ("triton-nightly==3.1.0", None),
    ],
)
def test_a_triton_is_asked_for_by_one_version(text: str, version: str | None) -> None:
    torch = installed.Distribution("torch", "2.5.0", (), "/site", (text,))
    assert installed.triton_requirement([torch]) == version
    assert installed.triton_requirement([]) is None


@pytest.mark.parametrize(
    ("metadata", "version"),
    [("Metadata-Version: 2.1\nName: torch\nVersion: 2.4.1\n", "2.4.1"), (None, "unknown")],
)
def test_a_distribution_is_read_also_where_it_is_half_gone(
    metadata: str | None, version: str, tmp_path: Path
) -> None:
    folder = tmp_path / "torch-2.4.1.dist-info"
    folder.mkdir()
    if metadata is not None:
        (folder / "METADATA").write_text(metadata + "Requires-Dist: triton==3.0.0\n")
    (folder / "WHEEL").write_text("Root-Is-Purelib: false\nTag: cp310-cp310-linux_aarch64\n")
    (found,) = installed.distributions("torch", [str(tmp_path)])
    assert found.version == version
    assert (found.tags, found.folder) == (("cp310-cp310-linux_aarch64",), str(tmp_path))
    assert found.requires == (("triton==3.0.0",) if metadata else ())


def test_an_extension_loads_where_it_was_tried_and_nothing_is_told_against_it(
    tmp_path: Path,
) -> None:
    name, path = "selective_scan_cuda", [str(tmp_path)]
    for tried, loads, error in (
        (None, False, None),
        ({"parameters": {"fwd": 9}}, True, None),
        ({"error": "ImportError: undefined symbol"}, False, "ImportError: undefined symbol"),
    ):
        found = extensions.extension(name, path, tried)
        assert (found.loads, found.error, found.path) == (loads, error, None)
        assert found.parameters == (tried or {}).get("parameters", {})
    file = tmp_path / f"{name}{EXTENSION_SUFFIXES[0]}"
    file.touch()
    assert extensions.path_of(name, path) == str(file)
    assert extensions.extension(name, path, None).path == str(file)


def test_a_file_for_another_python_is_told_and_what_is_no_extension_is_not(tmp_path: Path) -> None:
    name = "causal_conv1d_cuda"
    for suffix in (".txt", ".py", ".cpython-27-other.so", ".cp27-other.pyd", EXTENSION_SUFFIXES[0]):
        (tmp_path / f"{name}{suffix}").touch()
    found = extensions.extension(name, [str(tmp_path)], None)
    assert [each.partition(":")[0] for each in found.misfits] == [
        str(tmp_path / f"{name}{suffix}") for suffix in (".cp27-other.pyd", ".cpython-27-other.so")
    ]
    abi = sysconfig.get_config_var("SOABI")
    words = f": built for another Python, this one's files carry {abi}"
    assert all(each.endswith(words) for each in found.misfits)


def test_a_file_for_another_machine_is_told_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, built_for = "selective_scan_cuda", {"a": "x86_64", "b": "aarch64", "c": None}
    for folder in built_for:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}{EXTENSION_SUFFIXES[0]}").touch()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(
        "jetson_mamba.report.extensions.elf_machine", lambda file: built_for[Path(file).parent.name]
    )
    path = [str(tmp_path / folder) for folder in ("a", "b", "c", "a")]
    (misfit,) = extensions.extension(name, path, None).misfits
    file = tmp_path / "a" / f"{name}{EXTENSION_SUFFIXES[0]}"
    assert misfit == f"{file}: built for x86_64, this is aarch64"


@pytest.mark.parametrize(
    ("code", "said"), [(-11, "signal SIGSEGV"), (-9, "signal SIGKILL"), (3, "exit status 3")]
)
def test_how_a_process_ended_is_said_in_words(code: int, said: str) -> None:
    assert probe._end(code) == said


def test_what_a_task_found_is_read_once_it_is_whole(tmp_path: Path) -> None:
    assert probe._result(str(tmp_path), "torch") is None
    probe._write(str(tmp_path), "torch", {"error": "\u00e9"})
    assert probe._result(str(tmp_path), "torch") == {"error": "\u00e9"}
    assert [each.name for each in tmp_path.iterdir()] == ["torch.json"]


def fails(error: BaseException) -> dict[str, Any]:
    raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("one line\nand another"), "OSError: one line"),
        (SystemExit(), "SystemExit: no message"),
        (KeyboardInterrupt(" "), "KeyboardInterrupt: no message"),
    ],
)
def test_whatever_a_task_raises_is_one_line(error: BaseException, said: str) -> None:
    assert probe._attempt(lambda: fails(error)) == {"error": said}
    assert probe._attempt(lambda: {"x": 1}) == {"x": 1}


@pytest.mark.parametrize(
    ("told", "board", "found"),
    [
        ("NVIDIA A, 9.0, 81559\nNVIDIA B, 8.0, 40960", None, [("NVIDIA A", "9.0", 81559 << 20)]),
        ("Orin (nvgpu), 8.7, [N/A]", "NVIDIA Jetson AGX Orin", [("Orin (nvgpu)", "8.7", None)]),
        ("Orin (nvgpu), [N/A], [N/A]", "NVIDIA Jetson AGX Orin", "8.7"),
        (None, "NVIDIA Jetson AGX Orin", "8.7"),
        ("GPU, [N/A], 4096", "a board that nobody knows", [("GPU", None, 4096 << 20)]),
        (None, None, []),
    ],
)
def test_a_gpu_is_what_the_driver_tells_and_else_what_the_board_has(
    told: str | None, board: str | None, found: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: told and name)
    monkeypatch.setattr(machine, "_output", lambda *_: told)
    gpus = machine._gpus(board)
    if isinstance(found, str):
        assert [(each.name, each.capability, each.memory_bytes) for each in gpus] == [
            (board, found, None)
        ]
    else:
        assert [(each.name, each.capability, each.memory_bytes) for each in gpus][:1] == found
        assert len(gpus) == len((told or "").splitlines())


def test_one_symptom_has_the_same_words_wherever_it_is_looked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "SYMPTOMS", {})
    monkeypatch.setattr(registry, "DETECTORS", [])

    def nothing(facts: Any) -> Any:
        return iter(())

    for _ in range(2):
        assert registry.finds("a-symptom", "its words")(nothing) is nothing
    with pytest.raises(ValueError, match="a-symptom: expected the words 'its words'"):
        registry.finds("a-symptom", "other words")(nothing)
    assert [("a-symptom", nothing)] * 2 == registry.DETECTORS


DEVICES = {
    **{"cuda": "12.6", "hip": "6.0", "cxx11_abi": True, "architectures": ["sm_80", "sm_87"]},
    "cuda_available": True,
    "gpus": [{"name": "Orin", "capability": "8.7", "memory_bytes": 1000}],
}


def test_what_torch_says_of_itself_stands_in_its_place() -> None:
    probed: dict[str, Any] = {"torch": {"version": "2.8", "path": "/t"}, "devices": DEVICES}
    torch, gpus = torch_build.torch_and_gpus("/site/torch", "2.7", probed)
    assert torch == torch_build.Torch(
        *("2.8", "/t", "12.6", "6.0", True, ("sm_80", "sm_87"), True, None)
    )
    assert gpus == (machine.Gpu("Orin", "8.7", 1000, "torch"),)


@pytest.mark.parametrize(
    ("of_torch", "of_devices", "error"), [("a", "b", "a"), (None, "b", "b"), ("a", None, "a")]
)
def test_a_torch_that_fails_is_what_is_on_record(
    of_torch: str | None, of_devices: str | None, error: str
) -> None:
    said = {"torch": of_torch, "devices": of_devices}
    probed = {name: {"error": each} if each else {} for name, each in said.items()}
    torch, gpus = torch_build.torch_and_gpus("/site/torch", "2.7", probed)
    assert gpus == ()
    assert torch == torch_build.Torch("2.7", "/site/torch", None, None, None, (), False, error)
