"""What is wrong with the backends of the ops, and with compiling this project's own kernels."""

from __future__ import annotations

import re
from typing import Iterator

from jetson_mamba import advice
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.registry import Cause, finds

# An error that was raised, or a machine that NVRTC or the driver does not serve; other reasons are
# limits of the kernels, such as the GPUs that they are made for.
FAULT = re.compile(r"^\w+: |does not compile for|cannot be loaded")


@finds("backends-broken", "no backend of an op works")
def _backends_broken(facts: Facts) -> Iterator[Cause]:
    if facts.backends_error:
        yield Cause(
            f"the ops cannot be tried: {facts.backends_error}",
            "an extension, torch, or this package does not work here",
            advice.again() or f"{advice.pip()} check",
        )


@finds("no-nvrtc", "NVRTC is not installed")
def _no_nvrtc(facts: Facts) -> Iterator[Cause]:
    reasons = [reason for reason in _kernels_do_not_run(facts) if "not installed" in reason]
    command = commands.compiler(facts)
    if reasons and command:
        yield Cause(
            f"the CUDA kernels cannot be compiled: {reasons[0]}",
            "they are compiled for the GPU at their first use, and PyTorch's functions, which are "
            "many times slower, run in their place",
            command,
        )


@finds("kernels-broken", "causal_conv1d or selective_scan: installed but not working: 'cuda'")
def _kernels_broken(facts: Facts) -> Iterator[Cause]:
    reasons = [reason for reason in _kernels_do_not_run(facts) if FAULT.search(reason)]
    if reasons and facts.torch and facts.torch.cuda:
        yield Cause(
            f"the CUDA kernels do not run: {reasons[0]}",
            f"the NVRTC or cuda-core that is installed does not fit the GPU, its driver, or torch "
            f"for CUDA {facts.torch.cuda}",
            commands.compiler(facts, "--upgrade"),
        )


@finds("backend-named", "the backend '…', asked for by JETSON_MAMBA_BACKEND, cannot serve")
def _backend_named(facts: Facts) -> Iterator[Cause]:
    for each in facts.selections:
        reasons = [row.reason for row in facts.unserved if row.op == each.op]
        if reasons and not any(row.op == each.op for row in facts.backends):
            yield Cause(
                f"every call of {each.op} fails: {each.asked_by} names the backend "
                f"'{each.backend}', which serves it on no device here",
                reasons[-1],
                f"unset {each.asked_by}",
            )
    if facts.selection_ignored:
        yield Cause(
            facts.selection_ignored,
            "it names an op or a backend that there is not",
            "unset JETSON_MAMBA_BACKEND",
        )


def _kernels_do_not_run(facts: Facts) -> list[str]:
    """Why calls on a GPU are not served by the project's kernels where nothing before them is."""
    passed = [
        each.reason
        for row in facts.backends
        if row.case["device"].startswith("cuda")
        for each in row.passed_over
        if each.backend == "cuda"
    ]
    named = {each.op for each in facts.selections if each.backend == "cuda"}
    return passed + [
        each.reason
        for each in facts.unserved
        if each.device.startswith("cuda") and each.op in named
    ]
