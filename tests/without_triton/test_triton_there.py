"""Whether what is there of Triton can serve a text. Where it cannot, the reason is said."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import lru_cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable, Iterator

import pytest

from jetson_mamba import kernel_packages, triton_there

AT_ONCE = b"import triton\n@triton.autotune\ntriton.set_allocator(f)\n@triton.jit\n"


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known of what is installed, before and after."""
    monkeypatch.setattr(triton_there, "_reason", triton_there.NOT_INSTALLED)
    monkeypatch.setattr(triton_there, "_said", False)
    known: list[Any] = [
        *(triton_there.is_installed, triton_there._imported, triton_there._lacking),
        *(kernel_packages._not_installed, kernel_packages._reason, kernel_packages._warn),
    ]
    for each in known:
        each.cache_clear()
    yield
    for each in known:
        each.cache_clear()


def a_triton(version: str, **names: Any) -> ModuleType:
    """One that has what every Triton has, and these."""
    module = ModuleType("triton")
    everything = {"jit": lambda f: f, "Config": dict, "autotune": lambda **_: lambda f: f}
    vars(module).update({"__version__": version, **everything, **names})
    return module


def fails(*_: object, **__: object) -> None:
    raise RuntimeError("0 active drivers")


@pytest.mark.parametrize(
    ("text", "concerned"),
    [
        (b"import triton", True),
        (b"x = 1\n  import triton.language as tl", True),
        (b"from triton import jit", True),
        (b"import torch, triton", True),
        (b"try: import triton", True),
        (b"x = 1; import triton", True),
        (b"lazy import triton", True),
        (b"import tritonclient", False),
        (b"# import triton", False),
        (b"triton = None", False),
        (b"", False),
    ],
)
def test_a_text_that_imports_triton_is_known_by_that(text: bytes, concerned: bool) -> None:
    assert triton_there.concerns(text) is concerned
    assert kernel_packages.concerns(text) is concerned


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"import tilelang.language as T", ["tilelang"]),
        (b"import cutlass.cute as cute\nimport tilelang", ["tilelang", "cute"]),
        (b"from quack.utils import x", ["cute"]),
        (b"import quacks, tilelanguage", []),
    ],
)
def test_a_text_in_another_language_is_known_by_its_packages(text: bytes, found: list[str]) -> None:
    assert kernel_packages.languages(text) == found
    assert kernel_packages.concerns(text) is bool(found)


@pytest.mark.parametrize(
    ("origin", "there"), [("triton/__init__.py", True), (None, False), ("namespace", False)]
)
def test_a_folder_alone_is_no_triton(
    origin: str | None, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("triton", None, origin=origin)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert triton_there.is_installed() is there


@pytest.mark.parametrize("error", [ImportError, ValueError, AttributeError])
@pytest.mark.parametrize("imported", [True, False])
def test_what_is_imported_without_a_spec_is_there(
    error: type[Exception], imported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_spec(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setitem(sys.modules, "triton", ModuleType("triton"))
    if not imported:
        monkeypatch.delitem(sys.modules, "triton")
    assert triton_there.is_installed() is imported


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (a_triton("3.6.0"), ""),
        (None, "Triton cannot be imported (ModuleNotFoundError: "),
        (ModuleType("triton"), "what is imported as triton is none (<module 'triton'"),
    ],
)
def test_a_triton_that_is_none_cannot_be_imported(
    module: ModuleType | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", module)
    monkeypatch.setattr(triton_there, "is_installed", lambda: True)
    found, why = triton_there._imported()
    assert found is (None if reason else module)
    assert why.startswith(reason)
    assert triton_there.is_importable() is (not reason)
    monkeypatch.setattr(triton_there, "is_installed", lambda: False)
    assert not triton_there.is_importable()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("\n no libcuda: x\nand more"), "OSError: no libcuda: x"),
        (ImportError("one line"), "ImportError: one line"),
        (ValueError(), "ValueError: "),
    ],
)
def test_what_a_broken_triton_raises_is_said_in_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raises:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "triton":
                raise error

    monkeypatch.delitem(sys.modules, "triton", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Raises, *sys.meta_path])
    found = triton_there._imported.__wrapped__()
    assert found == (None, f"Triton cannot be imported ({said})")


