"""The causal depthwise convolution of Mamba, by the first backend that works.

The functions have the names and the meaning of causal-conv1d's: what its wrapper, its
compiled backward pass and its decode step give, on every device and with every release of it,
or none. ``contract`` says what is computed; the other modules are the backends.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.in_place import count_write, version, write
from jetson_mamba.dispatch.paths import Way, is_batched, is_transformed, way, way_back
from jetson_mamba.dispatch.selection import register
from jetson_mamba.dispatch.tracing import untraced

from . import activations, composed, pytorch
from .autograd import differentiable
from .checks import check, check_backward, check_states, check_update, is_silu
from .contract import Case, Gradients, Implementation
from .library import Operators
from .trial import trial


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """The causal convolution of each channel with its own taps, with the gradients of all.

    Args:
        x: (batch, dim, seqlen) with any strides; float16, bfloat16, float32 or float64.
        weight: (dim, width), width 2 or more, of any of those dtypes.
        bias: (dim,), of any of them.
        seq_idx: (batch, seqlen), int32: the sequence that each step belongs to. Steps of other
            sequences count as zero; where it is negative, the output is zero.
        initial_states: (batch, dim, width - 1), of any of them: the inputs before the first,
            which with ``seq_idx`` belong to the sequence of the first.
        return_final_states: also return the last ``width - 1`` inputs. Not with ``seq_idx``.
        final_states_out: where to write them, whether or not they are returned, in its own
            dtype. It may share memory with ``initial_states``.
        activation: None, or "silu" alias "swish"; beside transformers any that it has a name for.

    Returns:
        The output, of the shape and dtype of ``x``; with ``return_final_states`` a tuple of it
        and the final states (batch, dim, width - 1), in the dtype of ``x`` or of
        ``final_states_out``.

    Raises:
        ValueError: a shape, a device, a value or a combination that does not fit.
        TypeError: a dtype that does not fit.
    """
    if isinstance(seq_idx, str):
        # causal-conv1d 1.0 took the activation in this place, and mamba-ssm 1.0 passes it there.
        seq_idx, activation = None, seq_idx
    if activation not in activations.OWN:
        function = activations.named(activation)
        others = (return_final_states, final_states_out)
        found = causal_conv1d_fn(x, weight, bias, seq_idx, initial_states, *others)
        return (function(found[0]), found[1]) if return_final_states else function(found)
    silu = is_silu(activation)
    chosen = way(x, weight, bias, seq_idx, initial_states, final_states_out)
    if chosen is Way.COMPOSED:
        with untraced():
            check(x, weight, bias, seq_idx, initial_states)
    else:
        check(x, weight, bias, seq_idx, initial_states)
    if seq_idx is not None and (return_final_states or final_states_out is not None):
        raise ValueError(
            "return_final_states, final_states_out: expected neither with seq_idx, because "
            "the last inputs may belong to several sequences"
        )
    place = final_states_out
    if place is not None:
        if chosen is not Way.COMPOSED:
            check_states("final_states_out", place, x, weight)
        if place.dtype != x.dtype or chosen is not Way.KERNELS:
            place = None
    if bias is not None and bias.dtype != weight.dtype:
        weight, bias = _of_one_dtype(weight, bias)
    if initial_states is not None and initial_states.dtype != x.dtype:
        initial_states = initial_states.to(x.dtype)
    wanted = return_final_states or final_states_out is not None
    if chosen is Way.KERNELS:
        if not wanted and not torch.is_grad_enabled():
            return _implementation(x, weight).forward(
                x, weight, bias, seq_idx, initial_states, None, silu
            )
        out, states = _launched(x, weight, bias, seq_idx, initial_states, wanted, place, silu)
    elif chosen is Way.OPERATORS:
        if initial_states is not None and final_states_out is not None:
            # The graph keeps what may be written below.
            initial_states = initial_states.clone()
        out, states = _OPERATORS.forward(x, weight, bias, seq_idx, initial_states, wanted, silu)
    else:
        out, states = composed.forward(x, weight, bias, seq_idx, initial_states, silu)
    if final_states_out is not None and place is None and states is not None:
        with torch.no_grad():
            final_states_out.copy_(states.detach())
        states = states.to(final_states_out.dtype) if states.requires_grad else final_states_out
    return (out, states) if return_final_states else out


def _launched(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    wanted: bool,
    final_states_out: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output and the final states, if they are ``wanted``, by the backend that serves."""
    implementation = _implementation(x, weight)
    recorded = torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (initial_states is not None and initial_states.requires_grad)
    )
    if final_states_out is None:
        if wanted:
            sizes = (x.shape[0], weight.shape[1] - 1, x.shape[1])
            final_states_out = x.new_empty(sizes).transpose(1, 2)
    elif initial_states is not None and _is_changed(initial_states, final_states_out, recorded):
        initial_states = initial_states.clone()
    arguments = (x, weight, bias, seq_idx, initial_states, final_states_out, silu)
    if recorded:
        return differentiable(implementation, *arguments)
    before = version(final_states_out)
    out = implementation.forward(*arguments)
    count_write(final_states_out, before)
    return out, final_states_out


