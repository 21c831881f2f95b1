"""A function is known by all that decides what it computes. By nothing else."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Callable

import pytest

from jetson_mamba import overrides
from jetson_mamba.rewrite import known as of_releases
from jetson_mamba.rewrite.closure import _Module, _Spelling, closure
from jetson_mamba.texts import Texts, digest_beside
from tools import known

TARGET = "mamba_ssm.ops.triton.combined"
COMBINED = '''
"""A module."""
import math
import torch
import triton
import triton.language as tl
from mamba_ssm.ops.triton.kernels import launch
from .helpers import scale as scaled
from mamba_ssm.utils import torch as decorators

FACTOR = 2
LIMITS = (0.0, math.inf)

@triton.jit
def kernel(x, BLOCK: tl.constexpr):
    index = tl.arange(0, BLOCK)
    tl.store(x + index, index * FACTOR)

class Fn(torch.autograd.Function):
    @staticmethod
    @decorators.custom_fwd
    def forward(ctx, x, limits=LIMITS):
        """Forward."""
        out = launch(x)
        total = [part + 1 for part in out]
        kernel[(1,)](x)
        return scaled(total, by=FACTOR)

def run(x, limits=LIMITS):
    """Runs it."""
    return Fn.apply(x, limits)

def another(x):
    return x
'''
SIBLINGS = {
    "ops/triton/kernels.py": """
        import triton
        from mamba_ssm.ops.triton.deepest import depth
        @triton.autotune(configs=[1, 2], key=["x"])
        @triton.jit
        def _kernel(x, SIZE):
            return x * SIZE
        def launch(x):
            grid = depth(x)
            return _kernel[grid](x, 3)
        def unused(x):
            return x
    """,
    "ops/triton/deepest.py": "def depth(x):\n    return x - 1\n",
    "ops/triton/helpers.py": "from ..triton import deepest\ndef scale(x, by): return x / by\n",
    "utils/torch.py": "import torch\ncustom_fwd = torch.amp.custom_fwd\n",
    "ops/triton/__init__.py": "",
    "utils/__init__.py": "",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "mamba_ssm"
    for name, text in {**SIBLINGS, "ops/triton/combined.py": COMBINED}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    return folder


def digest(package: Path, name: str = "mamba_ssm", function: str = "run") -> str:
    path = package / "ops" / "triton" / "combined.py"
    source = path.read_bytes()
    texts = Texts(TARGET, source.decode(), str(path), source, name)
    return closure(texts, function).digest


def key(package: Path) -> bytes:
    path = package / "ops" / "triton" / "combined.py"
    return path.read_bytes() + digest_beside(TARGET, str(path), path.read_bytes())


def change(package: Path, file: str, before: str, after: str) -> None:
    path = package / file
    text = path.read_text()
    assert text.count(before) >= 1
    path.write_text(text.replace(before, after, 1))


MAIN, KERNELS = "ops/triton/combined.py", "ops/triton/kernels.py"
DIFFERENT = [
    (MAIN, "Fn.apply(x, limits)", "Fn.apply(x * 2, limits)"),
    (MAIN, 'limits=LIMITS):\n    """Runs', 'limits=None):\n    """Runs'),
    (MAIN, "def run(x, limits", "def run(x, bounds"),
    (MAIN, "def run(x, limits=LIMITS)", "def run(x, limits=LIMITS, more=None)"),
    (MAIN, "def run", "@torch.no_grad()\ndef run"),
    (MAIN, "FACTOR = 2", "FACTOR = 3"),
    (MAIN, "FACTOR = 2", "FACTOR = 2.0"),
    (MAIN, "math.inf", "math.pi"),
    (MAIN, "index * FACTOR", "index + FACTOR"),
    (MAIN, "BLOCK: tl.constexpr", "BLOCK"),
    (MAIN, "    @staticmethod\n", ""),
    (MAIN, "part + 1", "part - 1"),
    (MAIN, "by=FACTOR", "by=-FACTOR"),
    (MAIN, "import triton.language as tl", "import triton.other as tl"),
    (MAIN, "torch.autograd.Function", "torch.nn.Module"),
    (MAIN, "class Fn", "torch.backends.setting = 1\nclass Fn"),
    (MAIN, "def another", "Fn.forward = staticmethod(lambda *a: 0)\ndef another"),
    (MAIN, "def another", "run = torch.compile(run)\ndef another"),
    (MAIN, "def another", "setattr(Fn, 'forward', 0)\ndef another"),
    (MAIN, "def another", "if FACTOR:\n    def kernel(x): pass\ndef another"),
    (MAIN, "def another", "FACTOR += 1\ndef another"),
    (MAIN, "def another", "for FACTOR in (3,): pass\ndef another"),
    (MAIN, "def another", "from mine import scaled\ndef another"),
    (
        MAIN,
        "def another",
        "try:\n    from mine import launch\nexcept ImportError: pass\ndef another",
    ),
    (KERNELS, "x * SIZE", "x + SIZE"),
    (KERNELS, "(x, 3)", "(x, 4)"),
    (KERNELS, "configs=[1, 2]", "configs=[1]"),
    (KERNELS, "def launch", "launch_twice = 1\n_kernel.run = None\ndef launch"),
    ("ops/triton/deepest.py", "x - 1", "x"),
    ("ops/triton/helpers.py", "x / by", "by / x"),
    ("utils/torch.py", "torch.amp", "torch.cuda.amp"),
]


@pytest.mark.parametrize(("file", "before", "after"), DIFFERENT)
def test_what_decides_the_numbers_decides_the_digest(
    package: Path, file: str, before: str, after: str
) -> None:
    known_as, kept_as = digest(package), key(package)
    change(package, file, before, after)
    assert digest(package) != known_as
    # And a copy that was made before is not used.
    assert key(package) != kept_as


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        (MAIN, '"""Runs it."""', "'''Other words.'''  # and a comment"),
        ("ops/triton/kernels.py", 'key=["x"]', 'key=[u"x"]'),
        (MAIN, '"""Forward."""', '"""Forward."""\n        "more"'),
        (MAIN, "return Fn.apply(x, limits)", "return (\n        Fn.apply( x,\n  limits ))"),
        (MAIN, "def another(x):\n    return x", "def another(y): return y + 1"),
        (
            MAIN,
            "out = launch(x)\n        total = [part + 1 for part in out]",
            "seen = launch(x)\n        total = [each + 1 for each in seen]",
        ),
        (
            MAIN,
            "index = tl.arange(0, BLOCK)\n    tl.store(x + index, index * FACTOR)",
            "i = tl.arange(0, BLOCK)\n    tl.store(x + i, i * FACTOR)",
        ),
        (MAIN, "import triton.language as tl", "from triton import language as tl"),
        (MAIN, "from .helpers import", "from mamba_ssm.ops.triton.helpers import"),
        (MAIN, "import math\n", "import math\nimport os\n"),
        (MAIN, "import math\n", "import math\nown, (more) = 1, 2\n"),
        (MAIN, "import math\n", "import math\nown: int = 1\nown += 1\n[a, b] = own, 2\n"),
        (MAIN, "import math\n", "import math\nif True:\n    own = 1\n"),
        (KERNELS, "def unused(x):\n    return x", "def unused(x):\n    return -x"),
        (
            KERNELS,
            "grid = depth(x)\n    return _kernel[grid]",
            "g = depth(x)\n    return _kernel[g]",
        ),
    ],
)
def test_what_decides_nothing_is_not_in_the_digest(
    package: Path, file: str, before: str, after: str
) -> None:
    known_as = digest(package)
    change(package, file, before, after)
    assert digest(package) == known_as


def test_the_order_of_definitions_is_not_in_the_digest(package: Path) -> None:
    known_as = digest(package)
    path = package / MAIN
    head, kernel, rest = path.read_text().partition("@triton.jit")
    body, _, rest = rest.partition("class Fn")
    path.write_text(f"{head}class Fn{rest}\n{kernel}{body}")
    assert digest(package) == known_as


def test_a_package_under_another_name_has_the_same_digests(package: Path) -> None:
    known_as = digest(package)
    for path in package.rglob("*.py"):
        path.write_text(path.read_text().replace("from mamba_ssm", "from own.mamba_ssm"))
    assert digest(package, "own.mamba_ssm") == known_as
    assert digest(package) != known_as


def test_a_module_that_is_gone_is_in_the_digest(package: Path) -> None:
    known_as = digest(package)
    (package / "ops" / "triton" / "deepest.py").unlink()
    assert digest(package) != known_as


def test_text_that_cannot_be_read_is_known_as_nothing(package: Path) -> None:
    known_as = digest(package)
    (package / KERNELS).write_text("def launch(:\n")
    assert digest(package) != known_as
    (package / KERNELS).write_bytes(b"# -*- coding: ascii -*-\nname = '\xe9'\n")
    assert digest(package) != known_as


def test_what_is_made_of_triton_is_told(package: Path) -> None:
    path = package / MAIN
    source = path.read_bytes()
    texts = Texts(TARGET, source.decode(), str(path), source)
    assert closure(texts, "run").launches_triton
    assert not closure(texts, "another").launches_triton
    assert not closure(texts, "run").asks_for_device
    change(package, KERNELS, "grid = depth(x)", "grid = depth(x) if x.is_cuda else None")
    texts = Texts(TARGET, source.decode(), str(path), source)
    assert closure(texts, "run").asks_for_device


def test_the_digests_of_the_releases_are_those_that_are_checked_in() -> None:
    assert known.main(["--check"]) == 0


class Index(ast.AST):
    """As Python 3.8 has it."""

    _fields = ("value",)

    def __init__(self, value: ast.AST) -> None:
        super().__init__()
        self.value = value


class ExtSlice(ast.AST):
    """The same, of several."""

    _fields = ("dims",)

    def __init__(self, dims: list[ast.AST]) -> None:
        super().__init__()
        self.dims = dims


@pytest.mark.skipif(sys.version_info < (3, 9), reason="it is that Python")
@pytest.mark.parametrize(
    ("text", "older"),
    [
        ("x[c]", lambda of: Index(value=of)),
        (
            "x[a:b, c]",
            lambda of: ExtSlice(dims=[of.elts[0], Index(value=of.elts[1])]),
        ),
    ],
)
def test_an_index_is_known_by_what_it_is_in_any_python(
    text: str, older: Callable[[ast.expr], ast.AST]
) -> None:
    module = _Module("mamba_ssm", TARGET, "a = b = c = x = 1\n")
    node: Any = ast.parse(text, mode="eval").body
    expected = _Spelling(module).of(node)
    assert all(name in expected for name in "xc")
    node.slice = older(node.slice)
    assert _Spelling(module).of(node) == expected


def test_what_stands_for_an_extension_that_is_missing_is_in_the_digest(package: Path) -> None:
    """None is not: it is what the edit makes of no import at all."""
    own = "try:\n    from causal_conv1d import conv\nexcept ImportError:\n    {}\nimport torch\n"
    change(package, MAIN, "import torch\n", own.format("from .helpers import scale as conv"))
    change(package, MAIN, "return Fn.apply(x, limits)", "return Fn.apply(conv(x), limits)")
    change(package, MAIN, "scaled(total, by=FACTOR)", "total")
    first = digest(package)
    change(package, "ops/triton/helpers.py", "x / by", "by / x")
    second = digest(package)
    assert first != second
    change(package, MAIN, "from .helpers import scale as conv", "conv = None")
    third = digest(package)
    assert third not in (first, second)
    tried = own.format("conv = None")
    change(package, MAIN, tried, "from causal_conv1d import conv\nimport torch\n")
    assert digest(package) == third


@pytest.mark.parametrize(
    "imports",
    [
        "import mamba_ssm.ops.triton.kernels as k\nlaunch = k.launch\n",
        "import math, mamba_ssm.ops.triton.kernels as k; launch = k.launch\n",
        "from mamba_ssm.ops.triton import kernels as k\nlaunch = k.launch\n",
        "from . import kernels as k\nlaunch = k.launch\n",
    ],
)
def test_a_copy_is_kept_by_the_modules_of_every_form_of_an_import(
    imports: str, package: Path
) -> None:
    change(package, MAIN, "from mamba_ssm.ops.triton.kernels import launch\n", imports)
    before = key(package)
    change(package, "ops/triton/kernels.py", "x * SIZE", "x + SIZE")
    assert key(package) != before


def test_what_is_known_is_of_the_releases_and_of_what_will_be_one() -> None:
    """Each file adds to the other, also where both have a function."""
    found = of_releases._digests()
    for name in ("known.json", "unreleased.json"):
        declared = json.loads((overrides.folder() / name).read_text())
        assert declared
        for target, functions in declared.items():
            for function, digests in functions.items():
                assert digests.items() <= found[target][function].items()


@pytest.mark.parametrize(
    "helper",
    [
        "def helper(x): return x + 1\n",
        "async def helper(x): return x + 1\n",
        "class helper:\n    more = 1 + 1\n",
        "helper = 1 + 1\n",
        "helper: int = 1 + 1\n",
        "helper, other = 1 + 1, 2\n",
        "(other, [helper, *rest]) = 1, (1 + 1, 2)\n",
        "if FACTOR:\n    helper = 1 + 1\n",
        "try:\n    helper = 1 + 1\nfinally:\n    pass\n",
        "for helper in (1 + 1,): pass\n",
        "with open(1 + 1) as helper: pass\n",
        "if (helper := 1 + 1): pass\n",
    ],
)
def test_what_binds_a_name_that_is_used_is_in_the_digest(helper: str, package: Path) -> None:
    change(package, MAIN, "def run(", f"{helper}def run(")
    change(package, MAIN, "return Fn.apply(x, limits)", "return Fn.apply(x, limits, helper)")
    before = digest(package)
    other = helper.replace("+ 1", "+ 2")
    change(package, MAIN, helper, other)
    assert digest(package) != before
