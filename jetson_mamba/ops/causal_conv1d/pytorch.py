"""The convolution in PyTorch: runs on every device, in every dtype, at every width.

A causal depthwise convolution of a few taps is a sum of shifted copies of its input, so both
directions are written as one fused multiply-add for each tap. Nothing is unfolded, and no graph
is kept. On a CPU the channels go through in blocks that stay in its cache; what is allocated
beside the results is then a few blocks, not a few tensors of x's size.

Arithmetic is in float32 at least (float64 for float64), whatever the dtype of the tensors.
"""

from __future__ import annotations

from functools import partial
from typing import Iterator

import torch
from torch import Tensor

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.division import Part, divided
from jetson_mamba.dispatch.in_place import addcmul

from .contract import Case, Gradients, Implementation

# Elements of a block of channels on a CPU: 1 MiB in float32. Smaller ones spend their time on
# calls, larger ones leave the caches.
BLOCK = 1 << 18


def load(case: Case) -> Implementation:
    """The implementation; it serves every case."""
    return IMPLEMENTATION


@torch.no_grad()
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu: bool,
) -> Tensor:
    """As :class:`~.contract.Forward` says."""
    out = torch.empty_like(x)
    threads = workers.threads_for(x.numel()) if x.is_cpu else 1
    if threads == 1:
        _forward(x, weight, bias, seq_idx, initial_states, out, silu)
    else:

        def compute(part: Part) -> None:
            batch, channels, _ = part
            _forward(
                x[batch, channels],
                weight[channels],
                None if bias is None else bias[channels],
                None if seq_idx is None else seq_idx[batch],
                None if initial_states is None else initial_states[batch, channels],
                out[batch, channels],
                silu,
            )

        workers.run([partial(compute, part) for part in _parts(x, threads)], threads, short=True)
    if final_states_out is not None:
        write_final_states(x, initial_states, final_states_out)
    return out


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    out: Tensor,
    silu: bool,
) -> None:
    """Write the output."""
    dtype = _arithmetic(x, weight)
    taps, offset = _in_columns(weight, bias, dtype)
    foreign = _foreign_taps(seq_idx, weight.shape[1])
    for channels in _blocks(x):
        z = _target(out[:, channels], dtype)
        _convolve(
            z,
            x[:, channels].to(dtype),
            taps[channels],
            None if offset is None else offset[channels],
            None if initial_states is None else initial_states[:, channels].to(dtype),
            foreign,
        )
        if silu:
            torch.nn.functional.silu(z, inplace=True)
        if seq_idx is not None:
            z.masked_fill_((seq_idx < 0).unsqueeze(1), 0)
        if out.dtype != dtype:
            out[:, channels] = z


@torch.no_grad()
def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu: bool,
) -> Gradients:
    """As :class:`~.contract.Backward` says."""
    dtype = _arithmetic(x, weight)
    states = weight.shape[1] - 1
    if dx is None:
        dx = torch.empty_like(x)
    dinputs = dx
    dinitial_states = (
        x.new_empty((x.shape[0], states, x.shape[1])).transpose(1, 2)
        if return_dinitial_states
        else None
    )
    threads = workers.threads_for(x.numel()) if x.is_cpu else 1
    if threads == 1:
        dweight, dbias = _backward(
            *(x, weight, bias, dout, seq_idx, initial_states, dfinal_states),
            *(dinputs, dinitial_states, silu),
        )
    else:

        def compute(part: Part) -> tuple[Tensor, Tensor | None]:
            batch, channels, _ = part
            return _backward(
                x[batch, channels],
                weight[channels],
                None if bias is None else bias[channels],
                dout[batch, channels],
                None if seq_idx is None else seq_idx[batch],
                None if initial_states is None else initial_states[batch, channels],
                None if dfinal_states is None else dfinal_states[batch, channels],
                dinputs[batch, channels],
                None if dinitial_states is None else dinitial_states[batch, channels],
                silu,
            )

        parts = _parts(x, threads)
        found = workers.run([partial(compute, part) for part in parts], threads, short=True)
        dweight = torch.zeros(weight.shape, dtype=dtype, device=x.device)
        dbias = None if bias is None else torch.zeros(bias.shape, dtype=dtype, device=x.device)
        for part, (dweight_of_part, dbias_of_part) in zip(parts, found):
            dweight[part.channels] += dweight_of_part
            if dbias is not None and dbias_of_part is not None:
                dbias[part.channels] += dbias_of_part
    return (
        dx,
        dweight.to(weight.dtype),
        None if bias is None or dbias is None else dbias.to(bias.dtype),
        dinitial_states,
    )


