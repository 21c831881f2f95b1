"""The loader that runs what is installed, or the stand-in where that raises an ImportError."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest

from jetson_mamba.hook import stand_in
from jetson_mamba.hook.stand_in import PACKAGE, StandInLoader, metadata

EXTENSION = "causal_conv1d_cuda"
REASON = "__jetson_mamba_reason__"


class Installed:
    """The loader of what is installed, which does what it is told to."""

    def __init__(self, does: Any = None, creates: Any = None) -> None:
        self.does, self.creates = does, creates
        self.public = "its own"
        self._private = "nobody's"

    def create_module(self, spec: ModuleSpec) -> Any:
        """What it was told to make, or to raise."""
        if isinstance(self.creates, Exception):
            raise self.creates
        return self.creates

    def exec_module(self, module: ModuleType) -> None:
        """Leave a name, and do it."""
        vars(module)["left"] = 1
        if callable(self.does):
            self.does(module)
        elif self.does is not None:
            raise self.does


class Oldest:
    """A loader of the kind that loads by name."""

    loaded: Any = None

    def load_module(self, name: str) -> None:
        """Note it."""
        self.loaded = name


def loading(
    original: Any, name: str = EXTENSION, installed: bool = True
) -> tuple[StandInLoader, ModuleType]:
    """A loader around another, and the module that it is to run."""
    spec = ModuleSpec(name, original)
    loader: Any = StandInLoader(name, spec, installed)
    spec.loader = loader
    module = importlib.util.module_from_spec(spec)
    return loader, module


@pytest.fixture(autouse=True)
def _torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins without what they compute with."""
    for name in ("jetson_mamba.ops", "torch"):
        fake = ModuleType(name)
        vars(fake)["no_grad"] = lambda: lambda function: function
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr("jetson_mamba.ops", sys.modules["jetson_mamba.ops"], raising=False)
    for name in (PACKAGE, EXTENSION):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_what_is_installed_runs_and_has_its_own_loader_afterwards() -> None:
    original: Any = Installed()
    loader, module = loading(original)
    loader.exec_module(module)
    assert vars(module)["left"] == 1 and not stand_in.is_one(module)
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__ is original
    # A module that somebody else has given another loader keeps that.
    loader, module = loading(original)
    assert module.__spec__ is not None
    other: Any = Installed()
    module.__spec__.loader = other
    loader.exec_module(module)
    assert module.__spec__.loader is other
    module.__spec__ = None
    loader.exec_module(module)


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("name", [EXTENSION, "selective_scan_cuda"])
def test_the_stand_in_runs_in_its_place(installed: bool, name: str) -> None:
    loader, module = loading(Installed(ImportError("undefined symbol")), name, installed)
    loader.exec_module(module)
    assert stand_in.is_one(module) and not hasattr(module, "left")
    said = "ImportError: undefined symbol" if installed else None
    assert vars(module)[REASON] == said
    assert module.__file__ == f"{stand_in.FOLDER}/{name}.py"
    assert set(module.__all__) >= {"fwd", "bwd"} or "causal_conv1d_fwd" in module.__all__
    assert not hasattr(module, "__path__")


def test_a_package_has_the_folder_of_the_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = ModuleType("jetson_mamba.ops")
    vars(ops).update(causal_conv1d_fn=1, causal_conv1d_update=2)
    monkeypatch.setitem(sys.modules, ops.__name__, ops)
    loader, module = loading(Installed(ModuleNotFoundError("No module named 'x'")), PACKAGE)
    loader.exec_module(module)
    assert [*module.__path__] == [f"{stand_in.FOLDER}/{PACKAGE}"]
    assert vars(module)[REASON] == "ModuleNotFoundError: No module named 'x'"


def test_a_compiled_module_that_cannot_be_made_is_one_that_cannot_be_imported() -> None:
    made = ModuleType(EXTENSION)
    assert loading(Installed(creates=made))[1] is made
    error = ImportError("libc10.so: cannot open")
    loader, module = loading(Installed(creates=error))
    loader.exec_module(module)
    assert vars(module)[REASON] == "ImportError: libc10.so: cannot open" and stand_in.is_one(module)
    with pytest.raises(ImportError, match=r"libc10\.so"):
        loading(Installed(creates=error), installed=False)


def test_a_loader_of_the_oldest_kind_loads_by_name() -> None:
    original = Oldest()
    loader, module = loading(original)
    loader.exec_module(module)
    assert original.loaded == EXTENSION


