"""The commands that findings advise: each works when it is typed on this machine."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from importlib import metadata

from jetson_mamba import advice
from jetson_mamba.releases import get_torch, together
from jetson_mamba.releases.versions import allows, at_least
from jetson_mamba.report import installed
from jetson_mamba.report.extensions import Extension
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.packages import MambaSsm

NOTHING = ""
# Of JetPack 5's own archive: a board with all of it lists the package (the page on disk usage of
# NVIDIA-AI-IOT/jetson-min-disk), and l4t-base 35.4, which has no CUDA, takes it from there.
NVRTC_OF_JETPACK_5 = "cuda-nvrtc-11-4"


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
    return advice.uninstall(name)


def torch(facts: Facts) -> str:
    """The command that brings the torch for this machine, or what one that is there lacks."""
    if facts.torch and facts.torch.error:
        return get_torch.instead_of_a_broken_one(facts.torch.error, facts.machine.jetpack)
    return get_torch.command(facts.machine.jetpack, again=facts.torch is not None)


def without(extension: Extension, facts: Facts) -> str:
    """The command that takes an extension away, which leaves its package working.

    A file that pip does not know as the package's stays whatever pip does, and is moved.
    """
    scan = extension.name == "selective_scan_cuda"
    version = facts.mamba and facts.mamba.distribution if scan else facts.causal_conv1d.version
    name = "mamba-ssm" if scan else "causal-conv1d"
    if extension.path and not (version and _may_be_of(name, extension.path, facts)):
        return aside(extension.path)
    if not scan:
        return uninstall(name)
    return f"jetson-mamba install mamba-ssm{f'=={version}' if version else ''}"


def _may_be_of(name: str, path: str, facts: Facts) -> bool:
    """Whether pip knows a file as one of a distribution's, or does not say."""
    found = metadata.distributions(name=name, path=list(facts.path))
    files = [str(each.locate_file(file)) for each in found for file in each.files or ()]
    return not files or os.path.realpath(path) in map(os.path.realpath, files)


def compiled(facts: Facts, name: str) -> str:
    """The command that compiles the extension of a distribution, where that can come to its end.

    That takes a release whose sdist has the sources, nvcc of the CUDA that torch was built for
    (torch's build tools see no nvcc beside a torch without CUDA, and upstream's setup then fails
    with ``bare_metal_version``), and a C++ compiler.
    """
    torch, toolkit = facts.torch, facts.machine.cuda_toolkit
    if not torch or not torch.version or not torch.cuda or not facts.machine.nvcc or not toolkit:
        return NOTHING
    if torch.cuda.partition(".")[0] != toolkit.partition(".")[0]:
        return NOTHING
    if not shutil.which(os.environ.get("CXX", "c++")):
        return NOTHING
    version = facts.mamba.distribution if facts.mamba and name == "mamba-ssm" else "1.6.1"
    if not version or (name == "mamba-ssm" and not at_least(version, 2, 2, 5)):
        return NOTHING
    tools = shlex.quote(f"setuptools{together.setuptools_for(version, torch.version)}")
    # Upstream takes any wheel that it finds and, after 2.3.2, compiles no scan unless it is told.
    force = "CAUSAL_CONV1D_FORCE_BUILD=TRUE"
    if name == "mamba-ssm":
        force = "MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE"
        name = f"{name}=={version}"
    options = "--no-build-isolation --no-deps --no-cache-dir --force-reinstall"
    return f"{install(tools, 'wheel packaging ninja')} && {force} {install(options, name)}"


def compiler(facts: Facts, *options: str) -> str:
    """The command that brings NVRTC for torch's CUDA, with what else compiles where that serves.

    ``options`` are pip's. A board of JetPack 5 has it in its toolkit; ``cuda-core`` needs CUDA 12
    and Python 3.10, and the kernels do without it.
    """
    major = ((facts.torch and facts.torch.cuda) or "").partition(".")[0]
    extra = f"cuda{major}"
    if extra in advice.EXTRAS and sys.version_info >= (3, 10):
        return advice.extra(extra, *options)
    if major == "11" and (facts.machine.jetpack or "").startswith("5"):
        return advice.apt(NVRTC_OF_JETPACK_5)
    return install(*options, f"nvidia-cuda-nvrtc-cu{major}") if major in ("11", "12") else NOTHING


def remove(mamba: MambaSsm, facts: Facts) -> str:
    """The command that takes one mamba_ssm of several off the path."""
    first = next(iter(installed.distributions("mamba-ssm", facts.path)), None)
    if first and first.folder == os.path.realpath(os.path.dirname(mamba.path)):
        return uninstall("mamba-ssm")
    return aside(mamba.path)


def aside(path: str) -> str:
    """The command that moves a file or folder out of the way."""
    return f"mv {shlex.quote(path)} {shlex.quote(path + '.aside')}"