def _backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor,
    dinitial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor | None]:
    """Write the gradients of the inputs, and return the others' in the dtype of arithmetic."""
    dtype = _arithmetic(x, weight)
    states = weight.shape[1] - 1
    taps, offset = _in_columns(weight, bias, dtype)
    foreign = _foreign_taps(seq_idx, weight.shape[1])
    padding = None if seq_idx is None else (seq_idx < 0).unsqueeze(1)
    dweight = torch.zeros(weight.shape, dtype=dtype, device=x.device)
    dbias = None if bias is None else torch.empty(bias.shape, dtype=dtype, device=x.device)
    for channels in _blocks(x):
        inputs = x[:, channels].to(dtype)
        initial = None if initial_states is None else initial_states[:, channels].to(dtype)
        dz = dout[:, channels].to(dtype)
        if silu:
            z = torch.empty_like(inputs)
            _convolve(
                z,
                inputs,
                taps[channels],
                None if offset is None else offset[channels],
                initial,
                foreign,
            )
            dz = torch.ops.aten.silu_backward.grad_input(dz, z, grad_input=z)
        if padding is not None:
            dz = dz.masked_fill(padding, 0)
        if dbias is not None:
            dbias[channels] = dz.sum((0, 2))
        dinputs = _target(dx[:, channels], dtype)
        dinitial = None
        if dinitial_states is not None:
            dinitial = dz.new_zeros((x.shape[0], dz.shape[1], states))
        _convolve_backward(
            dinputs, dweight[channels], dinitial, dz, inputs, taps[channels], initial, foreign
        )
        if dfinal_states is not None:
            add_final_states_gradient(dinputs, dinitial, dfinal_states[:, channels].to(dtype))
        if dx.dtype != dtype:
            dx[:, channels] = dinputs
        if dinitial_states is not None and dinitial is not None:
            dinitial_states[:, channels] = dinitial
    return dweight, dbias


@torch.no_grad()
def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    """As :class:`~.contract.Update` says."""
    states, seqlen, length = weight.shape[1] - 1, x.shape[2], conv_state.shape[2]
    if seqlen == 1 and cache_seqlens is None and conv_state_indices is None and length > states:
        return _step(x, conv_state, weight, bias, silu)
    state = conv_state
    if conv_state_indices is not None:
        state = conv_state.index_select(0, conv_state_indices.clamp(min=0))
    if cache_seqlens is None:
        history = state[..., length - states :]
    else:
        history = state.gather(2, _ring(x, cache_seqlens, -states, 0, length))
    out = forward(x, weight, bias, None, history, None, silu)
    # Only the last inputs fit; of a ring too, where the earlier ones would be overwritten.
    kept = min(seqlen, length)
    latest = x[..., seqlen - kept :]
    if cache_seqlens is None:
        if kept < length:
            state[..., : length - kept] = state[..., kept:].clone()
        state[..., length - kept :] = latest
    else:
        state.scatter_(2, _ring(x, cache_seqlens, seqlen - kept, seqlen, length), latest)
    if conv_state_indices is not None:
        used = conv_state_indices >= 0
        conv_state[conv_state_indices[used].long()] = state[used]
        out.masked_fill_(~used[:, None, None], 0)
    return out


