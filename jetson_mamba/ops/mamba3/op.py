"""Mamba-3 over whole sequences, by the functions that its block calls.

They take the places of ``mamba3_siso_combined`` and ``mamba3_mimo`` of mamba-ssm wherever the
kernels of those cannot be launched. Upstream's SISO rounds its arguments to bfloat16 first, and its
results with them; here products are in float32, or float64 if any argument is, and what is returned
has the dtype of V.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.arguments import check_shape, check_tensors, dims
from jetson_mamba.dispatch.autocast import without_autocast

from . import composed
from .checks import boundaries, check_heads
from .contract import Scan, States


def mamba3_siso_combined(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    Angles: Tensor,
    D: Tensor | None = None,
    Z: Tensor | None = None,
    Input_States: Sequence[Tensor] | None = None,
    chunk_size: int = 64,
    return_final_states: bool = False,
    cu_seqlens: Tensor | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """The scan of ``composed`` with one input and one output a step, times ``silu(Z)``.

    Shapes: Q and K (batch, seqlen, ngroups, dstate), V and Z (batch, seqlen, nheads, headdim), ADT,
    DT and Trap, before its sigmoid, (batch, nheads, seqlen), Q_bias and K_bias (nheads, dstate),
    Angles (batch, seqlen, nheads, angles), D (nheads,). All floating, in any mixture of dtypes.
    ``Input_States`` are those of each sequence before it: angle (sequences, nheads, angles), state
    (sequences, nheads, headdim, dstate), K (sequences, nheads, dstate), with its bias and turned,
    V (sequences, nheads, headdim). ``cu_seqlens`` (sequences + 1,), integers, has the boundaries of
    sequences that are packed into a batch of 1. ``chunk_size`` is upstream's; here it is chosen.

    Returns out, of the shape and dtype of V; with ``return_final_states`` also the four states
    after each sequence, all but V in the dtype of the products.

    Raises ValueError or TypeError for arguments that do not fit together.
    """
    tensors = {"Q": Q, "K": K, "V": V, "ADT": ADT, "DT": DT, "Trap": Trap, "Q_bias": Q_bias}
    tensors.update({"K_bias": K_bias, "Angles": Angles})
    check_tensors({**tensors, "D": D, "Z": Z}, optional=("D", "Z"))
    dims("Q", Q, ("batch", "seqlen", "ngroups", "dstate"))
    dims("Q_bias", Q_bias, ("nheads", "dstate"))
    check_shape("K", K, _sizes(("batch", "seqlen", "ngroups", "dstate"), Q))
    check_shape("K_bias", K_bias, _sizes(("nheads", "dstate"), Q_bias))
    initial = None
    if Input_States is not None and any(each is not None for each in Input_States):
        states = {"angle": 0, "state": 1, "K": 2, "V": 3}
        named = {f"Input_States: {name}": Input_States[at] for name, at in states.items()}
        check_tensors({"V": V, **named})
        angle, ssm, k, v = Input_States
        initial = States(angle, ssm, k.unsqueeze(1), v)
    out, last = _scanned(
        *(Q.unsqueeze(2), K.unsqueeze(2), V, ADT, DT, Trap),
        *(Q_bias.unsqueeze(1), K_bias.unsqueeze(1), Angles, D),
        v_proj=None,
        initial=initial,
        cu_seqlens=cu_seqlens,
        halves=False,
    )
    out = out.squeeze(2)
    if Z is not None:
        check_shape("Z", Z, _sizes(("batch", "seqlen", "nheads", "headdim"), V))
        out = out * functional.silu(Z.to(out.dtype))
    out = out.to(V.dtype)
    if not return_final_states:
        return out
    return out, last.angle, last.ssm, last.k.squeeze(1), last.v


def mamba3_mimo(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    ADT: Tensor,
    DT: Tensor,
    Trap: Tensor,
    Q_bias: Tensor,
    K_bias: Tensor,
    MIMO_V: Tensor,
    MIMO_Z: Tensor | None,
    MIMO_Out: Tensor | None,
    Angles: Tensor,
    D: Tensor | None,
    Z: Tensor | None,
    chunk_size: int,
    rotary_dim_divisor: int,
    dtype: torch.dtype,
    return_state: bool = False,
    cu_seqlens: Tensor | None = None,
    fuse_pregate_headwise_rms_norm: bool = False,
    outproj_norm_weight: Tensor | None = None,
    outproj_norm_eps: float = 1e-5,
) -> Tensor | tuple[Tensor, ...]:
    """The scan with ``rank`` inputs and outputs a step: the former are V times MIMO_V.

    As :func:`mamba3_siso_combined`, with Q and K (batch, seqlen, rank, ngroups, dstate), Q_bias and
    K_bias (nheads, rank, dstate), MIMO_V, MIMO_Z and MIMO_Out (nheads, rank, headdim). Each output
    is multiplied by ``silu(Z MIMO_Z)`` where Z is given, with ``fuse_pregate_headwise_rms_norm``
    after an RMSNorm over headdim with ``outproj_norm_weight`` (nheads * headdim elements, or None
    for ones); then by MIMO_Out, over which the outputs are summed. ``rotary_dim_divisor`` times the
    angles are the channels of a head. ``dtype`` is that of out.

    Returns out (batch, seqlen, nheads, headdim), or (batch, seqlen, rank, nheads, headdim) without
    MIMO_Out; with ``return_state`` also the states after each sequence, with no graph: K is
    (sequences, rank, nheads, dstate), in ``dtype``.

    Raises ValueError or TypeError for arguments that do not fit together.
    """
    tensors = {"Q": Q, "K": K, "V": V, "ADT": ADT, "DT": DT, "Trap": Trap, "Q_bias": Q_bias}
    tensors.update({"K_bias": K_bias, "MIMO_V": MIMO_V, "Angles": Angles})
    others = {"MIMO_Z": MIMO_Z, "MIMO_Out": MIMO_Out, "D": D, "Z": Z}
    others["outproj_norm_weight"] = outproj_norm_weight
    check_tensors({**tensors, **others}, optional=tuple(others))
    axes = ("batch", "seqlen", "rank", "ngroups", "dstate")
    _, _, rank, _, dstate = dims("Q", Q, axes)
    check_shape("K", K, _sizes(axes, Q))
    if Angles.shape[-1] * rotary_dim_divisor != dstate:
        raise ValueError(
            f"Angles: expected dstate={dstate} over rotary_dim_divisor={rotary_dim_divisor}, "
            f"found {Angles.shape[-1]}"
        )
    if fuse_pregate_headwise_rms_norm and (Z is None or MIMO_Z is None or MIMO_Out is None):
        raise ValueError("fuse_pregate_headwise_rms_norm: expected Z, MIMO_Z and MIMO_Out with it")
    out, last = _scanned(
        *(Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D),
        v_proj=MIMO_V,
        initial=None,
        cu_seqlens=cu_seqlens,
        halves=True,
    )
    nheads, headdim = V.shape[2:]
    per_head = {"nheads": nheads, "rank": rank, "headdim": headdim}
    wide = out.dtype
    if fuse_pregate_headwise_rms_norm:
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + outproj_norm_eps)
        if outproj_norm_weight is not None:
            found, expected = outproj_norm_weight.numel(), nheads * headdim
            if found != expected:
                raise ValueError(
                    f"outproj_norm_weight: expected nheads * headdim = {expected} elements, "
                    f"found {found}"
                )
            out = out * outproj_norm_weight.to(wide).reshape(nheads, headdim)
    if Z is not None:
        if MIMO_Z is None:
            raise ValueError("MIMO_Z: expected a tensor with Z, found None")
        check_shape("Z", Z, _sizes(("batch", "seqlen", "nheads", "headdim"), V))
        check_shape("MIMO_Z", MIMO_Z, per_head)
        gate = Z.to(wide).unsqueeze(2) * MIMO_Z.to(wide).transpose(0, 1)
        out = out * functional.silu(gate)
    if MIMO_Out is not None:
        check_shape("MIMO_Out", MIMO_Out, per_head)
        out = (out * MIMO_Out.to(wide).transpose(0, 1)).sum(2)
    out = out.to(dtype)
    if not return_state:
        return out
    angle, ssm, k, v = (each.detach() for each in last)
    return out, angle, ssm, k.to(dtype), v


def _scanned(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adt: Tensor,
    dt: Tensor,
    trap: Tensor,
    q_bias: Tensor,
    k_bias: Tensor,
    angles: Tensor,
    D: Tensor | None,
    v_proj: Tensor | None,
    initial: States | None,
    cu_seqlens: Tensor | None,
    halves: bool,
) -> tuple[Tensor, States]:
    """Check the shapes, and scan."""
    batch, seqlen, rank, ngroups, dstate = q.shape
    nheads, headdim = dims("V", v, ("batch", "seqlen", "nheads", "headdim"))[2:]
    count = dims("Angles", angles, ("batch", "seqlen", "nheads", "angles"))[-1]
    check_heads(nheads, ngroups, dstate, count)
    steps = {"batch": batch, "seqlen": seqlen}
    check_shape("V", v, {**steps, "nheads": nheads, "headdim": headdim})
    for name, each in (("ADT", adt), ("DT", dt), ("Trap", trap)):
        check_shape(name, each, {"batch": batch, "nheads": nheads, "seqlen": seqlen})
    for name, each in (("Q_bias", q_bias), ("K_bias", k_bias)):
        check_shape(name, each, {"nheads": nheads, "rank": rank, "dstate": dstate})
    check_shape("Angles", angles, {**steps, "nheads": nheads, "angles": count})
    check_shape("D", D, {"nheads": nheads})
    check_shape("MIMO_V", v_proj, {"nheads": nheads, "rank": rank, "headdim": headdim})
    ends = boundaries(cu_seqlens, batch, seqlen)
    if initial is not None:
        heads = {"sequences": batch if ends is None else len(ends) - 1, "nheads": nheads}
        check_shape("Input_States: angle", initial.angle, {**heads, "angles": count})
        ssm = {**heads, "headdim": headdim, "dstate": dstate}
        check_shape("Input_States: state", initial.ssm, ssm)
        check_shape("Input_States: K", initial.k.squeeze(1), {**heads, "dstate": dstate})
        check_shape("Input_States: V", initial.v, {**heads, "headdim": headdim})
    given = Scan(
        *(q, k, v, adt, dt, trap, q_bias, k_bias, angles, D, v_proj, initial, ends), halves
    )
    with without_autocast(v.device):
        return composed.scan(given)


def _sizes(axes: tuple[str, ...], tensor: Tensor) -> dict[str, int]:
    return dict(zip(axes, tensor.shape))
