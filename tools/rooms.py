"""Draws the rooms of the package with what each imports, or says which arrow runs up.

``python -m tools.rooms`` writes ``docs/rooms.svg``. The rows are the plan of the house; the arrows
are read from the code.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "rooms.svg"
PACKAGE = "jetson_mamba"
# From the top down. A room imports rooms of rows below its own, and the package itself, which is
# the handle of the one finder, with that finder.
ROWS = (
    ("cli",),
    ("installing", "demo"),
    ("report",),
    ("hook", "export", "startup", "frozen"),
    ("ops", "vendored_overrides"),
    ("replay", "rewrite", "compat"),
    ("dispatch", "kernels", "releases"),
    ("shared",),
)
WIDTH, HEIGHT, ACROSS, DOWN = 150, 34, 190, 84


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package and of the overrides, by name."""
    for package in (PACKAGE, "vendored_overrides"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if "copies" not in parts:
                yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(name: str, path: Path) -> Iterator[str]:
    """What a module imports, wherever in it: names of modules, or of what is in them."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def room(name: str) -> str | None:
    """The room of a module, or of what is in one; None outside of all and for the package.

    The finder is the package's: it lies beside the rooms because every interpreter imports it, and
    a package around it would be one import more.
    """
    parts = name.split(".")
    if parts[0] == "vendored_overrides":
        return parts[0]
    if parts[0] != PACKAGE or len(parts) == 1 or parts[1] == "finder":
        return None
    if (ROOT / PACKAGE / parts[1]).is_dir():
        return parts[1]
    if parts[1] == "__main__":
        return "cli"
    return "shared" if (ROOT / PACKAGE / f"{parts[1]}.py").exists() else None


def arrows() -> dict[tuple[str, str], list[str]]:
    """From room to room, and the modules that import across."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, path in modules():
        here = room(name)
        for there in {room(each) for each in imported(name, path)}:
            if here is not None and there is not None and there != here:
                found[here, there].append(name)
    return dict(found)


def rows() -> dict[str, int]:
    """The row of each room, counted from the top."""
    return {each: row for row, names in enumerate(ROWS) for each in names}


def upward() -> list[str]:
    """What imports a room that is not below its own, in a sentence each."""
    row = rows()
    return [
        f"{', '.join(names)}: {here} imports {there}, which is not below it"
        for (here, there), names in sorted(arrows().items())
        if row[here] >= row[there]
    ]


def picture() -> str:
    """The rooms and arrows, as SVG."""
    widest = max(map(len, ROWS))
    place = {
        each: (
            (widest - len(names)) * ACROSS // 2 + column * ACROSS + 20,
            row * DOWN + 20,
        )
        for row, names in enumerate(ROWS)
        for column, each in enumerate(names)
    }
    width, height = widest * ACROSS, len(ROWS) * DOWN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="14">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="#777"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for here, there in sorted(arrows()):
        (x1, y1), (x2, y2) = place[here], place[there]
        x1, y1, x2 = x1 + WIDTH // 2, y1 + HEIGHT, x2 + WIDTH // 2
        lines.append(
            f'<path d="M{x1} {y1}C{x1} {y1 + 30} {x2} {y2 - 30} {x2} {y2}" fill="none" '
            'stroke="#777" stroke-opacity=".55" marker-end="url(#tip)"/>'
        )
    for each, (x, y) in place.items():
        lines.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef3fb" '
            f'stroke="#456"/><text x="{x + WIDTH // 2}" y="{y + 22}" text-anchor="middle">'
            f"{each}</text>"
        )
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    wrong = upward()
    print(*wrong, sep="\n", end="\n" if wrong else "")
    PICTURE.write_text(picture(), encoding="utf-8")
    sys.exit(1 if wrong else 0)