def _step(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """One input more, of a state that holds all that it meets: few operations, each on all taps."""
    dtype, width = _arithmetic(x, weight), weight.shape[1]
    conv_state[..., :-1] = conv_state[..., 1:].clone()
    conv_state[..., -1:] = x
    out = (conv_state[..., -width:].to(dtype) * weight.to(dtype)).sum(-1, keepdim=True)
    if bias is not None:
        out += bias.to(dtype).unsqueeze(-1)
    if silu:
        torch.nn.functional.silu(out, inplace=True)
    return out.to(x.dtype)


IMPLEMENTATION = Implementation(forward, backward, update)


def write_final_states(x: Tensor, initial_states: Tensor | None, final_states_out: Tensor) -> None:
    """Write the last inputs, and from before them what is left of the initial states."""
    states, seqlen = final_states_out.shape[2], x.shape[2]
    kept = min(states, seqlen)
    if kept < states:
        # The copy is for final_states_out that is initial_states: source and target overlap.
        earlier = 0 if initial_states is None else initial_states[..., kept:].clone()
        final_states_out[..., : states - kept] = earlier
    final_states_out[..., states - kept :] = x[..., seqlen - kept :]


def add_final_states_gradient(
    dx: Tensor, dinitial_states: Tensor | None, dfinal_states: Tensor
) -> None:
    """Hand the gradient of the final states back to the inputs that they are copies of."""
    states, seqlen = dfinal_states.shape[2], dx.shape[2]
    kept = min(states, seqlen)
    dx[..., seqlen - kept :] += dfinal_states[..., states - kept :]
    if dinitial_states is not None:
        dinitial_states[..., kept:] += dfinal_states[..., : states - kept]


def _convolve(
    z: Tensor,
    x: Tensor,
    taps: Tensor,
    offset: Tensor | None,
    initial_states: Tensor | None,
    foreign: list[Tensor] | None,
) -> None:
    """Write the convolution into ``z``. ``taps`` is (dim, width, 1), ``offset`` (dim, 1)."""
    width, seqlen = taps.shape[1], x.shape[2]
    if offset is None:
        torch.mul(x, taps[:, -1], out=z)
    else:
        addcmul(offset, x, taps[:, -1], out=z)
    for lag in range(1, width):
        tap = taps[:, width - 1 - lag]
        inside = max(seqlen - lag, 0)
        if inside:
            past = x[..., :inside]
            if foreign is not None:
                past = past.masked_fill(foreign[lag][..., lag:], 0)
            z[..., lag:].addcmul_(past, tap)
        if initial_states is not None:
            before = seqlen - inside
            past = initial_states[..., width - 1 - lag :][..., :before]
            if foreign is not None:
                past = past.masked_fill(foreign[lag][..., :before], 0)
            z[..., :before].addcmul_(past, tap)


def _convolve_backward(
    dx: Tensor,
    dweight: Tensor,
    dinitial_states: Tensor | None,
    dz: Tensor,
    x: Tensor,
    taps: Tensor,
    initial_states: Tensor | None,
    foreign: list[Tensor] | None,
) -> None:
    """Write ``dx`` and ``dweight`` and add to ``dinitial_states``, tap by tap as `_convolve`."""
    width, seqlen = taps.shape[1], x.shape[2]
    torch.mul(dz, taps[:, -1], out=dx)
    dweight[:, -1] = (dz * x).sum((0, 2))
    for lag in range(1, width):
        column = width - 1 - lag
        tap = taps[:, column]
        inside = max(seqlen - lag, 0)
        before = seqlen - inside
        if inside:
            later = dz[..., lag:]
            if foreign is not None:
                later = later.masked_fill(foreign[lag][..., lag:], 0)
            dx[..., :inside].addcmul_(later, tap)
            dweight[:, column] = (later * x[..., :inside]).sum((0, 2))
        if initial_states is not None or dinitial_states is not None:
            later = dz[..., :before]
            if foreign is not None:
                later = later.masked_fill(foreign[lag][..., :before], 0)
            if initial_states is not None:
                past = initial_states[..., column:][..., :before]
                dweight[:, column] += (later * past).sum((0, 2))
            if dinitial_states is not None:
                dinitial_states[..., column:][..., :before].addcmul_(later, tap)


def _foreign_taps(seq_idx: Tensor | None, width: int) -> list[Tensor] | None:
    """For each lag, where the input so far back is of another sequence: (batch, 1, seqlen)."""
    if seq_idx is None:
        return None
    foreign = []
    for lag in range(width):
        # The inputs before the first belong to its sequence.
        source = torch.arange(-lag, seq_idx.shape[1] - lag, device=seq_idx.device).clamp_(min=0)
        foreign.append((seq_idx != seq_idx[:, source]).unsqueeze(1))
    return foreign


def _ring(x: Tensor, cache_seqlens: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Places in a ring of the steps from ``start`` to ``stop``: (batch, dim, stop - start)."""
    steps = torch.arange(start, stop, device=x.device)
    places = (cache_seqlens.unsqueeze(1) + steps).remainder(length)
    return places.unsqueeze(1).expand(-1, x.shape[1], -1)


def _arithmetic(x: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)


def _in_columns(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Weight as (dim, width, 1) and bias as (dim, 1), to broadcast over time."""
    return (
        weight.to(dtype).unsqueeze(-1),
        None if bias is None else bias.to(dtype).unsqueeze(-1),
    )


def _target(result: Tensor, dtype: torch.dtype) -> Tensor:
    """Where to compute a block of a result: in place, unless its dtype is too narrow."""
    return result if result.dtype == dtype else torch.empty_like(result, dtype=dtype)


def _parts(x: Tensor, threads: int) -> list[Part]:
    """What each of them has."""
    batch, dim, _ = x.shape
    return divided(threads, batch, dim)


def _blocks(x: Tensor) -> Iterator[slice]:
    """The channels in blocks; a single one where launches cost more than a cache saves."""
    batch, dim, seqlen = x.shape
    step = dim
    if x.device.type == "cpu":
        # Where channels lie side by side, a block holds whole cache lines of them.
        step = max(BLOCK // max(batch * seqlen, 1), 16 if x.stride(1) == 1 else 1)
    for start in range(0, dim, max(step, 1)):
        yield slice(start, start + step)
