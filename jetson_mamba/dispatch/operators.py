"""How an op becomes an operator of ``torch.library``, which a traced graph can hold.

``torch.compile`` and ``torch.export`` trace tensor operations, and a backend is not made of them:
it launches kernels of its own. So each op has operators that stand for it in a graph, with a *fake*
implementation that tells the results' shapes, and a formula for the gradient. Eager calls do not
use them: they reach the backend directly, which costs less.

torch has what is needed from 2.4 on. With an earlier one nothing is defined, ``is_compiling`` is
never true, and tracing ends at an op as it does at any function that it does not know.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any, Callable, ContextManager, Dict

import torch
from torch import Tensor
from torch.autograd import forward_ad

NAMESPACE = "jetson_mamba"


has_operators = hasattr(torch.library, "register_autograd")


def _library_of(name: str) -> Any:
    """A library for one operator, which takes the place of that of an earlier import.

    torch takes a name once a process. What an earlier import compiled then calls this operator.
    """
    libraries: dict[str, Any] = vars(torch.library).setdefault("_of_jetson_mamba", {})
    if name in libraries:
        libraries[name]._destroy()
    libraries[name] = torch.library.Library(NAMESPACE, "FRAGMENT")
    return libraries[name]


def _never() -> bool:
    return False


def _none() -> Any:
    return None


# The innermost of torch.func's transforms at work, or None.
_transform: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", _none
)


# Whether torch.compile or torch.export traces this call, into a graph that can hold operators.
is_compiling: Callable[[], bool] = torch.compiler.is_compiling if has_operators else _never


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    composed: Callable[..., Any] | None = None,
    decomposed: Callable[..., Any] | None = None,
) -> Any:
    """The operator of a ``schema`` such as ``"scan(Tensor u) -> Tensor"``, for every device.

    None with a torch that has no operators; then no graph is traced that could ask for it.

    ``fake`` gives empty tensors of the results' shapes and strides; ``setup_context`` and
    ``backward`` are as in ``torch.library.register_autograd``. No result may share memory with an
    argument that the schema does not mark as written. ``composed`` computes the same in plain
    tensor operations, which torch's transforms then meet in place of the operator; without it they
    raise a RuntimeError. ``decomposed`` is what takes its place where an exported program is
    decomposed: operations that leave sizes open.
    """
    if not has_operators:
        return None
    name, *_ = schema.split("(")
    library = _library_of(name)
    qualified = f"{NAMESPACE}::{name}"
    # Inductor may lay arguments out anew; a backend takes any strides and is made for the caller's.
    library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(qualified, fake, lib=library)
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    if backward is not None:
        _differentiate(library, operator, setup_context, backward, composed)
    if decomposed is not None:
        _decompose(operator, decomposed)
    if composed is not None:
        # A rule of torch.library.register_vmap may call no transform, and this has to: what is
        # composed is mapped operation by operation.
        library.impl(name, composed, "FuncTorchBatched")
    elif hasattr(torch.library, "register_vmap"):
        torch.library.register_vmap(qualified, _mapped(operator), lib=library)
    return operator


_IMPLICIT = torch._C.DispatchKey.CompositeImplicitAutograd
_AUTOGRAD = torch._C.DispatchKey.AutogradCPU
# What torch's table of decompositions has of these operators: not those that write.
_on_table: dict[Any, Callable[..., Any]] = {}


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What ``ExportedProgram.run_decompositions`` puts in place of these operators by itself."""
    return dict(_on_table)


def _decompose(operator: Any, decomposed: Callable[..., Any]) -> None:
    """Let ``ExportedProgram.run_decompositions`` put ``decomposed`` in place of an operator.

    Beside a list of torch's own operators, its table has those with a Python kernel of this key.
    Unless its caller has taken an operator off it, torch then overrides the dispatch of that, and
    asks its kernel. ``torch.onnx.export`` does the same. To whoever else asks, as compilers and
    fake tensors do, it says that it does not know.
    """

    def decomposition(*arguments: Any, **keywords: Any) -> Any:
        asked = {operator: decomposition} if operator in _on_table else _on_table
        overridden = any(
            other.py_kernels.get(_IMPLICIT) is own and _AUTOGRAD in other.py_kernels
            for other, own in asked.items()
        )
        return decomposed(*arguments, **keywords) if overridden else NotImplemented

    operator.py_kernels = _Kernels(operator.py_kernels)
    operator.py_kernels.pop(_IMPLICIT, None)  # of an earlier import
    operator.py_impl(_IMPLICIT)(decomposition)
    if not operator._schema.is_mutable:
        _on_table[operator] = decomposition


class _Kernels(Dict[Any, Any]):
    """The Python kernels of an operator, without the decomposition while Inductor is imported.

    It then takes torch's table of decompositions over, and refuses whatever is on that as an
    operator to call.
    """

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) and not (key == _IMPLICIT and _inductor_is_imported())


def _inductor_is_imported() -> bool:
    """Whether the module with Inductor's decompositions is being imported."""
    module = sys.modules.get("torch._inductor.decomposition")
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _mapped(operator: Any) -> Callable[..., Any]:
    """The rule of ``torch.vmap`` for an operator in a graph: one call for each entry.

    An op that is called under ``torch.vmap`` is composed, and never comes here.
    """
    written = [
        (place, argument.name)
        for place, argument in enumerate(operator._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        for place, name in written:
            if in_dims[place] is None:
                raise RuntimeError(
                    f"{operator}: {name} is written in place, and expected to be mapped as the "
                    "other arguments are"
                )
        found = []
        for entry in range(info.batch_size):
            pairs = zip(arguments, in_dims)
            found.append(
                operator(*[of if dim is None else of.select(dim, entry) for of, dim in pairs])
            )
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(map(torch.stack, zip(*found))), (0,) * len(found[0])

    return rule


def _differentiate(
    library: Any,
    operator: Any,
    setup_context: Callable[..., None] | None,
    backward: Callable[..., Any],
    composed: Callable[..., Any] | None,
) -> None:
    """Register the gradient of an operator, as ``torch.library.register_autograd`` does.

    What that registers loses the tangents of forward-mode derivatives without a word, and stops
    ``torch.func``.
    """
    from torch._library.autograd import Info, make_autograd_impl

    registered = make_autograd_impl(operator, Info(backward, setup_context))
    name = operator._schema.name

    def differentiated(keys: Any, *arguments: Any, **keywords: Any) -> Any:
        if forward_ad._current_level < 0 and _transform() is None:
            return registered(keys, *arguments, **keywords)
        if composed is None:
            raise RuntimeError(
                f"{name}: expected no transform of torch.func and no forward-mode derivative of a "
                "graph that holds gradients; transform the function before it is traced"
            )
        return composed(*arguments, **keywords)

    library.impl(name.split("::")[1], differentiated, "Autograd", with_keyset=True)


def forward_to(schema: str, implementation: Callable[..., Any]) -> Any:
    """An operator that does nothing by itself but to call others, which stand in a graph instead.

    A graph is traced through it. None with a torch that has no operators.
    """
    if not has_operators:
        return None
    name, *_ = schema.split("(")
    library = _library_of(name)
    library.define(schema, tags=(torch.Tag.needs_fixed_stride_order,))
    library.impl(name, implementation, "CompositeImplicitAutograd")
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def real_tensors() -> ContextManager[Any]:
    """A context in which tensors are made and computed for real, also while a graph is traced.

    A backend is tried on small tensors before it is chosen, which a fake implementation may be the
    first to ask for.
    """
    if not has_operators:
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
