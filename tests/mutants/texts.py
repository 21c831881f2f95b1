"""The texts that mutants are made of. They are edited by the nodes of their syntax trees."""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from typing import Iterator, NamedTuple

from tests.emulated import version
from tests.matrix.cell import FIRST_WITH_TRITON_3
from tests.matrix.cells import IMPORTABLE
from tools.releases import release_path

Function = ast.FunctionDef

INTERFACE = "ops/selective_scan_interface.py"
COMBINED = "ops/triton/ssd_combined.py"
# The functions of each target that a model calls.
TARGETS: dict[str, tuple[str, ...]] = {
    INTERFACE: ("selective_scan_fn", "mamba_inner_fn"),
    COMBINED: ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"),
    "ops/triton/layer_norm.py": ("layer_norm_fn", "rms_norm_fn"),
    "ops/triton/layernorm.py": ("layer_norm_fn", "rms_norm_fn"),
    "ops/triton/layernorm_gated.py": ("layernorm_fn", "rmsnorm_fn"),
    "ops/triton/selective_state_update.py": ("selective_state_update",),
    "utils/generation.py": ("decode",),
    "modules/mamba_simple.py": ("Mamba.forward", "Mamba.step"),
    "modules/mamba2.py": ("Mamba2.forward", "Mamba2.step"),
    "modules/mamba2_simple.py": ("Mamba2Simple.forward",),
}
# Files that are no targets and decide what a target means, by the target that calls them.
KERNELS: dict[str, str] = {
    "ops/triton/ssd_bmm.py": COMBINED,
    "ops/triton/ssd_chunk_scan.py": COMBINED,
    "ops/triton/ssd_chunk_state.py": COMBINED,
    "ops/triton/ssd_state_passing.py": COMBINED,
    "ops/triton/layernorm_gated.py": COMBINED,
    "ops/triton/softplus.py": COMBINED,
    "ops/triton/layer_norm.py": INTERFACE,
}


@lru_cache(maxsize=None)
def walk(within: ast.AST) -> tuple[ast.AST, ...]:
    """Every node inside one, which no mutation changes, and itself."""
    return tuple(ast.walk(within))


@lru_cache(maxsize=None)
def unparse(node: ast.AST) -> str:
    """A node as ``ast.unparse`` writes it."""
    return ast.unparse(node)


# A text with any of these asks for CUDA, or for what Triton 3 no longer has.
UNRUNNABLE = ('device="cuda"', "tl.math.log1p")


class Edit(NamedTuple):
    """The bytes from ``start`` to ``end`` become ``new``."""

    start: int
    end: int
    new: str


