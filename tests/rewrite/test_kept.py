"""A kept copy is found by everything that decides what is in it, and by nothing named by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Iterator

import pytest

from jetson_mamba import overrides
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


def seen(what):
    copies._own_digest.cache_clear()
    other = copies.file_name("mamba_ssm.ops.selective_scan_interface", b"a text")
    print(what, "other" if other != name else "same")


for each in sys.stdin:
    path = Path(each.strip())
    before = path.read_bytes()
    path.write_bytes(before + b"\\n")
    seen(path)
    path.write_bytes(before)
    renamed = path.rename(path.with_name("renamed" + path.suffix))
    seen(renamed)
    renamed.rename(path)
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
    # Each was changed, and had another name.
    assert found == ["other", "other"] * (len(files) - 1) + ["same", "same"]


def test_another_target_and_another_lack_are_another_copy() -> None:
    names = {
        copies.file_name(target, b"a text", without=without)
        for target in (TARGET, "mamba_ssm.other.mamba_simple")
        for without in ((), ("triton",), ("cute",), ("cute", "triton"))
    }
    assert len(names) == 8
    both = {copies.file_name(TARGET, b"a text", without=each) for each in (("a", "b"), ("b", "a"))}
    assert len(both) == 1


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


TARGET_OF_CALLS = "mamba_ssm.ops.selective_scan_interface"
CALLS = "import selective_scan_cuda\ndef f(*x): return selective_scan_cuda.fwd(*x)"


@pytest.fixture
def calling(loader: SourceFileLoader, tmp_path: Path) -> SourceFileLoader:
    """A loader of a text that has edits, without an end of its last line."""
    path = tmp_path / "calling.py"
    path.write_text(CALLS)
    return SourceFileLoader(TARGET_OF_CALLS, str(path))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_bundled_copy_runs_if_it_is_what_was_bundled(
    damaged: bool, calling: SourceFileLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = copies.find(TARGET_OF_CALLS, calling)
    assert made is not None and made.origin == "made"
    name = Path(made.path).name
    bundled = tmp_path / "bundle" / "copies" / name
    bundled.parent.mkdir(parents=True)
    content = Path(made.path).read_bytes()
    bundled.write_bytes(content.replace(b"def f", b"def g") if damaged else content)
    monkeypatch.setattr(overrides, "folder", lambda: tmp_path / "bundle")
    found = copies.find(TARGET_OF_CALLS, calling)
    assert found is not None and found.data == made.data
    expected = ("cached", made.path) if damaged else ("bundled", str(bundled))
    assert (found.origin, found.path) == expected


def test_what_runs_is_of_the_size_by_which_its_bytecode_is_known(calling: SourceFileLoader) -> None:
    for origin in ("made", "cached"):
        found = copies.find(TARGET_OF_CALLS, calling)
        assert found is not None and found.origin == origin
        loader = copies.loader_for(found, calling)
        assert len(loader.get_data(found.path)) == loader.path_stats(found.path)["size"]


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
