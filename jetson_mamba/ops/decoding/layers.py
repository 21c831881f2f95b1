"""``step`` of a block in as few kernels as its data allow.

As upstream writes it, a step is eight to eleven kernels, and some hundred operations of torch.
Where a block is what it looks like, and its projections are plain, the same is computed by the four
or three of ``layers_cuda``, or the twenty operations of ``layers_cpu``. That it is the same is not
taken on trust: the first call of a kind holds it to the block's own step, which every other call
takes: with gradients, autocast, adapters, hooks or a backend that somebody names.
"""

from __future__ import annotations

from functools import wraps
from inspect import unwrap
from typing import Any, Callable, Mapping, NamedTuple, Union

import torch
from torch import Tensor, nn

from jetson_mamba.dispatch import backends
from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.dispatch.block_modules import hook_of_convolution
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.passing import passing
from jetson_mamba.dispatch.paths import may_replay, without_gradients
from jetson_mamba.dispatch.projections import are_plain, is_plain
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.chains import Chain
from jetson_mamba.kernels.tensors import MOST_PLANS, VECTOR_BYTES

from . import layers_cpu
from .layers_cuda import Mamba, Mamba2, OfMamba, OfMamba2, Weights
from .products import MOST_VECTORS
from .several_tokens import TOLERANCE, TOLERANCE_OF_OTHERS

Layer = Union[Mamba, Mamba2, layers_cpu.Mamba, layers_cpu.Mamba2]
# step(block, hidden_states, conv_state, ssm_state): the result, and the states
Step = Callable[..., Any]

# Sequences of a batch. With more, launches are no longer what a step takes its time for.
MOST_SEQUENCES = 64
# Whose backends a step goes past, where somebody names another than this one.
OPS, BACKENDS = ("causal_conv1d", "selective_state_update"), {True: "cuda", False: "pytorch"}
# What the block's own step calls, which somebody may have put something in the place of.
CALLS = ("causal_conv1d_update", "selective_state_update")
# Blocks, and kinds of calls of each, that are remembered; each takes a few kilobytes.
MOST_BLOCKS = 1024


class _Kind(NamedTuple):
    """Where a step finds what it reads."""

    layer: type[Any]
    layer_on_cpu: type[Any]
    # Called with a weight, and with bias or none.
    projections: tuple[str, ...]
    # All parameters, by module; of the block itself without a module.
    parameters: tuple[tuple[str, str], ...]


def _with_biases(*modules: str) -> tuple[tuple[str, str], ...]:
    return tuple((module, name) for module in modules for name in ("weight", "bias"))


