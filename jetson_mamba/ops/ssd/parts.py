"""The parts of Mamba-2's scan, each a function of its own, where upstream's kernels cannot run.

Programs with a scan or a parallelism of their own put them together. They take the places of
functions of mamba-ssm's ``ssd_bmm``, ``ssd_chunk_state``, ``ssd_state_passing`` and
``ssd_chunk_scan``, with the same parameters, results and layouts, as plain tensor operations in at
least float32, which have gradients. What is put together of them has its backward pass here too.

Axes are named b (batch), c (chunks), l (steps of a chunk), h (heads), g (groups), p (headdim),
n (dstate). What fills the last chunk up is zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import compute_dtype, without_autocast

from . import chunks, divided
from .checks import check_state_dtype, limits
from .contract import Scan


def chunk_cumsum_forward(
    dt: Tensor,
    A: Tensor,
    chunk_size: int,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """``cumsum(dt A)`` over each chunk, and the dt that is taken, both (b, h, c, l).

    dt (b, seqlen, h) becomes ``clamp(softplus(dt + dt_bias), *dt_limit)``, where asked for.
    """
    dtype = compute_dtype(dt, A, dt_bias)
    steps = dt.to(dtype)
    if dt_bias is not None:
        steps = steps + dt_bias.to(dtype)
    if dt_softplus:
        steps = functional.softplus(steps)
    steps = _chunks(steps.clamp(*dt_limit), chunk_size).permute(0, 3, 1, 2)
    return (steps * A.to(dtype)[:, None, None]).cumsum(-1), steps


def chunk_state_forward(
    B: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    seq_idx: Tensor | None = None,
    states: Tensor | None = None,
    states_in_fp32: bool = True,
) -> Tensor:
    """What each chunk adds to the state at its end, (b, c, h, p, n); into ``states`` if given.

    B is (b, seqlen, g, n), x (b, seqlen, h, p), dt and dA_cumsum (b, h, c, l). With seq_idx
    (b, seqlen) only the steps of the sequence that the chunk ends in count, none if it is padding.
    Float32, or the dtype of B without ``states_in_fp32``.
    """
    dtype = compute_dtype(B, x, dt, dA_cumsum)
    size = dt.shape[-1]
    weights = (dA_cumsum[..., -1:] - dA_cumsum).clamp(max=0.0).to(dtype).exp() * dt.to(dtype)
    if seq_idx is not None:
        index, last = _sequences(seq_idx, size)
        counts = (index == last.unsqueeze(-1)) & (last >= 0).unsqueeze(-1)
        weights = weights.masked_fill(~counts.unsqueeze(1), 0.0)
    with without_autocast(x.device):
        found = torch.einsum(
            "bclhp,bclhn,bhcl->bchpn",
            _chunks(x.to(dtype), size),
            _heads(_chunks(B.to(dtype), size), x.shape[2]),
            weights,
        )
    if states is not None:
        return states.copy_(found)
    return found.to(dtype if states_in_fp32 else B.dtype)


def chunk_state(
    B: Tensor, x: Tensor, dt: Tensor, dA_cumsum: Tensor, states_in_fp32: bool = True
) -> Tensor:
    """:func:`chunk_state_forward` of one sequence a row."""
    return chunk_state_forward(B, x, dt, dA_cumsum, states_in_fp32=states_in_fp32)


def chunk_state_varlen(
    B: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    cu_seqlens: Tensor,
    chunk_states: Tensor,
) -> Tensor:
    """The states at the ends of packed sequences: (sequences, h, p, n), in the dtype of these.

    B is (seqlen, g, n), x (seqlen, h, p), dt and dA_cumsum (h, c, l), ``chunk_states`` (c, h, p, n)
    those at the start of each chunk. A sequence is ``cu_seqlens[i]:cu_seqlens[i + 1]``.
    """
    dtype = compute_dtype(B, x, dt, dA_cumsum, chunk_states)
    size = dt.shape[-1]
    begins, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    # Where the last step of each lies: nothing is before the first.
    chunk = torch.div((ends - 1).clamp(min=0), size, rounding_mode="floor")
    step = (ends - 1 - chunk * size).clamp(min=0)
    steps = torch.arange(size, device=x.device)
    inside = (steps <= step[:, None]) & (steps >= (begins - chunk * size)[:, None])
    inside &= (ends > begins)[:, None]

    sums = dA_cumsum.to(dtype)[:, chunk]  # h, sequences, l
    last = sums.gather(-1, step.expand(sums.shape[0], -1).unsqueeze(-1))
    weights = (last - sums).clamp(max=0.0).exp() * dt.to(dtype)[:, chunk]
    weights = weights.masked_fill(~inside, 0.0)
    carried = last.squeeze(-1).exp().masked_fill(~(begins < chunk * size), 0.0)
    with without_autocast(x.device):
        found = torch.einsum(
            "slhp,slhn,hsl->shpn",
            _chunks(x.to(dtype).unsqueeze(0), size)[0, chunk],
            _heads(_chunks(B.to(dtype).unsqueeze(0), size)[0, chunk], x.shape[1]),
            weights,
        )
    found = found + chunk_states.to(dtype)[chunk] * carried.t()[..., None, None]
    return found.to(chunk_states.dtype)


def state_passing_forward(
    states: Tensor,
    dA_chunk_cumsum: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    chunk_size: int | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The states at the start of each chunk, and the last: of what each chunk adds to its end.

    ``states`` and the first result, in ``out_dtype`` or that of states, are (b, c, h, dim); the
    sums of each chunk's ``dt A`` (b, h, c); initial states and the last, in float32, (b, h, dim).
    With seq_idx (b, seqlen) and ``chunk_size`` a state is kept through a chunk that ends in the
    sequence that the one before ended in; the first begins in sequence 0.
    """
    dtype = compute_dtype(states, dA_chunk_cumsum, initial_states)
    carry = dA_chunk_cumsum.to(dtype).exp()
    if seq_idx is not None:
        if chunk_size is None:
            raise ValueError("chunk_size: expected an int with seq_idx, found None")
        _, last = _sequences(seq_idx, chunk_size)
        same = last == functional.pad(last, (1, 0))[:, :-1]
        carry = carry.masked_fill(~same.unsqueeze(1), 0.0)
    added = states.to(dtype)
    state = added.new_zeros(added[:, 0].shape)
    if initial_states is not None:
        state = initial_states.to(dtype)
    starts = []
    for chunk in range(states.shape[1]):
        starts.append(state)
        state = torch.addcmul(added[:, chunk], carry[:, :, chunk, None], state)
    return torch.stack(starts, 1).to(out_dtype or states.dtype), state


