"""The convolution by the compiled module of causal-conv1d, ``causal_conv1d_cuda``.

Its functions have had four signatures, and neither the module nor the functions carry a
version. What they say of themselves is the number of their parameters, in the ``__doc__`` that
pybind11 writes. :func:`calls` evens the signatures out, once; :func:`around` adds what no
release does: every layout, every argument, padding.
"""

from __future__ import annotations

import re
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch import compiled
from jetson_mamba.errors import Unavailable

from . import pytorch
from .contract import Case, Gradients, Implementation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (2, 3, 4)
# The kernels read 16 bytes at a time, from addresses that they take to be multiples of it.
VECTOR_BYTES = 16


def load(case: Case) -> Implementation:
    """The implementation by the compiled module that is installed."""
    refuse(case)
    return around(calls(compiled_module()), case)


def refuse(case: Case) -> None:
    """Raise :class:`Unavailable` for what no release has a kernel for."""
    if case.dtype not in DTYPES or case.weight_dtype not in DTYPES:
        raise Unavailable(f"no kernel for {case.dtype} with weights of {case.weight_dtype}")
    if case.width not in WIDTHS:
        raise Unavailable(f"no kernel for width {case.width}")


def compiled_module() -> Any:
    """``causal_conv1d_cuda``, if it is installed."""
    return compiled.compiled_module("causal_conv1d_cuda")


class Calls(NamedTuple):
    """The functions of one release, in one form, and what they can be asked."""

    # x, weight, bias, seq_idx, initial_states, silu
    forward: Callable[..., Tensor]
    # x, weight, bias, dout, seq_idx, initial_states, dx, return_dinitial_states, silu
    backward: Callable[..., Gradients]
    # x (batch, dim, seqlen), conv_state, weight, bias, cache_seqlens, conv_state_indices, silu
    update: Callable[..., Tensor]
    takes_seq_idx: bool
    takes_initial_states: bool
    # Any seqlen and state length, and cache_seqlens; else one step on a state of length width.
    updates_ring: bool
    takes_indices: bool


def calls(module: Any) -> Calls:
    """The functions of ``module`` in one form, by the signatures that they tell."""
    forward_count = parameters(module.causal_conv1d_fwd)
    backward_count = parameters(module.causal_conv1d_bwd)
    update_count = parameters(module.causal_conv1d_update)
    try:
        return Calls(
            forward=_FORWARDS[forward_count](module.causal_conv1d_fwd),
            backward=_BACKWARDS[backward_count](module.causal_conv1d_bwd),
            update=_UPDATES[update_count](module.causal_conv1d_update),
            takes_seq_idx=forward_count > 4 and backward_count > 6,
            takes_initial_states=forward_count > 5 and backward_count > 7,
            updates_ring=update_count > 5,
            takes_indices=update_count > 6,
        )
    except KeyError:
        raise TypeError(
            "causal_conv1d_cuda: no known release has functions of "
            f"{forward_count}, {backward_count} and {update_count} parameters"
        ) from None


def parameters(function: Any) -> int:
    """How many parameters a pybind11 function has: its docstring begins with its signature."""
    signature = re.match(r"\w+\((.*)\)\s*->", (function.__doc__ or "").strip())
    if signature is None:
        raise TypeError(f"{function!r} does not tell its signature")
    listed, nested = signature[1], 1
    while nested:
        listed, nested = re.subn(r"\[[^\[\]]*\]", "", listed)
    return listed.count(",") + 1


def _forward_writes_out(function: Any) -> Callable[..., Tensor]:
    def forward(x: Tensor, w: Any, b: Any, seq_idx: Any, initial: Any, silu: bool) -> Tensor:
        out = torch.empty_like(x)
        function(x, w, b, seq_idx, initial, out, None, silu)
        return out

    return forward


def _backward_writes_all(function: Any) -> Callable[..., Gradients]:
    def backward(
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        dout: Tensor,
        seq_idx: Tensor | None,
        initial: Tensor | None,
        dx: Tensor | None,
        return_dinitial: bool,
        silu: bool,
    ) -> Gradients:
        if dx is None:
            dx = torch.empty_like(x)
        # The kernel adds to these.
        dweight = torch.zeros_like(w, dtype=torch.float32)
        dbias = None if b is None else torch.zeros_like(b, dtype=torch.float32)
        dinitial = None
        if return_dinitial:
            states = w.shape[1] - 1
            dinitial = x.new_empty((x.shape[0], states, x.shape[1])).transpose(1, 2)
        function(x, w, b, dout, seq_idx, initial, None, dx, dweight, dbias, dinitial, silu)
        return (
            dx,
            dweight.to(w.dtype),
            None if b is None or dbias is None else dbias.to(b.dtype),
            dinitial,
        )

    return backward


