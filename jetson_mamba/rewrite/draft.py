"""A text while it is edited, each change recorded in the text as well as on its tree.

The tree says where a change goes; the change itself is made in the text, so that formatting,
comments and line numbers stay. :mod:`~jetson_mamba.rewrite.proof` holds both against each other.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from typing import TYPE_CHECKING, NamedTuple, Sequence

from jetson_mamba.errors import LeftOut, Refused
from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import Applied, Edit
from jetson_mamba.rewrite.scopes import Scopes

if TYPE_CHECKING:
    from jetson_mamba.rewrite.known import Known
    from jetson_mamba.rewrite.uses import Uses

LINE_END = re.compile(r"\r\n|\r|\n")
# A module of ours, up to the name in it that is meant.
OURS = re.compile(r"\bjetson_mamba((?:\.\w+)*)\.(?=\w)")


class _Replacement(NamedTuple):
    start: int
    end: int
    text: str


class Token(NamedTuple):
    """A token of the text, comments and empty lines left out."""

    start: int
    end: int
    string: str


class Draft:
    """A source text, what is found in it and what becomes of it."""

    def __init__(self, text: str, edits: Sequence[Edit], known: Known) -> None:
        self.text = text
        self.edits = edits
        self.known = known
        self.tree = ast.parse(text)
        self.parents = nodes.parents(self.tree)
        self.scopes = Scopes(text, self.tree)
        self.applied: list[Applied] = []
        self.left_out: list[LeftOut] = []
        # Modules of ours that were written, and those that the copy imports at module level.
        self.needed: set[str] = set()
        self.imported: set[str] = set()
        # The extensions' imports that stay, as (line, module): see the proof.
        self.left_imports: set[tuple[int, str]] = set()
        self._replacements: list[_Replacement] = []
        # id of a node in the tree -> what stands in its place in the copy.
        self._substitutes: dict[int, list[ast.AST]] = {}
        # What stands after the last statement of the source.
        self._endings: list[tuple[str, Edit]] = []
        self._appended: list[ast.stmt] = []
        self._lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)
        self._line_starts = [0]
        for line in self._lines:
            self._line_starts.append(self._line_starts[-1] + len(line))
        self.tokens = [
            Token(
                self._line_starts[token.start[0] - 1] + token.start[1],
                self._line_starts[token.end[0] - 1] + token.end[1],
                token.string,
            )
            for token in tokenize.generate_tokens(io.StringIO(text, newline="").readline)
            if token.type not in (tokenize.COMMENT, tokenize.NL)
        ]
        self._uses: Uses | None = None

    @property
    def uses(self) -> Uses:
        """How the text uses the extensions."""
        if self._uses is None:
            from jetson_mamba.rewrite.uses import Uses

            self._uses = Uses(self)
        return self._uses

    # What a change says

    def ours(self, text: str) -> str:
        """``text`` as the copy writes it, with what it takes from a module of ours.

        The module is to be imported; where the text has a ``jetson_mamba`` of its own, under a
        name that it has not.
        """

        def module(match: re.Match[str]) -> str:
            name = f"jetson_mamba{match[1]}"
            self.needed.add(name)
            return f"{self.name_of(name)}."

        return OURS.sub(module, text)

    def name_of(self, module: str) -> str:
        """What the copy calls a module of ours."""
        if not self.scopes.mentions("jetson_mamba"):
            return module
        name = f"_{module.replace('.', '_')}"
        while self.scopes.mentions(name):
            name = f"_{name}"
        return name

    def import_of(self, module: str) -> str:
        """What stands after ``import`` to have a module of ours under that name."""
        name = self.name_of(module)
        return module if name == module else f"{module} as {name}"

    # Both ways of making a change

    def replace(self, start: int, end: int, text: str) -> None:
        """Put ``text`` in the place of what stands from ``start`` to ``end``."""
        self._replacements.append(_Replacement(start, end, text))

    def write(self, node: ast.AST, text: str) -> None:
        """Put ``text``, which is on one line, in the place of a node over any number of them."""
        self.write_between(*self.extent(node), text)

    def write_between(self, start: int, end: int, text: str) -> None:
        """As :meth:`write`, in the place of what stands from ``start`` to ``end``."""
        # Its lines stay behind it, empty; where the statement goes on, it goes on after them.
        following = next(token.string for token in self.tokens if token.start >= end)
        escape = "\\" if following.strip() else ""
        rest = "".join(escape + each for each in LINE_END.findall(self.text[start:end]))
        self.replace(start, end, text + rest)

    def substitute(self, node: ast.AST, *substitutes: ast.AST) -> None:
        """Put nodes in the place of a node, whose children may be among theirs."""
        self._substitutes[id(node)] = list(substitutes)

    def is_substituted(self, node: ast.AST) -> bool:
        """Whether something else stands in the place of a node."""
        return id(node) in self._substitutes

    def replace_expression(self, node: ast.expr, text: str) -> None:
        """Put the expression ``text`` in the place of another."""
        written = self.ours(text)
        self.write(node, written)
        self.substitute(node, nodes.expression(written))

    def replace_statement(self, node: ast.stmt, texts: Sequence[str]) -> None:
        """Put simple statements in the place of one, on its first line."""
        written = "; ".join(texts)
        self.write(node, written)
        self.substitute(node, *nodes.statements(written))

    def append(self, statement: str, edit: Edit, first: bool = False) -> None:
        """Put a statement after the last line, after others or before them."""
        self._endings.insert(0 if first else len(self._endings), (statement, edit))

    def finish(self) -> None:
        """Write what stands after the last line."""
        line_end = next(iter(LINE_END.findall(self.text)), "\n")
        end = len(self.text)
        for number, (statement, edit) in enumerate(self._endings):
            begun = number or self.text.endswith(("\r", "\n"))
            self.replace(end, end, f"{'' if begun else line_end}{statement}{line_end}")
            self._appended += nodes.statements(statement)
            self.apply(len(self._lines) + 1 + number, edit)

    def apply(self, line: int, edit: Edit) -> None:
        """Note that an edit was made."""
        self.applied.append(Applied(line, edit))

    def leave(self, what: str, reason: str) -> None:
        """Note that something stays as it is."""
        if LeftOut(what, reason) not in self.left_out:
            self.left_out.append(LeftOut(what, reason))

    def result(self) -> str:
        """The text after the edits."""
        pieces: list[str] = []
        position = 0
        for start, end, text in sorted(self._replacements, key=lambda each: each[:2]):
            if start < position:
                raise Refused("two edits overlap")
            pieces += (self.text[position:start], text)
            position = end
        return "".join((*pieces, self.text[position:]))

    def expected(self) -> ast.Module:
        """The tree of the source after the edits."""
        tree = _Substitution(self._substitutes).visit(self.tree)
        assert isinstance(tree, ast.Module)
        tree.body.extend(self._appended)
        return tree

    # Positions: the tree counts bytes of UTF-8 in a line, the text counts characters

    def extent(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends in the text."""
        assert isinstance(node, (ast.expr, ast.stmt))
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            self._offset(node.lineno, node.col_offset),
            self._offset(node.end_lineno, node.end_col_offset),
        )

    def _offset(self, line: int, column: int) -> int:
        prefix = self._lines[line - 1].encode()[:column].decode()
        return self._line_starts[line - 1] + len(prefix)


class _Substitution(ast.NodeTransformer):
    """Puts the substitutes in place, after the children of the nodes that they keep."""

    def __init__(self, substitutes: dict[int, list[ast.AST]]) -> None:
        self._substitutes = substitutes

    def visit(self, node: ast.AST) -> ast.AST | list[ast.AST]:
        """The node, or what stands in its place."""
        substitutes = self._substitutes.pop(id(node), None)
        if substitutes is None:
            visited: ast.AST = self.generic_visit(node)
            return visited
        placed = [self.generic_visit(substitute) for substitute in substitutes]
        return placed[0] if len(placed) == 1 else placed
