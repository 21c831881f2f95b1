"""Each symptom that people report is found by its cause, with what mends it.

Where the hook gets around a cause, the finding says so as soon as the startup file is there.
"""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, Callable

import pytest

from jetson_mamba import advice
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler as compiler_of_kernels
from jetson_mamba.releases import get_torch
from jetson_mamba.report.findings import SYMPTOMS
from jetson_mamba.report.machine import ELF_MACHINES
from tests.doctor.sandbox import REPOSITORY, Machine, healthy

ENABLE = "jetson-mamba enable"
FOREIGN = "aarch64" if platform.machine() != "aarch64" else "x86_64"
compiler = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


def compile_extension(machine: Machine, name: str, code: str, *options: str) -> None:
    source = machine.folder / f"{name}.c"
    source.write_text(code)
    target = machine.site / (name + str(sysconfig.get_config_var("EXT_SUFFIX")))
    target.with_name(f"{name}.py").unlink(missing_ok=True)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", str(source), "-o", str(target), *options], check=True
    )


def uncured_then_cured(machine: Machine, symptom: str, command: str) -> dict[str, Any]:
    """The finding: without the hook `enable` mends it; with it nothing has to be done, and
    ``command`` would remove the cause.
    """
    finding = machine.findings()[symptom]
    assert (finding["command"], finding["cured"]) == (ENABLE, False)
    assert finding["message"] == SYMPTOMS[symptom]
    (cured,) = (each for each in machine.findings_if_served if each["symptom"] == symptom)
    assert cured["cured"] and cured["command"] == "", cured
    assert command in cured["option"] if command else cured["option"] == ""
    assert (cured["what"], cured["why"]) == (finding["what"], finding["why"])
    return finding


def test_there_is_a_test_for_each_symptom() -> None:
    text = Path(__file__).read_text()
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


def test_a_machine_with_nothing_on_it_lacks_torch(machine: Machine) -> None:
    report = machine.examine()
    (finding,) = report["findings"]
    assert (finding["symptom"], finding["cured"]) == ("no-torch", False)
    assert finding["command"] == f"{sys.executable} -m pip install torch"
    assert report["torch"] is None and report["mamba_ssm"] == []


def with_nvcc(machine: Machine) -> None:
    """Put the CUDA compiler where it is looked for, and one of C++ on the path."""
    (machine.folder / "bin" / "c++").touch(mode=0o755)
    nvcc = machine.root / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.68'\n")
    nvcc.chmod(0o755)


def on_a_board(machine: Machine, model: str, release: str = "36 (release), REVISION: 4.3") -> None:
    """Lay down the files by which a board is known."""
    for path, text in (
        ("etc/nv_tegra_release", f"# R{release}"),
        ("proc/device-tree/model", model),
    ):
        (machine.root / path).parent.mkdir(parents=True, exist_ok=True)
        (machine.root / path).write_text(text)


@compiler
def test_an_extension_built_for_another_torch(machine: Machine) -> None:
    healthy(machine)
    code = "void _ZN3c105ErrorC2Ev(void); void *PyInit_selective_scan_cuda(void)"
    code += "{ _ZN3c105ErrorC2Ev(); return 0; }"
    compile_extension(machine, "selective_scan_cuda", code)
    finding = uncured_then_cured(machine, "undefined-symbol", "install mamba-ssm==2.3.2.post1")
    assert "undefined symbol: _ZN3c105ErrorC2Ev" in finding["what"]
    assert "2.5.0" in finding["why"]


def test_an_extension_of_causal_conv1d_built_for_another_torch(machine: Machine) -> None:
    healthy(machine)
    machine.extension(
        "causal_conv1d_cuda", "raise ImportError('/x.so: undefined symbol: _ZN3c104cuda')"
    )
    uncured_then_cured(machine, "undefined-symbol", "pip uninstall --yes causal-conv1d")
    assert "none-called" in machine.findings()


def test_mamba_ssm_without_its_extension(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "selective_scan_cuda.py").unlink()
    finding = uncured_then_cured(machine, "no-selective-scan", "")
    assert finding["what"].startswith("mamba_ssm 2.3.2.post1 imports selective_scan_cuda")
    with_nvcc(machine)
    uncured_then_cured(machine, "no-selective-scan", "--force-reinstall mamba-ssm==2.3.2.post1")
    (cured,) = (
        each for each in machine.findings_if_served if each["symptom"] == "no-selective-scan"
    )
    assert cured["compiles"] and "MAMBA_KEEP_CUDA_BUILD=TRUE" in cured["option"]