class Text:
    """A file of a release. Positions are those of its bytes in UTF-8, as the syntax tree's are."""

    def __init__(self, release: str, path: str, source: str) -> None:
        self.release = release
        self.path = path
        self.source = source
        self.tree = ast.parse(source)
        self._bytes = source.encode()
        self._starts = [0]
        for line in self._bytes.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    @property
    def public(self) -> tuple[str, ...]:
        """The functions of it that a model calls."""
        return tuple(name for name in TARGETS.get(self.path, ()) if self.find(name) is not None)

    def find(self, name: str) -> Function | None:
        """The function ``f`` or the method ``C.f``, if there is one."""
        *classes, wanted = name.split(".")
        body: list[ast.stmt] = self.tree.body
        for each in classes:
            found = [x for x in body if isinstance(x, ast.ClassDef) and x.name == each]
            body = found[0].body if found else []
        functions = [x for x in body if isinstance(x, ast.FunctionDef) and x.name == wanted]
        return functions[0] if functions else None

    def function(self, name: str) -> Function:
        """The same, where it is known to be there."""
        found = self.find(name)
        assert found is not None, f"{self.path} of {self.release} has no {name}"
        return found

    def functions(self) -> Iterator[tuple[str, Function]]:
        """Every function of the module and every method, by name."""
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef):
                yield node.name, node
            elif isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, ast.FunctionDef):
                        yield f"{node.name}.{each.name}", each

    def autograd_classes(self) -> list[ast.ClassDef]:
        """The subclasses of ``torch.autograd.Function``."""
        return [
            node
            for node in self.tree.body
            if isinstance(node, ast.ClassDef)
            and [unparse(base) for base in node.bases] == ["torch.autograd.Function"]
        ]

    # Reading

    def extent(self, node: ast.AST) -> tuple[int, int]:
        """Where a node begins and ends."""
        assert isinstance(node, (ast.expr, ast.stmt, ast.arg))
        assert node.end_lineno is not None and node.end_col_offset is not None
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def of(self, node: ast.AST) -> str:
        """The source of a node."""
        start, end = self.extent(node)
        return self._bytes[start:end].decode()

    def lines_of(self, node: ast.stmt) -> str:
        """The source of a statement by whole lines, with the decorators of a function."""
        return self._bytes[self._begin(node) : self._starts[node.end_lineno or 0]].decode()

    # Editing

    def edited(self, *edits: Edit) -> str:
        """The source after edits that do not overlap; several at one place keep their order."""
        pieces, position = [], 0
        for edit in sorted(edits, key=lambda each: (each.start, each.end)):
            assert edit.start >= position, "two edits overlap"
            pieces += [self._bytes[position : edit.start], edit.new.encode()]
            position = edit.end
        return b"".join((*pieces, self._bytes[position:])).decode()

    def replace(self, node: ast.AST, new: str) -> Edit:
        """``new`` in the place of a node."""
        return Edit(*self.extent(node), new)

    def remove(self, node: ast.stmt) -> Edit:
        """A statement gone, with its lines."""
        return Edit(self._begin(node), self._starts[node.end_lineno or 0], "")

    def before(self, node: ast.stmt, code: str) -> Edit:
        """``code`` before a statement, with its indentation."""
        return Edit(self._begin(node), self._begin(node), _indented(code, node.col_offset))

    def after(self, node: ast.stmt, code: str) -> Edit:
        """``code`` after a statement, with its indentation."""
        end = self._starts[node.end_lineno or 0]
        return Edit(end, end, _indented(code, node.col_offset))

    def at_head(self, function: Function, code: str) -> Edit:
        """``code`` before the first statement of a function, after its docstring."""
        return self.before(body_of(function)[0], code)

    def at_end(self, code: str) -> Edit:
        """``code`` after the last line."""
        end = len(self._bytes)
        return Edit(end, end, f"\n\n{code}\n")

    def renamed(self, within: ast.AST, old: str, new: str) -> list[Edit]:
        """Every mention of a name, not of a keyword or an attribute, inside a node."""
        edits = [
            self.replace(node, new)
            for node in walk(within)
            if isinstance(node, ast.Name) and node.id == old
        ]
        for node in walk(within):
            if isinstance(node, ast.arg) and node.arg == old:
                start = self.extent(node)[0]
                edits.append(Edit(start, start + len(old), new))
        return edits

    def _begin(self, node: ast.stmt) -> int:
        decorators = getattr(node, "decorator_list", [])
        line: int = min([node.lineno, *(each.lineno for each in decorators)])
        return self._starts[line - 1]


class Parameter(NamedTuple):
    """A parameter of a function that may be given by place, with what the source says of it."""

    name: str
    default: ast.expr | None
    written: str


def parameters(text: Text, function: Function) -> list[Parameter]:
    arguments = function.args.posonlyargs + function.args.args
    defaults: list[ast.expr | None] = [None] * (len(arguments) - len(function.args.defaults))
    defaults += function.args.defaults
    return [
        Parameter(
            argument.arg,
            default,
            text.of(argument) + (f"={text.of(default)}" if default is not None else ""),
        )
        for argument, default in zip(arguments, defaults)
    ]


def with_parameters(text: Text, function: Function, written: list[str]) -> Edit:
    """The list of parameters of a function, written anew."""
    arguments = function.args.posonlyargs + function.args.args
    end = max(text.extent(each)[1] for each in (*arguments, *function.args.defaults))
    return Edit(text.extent(arguments[0])[0], end, ", ".join(written))


def body_of(function: Function) -> list[ast.stmt]:
    """The statements of a function after its docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def calls(within: ast.AST, *names: str) -> list[ast.Call]:
    """The calls of any of the dotted names."""
    return [
        node for node in walk(within) if isinstance(node, ast.Call) and unparse(node.func) in names
    ]


def _indented(code: str, columns: int) -> str:
    return "".join(f"{' ' * columns}{line}\n" for line in code.splitlines())


@lru_cache(maxsize=None)
def texts() -> tuple[Text, ...]:
    """Each distinct text of each target and of each file of kernels, from its last release.

    Left out is what cannot be run here: kernels that need Triton 2 or a GPU.
    """
    found: dict[tuple[str, str], Text] = {}
    for path in {**TARGETS, **KERNELS}:
        for release in IMPORTABLE:
            file = release_path(release) / "mamba_ssm" / path
            needs_triton = path not in (INTERFACE, "utils/generation.py")
            old = (2, 0) <= version(release) < FIRST_WITH_TRITON_3
            source = file.read_text(encoding="utf-8") if file.exists() else ""
            cannot_run = (needs_triton and old) or any(each in source for each in UNRUNNABLE)
            if source and not cannot_run:
                digest = hashlib.sha256(source.encode()).hexdigest()
                found[path, digest] = Text(release, path, source)
    return tuple(found.values())
