"""Whether what a method of a module reads beside its arguments is as it was.

Nothing that is remembered refers to anything of the module: plain values are copied, all else is
known by weak references and by addresses. So a module is freed when its user is done with it,
whatever it holds.
"""

from __future__ import annotations

import inspect
from copy import copy
from dataclasses import fields, is_dataclass
from operator import itemgetter
from types import FunctionType
from typing import Any, Callable, Iterable, Mapping
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_PLAIN: frozenset[Any] = frozenset((bool, int, float, str, torch.dtype, torch.device, type(None)))
_TENSORS: frozenset[Any] = frozenset((Tensor, nn.Parameter, type(None)))
# What every module has, of which some is looked at by itself and the rest says nothing here.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
# What mamba_ssm's generation leaves in a model, which no method of the model reads.
_LEFT = {"_decoding_cache"}
# Modules that keep what they are made of, and no more.
_KNOWN = ("torch.nn.modules.", "mamba_ssm.")
# How torch calls a module, which profilers and tracers put their own in place of.
_CALLING = [
    name for name in ("__call__", "_wrapped_call_impl", "_call_impl") if name in vars(nn.Module)
]
_TORCHS_OWN = nn.Module.__init__.__code__.co_filename
_INSIDE = itemgetter(
    *("_modules", "_parameters", "_buffers", "_forward_hooks", "_forward_pre_hooks")
)
_GLOBAL_HOOKS = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)


class Unknown(Exception):
    """A module holds something that does not tell all about itself."""


class Read:
    """All that a module's method reads; raises :class:`Unknown` where that cannot be told.

    With ``inside``, what the methods of the modules in it read too, which a block's graph leaves to
    the block.
    """

    def __init__(
        self, block: nn.Module, method: Callable[..., Any], *, inside: bool = False
    ) -> None:
        self._calling = _Names(vars(nn.Module), _CALLING)
        for name in _CALLING:
            code = getattr(vars(nn.Module)[name], "__code__", None)
            if code is None or code.co_filename != _TORCHS_OWN:
                raise Unknown
        modules = [*block.modules()]
        kinds = [type(module) for module in modules]
        for module, kind in zip(modules, kinds):
            if kind.__call__ is not nn.Module.__call__:
                raise Unknown
            if module is not block and (
                not kind.__module__.startswith(_KNOWN) or "forward" in vars(module)  # a wrapper's
            ):
                raise Unknown
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if type(tensor) not in _TENSORS:
                    raise Unknown
            # Such as running means, which trying the method out would update once more.
            if module.training and module._buffers:
                raise Unknown
        # Also where it stands for another of this package's making.
        method = inspect.unwrap(method)
        names = method.__code__.co_names if isinstance(method, FunctionType) else ()
        called = [(kinds[0], name) for name in ("__call__", *names)]
        called += [(kind, name) for kind in kinds[1:] for name in ("__call__", "forward")]
        functions = [method]
        if inside:
            more = [each for kind in dict.fromkeys(kinds) for each in _methods_run(kind)]
            called += more
            functions += [inspect.unwrap(getattr(kind, name)) for kind, name in more]
        self._globals = [
            _Names(each.__globals__, [n for n in each.__code__.co_names if n in each.__globals__])
            for each in functions
            if isinstance(each, FunctionType)
        ]
        self._called = [
            (ref(kind), name, ref(getattr(kind, name)))
            for kind, name in dict.fromkeys(called)
            if isinstance(getattr(kind, name, None), FunctionType)
        ]
        self._modules = [ref(module) for module in modules]
        # A getter of two names or more gives a tuple.
        self._own = [
            itemgetter("training", "training", *(vars(module).keys() - _OF_EVERY_MODULE - _LEFT))
            for module in modules
        ]
        self._found = _copied(self._look(modules))

    def is_as_it_was(self) -> bool:
        """Whether it is the same as when this was made."""
        if not self._calling.are_as_they_were():
            return False
        for names in self._globals:
            if not names.are_as_they_were():
                return False
        for kind, name, function in self._called:
            if getattr(kind(), name, None) is not function():
                return False
        try:
            found = self._look([module() for module in self._modules])
            return bool(found == self._found)
        except Exception:
            # A hook, something less, a module that is no more, or what is no tensor of torch's.
            return False

    def _look(self, modules: list[Any]) -> list[Any]:
        """What modules are and have; the block is the first.

        All of them are there, so that an address tells which one of them is meant.
        """
        if any(map(any, _GLOBAL_HOOKS)):
            raise Unknown
        attributes = [module.__dict__ for module in modules]
        children: list[tuple[str, Any]] = []
        tensors: list[tuple[str, Any]] = []
        is_block = True
        for submodules, parameters, buffers, hooks, pre_hooks in map(_INSIDE, attributes):
            if submodules:
                children += submodules.items()
            if parameters:
                tensors += parameters.items()
            if buffers:
                tensors += buffers.items()
            if (hooks or pre_hooks) and not is_block:
                raise Unknown
            is_block = False
        return [
            [*map(id, map(type, modules))],
            [*map(len, attributes)],
            [(name, id(module)) for name, module in children],
            # Where the numbers lie, and how.
            [
                (name, None)
                if x is None
                else (name, id(type(x)), x.data_ptr(), x.dtype, x.shape, x.stride())
                for name, x in tensors
            ],
            [own(each) for own, each in zip(self._own, attributes)],
        ]


def _methods_run(kind: type[nn.Module]) -> list[tuple[type[nn.Module], str]]:
    """The ``forward`` of a kind that is not torch's, and the methods that it names in turn."""
    found: list[tuple[type[nn.Module], str]] = []
    if kind.__module__.startswith("torch."):
        return found
    ahead = ["forward"]
    while ahead:
        name = ahead.pop()
        function = getattr(kind, name, None)
        if isinstance(function, FunctionType) and (kind, name) not in found:
            found.append((kind, name))
            ahead += inspect.unwrap(function).__code__.co_names
    return found


class _Names:
    """The values of some names in a namespace: the same objects, or equal ones of plain types."""

    def __init__(self, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
        self._namespace = namespace
        self._objects: list[tuple[str, ref[Any]]] = []
        self._values: list[tuple[str, Any]] = []
        for name in names:
            try:
                self._objects.append((name, ref(namespace[name])))
            except TypeError:  # no weak reference can be made
                self._values.append((name, _copied(namespace[name])))

    def are_as_they_were(self) -> bool:
        """Whether they are the same as when this was made."""
        namespace = self._namespace
        for name, reference in self._objects:
            if namespace.get(name) is not reference():
                return False
        for name, value in self._values:  # noqa: SIM110 - takes half the time
            if namespace.get(name) != value:
                return False
        return True


def _copied(value: Any) -> Any:
    """A value that refers to nothing but what tells all about itself, equal to this one."""
    if type(value) in _PLAIN:
        return value
    number: Any
    for number in (int, float, str):  # such as a member of an enumeration, or a number of NumPy's
        if isinstance(value, number):
            return number(value)
    if is_dataclass(value) and not isinstance(value, type):
        # Compared field by field, as a configuration is.
        names = {field.name for field in fields(value)}
        if type(value).__eq__ is object.__eq__ or getattr(value, "__dict__", {}).keys() - names:
            raise Unknown
        twin = copy(value)
        for field in fields(value):
            object.__setattr__(twin, field.name, _copied(getattr(value, field.name)))
        return twin
    if isinstance(value, dict):
        return {_copied(key): _copied(each) for key, each in value.items()}
    kind: Any
    for kind in (tuple, list, set, frozenset):
        if isinstance(value, kind):
            return kind(map(_copied, value))
    raise Unknown
