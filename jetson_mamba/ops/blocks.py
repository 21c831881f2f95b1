"""Launches a whole block by a CUDA graph: its projections and its Python with it.

What a block does around its scan is upstream's own Python, and takes a CPU longer than the scan's
launches. Where no gradient is recorded and the call is small, its method runs twice; from then on
``captured`` repeats what it launched.

A method reads more than tensors, so a graph serves only while all of it is as it was: the
attributes, parameters, buffers and submodules of the block, the globals that the method names,
autocast and the backends. A block that keeps anything else than plain values, has hooks inside, has
submodules that are neither torch's nor mamba_ssm's, or is in training and has buffers is called as
it is.
"""

from __future__ import annotations

from functools import wraps
from types import FunctionType
from typing import Any, Callable, Hashable
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from . import captured, causal_conv1d, selective_scan, ssd
from .autocast import autocast_dtype
from .captured import Captured, Weights
from .paths import without_gradients

# Of the input. A block's tensors are several times as wide, and there is a copy of the states of
# decoding, which are wider still.
MOST_ELEMENTS = captured.MOST_ELEMENTS // 4
MOST_ELEMENTS_OF_STEP = MOST_ELEMENTS // 32

_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))
_TENSORS = (Tensor, nn.Parameter, type(None))
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
# Modules that keep what they are made of, and no more.
_KNOWN = ("torch.nn.modules.", "mamba_ssm.")


def forward_by_graph(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's ``forward``, (batch, seqlen, d_model) to the same, by a CUDA graph where it can be.

    That is where further arguments are None, and ``paths.without_gradients`` is true.
    """
    graphs = _Graphs(forward, 0)

    @wraps(forward)
    def call(block: nn.Module, *given: Any, **named: Any) -> Any:
        if (
            without_gradients()
            and given
            and captured.is_small(given[0], MOST_ELEMENTS)
            and not any(each is not None for each in given[1:])
            and not any(each is not None for each in named.values())
        ):
            results = graphs.launched(block, given[:1])
            if results is not None:
                return results[0]
        return forward(block, *given, **named)

    return call


def step_by_graph(step: Callable[..., Any]) -> Callable[..., Any]:
    """A block's ``step``, one token (batch, 1, d_model), by a CUDA graph where it can be.

    It takes and returns the state of the convolution and of the scan too, and changes both in
    place.
    """
    graphs = _Graphs(step, 2)

    @wraps(step)
    def call(block: nn.Module, hidden_states: Any, conv_state: Any, ssm_state: Any) -> Any:
        if (
            without_gradients()
            and captured.is_small(hidden_states, MOST_ELEMENTS_OF_STEP)
            and type(conv_state) is type(ssm_state) is Tensor
        ):
            results = graphs.launched(block, (hidden_states, conv_state, ssm_state))
            if results is not None:
                return results[0], conv_state, ssm_state
        return step(block, hidden_states, conv_state, ssm_state)

    return call


class _Graphs:
    """The graphs of one method, for every block that has it, as long as the block lives."""

    def __init__(self, method: Callable[..., Any], written: int) -> None:
        self._method = method
        self._written = written
        self._blocks: WeakKeyDictionary[nn.Module, _Block] = WeakKeyDictionary()

    def launched(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The method's result, by a graph; None where it is to be called."""
        known = self._blocks.get(block)
        if known is None or not known.is_as_it_was():
            known = self._blocks[block] = _Block(block, self._method, self._written)
        if known.graphs is None:
            return None
        return known.graphs.launched(inputs, (), *_surroundings(inputs[0].device))


class _Block:
    """What a block's method reads beside its arguments, as it was when this was made.

    ``graphs`` is None where that cannot be told.
    """

    def __init__(self, block: nn.Module, method: Callable[..., Any], written: int) -> None:
        names: tuple[str, ...] = ()
        self._globals: dict[str, Any] = {}
        if isinstance(method, FunctionType):
            self._globals, names = method.__globals__, method.__code__.co_names
        self._named = [(name, self._globals[name]) for name in names if name in self._globals]
        # Mappings beside what was in them: attributes and submodules, then parameters and buffers.
        self._kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._holders: list[dict[str, Any]] = []
        self._hooks: list[dict[int, Any]] = [
            torch_module._global_forward_hooks,
            torch_module._global_forward_pre_hooks,
        ]
        known = True
        for module in block.modules():
            attributes = vars(module)
            mappings = [attributes, module._modules]
            if module is not block:
                self._hooks += (module._forward_hooks, module._forward_pre_hooks)
                known = known and type(module).__module__.startswith(_KNOWN)
                known = known and "forward" not in attributes  # a wrapper's
            if not type(module).__module__.startswith(_KNOWN[0]):
                own = [attributes[name] for name in attributes.keys() - _OF_EVERY_MODULE]
                mappings += (each for each in own if isinstance(each, dict))
                known = known and all(map(_is_plain, own))
            # Such as running means, which trying the method out would update once more.
            known = known and not (module.training and module._buffers)
            self._kept += ((mapping, dict(mapping)) for mapping in mappings)
            self._holders += (module._parameters, module._buffers)
        self._count = sum(map(len, self._holders))
        held = [(each, name) for each in self._holders for name in each]
        known = known and all(type(each[name]) in _TENSORS for each, name in held)
        self.graphs: Captured | None = None
        self._tensors: list[tuple[dict[str, Any], str, Tensor | None, Hashable]] = []
        if known and not any(self._hooks):
            self._tensors = [(each, name, each[name], _place(each[name])) for each, name in held]
            self.graphs = Captured(_function(ref(block), method, written), written)

    def is_as_it_was(self) -> bool:
        """Whether nothing is different but the numbers in the tensors, which a graph reads."""
        for mapping, before in self._kept:
            if mapping != before:
                return False
        for name, value in self._named:
            if self._globals.get(name) is not value:
                return False
        if any(self._hooks) or sum(map(len, self._holders)) != self._count:
            return False
        for holder, name, tensor, place in self._tensors:
            if holder.get(name) is not tensor or _place(tensor) != place:
                return False
        return True


def _place(tensor: Tensor | None) -> Hashable:
    """Where a tensor's numbers lie, and how."""
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _function(
    block: ref[nn.Module], method: Callable[..., Any], written: int
) -> Callable[..., tuple[Tensor, ...]]:
    """What is captured of a block, which it does not keep alive."""

    def function(
        inputs: tuple[Tensor, ...], weights: Weights, dtype: torch.dtype | None, *_: Hashable
    ) -> tuple[Tensor, ...]:
        # What autocast keeps of a cast weight it frees at its end; a graph would go on reading it.
        with torch.autocast(inputs[0].device.type, dtype, dtype is not None, cache_enabled=False):
            result = method(block(), *inputs)
        if not written:
            return (result,)
        out, *states = result
        if any(one is not other for one, other in zip(states, inputs[-written:])):
            raise RuntimeError("the method returns other states than it was given")
        return (out,)

    return function


def _surroundings(device: torch.device) -> tuple[Hashable, ...]:
    """What decides how a block is computed and is set elsewhere; the dtype of autocast first."""
    return (
        autocast_dtype(device),
        torch.get_float32_matmul_precision(),
        causal_conv1d.OP.selection,
        selective_scan.OP.selection,
        ssd.op.selection,
    )


def _is_plain(value: Any) -> bool:
    """Whether a value tells all about itself."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    return isinstance(value, _PLAIN)
