"""The list of all mutations, by kind. It says what a mutation is."""

from __future__ import annotations

import random
from importlib import import_module
from typing import Callable, Iterable, Iterator, NamedTuple

from tests.mutants.texts import COMBINED, INTERFACE, KERNELS, TARGETS, Text, texts

# One module each.
KINDS = (
    *("signatures", "operands", "kernels", "imports", "names", "structure", "calls", "spelling"),
    "syntax",
)


class Mutant(NamedTuple):
    """One changed file, and what has to be known to run it.

    ``files`` are texts by their path from the top of ``mamba_ssm``; one that begins with ``/``
    lies beside the package. ``renamed`` gives parameters their new names, ``extra`` are arguments
    that only the mutant takes, given in calls of their own. ``refusable`` says why the core cannot
    apply, where it cannot; anywhere else it must.
    """

    kind: str
    mutation: str
    release: str
    path: str
    detail: str
    files: dict[str, str]
    renamed: dict[str, str]
    extra: dict[str, float]
    refusable: str | None

    @property
    def name(self) -> str:
        """What it is called in a report; no two mutants share it."""
        return f"{self.release}/{self.path}:{self.mutation}[{self.detail}]"


class Change(NamedTuple):
    """What a mutation makes of a text; see :class:`Mutant`."""

    detail: str
    source: str
    files: dict[str, str] | None = None
    renamed: dict[str, str] | None = None
    extra: dict[str, float] | None = None


# The targets that call extensions.
EXTENSION_USERS = (INTERFACE, COMBINED)

Mutation = Callable[[Text, random.Random], Iterable[Change]]


class _Registered(NamedTuple):
    kind: str
    make: Mutation
    paths: tuple[str, ...] | None
    refusable: str | None


_registered: list[_Registered] = []


def mutation(
    *paths: str, refusable: str | None = None, kernels: bool = False
) -> Callable[[Mutation], Mutation]:
    """Registers a mutation; its kind is the module that it stands in.

    It is given every text of the ``paths``, by default of every target, with ``kernels`` of the
    files of kernels as well, and yields nothing where there is nothing that it changes.
    """

    def register(make: Mutation) -> Mutation:
        kind = make.__module__.rpartition(".")[2]
        chosen = tuple({*paths, *(KERNELS if kernels else ())}) or None
        _registered.append(_Registered(kind, make, chosen, refusable))
        return make

    return register


def mutants(seed: int = 0) -> list[Mutant]:
    """All mutants of all texts, the same ones for the same seed."""
    for kind in KINDS:
        import_module(f"tests.mutants.{kind}")
    return [mutant for each in _registered for mutant in _made(each, seed)]


def _made(registered: _Registered, seed: int) -> Iterator[Mutant]:
    name = registered.make.__name__
    for text in texts():
        if text.path not in (registered.paths or TARGETS):
            continue
        choice = random.Random(f"{seed} {name} {text.release} {text.path}")
        for change in registered.make(text, choice):
            if change.source == text.source:
                continue
            yield Mutant(
                registered.kind,
                name,
                text.release,
                text.path,
                change.detail,
                {text.path: change.source, **(change.files or {})},
                change.renamed or {},
                change.extra or {},
                registered.refusable,
            )
