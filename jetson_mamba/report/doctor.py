"""Everything that ``jetson-mamba doctor`` finds out, put together; ``findings`` judges it.

What needs torch is asked of a process of its own, and only where torch is there; nothing here
imports torch, mamba_ssm or an extension.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jetson_mamba.report import extensions as compiled
from jetson_mamba.report import installed, packages
from jetson_mamba.report.envelope import envelope
from jetson_mamba.report.facts import Compiler, Facts, Unserved
from jetson_mamba.report.findings import Finding, findings
from jetson_mamba.report.hook import hook
from jetson_mamba.report.machine import machine, python
from jetson_mamba.report.probe import probe
from jetson_mamba.report.status import Backend, PassedOver, Selected
from jetson_mamba.report.torch_build import Torch, torch_and_gpus
from jetson_mamba.report.upstream import UpstreamFault, faults


@dataclass(frozen=True)
class Report:
    """What is here, what is wrong with it, and what upstream's own text has wrong."""

    facts: Facts
    findings: tuple[Finding, ...]
    upstream_faults: tuple[UpstreamFault, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The report as a document."""
        facts = dataclasses.asdict(self.facts)
        for each in facts["mamba_ssm"]:
            del each["asks"]
        found = [dataclasses.asdict(each) for each in self.findings]
        own = [dataclasses.asdict(each) for each in self.upstream_faults]
        return envelope("doctor", {**facts, "findings": found, "upstream_faults": own})


def examine(root: str = "/") -> Report:
    """The report on this machine; ``root`` is the top of its file system."""
    path = installed.search_path()
    here = machine(root)
    mambas = packages.mamba_ssm(path)
    known = {
        name: packages.package(name, path)
        for name in ("torch", "triton", "transformers", "einops", "causal_conv1d")
    }
    names = [name for name in compiled.NAMES if compiled.path_of(name, path)]
    where = known["torch"].path
    probed: dict[str, dict[str, Any]] = {}
    if where or names:
        tried = [*names, *(["triton"] if known["triton"].path else [])]
        if where:
            tried.append("compiler")
        if where and mambas:
            tried.append("trial")
        probed = probe(path, tried)
    torch: Torch | None = None
    if where:
        torch, gpus = torch_and_gpus(where, known["torch"].version, probed)
        if gpus:
            here = dataclasses.replace(here, gpus=gpus)
    ops = probed.get("ops", {})
    facts = Facts(
        machine=here,
        python=python(),
        torch=torch,
        mamba_ssm=mambas,
        causal_conv1d=known["causal_conv1d"],
        triton=known["triton"],
        triton_error=probed.get("triton", {}).get("error"),
        triton_launch_error=ops.get("triton_launch"),
        transformers=known["transformers"],
        einops=known["einops"],
        extensions=tuple(
            compiled.extension(name, path, probed.get(name)) for name in compiled.NAMES
        ),
        hook=hook(mambas[0].path if mambas else None),
        backends=tuple(
            Backend(
                each["op"],
                each["case"],
                each["backend"],
                tuple(PassedOver(**passed) for passed in each["passed_over"]),
            )
            for each in ops.get("backends", ())
        ),
        backends_error=ops.get("error") if torch and not torch.error else None,
        selections=tuple(Selected(**each) for each in ops.get("selections", ())),
        unserved=tuple(Unserved(**each) for each in ops.get("unserved", ())),
        selection_ignored=ops.get("ignored"),
        trial_error=probed.get("trial", {}).get("error"),
        path=tuple(path),
        compiler=_compiler(probed.get("compiler")),
    )
    own = faults(mambas[0].path) if mambas else ()
    return Report(facts, findings(facts), own)


def _compiler(told: dict[str, Any] | None) -> Compiler | None:
    if told is None:
        return None
    reason = told.get("reason") or told.get("error")
    return Compiler(told.get("nvrtc"), told.get("cuda_core"), reason)
