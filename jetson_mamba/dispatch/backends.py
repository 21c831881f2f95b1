"""Which backend an op uses for a call, with the reason for each that was passed over.

A backend is one implementation of an op: ``package`` (the Python wrapper of causal-conv1d),
``extension`` (a compiled module, called directly), ``cuda`` (this project's own kernels) and
``pytorch``. Each is a module with one function, ``load(case)``, that returns the
implementation or raises :class:`Unavailable`. An :class:`Op` tries them in order, once for
each *case* (the device and whatever else decides: a dtype, a width), and remembers the choice,
so that a call pays for one dictionary lookup. Where a backend is named (``selection`` says how),
that one serves every case, or the call fails.

A choice is made apart from whatever surrounds the call that asks for it (``apart``), once for all
threads that ask. What fails for want of something that may be there at the next call (``passing``)
decides nothing: the call raises it, and the next one tries again.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any, Callable, ContextManager, Generic, Hashable, Iterable, NamedTuple, TypeVar

import torch

from jetson_mamba import forks
from jetson_mamba.errors import Unavailable

from .apart import Apart
from .memo import Memo
from .passing import passing

# Cases of an op that are remembered.
MOST_CASES = 1024

Case = TypeVar("Case", bound=Hashable)
Implementation = TypeVar("Implementation")


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


class _Outcome(NamedTuple):
    """What came of a choice; ``broken`` are backends that are installed and do not work."""

    implementation: Any
    choice: Choice
    broken: tuple[tuple[str, str], ...]


class _Choosing(NamedTuple):
    """Where a choice stands: its outcome if that is known, else what finds it, maybe to be started.

    ``chosen`` is the memory that it belongs to.
    """

    key: Any
    chosen: Any
    known: _Outcome | None
    choosing: Apart[_Outcome] | None
    starts: bool


# The backends that are named, by their ops: a new tuple whenever that changes.
named: tuple[tuple[str, str], ...] = ()


class Op(Generic[Case, Implementation]):
    """An operation with several backends, of which the first that works is used.

    ``package`` is the package that holds one module for each name in ``order``. ``trial``
    runs an implementation once on small tensors of a case and raises if the results are
    wrong: an extension that was built for another torch or GPU imports without complaint and
    fails at its first launch. It names the dtypes and devices of its tensors, whose defaults are
    the caller's.
    """

    _lock: ContextManager[Any]

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
        # One memory for each backend that was named, and one for none: a selection swaps them, so
        # that a call never has to ask which is in force.
        self._remembered: dict[str | None, Memo[Case, _Outcome]] = {}
        self._put_into_force(None)
        # Choices that are being made.
        self._choosing: dict[tuple[str | None, Case], Apart[_Outcome]] = {}
        self._warned: set[str] = set()
        forks.lock(self, "_lock")

    def implementation(self, case: Case) -> Implementation:
        """The implementation that serves ``case``, chosen at the first call.

        Raises RuntimeError where no backend serves it, and what a backend failed with where that
        may pass.
        """
        chosen = self._find(case)
        if chosen is None:
            return self._choose(case)
        chosen.used = self._clock()
        implementation: Implementation = chosen.value.implementation
        return implementation

    def begin(self, case: Case) -> None:
        """Begin to choose for ``case``, which is about to be asked for; returns at once."""
        if self._find(case) is None and not _is_capturing(case):
            choice = self._choice_of(case)
            if choice.starts and choice.choosing is not None:
                choice.choosing.start()

    def find(self, case: Any) -> Implementation | None:
        """The same where it is chosen already, else None; any tuple that equals the case will do.

        To make a named one takes as long as all the rest.
        """
        chosen = self._find(case)
        if chosen is None:
            return None
        chosen.used = self._clock()
        implementation: Implementation = chosen.value.implementation
        return implementation

    def choices(self) -> dict[Case, Choice]:
        """Every case met so far under the selection in force, and what was chosen for it."""
        return {case: outcome.choice for case, outcome in self._chosen.items()}

    def forget(self) -> None:
        """Decide for every case anew, at its next call."""
        for remembered in [*self._remembered.values()]:
            remembered.clear()

    @property
    def selection(self) -> Selection | None:
        """The backend that serves every case because it was named; None where none was."""
        return self._selection

    def select(self, selection: Selection | None) -> None:
        """Serve every case by the backend that is named, in the whole process; None: in order."""
        global named  # noqa: PLW0603 - what is in force in the process
        with self._lock:
            self._put_into_force(selection)
            others = [each for each in named if each[0] != self.name]
            named = (*others, *([(self.name, selection.backend)] if selection else []))

    def _put_into_force(self, selection: Selection | None) -> None:
        key = selection.backend if selection else None
        if key not in self._remembered:
            self._remembered[key] = Memo(MOST_CASES)
        self._selection = selection
        self._chosen = self._remembered[key]
        self._find, self._clock = self._chosen.find, self._chosen.clock

    def _choose(self, case: Case) -> Implementation:
        if _is_capturing(case):
            return self._untried(case)
        key, chosen, known, choosing, starts = self._choice_of(case)
        if known is not None:
            outcome = known
        elif choosing is not None:
            try:
                if starts:
                    choosing.start()
                outcome = choosing.result()
                chosen.put(case, outcome)
            finally:
                # An interrupt of this thread leaves the choice to go on.
                if choosing.is_over() and self._choosing.get(key) is choosing:
                    del self._choosing[key]
        self._warn(outcome.broken, outcome.choice.backend)
        implementation: Implementation = outcome.implementation
        return implementation

    def _choice_of(self, case: Case) -> _Choosing:
        with self._lock:
            selection, chosen = self._selection, self._chosen
            key = (selection.backend if selection else None, case)
            known = chosen.find(case)
            choosing = self._choosing.get(key)
            starts = known is None and (choosing is None or choosing.is_lost())
            if starts:
                choosing = self._choosing[key] = Apart(lambda: self._decide(selection, case))
        return _Choosing(key, chosen, None if known is None else known.value, choosing, starts)

    def _decide(self, selection: Selection | None, case: Case) -> _Outcome:
        """Try the backends; runs apart from the call."""
        if selection is not None:
            return self._load_named(selection, case)
        passed_over: list[tuple[str, str]] = []
        broken: list[tuple[str, str]] = []
        for backend in self.order:
            try:
                implementation = self._load(backend, case)
            except Exception as error:
                _raise_if_it_passes(error)
                reason = first_line(error)
                if not isinstance(error, Unavailable):
                    reason = f"{type(error).__name__}: {reason}"
                    if not refuses_device(error):
                        broken.append((backend, reason))
                passed_over.append((backend, reason))
            else:
                return _Outcome(implementation, Choice(backend, tuple(passed_over)), tuple(broken))
        raise self._nothing_serves(case, passed_over)

    def _untried(self, case: Case) -> Implementation:
        """What serves a call that a graph is captured of, in which nothing can be tried.

        It is the first backend that loads, leaving out those that were found broken; the choice
        is left to the first call after that.
        """
        passed_over: list[tuple[str, str]] = []
        order = (self._selection.backend,) if self._selection else self.order
        for backend in order:
            if backend in self._warned:
                continue
            try:
                return self._module(backend).load(case)  # type: ignore[no-any-return]
            except Exception as error:
                _raise_if_it_passes(error)
                passed_over.append((backend, first_line(error)))
        raise self._nothing_serves(case, passed_over)

    def _nothing_serves(self, case: Case, passed_over: Iterable[tuple[str, str]]) -> RuntimeError:
        return RuntimeError(
            f"no backend of {self.name} works for {case}: "
            + "; ".join(f"{backend}: {reason}" for backend, reason in passed_over)
        )

    def _load_named(self, selection: Selection, case: Case) -> _Outcome:
        try:
            implementation = self._load(selection.backend, case)
        except Exception as error:
            _raise_if_it_passes(error)
            reason = first_line(error)
            if not isinstance(error, Unavailable):
                reason = f"{type(error).__name__}: {reason}"
            others = ", ".join(each for each in self.order if each != selection.backend)
            raise RuntimeError(
                f"{self.name}: the backend '{selection.backend}', asked for by "
                f"{selection.asked_by}, cannot serve {case}: {reason}. Name another "
                f"({others or 'there is none'}), or {selection.undo}"
            ) from error
        return _Outcome(implementation, Choice(selection.backend, ()), ())

    def _load(self, backend: str, case: Case) -> Any:
        """The implementation, which has been tried; once more where it lacked room."""
        try:
            return self._tried(backend, case)
        except Exception as error:
            if _passing(error) is None:
                raise
        # What this process holds and does not use is all that can be given back here.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return self._tried(backend, case)

    def _tried(self, backend: str, case: Case) -> Any:
        implementation = self._module(backend).load(case)
        self._trial(implementation, case)
        return implementation

    def _module(self, backend: str) -> Any:
        name = f"{self._package}.{backend}"
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise Unavailable("not part of this installation") from None

    def _warn(self, broken: tuple[tuple[str, str], ...], chosen: str) -> None:
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


def _passing(error: BaseException) -> BaseException | None:
    """The error that passes among this and what it was raised from."""
    return passing(error.__cause__ if isinstance(error, Unavailable) else error)


def _raise_if_it_passes(error: BaseException) -> None:
    found = _passing(error)
    if found is not None:
        raise found


def _is_capturing(case: object) -> bool:
    """Whether a CUDA graph is captured of this call, which must not wait for a GPU."""
    device = getattr(case, "device", None)
    return (
        getattr(device, "type", None) == "cuda"
        and torch.cuda.is_initialized()
        and torch.cuda.is_current_stream_capturing()
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
