"""What a backend of the scan has to get right before it is used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import pytorch
from .contract import Case, Implementation, Returning, Scan, real_dtype


def trial(implementation: Implementation, case: Case) -> None:
    """Hold one small scan, forward and backward, to PyTorch's in float64 on the CPU."""
    # More steps than a kernel does at once, fewer than would be felt.
    dim, groups, steps = 4, 2, 70
    width = 2 * steps if case.is_complex else steps
    # A generator of its own: choosing a backend must not change the caller's random numbers.
    source = torch.Generator(device="cpu").manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=dtype, device="cpu", generator=source).to(case.dtype)

    rates = drawn(case.dstate * dim).view(dim, case.dstate).to(real_dtype(case))
    A = torch.complex(-rates.abs(), rates) if case.is_complex else -rates.abs()
    drawn_scan = Scan(
        drawn(1, dim, steps),
        drawn(1, dim, steps),
        A,
        drawn(1, groups, case.dstate, width),
        drawn(1, groups, case.dstate, width),
        drawn(dim).to(real_dtype(case)),
        drawn(1, dim, steps),
        drawn(dim).to(real_dtype(case)),
        True,
    )
    dout = drawn(1, dim, steps)
    expected = _both_passes(
        pytorch.IMPLEMENTATION,
        Scan(*(_moved(field, torch.device("cpu"), True) for field in drawn_scan)),
        dout.double(),
    )
    found = _both_passes(
        implementation,
        Scan(*(_moved(field, case.device, False) for field in drawn_scan)),
        dout.to(case.device),
    )
    tolerance = max(1e-4, 16 * torch.finfo(case.dtype).eps)
    for name, right, actual in zip(_TRIAL_RESULTS, expected, found):
        error = float((actual.to("cpu", right.dtype) - right).norm() / right.norm())
        if not error <= tolerance:
            raise RuntimeError(f"{name} is wrong by {error:.1e} of its norm")


_TRIAL_RESULTS = (
    "the last state",
    "out_z",
    "du",
    "ddelta",
    "dA",
    "dB",
    "dC",
    "dD",
    "ddelta_bias",
    "dz",
)


def _both_passes(implementation: Implementation, scan: Scan, dout: Tensor) -> list[Tensor]:
    out, x, out_z = implementation.forward(scan)
    returning = Returning(dout, x, out, dz=None, recompute_out_z=False)
    gradients = implementation.backward(scan, returning)
    results = (x[:, :, -1, 1::2], out_z, *gradients)
    return [result for result in results if result is not None]


def _moved(field: Any, device: torch.device, doubled: bool) -> Any:
    if not isinstance(field, Tensor):
        return field
    if doubled:
        field = field.to(torch.complex128 if field.is_complex() else torch.float64)
    return field.to(device)