def _is_changed(initial_states: Tensor, final_states_out: Tensor, recorded: bool) -> bool:
    """Whether writing the final states changes initial states that are still to be read.

    A backend can write to the very tensor that it reads from. Kept for a backward pass, not even
    another part of one memory may be written: they have one version.
    """
    if initial_states.untyped_storage().data_ptr() != final_states_out.untyped_storage().data_ptr():
        return False
    return recorded or not (
        initial_states.data_ptr() == final_states_out.data_ptr()
        and initial_states.stride() == final_states_out.stride()
    )


def causal_conv1d_bwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    *,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    dfinal_states: Tensor | None = None,
    dx: Tensor | None = None,
    return_dinitial_states: bool = False,
    activation: str | None = None,
) -> Gradients:
    """The gradients of :func:`causal_conv1d_fn`, without a graph.

    Args:
        x: and ``weight``, ``bias``, ``seq_idx``, ``initial_states``, ``activation``: as given
            to :func:`causal_conv1d_fn`.
        weight: see there.
        bias: see there.
        dout: the gradient of the output, of the shape and dtype of ``x``.
        seq_idx: see there.
        initial_states: see there.
        dfinal_states: (batch, dim, width - 1), the gradient of the final states.
        dx: where to write the gradient of ``x``, with any strides. It may not overlap ``x`` or
            ``dout``.
        return_dinitial_states: also compute the gradient of the initial states.
        activation: see there.

    Returns:
        ``dx`` (the tensor that was given, if one was), ``dweight``, ``dbias`` (None without
        bias) and ``dinitial_states`` (None unless asked for), in the dtypes of what they belong
        to.

    Raises:
        ValueError: a shape, a device, a value or a combination that does not fit.
        TypeError: a dtype that does not fit.
    """
    silu = is_silu(activation)
    chosen = way_back(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx)
    if chosen is Way.COMPOSED:
        with untraced():
            check_backward(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx)
    else:
        check_backward(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx)
    given: Any = (x, weight, bias, dout, seq_idx, initial_states, dfinal_states)
    taken = _converted(given)
    backward: Any = composed.backward
    found: Gradients
    if chosen is Way.COMPOSED:
        found = backward(*taken, return_dinitial_states, silu)
    elif chosen is Way.OPERATORS:
        found = _OPERATORS.backward(*taken, return_dinitial_states, silu)
    else:
        before = version(dx)
        backward = _implementation(x, taken[1]).backward
        found = backward(*taken, dx, return_dinitial_states, silu)
        count_write(dx, before)
    if (
        torch.is_grad_enabled()
        and (chosen is not Way.COMPOSED or is_batched(dout))
        and twice.in_backward_pass()
        and any(each is not None and each.requires_grad for each in given)
    ):
        once: Any = tuple(twice.once_only(found, given))
        found = once
    if dx is not None and found[0] is not dx:
        twice.write(dx, found[0])
        found = (dx, *found[1:])
    if taken is given:
        return found
    written, dweight, dbias, dinitial_states = found
    return (
        written,
        dweight.to(weight.dtype),
        None if bias is None or dbias is None else dbias.to(bias.dtype),
        dinitial_states
        if initial_states is None or dinitial_states is None
        else dinitial_states.to(initial_states.dtype),
    )


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """The output of further steps, given the inputs before them; no gradients.

    Args:
        x: (batch, dim) or (batch, dim, seqlen), the inputs of the steps.
        conv_state: (batch, dim, length), length ``width - 1`` or more, of any dtype that ``x``
            may have: the latest inputs. Written in place.
        weight: (dim, width), width 2 or more.
        bias: (dim,).
        activation: None, or "silu" alias "swish"; beside transformers any that it has a name for.
        cache_seqlens: (batch,), int32: how many steps there were before. With it ``conv_state``
            is a ring, where step ``n`` stands at ``n % length``; without it the last input
            stands at the end.
        conv_state_indices: (batch,), int32: the entry of ``conv_state``, then
            (entries, dim, length), that each row of ``x`` belongs to. No entry twice; where it
            is negative, the row is padding: its output is zero and nothing is written.

    Returns:
        The output, of the shape and dtype of ``x``.

    Raises:
        ValueError: a shape, a device or a value that does not fit.
        TypeError: a dtype that does not fit.
    """
    if activation not in activations.OWN:
        function = activations.named(activation)
        places = (cache_seqlens, conv_state_indices)
        return function(causal_conv1d_update(x, conv_state, weight, bias, None, *places))
    silu = is_silu(activation)
    chosen = way(x, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    steps = x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() == 2 else x
    if chosen is Way.COMPOSED:
        with untraced():
            check_update(steps, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    else:
        check_update(steps, conv_state, weight, bias, cache_seqlens, conv_state_indices)
    if bias is not None and bias.dtype != weight.dtype:
        weight, bias = _of_one_dtype(weight, bias)
    inputs, state = steps, conv_state
    if x.dtype != conv_state.dtype:
        # In the wider dtype, so that the state keeps what it held as it was.
        wide = torch.promote_types(x.dtype, conv_state.dtype)
        inputs, state = steps.to(wide), conv_state.to(wide)
    arguments = (inputs, state, weight, bias, cache_seqlens, conv_state_indices, silu)
    if chosen is Way.COMPOSED:
        out, state = composed.update(*arguments)
    elif chosen is Way.OPERATORS:
        out = _OPERATORS.update(*arguments)
    else:
        before = version(state)
        out = _implementation(inputs, weight).update(*arguments)
        count_write(state, before)
    if state is not conv_state:
        with nullcontext() if is_transformed() else torch.no_grad():
            write(conv_state, state)
    if inputs is not steps:
        out = out.to(x.dtype)
    return out if steps is x else out.squeeze(-1)


def serves_unchecked(weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None) -> bool:
    """Whether the two functions below take these as they are, where their shapes fit."""
    return (
        weight.shape[1] >= 2
        and (bias is None or bias.dtype == weight.dtype)
        and (seq_idx is None or seq_idx.dtype == torch.int32)
    )


def forward_unchecked(
    x: Tensor, weight: Tensor, bias: Tensor | None, seq_idx: Tensor | None, silu: bool
) -> Tensor:
    """:func:`causal_conv1d_fn` inside another op, on kernels and without a graph."""
    return _implementation(x, weight).forward(x, weight, bias, seq_idx, None, None, silu)


def backward_unchecked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    dx: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor | None]:
    """:func:`causal_conv1d_bwd` inside another op's: the gradients of weight and bias.

    That of x is written to ``dx``, which nobody else has seen.
    """
    backward = _implementation(x, weight).backward
    found, dweight, dbias, _ = backward(x, weight, bias, dout, seq_idx, None, None, dx, False, silu)
    if found is not dx:
        dx.copy_(found)
    return dweight, dbias


def begin(x: Tensor, weight: Tensor) -> None:
    """Begin to choose the backend of such a call, which is about to be made."""
    OP.begin(Case(x.device, x.dtype, weight.dtype, weight.shape[1]))


def _implementation(x: Tensor, weight: Tensor) -> Implementation:
    if x.numel() == 0:
        # No kernel is launched for nothing; the PyTorch functions mind no size.
        return pytorch.IMPLEMENTATION
    case = (x.device, x.dtype, weight.dtype, weight.shape[1])
    return OP.find(case) or OP.implementation(Case(*case))


def _converted(given: tuple[Any, ...]) -> Any:
    """The arguments of a backward pass as ``contract`` promises them; themselves where they are."""
    x, weight, bias, dout, seq_idx, initial_states, dfinal_states = given
    if (
        (bias is None or bias.dtype == weight.dtype)
        and (initial_states is None or initial_states.dtype == x.dtype)
        and (dfinal_states is None or dfinal_states.dtype == x.dtype)
    ):
        return given
    weight, bias = _of_one_dtype(weight, bias)
    states = [
        None if states is None else states.to(x.dtype) for states in (initial_states, dfinal_states)
    ]
    return (x, weight, bias, dout, seq_idx, *states)


def _of_one_dtype(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in the wider dtype of the two."""
    if bias is None or bias.dtype == weight.dtype:
        return weight, bias
    dtype = torch.promote_types(weight.dtype, bias.dtype)
    return weight.to(dtype), bias.to(dtype)


OP: Op[Case, Implementation] = register(
    Op("causal_conv1d", str(__package__), ("package", "extension", "cuda", "pytorch"), trial)
)
_OPERATORS = Operators(_implementation)
