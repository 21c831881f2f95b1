"""The commands that findings advise: each works when it is typed on this machine."""

from __future__ import annotations

import os
import shlex
import sys

from jetson_mamba import advice
from jetson_mamba.releases import get_torch, together
from jetson_mamba.releases.versions import allows
from jetson_mamba.report import installed
from jetson_mamba.report.extensions import Extension
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.packages import MambaSsm

NOTHING = ""
# The extras of this package by the major version of CUDA, which pip finds nowhere by that name.
COMPILERS = {
    "12": "cuda-core 'cuda-bindings==12.*' nvidia-cuda-nvrtc-cu12",
    "13": "cuda-core 'cuda-bindings==13.*' 'nvidia-cuda-nvrtc==13.*'",
}


def install(*words: str) -> str:
    """The command that installs requirements, which are quoted where a shell needs it."""
    return f"{advice.pip()} install {' '.join(words)}"


def release(specifier: str) -> str:
    """The command that brings a release of mamba-ssm within bounds, if this Python has one."""
    here = sys.version_info[:2]
    for each in together.MAMBA_SSM:
        if allows(specifier, each) and together.cannot_be_imported(each, here) is None:
            return f"jetson-mamba install {shlex.quote(f'mamba-ssm{specifier}')}"
    return NOTHING


def uninstall(name: str) -> str:
    """The command that takes a distribution away."""
    yes = "--yes " if advice.pip().endswith("-m pip") else ""  # uv does not ask
    return f"{advice.pip()} uninstall {yes}{name}"


def torch(facts: Facts) -> str:
    """The command that brings the torch for this machine, or what one that is there lacks."""
    if facts.torch and facts.torch.error:
        return get_torch.instead_of_a_broken_one(facts.torch.error, facts.machine.jetpack)
    return get_torch.command(facts.machine.jetpack, again=facts.torch is not None)


def without(extension: Extension, facts: Facts) -> str:
    """The command that takes an extension away, which leaves its package working."""
    if extension.name == "selective_scan_cuda":
        version = facts.mamba.distribution if facts.mamba else None
        return f"jetson-mamba install mamba-ssm{f'=={version}' if version else ''}"
    return uninstall("causal-conv1d")


def compiled(facts: Facts, name: str) -> str:
    """The command that compiles an extension, where there is a compiler for it."""
    if not facts.machine.nvcc:
        return NOTHING
    return install("--no-build-isolation", "--no-deps", "--force-reinstall", name)


def compiler(facts: Facts) -> str | None:
    """The requirements that bring NVRTC for torch's CUDA; None where there are none."""
    major = ((facts.torch and facts.torch.cuda) or "").partition(".")[0]
    # Which cuda-core needs.
    return COMPILERS.get(major) if sys.version_info >= (3, 10) else None


def remove(mamba: MambaSsm, facts: Facts) -> str:
    """The command that takes one mamba_ssm of several off the path."""
    first = next(iter(installed.distributions("mamba-ssm", facts.path)), None)
    if first and first.folder == os.path.realpath(os.path.dirname(mamba.path)):
        return uninstall("mamba-ssm")
    return aside(mamba.path)


def aside(path: str) -> str:
    """The command that moves a file or folder out of the way."""
    return f"mv {shlex.quote(path)} {shlex.quote(path + '.aside')}"
