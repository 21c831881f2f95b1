"""The blocks of code that pages show, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *REPOSITORY.glob("*.md")])
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of ``page``, which stands after the heading ``section``."""

    page: str
    section: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """What is typed: lines after a prompt, without what a comment says of them."""
        lines = (line.strip() for line in self.text.splitlines())
        return [line[2:].partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def blocks(language: str) -> list[Block]:
    """All blocks of all pages in a language, such as ``console``."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            headings = re.findall(r"^#+ (.*)$", text[: match.start()], re.MULTILINE)
            section = headings[-1] if headings else ""
            if match[1] == language:
                page = path.relative_to(REPOSITORY).as_posix()
                found.append(Block(page, section, match[1], match[2]))
    return found


def shown() -> set[str]:
    """Every command that any page shows."""
    return {command for block in blocks("console") for command in block.commands}
