"""The causal depthwise convolution of Mamba, by the first backend that works.

The functions here have the names and the meaning of causal-conv1d's: what its wrapper, its
compiled backward pass and its decode step give, on every device and with every release of it,
or none. ``contract`` says what is computed; the other modules are the backends.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends import Op
from ..operators import is_compiling
from . import pytorch
from .contract import Case, Gradients, Implementation
from .library import Operators

__all__ = [
    "OP",
    "Case",
    "Implementation",
    "causal_conv1d_bwd",
    "causal_conv1d_fn",
    "causal_conv1d_update",
]

DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
# Relative norm within which a backend's results have to agree with PyTorch's to be used. It
# tells rounding from another operation, so it is wide.
TRIAL_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3}


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
        bias: (dim,), of the dtype of ``weight``.
        seq_idx: (batch, seqlen), int32: the sequence that each step belongs to. Steps of other
            sequences count as zero; where it is negative, the output is zero.
        initial_states: (batch, dim, width - 1), of the dtype of ``x``: the inputs before the
            first, which with ``seq_idx`` belong to the sequence of the first.
        return_final_states: also return the last ``width - 1`` inputs. Not with ``seq_idx``.
        final_states_out: where to write them, whether or not they are returned.
        activation: None, or "silu" alias "swish".

    Returns:
        The output, of the shape and dtype of ``x``; with ``return_final_states`` a tuple of it
        and the final states (batch, dim, width - 1), in the dtype of ``x``.

    Raises:
        ValueError: a shape, a device, a value or a combination that does not fit.
        TypeError: a dtype that does not fit.
    """
    if isinstance(seq_idx, str):
        # causal-conv1d 1.0 took the activation in this place, and mamba-ssm 1.0 passes it there.
        seq_idx, activation = None, seq_idx
    silu = _is_silu(activation)
    _check(x, weight, bias, seq_idx, initial_states)
    if seq_idx is not None and (return_final_states or final_states_out is not None):
        raise ValueError(
            "return_final_states, final_states_out: expected neither with seq_idx, because "
            "the last inputs may belong to several sequences"
        )
    if final_states_out is not None:
        _check_states("final_states_out", final_states_out, x, weight)
    if is_compiling():
        wanted = return_final_states or final_states_out is not None
        out, states = _OPERATORS.forward(x, weight, bias, seq_idx, initial_states, wanted, silu)
        if final_states_out is not None and states is not None:
            final_states_out.copy_(states)
        return (out, states) if return_final_states else out
    if return_final_states and final_states_out is None:
        sizes = (x.shape[0], weight.shape[1] - 1, x.shape[1])
        final_states_out = x.new_empty(sizes).transpose(1, 2)
    if torch.is_grad_enabled() and (
        x.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (initial_states is not None and initial_states.requires_grad)
    ):
        out, final_states_out = _CausalConv1d.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, seq_idx, initial_states, final_states_out, silu
        )
    else:
        out = _implementation(x, weight).forward(
            x, weight, bias, seq_idx, initial_states, final_states_out, silu
        )
    return (out, final_states_out) if return_final_states else out


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
    silu = _is_silu(activation)
    _check(x, weight, bias, seq_idx, initial_states)
    _expect("dout", dout, tuple(x.shape), "(batch, dim, seqlen) of x", x.dtype, x.device)
    if dx is not None:
        _expect("dx", dx, tuple(x.shape), "(batch, dim, seqlen) of x", x.dtype, x.device)
    if dfinal_states is not None:
        _check_states("dfinal_states", dfinal_states, x, weight)
    if is_compiling():
        gradients = _OPERATORS.backward(
            x,
            weight,
            bias,
            dout,
            seq_idx,
            initial_states,
            dfinal_states,
            return_dinitial_states,
            silu,
        )
        return gradients if dx is None else (dx.copy_(gradients[0]), *gradients[1:])
    return _implementation(x, weight).backward(
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
        conv_state: (batch, dim, length), length ``width - 1`` or more, of the dtype of ``x``:
            the latest inputs. Written in place.
        weight: (dim, width), width 2 or more.
        bias: (dim,), of the dtype of ``weight``.
        activation: None, or "silu" alias "swish".
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
    silu = _is_silu(activation)
    steps = x.unsqueeze(-1) if isinstance(x, Tensor) and x.dim() == 2 else x
    _check(steps, weight, bias, None, None)
    batch, dim, _ = steps.shape
    least = weight.shape[1] - 1
    if not isinstance(conv_state, Tensor):
        raise TypeError(f"conv_state: expected a tensor, found {type(conv_state).__name__}")
    entries = conv_state.shape[0] if conv_state_indices is not None and conv_state.dim() else batch
    length = max(conv_state.shape[-1], least) if conv_state.dim() else least
    _expect(
        "conv_state",
        conv_state,
        (entries, dim, length),
        f"(batch or entries, dim, {least} or more)",
        x.dtype,
        x.device,
    )
    for name, tensor in (
        ("cache_seqlens", cache_seqlens),
        ("conv_state_indices", conv_state_indices),
    ):
        if tensor is not None:
            _expect(name, tensor, (batch,), "(batch,)", torch.int32, x.device)
    update = _OPERATORS.update if is_compiling() else _implementation(steps, weight).update
    out = update(steps, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu)
    return out if steps is x else out.squeeze(-1)


class _CausalConv1d(torch.autograd.Function):
    """Ties the two directions of a backend together."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        final_states_out: Tensor | None,
        silu: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, seq_idx, initial_states)
        ctx.silu = silu
        ctx.implementation = _implementation(x, weight)
        out = ctx.implementation.forward(
            x, weight, bias, seq_idx, initial_states, final_states_out, silu
        )
        # final_states_out is not marked as modified: the caller's buffer would become part of
        # the graph, and the graph of one call would reach into that of the next.
        return out, final_states_out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dfinal_states: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if dout is None and dfinal_states is None:
            return (None,) * 7
        x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
        dx, dweight, dbias, dinitial_states = ctx.implementation.backward(
            x,
            weight,
            bias,
            torch.zeros_like(x) if dout is None else dout,
            seq_idx,
            initial_states,
            dfinal_states,
            None,
            ctx.needs_input_grad[4],
            ctx.silu,
        )
        needs = ctx.needs_input_grad
        return (
            dx if needs[0] else None,
            dweight if needs[1] else None,
            dbias if needs[2] else None,
            None,
            dinitial_states,
            None,
            None,
        )


def _implementation(x: Tensor, weight: Tensor) -> Implementation:
    if x.numel() == 0:
        # No kernel is launched for nothing; the PyTorch functions mind no size.
        return pytorch.IMPLEMENTATION
    return OP.implementation(Case(x.device, x.dtype, weight.dtype, weight.shape[1]))


def _is_silu(activation: str | None) -> bool:
    if activation is None:
        return False
    if activation in ("silu", "swish"):
        return True
    raise ValueError(f"activation: expected None, 'silu' or 'swish', found {activation!r}")


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
) -> None:
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name}: expected float16, bfloat16, float32 or float64, found {tensor.dtype}"
            )
    if x.dim() != 3:
        raise ValueError(f"x: expected shape (batch, dim, seqlen), found {tuple(x.shape)}")
    dim = x.shape[1]
    if weight.dim() != 2 or weight.shape[0] != dim or weight.shape[1] < 2:
        raise ValueError(
            f"weight: expected shape (dim, width) = ({dim}, 2 or more), found {tuple(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(f"weight: expected device {x.device}, as x, found {weight.device}")
    if bias is not None:
        _expect("bias", bias, (dim,), "(dim,)", weight.dtype, x.device)
    if seq_idx is not None:
        shape = (x.shape[0], x.shape[2])
        _expect("seq_idx", seq_idx, shape, "(batch, seqlen)", torch.int32, x.device)
    if initial_states is not None:
        _check_states("initial_states", initial_states, x, weight)


def _check_states(name: str, states: Tensor, x: Tensor, weight: Tensor) -> None:
    shape = (x.shape[0], x.shape[1], weight.shape[1] - 1)
    _expect(name, states, shape, "(batch, dim, width - 1)", x.dtype, x.device)


def _expect(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    meaning: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {meaning} = {shape}, found {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, found {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, as x, found {tensor.device}")


@torch.no_grad()
def _trial(implementation: Implementation, case: Case) -> None:
    """Run every function once and compare with PyTorch: `Op` says why.

    The numbers come from no generator, whose state is the user's.
    """
    if implementation is pytorch.IMPLEMENTATION:
        return
    x, weight, bias, dout, state = (
        torch.arange(start, start + count, device=case.device)
        .mul(7)
        .remainder(11)
        .sub(5)
        .div(4)
        .to(dtype)
        for start, count, dtype in (
            (0, 128, case.dtype),
            (3, 8 * case.width, case.weight_dtype),
            (1, 8, case.weight_dtype),
            (5, 128, case.dtype),
            (2, 16 * case.width, case.dtype),
        )
    )
    x, dout = x.view(2, 8, 8), dout.view(2, 8, 8)
    weight, state = weight.view(8, case.width), state.view(2, 8, case.width)
    results = []
    for candidate in (implementation, pytorch.IMPLEMENTATION):
        conv_state = state.clone()
        results.append(
            (
                candidate.forward(x, weight, bias, None, None, None, True),
                *candidate.backward(x, weight, bias, dout, None, None, None, None, False, True)[:3],
                candidate.update(x[..., :1], conv_state, weight, bias, None, None, True),
                conv_state,
            )
        )
    names = ("output", "dx", "dweight", "dbias", "output of a step", "state after a step")
    tolerance = max(TRIAL_TOLERANCE[case.dtype], TRIAL_TOLERANCE[case.weight_dtype])
    for name, actual, expected in zip(names, *results):
        difference = (cast(Tensor, actual).float() - cast(Tensor, expected).float()).norm()
        # A comparison that a NaN fails.
        if not bool(difference <= tolerance * cast(Tensor, expected).float().norm()):
            raise RuntimeError(f"the {name} of a trial is wrong")


OP: Op[Case, Implementation] = Op(
    "causal_conv1d", __name__, ("package", "extension", "cuda", "pytorch"), _trial
)
_OPERATORS = Operators(_implementation)
