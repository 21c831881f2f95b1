"""Second derivatives: a backward pass that is differentiated itself.

An autograd function of this package or of upstream runs kernels in its backward pass, of which
autograd sees nothing. Where that pass is recorded (``create_graph=True``), it is done by
differentiating the composed form of the function, plain tensor operations.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor


def gradients(
    composed: Callable[..., Any],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    dresults: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of ``composed(*inputs)`` by the inputs that are ``needed``, as a graph.

    ``composed`` returns a tensor or a tuple of them; ``dresults`` are the gradients of the first of
    these, None where there is none. There is one result for each input, None where it is not
    needed or nothing depends on it.
    """
    with torch.enable_grad():
        # Views: the gradient is by these arguments, also where one was computed of another.
        places = [i for i, wanted in enumerate(needed) if wanted]
        given = list(inputs)
        for place in places:
            given[place] = given[place].view_as(given[place])
        results = composed(*given)
        if isinstance(results, Tensor):
            results = (results,)
        pairs = [
            (result, dresult)
            for result, dresult in zip(results, dresults)
            if dresult is not None and result is not None and result.requires_grad
        ]
        found: list[Tensor | None] = [None] * len(given)
        if pairs:
            of, by = zip(*pairs)
            computed = torch.autograd.grad(
                of,
                [given[place] for place in places],
                by,
                create_graph=True,
                allow_unused=True,
            )
            for place, gradient in zip(places, computed):
                found[place] = gradient
    return tuple(found)


def twice_differentiable(function: Any, composed: Callable[..., Any]) -> Any:
    """An autograd function like ``function``, of which second derivatives can be taken.

    ``composed`` takes the arguments of ``function.apply`` and gives what that does.
    """
    raise NotImplementedError
