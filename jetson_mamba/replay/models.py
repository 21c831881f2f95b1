"""Launches a token of a whole model by a CUDA graph, where ``generate`` asks for one after another.

A step of each block is one launch already; what is between them, the norms, the head and upstream's
Python around all of it, is not. While mamba_ssm's ``decode`` runs, it is handed a stand-in for its
model, which takes the steps: the second of a kind makes a graph, which takes those that follow,
also in later generations. The states are copied to where the graph reads them and back.

What a model's step reads is looked at when a generation begins, and at each token where a streamer
runs code in between. All else is as for a block: a model with hooks, adapters, or anything in it
that does not tell all about itself takes its steps as it is, and so does one with attention, whose
step depends on how far it is.

Off unless ``JETSON_MAMBA_WHOLE_STEPS=on``, read when this module is imported, or
:func:`whole_steps`.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from functools import wraps
from types import SimpleNamespace
from typing import Any, Callable, Iterator
from weakref import ref

from torch import Tensor, nn

from jetson_mamba.dispatch.paths import without_gradients

from . import captured
from .captured import Captured, Weights
from .noticing import Read
from .watching import Watching

# Sequences of a batch. With more, the GPU has enough to do while the next block is launched.
MOST_SEQUENCES = 64
VARIABLE = "JETSON_MAMBA_WHOLE_STEPS"

_value = os.environ.get(VARIABLE) or "off"
if _value not in ("on", "off"):
    warnings.warn(
        f"{VARIABLE}: expected on or off, found {_value!r}; taken as off",
        RuntimeWarning,
        stacklevel=2,
    )
_enabled = _value == "on"


@contextmanager
def whole_steps(enabled: bool) -> Iterator[None]:
    """Whether ``generate`` takes whole steps by a graph inside the ``with`` block.

    This holds for the whole process, and what it was before is put back at the end.
    """
    global _enabled  # noqa: PLW0603 - a setting of the process
    before = _enabled
    _enabled = enabled
    try:
        yield
    finally:
        _enabled = before


def decoding_by_graph(decode: Callable[..., Any]) -> Callable[..., Any]:
    """mamba_ssm's ``decode(input_ids, model, ...)``, a token of it one launch where it can be.

    With ``cg=True`` it makes a graph of its own.
    """

    @wraps(decode)
    def call(input_ids: Any, model: Any, *given: Any, **named: Any) -> Any:
        if not _enabled or not isinstance(model, nn.Module) or named.get("cg"):
            return decode(input_ids, model, *given, **named)
        steps = Steps(model, watched=named.get("streamer") is not None or bool(given))
        return decode(input_ids, steps, *given, **named)

    return call


class Steps:
    """A model as ``decode`` is to see it during one generation.

    ``watched``: whether somebody else's code may run between its tokens.
    """

    def __init__(self, model: nn.Module, watched: bool) -> None:
        self._model = model
        self._watched = watched
        self._looked = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """The model's result; of a step by a graph, something with its ``logits``."""
        if without_gradients():
            logits = self._launched(*given, **named)
            if logits is not None:
                return SimpleNamespace(logits=logits)
        return self._model(*given, **named)

    def _launched(self, input_ids: Any, *given: Any, **named: Any) -> Tensor | None:
        params: Any = named.get("inference_params")
        places = named.get("position_ids")
        if (
            given
            or named.keys() != _NAMED
            or named["num_last_tokens"] != 1
            or not captured.is_small(input_ids, MOST_SEQUENCES)
            or input_ids.shape[1:] != (1,)
            or type(places) is not Tensor
            or not params.seqlen_offset > 0
            or getattr(params, "lengths_per_sample", None) is not None
        ):
            return None
        states = _states(params)
        model = self._model
        if states is None or _is_wrapped(model):
            return None
        graphs = _WATCHING.of(model, look=self._watched or not self._looked)
        self._looked = True
        if graphs is None or graphs.written != len(states):  # a layer of another kind
            return None
        form = type(params), tuple(params.key_value_memory_dict), params.max_batch_size
        results = graphs.launched((input_ids, places, *states), (), form)
        return None if results is None else results[0]


_NAMED = {"inference_params", "position_ids", "num_last_tokens"}


def _states(params: Any) -> tuple[Tensor, ...] | None:
    """The states of all layers, two each; None where a layer has something else."""
    states: list[Any] = []
    for of_layer in params.key_value_memory_dict.values():
        if type(of_layer) is not tuple or len(of_layer) != 2:
            return None
        states += of_layer
    if not states or any(type(state) is not Tensor for state in states):
        return None
    return tuple(states)


def _is_wrapped(model: nn.Module) -> bool:
    """Whether a call of a model is more than its ``forward``."""
    return bool(model._forward_hooks or model._forward_pre_hooks) or "forward" in vars(model)


class _Later:
    """How far a step is that is any but the first; what asks for more has no graph."""

    def __gt__(self, other: object) -> bool:
        return self._than_none(other)

    def __eq__(self, other: object) -> bool:
        return not self._than_none(other)

    def __ne__(self, other: object) -> bool:
        return self._than_none(other)

    def __bool__(self) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def _than_none(other: object) -> bool:
        if type(other) is int and other == 0:
            return True
        raise TypeError("the step depends on how far it is")


def _function(model: ref[nn.Module]) -> Callable[..., tuple[Tensor, ...]]:
    """What is captured of a model, which it does not keep alive."""

    def function(
        inputs: tuple[Tensor, ...], _: Weights, form: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        kind, layers, batch = form
        input_ids, position_ids, *states = inputs
        module: Any = model()
        params = kind(max_seqlen=0, max_batch_size=batch)
        params.seqlen_offset = params.max_seqlen = _Later()
        params.key_value_memory_dict = dict(zip(layers, zip(states[::2], states[1::2])))
        result = module(
            input_ids, position_ids=position_ids, inference_params=params, num_last_tokens=1
        )
        left = [each for pair in params.key_value_memory_dict.values() for each in pair]
        if len(left) != len(states) or any(a is not b for a, b in zip(left, states)):
            raise RuntimeError("the step leaves other states than it was given")
        return (result.logits,)

    return function


def _stepping(model: Any) -> int:
    """How many of its modules have a step, and two states each."""
    return sum(hasattr(type(module), "step") for module in model.modules())


_WATCHING = Watching(
    lambda model: Read(model, type(model).forward, inside=True),
    lambda model: Captured(_function(model), 2 * _stepping(model())),
)
