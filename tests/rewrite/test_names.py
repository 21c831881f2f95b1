"""A name is the extension's only where nothing else could be meant by it.

The texts are run: what the calls reach is told by functions that note who was called.
"""

from __future__ import annotations

import importlib
import sys
from textwrap import dedent, indent
from types import ModuleType
from typing import Any, Callable, Iterator

import pytest

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Refused, rewrite

OVERRIDE = copies.override("mamba_ssm.ops.selective_scan_interface")
EXTENSIONS = ("causal_conv1d", "causal_conv1d_cuda", "selective_scan_cuda")
FUNCTION = "causal_conv1d_fwd"
OF_MODULE = {
    "any_form.causal_conv1d_cuda": (FUNCTION,),
    "any_form.selective_scan_cuda": ("fwd",),
    "any_form.causal_conv1d": ("causal_conv1d_fn",),
    "any_form.causal_conv1d.cpp_functions": ("causal_conv1d_fwd_function",),
}


def told(who: str) -> Callable[..., str]:
    return lambda *arguments, **keywords: who


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The op says "op", a module of the user "mine"; no extension is there."""
    ops = ModuleType("jetson_mamba.ops")
    ops.__path__ = []
    names: dict[str, Any] = {"jetson_mamba.ops": ops}
    for name in ("causal_conv1d_fn", "causal_conv1d_bwd", "causal_conv1d_update", "addmm"):
        setattr(ops, name, told("op"))
    for name in ("selective_scan_fwd", "selective_scan_bwd"):
        setattr(ops, name, told("op"))
    for name in (
        "any_form",
        *("any_form.causal_conv1d_cuda", "any_form.selective_scan_cuda"),
        *("any_form.causal_conv1d", "any_form.causal_conv1d.cpp_functions"),
    ):
        module = ModuleType(f"jetson_mamba.ops.{name}")
        module.__path__ = []
        # Each has what its extension has, and none what another has.
        for function in OF_MODULE.get(name, ()):
            setattr(module, function, told("op"))
        names[module.__name__] = module
        parent, _, last = module.__name__.rpartition(".")
        setattr(names[parent], last, module)
    mine = ModuleType("mine")
    for function in (FUNCTION, "causal_conv1d_fn", "fwd"):
        setattr(mine, function, told("mine"))
    names["mine"] = mine
    for name, module in names.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in EXTENSIONS:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.import_module("jetson_mamba"), "ops", ops, raising=False)
    yield


def reached(text: str) -> str:
    """Who is called by ``f()`` in the copy of a text; in front of it an extension is used too."""
    copy = rewrite("import selective_scan_cuda\n" + dedent(text), OVERRIDE).text
    assert "jetson_mamba" in copy
    namespace: dict[str, Any] = {}
    exec(compile(copy, "<copy>", "exec"), namespace)
    result: str = namespace["f"]()
    return result


CUDA = "import causal_conv1d_cuda\n"
CALL = "causal_conv1d_cuda.causal_conv1d_fwd(1, 2, 3, True)"
WRAPPER = "causal_conv1d_fn(1, 2, 3, activation='silu')"
RETURNED = f"def f(): return {CALL}"
DEFINED = "causal_conv1d_fn = lambda *a, **k: 'mine'"


@pytest.mark.parametrize(
    "text",
    [
        # Every style of import.
        CUDA + f"{RETURNED}",
        f"import causal_conv1d_cuda as c\ndef f(): return c.{FUNCTION}(1, 2, 3, True)",
        f"from causal_conv1d_cuda import {FUNCTION}\ndef f(): return {FUNCTION}(1, 2, 3, True)",
        f"from causal_conv1d_cuda import {FUNCTION} as g\ndef f(): return g(1, 2, 3, True)",
        "from causal_conv1d import causal_conv1d_fn as g\ndef f(): return g(1, 2, 3, 'silu')",
        "import causal_conv1d.cpp_functions as p\n"
        "def f(): return p.causal_conv1d_fwd_function(1, 2, 3, True)",
        "import causal_conv1d.cpp_functions\n"
        "def f(): return causal_conv1d.cpp_functions.causal_conv1d_fwd_function(1, 2, 3, True)",
        "import causal_conv1d.cpp_functions as p\ng = p.causal_conv1d_fwd_function\n"
        "def f(): return g(1, 2, 3, True)",
        "import causal_conv1d.cpp_functions\ng = causal_conv1d.cpp_functions\n"
        "def f(): return g.causal_conv1d_fwd_function(1, 2, 3, True)",
        "from causal_conv1d import cpp_functions as p\n"
        "def f(): return p.causal_conv1d_fwd_function(1, 2, 3, True)",
        "import importlib\nc = importlib.import_module('causal_conv1d_cuda')\n"
        f"def f(): return c.{FUNCTION}(1, 2, 3, True)",
        "from importlib import import_module\n"
        f"def f(): return import_module('causal_conv1d_cuda').{FUNCTION}(1, 2, 3, True)",
        # Wherever it stands.
        f"def f():\n    import causal_conv1d_cuda\n    return {CALL}",
        f"def f():\n    from causal_conv1d import causal_conv1d_fn\n    return {WRAPPER}",
        f"if True:\n    import causal_conv1d_cuda\n{RETURNED}",
        f"if False:\n    pass\nelse:\n    import causal_conv1d_cuda\n{RETURNED}",
        f"try:\n    import causal_conv1d_cuda\nexcept ImportError:\n    causal_conv1d_cuda = None\n"
        f"{RETURNED}",
        f"try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import causal_conv1d_cuda\n"
        f"{RETURNED}",
        f"try:\n    import math, causal_conv1d_cuda\nexcept ImportError:\n    pass\n{RETURNED}",
        f"try:\n    import math\n    import causal_conv1d_cuda\nexcept ImportError:\n    pass\n"
        f"{RETURNED}",
        f"try:\n    import causal_conv1d_cuda\nexcept KeyError:\n    pass\n{RETURNED}",
        f"try:\n    import causal_conv1d_cuda\nfinally:\n    pass\n{RETURNED}",
        f"causal_conv1d_cuda = None\nimport causal_conv1d_cuda\n{RETURNED}",
        f"class C:\n    import causal_conv1d_cuda\n    made = {CALL}\ndef f(): return C.made",
        "def f():\n    def g():\n        import causal_conv1d_cuda\n        return h()\n"
        "    def h():\n        import causal_conv1d_cuda as c\n"
        f"        return c.{FUNCTION}(1, 2, 3, True)\n    return g()",
        "def f():\n    global causal_conv1d_cuda\n    import causal_conv1d_cuda\n"
        f"    return {CALL}",
        # However it is used.
        CUDA + f"g = causal_conv1d_cuda.{FUNCTION}\ndef f(): return g(1, 2, 3, 1)",
        CUDA + f"def f():\n    g = causal_conv1d_cuda.{FUNCTION}\n    return g(1, 2, 3, 1)",
        CUDA + f"def f(): return getattr(causal_conv1d_cuda, '{FUNCTION}')(1, 2)",
        CUDA + f"def f(): return causal_conv1d_cuda.{FUNCTION}(*[1, 2, 3, 1])",
        CUDA + f"def f(): return causal_conv1d_cuda.{FUNCTION}(1, 2, 3, **{{}})",
        CUDA + f"def f(g=causal_conv1d_cuda.{FUNCTION}): return g(1, 2, 3, 1)",
        CUDA + f"f = lambda c=causal_conv1d_cuda: c.{FUNCTION}(1, 2, 3, 1)",
        CUDA + f"kept = [causal_conv1d_cuda]\ndef f(): return kept[0].{FUNCTION}()",
        CUDA + f"def g(c): return c.{FUNCTION}()\ndef f(): return g(causal_conv1d_cuda)",
        f"from causal_conv1d import causal_conv1d_fn\n__all__ = [causal_conv1d_fn]\n"
        f"def f(): return {WRAPPER}",
        # Where the text has a jetson_mamba of its own.
        CUDA + f"def f(jetson_mamba=1): return {CALL}",
        CUDA + f"jetson_mamba = 1\n{RETURNED}",
        CUDA + f"{RETURNED}\nfor jetson_mamba in (1,): pass",
    ],
)
def test_an_extension_is_served(text: str) -> None:
    assert reached(text) == "op"


BINDINGS = [
    "import mine as causal_conv1d_fn; causal_conv1d_fn = causal_conv1d_fn.causal_conv1d_fn",
    "from mine import causal_conv1d_fn",
    "from mine import *",
    "def causal_conv1d_fn(*a, **k): return 'mine'",
    "class causal_conv1d_fn:\n    def __new__(cls, *a, **k): return 'mine'",
    DEFINED,
    "causal_conv1d_fn: object = lambda *a, **k: 'mine'",
    "for causal_conv1d_fn in [lambda *a, **k: 'mine']: pass",
    "(causal_conv1d_fn := lambda *a, **k: 'mine')",
    "[causal_conv1d_fn := g for g in [lambda *a, **k: 'mine']]",
    "import contextlib as c\nwith c.nullcontext(lambda *a, **k: 'mine') as causal_conv1d_fn: pass",
    "causal_conv1d_fn, _ = (lambda *a, **k: 'mine'), 1",
    "[causal_conv1d_fn] = [lambda *a, **k: 'mine']",
    "if True:\n    def causal_conv1d_fn(*a, **k): return 'mine'",
    "del causal_conv1d_fn\nfrom mine import causal_conv1d_fn",
    "globals().update(causal_conv1d_fn=1)\nfrom mine import causal_conv1d_fn",
    "try:\n    from mine import causal_conv1d_fn\nexcept ImportError:\n    pass",
]
if sys.version_info >= (3, 10):
    BINDINGS.append("match [lambda *a, **k: 'mine']:\n    case [causal_conv1d_fn]: pass")
IMPORTED = "from causal_conv1d import causal_conv1d_fn\n"


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_second_binding_in_the_module_stays_the_texts_own(binding: str) -> None:
    assert reached(f"{IMPORTED}{binding}\ndef f(): return {WRAPPER}") == "mine"


@pytest.mark.parametrize("binding", [each for each in BINDINGS if "*\n" not in f"{each}\n"])
def test_a_binding_in_a_function_stays_the_texts_own(binding: str) -> None:
    if "del " in binding or "globals" in binding:
        binding = DEFINED
    body = indent(f"{binding}\nreturn {WRAPPER}", "    ")
    assert reached(f"{IMPORTED}def f():\n{body}\ndef g(): return {WRAPPER}") == "mine"


@pytest.mark.parametrize(
    "text",
    [
        f"def f(causal_conv1d_fn=lambda *a, **k: 'mine'): return {WRAPPER}",
        f"def f(*, causal_conv1d_fn=lambda *a, **k: 'mine'): return {WRAPPER}",
        f"f = lambda causal_conv1d_fn=lambda *a, **k: 'mine': {WRAPPER}",
        f"def f(): return [{WRAPPER} for causal_conv1d_fn in [lambda *a, **k: 'mine']][0]",
        f"class C:\n    {DEFINED}\n    made = {WRAPPER}\ndef f(): return C.made",
        f"def g():\n    {DEFINED}\n    def h():\n        return {WRAPPER}\n    return h\nf = g()",
        "def g():\n    causal_conv1d_fn = None\n    def h():\n        nonlocal causal_conv1d_fn\n"
        f"        {DEFINED}\n    h()\n    return {WRAPPER}\nf = g",
        f"def g():\n    global causal_conv1d_fn\n    {DEFINED}\ng()\ndef f(): return {WRAPPER}",
        "def f():\n    try: raise KeyError('x')\n    except KeyError as causal_conv1d_fn:\n"
        "        return 'mine' if causal_conv1d_fn.args else ''",
    ],
)
def test_a_name_of_an_inner_scope_stays_the_texts_own(text: str) -> None:
    assert reached(IMPORTED + text) == "mine"


def test_of_two_imports_the_one_that_works_serves() -> None:
    fallback = (
        "try:\n    from {} import causal_conv1d_fn\nexcept ImportError:\n"
        f"    from causal_conv1d import causal_conv1d_fn\ndef f(): return {WRAPPER}"
    )
    assert reached(fallback.format("mine")) == "mine"
    assert reached(fallback.format("not_there")) == "op"


@pytest.mark.parametrize(
    "failure",
    ["ImportError", "ModuleNotFoundError", "Exception", "BaseException", "(OSError, Exception)"],
)
def test_a_handler_of_failed_imports_hides_no_import(failure: str) -> None:
    """Whatever it says: with an op in its place the import does not fail."""
    text = (
        "try:\n    {}\n    import causal_conv1d_cuda\n"
        f"except {failure}:\n    causal_conv1d_cuda = None\n{RETURNED}"
    )
    assert reached(text.format("import selective_scan_cuda")) == "op"
    # What else may fail before it keeps the handler's binding.
    assert reached(text.format("import math")) == "op"
    with pytest.raises(AttributeError):
        reached(text.format("import not_there"))


@pytest.mark.parametrize(
    "binding",
    [
        "{0} = None",
        "{0}, _ = None, None",
        "if True:\n    {0} = None",
        "try:\n    import not_there\nexcept ImportError:\n    {0} = None",
    ],
)
def test_a_name_that_is_none_after_its_import_is_none(binding: str) -> None:
    for name in ("causal_conv1d_fn", "causal_conv1d_cuda"):
        text = f"{CUDA}{IMPORTED}{binding.format(name)}\ndef f(): return {name}"
        assert reached(text) is None


def test_a_module_under_the_name_of_an_extension_is_not_the_extension() -> None:
    assert reached(f"import mine as causal_conv1d_cuda\n{RETURNED}") == "mine"


def test_a_switch_of_the_text_decides_as_before() -> None:
    text = (
        "if {}:\n    from causal_conv1d import causal_conv1d_fn\n"
        "else:\n    causal_conv1d_fn = None\n"
        f"def f(): return 'slow' if causal_conv1d_fn is None else {WRAPPER}"
    )
    assert reached(text.format(True)) == "op"
    assert reached(text.format(False)) == "slow"


def test_a_torch_of_the_texts_own_is_not_torch() -> None:
    text = "import selective_scan_cuda\n{}\ndef f(xz): return torch.is_autocast_enabled()\n"
    assert "autocast_dtype" in rewrite(text.format("import torch"), OVERRIDE).text
    for own in ("import mine as torch", "torch = 1", "from mine import *"):
        assert "autocast_dtype" not in rewrite(text.format(own), OVERRIDE).text


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("from causal_conv1d import *", "nothing of jetson_mamba stands for \\*"),
        ("from causal_conv1d import causal_conv1d_ref", "stands for causal_conv1d_ref"),
        ("import causal_conv1d.elsewhere", "it is none that is known"),
        ("from causal_conv1d.elsewhere import f", "it is none that is known"),
        ("where = 'causal_conv1d_cuda'", "it is no import"),
    ],
)
def test_what_is_not_understood_stays_with_a_word(statement: str, reason: str) -> None:
    found = rewrite(f"import selective_scan_cuda\n{statement}\n", OVERRIDE)
    # A star may bind any name, also the one before it.
    name = "jetson_mamba.ops" + ".any_form.selective_scan_cuda" * ("*" in statement)
    assert found.text.startswith(f"import {name}") and found.text.endswith(f"\n{statement}\n")
    (_, why) = found.left_out[0]
    with pytest.raises(Refused, match=reason):
        raise Refused(why)


def test_names_that_are_not_known_are_imported_after_those_that_are() -> None:
    text = "from causal_conv1d import causal_conv1d_fn, causal_conv1d_ref as r\n"
    assert rewrite(text, OVERRIDE).text == (
        "import jetson_mamba.ops; from causal_conv1d import causal_conv1d_ref as r\n"
    )
    # In whatever order: what fails must not keep the others from being there.
    known, unknown = "causal_conv1d_fn", "causal_conv1d_ref as r"
    for names in (f"{known}, {unknown}", f"{unknown}, {known}"):
        text = f"from causal_conv1d import {names}\nkept = [causal_conv1d_fn]\n"
        assert rewrite(text, OVERRIDE).text == (
            "from jetson_mamba.ops.any_form.causal_conv1d import causal_conv1d_fn; "
            "from causal_conv1d import causal_conv1d_ref as r\nkept = [causal_conv1d_fn]\n"
        )


def test_a_function_of_torch_is_replaced_by_a_keyword_where_an_extension_is_used() -> None:
    """In a text without extensions its results are nobody's but torch's."""
    uses, call = "import selective_scan_cuda\n", "def f(a): return {}(a, a, a{})\n"
    for statement, function in (
        *(("import torch", "torch.addmm"), ("import torch as t", "t.addmm")),
        *(("from torch import addmm", "addmm"), ("from torch import addmm as m", "m")),
    ):
        text = f"{statement}\n{call.format(function, ', out=a')}"
        assert "jetson_mamba.ops.addmm(a, a, a, out=a)" in rewrite(uses + text, OVERRIDE).text
        with pytest.raises(Refused, match="nothing in it"):
            rewrite(text, OVERRIDE)
        without = f"{uses}{statement}\n{call.format(function, '')}"
        assert f" {function}(a, a, a)" in rewrite(without, OVERRIDE).text


@pytest.mark.parametrize(
    ("before", "direct"),
    [
        ("causal_conv1d_cuda = None\n", True),
        ("a, causal_conv1d_cuda = 1, None\n", False),
        ("causal_conv1d_cuda = 0\n", False),
        ("if True:\n    causal_conv1d_cuda = None\n", False),
    ],
)
def test_none_before_an_import_is_no_second_binding(before: str, direct: bool) -> None:
    """So its calls are the op's own, and not those of a module that takes any form."""
    text = f"{before}import causal_conv1d_cuda\ndef f(): return {CALL}\n"
    written = rewrite(text, OVERRIDE).text.partition("\ndef f")[2]
    assert ("jetson_mamba.ops.causal_conv1d_fn(" in written) is direct


