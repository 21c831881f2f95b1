"""A compiled extension that is not there or does not fit what is around it is found."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess

import pytest

from jetson_mamba.report.machine import ELF_MACHINES
from tests.doctor.sandbox import Machine, healthy
from tests.doctor.situations import (
    ENABLE,
    FOREIGN,
    compile_extension,
    compiler,
    uncured_then_cured,
    with_nvcc,
)


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


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import os; os.kill(os.getpid(), 11)", "ended with signal SIGSEGV"),
        ("import os; os.kill(os.getpid(), 40)", "ended with signal 40"),
        ("import os; os._exit(0)", "ended with exit status 0"),
        ("print('version 9'); raise SystemExit", "SystemExit: no message"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: no message"),
    ],
)
def test_an_extension_that_takes_its_process_with_it(
    code: str, told: str, machine: Machine
) -> None:
    healthy(machine)
    machine.extension("selective_scan_cuda", code)
    report = machine.examine(hook=True)
    (finding,) = report["findings"]
    assert finding["symptom"] == "extension-broken" and not finding["cured"]
    assert told in finding["what"]
    assert report["extensions"][1]["loads"], "the other extension is tried all the same"
