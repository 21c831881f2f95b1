"""What cannot be done ends with one line that says why, never a traceback. The exit code is 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetson_mamba import advice
from jetson_mamba.releases import get_torch
from jetson_mamba.report.machine import machine
from tests import interpreters
from tests.cli.command import jetson_mamba, shadow
from tools.releases import release_path


def complaint(
    *arguments: str,
    folder: Path,
    path: tuple[Path, ...] = (),
    ordinary: bool = False,
    **environment: str,
) -> str:
    """The one line on stderr of a command that cannot run."""
    done = jetson_mamba(
        *arguments,
        folder=folder,
        path=path,
        ordinary=ordinary,
        modules=interpreters.TORCH,
        **environment,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("jetson-mamba: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("dmo",), "No such command 'dmo'"),
        (("demo", "--stepz", "3"), "No such option: --stepz"),
        (("demo", "--steps", "1"), "Invalid value for '--steps'"),
        (("demo", "--steps", "many"), "Invalid value for '--steps'"),
        (("demo", "--sample", "-1"), "Invalid value for '--sample'"),
        (("demo", "--text"), "--text"),
        (("status", "everything"), "everything"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    assert expected in complaint(*arguments, folder=tmp_path)


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    line = complaint("demo", "--text", "novel.txt", folder=tmp_path)
    assert "novel.txt: No such file or directory; expected a file" in line


def test_a_folder_is_not_a_text(tmp_path: Path) -> None:
    assert f"--text {tmp_path}: " in complaint("demo", "--text", str(tmp_path), folder=tmp_path)


def test_a_text_that_is_not_utf8_is_named_with_the_byte(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9" * 10_000)
    line = complaint("demo", "--text", "latin", folder=tmp_path)
    assert "byte 3 is not UTF-8" in line


def test_a_text_that_is_too_short_is_named_with_its_length(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("short")
    line = complaint("demo", "--text", "short", folder=tmp_path)
    assert "found 5 characters, expected at least" in line


def test_an_output_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "--output file: File exists" in complaint("demo", "--output", "file", folder=tmp_path)


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("torch", get_torch.command(machine().jetpack)),
        ("matplotlib", f"{advice.pip()} install matplotlib"),
        ("mamba_ssm", "jetson-mamba install"),
    ],
)
def test_a_module_that_is_missing_is_named_with_what_installs_it(
    module: str, command: str, tmp_path: Path
) -> None:
    missing = f"raise ModuleNotFoundError(\"No module named '{module}'\", name={module!r})\n"
    path = shadow(tmp_path, module, missing)
    line = complaint("demo", folder=tmp_path, path=(path,))
    assert f"{module} cannot be imported (No module named '{module}'); install it: " in line
    assert line.rstrip().endswith(command)


def test_what_mamba_ssm_needs_and_does_not_find_is_named(tmp_path: Path) -> None:
    path = shadow(tmp_path, "mamba_ssm", "import einops_of_another_name\n")
    line = complaint("demo", folder=tmp_path, path=(path,))
    assert f"install what it needs: {advice.pip()} install einops-of-another-name" in line


def test_a_mamba_ssm_that_raises_is_described_in_one_line(tmp_path: Path) -> None:
    path = shadow(tmp_path, "mamba_ssm", "raise TypeError('first\\nsecond')\n")
    line = complaint("demo", folder=tmp_path, path=(path,))
    assert "mamba_ssm cannot be imported (TypeError: first second); repair it: " in line


def test_without_the_overrides_the_demo_says_how_to_have_them(tmp_path: Path) -> None:
    line = complaint(
        "demo", folder=tmp_path, path=(release_path("2.3.2.post1"),), JETSON_MAMBA="off"
    )
    assert "No module named 'selective_scan_cuda'" in line
    assert "unset JETSON_MAMBA" in line


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    line = complaint("demo", folder=tmp_path, ordinary=True)
    assert "--output demo-output: Permission denied" in line
