"""Finds what is wrong with the backends of the ops."""

from __future__ import annotations

import re
from typing import Iterator

from jetson_mamba import advice
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.extensions import stopping
from jetson_mamba.report.findings.registry import BUSY, NO_ANSWER, Cause, finds

# An error that was raised, or a machine that NVRTC or the driver does not serve; other reasons are
# limits of the kernels, such as the GPUs that they are made for.
FAULT = re.compile(r"^\w+: |does not compile for|cannot be loaded")


# Ways in which an op fails that is tried, by what is said, each with what is then wrong.
MEMORY = re.compile(r"out of memory|ALLOC_FAILED")
OWN_FILES = re.compile(r"(Import|ModuleNotFound|FileNotFound|Syntax)Error: .*jetson_mamba")
CRASH = re.compile(r"the process ended")
OF_THE_DEVICE = re.compile(r"CUDA|HIP|kernel image|driver")


@finds("backends-broken", "no backend of an op works")
def _backends_broken(facts: Facts) -> Iterator[Cause]:
    error = facts.backends_error
    if not error:
        return
    why, command = "nothing that is known; please report it: jetson-mamba doctor --report", ""
    extension = stopping(facts)
    if extension:
        why = f"{extension.name} ends or holds up whatever imports it"
        command = commands.without(extension, facts)
    elif MEMORY.search(error):
        why = "other programs have the memory; end one of them, and ask again"
    elif OWN_FILES.search(error):
        why, command = "files of this package are missing, or of two releases", advice.again() or ""
    elif CRASH.search(error):
        why = "a backend takes its process with it; PyTorch's needs nothing beside torch"
        command = "export JETSON_MAMBA_BACKEND=pytorch"
    elif OF_THE_DEVICE.search(error):
        why = "torch does not run on this GPU: it was built for others, or for another driver"
        command = commands.torch(facts)
    elif NO_ANSWER in error:
        why = BUSY
    yield Cause(f"the ops cannot be tried: {error}", why, command)


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
