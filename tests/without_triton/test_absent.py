"""What stands for a package of kernels that is not there can be named.

It runs nothing.
"""

from __future__ import annotations

import inspect
import pickle
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from jetson_mamba import kernel_packages
from jetson_mamba.compat.absent import Absent, Kernel, NoKernel

STAND_INS = {
    "without_cutlass": ("cute", "cutlass"),
    "without_quack": ("cute", "quack"),
    "without_cuda": ("cute", "cuda"),
    "without_tilelang": ("tilelang", "tilelang"),
}


def kernel(x: int) -> int:
    """What would be compiled."""
    return x


@pytest.fixture(params=STAND_INS)
def stand_in(request: pytest.FixtureRequest) -> tuple[Any, str, str]:
    """A module, the language that it belongs to, and the package that it stands for."""
    module: ModuleType = import_module(f"jetson_mamba.compat.{request.param}")
    return (module, *STAND_INS[request.param])


def test_whatever_is_named_of_it_is_there_but_for_what_python_asks(
    stand_in: tuple[Any, str, str],
) -> None:
    module, kind, package = stand_in
    found = module.some.thing
    assert (
        isinstance(found, Absent) and repr(found) == f"<{package}.some.thing, which is not there>"
    )
    for of in (module, found):
        for name in ("__path__", "__wrapped__"):
            with pytest.raises(AttributeError, match=rf"^{name}$"):
                getattr(of, name)
    made = found.jit(kernel)
    assert isinstance(made, Kernel)
    with pytest.raises(NoKernel) as failed:
        made(1)
    assert failed.value.kind == kind
    assert kernel_packages.KINDS[kind].install in str(failed.value)


def test_it_is_used_as_what_it_stands_for_would_be() -> None:
    of = Absent("cute", "cute")
    names = [
        (of.a.b, "cute.a.b"),
        (of.a(1), "cute.a(...)"),
        (of.a(kernel, 1), "cute.a(...)"),
        (of.a(kernel, option=1), "cute.a(...)"),
        (of.a(int), "cute.a(...)"),
        (of.a[1], "cute.a[...]"),
        (of.a | None, "cute.a[...]"),
        (None | of.a, "cute.a[...]"),
        (of.a(1).b[2], "cute.a(...).b[...]"),
    ]
    for found, name in names:
        assert isinstance(found, Absent)
        assert found.__name__ == found.__qualname__ == name
    # One is another of the same name, and can be a key.
    assert of.a == Absent("other", "cute.a") and of.a not in (of.b, "cute.a")
    assert len({of.a, of.a, of.b}) == 2


def test_a_kernel_looks_as_the_function_does_and_names_it() -> None:
    made = Absent("tilelang", "T").prim_func(kernel)
    assert made.__name__ == "kernel" and made.__doc__ == kernel.__doc__
    assert inspect.signature(made) == inspect.signature(kernel)
    with pytest.raises(NoKernel) as failed:
        made(1, of=2)
    said = str(failed.value)
    assert said.startswith(f"{__name__}.kernel is a kernel in tilelang, which cannot be imported")
    assert "-m pip install tilelang, on a GPU" in said
    again = pickle.loads(pickle.dumps(failed.value))
    assert (again.kernel, again.kind, str(again)) == (f"{__name__}.kernel", "tilelang", said)


def test_a_package_that_cannot_be_imported_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> Any:
        raise OSError(f"\n{name}: no libcuda\nand more")

    monkeypatch.setattr(kernel_packages, "_not_installed", lambda name: None)
    monkeypatch.setattr(kernel_packages, "import_module", broken)
    found = kernel_packages._reason.__wrapped__("tilelang")
    assert found == "tilelang cannot be imported (OSError: tilelang: no libcuda)"
    monkeypatch.setattr(kernel_packages, "import_module", lambda name: None)
    assert kernel_packages._reason.__wrapped__("cute") is None


@pytest.mark.parametrize("missing", ["cutlass", "quack", "cuda"])
def test_each_package_of_a_language_must_be_installed(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == missing else object()
    )
    not_installed = kernel_packages._not_installed.__wrapped__
    assert not_installed("cute") == f"{missing} is not installed"
    assert not_installed("tilelang") is None


@pytest.mark.parametrize("error", [ImportError, ValueError, AttributeError])
def test_what_is_in_the_place_of_a_package_is_one_until_it_is_imported(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> Any:
        raise error(name)

    monkeypatch.setattr("importlib.util.find_spec", find_spec)
    assert kernel_packages._not_installed.__wrapped__("cute") is None


@pytest.mark.parametrize("reason", [None, "it is broken"])
def test_a_language_can_be_imported_where_nothing_is_said_against_it(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_packages, "_reason", {"cute": reason}.__getitem__)
    assert kernel_packages.is_importable("cute") is (reason is None)
