"""What the package itself offers.

Small things of the hook are here too that no import of a target shows.
"""

from __future__ import annotations

import re
import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import jetson_mamba
from jetson_mamba import overrides, startup, texts
from jetson_mamba.errors import Refused
from jetson_mamba.hook import loader, unserved
from jetson_mamba.releases import needed, together

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def test_its_version_is_one_that_pip_orders() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((rc|\.post|\.dev)\d+)?", jetson_mamba.__version__)


def test_what_it_offers_is_there_and_nothing_else() -> None:
    pytest.importorskip("torch")
    assert jetson_mamba.export is import_module("jetson_mamba.export")
    assert jetson_mamba.status is import_module("jetson_mamba.report.status").status
    assert jetson_mamba.backend is import_module("jetson_mamba.ops").backend
    assert jetson_mamba.prefill is import_module("jetson_mamba.ops.decoding").prefill
    assert jetson_mamba.activated_by == jetson_mamba._finder.activated_by
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jetson_mamba.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("said", "mode"),
    [(None, "on"), ("", "on"), ("on", "on"), ("strict", "strict"), ("off", "off"), ("yes", None)],
)
def test_a_mode_that_it_knows_is_taken_without_a_word(
    said: str | None, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is None:
        monkeypatch.delenv("JETSON_MAMBA", raising=False)
    else:
        monkeypatch.setenv("JETSON_MAMBA", said)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        finder = jetson_mamba._new_finder()
    assert (finder.mode, finder.strict) == (mode or "on", said == "strict")
    assert len(told) == (mode is None)


def test_a_startup_file_says_that_it_was_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetson_mamba._finder, "activated_by", "import")
    startup.main()
    assert jetson_mamba.activated_by == "startup file"


def test_a_refusal_is_its_reason_with_advice_apart() -> None:
    refused = Refused("it cannot be read", "install it again")
    assert (str(refused), refused.args, refused.advice) == (
        "it cannot be read",
        ("it cannot be read",),
        "install it again",
    )


@pytest.mark.parametrize(("version", "asked"), [((3, 8), False), ((3, 9), True), ((3, 15), True)])
def test_the_overrides_lie_beside_the_package_however_they_are_asked_for(
    version: tuple[int, int], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.resources

    calls = []

    def files(name: str) -> Path:
        calls.append(name)
        return REPOSITORY / name

    monkeypatch.setattr(importlib.resources, "files", files, raising=False)  # new in 3.9
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", version)
        found = overrides.folder()
    assert Path(found) == REPOSITORY / "vendored_overrides"
    assert calls == ["jetson_mamba"] * asked


@pytest.mark.parametrize(("version", "asked"), [((3, 8), True), ((3, 11), True), ((3, 12), False)])
def test_a_finder_of_the_oldest_kind_is_asked_where_python_asks_it(
    version: tuple[int, int], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs: Any = SimpleNamespace(create_module=None, exec_module=None)
    oldest = SimpleNamespace(find_module=lambda name, path: theirs)
    spec = ModuleSpec("a", None)
    newer = SimpleNamespace(find_spec=lambda *_: spec)
    neither: Any = SimpleNamespace()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", version)
        found = loader._found([neither, oldest, newer], "a", None, None)
    assert found is not None
    assert (found.loader is theirs) is asked and (found is spec) is not asked
    assert loader._found([neither], "a", None, None) is None


@pytest.mark.parametrize(
    ("dots", "name", "found"),
    [
        (0, "mamba_ssm", ""),
        (0, "mamba_ssm.ops.x", "ops.x"),
        (0, "mamba_ssm2.ops", None),
        (0, "torch", None),
        (1, "ssd_bmm", "ops.triton.ssd_bmm"),
        (1, "", "ops.triton"),
        (2, "x.y", "ops.x.y"),
        (3, "utils", "utils"),
        (3, "", ""),
        (4, "beyond", None),
    ],
)
def test_an_import_names_a_module_of_the_distribution(
    dots: int, name: str, found: str | None
) -> None:
    assert texts.resolve("mamba_ssm", "ops.triton.ssd_combined", dots, name) == found


@pytest.mark.parametrize("old", [False, True])
def test_what_transformers_needs_is_asked_for_as_the_pip_that_is_there_can_bring_it(
    old: bool,
) -> None:
    hub = f"huggingface-hub{together.HUB_WITHOUT_XET if old else ''}"
    assert needed.requirements("huggingface-hub", "2.4.1", old) == [hub]
    assert needed.requirements("einops", "2.4.1", old) == ["einops"]


IMPORTS = """
import causal_conv1d.cpp_functions
import selective_scan_cuda as scan, torch
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update as update
from . import selective_scan_cuda
found = importlib.import_module("causal_conv1d_cuda")
other = importlib.import_module("torch")
"""


def test_a_name_of_an_extension_is_what_its_import_binds() -> None:
    module = ModuleType("a_text")
    spec: Any = SimpleNamespace(loader=SimpleNamespace(get_source=lambda name: IMPORTS))
    module.__spec__ = spec
    names = sorted(unserved._bound_names(module))
    assert names == ["causal_conv1d", "causal_conv1d_fn", "found", "scan", "update"]
    # Without a source, those that upstream binds.
    module.__spec__ = None
    vars(module).update({unserved.NAMES[0]: None, "found": None})
    assert list(unserved._bound_names(module)) == [unserved.NAMES[0]]


def test_what_a_line_looks_up_is_known_in_functions_and_in_the_classes_in_them() -> None:
    text = "def f(local):\n    local(one)\n    class Inner:\n        x = two + three\n    four\n"
    (code,) = [each for each in compile(text, "x", "exec").co_consts if hasattr(each, "co_code")]
    lines = {
        line: [name for each in unserved._codes(code) for name in unserved._names_on(each, line)]
        for line in (2, 4, 5)
    }
    assert lines == {2: ["one"], 4: ["two", "three"], 5: ["four"]}
