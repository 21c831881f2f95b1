"""A torch that is not there, does not work or does not go with its board or libraries is found."""

from __future__ import annotations

import sys

import pytest

from jetson_mamba.releases import get_torch
from tests.doctor.sandbox import Machine, healthy
from tests.doctor.situations import on_a_board, uncured_then_cured


def test_a_machine_with_nothing_on_it_lacks_torch(machine: Machine) -> None:
    report = machine.examine()
    (finding,) = report["findings"]
    assert (finding["symptom"], finding["cured"]) == ("no-torch", False)
    assert finding["command"] == f"{sys.executable} -m pip install torch"
    assert report["torch"] is None and report["mamba_ssm"] == []


def test_a_torch_that_was_not_built_for_the_gpu(machine: Machine) -> None:
    healthy(machine)
    machine.torch_again(architectures="sm_72 sm_90 compute_90")
    on_a_board(machine, "NVIDIA Jetson AGX Orin Developer Kit")
    finding = machine.findings(hook=True)["no-kernel-image"]
    assert not finding["cured"]
    assert "capability 8.7" in finding["what"] and "sm_72, sm_90" in finding["why"]
    assert finding["command"] == get_torch.command("6.x", again=True)


@pytest.mark.parametrize("cuda", ["12.6", None])
def test_extensions_on_a_machine_whose_torch_sees_no_gpu(
    machine: Machine, cuda: str | None
) -> None:
    healthy(machine)
    machine.torch_again(cuda=cuda, available=False, architectures="")
    finding = uncured_then_cured(machine, "no-gpu", "install mamba-ssm==2.3.2.post1")
    assert ("sees no GPU" in finding["why"]) == (cuda is not None)


@pytest.mark.parametrize(
    ("jetpack", "release"),
    [
        ("5.x", "35 (release), REVISION: 4.1"),
        ("6.x", "36 (release), REVISION: 4.3"),
        ("7.x", "38 (release), REVISION: 2.0"),
    ],
)
@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_a_torch_on_a_board_that_sees_no_gpu(
    machine: Machine, jetpack: str, release: str, cuda: str | None
) -> None:
    """Row 5: the commonest mistake of all, and nothing to do with extensions."""
    healthy(machine)
    machine.torch_again(cuda=cuda, available=False)
    on_a_board(machine, "NVIDIA Jetson AGX Orin Developer Kit", release)
    finding = machine.findings(hook=True)["cpu-torch"]
    assert not finding["cured"]
    assert finding["command"] == get_torch.command(jetpack, again=True)


def test_a_board_without_torch(machine: Machine) -> None:
    """Row 5."""
    on_a_board(machine, "NVIDIA Jetson AGX Orin Developer Kit")
    finding = machine.findings()["no-torch"]
    assert finding["command"] == get_torch.command("6.x")
    assert "PyPI's is not the one" in finding["why"]


def test_a_pc_whose_torch_sees_no_gpu_is_no_board(machine: Machine) -> None:
    healthy(machine)
    machine.torch_again(cuda=None, available=False)
    assert "cpu-torch" not in machine.findings()


def test_a_transformers_that_switches_torch_off(machine: Machine) -> None:
    """Row 1."""
    healthy(machine)
    utils = machine.site / "transformers" / "utils"
    utils.mkdir()
    (utils / "import_utils.py").write_text("log(f'PyTorch >= 2.6 is required but found {x}')\n")
    finding = machine.findings(hook=True)["transformers-torch"]
    assert (finding["command"].endswith("install 'transformers<5'"), finding["cured"]) == (
        True,
        False,
    )
    assert "switches torch 2.5.0 off" in finding["what"]
    (utils / "import_utils.py").write_text("log(f'PyTorch >= 2.1 is required but found {x}')\n")
    assert "transformers-torch" not in machine.findings()


def test_a_torch_that_raises(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "torch" / "__init__.py").write_text("raise ImportError('libcudnn.so.8')\n")
    finding = machine.findings()["torch-broken"]
    assert "ImportError: libcudnn.so.8" in finding["what"]


def test_a_torch_that_takes_its_process_with_it(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "torch" / "__init__.py").write_text("import os; os.kill(os.getpid(), 6)\n")
    finding = machine.findings()["torch-broken"]
    assert "signal SIGABRT" in finding["what"]