def _own(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple(("", name) for name in names)


_MAMBA = _Kind(
    *(Mamba, layers_cpu.Mamba),
    ("in_proj", "x_proj", "dt_proj", "out_proj"),
    (
        *_with_biases("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj"),
        *_own("A_log", "D"),
    ),
)
_MAMBA2 = _Kind(
    *(Mamba2, layers_cpu.Mamba2),
    ("in_proj", "out_proj"),
    (
        *_with_biases("in_proj", "conv1d", "out_proj"),
        *_own("dt_bias", "A_log", "D"),
        ("norm", "weight"),
    ),
)


class _Ready(NamedTuple):
    """How a block's steps of a kind are taken, as long as what they read is as it was."""

    read: tuple[Any, ...]
    # None where the block takes its own.
    layer: Layer | None
    chain: Chain | None


def in_few_kernels(step: Step) -> Step:
    """A block's ``step`` of one token, (batch, 1, d_model), by few kernels where they serve it."""
    return _served(step, MOST_SEQUENCES)


def by_launches(step: Step) -> Step:
    """The same of so few sequences that nothing but this project's kernels is launched.

    That is quicker than looking a block over and launching a graph of it; with more sequences it
    is not.
    """
    return _served(step, MOST_VECTORS)


def _served(step: Step, most_sequences: int) -> Step:
    own = unwrap(step)
    few = FewKernels(getattr(own, "__globals__", {}), CALLS, _options, most_sequences)
    taken = few.taken

    @wraps(step)
    def call(block: Any, hidden_states: Any, conv_state: Any, ssm_state: Any) -> Any:
        out = taken(own, block, hidden_states, conv_state, ssm_state)
        if out is None:
            return step(block, hidden_states, conv_state, ssm_state)
        return out, conv_state, ssm_state

    return call


class FewKernels:
    """The steps of one class of blocks.

    ``calls`` are the functions that its own step calls, by their names in ``around``; ``options``
    tells what a step reads of a block beside tensors, and raises AttributeError where there is none
    of it.
    """

    def __init__(
        self,
        around: Mapping[str, Any],
        calls: tuple[str, ...],
        options: Callable[[Any], OfMamba | OfMamba2],
        most_sequences: int = MOST_SEQUENCES,
    ) -> None:
        self._most_sequences = most_sequences
        self._around = around
        self._calls = calls
        self._options = options
        self._layers: Memo[tuple[Any, ...], Layer | None] = Memo(MOST_PLANS)
        # By block and kind of call: no more than what tells that it is the same, and where it lies.
        self._ready: Memo[tuple[Any, ...], _Ready] = Memo(MOST_BLOCKS)

    def taken(
        self, step: Step, block: Any, hidden: Tensor, conv_state: Tensor, state: Tensor
    ) -> Tensor | None:
        """The result of a step with hidden_states, conv_state and ssm_state.

        None where the block is to take its own, ``step(block, hidden, conv_state, state)``; then
        nothing is written.
        """
        if not _are_plain(hidden, conv_state, state, self._most_sequences):
            return None
        found = _read(block, self._options)
        if found is None:
            return None
        of, weights = found
        # What must be the same of a weight, and where it lies; with no function for it, which would
        # take as long again.
        traits = [
            None if x is None else (type(x), x.data_ptr(), x.dtype, x.shape, x.stride())
            for x in weights
        ]
        read = (of, [*map(id, map(self._around.get, self._calls))], traits)
        given = (hidden, conv_state, state)
        key = (
            *(id(block), hidden.device, hidden.dtype, conv_state.dtype, state.dtype),
            *(hidden.shape, conv_state.shape, state.shape),
            *(hidden.stride(), conv_state.stride(), state.stride()),
            *(hidden.data_ptr() % VECTOR_BYTES, conv_state.data_ptr() % VECTOR_BYTES),
            state.data_ptr() % VECTOR_BYTES,
        )
        entry = self._ready.find(key)
        if entry is None or entry.value.read != read:
            try:
                layer = self._layer(step, of, block, given, weights, read, key)
            except _Undecided:
                return None
            chain = None if layer is None else layer.chain_of(weights)
            self._ready.put(key, _Ready(read, layer, chain), while_there_are=(block,))
        else:
            entry.used = self._ready.clock()
            _, layer, chain = entry.value
        return None if layer is None else _run(layer, chain, block, given, weights)

    def _layer(
        self,
        step: Step,
        of: OfMamba | OfMamba2,
        block: Any,
        given: tuple[Tensor, Tensor, Tensor],
        weights: Weights,
        read: tuple[Any, ...],
        key: tuple[Any, ...],
    ) -> Layer | None:
        """What takes the steps of blocks like this one; None where they take their own.

        Raises :class:`_Undecided` where that cannot be told now.
        """
        device = given[0].device
        for tensor in (*given, *weights):
            if tensor is not None and (tensor.device != device or type(tensor) not in _TENSORS):
                return None
        forms = [
            None if each is None else (*each[2:], each[1] % VECTOR_BYTES, each[0])
            for each in read[2]
        ]
        kind = _kind(block)
        make = kind.layer if _is_on_a_gpu(given[0]) else kind.layer_on_cpu
        form = (make, of, *read[1], *key[1:], *forms)
        entry = self._layers.find(form)
        if entry is None:
            if _is_on_a_gpu(given[0]) and _is_capturing():
                raise _Undecided
            return self._layers.put(form, _tried(step, make, of, block, given, weights))
        entry.used = self._layers.clock()
        return entry.value


def _is_on_a_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _is_capturing() -> bool:
    return bool(torch._C._cuda_isCurrentStreamCapturing())


class _Undecided(Exception):
    """Nothing could be found out this time."""


def _are_plain(hidden: Any, conv_state: Any, states: Any, most_sequences: int) -> bool:
    """Whether these are tensors of a step, which nobody looks at otherwise."""
    return (
        type(hidden) is type(conv_state) is type(states) is Tensor
        and (_is_on_a_gpu(hidden) or hidden.is_cpu)
        and hidden.shape[1:-1] == (1,)
        and 0 < hidden.shape[0] <= min(most_sequences, MOST_SEQUENCES)
        and without_gradients(hidden, conv_state, states)
        and may_replay()
        and not (_may_be_autocast() and autocast_dtype(hidden.device) is not None)
        and not (backends.named and _is_another_named(_is_on_a_gpu(hidden)))
    )


def _is_another_named(on_gpu: bool) -> bool:
    """Whether somebody names a backend that a step would go past."""
    return any(op in OPS and name != BACKENDS[on_gpu] for op, name in backends.named)


# One call for all devices, where torch has it.
_may_be_autocast: Callable[[], bool] = getattr(torch._C, "_is_any_autocast_enabled", lambda: True)


def _kind(block: Any) -> _Kind:
    return _MAMBA if "x_proj" in block._modules else _MAMBA2


def _read(
    block: Any, options: Callable[[Any], OfMamba | OfMamba2]
) -> tuple[OfMamba | OfMamba2, Weights] | None:
    """What a step reads of its block; None where kernels would go past something."""
    modules, kind = block._modules, _kind(block)
    try:
        of = options(block)
        if not are_plain([modules[name] for name in kind.projections]):
            return None
        if not is_plain(modules.get("norm")) or type(modules["conv1d"]) is not nn.Conv1d:
            return None
        if hook_of_convolution(block) is not None:
            return None
        weights = tuple(
            [
                block._parameters[name]
                if not module
                else None
                if module == "norm" and module not in modules
                else modules[module]._parameters[name]
                for module, name in kind.parameters
            ]
        )
    except (AttributeError, KeyError):  # a block of another making
        return None
    return of, weights


_TENSORS = (Tensor, nn.Parameter)


def _options(block: Any) -> OfMamba | OfMamba2:
    if "x_proj" in block._modules:
        return OfMamba(block.dt_rank, block.d_state, block.activation)
    norm = block._modules.get("norm")
    of_norm = (0.0, None, False)
    if norm is not None:
        of_norm = (norm.eps, norm.group_size, norm.norm_before_gate)
    return OfMamba2(
        *(block.d_ssm, block.ngroups, block.d_state, block.headdim, block.activation),
        *(bool(block.rmsnorm), *of_norm),
    )


def _run(
    layer: Layer,
    chain: Chain | None,
    block: Any,
    given: tuple[Tensor, Tensor, Tensor],
    weights: Weights,
) -> Tensor:
    hidden, conv_state, state = given
    if layer.index is None:  # operations of torch, which count what they write
        return layer(chain, block, hidden, conv_state, state, weights)
    if compiler.current_device() != layer.index:
        with torch.cuda.device(layer.index):
            return _run(layer, chain, block, given, weights)
    if conv_state.is_inference() and state.is_inference():  # nobody counts what is written
        return layer(chain, block, hidden, conv_state, state, weights)
    before, before_state = version(conv_state), version(state)
    out = layer(chain, block, hidden, conv_state, state, weights)
    count_write(conv_state, before)
    count_write(state, before_state)
    return out


def _tried(
    step: Step,
    make: type[Any],
    of: OfMamba | OfMamba2,
    block: Any,
    given: tuple[Tensor, Tensor, Tensor],
    weights: Weights,
) -> Layer | None:
    """The layer's step, if it computes what the block's own does; None where it does not.

    Raises :class:`_Undecided` where that cannot be told now.
    """
    hidden, *states = given
    try:
        layer: Layer = make(of, *given, weights)
        own = [each.clone() for each in states]
        chain = layer.chain_of(weights)
        found = [_run(layer, chain, block, (hidden, own[0], own[1]), weights), *own]
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