def state_passing(
    states: Tensor, dA_chunk_cumsum: Tensor, initial_states: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`state_passing_forward` of one sequence a row."""
    return state_passing_forward(states, dA_chunk_cumsum, initial_states)


def bmm_chunk_forward(
    a: Tensor,
    b: Tensor,
    chunk_size: int,
    seq_idx: Tensor | None = None,
    causal: bool = False,
    output_dtype: torch.dtype | None = None,
) -> Tensor:
    """``a[i] b[j]`` of the steps of each chunk: (b, c, l, l), or (b, c, g, l, l).

    a and b are (b, seqlen, k) or (b, seqlen, g, k). With seq_idx (b, seqlen) it is zero between
    steps of different sequences. ``causal`` says that those of i < j are not looked at. In
    ``output_dtype``, or that of a.
    """
    dtype = compute_dtype(a, b)
    left, right = (_chunks(each.to(dtype), chunk_size) for each in (a, b))
    if a.dim() == 4:
        left, right = left.transpose(2, 3), right.transpose(2, 3)
    with without_autocast(a.device):
        found = left @ right.transpose(-1, -2)
    if seq_idx is not None:
        index, _ = _sequences(seq_idx, chunk_size)
        same = index.unsqueeze(-1) == index.unsqueeze(-2)
        found = found.masked_fill(~(same.unsqueeze(2) if a.dim() == 4 else same), 0.0)
    return found.to(output_dtype or a.dtype)


def chunk_scan_forward(
    cb: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    C: Tensor,
    states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The output, and with z the one before the gate: (b, seqlen, h, p), in the dtype of x.

    cb is (b, c, g, l, l), as :func:`bmm_chunk_forward` has it of C and B, x and z (b, seqlen, h,
    p), dt and dA_cumsum (b, h, c, l), C (b, seqlen, g, n), D (h,) or (h, p), ``states`` (b, c, h,
    p, n) those at the start of each chunk, seq_idx (b, seqlen).
    """
    dtype = compute_dtype(cb, x, dt, dA_cumsum, C, states, D, z)
    size, nheads, seqlen = dt.shape[-1], x.shape[2], x.shape[1]
    sums, steps = dA_cumsum.to(dtype).transpose(1, 2), dt.to(dtype).transpose(1, 2)
    past = torch.ones(size, size, dtype=torch.bool, device=x.device).tril_()
    decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).clamp(max=0.0).exp()
    matrix = cb.to(dtype).repeat_interleave(nheads // cb.shape[2], 2) * decay
    matrix = matrix.masked_fill(~past, 0.0) * steps.unsqueeze(-2)
    enter = sums.exp()
    if seq_idx is not None:
        index, last = _sequences(seq_idx, size)
        before = functional.pad(last, (1, 0))[:, :-1]
        enter = enter.masked_fill((index != before.unsqueeze(-1)).unsqueeze(2), 0.0)
    inputs = _chunks(x.to(dtype), size)
    with without_autocast(x.device):
        out = torch.einsum("bchlm,bcmhp->bclhp", matrix, inputs)
        read = torch.einsum(
            "bclhn,bchpn,bchl->bclhp",
            _heads(_chunks(C.to(dtype), size), nheads),
            states.to(dtype),
            enter,
        )
    out = out + read
    if D is not None:
        out = out + inputs * (D.to(dtype) if D.dim() == 2 else D.to(dtype).unsqueeze(-1))
    out = out.flatten(1, 2)[:, :seqlen]
    if z is None:
        return out.to(x.dtype), None
    return (out * functional.silu(z.to(dtype))).to(x.dtype), out.to(x.dtype)


def chunk_scan(
    B: Tensor,
    C: Tensor,
    x: Tensor,
    dt: Tensor,
    dA_cumsum: Tensor,
    prev_states: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
) -> Tensor:
    """:func:`chunk_scan_forward` of B and C (b, seqlen, g, n), of one sequence a row."""
    cb = bmm_chunk_forward(C, B, dt.shape[-1], output_dtype=compute_dtype(B, C))
    return chunk_scan_forward(cb, x, dt, dA_cumsum, C, prev_states, D, z)[0]


@torch.no_grad()
def chunk_scan_combined_backward(
    dout: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    out: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dfinal_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    dx: Tensor | None = None,
    ddt: Tensor | None = None,
    dB: Tensor | None = None,
    dC: Tensor | None = None,
    dz: Tensor | None = None,
    recompute_output: bool = False,
    state_dtype: torch.dtype | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``mamba_chunk_scan_combined``, whose arguments are those of the same names.

    ``dx``, ``ddt``, ``dB``, ``dC`` and ``dz`` receive theirs where they are given; ``out`` is not
    needed. Returns the gradients of x, dt, A, B, C, D, z, dt_bias and initial_states, None for what
    was not given; with ``recompute_output`` also the output.
    """
    scan = Scan(
        *(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, None, chunk_size),
        *(bool(dt_softplus), limits(dt_limit), check_state_dtype(state_dtype)),
    )
    to_x, to_dt, to_B, to_C = (
        torch.empty_like(of) if target is None else target
        for target, of in ((dx, x), (ddt, dt), (dB, B), (dC, C))
    )
    if z is None:
        dz = None
    elif dz is None:
        dz = torch.empty_like(z)
    targets = chunks.Targets(to_x, to_dt, to_B, to_C, dz)
    # Without a gate the output before it is the output.
    again = torch.empty_like(x) if recompute_output and z is not None else out
    with without_autocast(x.device):
        others = divided.backward(
            *(scan, divided.states(scan), dout, dfinal_states, targets),
            out=again if recompute_output and z is not None else None,
        )
    found = (
        *(targets.x, targets.dt, others.A, targets.B, targets.C),
        *(others.D, targets.z, others.dt_bias, others.initial_states),
    )
    return (*found, again) if recompute_output else found


def _chunks(tensor: Tensor, size: int) -> Tensor:
    """(b, seqlen, ...) as (b, c, l, ...), with zeros after the last step."""
    missing = -tensor.shape[1] % size
    if missing:
        tensor = functional.pad(tensor, (*(0, 0) * (tensor.dim() - 2), 0, missing))
    return torch.unflatten(tensor, 1, (-1, size))


def _heads(tensor: Tensor, nheads: int) -> Tensor:
    """(..., g, n) as (..., h, n)."""
    return tensor.repeat_interleave(nheads // tensor.shape[-2], -2)


def _sequences(seq_idx: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The sequence of each step, (b, c, l), and of the last of each chunk, (b, c).

    What fills the last chunk up belongs to the sequence before it.
    """
    missing = -seq_idx.shape[1] % size
    whole = torch.cat([seq_idx, seq_idx[:, -1:].expand(-1, missing)], 1)
    index = torch.unflatten(whole, 1, (-1, size))
    return index, index[..., -1]
