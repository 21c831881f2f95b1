"""Python 3.15 has lazy imports: nodes of imports have a field that older ones have not.

Where the interpreter is not at hand, its syntax trees are imitated.
"""

from __future__ import annotations

import ast
import re
import symtable
import sys
from typing import Any

import pytest

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.rewrite import rewrite
from jetson_mamba.texts import Texts
from tests.releases import examined
from tools.releases import release_path

OVERRIDE = copies.override("mamba_ssm.ops.selective_scan_interface")
LAZY = re.compile(r"^lazy (?=import|from)", re.MULTILINE)


@pytest.fixture
def lazy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees as Python 3.15 parses them: ``is_lazy`` is 0, or 1 in a ``lazy import``."""
    if sys.version_info >= (3, 15):
        return
    parse, table = ast.parse, symtable.symtable
    for kind in (ast.Import, ast.ImportFrom):
        monkeypatch.setattr(kind, "_fields", (*kind._fields, "is_lazy"))
        types = getattr(kind, "_field_types", None)
        if types is not None:  # from Python 3.13 on: a field that may be None is, if not given
            monkeypatch.setattr(kind, "_field_types", {**types, "is_lazy": int | None})

    def parsed(source: str, *arguments: Any, **keywords: Any) -> Any:
        lines = {1 + source.count("\n", 0, match.start()) for match in LAZY.finditer(source)}
        tree = parse(LAZY.sub("", source), *arguments, **keywords)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                node.is_lazy = int(node.lineno in lines)  # type: ignore[union-attr]
                if node.is_lazy and node.end_lineno == node.lineno:  # type: ignore[union-attr]
                    assert node.end_col_offset is not None
                    node.end_col_offset += len("lazy ")
        return tree

    monkeypatch.setattr(ast, "parse", parsed)
    monkeypatch.setattr(symtable, "symtable", lambda code, *rest: table(LAZY.sub("", code), *rest))


def test_the_imitation_shows_a_node_made_by_hand(lazy_imports: None) -> None:
    by_hand = ast.Import(names=[ast.alias(name="torch", asname=None)])
    assert ast.dump(by_hand) != ast.dump(ast.parse("import torch").body[0])


@pytest.mark.parametrize("version", ["1.0.1", "2.2.4", "2.3.2.post1"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_text_has_the_copy_that_it_has_elsewhere(
    request: pytest.FixtureRequest, version: str, target: str
) -> None:
    path = release_path(version) / f"{target.replace('.', '/')}.py"
    if not path.exists():
        return
    with examined.once():
        expected = copies.make(target, path.read_bytes(), str(path))
    request.getfixturevalue("lazy_imports")
    source = path.read_text() + "# another text, parsed again\n"
    texts = Texts(target, source, str(path), source.encode())
    found = rewrite(source, copies.override(target), texts)
    assert expected is not None and found.left_out == ()
    assert expected.startswith(found.text[: len(path.read_text())].encode())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "lazy import causal_conv1d_cuda as c\nx = c.causal_conv1d_fwd(1, 2, 3, True)\n",
            "lazy import jetson_mamba.ops\n"
            'x = jetson_mamba.ops.causal_conv1d_fn(1, 2, 3, activation="silu")\n',
        ),
        (
            "lazy from causal_conv1d_cuda import causal_conv1d_fwd\nx = causal_conv1d_fwd\n",
            "lazy from jetson_mamba.ops.any_form.causal_conv1d_cuda import causal_conv1d_fwd\n"
            "x = causal_conv1d_fwd\n",
        ),
        (
            "lazy import torch\nimport selective_scan_cuda\nx = selective_scan_cuda\n"
            "def f(xz): return torch.is_autocast_enabled()\n",
            "lazy import torch, jetson_mamba.ops\n"
            "import jetson_mamba.ops.any_form.selective_scan_cuda as selective_scan_cuda\n"
            "x = selective_scan_cuda\n"
            "def f(xz): return jetson_mamba.ops.autocast_dtype(xz.device) is not None\n",
        ),
    ],
)
def test_a_lazy_import_stays_lazy(lazy_imports: None, text: str, expected: str) -> None:
    assert rewrite(text, OVERRIDE).text == expected
