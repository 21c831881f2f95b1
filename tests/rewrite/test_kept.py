"""A kept copy is found by everything that decides what is in it, and by nothing named by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Iterator

import pytest

from jetson_mamba.errors import LeftOut
from jetson_mamba.hook import copies

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TARGET = "mamba_ssm.modules.mamba_simple"
BLOCK = """import torch
class Mamba(torch.nn.Module):
    def forward(self, hidden_states, inference_params=None): return hidden_states
"""
# Prints the name of a copy, then again each time that a file was changed.
PROGRAM = """
import sys
from pathlib import Path
from jetson_mamba.hook import copies

name = copies.file_name("mamba_ssm.ops.selective_scan_interface", b"a text")
for each in sys.stdin:
    path = Path(each.strip())
    before = path.read_bytes()
    path.write_bytes(before + b"\\n")
    copies._own_digest.cache_clear()
    other = copies.file_name("mamba_ssm.ops.selective_scan_interface", b"a text")
    path.write_bytes(before)
    print(path, "other" if other != name else "same")
"""


def deciding(site: Path) -> Iterator[Path]:
    """The overrides, and the code that applies them."""
    yield from (site / "vendored_overrides").rglob("*.py")
    yield site / "vendored_overrides" / "known.json"
    yield from (site / "jetson_mamba" / "rewrite").rglob("*.py")
    yield from (site / "jetson_mamba" / "hook").rglob("*.py")
    yield from (site / "jetson_mamba").glob("*.py")


def test_whatever_decides_what_is_in_a_copy_is_in_its_name(tmp_path: Path) -> None:
    for package in ("jetson_mamba", "vendored_overrides"):
        left_out = shutil.ignore_patterns("__pycache__", "copies")
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=left_out)
    (tmp_path / "vendored_overrides" / "added_later.py").touch()
    files = [*deciding(tmp_path), tmp_path / "jetson_mamba" / "ops" / "swiglu" / "op.py"]
    assert len(files) > 35
    done = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM],
        input="\n".join(map(str, files)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.rpartition(" ")[2] for line in done.stdout.splitlines()]
    assert found == ["other"] * (len(files) - 1) + ["same"]


@pytest.fixture
def loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourceFileLoader:
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "mamba_ssm" / "modules" / "mamba_simple.py"
    path.parent.mkdir(parents=True)
    path.write_text(BLOCK)
    return SourceFileLoader(TARGET, str(path))


def test_that_nothing_changes_is_kept_as_well_and_why(
    loader: SourceFileLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = LeftOut(
        "Mamba.forward",
        "neither it nor all that it calls is the text of a release; its own code runs",
    )
    assert copies.find(TARGET, loader) is None
    monkeypatch.setattr(copies, "examine", None)
    assert copies.find(TARGET, loader) is None
    seen = copies.look(TARGET, loader)
    assert seen is not None
    assert (seen.origin, seen.edits, seen.left_out) == ("cached", 0, (expected,))


def test_a_module_beside_it_that_changes_is_another_text(
    loader: SourceFileLoader, tmp_path: Path
) -> None:
    beside = tmp_path / "mamba_ssm" / "ops.py"
    beside.write_text("x = 1\n")
    path = Path(loader.path)
    path.write_text("from mamba_ssm.ops import x\n" + BLOCK)
    names = set()
    for text in ("x = 1\n", "x = 2\n", "x = 30\n"):
        beside.write_text(text)
        names.add(copies.file_name(TARGET, path.read_bytes(), str(path)))
    beside.unlink()
    names.add(copies.file_name(TARGET, path.read_bytes(), str(path)))
    assert len(names) == 4


def test_a_package_of_another_name_has_its_own_modules_beside_it(tmp_path: Path) -> None:
    assert copies.package_of(TARGET, "own.mamba_ssm.modules.mamba_simple") == "own.mamba_ssm"
    assert copies.package_of(TARGET, TARGET) == "mamba_ssm"
    assert copies.package_of(TARGET, "elsewhere") == "mamba_ssm"
