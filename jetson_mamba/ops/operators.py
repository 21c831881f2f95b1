"""How an op becomes an operator of ``torch.library``, which a traced graph can hold.

``torch.compile`` and ``torch.export`` trace tensor operations, and a backend is none: it launches
kernels of its own. So each op has operators that stand for it in a graph, with a *fake*
implementation that tells the results' shapes, and a formula for the gradient. Eager calls never
pass through them: they reach the backend with less on the way.

torch has what is needed from 2.4 on. With an earlier one nothing is defined, ``is_compiling`` is
never true, and tracing ends at an op as it does at any function that it does not know.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable, ContextManager

import torch
from torch import Tensor

NAMESPACE = "jetson_mamba"


def _library_of_this_import() -> Any:
    """The library of the operators, which takes the place of that of an earlier import.

    torch takes a name once a process. What an earlier import compiled then calls these operators.
    """
    earlier = getattr(torch.library, "_of_jetson_mamba", None)
    if earlier is not None:
        earlier._destroy()
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    setattr(torch.library, "_of_jetson_mamba", library)  # noqa: B010 - torch declares no such name
    return library


_library = _library_of_this_import() if hasattr(torch.library, "register_autograd") else None
has_operators = _library is not None


def _never() -> bool:
    return False


# Whether torch.compile or torch.export traces this call, into a graph that can hold operators.
is_compiling: Callable[[], bool] = _never if _library is None else torch.compiler.is_compiling


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """The operator of a ``schema`` such as ``"scan(Tensor u) -> Tensor"``, for every device.

    None with a torch that has no operators; then no graph is traced that could ask for it.

    ``fake`` gives empty tensors of the results' shapes and strides; ``setup_context`` and
    ``backward`` are as in ``torch.library.register_autograd``. No result may share memory with an
    argument that the schema does not mark as written.
    """
    if _library is None:
        return None
    name = schema.partition("(")[0]
    qualified = f"{NAMESPACE}::{name}"
    # Inductor may lay arguments out anew; a backend takes any strides and is made for the caller's.
    _library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=_library)
    if backward is not None:
        torch.library.register_autograd(
            qualified, backward, setup_context=setup_context, lib=_library
        )
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def real_tensors() -> ContextManager[Any]:
    """A context in which tensors are made and computed for real, also while a graph is traced.

    A backend is tried on small tensors before it is chosen, which a fake implementation may be the
    first to ask for.
    """
    if _library is None:
        return nullcontext()
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def laid_out_as(result: Tensor, like: Tensor) -> Tensor:
    """``result`` with the strides of ``torch.empty_like(like)``, which a fake tensor tells."""
    if result.stride() == like.stride() and like.is_contiguous():
        return result
    expected = torch.empty_like(like, device="meta").stride()
    return result if result.stride() == expected else torch.empty_like(like).copy_(result)


def or_empty(result: Tensor | None, like: Tensor) -> Tensor:
    """``result``, or an empty tensor where there is none: operators return tensors only."""
    return like.new_empty(0) if result is None else result