@pytest.mark.parametrize(
    ("failure", "installed", "kind", "said"),
    [
        (ImportError("its own"), True, ImportError, "its own"),
        (None, False, ModuleNotFoundError, "No module named 'of_nobody'"),
    ],
)
def test_where_there_is_no_stand_in_the_error_is_what_it_would_be(
    failure: Any, installed: bool, kind: type, said: str
) -> None:
    loader, module = loading(Installed(failure), "of_nobody", installed)
    with pytest.raises(ImportError) as raised:
        loader.exec_module(module)
    assert type(raised.value) is kind and str(raised.value) == said
    assert raised.value.name == (None if failure else "of_nobody")


@pytest.mark.parametrize("installed", [True, False])
def test_where_the_stand_in_fails_the_error_is_what_it_would_be(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    loader, module = loading(Installed(ImportError("its own")), installed=installed)
    with pytest.raises(ImportError) as raised:
        loader.exec_module(module)
    absent = f"No module named {EXTENSION!r}"
    assert str(raised.value) == ("its own" if installed else absent)
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)


def test_other_errors_are_passed_on() -> None:
    loader, module = loading(Installed(OSError("its own")), PACKAGE)
    with pytest.raises(OSError, match="its own"):
        loader.exec_module(module)
    assert not stand_in._packages_running


def test_while_a_package_runs_its_extension_fails_as_without_the_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in of the extension is out of its sight, and there again afterwards."""
    of_extension = ModuleType(EXTENSION)
    vars(of_extension)[REASON] = None
    monkeypatch.setitem(sys.modules, EXTENSION, of_extension)
    inside = ModuleType(f"{PACKAGE}.half")
    beside = ModuleType(f"{PACKAGE}_beside")
    seen: list[Any] = []

    def runs(module: ModuleType) -> None:
        installed = ModuleSpec(EXTENSION, None)
        seen.append(EXTENSION in sys.modules)
        seen.append(stand_in.spec(EXTENSION, installed) is installed)
        seen.append(stand_in.spec(EXTENSION, None))
        for each in (inside, beside):
            monkeypatch.setitem(sys.modules, each.__name__, each)
        raise ImportError("no extension")

    ops = ModuleType("jetson_mamba.ops")
    vars(ops).update(causal_conv1d_fn=1, causal_conv1d_update=2)
    monkeypatch.setitem(sys.modules, ops.__name__, ops)
    loader, module = loading(Installed(runs), PACKAGE)
    loader.exec_module(module)
    assert seen == [False, True, None]
    assert sys.modules[EXTENSION] is of_extension and not stand_in._packages_running
    assert inside.__name__ not in sys.modules and beside.__name__ in sys.modules
    # One that works is not taken out, nor is any while something else runs.
    del vars(of_extension)[REASON]
    for name in (PACKAGE, EXTENSION):
        loader, module = loading(Installed(lambda _: seen.append(EXTENSION in sys.modules)), name)
        loader.exec_module(module)
    assert seen[3:] == [True, True]


def test_a_spec_is_of_what_is_installed_else_of_the_stand_in() -> None:
    original: Any = Installed()
    installed = ModuleSpec(EXTENSION, original)
    found = stand_in.spec(EXTENSION, installed)
    assert found is installed and isinstance(found.loader, StandInLoader)
    assert found.loader.installed and not stand_in.stands_in(found)
    own = stand_in.spec(EXTENSION, None)
    assert own is not None and own.origin == f"{stand_in.FOLDER}/{EXTENSION}.py"
    assert stand_in.stands_in(own)
    assert stand_in.spec("of_nobody", None) is None and not stand_in.stands_in(None)
    namespace = ModuleSpec(PACKAGE, None, is_package=True)
    assert stand_in.spec(PACKAGE, namespace) is namespace and namespace.loader is None


def test_what_else_is_asked_of_the_loader_is_the_others() -> None:
    loader, _ = loading(Installed())
    assert loader.public == "its own"
    for name in ("_private", "__wrapped__", "absent"):
        with pytest.raises(AttributeError, match=name):
            getattr(loader, name)


def test_the_metadata_has_a_name_a_version_and_a_place() -> None:
    made = metadata.StandIn()
    for name in ("METADATA", "PKG-INFO"):
        assert "Name: causal-conv1d\nVersion: 1.7.0+jetson.mamba\n" in (made.read_text(name) or "")
    assert made.read_text("RECORD") is None
    assert made.locate_file("causal_conv1d/x.py") == f"{stand_in.FOLDER}/causal_conv1d/x.py"
    assert made.version == metadata.VERSION and made.metadata["Name"] == "causal-conv1d"
