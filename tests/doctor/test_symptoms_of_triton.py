"""A Triton that is not there, is too old or launches nothing is found."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.doctor.sandbox import Machine, healthy
from tests.doctor.situations import on_a_board, uncured_then_cured


def test_mamba_2_without_triton(machine: Machine) -> None:
    healthy(machine)
    for each in ("triton", "triton-3.6.0.dist-info"):
        shutil.rmtree(machine.site / each)
    uncured_then_cured(machine, "no-triton", "jetson-mamba install")
    machine.torch_again(available=False, cuda=None)
    uncured_then_cured(machine, "no-triton", "")
    assert {each["command"] for each in machine.findings_if_served} >= {""}


def test_mamba_1_needs_no_triton(machine: Machine) -> None:
    healthy(machine, "1.0.1")
    shutil.rmtree(machine.site / "triton")
    assert machine.findings() == {}


def test_a_triton_that_cannot_be_imported(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "triton" / "__init__.py").write_text("raise ImportError('libtriton')\n")
    finding = uncured_then_cured(machine, "no-triton", "pip uninstall --yes triton")
    assert "fails: ImportError: libtriton" in finding["what"]


@pytest.mark.parametrize(("version", "found"), [("3.1.0", True), ("3.3.1", True), ("3.4.0", False)])
def test_a_triton_that_is_too_old_for_the_release(
    machine: Machine, version: str, found: bool
) -> None:
    """Row 6."""
    healthy(machine)
    shutil.rmtree(machine.site / "triton-3.6.0.dist-info")
    machine.record("triton", version)
    if found:
        uncured_then_cured(machine, "triton-old", "install mamba-ssm==2.3.1")
    else:
        assert "triton-old" not in machine.findings()


def test_a_triton_that_does_not_know_thor(machine: Machine) -> None:
    """Row 9, and the command that is advised, typed."""
    healthy(machine)
    machine.torch_again(architectures="sm_110", cuda="13.0", available=False)
    on_a_board(machine, "NVIDIA Jetson AGX Thor Developer Kit", "38 (release), REVISION: 2.0")
    uncured_then_cured(machine, "triton-launch", "")
    ptxas = machine.root / "usr" / "local" / "cuda" / "bin" / "ptxas"
    ptxas.parent.mkdir(parents=True)
    ptxas.touch(mode=0o755)
    uncured_then_cured(machine, "triton-launch", f"export TRITON_PTXAS_BLACKWELL_PATH={ptxas}")
    (advised,) = (e for e in machine.findings_if_served if e["symptom"] == "triton-launch")
    done = subprocess.run(
        f"{advised['option']}; echo $TRITON_PTXAS_BLACKWELL_PATH",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    machine.environment["TRITON_PTXAS_BLACKWELL_PATH"] = done.stdout.strip()
    assert "triton-launch" not in machine.findings()


def test_a_first_launch_that_fails_is_told_of(machine: Machine) -> None:
    healthy(machine)
    machine.append_to_torch(
        """
import warnings
def fails(device):
    warnings.warn("Triton launches nothing on cuda:0 (RuntimeError: no C compiler), so what",
                  RuntimeWarning)
    return True
ops.triton_runs_on = fails
"""
    )
    finding = uncured_then_cured(machine, "triton-launch", "")
    assert "no C compiler" in finding["what"]


def test_kernels_for_triton_2_beside_triton_3(machine: Machine) -> None:
    healthy(machine, "2.0.4")
    assert "triton-log1p" in machine.findings()
    shutil.rmtree(machine.site / "triton-3.6.0.dist-info")
    machine.record("triton", "2.3.1")
    assert "triton-log1p" not in machine.findings()
