"""Packages that are missing, do not go together or hide each other are found.

The files beside this one find what is wrong with torch, Triton, extensions, backends or the hook.
Where the hook gets around a cause, the finding says so as soon as the startup file is there.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from jetson_mamba.report.findings import SYMPTOMS
from tests.doctor.sandbox import Machine, healthy
from tests.doctor.situations import uncured_then_cured, with_nvcc


def test_there_is_a_test_for_each_symptom() -> None:
    text = "".join(each.read_text() for each in Path(__file__).parent.glob("test_symptoms*.py"))
    assert len(SYMPTOMS) > 20
    for symptom in SYMPTOMS:
        assert f'"{symptom}"' in text


@pytest.mark.parametrize("version", ["1.0.1", "2.2.4", "2.3.2.post1"])
def test_nothing_is_found_on_a_healthy_machine(machine: Machine, version: str) -> None:
    healthy(machine, version)
    report = machine.examine()
    # Mamba-2 of 2.2.4 hands over any strides: the cause is there, wherever the extension is.
    allowed = {"strides"} if version == "2.2.4" else set()
    assert {each["symptom"] for each in report["findings"]} == allowed
    assert report["torch"]["cuda"] == "12.6"
    assert [each["loads"] for each in report["extensions"]] == [True, True]


@pytest.mark.parametrize(
    ("version", "module", "name", "other"),
    [
        ("2.3.2.post1", "mamba_simple", "Block", "<2"),
        ("2.2.4", "mamba_simple", "Block", "<2"),
        ("1.2.0", "mamba_simple", "Mamba2", ">=2"),
    ],
)
def test_a_program_for_another_major_release(
    machine: Machine, version: str, module: str, name: str, other: str
) -> None:
    healthy(machine, version)
    program = machine.work / "train.py"
    program.write_text(f"from mamba_ssm.modules.{module} import Mamba, {name}\n")
    finding = machine.findings(hook=True)["name-moved"]
    assert finding["command"] == f"jetson-mamba install 'mamba-ssm{other}'"
    assert f"train.py imports {name} from mamba_ssm.modules.{module}" in finding["what"]
    assert ("mamba_ssm.modules.block" in finding["why"]) == (name == "Block")
    guarded = f"try:\n    {program.read_text()}except ImportError:\n    pass\n"
    for harmless in (guarded, "from mamba_ssm.modules.mamba_simple import Mamba\n", "not python"):
        program.write_text(harmless)
        assert "name-moved" not in machine.findings(hook=True)


def test_releases_of_the_two_packages_that_do_not_fit(machine: Machine) -> None:
    """The signature is read from the extension's own text, as pybind11 writes it."""
    machine.real_torch()
    machine.mamba_ssm("1.2.0")
    machine.causal_conv1d()
    machine.extension("selective_scan_cuda")
    arguments = ", ".join(f"arg{index}: torch.Tensor" for index in range(8))
    machine.extension(
        "causal_conv1d_cuda",
        f"""
        def causal_conv1d_fwd(*args): "causal_conv1d_fwd({arguments}) -> None"
        def causal_conv1d_bwd(*args): "causal_conv1d_bwd({arguments}) -> None"
        def causal_conv1d_update(*args): "causal_conv1d_update({arguments}) -> None"
        """,
    )
    finding = machine.findings(hook=True)["call-form"]
    assert (finding["command"], finding["cured"]) == ("", True)
    assert finding["option"] == "jetson-mamba install 'mamba-ssm>=2.2.5'"
    assert "passes causal_conv1d_fwd 7 arguments, and it takes 8" in finding["what"]


@pytest.mark.parametrize("fork_wins", [True, False])
def test_a_fork_and_a_release_on_the_path(machine: Machine, fork_wins: bool) -> None:
    healthy(machine)
    fork = machine.work if fork_wins else machine.folder / "fork"
    modules = fork / "mamba_ssm" / "modules"
    modules.mkdir(parents=True)
    (fork / "mamba_ssm" / "__init__.py").write_text("__version__ = '1.0.1'\n")
    (modules / "mamba_simple.py").write_text(
        "class Mamba:\n    def __init__(self, d_model, bimamba_type='none'):\n        pass\n"
    )
    if not fork_wins:
        machine.path.append(fork)
    report = machine.examine()
    assert [each["wins"] for each in report["mamba_ssm"]] == [True, False]
    (finding,) = (each for each in report["findings"] if each["symptom"] == "two-mamba-ssm")
    assert "a fork, with bimamba_type" in finding["what"]
    # The release goes: either it hides the fork, or it is hidden and in the way.
    assert finding["command"].endswith("-m pip uninstall --yes mamba-ssm")


