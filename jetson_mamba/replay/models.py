"""Launches a token of a whole model by a CUDA graph, where ``generate`` asks for one after another.

A step of each block is one launch already; what is between them, the norms, the head and upstream's
Python around all of it, is not. While mamba_ssm's ``decode`` runs, it is handed a stand-in for its
model, which takes the steps: the second of a kind makes a graph, which takes those that follow,
also in later generations. The states of the generation then lie where the graph has them, and are
put back before anything else may read them.

What a model's step reads is looked at when a generation begins, and at each token where a streamer
runs code in between. All else is as for a block: a model with hooks, adapters, or anything in it
that does not tell all about itself takes its steps as it is, and so does one with attention, whose
step depends on how far it is.

``JETSON_MAMBA_WHOLE_STEPS=off``, read when this module is imported, or :func:`whole_steps` switch
that off.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from types import SimpleNamespace
from typing import Any, Callable, Iterator
from weakref import ref

from torch import Tensor, nn

from jetson_mamba.dispatch.paths import without_gradients

from . import captured
from .captured import Captured, Held, Weights
from .noticing import Read
from .watching import Watching

# Sequences of a batch. With more, the GPU has enough to do while the next block is launched.
MOST_SEQUENCES = 64
VARIABLE = "JETSON_MAMBA_WHOLE_STEPS"

_value = os.environ.get(VARIABLE) or "on"
if _value not in ("on", "off"):
    warnings.warn(
        f"{VARIABLE}: expected on or off, found {_value!r}; taken as on",
        RuntimeWarning,
        stacklevel=2,
    )
_enabled = _value != "off"


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

    names = [*signature(decode).parameters]

    @wraps(decode)
    def call(input_ids: Any, model: Any, *given: Any, **named: Any) -> Any:
        asked = {**dict(zip(names[2:], given)), **named}
        if not _enabled or not isinstance(model, nn.Module) or asked.get("cg"):
            return decode(input_ids, model, *given, **named)
        steps = Steps(model, watched=asked.get("streamer") is not None)
        try:
            return decode(input_ids, steps, *given, **named)
        finally:
            steps.release()

    return call


class Steps:
    """A model as ``decode`` is to see it during one generation.

    ``watched``: whether somebody else's code may run between its tokens.
    """

    def __init__(self, model: nn.Module, watched: bool) -> None:
        self._model = model
        self._watched = watched
        self._looks = True
        self._moved: _Moved | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """The model's result; of a step by a graph, something with its ``logits``."""
        logits = None
        if without_gradients():
            logits = self._launched(*given, **named)
        if logits is not None:
            return SimpleNamespace(logits=logits)
        self._put_back()
        return self._model(*given, **named)

    def release(self) -> None:
        """End the generation, whose states nobody reads any more."""
        moved, self._moved = self._moved, None
        if moved is not None:
            moved.graph.release()

    def _put_back(self) -> None:
        """Go on without the graph."""
        if self._moved is not None:
            self._moved.put_back()
        self.release()

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
        model = self._model
        if _is_wrapped(model):
            return None
        graphs = _WATCHING.of(model, look=self._looks)
        # A model that cannot be known is not looked at again by this generation.
        self._looks = self._watched and graphs is not None
        form = type(params), tuple(params.key_value_memory_dict), params.max_batch_size
        moved = self._moved
        if moved is not None:
            if moved.graphs is graphs and moved.form == form and moved.is_in(params):
                results = moved.graph.launched(input_ids, places)
                if results is not None:
                    return results[0]
            self._put_back()
        states = _states(params)
        if graphs is None or states is None or graphs.written != len(states):  # of another kind
            return None
        inputs = (input_ids, places, *states)
        results = graphs.launched(inputs, (), form)
        if results is None:
            return None
        held = graphs.held(self, inputs, (), form)
        if held is not None:
            self._moved = _Moved(graphs, held, form, params)
        return results[0]


class _Moved:
    """The states of a generation, in the place of its own where a graph reads and writes them."""

    def __init__(self, graphs: Captured, graph: Held, form: Any, params: Any) -> None:
        self.graphs = graphs
        self.graph = graph
        self.form = form
        self._states: dict[Any, Any] = params.key_value_memory_dict
        # What a graph was launched for has just been copied back: both are equal.
        self._pairs = [*zip(graph.written[::2], graph.written[1::2])]
        self._own = [*self._states.values()]
        self._states.update(zip(self._states, self._pairs))

    def is_in(self, params: Any) -> bool:
        """Whether these are the states still."""
        states = params.key_value_memory_dict
        return states is self._states and all(
            found is pair for found, pair in zip(states.values(), self._pairs)
        )

    def put_back(self) -> None:
        """Leave the states where they were before."""
        for layer, pair, own in zip([*self._states], self._pairs, self._own):
            if self._states[layer] is pair:
                for mine, latest in zip(own, pair):
                    mine.copy_(latest)
                self._states[layer] = own


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
    calls_until_another_look=1,
)
