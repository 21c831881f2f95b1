"""Finds what is wrong with Triton, for this mamba_ssm on this GPU."""

from __future__ import annotations

import os
import shlex
from typing import Iterator

from jetson_mamba.releases import instead, together
from jetson_mamba.releases.versions import at_least
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.registry import Cause, finds
from jetson_mamba.report.packages import requires

PTXAS = "TRITON_PTXAS_BLACKWELL_PATH"


@finds("no-triton", "No module named 'triton'")
def _no_triton(facts: Facts) -> Iterator[Cause]:
    """Cured: whatever imports it is given what decorating a kernel takes, and the ops serve."""
    mamba, torch = facts.mamba, facts.torch
    if not mamba or not requires(mamba, "triton") or (facts.triton.path and not facts.triton_error):
        return
    there = facts.triton.path is not None
    command = commands.uninstall("triton") if there else commands.NOTHING
    if not there and torch and torch.cuda_available:
        command = "jetson-mamba install"  # which brings the one for this torch, if there is one
    yield Cause(
        f"mamba_ssm {mamba.version} imports triton, which "
        + (f"fails: {facts.triton_error}" if there else "is not installed"),
        "torch does not bring Triton on every platform; without it the operations of this package "
        "serve, with PyTorch",
        command,
        served=True,
    )


@finds("triton-old", "module 'triton' has no attribute 'set_allocator'")
def _an_old_triton(facts: Facts) -> Iterator[Cause]:
    mamba, triton = facts.mamba, facts.triton.version
    oldest = together.oldest_triton_for(mamba.version or "") if mamba else None
    if not mamba or not oldest or not triton or not facts.triton.path or at_least(triton, *oldest):
        return
    if mamba.asks.triton_2_only or oldest[0] < 3:
        return
    yield Cause(
        f"Triton {triton} is too old for mamba_ssm {mamba.version}",
        f"it needs {'.'.join(map(str, oldest))} or later; without its kernels the operations of "
        "this package serve, with PyTorch",
        f"jetson-mamba install mamba-ssm=={instead.known_release(triton)}",
        served=True,
    )


@finds("triton-launch", "ptxas fatal: Value 'sm_110a' is not defined")
def _a_triton_that_launches_nothing(facts: Facts) -> Iterator[Cause]:
    """On Thor, whose name the compiler inside Triton does not know."""
    reason = facts.triton_launch_error
    unknown = _does_not_know_this_gpu(facts)
    if not reason and not unknown:
        return
    command = commands.NOTHING
    if (unknown or "ptxas" in (reason or "")) and facts.machine.ptxas:
        command = f"export {PTXAS}={shlex.quote(facts.machine.ptxas)}"
    yield Cause(
        f"Triton {facts.triton.version} launches nothing on this GPU"
        + (f": {reason}" if reason else ""),
        "the ptxas inside Triton knows no sm_110a, and CUDA's own does"
        if unknown
        else "what its kernels would compute is computed with PyTorch, which is slower",
        command,
        served=True,
    )


def _does_not_know_this_gpu(facts: Facts) -> bool:
    triton = facts.triton.version or ""
    thor = any(gpu.capability == "11.0" for gpu in facts.machine.gpus)
    old = bool(facts.triton.path and triton) and not at_least(triton, 3, 7)
    return thor and old and not os.environ.get(PTXAS)


@finds("triton-log1p", "module 'triton.language.math' has no attribute 'log1p'")
def _triton_log1p(facts: Facts) -> Iterator[Cause]:
    if (
        facts.mamba
        and facts.mamba.asks.triton_2_only
        and facts.torch
        and facts.torch.cuda_available
        and (facts.triton.version or "").split(".")[0] not in ("", "2")
    ):
        yield Cause(
            f"the kernels of mamba_ssm {facts.mamba.version} do not compile with Triton "
            f"{facts.triton.version}",
            "they use tl.math.log1p, which Triton 3 does not have",
            commands.release(">=2.1.0"),
        )
