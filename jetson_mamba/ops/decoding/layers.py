"""``step`` of a block in as few kernels as its data allow, on a GPU.

As upstream writes it, a step is eight to eleven kernels. Where a block is what it looks like, and
its projections are plain, the same is computed by the four or three of ``layers_cuda``. That it is
the same is not taken on trust: the first call of a kind holds it to the block's own step, which
every other call takes: with gradients, autocast, adapters, hooks or a backend that somebody names.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Callable, NamedTuple, Union

import torch
from torch import Tensor, nn

from jetson_mamba.dispatch import backends
from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.passing import passing
from jetson_mamba.dispatch.paths import may_replay, without_gradients
from jetson_mamba.dispatch.projections import is_plain
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import MOST_PLANS

from .layers_cuda import Mamba, Mamba2, OfMamba, OfMamba2
from .several_tokens import TOLERANCE, TOLERANCE_OF_OTHERS

Layer = Union[Mamba, Mamba2]

# Sequences of a batch. With more, launches are no longer what a step takes its time for.
MOST_SEQUENCES = 64
# Whose backends a step goes past, where somebody names another than this one.
OPS, BACKEND = ("causal_conv1d", "selective_state_update"), "cuda"


class _Kind(NamedTuple):
    """Where a step finds what it reads."""

    layer: type[Any]
    # Called with a weight, and with bias or none.
    projections: tuple[str, ...]
    # The rest, by module and name; of the block itself without a module.
    parameters: tuple[tuple[str, str], ...]
    of: type[Any]


def _with_biases(*modules: str) -> tuple[tuple[str, str], ...]:
    return tuple((module, name) for module in modules for name in ("weight", "bias"))


_MAMBA = _Kind(
    Mamba,
    ("in_proj", "x_proj", "dt_proj", "out_proj"),
    (
        *_with_biases("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"),
        *(("", "A_log"), ("", "D")),
    ),
    OfMamba,
)
_MAMBA2 = _Kind(
    Mamba2,
    ("in_proj", "out_proj"),
    (
        *_with_biases("in_proj", "conv1d", "out_proj"),
        *(("", "dt_bias"), ("", "A_log"), ("", "D"), ("norm", "weight")),
    ),
    OfMamba2,
)


def in_few_kernels(step: Callable[..., Any]) -> Callable[..., Any]:
    """A block's ``step`` of one token, (batch, 1, d_model), by few kernels where they serve it."""
    known: Memo[tuple[Any, ...], Layer | None] = Memo(MOST_PLANS)
    around = getattr(step, "__globals__", {})

    @wraps(step)
    def call(block: Any, hidden_states: Any, conv_state: Any, ssm_state: Any) -> Any:
        given = (hidden_states, conv_state, ssm_state)
        found = _read(block, *given, around)
        if found is None:
            return step(block, *given)
        kind, of, key, weights = found
        entry = known.find(key)
        if entry is None:
            if _is_capturing():
                return step(block, *given)
            try:
                layer = _tried(step, kind.layer, of, block, given, weights)
            except _Undecided:
                return step(block, *given)
            known.put(key, layer)
        else:
            entry.used = known.clock()
            layer = entry.value
        if layer is None:
            return step(block, *given)
        return _run(layer, block, given, weights), conv_state, ssm_state

    return call


def _is_on_a_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _is_capturing() -> bool:
    return bool(torch._C._cuda_isCurrentStreamCapturing())


class _Undecided(Exception):
    """Nothing could be found out this time."""


