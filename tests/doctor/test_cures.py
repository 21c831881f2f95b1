"""The commands that the doctor advises, typed in the situation in which it does: each mends it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Callable

import pytest

from tests import interpreters
from tests.cli.command import REPOSITORY
from tests.cli.test_install import BLOCKS, Environment

# What the doctor asks of a torch, besides what a block does: its build, its devices, ops that
# record nothing.
ASKED = """
import sys, types

class Anything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self
    __call__ = __getitem__ = __neg__ = lambda self, *_, **__: self

class _C:
    pass
cuda.is_initialized = staticmethod(bool)
cuda.device_count = staticmethod(int)
ones = Anything()
if any("probe.main" in each for each in sys.orig_argv):
    import jetson_mamba
    ops = types.ModuleType("jetson_mamba.ops")
    ops.causal_conv1d_fn = ops.selective_scan_fn = ops.triton_runs_on = Anything()
    sys.modules["jetson_mamba.ops"] = ops
"""
pytestmark = pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.orig_argv")


class Patient(Environment):
    """An environment with a doctor, in which the hook is active as its startup file makes it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name, version in (("einops", "1.0"), ("transformers", "4.57.6")):
            self.have(name, version)
        assert self.command("enable").returncode == 0

    def torch(self, version: str, cuda: str | None = None, finite: bool = True) -> None:
        """As the installer's, and one that the doctor can ask."""
        super().torch(version, cuda, finite)
        with (self.site / "torch" / "__init__.py").open("a") as file:
            file.write(ASKED)

    def have(self, name: str, version: str) -> None:
        """A wheel of the index, as pip unpacks it."""
        with zipfile.ZipFile(self.index.folder / f"{name}-{version}-py3-none-any.whl") as wheel:
            wheel.extractall(self.site)

    def lack(self, name: str) -> None:
        """Nothing of a package."""
        for path in self.site.glob(f"{name}*"):
            shutil.rmtree(path)

    def mamba_ssm(self, version: str, text: str = "import einops, transformers\n") -> None:
        """A release as the installer leaves it, with more text."""
        self.record("mamba_ssm", version)
        code = BLOCKS.format(version=version, body="import transformers")
        self.put("mamba_ssm", "__init__.py", code + text)

    def put(self, package: str, name: str, text: str) -> None:
        """One more file of a package, which pip knows."""
        path = self.site / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        with next(self.site.glob(f"{package}-*")).joinpath("RECORD").open("a") as record:
            record.write(f"{package}/{name},,\n")

    def findings(self) -> dict[str, dict[str, Any]]:
        """What the doctor finds, by symptom."""
        done = self.command("doctor", "--json")
        assert done.returncode in (0, 1), done.stderr
        return {each["symptom"]: each for each in json.loads(done.stdout)["findings"]}

    def typed(self, command: str) -> None:
        """What a shell does with a command, and is then; what it asks is agreed to."""
        variables = self.folder / "variables"
        done = subprocess.run(
            ["sh", "-c", f"{command}\ncode=$?; env -0 > {variables}; exit $code"],
            env=self.environment,
            cwd=self.folder,
            input="y\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        told = variables.read_text().split("\0")
        self.environment = dict(each.split("=", 1) for each in told if each)


def without_mamba_ssm(patient: Patient) -> None:
    """Nothing else is done."""


def without_einops(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1")
    patient.lack("einops")


def without_einops_or_record(patient: Patient) -> None:
    """A mamba_ssm on the path as it lies."""
    (patient.site / "mamba_ssm").mkdir()
    code = BLOCKS.format(version="2.3.2.post1", body="import transformers")
    (patient.site / "mamba_ssm" / "__init__.py").write_text(code)
    patient.lack("einops")


def beside_transformers_5(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1")
    patient.lack("transformers")
    patient.have("transformers", "5.24.0")
    text = '"PyTorch >= 2.6 is required but found"\n'
    patient.put("transformers", "utils/import_utils.py", text)


def without_a_file(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1", "from mamba_ssm.ops import gone\n")


def whose_block_fails(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1", "class Mamba(Mamba):\n    def __init__(self): pass\n")


def with_a_stray_extension(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1")
    (patient.site / "selective_scan_cuda.py").write_text("import os; os._exit(1)\n")


def with_a_convolution_that_ends_the_process(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1")
    patient.record("causal_conv1d", "1.6.1")
    (patient.site / "causal_conv1d_cuda.py").write_text("raise SystemExit\n")
    record = next(patient.site.glob("causal_conv1d-*")) / "RECORD"
    record.write_text("causal_conv1d_cuda.py,,\n")


def whose_extension_does_not_load(patient: Patient) -> None:
    """The hook gets around it, where it is active."""
    patient.mamba_ssm("2.3.2.post1")
    text = "raise ImportError('undefined symbol: _ZN3c105ErrorC1Ev')\n"
    (patient.site / "selective_scan_cuda.py").write_text(text)


def without_the_startup_file(patient: Patient) -> None:
    whose_extension_does_not_load(patient)
    (patient.site / "jetson_mamba.pth").unlink()


def with_the_hook_switched_off(patient: Patient) -> None:
    whose_extension_does_not_load(patient)
    patient.environment["JETSON_MAMBA"] = "off"


def for_another_major_release(patient: Patient) -> None:
    """A program for mamba-ssm 1 beside 2."""
    patient.index.mamba_ssm("1.2.2", BLOCKS.format(version="1.2.2", body="pass"))
    patient.mamba_ssm("2.2.4")
    patient.put("mamba_ssm", "modules/mamba_simple.py", "class Mamba: pass\n")
    text = "from mamba_ssm.modules.mamba_simple import Block\n"
    (patient.folder / "program.py").write_text(text)


def that_hides_another(patient: Patient) -> None:
    patient.mamba_ssm("2.3.2.post1")
    other = patient.folder / "other"
    shutil.copytree(patient.site / "mamba_ssm", other / "mamba_ssm")
    (patient.site / "other.pth").write_text(f"{other}\n")


def hidden_by_another(patient: Patient) -> None:
    that_hides_another(patient)
    patient.environment["PYTHONPATH"] += f":{patient.folder / 'other'}"


SITUATIONS: dict[Callable[[Patient], None], tuple[str, str]] = {
    without_mamba_ssm: ("no-mamba-ssm", "jetson-mamba install"),
    without_einops: ("no-dependency", "jetson-mamba install"),
    without_einops_or_record: ("no-dependency", "-m pip install einops"),
    beside_transformers_5: ("transformers-torch", "-m pip install 'transformers<5'"),
    without_a_file: ("incomplete-release", "jetson-mamba install"),
    whose_block_fails: ("block-fails", "jetson-mamba install"),
    with_a_stray_extension: ("extension-broken", "mv "),
    with_a_convolution_that_ends_the_process: ("extension-broken", "-m pip uninstall --yes causal"),
    without_the_startup_file: ("undefined-symbol", "jetson-mamba enable"),
    with_the_hook_switched_off: ("undefined-symbol", "unset JETSON_MAMBA"),
    for_another_major_release: ("name-moved", "jetson-mamba install 'mamba-ssm<2'"),
    that_hides_another: ("two-mamba-ssm", "mv "),
    hidden_by_another: ("two-mamba-ssm", "-m pip uninstall --yes mamba-ssm"),
}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_what_is_advised_mends_what_was_found(
    situation: Callable[[Patient], None], tmp_path: Path
) -> None:
    symptom, words = SITUATIONS[situation]
    patient = Patient(tmp_path)
    situation(patient)
    found = patient.findings()
    assert symptom in found, found
    assert not found[symptom]["cured"] and words in found[symptom]["command"]
    patient.typed(found[symptom]["command"])
    assert [each for each in patient.findings().values() if not each["cured"]] == []


def test_a_variable_leaves_out_a_backend_that_ends_the_process(tmp_path: Path) -> None:
    """With the real ops and the torch of these tests: another order of backends helps."""
    (tmp_path / "selective_scan_cuda.py").write_text("import os; os._exit(9)\n")
    code = (
        "import torch, jetson_mamba\nfrom jetson_mamba.ops import selective_scan_fn\n"
        "x = torch.ones(1, 8, 4); B = torch.ones(1, 2, 4)\n"
        "print(selective_scan_fn(x, x, -torch.ones(8, 2), B, B).shape)\n"
    )
    path = f"{tmp_path}{os.pathsep}{REPOSITORY}"

    def run(**variables: str) -> int:
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
        return interpreters.run(["-c", code], env=environment).returncode

    assert (run(), run(JETSON_MAMBA_BACKEND="pytorch")) == (9, 0)
