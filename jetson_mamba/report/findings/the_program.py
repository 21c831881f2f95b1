"""Finds what the program in the current folder imports that mamba_ssm does not have here."""

from __future__ import annotations

import ast
import os
from itertools import islice
from pathlib import Path
from typing import Iterator

from jetson_mamba.releases.versions import at_least
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings.registry import Cause, finds
from jetson_mamba.report.installed import module_file

# Of the folder and those in it, so that a home folder is no long walk.
MOST_FILES, MOST_BYTES = 200, 1 << 20


@finds("name-moved", "cannot import name 'Block' from 'mamba_ssm.modules.mamba_simple'")
def _a_name_that_moved(facts: Facts) -> Iterator[Cause]:
    """Code for mamba-ssm 1 beside 2, or the other way round, whichever name it asks for."""
    if not facts.mamba:
        return
    for path, module, name in _asked_for(os.getcwd()):
        file = module_file(facts.mamba.path, module)
        if not _lacks(file, name):
            continue
        version = facts.mamba.version or ""
        other = "<2" if at_least(version or "2", 2) else ">=2"
        yield Cause(
            f"{path} imports {name} from {module}, which mamba_ssm {version} does not have there",
            f"it was written for another major release of mamba-ssm{_now_in(facts, name)}",
            f"jetson-mamba install 'mamba-ssm{other}'",
        )
        return


def _asked_for(folder: str) -> Iterator[tuple[str, str, str]]:
    """Each name that a program imports from a module of mamba_ssm without a guard."""
    here = Path(folder)
    for path in islice(
        (each for part in ("*.py", "*/*.py") for each in here.glob(part)), MOST_FILES
    ):
        try:
            if "mamba_ssm" in path.parts or path.stat().st_size > MOST_BYTES:
                continue
            text = path.read_bytes()
            tree = ast.parse(text) if b"mamba_ssm" in text else None
        except (OSError, SyntaxError, ValueError, RecursionError):
            continue
        for node in tree.body if tree else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mamba_ssm."):
                for alias in node.names:
                    yield str(path.relative_to(here)), str(node.module), alias.name


def _lacks(file: str, name: str) -> bool:
    """Whether a module's text can be read, and binds a name nowhere."""
    try:
        with open(file, encoding="utf-8") as text:
            tree = ast.parse(text.read())
    except (OSError, SyntaxError, ValueError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.alias):
            bound = node.asname or node.name.partition(".")[0]
        else:
            bound = getattr(node, "name", None) or getattr(node, "id", None) or ""
        if bound in (name, "*", "__getattr__"):
            return False
    return name != "*"


def _now_in(facts: Facts, name: str) -> str:
    """Where the installed release has a name, which may take other arguments there."""
    assert facts.mamba is not None
    package = Path(facts.mamba.path)
    for path in sorted((package / "modules").glob("*.py")):
        if f"class {name}(" in path.read_text(encoding="utf-8", errors="replace"):
            return f"; this one has it in mamba_ssm.modules.{path.stem}, with other parameters"
    return ""
