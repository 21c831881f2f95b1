"""Runs a target for which there is no modified copy.

Upstream binds what it imports from an extension to None where that cannot be imported. The first
call then fails with ``'NoneType' object is not callable`` or an assertion. Only upstream knows
which of its paths need the extension, so the names stay None. But an error that comes of one of
them is raised again with both facts: which extension is missing, and why there is no copy that does
without it. A copy in which an import of an extension is left is run in the same way.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
from types import CodeType, FunctionType, ModuleType, TracebackType
from typing import Any, Callable, Iterator

from jetson_mamba.finder import EXTENSIONS

# What upstream binds, for a module whose source cannot be had.
NAMES = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "causal_conv1d_cuda",
    "causal_conv1d_fwd_function",
    "causal_conv1d_bwd_function",
    "causal_conv1d_update_function",
    "selective_scan_cuda",
)


class MissingExtension(RuntimeError):
    """A call needs an extension that is missing, in a module that is left as it is installed."""


def execute(run: Callable[[ModuleType], object], module: ModuleType, sentence: str) -> None:
    """Run a module; ``sentence`` says why it is left as it is.

    Raises the ImportError of an extension, of its own class, with that sentence added.
    """
    try:
        run(module)
    except ImportError as error:
        if type(error) not in (ImportError, ModuleNotFoundError) or not _is_of_extension(error):
            raise
        raise type(error)(f"{error}. {sentence}", name=error.name, path=error.path) from error
    names = {name for name in _bound_names(module) if vars(module).get(name) is None}
    if names:
        _Explained(module, names, sentence).wrap()


def _is_of_extension(error: ImportError) -> bool:
    return (error.name or "").partition(".")[0] in EXTENSIONS or any(
        name in str(error) for name in EXTENSIONS
    )


def _bound_names(module: ModuleType) -> Iterator[str]:
    """The names in a module that stand for something of an extension."""
    try:
        loader: Any = module.__spec__ and module.__spec__.loader
        tree = ast.parse(loader.get_source(module.__name__))
    except Exception:  # no source, or none that parses: whatever its loader makes of that
        yield from (name for name in NAMES if name in vars(module))
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(map(_names_extension, ast.walk(node.value))):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""] * len(node.names)
        else:
            continue
        for alias, imported in zip(node.names, modules):
            # In a copy, what an import in a branch binds is in the functions of any form.
            if imported.partition(".")[0] in EXTENSIONS or ".any_form" in imported:
                yield from (
                    NAMES if alias.name == "*" else [alias.asname or alias.name.partition(".")[0]]
                )


def _names_extension(node: ast.AST) -> bool:
    """Whether a node is a string with the name of an extension's module, as for an import."""
    value = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
    return isinstance(value, str) and value.partition(".")[0] in EXTENSIONS


class _Explained:
    """The functions of a module that look at ``names``, wrapped to explain what these cause."""

    def __init__(self, module: ModuleType, names: set[str], sentence: str) -> None:
        self.module = module
        self.names = names
        self.sentence = sentence
        self._wrapped: dict[int, Any] = {}  # one object under two names stays one

    def wrap(self) -> None:
        for name, value in list(vars(self.module).items()):
            if isinstance(value, FunctionType) and self._concerns(value):
                setattr(self.module, name, self._explaining(value))
            elif isinstance(value, type) and value.__module__ == self.module.__name__:
                self._wrap_methods(value)

    def _wrap_methods(self, kind: type) -> None:
        for name, value in list(vars(kind).items()):
            bound = isinstance(value, (staticmethod, classmethod))
            function = value.__func__ if bound else value
            if isinstance(function, FunctionType) and self._concerns(function):
                explaining = self._explaining(function)
                setattr(kind, name, type(value)(explaining) if bound else explaining)

    def _concerns(self, function: FunctionType) -> bool:
        inner = inspect.unwrap(function)
        return getattr(inner, "__globals__", None) is vars(self.module) and any(
            self.names.intersection(code.co_names) for code in _codes(inner.__code__)
        )

    def _explaining(self, function: FunctionType) -> Any:
        if id(function) not in self._wrapped:

            @functools.wraps(function)
            def explaining(*args: Any, **keywords: Any) -> Any:
                try:
                    return function(*args, **keywords)
                except MissingExtension:
                    raise
                except (AssertionError, AttributeError, NameError, RuntimeError, TypeError) as e:
                    missing = self._cause(e)
                    if missing is None:
                        raise
                    raise MissingExtension(
                        f"{missing} cannot be imported here, and {self.sentence}"
                    ) from e

            self._wrapped[id(function)] = explaining
        return self._wrapped[id(function)]

    def _cause(self, error: BaseException) -> str | None:
        """The name whose being None raised ``error``, if that is what it comes of."""
        last: TracebackType | None = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if last is None or last.tb_frame.f_globals is not vars(self.module):
            return None
        told = [name for name in sorted(self.names) if name in str(error)]
        if isinstance(error, (AttributeError, TypeError)) and "NoneType" not in str(error):
            return None
        if isinstance(error, RuntimeError):
            return told[0] if told else None
        used = self.names.intersection(_names_on(last.tb_frame.f_code, last.tb_lineno))
        return min(used or told, default=None)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names_on(code: CodeType, line: int) -> Iterator[str]:
    """The global names that a line of a function loads."""
    current: int | None = code.co_firstlineno
    starts = dict(dis.findlinestarts(code))
    for instruction in dis.get_instructions(code):
        current = starts.get(instruction.offset, current)
        if current == line and instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
