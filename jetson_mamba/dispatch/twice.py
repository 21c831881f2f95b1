"""Second derivatives: a backward pass that is differentiated itself.

An autograd function of this package or of upstream runs kernels in its backward pass, of which
autograd sees nothing. Where that pass is recorded (``create_graph=True``), or is one for a batch of
gradients, it is done by differentiating the composed form of the function, plain tensor operations:
``paths.way_back`` says where.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, Callable, ContextManager, Sequence, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter

from .autocast import autocast_dtype
from .operators import is_compiling
from .paths import Way, is_batched, is_transformed, way_back

_Composed = TypeVar("_Composed", bound=Callable[..., Any])


def gradients(
    composed: Callable[..., Any],
    inputs: Sequence[Any],
    needed: Sequence[bool],
    dresults: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of ``composed(*inputs)`` by the inputs that are ``needed``.

    They are part of a graph where gradients are recorded.

    ``composed`` returns a tensor or a tuple of them; ``dresults`` are the gradients of the first of
    these, None where there is none. There is one result for each input, None where it is not
    needed.
    """
    places = [i for i, wanted in enumerate(needed) if wanted]
    given = list(inputs)
    if is_transformed():
        return _by_transform(composed, given, places, dresults)
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: the gradient is by these arguments, also where one was computed of another.
        for place in places:
            view = given[place].view_as(given[place])
            given[place] = view if view.requires_grad else view.detach().requires_grad_()
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
                create_graph=recorded,
                allow_unused=True,
            )
            for place, gradient in zip(places, computed):
                # Of a single step the decay has no part in the output, and a gradient of zero.
                found[place] = torch.zeros_like(given[place]) if gradient is None else gradient
    return tuple(found)