@pytest.mark.parametrize(
    ("of", "stays"), [("causal_conv1d_cuda", True), ("selective_scan_cuda", False)]
)
def test_what_is_asked_for_by_its_name_is_what_is_imported(of: str, stays: bool) -> None:
    """Where one import stays the text's own, so does the other; and no third."""
    left = f"try:\n    from {of} import other\nexcept ImportError:\n    pass\n"
    text = f"import importlib\n{left}c = importlib.import_module('causal_conv1d_cuda')\n"
    try:
        written = rewrite(text, OVERRIDE).text
    except Refused as refused:
        written = str(refused)
    assert ("any_form.causal_conv1d_cuda" not in written) is stays


def test_what_any_module_has_is_no_function_of_an_extension() -> None:
    for name in ("causal_conv1d.cpp_functions", "causal_conv1d_cuda"):
        written = rewrite(f"import {name}\nn = {name}.__dir__()\n", OVERRIDE).text
        assert ".__dir__()" in written
        with pytest.raises(Refused, match="in a way that is not a call in a known form"):
            rewrite(f"import {name}\nn = {name}.unknown()\n", OVERRIDE)


@pytest.mark.parametrize("function", ["table[0]", "chosen()", "(a or b)", "(lambda name: name)"])
def test_a_function_that_has_no_name_asks_for_no_module(function: str) -> None:
    text = f'import selective_scan_cuda\nn = {function}("causal_conv1d_cuda", out_dtype=1)\n'
    found = rewrite(text, OVERRIDE)
    assert f'{function}("causal_conv1d_cuda", out_dtype=1)' in found.text
    ((what, why),) = found.left_out
    assert (what, why) == ("causal_conv1d_cuda in a string on line 2", "it is no import")


def test_a_module_of_the_texts_own_package_is_no_extension() -> None:
    own = "from .causal_conv1d import f\nfrom . import causal_conv1d_cuda\n"
    found = rewrite(f"import selective_scan_cuda\n{own}", OVERRIDE)
    assert found.text.endswith(own) and found.left_out == ()


def test_of_a_text_in_which_nothing_is_replaced_each_reason_is_told() -> None:
    text = "from causal_conv1d import one\nfrom selective_scan_cuda import two\n"
    with pytest.raises(Refused) as raised:
        rewrite(text, OVERRIDE)
    stays = "; the import of {} on line {} stays: nothing of jetson_mamba stands for {}"
    assert str(raised.value) == (
        "nothing in it is what this override replaces"
        + stays.format("causal_conv1d", 1, "one")
        + stays.format("selective_scan_cuda", 2, "two")
    )