def _update_writes_out(function: Any) -> Callable[..., Tensor]:
    def update(x: Tensor, state: Any, w: Any, b: Any, cache: Any, rows: Any, silu: bool) -> Tensor:
        out = torch.empty_like(x)
        function(x, state, w, b, out, silu, cache, rows)
        return out

    return update


# By the number of parameters; releases 1.0, 1.1, 1.2 to 1.5.0, and from 1.5.1 on.
_FORWARDS: dict[int, Callable[[Any], Callable[..., Tensor]]] = {
    4: lambda f: lambda x, w, b, seq_idx, initial, silu: f(x, w, b, silu),
    5: lambda f: lambda x, w, b, seq_idx, initial, silu: f(x, w, b, seq_idx, silu),
    7: lambda f: lambda x, w, b, seq_idx, initial, silu: f(x, w, b, seq_idx, initial, None, silu),
    8: _forward_writes_out,
}
_BACKWARDS: dict[int, Callable[[Any], Callable[..., Gradients]]] = {
    6: lambda f: (
        lambda x, w, b, dout, seq_idx, initial, dx, return_dinitial, silu: (
            *f(x, w, b, dout, dx, silu),
            None,
        )
    ),
    7: lambda f: (
        lambda x, w, b, dout, seq_idx, initial, dx, return_dinitial, silu: (
            *f(x, w, b, dout, seq_idx, dx, silu),
            None,
        )
    ),
    10: lambda f: (
        lambda x, w, b, dout, seq_idx, initial, dx, return_dinitial, silu: f(
            x, w, b, dout, seq_idx, initial, None, dx, return_dinitial, silu
        )
    ),
    12: _backward_writes_all,
}
# 1.0 to 1.3, 1.4, 1.5.0, and from 1.5.1 on. The first takes x without the axis of time.
_UPDATES: dict[int, Callable[[Any], Callable[..., Tensor]]] = {
    5: lambda f: (
        lambda x, state, w, b, cache, rows, silu: f(x.squeeze(2), state, w, b, silu).unsqueeze(2)
    ),
    6: lambda f: lambda x, state, w, b, cache, rows, silu: f(x, state, w, b, silu, cache),
    7: lambda f: lambda x, state, w, b, cache, rows, silu: f(x, state, w, b, silu, cache, rows),
    8: _update_writes_out,
}


def around(calls: Calls, case: Case) -> Implementation:
    """The implementation that gives ``calls`` what they accept and does what they do not.

    Final states are copies of inputs, in and out, so they are handled here, in every layout.
    Sequences and initial states need channels side by side, in multiples of 8. What a release
    cannot be asked goes to the PyTorch implementation, for that call.
    """
    forward_zeroes_padding = calls.takes_seq_idx and _forward_zeroes_padding(calls, case)
    update_skips_padding = calls.takes_indices and _update_skips_padding(calls, case)

    def supported(x: Tensor, seq_idx: Tensor | None, with_states: bool) -> bool:
        if seq_idx is None and not with_states:
            return True
        return (
            x.shape[1] % 8 == 0
            and (seq_idx is None or calls.takes_seq_idx)
            # Which sequence the states belong to, releases do not agree on.
            and (not with_states or (calls.takes_initial_states and seq_idx is None))
        )

    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        final_states_out: Tensor | None,
        silu: bool,
    ) -> Tensor:
        if not supported(x, seq_idx, initial_states is not None):
            return pytorch.forward(x, weight, bias, seq_idx, initial_states, final_states_out, silu)
        channel_last = seq_idx is not None or initial_states is not None
        out = calls.forward(
            _readable(x, channel_last),
            weight,
            None if bias is None else bias.contiguous(),
            None if seq_idx is None else seq_idx.contiguous(),
            None if initial_states is None else _laid_out(initial_states, True),
            silu,
        )
        if seq_idx is not None and not forward_zeroes_padding:
            out.masked_fill_((seq_idx < 0).unsqueeze(1), 0)
        if final_states_out is not None:
            pytorch.write_final_states(x, initial_states, final_states_out)
        return out

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
        with_states = initial_states is not None or return_dinitial_states
        if not supported(x, seq_idx, with_states):
            return pytorch.backward(
                x,
                weight,
                bias,
                dout,
                seq_idx,
                initial_states,
                dfinal_states,
                dx,
                return_dinitial_states,
                silu,
            )
        if seq_idx is not None:
            # Every release lets gradients start at padding.
            dout = dout.masked_fill((seq_idx < 0).unsqueeze(1), 0)
            seq_idx = seq_idx.contiguous()
        x = _readable(x, seq_idx is not None or with_states)
        channel_last = _is_channel_last(x)
        target = dx if dx is not None and _fits(dx, channel_last) else None
        written, dweight, dbias, dinitial_states = calls.backward(
            x,
            weight,
            None if bias is None else bias.contiguous(),
            _laid_out(dout, channel_last),
            seq_idx,
            None if initial_states is None else _laid_out(initial_states, True),
            target,
            return_dinitial_states,
            silu,
        )
        if dx is None:
            dx = written
        elif target is None:
            dx.copy_(written)
        if not return_dinitial_states:
            dinitial_states = None
        if dfinal_states is not None:
            pytorch.add_final_states_gradient(dx, dinitial_states, dfinal_states)
        return dx, dweight, dbias if bias is not None else None, dinitial_states

    def update(
        x: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cache_seqlens: Tensor | None,
        conv_state_indices: Tensor | None,
        silu: bool,
    ) -> Tensor:
        plain = x.shape[2] == 1 and conv_state.shape[2] == case.width and cache_seqlens is None
        if (not calls.updates_ring and not plain) or (
            conv_state_indices is not None and not update_skips_padding
        ):
            return pytorch.update(
                x, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu
            )
        return calls.update(
            x,
            conv_state,
            weight,
            None if bias is None else bias.contiguous(),
            None if cache_seqlens is None else cache_seqlens.contiguous(),
            None if conv_state_indices is None else conv_state_indices.contiguous(),
            silu,
        )

    return Implementation(forward, backward, update)