def _by_transform(
    composed: Callable[..., Any],
    given: Sequence[Any],
    places: Sequence[int],
    dresults: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The same inside a transform of ``torch.func``, where no tensor can be made a leaf."""
    of = [place for place, dresult in enumerate(dresults) if dresult is not None]

    def chosen(*tensors: Tensor) -> list[Tensor]:
        inputs = list(given)
        for place, tensor in zip(places, tensors):
            inputs[place] = tensor
        results = composed(*inputs)
        return [results] if isinstance(results, Tensor) else [results[place] for place in of]

    vjp: Any = torch.func.vjp
    _, pull = vjp(chosen, *[given[place] for place in places])
    found: list[Tensor | None] = [None] * len(given)
    for place, gradient in zip(places, pull([dresults[place] for place in of])):
        found[place] = gradient
    return tuple(found)


def in_backward_pass() -> bool:
    """Whether autograd runs a backward pass here: what is called is part of some function's."""
    return torch._C._current_graph_task_id() >= 0


_ONCE = (
    "second derivatives of an autograd function that was written for mamba_ssm's extensions are "
    "not known here: a part of them would be missing. Call selective_scan_fn, mamba_inner_fn or "
    "causal_conv1d_fn, whose second derivatives are right"
)


def once_only(
    results: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """``results`` of ``inputs``, of which no further derivative is taken: an error says so.

    A batch of gradients that is recorded raises it at once.

    For what a backward pass computes that belongs to somebody else's autograd function, while it
    is recorded: what else that function kept is not known, and a zero would be a wrong number.
    """
    given = [result for result in results if result is not None]
    if is_batched(*given):
        # What is recorded of a batch as a whole is lost when torch takes it apart.
        raise RuntimeError(_ONCE)
    once: Any = _OnceOnly
    found = iter(once.apply(len(given), *given, *inputs))
    return [None if result is None else next(found) for result in results]


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *dresults: Tensor) -> Any:
        raise RuntimeError(_ONCE)


def write(target: Tensor, result: Tensor) -> None:
    """Copy a result that is part of a graph to where a caller wants it."""
    try:
        target.copy_(result)
    except RuntimeError as error:
        # A chunk of a tensor, which cannot become part of a graph.
        raise RuntimeError(_ONCE) from error


# The operations whose upstream function keeps contiguous copies of what it is given.
_COPIED: set[Any] = set()


def keeps_copies(composed: _Composed) -> _Composed:
    """Mark what upstream's function of the same name makes contiguous within itself, and keeps.

    The copies are then made outside of that function, so that what it was given is not kept beside
    them.
    """
    _COPIED.add(composed)
    return composed


@lru_cache(maxsize=128)
def twice_differentiable(function: Any, composed: Callable[..., Any]) -> Any:
    """An autograd function like ``function``, of which second derivatives can be taken.

    ``composed`` takes the arguments of ``function.apply`` and gives what that does; where kernels
    cannot serve a backward pass, its derivatives take the place of ``function.backward``.
    ``function`` is of the kind whose ``forward`` takes ``ctx``.
    """
    copied = composed in _COPIED

    def forward(ctx: Any, *inputs: Any) -> Any:
        results = function.forward(ctx, *inputs)
        _keep(ctx, inputs)
        return results

    def backward(ctx: Any, *dresults: Tensor | None) -> Any:
        if is_compiling():
            # Compiled autograd traces what autograd runs, and knows no context but its own.
            return torch.compiler.disable(run_back)(ctx, *dresults)
        return run_back(ctx, *dresults)

    def run_back(ctx: Any, *dresults: Tensor | None) -> Any:
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled() and way_back(*dresults) is not Way.COMPOSED:
            return function.backward(_Backward(ctx, saved[: ctx._own]), *dresults)
        with _as_forward(ctx._autocast):
            return gradients(composed, _given(ctx, saved), ctx.needs_input_grad, dresults)

    def apply(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return function.apply(*inputs)
        return made.apply(*map(_contiguous, inputs) if copied else inputs)

    # Of the same name, which a node of the graph shows.
    made: Any = type(
        function.__name__,
        (torch.autograd.Function,),
        {
            "__module__": function.__module__,
            "__doc__": function.__doc__,
            "forward": staticmethod(forward),
            "backward": staticmethod(backward),
        },
    )
    return _Twice(apply)


class _Twice:
    """What stands for an autograd function: it is applied, and nothing else."""

    def __init__(self, apply: Callable[..., Any]) -> None:
        self.apply = apply


class _Backward:
    """The context that a function's ``backward`` meets: what it saved is unpacked already.

    Checkpoints and hooks of saved tensors count how often they are asked for one. What the forward
    pass has put there stands here too: asking the context in turn would cost a call each time.
    """

    def __init__(self, ctx: Any, saved: tuple[Tensor | None, ...]) -> None:
        own = self.__dict__
        own.update(vars(ctx))
        own["saved_tensors"] = saved
        own["_ctx"] = ctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ctx, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__[name] = value
        setattr(self._ctx, name, value)


def _keep(ctx: Any, inputs: Sequence[Any]) -> None:
    """Save what the function has saved, and of the tensors it was given those that it has not."""
    saved = [*(ctx.to_save or ())]
    own, given = len(saved), [*inputs]
    # By the numbers of arguments: the place of a saved tensor, the version of one that is held.
    places: dict[int, int] = {}
    versions: dict[int, int | None] = {}
    device = None
    for number, each in enumerate(inputs):
        kind = type(each)
        if kind in _NO_TENSORS:
            continue
        if kind is not Tensor and kind is not Parameter and not isinstance(each, Tensor):
            continue
        if device is None:
            device = each.device
        if (
            kind is Parameter
            or (each.is_leaf and each.requires_grad)
            or (kind is not Tensor and isinstance(each, Parameter))
        ):
            # Its owner keeps it anyway. Saved, it must not change until the backward pass, which
            # the function itself does not ask for.
            try:
                versions[number] = each._version
            except RuntimeError:  # made in inference mode, which counts nothing
                versions[number] = None
            continue
        given[number] = None
        for place, tensor in enumerate(saved):
            if tensor is each:
                places[number] = place
                break
        else:
            places[number] = len(saved)
            saved += (each,)
    ctx.save_for_backward(*saved)
    ctx._own, ctx._given, ctx._places, ctx._versions = own, given, places, versions
    ctx._autocast = None if device is None else (device.type, autocast_dtype(device))


# As a function is given them; any other kind is asked.
_NO_TENSORS = frozenset((type(None), bool, int, float, str))


def _given(ctx: Any, saved: Sequence[Tensor | None]) -> list[Any]:
    """The arguments of the forward pass."""
    given = [*ctx._given]
    for number, place in ctx._places.items():
        given[number] = saved[place]
    for number, version in ctx._versions.items():
        tensor = given[number]
        if version is not None and tensor._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                f"inplace operation: [{tensor.type()} {list(tensor.shape)}] is at "
                f"version {tensor._version}; expected version {version} instead"
            )
    return given


def _as_forward(autocast: tuple[str, torch.dtype | None] | None) -> ContextManager[Any]:
    """The autocast of the forward pass, which decides the dtypes of what is composed."""
    if autocast is None:
        return nullcontext()
    kind, dtype = autocast
    if dtype is None:
        return torch.autocast(kind, enabled=False)
    return torch.autocast(kind, dtype)


def _contiguous(each: Any) -> Any:
    """A tensor whose last axis is not contiguous, made so, where that is not a leaf."""
    if type(each) is Parameter or not isinstance(each, Tensor):
        return each
    if each.dim() > 2 and each.stride(-1) != 1 and not each.is_leaf:
        return each.contiguous()
    return each
