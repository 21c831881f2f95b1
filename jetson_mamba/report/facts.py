"""The facts about a machine that ``findings`` judges."""

from __future__ import annotations

from dataclasses import dataclass

from jetson_mamba.report.extensions import Extension
from jetson_mamba.report.hook import Hook
from jetson_mamba.report.machine import Machine, Python
from jetson_mamba.report.packages import MambaSsm, Package
from jetson_mamba.report.status import Backend, Selected
from jetson_mamba.report.torch_build import Torch


@dataclass(frozen=True)
class Unserved:
    """A device on which the backend that is named for an op does not serve it, and why."""

    op: str
    device: str
    reason: str


@dataclass(frozen=True)
class Compiler:
    """What compiles and launches this package's kernels; ``error`` is why it cannot, if so."""

    nvrtc: str | None
    cuda_core: str | None
    error: str | None


@dataclass(frozen=True)
class Facts:
    """What is known of a machine.

    ``selections`` are the backends that JETSON_MAMBA_BACKEND names, ``unserved`` what they do not
    serve, ``selection_ignored`` says why its value is ignored, if it is. ``path`` is the
    ``sys.path`` of a program in this folder. ``triton_launch_error`` says why a first kernel of
    Triton's could not be launched on a GPU, ``trial_error`` why mamba_ssm cannot be imported or
    a block of it does not run.
    """

    machine: Machine
    python: Python
    torch: Torch | None
    mamba_ssm: tuple[MambaSsm, ...]
    causal_conv1d: Package
    triton: Package
    triton_error: str | None
    triton_launch_error: str | None
    transformers: Package
    einops: Package
    extensions: tuple[Extension, ...]
    hook: Hook
    backends: tuple[Backend, ...]
    backends_error: str | None
    selections: tuple[Selected, ...]
    unserved: tuple[Unserved, ...]
    selection_ignored: str | None
    trial_error: str | None
    path: tuple[str, ...]
    compiler: Compiler | None = None

    @property
    def mamba(self) -> MambaSsm | None:
        """The mamba_ssm that is imported."""
        return self.mamba_ssm[0] if self.mamba_ssm else None

    @property
    def scan(self) -> Extension:
        """The extension of mamba_ssm."""
        return self.extensions[0]

    @property
    def convolution(self) -> Extension:
        """The extension of causal-conv1d."""
        return self.extensions[1]

    @property
    def served(self) -> bool:
        """Whether the hook gets around whatever an extension does."""
        return self.hook.active and not self.hook.refused and not self.hook.too_late