def _forward_zeroes_padding(calls: Calls, case: Case) -> bool:
    """Whether the output is zero where seq_idx is negative: so from some 1.5 release on."""
    x = torch.ones((1, 2, 8), dtype=case.dtype, device=case.device).transpose(1, 2)
    weight = torch.ones((8, case.width), dtype=case.weight_dtype, device=case.device)
    padding = torch.full((1, 2), -1, dtype=torch.int32, device=case.device)
    return not bool(calls.forward(x, weight, None, padding, None, False).any())


def _update_skips_padding(calls: Calls, case: Case) -> bool:
    """Whether a negative index leaves the state alone: so from some 1.5 release on.

    A release that takes it for an index reads and writes before the first entry of the state.
    Here that is memory of the test's own.
    """
    memory = torch.zeros((2, 8, case.width), dtype=case.dtype, device=case.device)
    x = torch.ones((1, 8, 1), dtype=case.dtype, device=case.device)
    weight = torch.ones((8, case.width), dtype=case.weight_dtype, device=case.device)
    padding = torch.full((1,), -1, dtype=torch.int32, device=case.device)
    out = calls.update(x, memory[1:], weight, None, None, padding, False)
    return not bool(out.any() or memory.any())


def _readable(x: Tensor, channel_last: bool) -> Tensor:
    """``x`` as it is where the kernels can read it, else a copy that they can."""
    if (x.shape[1] % 8 == 0 and _is_channel_last(x) and _fits(x, True)) or (
        not channel_last and _fits(x, False)
    ):
        return x
    return _copy(x, channel_last)


def _laid_out(tensor: Tensor, channel_last: bool) -> Tensor:
    return tensor if _fits(tensor, channel_last) else _copy(tensor, channel_last)


def _copy(tensor: Tensor, channel_last: bool) -> Tensor:
    """A copy with the strides of its layout, which ``contiguous`` leaves open at size 1."""
    batch, dim, seqlen = tensor.shape
    if channel_last:
        return tensor.new_empty((batch, seqlen, dim)).transpose(1, 2).copy_(tensor)
    return tensor.new_empty((batch, dim, seqlen)).copy_(tensor)


def _is_channel_last(x: Tensor) -> bool:
    """What the kernels go by: with a stride of 1 in time they take x for channel-first."""
    return x.stride(1) == 1 and x.stride(2) > 1


def _fits(tensor: Tensor, channel_last: bool) -> bool:
    """Whether the kernels for a layout can read and write the tensor where it lies."""
    batch_stride, channel_stride, time_stride = tensor.stride()
    if 0 in (batch_stride, channel_stride, time_stride):
        return False
    aligned = tensor.data_ptr() % VECTOR_BYTES == 0
    if channel_last:
        return channel_stride == 1 and batch_stride % 8 == 0 and time_stride % 8 == 0 and aligned
    step = VECTOR_BYTES // tensor.element_size()
    # The kernels read whole vectors along time where seqlen is a multiple of their length.
    return time_stride == 1 and (
        tensor.shape[2] % step != 0
        or (aligned and batch_stride % step == 0 and channel_stride % step == 0)
    )
