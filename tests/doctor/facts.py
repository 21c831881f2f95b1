"""Facts of a machine on which nothing is wrong, and others of them, for the findings' tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from jetson_mamba.report.extensions import Extension
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import Finding, findings
from jetson_mamba.report.hook import Hook
from jetson_mamba.report.machine import Gpu, Machine, Python
from jetson_mamba.report.packages import MambaSsm, Package
from jetson_mamba.report.sources import Asks
from jetson_mamba.report.status import Backend, PassedOver
from jetson_mamba.report.torch_build import Torch

ORIN = Gpu("Orin", "8.7", None, "torch")
THOR = Gpu("Thor", "11.0", None, "torch")
SCAN = Extension("selective_scan_cuda", "/site/selective_scan_cuda.so", (), True, None, {})
CONVOLUTION = Extension("causal_conv1d_cuda", "/site/causal_conv1d_cuda.so", (), True, None, {})
ASKS = Asks(
    required={"triton": "mamba_ssm/ops/triton/ssd_combined.py"},
    missing=(),
    mentioned=frozenset({"selective_scan_cuda", "causal_conv1d.cpp_functions"}),
    calls={},
    bare_strides=False,
    generation_names=(),
    triton_2_only=False,
    scan_on_request=False,
    own_parameters=(),
)
MAMBA = MambaSsm("/site/mamba_ssm", "2.3.2.post1", True, "2.3.2.post1", (), (), ASKS)
TORCH = Torch("2.8.0", "/site/torch", "12.6", None, True, ("sm_87",), True, None)


NOT_THERE = {"path": None, "loads": False}
NO_CUDA = {"cuda": None, "cuda_available": False}
FAILS = {"loads": False, "error": "ImportError: undefined symbol: _ZN3c104"}
LIBRARY = {"loads": False, "error": "ImportError: libc10.so: cannot open shared object file"}
NO_BOARD, NEITHER = {"jetpack": None}, {"nvcc": None, "gpus": ()}
ON_THOR, FOR_THOR = {"gpus": (THOR,)}, {"architectures": ("sm_110",)}
BARE, LOG1P = {"bare_strides": True}, {"triton_2_only": True}
TAKES_8 = {"parameters": {"causal_conv1d_fwd": 8}}
CUDA = (Backend("ssd", {"device": "cuda:0"}, "pytorch", (PassedOver("cuda", "RuntimeError: x"),)),)


def of_a_healthy_machine(folder: Path) -> Facts:
    """A board with all that fits, the hook not active; ``folder`` is what is on its path."""
    (folder / "causal_conv1d").mkdir()
    (folder / "causal_conv1d" / "cpp_functions.py").touch()
    return Facts(
        machine=Machine(
            *("Linux", "aarch64", "Jetson AGX Orin", "36.4.3", "6.2", None, (ORIN,)),
            *("/cuda/bin/nvcc", "12.6"),
        ),
        python=Python("3.10.12", "/usr/bin/python3", "cpython-310-aarch64-linux-gnu", False),
        torch=TORCH,
        mamba_ssm=(MAMBA,),
        causal_conv1d=Package("causal_conv1d", "1.6.1", str(folder / "causal_conv1d"), ()),
        triton=Package("triton", "3.6.0", "/site/triton", ()),
        triton_error=None,
        triton_launch_error=None,
        transformers=Package("transformers", "4.57.6", str(folder / "transformers"), ()),
        einops=Package("einops", "0.8", "/site/einops", ()),
        extensions=(SCAN, CONVOLUTION),
        hook=Hook(False, "on", (), (), None, (), (), {}),
        backends=(),
        backends_error=None,
        selections=(),
        unserved=(),
        selection_ignored=None,
        trial_error=None,
        path=(str(folder),),
    )


def changed(facts: Facts, **changes: Any) -> Facts:
    """The facts with others of the parts that are named."""
    parts = {name: getattr(facts, name) for name in ("machine", "torch", "triton", "hook")}
    deep = {
        name: replace(parts[name], **changes.pop(f"{name}__"))
        for name in parts
        if f"{name}__" in changes
    }
    if "asks" in changes:
        asks = replace(ASKS, **changes.pop("asks"))
        changes["mamba_ssm"] = (replace(facts.mamba_ssm[0], asks=asks), *facts.mamba_ssm[1:])
    for place, name in enumerate(("scan", "convolution")):
        if name in changes:
            here = changes.get("extensions", facts.extensions)
            new = replace(here[place], **changes.pop(name))
            changes["extensions"] = (*here[:place], new, *here[place + 1 :])
    return replace(facts, **deep, **changes)


def symptoms(facts: Facts) -> set[str]:
    return {each.symptom for each in findings(facts)}


def the(symptom: str, facts: Facts) -> Finding:
    (found,) = (each for each in findings(facts) if each.symptom == symptom)
    assert found.what and found.why
    return found


def advised(finding: Finding) -> str:
    """The command of a finding; of a cured one, which has none, what may be done all the same."""
    assert not (finding.command if finding.cured else finding.option)
    return finding.option if finding.cured else finding.command


def served(facts: Facts) -> Facts:
    """With the hook active, so that a command is that against the cause."""
    return changed(facts, hook__={"active": True})
