"""What torch says of how it was built, with the GPUs that it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jetson_mamba.report.machine import Gpu


@dataclass(frozen=True)
class Torch:
    """Torch, found on the path; ``error`` says why it cannot be imported, if so.

    ``cuda`` is the CUDA that it was built for, None for a build without; ``architectures`` are
    those that it holds kernels for, such as "sm_87".
    """

    version: str | None
    path: str | None
    cuda: str | None
    hip: str | None
    cxx11_abi: bool | None
    architectures: tuple[str, ...]
    cuda_available: bool
    error: str | None


def torch_and_gpus(
    path: str, version: str | None, probed: dict[str, dict[str, Any]]
) -> tuple[Torch, tuple[Gpu, ...]]:
    """Torch and the GPUs that it sees, from what ``probe`` found out."""
    told, devices = probed["torch"], probed["devices"]
    torch = Torch(
        version=told.get("version") or version,
        path=told.get("path") or path,
        cuda=devices.get("cuda"),
        hip=devices.get("hip"),
        cxx11_abi=devices.get("cxx11_abi"),
        architectures=tuple(devices.get("architectures", ())),
        cuda_available=bool(devices.get("cuda_available")),
        error=told.get("error") or devices.get("error"),
    )
    gpus = tuple(
        Gpu(each["name"], each["capability"], each["memory_bytes"], "torch")
        for each in devices.get("gpus", ())
    )
    return torch, gpus


def lacks_kernels_for(torch: Torch, capability: str) -> bool:
    """Whether this torch has neither machine code nor PTX for a compute capability.

    Machine code serves later minor versions of its major version, PTX everything later.
    """
    if not torch.architectures:
        return False
    wanted = tuple(int(part) for part in capability.split("."))
    for architecture in torch.architectures:
        kind, _, digits = architecture.partition("_")
        digits = digits.rstrip("af")
        if not digits.isdigit():
            return False
        had = (int(digits[:-1]), int(digits[-1]))
        if had <= wanted and (kind == "compute" or had[0] == wanted[0]):
            return False
    return True
