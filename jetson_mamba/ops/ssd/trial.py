"""What a backend of Mamba-2's scan has to get right before it is used."""

from __future__ import annotations

import math
import sys
from typing import cast

import torch

from . import pytorch
from .contract import Case, Implementation, Scan


def trial(implementation: Implementation, case: Case) -> None:
    """A scan whose state halves at each step and then grows by one.

    Upstream's Triton kernels are not tried: they would be tuned for sizes that nobody uses, which
    takes seconds, and they are what runs without this package too.
    """
    if implementation is pytorch.IMPLEMENTATION:
        headdim, dstate, number = 1, 1, torch.float32
    elif implementation is _own_kernels():
        # Of the case's sizes: what is compiled for the trial serves the call.
        headdim, dstate, number = case.headdim, case.dstate, case.number
    else:
        return
    x = torch.ones(1, 3, 1, headdim, device="cpu", dtype=number)
    B = torch.zeros(1, 3, 1, dstate, device="cpu", dtype=number)
    B[..., 0] = 1
    # Of a dtype that is named: the default is the caller's.
    A = torch.full((1,), -math.log(2.0), device="cpu", dtype=torch.float32)
    D = torch.zeros(1, device="cpu", dtype=torch.float32)
    x, B, A, D = (each.to(case.device) for each in (x, B, A, D))
    scan = Scan(
        *(x, x[..., 0], A, B, B, D),
        z=None,
        dt_bias=None,
        initial_states=None,
        seq_idx=None,
        cu_seqlens=None,
        chunk_size=4,
        dt_softplus=False,
        dt_limit=(0, 1),
    )
    out, *_ = implementation.scan_forward(scan)
    # Compared on the CPU: on a GPU each operation of torch is loaded first, which takes longer.
    expected = torch.tensor([1.0, 1.5, 1.75], device="cpu", dtype=torch.float32)
    found = out.cpu().float().flatten(2)
    if not torch.allclose(found, expected[:, None].expand_as(found), rtol=1e-2):
        raise RuntimeError(f"expected {expected.tolist()}, found {found[0, :, 0].tolist()}")


def _own_kernels() -> Implementation | None:
    """The backend ``cuda``, where it was asked for; it is imported at its first use."""
    module = sys.modules.get(f"{__package__}.cuda")
    return None if module is None else cast(Implementation, module.IMPLEMENTATION)
