"""Finds what is wrong with torch: missing, broken, or not the one for this machine."""

from __future__ import annotations

import os
from typing import Iterator

from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.registry import BUSY, NO_ANSWER, Cause, finds
from jetson_mamba.report.torch_build import lacks_kernels_for


@finds("no-torch", "No module named 'torch'")
def _no_torch(facts: Facts) -> Iterator[Cause]:
    if not facts.torch:
        board = f", and PyPI's is not the one for the {facts.machine.board}"
        yield Cause(
            "torch is not installed",
            f"mamba_ssm runs on it{board if facts.machine.jetpack else ''}",
            commands.torch(facts),
        )


@finds("cpu-torch", "Torch not compiled with CUDA enabled")
def _torch_without_the_gpu(facts: Facts) -> Iterator[Cause]:
    """The commonest mistake on a board: ``pip install torch``."""
    torch, jetpack = facts.torch, facts.machine.jetpack
    if not torch or torch.error or torch.cuda_available or not jetpack:
        return
    yield Cause(
        f"torch {torch.version} "
        + (f"is built for CUDA {torch.cuda}" if torch.cuda else "is built without CUDA")
        + f", and sees no GPU on the {facts.machine.board or 'board'}",
        "PyPI's torch for aarch64 is not the one for a board: up to 2.10 it has no CUDA, and "
        "the later ones are built for other GPUs or another CUDA",
        commands.torch(facts),
    )


@finds("no-kernel-image", "no kernel image is available for execution on the device")
def _kernels_of_torch(facts: Facts) -> Iterator[Cause]:
    for gpu in facts.machine.gpus:
        if (
            facts.torch
            and facts.torch.cuda
            and gpu.capability
            and lacks_kernels_for(facts.torch, gpu.capability)
        ):
            held = ", ".join(facts.torch.architectures)
            yield Cause(
                f"torch {facts.torch.version} has no kernels for the {gpu.name}, of compute "
                f"capability {gpu.capability}",
                f"it was built for {held}",
                commands.torch(facts),
            )
            return


@finds("no-gpu", "Expected u.is_cuda() to be true")
def _no_gpu(facts: Facts) -> Iterator[Cause]:
    if not facts.mamba or not facts.torch or facts.torch.error or facts.torch.cuda_available:
        return
    if facts.scan.loads or facts.convolution.loads:
        reason = "this torch was built without CUDA"
        if facts.torch.cuda:
            reason = f"torch {facts.torch.version} sees no GPU"
        yield Cause(
            "tensors stay on the CPU, and the extensions take only those on a GPU",
            reason,
            commands.without(facts.scan if facts.scan.loads else facts.convolution, facts),
            served=True,
        )


@finds("torch-broken", "torch cannot be imported")
def _torch_broken(facts: Facts) -> Iterator[Cause]:
    if facts.torch and facts.torch.error:
        waited = facts.torch.error.startswith(NO_ANSWER)
        yield Cause(
            f"torch {facts.torch.version or ''} does not work: {facts.torch.error}",
            BUSY if waited else f"it is installed in {os.path.dirname(facts.torch.path or '')}",
            commands.NOTHING if waited else commands.torch(facts),
        )
