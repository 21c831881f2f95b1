"""A plugin of mkdocs that prepares the pages of the site."""

from __future__ import annotations

import re
from typing import Any

CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show commands as they are typed: what the button copies is then what a shell takes."""
    return CONSOLE.sub(_without_prompts, markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Say in which language a page is, for readers' voices, hyphenation and fonts."""
    if not page.file.src_uri.endswith(".zh.md"):
        return output
    return output.replace('<html lang="en"', '<html lang="zh"', 1)


def _without_prompts(block: re.Match[str]) -> str:
    lines = block[1].splitlines()
    typed = [line[2:] if line.startswith("$ ") else line for line in lines]
    return "```bash\n" + "".join(f"{line}\n" for line in typed) + "```"
