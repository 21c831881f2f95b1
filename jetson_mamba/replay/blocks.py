"""Launches a whole block by a CUDA graph, all of its Python with it.

What a block does around its scan is upstream's own Python, and takes a CPU longer than the scan's
launches. Where no gradient is recorded and the call is small, its method runs twice; from then on
``captured`` repeats what it launched.

A method reads more than tensors, so a graph serves only while all of it is as it was: the
attributes, parameters, buffers, submodules and classes of the block, the globals that the method
names, and ``environment_key``. A block that keeps anything else than plain values, has hooks
inside, has submodules that are neither torch's nor mamba_ssm's, or is in training and has buffers
is called as it is.

Nothing that is remembered of a block refers to anything of it, as ``noticing`` says.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Callable
from weakref import ref

from torch import Tensor, nn

from jetson_mamba.dispatch.paths import without_gradients

from . import captured
from .captured import Captured, Weights
from .noticing import Read
from .watching import Watching

# Of the input. A block's tensors are several times as wide, and there is a copy of the states of
# decoding, which are wider still.
MOST_ELEMENTS = captured.MOST_ELEMENTS // 4
MOST_ELEMENTS_OF_STEP = MOST_ELEMENTS // 32


def forward_by_graph(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's ``forward``, (batch, seqlen, d_model) to the same, by a CUDA graph where it can be.

    That is where further arguments are None, and ``paths.without_gradients`` is true.
    """
    graphs = _Graphs(forward, 0)

    @wraps(forward)
    def call(block: nn.Module, *given: Any, **named: Any) -> Any:
        if (
            given
            and captured.is_on_gpu(given[0])
            and without_gradients()
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
            captured.is_on_gpu(hidden_states)
            and without_gradients()
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
        self._watching = Watching(
            lambda block: Read(block, method),
            lambda block: Captured(_function(block, method, written), written),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the method, as for another process, begins without graphs."""
        return _Graphs, (self._method, self._written)

    def launched(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The method's result, by a graph; None where it is to be called."""
        graphs = self._watching.of(block)
        return None if graphs is None else graphs.launched(inputs, ())


def _function(
    block: ref[nn.Module], method: Callable[..., Any], written: int
) -> Callable[..., tuple[Tensor, ...]]:
    """What is captured of a block, which it does not keep alive."""

    def function(inputs: tuple[Tensor, ...], _: Weights) -> tuple[Tensor, ...]:
        result = method(block(), *inputs)
        if not written:
            return (result,)
        out, *states = result
        if any(one is not other for one, other in zip(states, inputs[-written:])):
            raise RuntimeError("the method returns other states than it was given")
        return (out,)

    return function
