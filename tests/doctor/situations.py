"""What a test does to a machine of its own, for the symptoms that people report."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sysconfig
from typing import Any

import pytest

from jetson_mamba.report.findings import SYMPTOMS
from tests.doctor.sandbox import Machine

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
