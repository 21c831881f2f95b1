"""One step of Mamba-3, by which a model decodes token by token.

The functions take the places of those of the same names in mamba-ssm wherever the kernels of
Triton and of CuTe cannot be launched. As those do, they record no gradient, and compute in float32
(float64 if any argument is) whatever the dtypes.
"""

from __future__ import annotations

import math
from typing import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.arguments import check_shape, check_tensors, dims
from jetson_mamba.dispatch.autocast import compute_dtype, without_autocast

from .checks import check_heads
from .composed import turned


@torch.no_grad()
def apply_rotary_qk_inference_fwd(
    q: Tensor,
    k: Tensor,
    angle_state: Tensor,
    angle_proj: Tensor,
    dt: Tensor,
    bias_q: Tensor | None = None,
    bias_k: Tensor | None = None,
    inplace: bool = False,
    conjugate: bool = False,
    rotate_pairwise: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn q and k, with their biases, by the angle that the step adds up to.

    Shapes: q and k (batch, rank, nheads, dstate), angle_state and angle_proj (batch, nheads,
    angles), dt (batch, nheads), bias_q and bias_k (rank, nheads, dstate). The angle becomes
    ``angle_state + pi tanh(angle_proj) dt``, by whose negative the pairs are turned if
    ``conjugate``: (2 i, 2 i + 1) if ``rotate_pairwise``, else (i, i + dstate / 2).

    Returns q, k and the angle, each in its dtype; with ``inplace`` they are written into q, k and
    angle_state, which are returned. Raises ValueError or TypeError for arguments that do not fit
    together.
    """
    tensors = {"q": q, "k": k, "angle_state": angle_state, "angle_proj": angle_proj, "dt": dt}
    check_tensors({**tensors, "bias_q": bias_q, "bias_k": bias_k}, ("bias_q", "bias_k"))
    batch, rank, nheads, dstate = dims("q", q, ("batch", "rank", "nheads", "dstate"))
    angles = dims("angle_state", angle_state, ("batch", "nheads", "angles"))[-1]
    check_heads(nheads, nheads, dstate, angles, "q", "angle_state")
    heads = {"batch": batch, "nheads": nheads}
    check_shape("k", k, {"batch": batch, "rank": rank, "nheads": nheads, "dstate": dstate})
    check_shape("angle_state", angle_state, {**heads, "angles": angles})
    check_shape("angle_proj", angle_proj, {**heads, "angles": angles})
    check_shape("dt", dt, heads)
    for name, bias in (("bias_q", bias_q), ("bias_k", bias_k)):
        check_shape(name, bias, {"rank": rank, "nheads": nheads, "dstate": dstate})
    dtype = compute_dtype(q, k, angle_state, angle_proj, dt, bias_q, bias_k)
    theta = _next_angle(angle_state, angle_proj, dt, dtype)
    by = (-theta if conjugate else theta).unsqueeze(1)
    results = []
    for each, bias in ((q, bias_q), (k, bias_k)):
        wide = each.to(dtype) if bias is None else each.to(dtype) + bias.to(dtype)
        results.append(turned(wide, by, not rotate_pairwise))
    targets = (q, k, angle_state)
    found = (*results, theta)
    if inplace:
        for target, result in zip(targets, found):
            target.copy_(result)
        return targets
    q_out, k_out, angle = (result.to(target.dtype) for target, result in zip(targets, found))
    return q_out, k_out, angle


@torch.no_grad()
def mamba3_step_fn(
    state: Tensor,
    Bstate: Tensor,
    Xstate: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    x: Tensor,
    dt: Tensor,
    trap: Tensor,
    xproj: Tensor,
    outproj: Tensor | None = None,
    state_out: Tensor | None = None,
    out: Tensor | None = None,
    z: Tensor | None = None,
    zproj: Tensor | None = None,
    tile_D: int = 64,
    num_warps: int = 2,
) -> None:
    """A step with ``rank`` inputs and outputs, of B and C that are turned already.

    Shapes: state and state_out (batch, nheads, headdim, dstate), B, C and Bstate (batch, rank,
    nheads, dstate), x, z and Xstate (batch, nheads, headdim), A, dt and trap, after its sigmoid,
    (batch, nheads), D (nheads,), xproj, outproj and zproj (rank, nheads, headdim). Bstate and
    Xstate are B and x of the step before. ``tile_D`` and ``num_warps`` are upstream's.

    Writes the state into state_out, or in place, and the outputs into ``out``: each is multiplied
    by ``silu(z zproj)`` where z is given, and by outproj, over which they are summed to (batch,
    nheads, headdim); without outproj they are (batch, rank, nheads, headdim).

    Raises ValueError or TypeError for arguments that do not fit together.
    """
    tensors = {"state": state, "Bstate": Bstate, "Xstate": Xstate, "A": A, "B": B, "C": C, "D": D}
    tensors.update({"x": x, "dt": dt, "trap": trap, "xproj": xproj})
    others = {"outproj": outproj, "state_out": state_out, "z": z, "zproj": zproj}
    check_tensors({**tensors, "out": out, **others}, tuple(others))
    assert out is not None
    batch, nheads, headdim, dstate = dims("state", state, ("batch", "nheads", "headdim", "dstate"))
    rank = dims("Bstate", Bstate, ("batch", "rank", "nheads", "dstate"))[1]
    channels = {"batch": batch, "nheads": nheads, "headdim": headdim}
    by_rank = {"batch": batch, "rank": rank, "nheads": nheads}
    for name in ("Bstate", "B", "C"):
        check_shape(name, tensors[name], {**by_rank, "dstate": dstate})
    for name, each in (("x", x), ("Xstate", Xstate), ("z", z)):
        check_shape(name, each, channels)
    for name in ("A", "dt", "trap"):
        check_shape(name, tensors[name], {"batch": batch, "nheads": nheads})
    check_shape("D", D, {"nheads": nheads})
    for name, each in (("xproj", xproj), ("outproj", outproj), ("zproj", zproj)):
        check_shape(name, each, {"rank": rank, "nheads": nheads, "headdim": headdim})
    check_shape("state_out", state_out, {**channels, "dstate": dstate})
    check_shape("out", out, {**by_rank, "headdim": headdim} if outproj is None else channels)
    if z is not None and zproj is None:
        raise ValueError("zproj: expected a tensor with z, found None")

    dtype = compute_dtype(*tensors.values(), *others.values())
    steps, own = dt.to(dtype), trap.to(dtype)
    inputs, before = (each.to(dtype).unsqueeze(1) * xproj.to(dtype) for each in (x, Xstate))
    with without_autocast(state.device):
        after, read = _stepped(
            state.to(dtype),
            *(A.to(dtype) * steps, steps, own, 1 - own),
            *(B.to(dtype), C.to(dtype), inputs, Bstate.to(dtype), before),
        )
    read = torch.addcmul(read, inputs, D.to(dtype).unsqueeze(-1))
    if z is not None and zproj is not None:
        read = read * functional.silu(z.to(dtype).unsqueeze(1) * zproj.to(dtype))
    if outproj is not None:
        read = (read * outproj.to(dtype)).sum(1)
    (state if state_out is None else state_out).copy_(after)
    out.copy_(read)


@torch.no_grad()
def mamba3_siso_step(
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
    Input_States: Sequence[Tensor] = (),
) -> tuple[Tensor, list[Tensor]]:
    """A step of ``mamba3_siso_combined``, of arguments without their axis of steps.

    ``Input_States`` are angle (batch, nheads, angles), state (batch, nheads, headdim, dstate), K
    (batch, nheads, dstate) and V (batch, nheads, headdim) before it. Returns out, of the shape and
    dtype of V, and the four states after it.

    Raises ValueError or TypeError for arguments that do not fit together.
    """
    if len(Input_States) != 4:
        raise ValueError(f"Input_States: expected four states, found {len(Input_States)}")
    angle, state, k_state, v_state = Input_States
    tensors = {"Q": Q, "K": K, "V": V, "ADT": ADT, "DT": DT, "Trap": Trap, "Q_bias": Q_bias}
    tensors.update({"K_bias": K_bias, "Angles": Angles, "angle": angle, "state": state})
    tensors.update({"K state": k_state, "V state": v_state})
    check_tensors({**tensors, "D": D, "Z": Z}, ("D", "Z"))
    batch, ngroups, dstate = dims("Q", Q, ("batch", "ngroups", "dstate"))
    nheads, headdim = dims("V", V, ("batch", "nheads", "headdim"))[1:]
    angles = dims("Angles", Angles, ("batch", "nheads", "angles"))[-1]
    check_heads(nheads, ngroups, dstate, angles)
    heads = {"batch": batch, "nheads": nheads}
    check_shape("K", K, {"batch": batch, "ngroups": ngroups, "dstate": dstate})
    for name, each in (("V", V), ("Z", Z), ("Input_States: V", v_state)):
        check_shape(name, each, {**heads, "headdim": headdim})
    for name, each in (("ADT", ADT), ("DT", DT), ("Trap", Trap)):
        check_shape(name, each, heads)
    for name, each in (("Q_bias", Q_bias), ("K_bias", K_bias)):
        check_shape(name, each, {"nheads": nheads, "dstate": dstate})
    for name, each in (("Angles", Angles), ("Input_States: angle", angle)):
        check_shape(name, each, {**heads, "angles": angles})
    check_shape("D", D, {"nheads": nheads})
    check_shape("Input_States: state", state, {**heads, "headdim": headdim, "dstate": dstate})
    check_shape("Input_States: K", k_state, {**heads, "dstate": dstate})

    dtype = compute_dtype(*tensors.values(), D, Z)
    theta = _next_angle(angle, Angles, DT, dtype).remainder(2 * math.pi)
    q, k = (
        turned(
            each.to(dtype).repeat_interleave(nheads // ngroups, 1) + bias.to(dtype), theta, False
        )
        for each, bias in ((Q, Q_bias), (K, K_bias))
    )
    late, inputs = Trap.to(dtype), V.to(dtype)
    with without_autocast(V.device):
        after, read = _stepped(
            state.to(dtype),
            *(ADT.to(dtype), DT.to(dtype), torch.sigmoid(late), torch.sigmoid(-late)),
            *(k.unsqueeze(1), q.unsqueeze(1), inputs.unsqueeze(1)),
            *(k_state.to(dtype).unsqueeze(1), v_state.to(dtype).unsqueeze(1)),
        )
    read = read.squeeze(1)
    if D is not None:
        read = torch.addcmul(read, inputs, D.to(dtype).unsqueeze(-1))
    if Z is not None:
        read = read * functional.silu(Z.to(dtype))
    return read.to(V.dtype), [theta, after, k, V]


def _next_angle(state: Tensor, rate: Tensor, dt: Tensor, dtype: torch.dtype) -> Tensor:
    turn = torch.tanh(rate.to(dtype)) * math.pi * dt.to(dtype).unsqueeze(-1)
    return state.to(dtype) + turn


def _stepped(
    state: Tensor,
    log: Tensor,
    dt: Tensor,
    own: Tensor,
    other: Tensor,
    k: Tensor,
    q: Tensor,
    u: Tensor,
    k_before: Tensor,
    u_before: Tensor,
) -> tuple[Tensor, Tensor]:
    """The state after a step, and what q reads of it: (batch, rank, nheads, headdim).

    ``own`` and ``other`` are the parts of the step's end and of its beginning.
    """
    decay = log.exp()
    now = u * (dt * own)[:, None, :, None]
    late = u_before * (dt * other * decay)[:, None, :, None]
    after = torch.einsum("brhp,brhn->bhpn", torch.cat([now, late], 1), torch.cat([k, k_before], 1))
    after = torch.addcmul(after, state, decay[..., None, None])
    return after, torch.einsum("bhpn,brhn->brhp", after, q)