def test_a_folder_that_pip_does_not_know_is_moved_aside_by_the_command(machine: Machine) -> None:
    healthy(machine)
    (machine.work / "mamba_ssm").mkdir()
    (machine.work / "mamba_ssm" / "__init__.py").touch()
    machine.path.insert(0, machine.folder / "other")
    (machine.folder / "other" / "mamba_ssm").mkdir(parents=True)
    (machine.folder / "other" / "mamba_ssm" / "__init__.py").touch()
    finding = machine.findings()["two-mamba-ssm"]
    assert finding["command"].startswith("mv ")
    subprocess.run(finding["command"], shell=True, check=True)
    (finding,) = (
        each for each in machine.examine()["findings"] if each["symptom"] == "two-mamba-ssm"
    )
    assert "pip uninstall" in finding["command"]


def test_a_gpu_and_no_compiler_before_mamba_ssm_is_installed(machine: Machine) -> None:
    machine.torch()
    found = machine.findings(hook=True)
    for symptom in ("no-nvcc", "no-mamba-ssm"):
        finding = found[symptom]
        assert (finding["command"], finding["cured"]) == ("jetson-mamba install", False)
    with_nvcc(machine)
    report = machine.examine()
    assert [each["symptom"] for each in report["findings"]] == ["no-mamba-ssm"]
    assert report["machine"]["cuda_toolkit"] == "12.6"


@pytest.mark.parametrize("version", ["2.0.3", "2.2.4"])
def test_releases_that_do_not_even_out_strides(machine: Machine, version: str) -> None:
    healthy(machine, version)
    uncured_then_cured(machine, "strides", "install 'mamba-ssm>=2.2.5'")


def test_a_transformers_without_the_names(machine: Machine) -> None:
    healthy(machine, "2.2.5")
    (machine.site / "transformers" / "generation" / "__init__.py").write_text("TextStreamer = 1\n")
    finding = uncured_then_cured(machine, "transformers-names", "mamba-ssm>=2.3.0")
    assert "GreedySearchDecoderOnlyOutput, SampleDecoderOnlyOutput" in finding["what"]


@pytest.mark.parametrize("version", ["2.0.0", "2.0.1", "2.0.2"])
def test_a_release_that_was_published_incomplete(machine: Machine, version: str) -> None:
    healthy(machine, version)
    finding = machine.findings()["incomplete-release"]
    assert finding["command"] == "jetson-mamba install"


def test_what_is_missing_besides(machine: Machine) -> None:
    healthy(machine)
    shutil.rmtree(machine.site / "einops")
    finding = machine.findings()["no-dependency"]
    assert finding["what"] == "einops is not installed"
    assert finding["message"] == "No module named 'einops'"
    assert finding["command"] == "jetson-mamba install"


def test_all_that_is_missing_is_one_finding_with_the_modules_that_are(machine: Machine) -> None:
    healthy(machine)
    for name in ("transformers", "huggingface_hub"):
        shutil.rmtree(machine.site / name)
    (finding,) = (each for each in machine.examine()["findings"] if not each["cured"])
    assert finding["symptom"] == "no-dependency"
    assert finding["what"] == "transformers and huggingface-hub are not installed"
    assert finding["message"] == "No module named 'transformers', 'huggingface_hub'"
    assert finding["command"] == "jetson-mamba install"
    # Where pip knows nothing of the mamba_ssm, an installer would put another beside it.
    shutil.rmtree(next(machine.site.glob("mamba_ssm-*.dist-info")))
    (finding,) = (each for each in machine.examine()["findings"] if not each["cured"])
    assert "pip install 'transformers<5' " in finding["command"]  # for this torch
    assert finding["command"].endswith(" huggingface-hub")
