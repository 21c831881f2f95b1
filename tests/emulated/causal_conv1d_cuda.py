"""The compiled module of causal-conv1d, in each form that it has been released in.

The arithmetic is PyTorch's own convolution (or, with sequences, an explicit window for each
step) and autograd, in float32: nothing of this project.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from . import WRONG_RESULTS, version
from .pybind import BOOL, OPTIONAL, TENSOR, Function, check, check_shape, differentiable

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Release(NamedTuple):
    """What distinguishes a release."""

    forward: int
    backward: int
    update: int
    # A negative seq_idx or index of a state marks padding.
    knows_padding: bool
    # Initial states belong to the sequence of the first step; before, to none.
    states_have_sequence: bool


def release_of(text: str) -> Release:
    """The traits of the release with this version."""
    numbers = version(text)
    if numbers < (1, 1):
        return Release(4, 6, 5, False, False)
    if numbers < (1, 2):
        return Release(5, 7, 5, False, False)
    if numbers < (1, 5, 1):
        update = 5 if numbers < (1, 4) else 6 if numbers < (1, 5) else 7
        return Release(7, 10, update, False, False)
    return Release(8, 12, 8, numbers >= (1, 6), numbers >= (1, 7))


# The parameters of each function, by their number.
FORWARD = {
    4: "x weight bias silu",
    5: "x weight bias seq_idx silu",
    7: "x weight bias seq_idx initial_states final_states silu",
    8: "x weight bias seq_idx initial_states out final_states silu",
}
BACKWARD = {
    6: "x weight bias dout optional_dx silu",
    7: "x weight bias dout seq_idx optional_dx silu",
    10: "x weight bias dout seq_idx initial_states dfinal_states optional_dx return_dinitial silu",
    12: "x weight bias dout seq_idx initial_states dfinal_states dx dweight dbias dinitial silu",
}
UPDATE = {
    5: "x conv_state weight bias silu",
    6: "x conv_state weight bias silu cache_seqlens",
    7: "x conv_state weight bias silu cache_seqlens conv_state_indices",
    8: "x conv_state weight bias out silu cache_seqlens conv_state_indices",
}
KINDS = {
    **dict.fromkeys(("x", "weight", "dout", "out", "dx", "dweight", "conv_state"), TENSOR),
    **dict.fromkeys(("silu", "return_dinitial"), BOOL),
}


def fill(module: ModuleType, release: str, failure: str | None) -> None:
    """Give ``module`` the functions of a release."""
    traits = release_of(release)
    for name, names, returns, function in (
        (
            "causal_conv1d_fwd",
            FORWARD[traits.forward],
            "None" if traits.forward == 8 else "torch.Tensor",
            _forward,
        ),
        (
            "causal_conv1d_bwd",
            BACKWARD[traits.backward],
            "None" if traits.backward == 12 else "List[torch.Tensor]",
            differentiable(_backward),
        ),
        (
            "causal_conv1d_update",
            UPDATE[traits.update],
            "None" if traits.update == 8 else "torch.Tensor",
            _update,
        ),
    ):
        words = tuple(names.split())
        kinds = tuple(KINDS.get(word, OPTIONAL) for word in words)
        bound = _by_name(function, words, traits, failure)
        setattr(module, name, Function(name, kinds, returns, bound, failure))


def _by_name(
    function: Callable[..., Any], words: tuple[str, ...], traits: Release, failure: str | None
) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        named = dict(zip(words, arguments))
        result = function(traits, **named)
        if failure == WRONG_RESULTS:
            written = [named.get(word) for word in ("out", "dx", "dweight", "dbias")]
            for tensor in [*written, *(result if isinstance(result, list) else [result])]:
                if tensor is not None:
                    tensor.zero_()
        return result

    return call


def _forward(
    traits: Release,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    final_states: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor | None:
    channel_last = _check_inputs(x, weight, bias, seq_idx, initial_states)
    if final_states is not None:
        check(channel_last, "", "final_states is only supported for channel last layout")
        check(final_states.dtype == x.dtype, "final_states.scalar_type() == input_type")
        check_shape("final_states", final_states, *_states_shape(x, weight))
        check(final_states.stride(1) == 1, "final_states.stride(1) == 1")
    result = _convolution(
        x.float(), weight.float(), _float(bias), seq_idx, _float(initial_states), traits
    )
    if silu:
        result = torch.nn.functional.silu(result)
    if seq_idx is not None and traits.knows_padding:
        result = torch.where((seq_idx < 0)[:, None], 0.0, result)
    if final_states is not None:
        final_states.copy_(_padded(x, initial_states, weight)[..., -(weight.shape[1] - 1) :])
    if traits.forward == 8:
        assert out is not None
        check_shape("out", out, *x.shape)
        check(out.dtype == x.dtype, "out.scalar_type() == input_type")
        _check_alignment(out, channel_last)
        out.copy_(result)
        return None
    return torch.empty_like(x).copy_(result)


def _backward(
    traits: Release,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    silu: bool,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    dfinal_states: Tensor | None = None,
    optional_dx: Tensor | None = None,
    return_dinitial: bool = False,
    dx: Tensor | None = None,
    dweight: Tensor | None = None,
    dbias: Tensor | None = None,
    dinitial: Tensor | None = None,
) -> list[Tensor | None] | None:
    channel_last = _check_inputs(x, weight, bias, seq_idx, initial_states)
    check_shape("dout", dout, *x.shape)
    if channel_last:
        dout = dout if dout.stride(1) == 1 else dout.mT.contiguous().mT
        check(
            dout.stride(2) % 8 == 0 and dout.stride(0) % 8 == 0,
            "",
            "causal_conv1d with channel last layout requires strides (dout.stride(0) and "
            "dout.stride(2)) to be multiples of 8",
        )
    elif dout.stride(2) != 1:
        dout = dout.contiguous()
    _check_alignment(dout, channel_last)
    target = dx if traits.backward == 12 else optional_dx
    if target is not None:
        check(target.dtype == x.dtype, "dx.scalar_type() == input_type")
        check_shape("dx", target, *x.shape)
        axis = 1 if channel_last else 2
        check(target.stride(axis) == 1, f"dx.stride({axis}) == 1")
        _check_alignment(target, channel_last)
    if dfinal_states is not None:
        check(channel_last, "", "dfinal_states is only supported for channel last layout")
        check(dfinal_states.dtype == x.dtype, "dfinal_states.scalar_type() == input_type")
        check_shape("dfinal_states", dfinal_states, *_states_shape(x, weight))

    states = weight.shape[1] - 1
    initial = initial_states
    if initial is None:
        initial = torch.zeros(_states_shape(x, weight), device=x.device)
    inputs = {"x": x.float(), "weight": weight.float(), "initial": initial.float()}
    if bias is not None:
        inputs["bias"] = bias.float()
    with torch.enable_grad():
        inputs = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
        result = _convolution(
            inputs["x"],
            inputs["weight"],
            inputs.get("bias"),
            seq_idx,
            inputs["initial"] if initial_states is not None or seq_idx is None else None,
            traits,
        )
        if silu:
            result = torch.nn.functional.silu(result)
        loss = (result * dout.float()).sum()
        if dfinal_states is not None:
            final = _padded(inputs["x"], inputs["initial"], weight)[..., -states:]
            loss = loss + (final * dfinal_states.float()).sum()
        found = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(of) if gradient is None else gradient
            for (name, of), gradient in zip(inputs.items(), found)
        }
    if traits.backward == 12:
        assert target is not None and dweight is not None
        check_shape("dweight", dweight, *weight.shape)
        check(dweight.dtype == torch.float32, "dweight.scalar_type() == kFloat")
        check((bias is None) == (dbias is None), "bias_.has_value() == dbias_.has_value()")
        target.copy_(gradients["x"])
        # The kernels add to these.
        dweight.add_(gradients["weight"])
        if dbias is not None:
            check(dbias.dtype == torch.float32, "dbias.scalar_type() == kFloat")
            dbias.add_(gradients["bias"])
        if dinitial is not None:
            check(dinitial.stride(1) == 1, "dinitial_states.stride(1) == 1")
            if channel_last:
                dinitial.copy_(gradients["initial"])
        return None
    if target is None:
        target = torch.empty_like(x)
    target.copy_(gradients["x"])
    results: list[Tensor | None] = [
        target,
        gradients["weight"].to(weight.dtype),
        None if bias is None else gradients["bias"].to(bias.dtype),
    ]
    if traits.backward == 10:
        batch, dim, _ = x.shape
        dinitial = None
        if return_dinitial:
            dinitial = x.new_full((batch, states, dim), float("nan")).mT
            # The kernel for the other layout leaves the memory as it was.
            if channel_last:
                dinitial.copy_(gradients["initial"])
        results.append(dinitial)
    return results


def _update(
    traits: Release,
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor | None:
    check(x.dtype in DTYPES and weight.dtype in DTYPES, "a supported scalar type")
    check(conv_state.dtype == x.dtype, "conv_state.scalar_type() == input_type")
    width = weight.shape[1]
    check(2 <= width <= 4, "", "causal_conv1d only supports width between 2 and 4")
    if traits.update == 5:
        batch, dim = x.shape
        check_shape("conv_state", conv_state, batch, dim, width)
        steps = x[..., None]
    else:
        batch, dim, _ = x.shape
        check(conv_state.shape[2] >= width - 1, "conv_state_state_len >= width - 1")
        steps = x
    check_shape("weight", weight, dim, width)
    for tensor in (cache_seqlens, conv_state_indices):
        if tensor is not None:
            check(tensor.dtype == torch.int32, "scalar_type() == torch::kInt32")
            check_shape("cache_seqlens or conv_state_indices", tensor, batch)
    if conv_state_indices is None:
        check(conv_state.shape[0] == batch, "", "conv_state must have shape (batch, ...)")
    result = torch.zeros(steps.shape, device=x.device)
    length = conv_state.shape[2]
    for row in range(batch):
        entry = row if conv_state_indices is None else int(conv_state_indices[row])
        if entry < 0 and traits.knows_padding:
            continue
        state = _entry(conv_state, entry)
        if cache_seqlens is None:
            inputs = torch.cat([state, steps[row]], dim=1)
            taken = inputs[:, length - (width - 1) :]
            state.copy_(inputs[:, -length:])
        else:
            begin = int(cache_seqlens[row])
            past = [state[:, (begin - lag) % length] for lag in range(width - 1, 0, -1)]
            taken = torch.stack([*past, *steps[row].unbind(1)], dim=1)
            for step in range(steps.shape[2]):
                state[:, (begin + step) % length] = steps[row, :, step]
        result[row] = torch.nn.functional.conv1d(
            taken.float(), weight.float()[:, None], _float(bias), groups=dim
        )
    if silu:
        result = torch.nn.functional.silu(result)
        if conv_state_indices is not None and traits.knows_padding:
            result[conv_state_indices < 0] = 0
    if traits.update == 8:
        assert out is not None
        check_shape("out", out, *x.shape)
        out.copy_(result)
        return None
    return torch.empty_like(x).copy_(result.reshape(x.shape))


def _entry(conv_state: Tensor, entry: int) -> Tensor:
    """An entry by pointer arithmetic, which goes before the first for a negative one."""
    return torch.as_strided(
        conv_state,
        conv_state.shape[1:],
        conv_state.stride()[1:],
        conv_state.storage_offset() + entry * conv_state.stride(0),
    )


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    traits: Release,
) -> Tensor:
    padded = _padded(x, initial_states, weight)
    dim, width = weight.shape
    if seq_idx is None:
        return torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=dim)
    before = seq_idx.new_full((x.shape[0], width - 1), -1)
    if initial_states is not None and traits.states_have_sequence:
        before = seq_idx[:, :1].expand(-1, width - 1)
    owners = torch.cat([before, seq_idx], dim=1).unfold(1, width, 1)
    same = (owners == seq_idx[..., None])[:, None]
    windows = torch.where(same, padded.unfold(2, width, 1), 0.0)
    result = torch.einsum("bdlw,dw->bdl", windows, weight)
    return result if bias is None else result + bias[:, None]


def _padded(x: Tensor, initial_states: Tensor | None, weight: Tensor) -> Tensor:
    if initial_states is None:
        initial_states = x.new_zeros(_states_shape(x, weight))
    return torch.cat([initial_states, x], dim=2)


def _states_shape(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], weight.shape[1] - 1


def _float(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.float()


def _check_inputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
) -> bool:
    """The checks that both directions make; True for channel-last."""
    check(x.dtype in DTYPES and weight.dtype in DTYPES, "a supported scalar type")
    check(x.dim() == 3 and weight.dim() == 2, "x.dim() == 3 and weight.dim() == 2")
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    check_shape("weight", weight, dim, width)
    check(
        x.stride(2) == 1 or x.stride(1) == 1,
        "x.stride(2) == 1 || x.stride(1) == 1",
    )
    channel_last = x.stride(1) == 1 and x.stride(2) > 1
    if channel_last:
        check(
            dim % 8 == 0,
            "",
            "causal_conv1d only supports channel dimension divisible by 8 for now",
        )
        check(
            x.stride(2) % 8 == 0 and x.stride(0) % 8 == 0,
            "",
            "causal_conv1d with channel last layout requires strides (x.stride(0) and "
            "x.stride(2)) to be multiples of 8",
        )
    _check_alignment(x, channel_last)
    check(2 <= width <= 4, "", "causal_conv1d only supports width between 2 and 4")
    # A grid with an axis of 0 blocks.
    check(x.numel() > 0, "", "CUDA error: invalid configuration argument")
    if bias is not None:
        check(bias.dtype == weight.dtype, "bias.scalar_type() == weight_type")
        check(bias.stride(-1) == 1, "bias.stride(-1) == 1")
        check_shape("bias", bias, dim)
    if seq_idx is not None:
        check(channel_last, "", "seq_idx is only supported for channel last layout")
        check(seq_idx.dtype == torch.int32, "seq_idx.scalar_type() == torch::kInt32")
        check(seq_idx.is_contiguous(), "seq_idx.is_contiguous()")
        check_shape("seq_idx", seq_idx, batch, seqlen)
    if initial_states is not None:
        check(channel_last, "", "initial_states is only supported for channel last layout")
        check(initial_states.dtype == x.dtype, "initial_states.scalar_type() == input_type")
        check_shape("initial_states", initial_states, *_states_shape(x, weight))
        check(initial_states.stride(1) == 1, "initial_states.stride(1) == 1")
        _check_alignment(initial_states, True)
    return channel_last


def _check_alignment(tensor: Tensor, channel_last: bool) -> None:
    """The kernels read and write 16 bytes at a time, and check nothing."""
    step = 16 // tensor.element_size()
    if not channel_last and tensor.shape[2] % step:
        return
    outer = (0, 2) if channel_last else (0, 1)
    check(
        tensor.data_ptr() % 16 == 0
        and all(tensor.shape[axis] == 1 or tensor.stride(axis) % step == 0 for axis in outer),
        "",
        "CUDA error: misaligned address",
    )
