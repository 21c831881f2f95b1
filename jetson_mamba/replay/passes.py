"""The passes of a call that records gradients, each launched by a CUDA graph where it is small.

A step of training keeps a GPU busy for less than its Python takes, as a call without gradients
does. What autograd calls there are two functions of tensors, which ``captured`` launches again. All
of their tensors are inputs, weights too: so the layers of a model, whose weights lie elsewhere,
share a graph for each pass, and so do weights that are gathered anew for each step.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

from torch import Tensor

from jetson_mamba.dispatch.fields import Arguments, Fields, Tensors

from .captured import MOST_ELEMENTS, Captured, Weights

Forward = Callable[..., "tuple[Tensors, Sequence[Tensor]]"]
Backward = Callable[..., "Mapping[str, Tensor | None]"]


def by_graphs(
    fields: Fields[Arguments], results: int, forward: Forward, backward: Backward
) -> tuple[Forward, Backward]:
    """Both passes of a ``Computation`` with so many results, by graphs where they can be.

    That is from the second call of a kind on, where there is a tensor for each result and for each
    gradient.
    """
    passes = _Passes(fields, results, forward, backward)
    return passes.forward, passes.backward


class _Passes:
    def __init__(
        self, fields: Fields[Any], results: int, forward: Forward, backward: Backward
    ) -> None:
        self._fields = fields
        self._results = results
        self._forward, self._backward = forward, backward
        self._graphs = Captured(self._forward_of)
        self._graphs_back = Captured(self._backward_of)

    def forward(self, given: Any, *others: Any) -> tuple[Tensors, Sequence[Tensor]]:
        """As the pass itself."""
        if given[0].numel() <= MOST_ELEMENTS:
            tensors, options = self._fields.unpack(given)
            inputs, there = _there(tensors)
            if _are_small(inputs):
                found = self._graphs.launched(inputs, (), there, options, others)
                if found is not None:
                    return found[: self._results], found[self._results :]
        return self._forward(given, *others)

    def backward(
        self, given: Any, kept: Sequence[Tensor], dresults: Tensors, *others: Any
    ) -> Mapping[str, Tensor | None]:
        """As the pass itself."""
        if given[0].numel() <= MOST_ELEMENTS:
            tensors, options = self._fields.unpack(given)
            inputs, there = _there((*tensors, *kept, *dresults))
            if _are_small(inputs):
                found = self._graphs_back.launched(inputs, (), there, options, others)
                if found is not None:
                    return dict(zip(self._differentiable(given), found))
        return self._backward(given, kept, dresults, *others)

    def _forward_of(
        self,
        inputs: tuple[Tensor, ...],
        _: Weights,
        there: tuple[bool, ...],
        options: tuple[Any, ...],
        others: tuple[Any, ...],
    ) -> tuple[Tensor, ...]:
        given = self._fields.pack(_in_place(inputs, there), options)
        results, kept = self._forward(given, *others)
        return _all_there((*results, *kept))

    def _backward_of(
        self,
        inputs: tuple[Tensor, ...],
        _: Weights,
        there: tuple[bool, ...],
        options: tuple[Any, ...],
        others: tuple[Any, ...],
    ) -> tuple[Tensor, ...]:
        each = _in_place(inputs, there)
        given = self._fields.pack(self._fields.tensors(each), options)
        rest = each[len(self._fields.tensors(given)) :]
        kept, dresults = rest[: -self._results], rest[-self._results :]
        found = self._backward(given, kept, dresults, *others)
        return _all_there([found.get(name) for name in self._differentiable(given)])

    def _differentiable(self, given: Any) -> list[str]:
        """The names of what gradients are of."""
        tensors = self._fields.tensors(given)
        return [
            name
            for name, each in zip(given._fields, tensors)
            if each is not None and each.is_floating_point()
        ]


def _there(tensors: Sequence[Tensor | None]) -> tuple[tuple[Tensor, ...], tuple[bool, ...]]:
    """Those that there are, and where they stand."""
    return (
        tuple([each for each in tensors if each is not None]),
        tuple([each is not None for each in tensors]),
    )


def _are_small(inputs: Sequence[Tensor]) -> bool:
    """Whether copies of these take less than the launches that they save."""
    return sum([each.numel() for each in inputs]) <= 3 * MOST_ELEMENTS


def _in_place(inputs: Sequence[Tensor], there: Sequence[bool]) -> list[Tensor | None]:
    """The inputs in their places, None in the others."""
    following = iter(inputs)
    return [next(following) if is_there else None for is_there in there]


def _all_there(found: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Raises ValueError where one is missing: then there is no graph."""
    there = tuple([each for each in found if each is not None])
    if len(there) < len(found):
        raise ValueError("a graph is made of what gives a tensor for each result")
    return there
