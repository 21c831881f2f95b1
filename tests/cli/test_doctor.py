"""The command `doctor`: what it prints, what it exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.bare import Bare
from tests.cli.command import jetson_mamba, kept, shadow
from tests.doctor.sandbox import SCHEMA, validate
from tools.releases import release_path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare"))


def test_a_bare_machine_is_examined(bare: Bare) -> None:
    done = bare.command("doctor", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    validate(found, SCHEMA)
    assert found["torch"] is None
    assert [each["symptom"] for each in found["findings"]] == ["no-torch"]


def test_a_machine_with_torch_is_examined(tmp_path: Path) -> None:
    """This environment and a release of mamba-ssm, of which a block of each kind runs."""
    path = (release_path("2.3.2.post1"),)
    done = jetson_mamba("doctor", "--json", folder=tmp_path, path=path, JETSON_MAMBA_CACHE=kept())
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    found = json.loads(done.stdout)
    validate(found, SCHEMA)
    assert found["torch"]["error"] is None and found["trial_error"] is None
    assert all(each["cured"] for each in found["findings"])
    served = {each["op"]: each for each in found["backends"]}
    assert set(served) == {"causal_conv1d", "selective_scan", "ssd"}
    for each in served["causal_conv1d"]["passed_over"]:
        assert each["reason"]


def test_a_finding_tells_what_why_and_what_to_do(bare: Bare) -> None:
    done = bare.command("doctor", PYTHONPATH=f"{release_path('2.0.0')}:{Path.cwd()}")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    start = next(index for index, line in enumerate(lines) if "selective_scan_cuda, which" in line)
    assert lines[start].startswith("wrong  mamba_ssm 2.0.0 imports")
    assert lines[start + 1] == "seen   No module named 'selective_scan_cuda'"
    assert lines[start + 2].startswith("why    ")
    assert lines[start + 3] == "do     jetson-mamba enable"


def test_a_mamba_ssm_whose_block_fails_is_wrong(tmp_path: Path) -> None:
    """For a reason that no detector knows."""
    code = "class Mamba:\n    def __init__(self, *_, **__): raise RuntimeError('out of order')\n"
    path = (shadow(tmp_path, "mamba_ssm", code),)
    done = jetson_mamba("doctor", "--json", folder=tmp_path, path=path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["trial_error"] == "a block of Mamba on the CPU fails: RuntimeError: out of order"
    assert "block-fails" in [each["symptom"] for each in found["findings"]]


def test_a_machine_with_nothing_on_it_is_told_what_comes_first(bare: Bare) -> None:
    done = bare.command("doctor")
    assert done.returncode == 1
    assert "wrong  torch is not installed" in done.stdout
    assert "-m pip install torch" in done.stdout
    assert "`jetson-mamba install` does that" in done.stdout