def _read(
    block: Any, hidden: Any, conv_state: Any, states: Any, around: dict[str, Any]
) -> tuple[_Kind, Any, tuple[Any, ...], tuple[Tensor | None, ...]] | None:
    """What a step reads, and a key of all that decides how it is served; None where it is not."""
    if (
        type(hidden) is not Tensor
        or type(conv_state) is not Tensor
        or type(states) is not Tensor
        or not _is_on_a_gpu(hidden)
        or hidden.ndim != 3
        or hidden.shape[1] != 1
        or not 0 < hidden.shape[0] <= MOST_SEQUENCES
        or not without_gradients(hidden, conv_state, states)
        or not may_replay()
        or autocast_dtype(hidden.device) is not None
        or any(op in OPS and name != BACKEND for op, name in backends.named)
    ):
        return None
    modules = block._modules
    kind = _MAMBA if "x_proj" in modules else _MAMBA2
    try:
        of = _options(kind, block)
        for name in kind.projections:
            module = modules[name]
            if type(module) is not nn.Linear or not is_plain(module):
                return None
        if not is_plain(modules.get("norm")) or type(modules["conv1d"]) is not nn.Conv1d:
            return None
        weights = tuple(
            [
                (modules[module]._parameters if module else block._parameters)[name]
                if module != "norm" or module in modules
                else None
                for module, name in kind.parameters
            ]
        )
    except (AttributeError, KeyError):  # a block of another making
        return None
    device = hidden.device
    tensors: list[Any] = []
    for tensor in (hidden, conv_state, states, *weights):
        if tensor is None:
            tensors.append(None)
        elif tensor.device != device or type(tensor) not in _TENSORS:
            return None
        else:
            place = tensor.data_ptr() & 15
            tensors.append((tensor.shape, tensor.stride(), tensor.dtype, place))
    # What the block's own step calls, which somebody may have put something in the place of.
    calls = [id(around.get(name)) for name in ("causal_conv1d_update", "selective_state_update")]
    return kind, of, (kind.layer, of, device, *calls, *tensors), weights


_TENSORS = (Tensor, nn.Parameter)


def _options(kind: _Kind, block: Any) -> Any:
    if kind is _MAMBA:
        return OfMamba(block.dt_rank, block.d_state, block.activation)
    norm = block._modules.get("norm") if block.rmsnorm else None
    of_norm = (0.0, None, False)
    if norm is not None:
        of_norm = (norm.eps, norm.group_size, norm.norm_before_gate)
    return OfMamba2(
        *(block.d_ssm, block.ngroups, block.d_state, block.headdim, block.activation),
        *(bool(block.rmsnorm), *of_norm),
    )


def _run(
    layer: Layer, block: Any, given: tuple[Tensor, Tensor, Tensor], weights: tuple[Any, ...]
) -> Tensor:
    index = layer.index
    if compiler.current_device() != index:
        with torch.cuda.device(index):
            return _run(layer, block, given, weights)
    hidden, conv_state, state = given
    before, before_state = version(conv_state), version(state)
    out = layer(block, hidden, conv_state, state, weights)
    count_write(conv_state, before)
    count_write(state, before_state)
    return out


def _tried(
    step: Callable[..., Any],
    make: type[Any],
    of: Any,
    block: Any,
    given: tuple[Tensor, Tensor, Tensor],
    weights: tuple[Any, ...],
) -> Layer | None:
    """The layer's step, if it computes what the block's own does; None where it does not.

    Raises :class:`_Undecided` where that cannot be told now.
    """
    hidden, *states = given
    try:
        layer: Layer = make(of, *given, weights)
        own = [each.clone() for each in states]
        found = [_run(layer, block, (hidden, own[0], own[1]), weights), *own]
    except Exception as error:
        # Whatever it is, the block is another than it looks like, or there is no compiler here.
        if passing(error) is not None:
            raise _Undecided from error
        return None
    right = [each.clone() for each in states]
    out = step(block, hidden, *right)[0]
    most = TOLERANCE.get(hidden.dtype, TOLERANCE_OF_OTHERS)
    for one, other in zip(found, (out, *right)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return None
        norm, off = other.double().norm(), (one.double() - other.double()).norm()
        if not bool(norm.isfinite()):
            raise _Undecided
        if not bool(off <= most * norm):
            return None
    return layer
