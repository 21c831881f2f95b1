"""Finds what is wrong with the packages around Mamba: missing, doubled or too new."""

from __future__ import annotations

import os
import re
from typing import Iterator

from jetson_mamba.releases import needed
from jetson_mamba.releases.versions import at_least
from jetson_mamba.report import installed
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.registry import Cause, finds
from jetson_mamba.report.packages import MambaSsm, requires

# Modules that mamba_ssm imports, by the name that pip knows.
LIGHT = {
    "einops": "einops",
    "transformers": "transformers",
    "huggingface_hub": "huggingface-hub",
    "packaging": "packaging",
}


@finds("two-mamba-ssm", "unexpected keyword argument 'bimamba_type', 'bimamba' or 'nslices'")
def _two_mamba_ssm(facts: Facts) -> Iterator[Cause]:
    if len(facts.mamba_ssm) < 2:
        return
    winner, *others = facts.mamba_ssm
    hidden = next((each for each in others if each.fork_parameters), others[0])
    fork_loses = bool(hidden.fork_parameters) and not winner.fork_parameters
    yield Cause(
        f"{winner.path} {_kind(winner)} hides {hidden.path} {_kind(hidden)}",
        "two packages named mamba_ssm are on the path, and code for one of them gets the other",
        commands.remove(winner if fork_loses else hidden, facts),
    )


@finds("no-nvcc", "name 'bare_metal_version' is not defined")
def _no_nvcc(facts: Facts) -> Iterator[Cause]:
    wanted = facts.machine.gpus or (facts.torch and facts.torch.cuda)
    if wanted and not facts.machine.nvcc and not facts.mamba:
        yield Cause(
            "mamba-ssm is not installed, and there is no nvcc to compile it with",
            "its setup needs the CUDA toolkit, which is not in CUDA_HOME, on PATH, or in "
            "/usr/local/cuda",
            "jetson-mamba install",
        )


@finds("transformers-names", "cannot import name 'GreedySearchDecoderOnlyOutput'")
def _transformers_names(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba or not facts.transformers.path:
        return
    generation = os.path.join(facts.transformers.path, "generation", "__init__.py")
    try:
        with open(generation, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return
    gone = [name for name in facts.mamba.asks.generation_names if name not in text]
    if gone:
        yield Cause(
            f"transformers {facts.transformers.version} has no {', '.join(gone)}",
            f"mamba_ssm {facts.mamba.version} is older, and imports it",
            commands.release(">=2.3.0"),
            served=True,
        )


@finds("incomplete-release", "No module named 'mamba_ssm.ops.triton.k_activations'")
def _incomplete_release(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba:
        return
    strange = [
        module
        for module in facts.mamba.asks.required
        if module.split(".")[0] == "src"  # a module of the authors' checkout
    ]
    missing = [*facts.mamba.asks.missing, *strange]
    if missing:
        yield Cause(
            f"mamba_ssm {facts.mamba.version} imports {', '.join(missing)}, which it does not have",
            "it was published with files missing (2.0.0 to 2.0.2), or is half uninstalled",
            "jetson-mamba install",
        )


@finds("no-dependency", "No module named 'einops', 'transformers' …")
def _no_dependency(facts: Facts) -> Iterator[Cause]:
    """The modules that mamba_ssm imports and that are not there, by the names that pip knows."""
    mamba = facts.mamba
    missing = {
        module: name
        for module, name in LIGHT.items()
        if mamba and requires(mamba, module) and installed.find(module, facts.path) is None
    }
    if not mamba or not missing:
        return
    torch = (facts.torch and facts.torch.version) or ""
    yield Cause(
        f"{' and '.join(missing.values())} {'is' if len(missing) == 1 else 'are'} not installed",
        f"mamba_ssm {mamba.version} imports {'it' if len(missing) == 1 else 'them'}",
        # Of a mamba_ssm that pip knows nothing of, an installer would put another beside it.
        "jetson-mamba install" if mamba.distribution else needed.command(torch, *missing.values()),
        seen=f"No module named {', '.join(map(repr, missing))}",
    )


@finds("no-mamba-ssm", "No module named 'mamba_ssm'")
def _no_mamba_ssm(facts: Facts) -> Iterator[Cause]:
    if facts.torch and not facts.torch.error and not facts.mamba:
        yield Cause(
            "mamba_ssm is not installed",
            "this package makes it run, and does not contain it",
            "jetson-mamba install",
        )


@finds("transformers-torch", "PyTorch >= 2.6 is required but found")
def _transformers_without_torch(facts: Facts) -> Iterator[Cause]:
    torch = facts.torch.version if facts.torch else None
    if not facts.transformers.path or not torch:
        return
    wants = _torch_that_it_wants(facts.transformers.path)
    if wants and not at_least(torch, *wants):
        needs = ".".join(map(str, wants))
        yield Cause(
            f"transformers {facts.transformers.version} switches torch {torch} off",
            f"it takes torch {needs} or later, and mamba_ssm generates text with it",
            needed.command(torch, "transformers"),
        )


def _torch_that_it_wants(folder: str) -> tuple[int, ...] | None:
    """The oldest torch that a transformers says it takes, from its text."""
    path = os.path.join(folder, "utils", "import_utils.py")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            match = re.search(r"PyTorch >= (\d+(?:\.\d+)+) is required", file.read())
    except OSError:
        return None
    return tuple(map(int, match[1].split("."))) if match else None


def _kind(mamba: MambaSsm) -> str:
    if mamba.fork_parameters:
        return f"(a fork, with {', '.join(mamba.fork_parameters)})"
    return f"({mamba.version or 'no version'})"
