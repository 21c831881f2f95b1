"""Imports of Triton in whatever form, where a placeholder takes their place."""

from __future__ import annotations

import math
import os
import string
from textwrap import indent
from typing import Any

import pytest

from jetson_mamba import triton_there
from jetson_mamba.compat import without_triton
from jetson_mamba.hook import copies

TARGET = "mamba_ssm.ops.any_kernels"


def run(text: str) -> dict[str, Any]:
    """The names of a module of that text, in its copy without Triton."""
    copy = copies.make(TARGET, text.encode(), without=["triton"])
    assert copy is not None
    assert len(copy.decode().splitlines()) > len(text.splitlines())
    namespace: dict[str, Any] = {"__name__": TARGET}
    exec(compile(copy, "<copy>", "exec"), namespace)
    return namespace


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("import triton", {"triton": "triton"}),
        ("import triton as t", {"t": "triton"}),
        ("import triton.language as tl", {"tl": "triton.language"}),
        (
            "import triton.language.extra.libdevice as lib",
            {"lib": "triton.language.extra.libdevice"},
        ),
        ("import triton.testing", {"triton": "triton"}),
        ("import os, triton, triton.language as tl", {"triton": "triton", "tl": "triton.language"}),
        ("from triton import language as tl", {"tl": "triton.language"}),
        ("from triton.testing import do_bench", {"do_bench": "triton.testing.do_bench"}),
        (
            "from triton.a.b import (\n    c,\n    d as e,\n)",
            {"c": "triton.a.b.c", "e": "triton.a.b.d"},
        ),
        ("if True: import triton; x = 1", {"triton": "triton"}),
        ("try:\n    import triton\nfinally:\n    pass", {"triton": "triton"}),
        ("try:\n    import triton\nexcept KeyError:\n    pass", {"triton": "triton"}),
    ],
)
def test_every_form_of_an_import_binds_its_names(statement: str, names: dict[str, str]) -> None:
    found = run(f"{statement}\n")
    for name, expected in names.items():
        thing = found[name]
        if expected == "triton":
            assert thing is without_triton
        else:
            assert isinstance(thing, without_triton.Placeholder)
            assert thing.__name__ == expected


def test_what_is_imported_beside_it_is_what_it_was() -> None:
    found = run("import math as m, triton, os.path, triton.language as tl, string\n")
    assert (found["m"], found["os"], found["string"]) == (math, os, string)
    assert found["triton"] is without_triton and "math" not in found


@pytest.mark.parametrize("kind", ["", " ImportError", " (KeyError, ModuleNotFoundError)"])
def test_a_text_that_has_an_answer_gives_it(kind: str) -> None:
    tried = "try:\n    import triton.language as tl\n    found = True\n"
    text = f"{tried}except{kind}:\n    found = False\n"
    assert run(text)["found"] is False


def test_an_import_in_a_function_is_one_of_the_placeholder() -> None:
    text = "def f():\n    from triton.testing import do_bench\n    return do_bench\n"
    assert run(text)["f"]() == without_triton.Placeholder("triton.testing.do_bench")
    # Whoever tries to define it does not ask for what it will fail of.
    tried = f"try:\n{indent(text, '    ')}except ImportError:\n    f = None\n"
    assert run(tried)["f"]() == without_triton.Placeholder("triton.testing.do_bench")


@pytest.mark.parametrize(
    "text", ["import tritonclient\n", "from .triton import a\n", "x = 'triton'\n"]
)
def test_what_is_not_triton_stays(text: str) -> None:
    assert copies.make(TARGET, text.encode(), without=["triton"]) is None
    assert not triton_there.concerns(text.encode())


KERNELS = """
import torch
import triton
import triton.language as tl
from triton import jit

@triton.jit
def one(x, BLOCK: tl.constexpr = 3, dtype: tl.float32 | None = None):
    tl.store(x, 1)

@triton.autotune(configs=[triton.Config({"BLOCK": 2}, num_stages=3)], key=["x"])
@triton.heuristics({"HAS_Z": lambda args: args["z"] is not None})
@jit(do_not_specialize=["x"])
def two(x):
    '''What it does.'''

def launches(x):
    assert x != "a CPU"
    two[(triton.cdiv(x, 4),)](x, BLOCK=triton.next_power_of_2(x))

def launches_later(x):
    one.run(x)

def computes(x):
    return x + 1 if x else two
"""


def test_kernels_can_be_looked_at_and_say_that_they_cannot_be_launched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_there, "_reason", triton_there.NOT_INSTALLED)
    found = run(KERNELS)
    assert found["two"].__doc__ == "What it does."
    (config,) = found["two"].configs
    assert config.kwargs == {"BLOCK": 2} and config.num_stages == 3
    assert found["computes"](1) == 2
    for name, argument in (("launches", 5), ("launches", "a CPU"), ("launches_later", 1)):
        with pytest.raises(RuntimeError, match="Triton is not installed") as raised:
            found[name](argument)
        (sentence,) = str(raised.value).splitlines()
        assert sentence.startswith(f"{TARGET}.{name} launches a Triton kernel")
        assert "`jetson-mamba doctor` names the command" in sentence
    with pytest.raises(TypeError, match="unexpected keyword"):
        found["launches"](x=1, y=2)


def test_the_sizes_are_tritons() -> None:
    triton = pytest.importorskip("triton")
    for n in range(1, 70):
        assert without_triton.next_power_of_2(n) == triton.next_power_of_2(n)
        assert without_triton.cdiv(n, 8) == triton.cdiv(n, 8)


def test_a_copy_without_triton_is_another_file() -> None:
    names = {copies.file_name(TARGET, b"x", without=each) for each in ([], ["triton"])}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("text", "is_concerned"),
    [
        ("import triton", True),
        ("  import triton", True),
        ("import os, triton.language as tl", True),
        ("try: import triton", True),
        ("x = 1; from triton import jit", True),
        ("from mamba_ssm.ops.triton import x", False),
        ("# import of triton", False),
        ("import tritonclient", False),
    ],
)
def test_which_texts_are_concerned(text: str, is_concerned: bool) -> None:
    assert triton_there.concerns(f"a = 0\n{text}\n".encode()) == is_concerned
