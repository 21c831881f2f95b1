"""Launches a whole block by a CUDA graph, all of its Python with it.

What a block does around its scan is upstream's own Python, and takes a CPU longer than the scan's
launches. Where no gradient is recorded and the call is small, its method runs twice; from then on
``captured`` repeats what it launched.

A method reads more than tensors, so a graph serves only while all of it is as it was: the
attributes, parameters, buffers, submodules and classes of the block, the globals that the method
names, and ``environment_key``. A block that keeps anything else than plain values, has hooks
inside, has submodules that are neither torch's nor mamba_ssm's, or is in training and has buffers
is called as it is.

Nothing that is remembered of a block refers to anything of it: plain values are copied, all else is
known by weak references and by addresses. So a block is freed when its user is done with it,
whatever it holds.
"""

from __future__ import annotations

from functools import wraps
from operator import itemgetter
from types import FunctionType
from typing import Any, Callable, Iterable, Mapping
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from jetson_mamba.dispatch.paths import without_gradients

from . import captured
from .captured import Captured, Weights

# Of the input. A block's tensors are several times as wide, and there is a copy of the states of
# decoding, which are wider still.
MOST_ELEMENTS = captured.MOST_ELEMENTS // 4
MOST_ELEMENTS_OF_STEP = MOST_ELEMENTS // 32
# A block that is called as it is may change, and is looked at again after so many calls.
CALLS_UNTIL_ANOTHER_LOOK = 64

_PLAIN: frozenset[Any] = frozenset((bool, int, float, str, torch.dtype, torch.device, type(None)))
_TENSORS: frozenset[Any] = frozenset((Tensor, nn.Parameter, type(None)))
# What every module has, of which some is looked at by itself and the rest says nothing here.
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
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
        self._blocks: dict[int, _Block] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the method, as for another process, begins without graphs."""
        return _Graphs, (self._method, self._written)

    def launched(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The method's result, by a graph; None where it is to be called."""
        number = id(block)
        known = self._blocks.get(number)
        if known is None or known.block() is not block or not known.is_as_it_was():
            forget = self._blocks.pop
            watched = ref(block, lambda _: forget(number, None))
            known = self._blocks[number] = _Block(watched, self._method, self._written)
        if known.graphs is None:
            return None
        return known.graphs.launched(inputs, ())


class _Unknown(Exception):
    """A block holds something that does not tell all about itself."""


class _Block:
    """What a block's method reads beside its arguments, as it was when this was made.

    ``graphs`` is None where that cannot be told; then nothing else is kept.
    """

    def __init__(self, block: ref[nn.Module], method: Callable[..., Any], written: int) -> None:
        self.block = block
        self.graphs: Captured | None = None
        self._calls_left = CALLS_UNTIL_ANOTHER_LOOK
        module: Any = block()
        try:
            self._read = _Read(module, method)
        except _Unknown:
            return
        self.graphs = Captured(_function(block, method, written), written)

    def is_as_it_was(self) -> bool:
        """Whether nothing is different but the numbers in the tensors, which a graph reads."""
        if self.graphs is None:
            self._calls_left -= 1
            return self._calls_left > 0
        return self._read.is_as_it_was()


class _Read:
    """All that a block's method reads; raises :class:`_Unknown` where that cannot be told."""

    def __init__(self, block: nn.Module, method: Callable[..., Any]) -> None:
        names: tuple[str, ...] = ()
        known: dict[str, Any] = {}
        if isinstance(method, FunctionType):
            known, names = method.__globals__, method.__code__.co_names
        self._globals = _Names(known, [name for name in names if name in known])
        self._calling = _Names(vars(nn.Module), _CALLING)
        for name in _CALLING:
            code = getattr(vars(nn.Module)[name], "__code__", None)
            if code is None or code.co_filename != _TORCHS_OWN:
                raise _Unknown
        modules = [*block.modules()]
        kinds = [type(module) for module in modules]
        for module, kind in zip(modules, kinds):
            if kind.__call__ is not nn.Module.__call__:
                raise _Unknown
            if module is not block and (
                not kind.__module__.startswith(_KNOWN) or "forward" in vars(module)  # a wrapper's
            ):
                raise _Unknown
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if type(tensor) not in _TENSORS:
                    raise _Unknown
            # Such as running means, which trying the method out would update once more.
            if module.training and module._buffers:
                raise _Unknown
        called = [(kinds[0], name) for name in ("__call__", *names)]
        called += [(kind, name) for kind in kinds[1:] for name in ("__call__", "forward")]
        self._called = [
            (ref(kind), name, ref(getattr(kind, name)))
            for kind, name in dict.fromkeys(called)
            if isinstance(getattr(kind, name, None), FunctionType)
        ]
        self._modules = [ref(module) for module in modules]
        # A getter of two names or more gives a tuple.
        self._own = [
            itemgetter("training", "training", *(vars(module).keys() - _OF_EVERY_MODULE))
            for module in modules
        ]
        self._found = _copied(self._look(modules))

    def is_as_it_was(self) -> bool:
        """Whether it is the same as when this was made."""
        if not (self._globals.are_as_they_were() and self._calling.are_as_they_were()):
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
            raise _Unknown
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
                raise _Unknown
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


def _copied(value: Any) -> Any:
    """A value that refers to nothing but what tells all about itself, equal to this one."""
    if type(value) in _PLAIN:
        return value
    number: Any
    for number in (int, float, str):  # such as a member of an enumeration, or a number of NumPy's
        if isinstance(value, number):
            return number(value)
    if isinstance(value, dict):
        return {_copied(key): _copied(each) for key, each in value.items()}
    kind: Any
    for kind in (tuple, list, set, frozenset):
        if isinstance(value, kind):
            return kind(map(_copied, value))
    raise _Unknown