@pytest.mark.parametrize("reason", ["no CUDA in torch", "another CUDA", "no C++ compiler"])
def test_compiling_is_offered_only_where_it_can_work(machine: Machine, reason: str) -> None:
    """Beside a torch without CUDA upstream's setup sees no nvcc: `bare_metal_version`."""
    healthy(machine)
    (machine.site / "selective_scan_cuda.py").unlink()
    with_nvcc(machine)
    if reason == "no CUDA in torch":
        machine.torch_again(cuda=None, available=False, architectures="")
    elif reason == "another CUDA":
        machine.torch_again(cuda="13.0")
    else:
        machine.environment["CXX"] = "no-such-compiler"
    uncured_then_cured(machine, "no-selective-scan", "")


def test_a_release_without_sources_is_not_offered_to_be_compiled(machine: Machine) -> None:
    healthy(machine, "2.2.4")
    (machine.site / "selective_scan_cuda.py").unlink()
    with_nvcc(machine)
    uncured_then_cured(machine, "no-selective-scan", "")


def test_a_mamba_ssm_that_leaves_its_extension_out_unless_it_is_told(machine: Machine) -> None:
    """As upstream's main of July 2026 does."""
    healthy(machine)
    (machine.site / "selective_scan_cuda.py").unlink()
    written_anew(
        machine,
        "try:\n    import selective_scan_cuda\n"
        "except ImportError:\n    selective_scan_cuda = None\n"
        "HOW = 'reinstall with MAMBA_KEEP_CUDA_BUILD=TRUE'\n",
    )
    finding = machine.findings()["no-selective-scan"]
    assert finding["why"].endswith("unless MAMBA_KEEP_CUDA_BUILD=TRUE is set")


def written_anew(machine: Machine, scan: str) -> None:
    """A mamba_ssm of which only the interface of the scan is another than the release's."""
    folder = (machine.site / "mamba_ssm").resolve()
    (machine.site / "mamba_ssm").unlink()
    shutil.copytree(folder, machine.site / "mamba_ssm")
    (machine.site / "mamba_ssm" / "ops" / "selective_scan_interface.py").write_text(scan)


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


def test_a_torch_that_was_not_built_for_the_gpu(machine: Machine) -> None:
    healthy(machine)
    machine.torch_again(architectures="sm_72 sm_90 compute_90")
    on_a_board(machine, "NVIDIA Jetson AGX Orin Developer Kit")
    finding = machine.findings(hook=True)["no-kernel-image"]
    assert not finding["cured"]
    assert "capability 8.7" in finding["what"] and "sm_72, sm_90" in finding["why"]
    assert finding["command"] == get_torch.command("6.x", again=True)


def test_an_extension_that_was_not_built_for_the_gpu(machine: Machine) -> None:
    """It imports, and its first launch fails; the ops have found that out."""
    machine.real_torch()
    machine.mamba_ssm("2.3.2.post1")
    machine.extension(
        "selective_scan_cuda",
        """
        def fwd(*args):
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device"
            )
        bwd = fwd
        """,
    )
    finding = machine.findings()["no-kernel-image"]
    assert (finding["command"], finding["cured"]) == (ENABLE, False)
    assert "selective_scan_cuda has no kernels for" in finding["what"]


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


def test_functions_that_are_none_without_causal_conv1d(machine: Machine) -> None:
    healthy(machine)
    for each in ("causal_conv1d", "causal_conv1d-1.6.1.dist-info"):
        shutil.rmtree(machine.site / each)
    (machine.site / "causal_conv1d_cuda.py").unlink()
    with_nvcc(machine)
    finding = uncured_then_cured(machine, "none-called", "--force-reinstall causal-conv1d")
    assert finding["why"] == "causal_conv1d is not installed"


def test_functions_that_are_none_beside_an_older_causal_conv1d(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "causal_conv1d" / "cpp_functions.py").unlink()
    finding = uncured_then_cured(machine, "none-called", "")
    assert "has no cpp_functions" in finding["why"]


