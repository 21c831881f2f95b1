"""Which backend an op uses for a call, and why the ones before it were passed over.

A backend is one implementation of an op: ``package`` (the Python wrapper of causal-conv1d),
``extension`` (a compiled module, called directly), ``cuda`` (this project's own kernels) and
``pytorch``. Each is a module with one function, ``load(case)``, that returns the
implementation or raises :class:`Unavailable`. An :class:`Op` tries them in order, once for
each *case* (the device and whatever else decides: a dtype, a width), and remembers the choice,
so that a call pays for one dictionary lookup. Where a backend is named (``selection`` says how),
that one serves every case, or the call fails.
"""

from __future__ import annotations

import threading
import warnings
from importlib import import_module
from typing import Callable, Generic, Hashable, NamedTuple, TypeVar

Case = TypeVar("Case", bound=Hashable)
Implementation = TypeVar("Implementation")


class Unavailable(Exception):
    """A backend does not apply here: not installed, or not made for this device or dtype."""


class BackendWarning(RuntimeWarning):
    """A backend is installed and does not work; the next one is used."""


class Choice(NamedTuple):
    """The backend that serves a case, and the reason for each that was passed over."""

    backend: str
    passed_over: tuple[tuple[str, str], ...]


class Selection(NamedTuple):
    """A backend that is asked for by its name.

    ``asked_by`` is what names it, ``undo`` what takes that back, both as an error message says
    them.
    """

    backend: str
    asked_by: str
    undo: str


class Op(Generic[Case, Implementation]):
    """An operation with several backends, of which the first that works is used.

    ``package`` is the package that holds one module for each name in ``order``. ``trial``
    runs an implementation once on small tensors of a case and raises if the results are
    wrong: an extension that was built for another torch or GPU imports without complaint and
    fails at its first launch.
    """

    def __init__(
        self,
        name: str,
        package: str,
        order: tuple[str, ...],
        trial: Callable[[Implementation, Case], None],
    ) -> None:
        self.name = name
        self.order = order
        self._package = package
        self._trial = trial
        self._selection: Selection | None = None
        # One pair of dictionaries for each backend that was named, and one for none: a selection
        # swaps them, so that a call never has to ask which is in force.
        self._remembered: dict[
            str | None, tuple[dict[Case, Implementation], dict[Case, Choice]]
        ] = {}
        self._chosen, self._choices = self._remembered.setdefault(None, ({}, {}))
        self._warned: set[str] = set()
        self._lock = threading.RLock()

    def implementation(self, case: Case) -> Implementation:
        """The implementation that serves ``case``, chosen at the first call."""
        try:
            return self._chosen[case]
        except KeyError:
            return self._choose(case)

    def choices(self) -> dict[Case, Choice]:
        """Every case met so far under the selection in force, and what was chosen for it."""
        with self._lock:
            return dict(self._choices)

    @property
    def selection(self) -> Selection | None:
        """The backend that serves every case because it was named; None where none was."""
        return self._selection

    def select(self, selection: Selection | None) -> None:
        """Serve every case by the backend that is named, in the whole process; None: in order."""
        with self._lock:
            self._selection = selection
            self._chosen, self._choices = self._remembered.setdefault(
                selection.backend if selection else None, ({}, {})
            )

    def _choose(self, case: Case) -> Implementation:
        with self._lock:
            if case in self._chosen:
                return self._chosen[case]
            if self._selection is not None:
                return self._load_named(self._selection, case)
            passed_over: list[tuple[str, str]] = []
            broken: list[tuple[str, str]] = []
            for backend in self.order:
                try:
                    implementation: Implementation = self._load(backend, case)
                except Unavailable as reason:
                    passed_over.append((backend, str(reason)))
                except Exception as error:
                    reason_text = f"{type(error).__name__}: {first_line(error)}"
                    passed_over.append((backend, reason_text))
                    if not refuses_device(error):
                        broken.append((backend, reason_text))
                else:
                    self._choices[case] = Choice(backend, tuple(passed_over))
                    self._chosen[case] = implementation
                    self._warn(broken, backend)
                    return implementation
        raise RuntimeError(
            f"no backend of {self.name} works for {case}: "
            + "; ".join(f"{backend}: {reason}" for backend, reason in passed_over)
        )

    def _load_named(self, selection: Selection, case: Case) -> Implementation:
        try:
            implementation: Implementation = self._load(selection.backend, case)
        except Exception as error:
            reason = first_line(error)
            if not isinstance(error, Unavailable):
                reason = f"{type(error).__name__}: {reason}"
            others = ", ".join(each for each in self.order if each != selection.backend)
            raise RuntimeError(
                f"{self.name}: the backend '{selection.backend}', asked for by "
                f"{selection.asked_by}, cannot serve {case}: {reason}. Name another "
                f"({others or 'there is none'}), or {selection.undo}"
            ) from error
        self._choices[case] = Choice(selection.backend, ())
        self._chosen[case] = implementation
        return implementation

    def _load(self, backend: str, case: Case) -> Implementation:
        name = f"{self._package}.{backend}"
        try:
            module = import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise Unavailable("not part of this installation") from None
        implementation: Implementation = module.load(case)
        self._trial(implementation, case)
        return implementation

    def _warn(self, broken: list[tuple[str, str]], chosen: str) -> None:
        """Say once of each backend that it is broken, and together what was found together."""
        unsaid = [(backend, reason) for backend, reason in broken if backend not in self._warned]
        if unsaid:
            self._warned.update(backend for backend, _ in unsaid)
            found = "; ".join(f"'{backend}' ({reason})" for backend, reason in unsaid)
            warnings.warn(
                f"{self.name}: installed but not working: {found}. The backend '{chosen}' is "
                "used. `jetson-mamba doctor` says more.",
                BackendWarning,
                stacklevel=5,
            )


def refuses_device(error: BaseException) -> bool:
    """Whether an extension says no more than that it has nothing for tensors on this device.

    It does so in the words of ``TORCH_CHECK(x.is_cuda())``, or of the dispatcher.
    """
    message = str(error)
    return "is_cuda() to be true" in message or (
        isinstance(error, NotImplementedError) and "Could not run" in message
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message: a C++ error carries a stack after it."""
    return (str(error).strip() or "no message").splitlines()[0]
