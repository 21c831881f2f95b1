"""The doctor finds what keeps a backend from serving.

Ops that fail, kernels that do not compile, and backends that serve nothing here.
"""

from __future__ import annotations

import pytest
import torch

from jetson_mamba import advice
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler as compiler_of_kernels
from jetson_mamba.kernels import through_libraries, through_packages
from tests.doctor.sandbox import Machine, healthy
from tests.doctor.situations import on_a_board


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


def without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> str:
    """What the compiler says where NVRTC is neither a package nor a library."""

    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(through_packages, "import_module", missing)
    monkeypatch.setattr(through_libraries, "NVRTC_NAMES", {"": "libnvrtc-of-no-release.so"})
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(through_libraries, "_nvrtc", through_libraries._nvrtc.__wrapped__)
    with pytest.raises(Unavailable) as caught:
        compiler_of_kernels._find_first("version")
    return str(caught.value)


@pytest.mark.parametrize(("cuda", "extra"), [("12.6", "cuda12"), ("13.0", "cuda13")])
def test_kernels_that_cannot_be_compiled_for_want_of_a_package(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, cuda: str, extra: str
) -> None:
    healthy(machine)
    machine.torch_again(cuda=cuda)
    reason = without_nvrtc(monkeypatch)
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


def test_a_board_of_jetpack_5_gets_nvrtc_from_its_vendor(machine: Machine) -> None:
    """There is no cuda-core for CUDA 11.4, and the kernels do without it."""
    healthy(machine)
    machine.torch_again(cuda="11.4")
    on_a_board(machine, "NVIDIA Jetson Xavier NX", "35 (release), REVISION: 4.1")
    machine.append_to_torch(OP_ON_A_GPU.format(error="Unavailable('NVRTC is not installed')"))
    finding = machine.findings(hook=True)["no-nvrtc"]
    assert finding["command"] == advice.apt("cuda-nvrtc-11-4")


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