def reasons(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType | None
) -> Callable[..., str | None]:
    """What is said against the Triton ``module``, which is imported at the first need."""

    @lru_cache(maxsize=None)
    def imported() -> tuple[ModuleType | None, str]:
        return module, "" if module else "it is broken"

    monkeypatch.setattr(triton_there, "is_installed", lambda: True)
    monkeypatch.setattr(triton_there, "_imported", imported)
    return triton_there.reason_against


def test_what_a_triton_lacks_or_cannot_do_without_a_driver_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module, reason in (
        (None, "it is broken"),
        (a_triton("3.0.0"), "Triton 3.0.0 has no set_allocator"),
        (
            a_triton("3.2.0", autotune=fails, set_allocator=print),
            "Triton 3.2.0 cannot be used here (autotune: 0 active drivers)",
        ),
        (
            a_triton("3.3.1", set_allocator=fails),
            "Triton 3.3.1 cannot be used here (set_allocator: 0 active drivers)",
        ),
        # From there on nothing is asked of a driver, and nothing set that is another's.
        (a_triton("3.4.0", set_allocator=fails), None),
        (a_triton("3.10.0", set_allocator=fails), None),
    ):
        assert reasons(monkeypatch, module)(AT_ONCE, importing=True) == reason


def test_nothing_is_imported_to_know_of_a_text_that_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    against = reasons(monkeypatch, None)
    assert against(AT_ONCE) is None
    assert against(b"def f():\n    import triton\n", importing=True) is None
    assert against(b"x = 1\n", importing=True) is None
    assert against(AT_ONCE, importing=True) == "it is broken"
    # Where it was imported for another, it is known.
    assert against(AT_ONCE) == "it is broken"
    monkeypatch.setattr(triton_there, "is_installed", lambda: False)
    assert against(AT_ONCE) == triton_there.NOT_INSTALLED


def test_one_that_is_there_and_fails_is_warned_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        triton_there.note("mamba_ssm.x", triton_there.NOT_INSTALLED)
    assert triton_there.reason() == triton_there.NOT_INSTALLED
    with pytest.warns(RuntimeWarning, match=r"^it is broken, so mamba_ssm\.x is imported without"):
        triton_there.note("mamba_ssm.x", "it is broken")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        triton_there.note("mamba_ssm.y", "it is old")
    assert triton_there.reason() == "it is old"


def test_a_language_that_fails_is_known_once_a_text_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = b"import tilelang\n"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, "tilelang", None)
    assert kernel_packages.lacking(text) == {}
    said = kernel_packages.lacking(text, importing=True)
    assert list(said) == ["tilelang"]
    assert said["tilelang"].startswith("tilelang cannot be imported (ModuleNotFoundError: ")
    assert not kernel_packages.is_importable("tilelang")
    with pytest.warns(RuntimeWarning, match="install --upgrade tilelang"):
        kernel_packages.note("mamba_ssm.x", said)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel_packages.note("mamba_ssm.x", said)


def test_a_language_that_is_not_installed_is_known_at_once_and_not_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def find_spec(name: str) -> ModuleSpec | None:
        asked.append(name)
        return None if name == "cuda" else ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    said = {"cute": "cuda is not installed"}
    for importing in (False, True):
        found = kernel_packages.lacking(b"import cutlass.cute\n", importing=importing)
        assert found == said and asked == ["cutlass", "quack", "cuda"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel_packages.note("mamba_ssm.x", said)


def test_what_is_allocated_lies_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = ModuleType("torch")
    vars(torch).update(int8="int8", empty=lambda size, **options: (size, options))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert triton_there._allocate(5, 16, None) == (5, {"device": "cuda", "dtype": "int8"})
    assert "jetson-mamba doctor" in triton_there.advice()


def test_until_a_text_is_imported_without_it_there_is_said_to_be_none() -> None:
    spec = importlib.util.find_spec(triton_there.__name__)
    assert spec is not None and spec.loader is not None
    anew = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(anew)
    assert anew.reason() == triton_there.NOT_INSTALLED and anew._said is False