@pytest.mark.parametrize("cuda", ["12.6", None])
def test_extensions_on_a_machine_whose_torch_sees_no_gpu(
    machine: Machine, cuda: str | None
) -> None:
    healthy(machine)
    machine.torch_again(cuda=cuda, available=False, architectures="")
    finding = uncured_then_cured(machine, "no-gpu", "install mamba-ssm==2.3.2.post1")
    assert ("sees no GPU" in finding["why"]) == (cuda is not None)


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


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.kill(os.getpid(), 11)",
        "raise SystemExit('out of order')",
        "raise Failed('a block of Mamba on the GPU fails: RuntimeError: out of order')",
    ],
)
def test_a_block_that_fails_for_a_reason_that_nobody_knows(machine: Machine, code: str) -> None:
    healthy(machine)
    machine.append_to_torch(f"def run():\n    Failed = trial.Failed\n    {code}\ntrial.run = run\n")
    report = machine.examine(hook=True)
    (finding,) = report["findings"]
    assert (finding["symptom"], finding["cured"]) == ("block-fails", False)
    assert "out of order" in finding["what"] or "signal SIGSEGV" in finding["what"]
    assert report["trial_error"] in finding["what"]


@pytest.mark.parametrize("version", ["2.0.3", "2.2.4"])
def test_releases_that_do_not_even_out_strides(machine: Machine, version: str) -> None:
    healthy(machine, version)
    uncured_then_cured(machine, "strides", "install 'mamba-ssm>=2.2.5'")


def test_causal_conv1d_without_its_extension(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "causal_conv1d_cuda.py").unlink()
    uncured_then_cured(machine, "no-causal-conv1d", "pip uninstall --yes causal-conv1d")


def test_a_release_that_cannot_do_without_causal_conv1d(machine: Machine) -> None:
    machine.torch()
    machine.dependencies()
    machine.mamba_ssm("1.1.4")
    machine.extension("selective_scan_cuda")
    uncured_then_cured(machine, "no-causal-conv1d", "")


def test_an_extension_for_another_architecture(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "selective_scan_cuda.py").unlink()
    number = next(number for number, name in ELF_MACHINES.items() if name == FOREIGN)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, number) + bytes(44)
    (machine.site / f"selective_scan_cuda.cpython-310-{FOREIGN}-linux-gnu.so").write_bytes(header)
    finding = uncured_then_cured(machine, "other-platform", "install mamba-ssm==2.3.2.post1")
    assert f"built for {FOREIGN}, this is {platform.machine()}" in finding["what"]


def test_a_wheel_whose_tags_are_of_another_platform(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "causal_conv1d_cuda.py").unlink()
    shutil.rmtree(machine.site / "causal_conv1d-1.6.1.dist-info")
    machine.record("causal_conv1d", "1.6.1", f"cp310-cp310-linux_{FOREIGN}")
    finding = uncured_then_cured(machine, "other-platform", "uninstall --yes causal-conv1d")
    assert f"linux_{FOREIGN}" in finding["what"]


@compiler
def test_an_extension_whose_torch_is_not_installed(machine: Machine) -> None:
    healthy(machine)
    for each in ("torch", "torch-1.0.dist-info"):
        shutil.rmtree(machine.site / each)
    library = machine.folder / "libc10.so"
    (machine.folder / "c10.c").write_text("int c10(void) { return 0; }")
    subprocess.run(
        ["gcc", "-shared", "-fPIC", str(machine.folder / "c10.c"), "-o", str(library)], check=True
    )
    code = "int c10(void); void *PyInit_selective_scan_cuda(void) { c10(); return 0; }"
    compile_extension(machine, "selective_scan_cuda", code, str(library), "-Wl,-soname,x")
    library.unlink()
    finding = machine.findings(hook=True)["missing-library"]
    assert not finding["cured"]
    assert "libc10.so" in finding["what"]
    assert finding["command"].endswith("torch")


def test_an_extension_for_another_cuda(machine: Machine) -> None:
    healthy(machine)
    machine.extension(
        "selective_scan_cuda",
        "raise ImportError('libcudart.so.11.0: cannot open shared object file: No such file')",
    )
    finding = uncured_then_cured(machine, "missing-library", "install mamba-ssm==2.3.2.post1")
    assert "for CUDA 12.6" in finding["why"]


def test_a_transformers_without_the_names(machine: Machine) -> None:
    healthy(machine, "2.2.5")
    (machine.site / "transformers" / "generation" / "__init__.py").write_text("TextStreamer = 1\n")
    finding = uncured_then_cured(machine, "transformers-names", "mamba-ssm>=2.3.0")
    assert "GreedySearchDecoderOnlyOutput, SampleDecoderOnlyOutput" in finding["what"]


def test_kernels_for_triton_2_beside_triton_3(machine: Machine) -> None:
    healthy(machine, "2.0.4")
    assert "triton-log1p" in machine.findings()
    shutil.rmtree(machine.site / "triton-3.6.0.dist-info")
    machine.record("triton", "2.3.1")
    assert "triton-log1p" not in machine.findings()


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


