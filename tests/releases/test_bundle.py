"""The bundled copies: what a wheel of a release carries. How they are used is held too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Iterator

import pytest

from jetson_mamba import cache
from tests import interpreters
from tests.releases import examined
from tools import bundle
from tools.releases import MAMBA_SSM, release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LEFT_OUT = shutil.ignore_patterns("__pycache__", "copies")


@pytest.fixture(scope="module", autouse=True)
def made_once() -> Iterator[None]:
    """All copies take long to make, and are the same each time."""
    with pytest.MonkeyPatch.context() as patch, examined.once():
        patch.setattr(bundle, "contents", lru_cache(maxsize=None)(bundle.contents))
        yield


@pytest.fixture(scope="module")
def site(made_once: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two packages as a wheel holds them, bundled copies included."""
    site = tmp_path_factory.mktemp("site")
    for package in ("jetson_mamba", "vendored_overrides"):
        shutil.copytree(REPOSITORY / package, site / package, ignore=LEFT_OUT)
    assert bundle.write(site / "vendored_overrides" / "copies") == 0
    _keep_for_others()
    return site


def _keep_for_others() -> None:
    """Programs of other tests would make the same copies of the releases that they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JETSON_MAMBA_CACHE", str(interpreters.copies()))
        folder = cache.private_directory("copies")
    assert folder is not None
    for name, sealed in bundle.contents().items():
        copy = cache.unseal(name, sealed)
        if copy is not None:
            cache.write(folder, name, copy)


def test_every_release_is_bundled_once_for_each_text_and_what_it_reaches(site: Path) -> None:
    folder = site / "vendored_overrides" / "copies"
    provenance = json.loads((folder / bundle.PROVENANCE).read_text())
    assert {path.name for path in folder.glob("*.py")} == set(provenance)
    covered = [release for entry in provenance.values() for release in entry["releases"]]
    assert {f"mamba-ssm {version}" for version in MAMBA_SSM} == set(covered)
    by_target: dict[str, int] = {}
    for entry in provenance.values():
        by_target[entry["target"].rpartition(".")[2]] = (
            by_target.get(entry["target"].rpartition(".")[2], 0) + 1
        )
    assert by_target == {
        "selective_scan_interface": 6,
        "ssd_combined": 13,
        "generation": 6,
        "hf": 1,
        "k_activations": 3,
        "layer_norm": 4,
        "layernorm": 3,
        "layernorm_gated": 1,
        "selective_state_update": 6,
        "mamba_simple": 12,
        "mamba2": 14,
        "mamba2_simple": 13,
        "mha": 2,
        "mixer_seq_simple": 21,
        "ssd_bmm": 2,
        "ssd_chunk_scan": 7,
        "ssd_chunk_state": 8,
        "ssd_state_passing": 2,
        "mamba3_siso_combined": 1,
        "mamba3_siso_step": 1,
        "mamba3_mimo_rotary_step": 1,
        "mamba3_mimo": 1,
        # With tilelang or CuTe and without; the others only without.
        "mamba3_step_fn": 2,
        "mamba3_mimo_fwd": 1,
        "mamba3_mimo_fwd_varlen": 1,
        "mamba3_mimo_bwd": 1,
        "mamba3_mimo_bwd_varlen": 1,
    }
    assert "Apache License" in (folder / bundle.LICENCE).read_text()
    for path in folder.glob("*.py"):
        text = path.read_text()
        assert "# Modified by jetson_mamba: " in text
        assert provenance[path.name]["source sha256"] in text


def test_the_check_finds_what_is_not_made_afresh(tmp_path: Path, site: Path) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(site / "vendored_overrides" / "copies", folder)
    assert bundle.check(folder) == 0
    path = next(folder.glob("*.py"))
    path.write_text(path.read_text() + "# changed\n")
    assert bundle.check(folder) == 1
    path.unlink()
    assert bundle.check(folder) == 1


@pytest.mark.parametrize("version", ["1.0.1", "2.3.2.post1"])
def test_bundled_copies_are_used_and_nothing_is_written(
    version: str, site: Path, tmp_path: Path
) -> None:
    """As on a file system that is read-only: no file is opened for writing, none is made."""
    program = (
        "import sys\n"
        "import torch, transformers.generation\n"
        "writes = []\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and isinstance(arguments[2], int) and arguments[2] & 3:\n"
        "        writes.append(arguments[0])\n"
        "    if event in ('os.mkdir', 'os.rename', 'os.remove'):\n"
        "        writes.append(arguments[0])\n"
        "import jetson_mamba, jetson_mamba.ops\n"
        "sys.addaudithook(watch)\n"
        "import mamba_ssm.ops.selective_scan_interface\n"
        "places = (sys.argv[1], sys.argv[2])\n"
        "print([each for each in writes if str(each).startswith(places)])\n"
        "print(*(getattr(each, 'origin', each) for each in jetson_mamba._finder.outcomes.values()))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-W", "ignore", "-c", program, str(site), str(tmp_path)],
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "PYTHONPATH": os.pathsep.join((str(site), str(release_path(version)))),
            "JETSON_MAMBA_CACHE": str(tmp_path / "cache"),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    writes, origins = done.stdout.splitlines()
    assert writes == "[]"
    assert origins.startswith("bundled") and "made" not in origins and "cached" not in origins
    assert not (tmp_path / "cache").exists()
