"""Whole blocks in float64, from their parameters by the recurrences.

Those of Mamba and of Mamba-2. Nothing of mamba_ssm or of the package under test is called:
parameters go in by name.
"""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor

from tests.references.selective_scan import selective_scan_reference
from tests.references.ssd import convolution, ssd_mixer


def mamba_block(parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """(batch, seqlen, d_model) through a Mamba block: Gu and Dao, figure 3 and algorithm 2."""
    weight = dict(parameters)
    inner, rank = weight["dt_proj.weight"].shape
    dstate = weight["A_log"].shape[1]
    signal, gate = (x @ weight["in_proj.weight"].T).split(inner, -1)
    taps = weight["conv1d.weight"].squeeze(1)
    signal = convolution(signal, taps, weight.get("conv1d.bias"), None, "silu")
    step, B, C = (signal @ weight["x_proj.weight"].T).split([rank, dstate, dstate], -1)
    _, gated, _, _ = selective_scan_reference(
        signal.mT,
        (step @ weight["dt_proj.weight"].T).mT,
        -torch.exp(weight["A_log"]),
        B.mT,
        C.mT,
        weight["D"],
        gate.mT,
        weight["dt_proj.bias"],
        delta_softplus=True,
    )
    return gated.mT @ weight["out_proj.weight"].T


def mamba2_block(
    parameters: Mapping[str, Tensor], x: Tensor, *, headdim: int, eps: float, ngroups: int = 1
) -> Tensor:
    """(batch, seqlen, d_model) through a Mamba-2 block: Dao and Gu, section 7."""
    weight = dict(parameters)
    out, _ = ssd_mixer(
        x @ weight["in_proj.weight"].T,
        weight["conv1d.weight"].squeeze(1),
        weight["conv1d.bias"],
        dt_bias=weight["dt_bias"],
        A=-torch.exp(weight["A_log"]),
        D=weight["D"],
        rmsnorm_weight=weight["norm.weight"],
        rmsnorm_eps=eps,
        outproj_weight=weight["out_proj.weight"],
        headdim=headdim,
        ngroups=ngroups,
        norm_before_gate=False,
    )
    return out