def test_a_torch_that_raises(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "torch" / "__init__.py").write_text("raise ImportError('libcudnn.so.8')\n")
    finding = machine.findings()["torch-broken"]
    assert "ImportError: libcudnn.so.8" in finding["what"]


def test_an_extension_that_takes_its_process_with_it(machine: Machine) -> None:
    healthy(machine)
    machine.extension("selective_scan_cuda", "import os; os.kill(os.getpid(), 11)")
    report = machine.examine()
    (finding,) = report["findings"]
    assert finding["symptom"] == "extension-broken"
    assert "ended with signal SIGSEGV" in finding["what"]
    assert report["extensions"][1]["loads"], "the other extension is tried all the same"


def test_a_torch_that_takes_its_process_with_it(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "torch" / "__init__.py").write_text("import os; os.kill(os.getpid(), 6)\n")
    finding = machine.findings()["torch-broken"]
    assert "signal SIGABRT" in finding["what"]


def test_ops_that_fail(machine: Machine) -> None:
    healthy(machine)
    with (machine.site / "torch" / "__init__.py").open("a") as file:
        file.write("def fail(*args, **keywords): raise RuntimeError('out of order')\n")
        file.write("ops.causal_conv1d_fn = fail\n")
    assert "out of order" in machine.findings()["backends-broken"]["what"]


# A GPU on which an op finds the project's kernels wanting and takes PyTorch's functions.
OP_ON_A_GPU = """
import os
from typing import NamedTuple

ops.__path__ = [os.path.join(os.path.dirname(jetson_mamba.__file__), "ops")]
from jetson_mamba import advice
from jetson_mamba.errors import Unavailable
from jetson_mamba.dispatch.backends import Op


class Case(NamedTuple):
    device: str


def load(case):
    raise {error}


package = types.ModuleType("backends")
package.__path__ = []
package.cuda = types.SimpleNamespace(load=load)
package.pytorch = types.SimpleNamespace(load=lambda case: case)
sys.modules.update({{"backends": package, "backends.cuda": package.cuda}})
sys.modules["backends.pytorch"] = package.pytorch
module = sys.modules["jetson_mamba.ops.selective_scan"] = types.ModuleType("selective_scan")
module.OP = Op("selective_scan", "backends", ("cuda", "pytorch"), lambda *_: None)
ops.selective_scan_fn = lambda *_: module.OP.implementation(Case("cuda:0"))
"""


