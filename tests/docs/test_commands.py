"""What a page shows to be typed can be typed as it stands there.

Each command and program is tried, or says why not.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import interpreters
from tests.docs.blocks import PAGES, REPOSITORY, Block, blocks, shown
from tests.docs.declared import (
    AT_ONCE,
    IN_A_NEW_ENVIRONMENT,
    NOT_TRIED,
    PROGRAMS,
    PROGRAMS_NOT_TRIED,
)
from tools.releases import release_path

TRAIN = """
import torch
from mamba_ssm import Mamba

block = Mamba(16)
block(torch.randn(2, 5, 16)).sum().backward()
assert all(each.grad is not None for each in block.parameters())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What comes of a command, none of which asks a shell for more than to part its words."""
    program, *words = shlex.split(command)
    assert program in ("python", "python3", "jetson-mamba"), program
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("JETSON_MAMBA")
    }
    variables.update(
        PYTHONPATH=os.pathsep.join(map(str, (release_path("2.3.2.post1"), REPOSITORY))),
        JETSON_MAMBA_CACHE=str(interpreters.copies()),
        OMP_NUM_THREADS="1",
    )
    module = ["-m", "jetson_mamba"] if program == "jetson-mamba" else []
    return interpreters.run([*module, *words], env=variables, cwd=folder)


def test_each_command_of_a_page_is_tried_or_says_why_not() -> None:
    declared = [*AT_ONCE, *IN_A_NEW_ENVIRONMENT, *NOT_TRIED]
    assert shown() - set(declared) == set(), "add it to tests/docs/declared.py"
    assert set(declared) - shown() == set(), "no page shows it"
    assert all(NOT_TRIED.values()) and not set(NOT_TRIED) & {*AT_ONCE, *IN_A_NEW_ENVIRONMENT}


@pytest.mark.parametrize("command", AT_ONCE)
def test_a_command_can_be_typed_as_it_stands(command: str, folder: Path) -> None:
    done = typed(command, folder)
    assert done.returncode in AT_ONCE[command], done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [each for each in NOT_TRIED if each.startswith("make ")])
def test_a_target_that_a_page_names_is_one(command: str) -> None:
    (target, *_) = command.split()[1:]
    told = (REPOSITORY / "Makefile").read_text()
    assert re.search(rf"^{re.escape(target)}:", told, re.MULTILINE)


def key(block: Block) -> tuple[str, str] | None:
    """Which of the declared programs a block is: that with the longest beginning."""
    declared = [*PROGRAMS, *PROGRAMS_NOT_TRIED]
    text = re.sub(r"\n\n+", "\n", block.text)
    fitting = [each for each in declared if each[0] == block.page and text.startswith(each[1])]
    return max(fitting, key=lambda each: len(each[1]), default=None)


def test_each_program_of_a_page_is_tried_or_says_why_not() -> None:
    found = {block: key(block) for block in blocks("python")}
    assert [block for block, declared in found.items() if declared is None] == []
    assert {*PROGRAMS, *PROGRAMS_NOT_TRIED} == set(found.values()), "no page shows one"


def programs() -> dict[str, tuple[str, str]]:
    """Page and text of each program, once where pages in two languages show the same."""
    found: dict[str, tuple[str, str]] = {}
    for block in blocks("python"):
        declared = key(block)
        if declared in PROGRAMS:
            text = PROGRAMS[declared] + block.text
            found.setdefault(ast.dump(ast.parse(text)), (block.page, text))
    return found


@pytest.mark.parametrize(
    ("page", "text"), programs().values(), ids=[page for page, _ in programs().values()]
)
def test_a_program_runs_as_it_stands(page: str, text: str, folder: Path) -> None:
    (folder / "program.py").write_text(text)
    done = typed("python -W error::RuntimeWarning program.py", folder)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path or path.startswith("../../"):  # elsewhere, or the forge's own pages
            continue
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The names that headings of a page can be linked by, as forges and the site make them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        named = re.search(r"\{ #([\w-]+) \}", heading)
        plain = re.sub(r"[^\w\s-]", "", heading).strip().lower()
        found.add(named[1] if named else re.sub(r"\s", "-", plain))
    return found
