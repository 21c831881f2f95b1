"""The extensions' functions for calls whose form is known only when they are made.

A modified copy binds a name of an extension to what is here where the text uses it otherwise than
by plain calls: keeps the function in a variable, unpacks arguments, imports it in a function. The
modules have the names and functions of the extensions'; what they have beside those, and calls in
a form that is not known, go to the extension itself if it is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Callable, Sequence

from jetson_mamba.call_forms import Form, matching


def in_any_form(
    origin: str, op: Callable[..., Any], forms: Sequence[Form], positional: int
) -> Callable[..., Any]:
    """A function that takes what ``origin``, of an extension, does in any of ``forms``.

    ``op`` takes the first ``positional`` of them by position. A call in no known form is one of
    ``origin`` itself; without that it raises TypeError.
    """

    def function(*arguments: Any, **keywords: Any) -> Any:
        texts = [isinstance(argument, str) for argument in arguments]
        form = matching(forms, texts, list(keywords), positional)
        if form is None:
            return _of_extension(origin, len(arguments), list(keywords))(*arguments, **keywords)
        first = arguments[:positional]
        named = {**dict(zip(form.parameters, arguments)), **keywords}
        later = {name: named[name] for name in named if name not in form.parameters[: len(first)]}
        if "silu_activation" in later:
            later["activation"] = "silu" if later.pop("silu_activation") else None
        results = op(*first, **later)
        return results if form.results is None else results[: form.results]

    function.__name__ = function.__qualname__ = origin.rpartition(".")[2]
    return function


def passed_on(module: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module here: what else the extension ``module`` has."""

    def attribute(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(import_module(module), name)
        except ImportError as error:
            raise AttributeError(f"jetson_mamba has no {module}.{name} ({error})") from error

    return attribute


def _of_extension(origin: str, count: int, keywords: list[str]) -> Any:
    module, _, name = origin.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        given = "".join(f", {keyword}=" for keyword in keywords)
        raise TypeError(
            f"{origin}: expected a call in a form that is known, found {count} positional "
            f"arguments{given} ({error})"
        ) from error