def without_nvidias_packages(monkeypatch: pytest.MonkeyPatch, ask: Callable[[], object]) -> str:
    """What the compiler says where neither cuda-core nor NVRTC can be imported."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(compiler_of_kernels, "import_module", missing)
    with pytest.raises(Unavailable) as caught:
        ask()
    return str(caught.value)


@pytest.mark.parametrize(("cuda", "extra"), [("12.6", "cuda12"), ("13.0", "cuda13")])
@pytest.mark.parametrize("ask", [compiler_of_kernels._cuda_core, compiler_of_kernels._nvrtc])
def test_kernels_that_cannot_be_compiled_for_want_of_a_package(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[], object],
    cuda: str,
    extra: str,
) -> None:
    healthy(machine)
    machine.torch_again(cuda=cuda)
    reason = without_nvidias_packages(monkeypatch, ask)
    assert "not installed" in reason
    machine.append_to_torch(OP_ON_A_GPU.format(error=f"Unavailable({reason!r})"))
    finding = machine.findings(hook=True)["no-nvrtc"]
    assert finding["command"] == advice.extra(extra)
    assert finding["what"] == f"the CUDA kernels cannot be compiled: {reason}"
    assert not finding["cured"]


def test_kernels_that_do_not_compile(machine: Machine) -> None:
    healthy(machine)
    machine.append_to_torch(OP_ON_A_GPU.format(error="RuntimeError('no such instruction')"))
    found = machine.findings(hook=True)
    assert list(found) == ["kernels-broken"]
    finding = found["kernels-broken"]
    assert "RuntimeError: no such instruction" in finding["what"]
    assert finding["command"].endswith(
        "pip install --upgrade 'cuda-bindings==12.*' cuda-core nvidia-cuda-nvrtc-cu12"
    )


def test_no_extra_is_named_for_a_cuda_that_has_none(machine: Machine) -> None:
    """JetPack 5 has CUDA 11.4, for which there is no cuda-core."""
    healthy(machine)
    machine.torch_again(cuda="11.4")
    machine.append_to_torch(OP_ON_A_GPU.format(error="Unavailable('NVRTC is not installed')"))
    report = machine.examine(hook=True)
    assert report["findings"] == []
    (row,) = report["backends"]
    assert row["passed_over"] == [{"backend": "cuda", "reason": "NVRTC is not installed"}]


def test_a_backend_that_is_named_and_serves_nothing_here(machine: Machine) -> None:
    machine.real_torch()
    machine.environment["JETSON_MAMBA_BACKEND"] = "causal_conv1d=extension,ssd=pytorch"
    report = machine.examine(hook=True)
    (finding,) = (each for each in report["findings"] if each["symptom"] == "backend-named")
    assert (finding["command"], finding["cured"]) == ("unset JETSON_MAMBA_BACKEND", False)
    assert "every call of causal_conv1d fails" in finding["what"]
    assert finding["why"] == "causal_conv1d_cuda is not installed"
    named = [(each["op"], each["backend"], each["asked_by"]) for each in report["selections"]]
    assert named == [
        ("causal_conv1d", "extension", "JETSON_MAMBA_BACKEND"),
        ("ssd", "pytorch", "JETSON_MAMBA_BACKEND"),
    ]
    assert report["backends_error"] is None
    assert {each["op"] for each in report["unserved"]} == {"causal_conv1d"}


def test_a_backend_that_is_named_and_there_is_not(machine: Machine) -> None:
    machine.real_torch()
    machine.environment["JETSON_MAMBA_BACKEND"] = "fastest"
    report = machine.examine(hook=True)
    (finding,) = (each for each in report["findings"] if each["symptom"] == "backend-named")
    assert "JETSON_MAMBA_BACKEND=fastest: expected one of package, " in finding["what"]
    assert report["selections"] == [] and report["unserved"] == []
    assert {each["op"] for each in report["backends"]} >= {"causal_conv1d", "selective_scan"}


def test_a_text_that_is_not_understood(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "mamba_ssm").unlink()
    shutil.copytree(REPOSITORY / "jetson_mamba" / "hook" / "stand_in", machine.site / "mamba_ssm")
    (machine.site / "mamba_ssm" / "ops").mkdir()
    (machine.site / "mamba_ssm" / "ops" / "selective_scan_interface.py").write_text(
        "import causal_conv1d_cuda\ndef f(x):\n    return causal_conv1d_cuda.causal_conv1d_fwd(x)\n"
    )
    report = machine.examine(hook=True)
    (finding,) = (each for each in report["findings"] if each["symptom"] == "copy-refused")
    assert "selective_scan_interface stays as it is installed" in finding["what"]
    assert finding["command"] == "export JETSON_MAMBA=off"  # pip knows of no release to replace
    assert str(machine.site / "mamba_ssm" / "ops") in finding["why"]
    assert "mamba_ssm.ops.selective_scan_interface" in report["hook"]["refused"]


def test_a_hook_that_another_finder_goes_before(machine: Machine) -> None:
    healthy(machine)
    code = (
        "import sys\n"
        "from importlib.machinery import ModuleSpec\n"
        "class Other:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        return ModuleSpec(name, None) if name.startswith('mamba_ssm.') else None\n"
        "sys.meta_path.insert(0, Other())\n"
    )
    report = machine.examine(hook=True, first=code)
    assert report["hook"]["taken_by"] == "__main__.Other"
    assert report["hook"]["finders"][:2] == ["__main__.Other", "jetson_mamba.finder.Finder"]
    assert [each["symptom"] for each in report["findings"]] == ["bypassed"]


def test_a_target_that_was_imported_before_the_hook(machine: Machine) -> None:
    healthy(machine)
    name = "mamba_ssm.ops.selective_scan_interface"
    first = f"import sys, types; sys.modules['{name}'] = types.ModuleType('{name}')\n"
    report = machine.examine(first="import jetson_mamba\n" + first)
    assert report["hook"]["too_late"] == [name]
    (finding,) = report["findings"]
    assert (finding["symptom"], finding["cured"]) == ("bypassed", False)


def test_a_hook_that_is_switched_off(machine: Machine) -> None:
    healthy(machine)
    (machine.site / "selective_scan_cuda.py").unlink()
    machine.environment["JETSON_MAMBA"] = "off"
    report = machine.examine(hook=True)
    assert report["hook"]["mode"] == "off" and not report["hook"]["active"]
    (finding,) = report["findings"]
    assert (finding["command"], finding["cured"]) == ("unset JETSON_MAMBA", False)
