"""The pages that list things list those that there are, in both languages."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Iterator

import pytest

import jetson_mamba
from jetson_mamba import advice
from jetson_mamba.report.findings import SYMPTOMS
from tests.docs.blocks import DOCS, PAGES, REPOSITORY

CODE = [
    *(REPOSITORY / "jetson_mamba").rglob("*.py"),
    *(REPOSITORY / "vendored_overrides").rglob("*.py"),
]
# What other programs set and the system's own parts are asked for, which nobody sets for this.
OF_THE_SYSTEM = {"HOME", "PATH", "PYTHONPATH", "COLUMNS", "TERM", "NO_COLOR"}


def constants(tree: ast.Module) -> dict[str, str]:
    """The names that a module gives to strings."""
    return {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def variables_read(text: str, elsewhere: dict[str, str] | None = None) -> Iterator[str]:
    """The names of environment variables that a module asks for, however it does.

    A name that it does not give itself is looked for among those of other modules.
    """
    tree = ast.parse(text)
    names = {**(elsewhere or {}), **constants(tree)}
    for node in ast.walk(tree):
        asked: ast.expr | None = None
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            *("os.environ.get", "os.getenv", "environ.get", "os.environ.pop"),
            "os.environ.setdefault",
        ):
            asked = node.args[0]
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            asked = node.slice
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            asked = node.left
        if isinstance(asked, ast.Constant) and isinstance(asked.value, str):
            yield asked.value
        elif isinstance(asked, ast.Name):
            yield names.get(asked.id, f"{asked.id}, whose value stands elsewhere")


def test_the_variables_of_a_module_are_found_however_it_asks() -> None:
    text = (
        "import os\nX = 'B'\nos.environ.get('A')\nos.getenv(X)\nos.environ['C']\n"
        "'D' in os.environ\nos.path.join('E')\n"
    )
    assert sorted(variables_read(text)) == ["A", "B", "C", "D"]


def test_the_table_of_environment_variables_is_what_the_code_reads() -> None:
    texts = [path.read_text(encoding="utf-8") for path in CODE]
    names = {name: word for text in texts for name, word in constants(ast.parse(text)).items()}
    read = {name for text in texts for name in variables_read(text, names)}
    page = (DOCS / "environment.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    told = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert told == read - OF_THE_SYSTEM


def test_the_page_of_commands_is_the_command_lines_own() -> None:
    tool = importlib.import_module("tools.commands_page")
    expected = tool.page()
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == expected, (
        "python -m tools.commands_page writes it"
    )


def test_help_of_the_package_speaks_of_all_that_it_offers() -> None:
    told = jetson_mamba.__doc__ or ""
    assert [name for name in jetson_mamba.__all__ if name not in told] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_installs_by_a_name_that_no_index_has(page: Path) -> None:
    by_name = r"\b(?<!un)install (?:-\S+ )*'?jetson-mamba(?=[\s'\[=`]|$)"
    found = re.findall(by_name, page.read_text(encoding="utf-8"), re.MULTILINE)
    assert advice.ON_AN_INDEX or found == []


@pytest.mark.parametrize(
    "name", ["README", *(f"docs/{each}" for each in ("symptoms", "how-it-works"))]
)
def test_the_chinese_page_has_what_the_english_one_has_in_the_same_order(name: str) -> None:
    """Sections, tables by their first column's names, and pictures."""
    pages = [(REPOSITORY / f"{name}{end}").read_text() for end in (".md", ".zh.md")]
    for pattern in (r"\{ (#[\w-]+) \}$", r"^\| (`[^|]*?`)[^|]* \|", r"!\[[^]]*\]\(([^)]*)\)"):
        english, chinese = (
            [re.findall(r"`[^`]*`|[#\w./-]+", each)[:1] for each in re.findall(pattern, page, re.M)]
            for page in pages
        )
        if name == "docs/how-it-works" and "#" in pattern:
            continue  # a Chinese heading is named as the English one, whose name is its own
        assert english == chinese
    levels = [re.findall(r"^(#+) ", page, re.MULTILINE) for page in pages]
    assert levels[0] == levels[1]


def test_each_symptom_has_its_entry_in_chinese() -> None:
    entries = re.split(r"^## ", (DOCS / "symptoms.zh.md").read_text(), flags=re.MULTILINE)
    for symptom in SYMPTOMS:
        (entry,) = (each for each in entries if f"{{ #{symptom} }}" in each)
        assert "**原因。**" in entry and "**解决。**" in entry
