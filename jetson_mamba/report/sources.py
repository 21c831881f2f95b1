"""What the text of an installed mamba_ssm asks of its surroundings, read from its files.

Which modules have to be there for ``import mamba_ssm``, which are asked for and done without,
and how it calls the convolution: releases and forks differ in all of that, so the text is
what is asked.
"""

from __future__ import annotations

import ast
import os
import re
from dataclasses import dataclass
from typing import Iterator

from jetson_mamba.finder import TARGETS
from jetson_mamba.report.installed import module_file
from jetson_mamba.rewrite import nodes

# At the start of a line: what is indented is guarded, or waits until it is needed.
IMPORT = re.compile(r"^(?:from\s+([\w.]+)\s+import\s+([^\n#]*)|import\s+([\w.]+))", re.MULTILINE)
# Of a block, in the releases of state-spaces; what a fork adds is its own.
PARAMETERS_OF_MAMBA = frozenset(
    (
        *("self", "d_model", "d_state", "d_conv", "expand", "dt_rank", "dt_min", "dt_max"),
        *("dt_init", "dt_scale", "dt_init_floor", "conv_bias", "bias", "use_fast_path"),
        *("layer_idx", "device", "dtype"),
    )
)
CONVOLUTION = ("causal_conv1d_fwd", "causal_conv1d_bwd")


@dataclass(frozen=True)
class Asks:
    """What one mamba_ssm asks for.

    ``required`` maps each module that ``import mamba_ssm`` fails without to the file that
    imports it; ``missing`` are modules of its own that are not there. ``mentioned`` are the
    modules that the targets import, guarded or not. ``calls`` maps each function of
    causal_conv1d_cuda that is called directly to the numbers of arguments. ``bare_strides``
    says that Mamba-2 hands the convolution whatever strides it has, ``triton_2_only`` that its
    kernels use what Triton 3 does not have, ``scan_on_request`` that selective_scan_cuda is left
    out of a plain installation. ``own_parameters`` of the block Mamba are a fork's.
    """

    required: dict[str, str]
    missing: tuple[str, ...]
    mentioned: frozenset[str]
    calls: dict[str, tuple[int, ...]]
    bare_strides: bool
    generation_names: tuple[str, ...]
    triton_2_only: bool
    scan_on_request: bool
    own_parameters: tuple[str, ...]


def asks(package: str) -> Asks:
    """What the mamba_ssm in the folder ``package`` asks for."""
    with nodes.many():
        return _asks(package)


def _asks(package: str) -> Asks:
    required, missing = _closure(package)
    texts = [_text(module_file(package, target)) for target in TARGETS]
    trees = [(text, tree) for text in texts if (tree := _parsed(text))]
    imports = [each for _, tree in trees for each in _imports(tree.body)]
    # A walk through the whole of every text would take longer than all else.
    calls = [
        call
        for text, tree in trees
        if CONVOLUTION[0].encode() in text or CONVOLUTION[1].encode() in text
        for call in _calls_of_the_convolution(tree)
    ]
    return Asks(
        required=required,
        missing=missing,
        mentioned=frozenset(module for module, _ in imports),
        calls=_counts(calls),
        bare_strides=any(map(_has_bare_strides, calls)),
        generation_names=tuple(
            name for module, name in imports if module == "transformers.generation" and name
        ),
        triton_2_only=_has(package, "mamba_ssm.ops.triton.ssd_chunk_state", b"tl.math.log1p"),
        scan_on_request=_has(
            package, "mamba_ssm.ops.selective_scan_interface", b"MAMBA_KEEP_CUDA_BUILD"
        ),
        own_parameters=_own_parameters(package),
    )


def _closure(package: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """Everything that importing the package imports without a guard."""
    required: dict[str, str] = {}
    missing = []
    seen = {"mamba_ssm"}
    waiting = ["mamba_ssm"]
    while waiting:
        path = _file_of(package, waiting.pop())
        if path is None:
            continue
        for module, names in _required_by(path):
            if module.split(".")[0] != "mamba_ssm":
                required.setdefault(module, path)
                continue
            inner = [f"{module}.{name}" for name in names]
            parts = module.split(".")
            packages = [".".join(parts[: end + 1]) for end in range(len(parts))]
            for each in (*packages, *(name for name in inner if _file_of(package, name))):
                if each not in seen:
                    seen.add(each)
                    waiting.append(each)
                    if not _file_of(package, each) and not os.path.isdir(_folder(package, each)):
                        missing.append(each)
    return required, tuple(missing)


def _required_by(path: str) -> Iterator[tuple[str, list[str]]]:
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    for match in IMPORT.finditer(text):
        names = re.findall(r"(\w+)(?:\s+as\s+\w+)?\s*(?:,|$|\))", match[2] or "")
        yield match[1] or match[3], names


def _folder(package: str, module: str) -> str:
    return os.path.join(package, *module.split(".")[1:])


def _file_of(package: str, module: str) -> str | None:
    folder = _folder(package, module)
    for path in (os.path.join(folder, "__init__.py"), folder + ".py"):
        if os.path.isfile(path):
            return path
    return None


def _text(path: str) -> bytes:
    """The text of a file, empty where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _parsed(text: bytes) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


def _imports(block: list[ast.stmt]) -> Iterator[tuple[str, str | None]]:
    """Each module that is imported anywhere in a block, with each name that is taken from it."""
    for statement in block:
        if isinstance(statement, ast.Import):
            yield from ((alias.name, None) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            yield from ((statement.module, alias.name) for alias in statement.names)
        for inner in nodes.blocks(statement):
            yield from _imports(inner)


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _calls_of_the_convolution(tree: ast.Module) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _called(node).startswith(CONVOLUTION)
    ]


def _counts(calls: list[ast.Call]) -> dict[str, tuple[int, ...]]:
    counts: dict[str, set[int]] = {}
    for call in calls:
        if _called(call) in CONVOLUTION:
            numbers = counts.setdefault(_called(call), set())
            numbers.add(len(call.args) + len(call.keywords))
    return {name: tuple(sorted(numbers)) for name, numbers in counts.items()}


def _has_bare_strides(call: ast.Call) -> bool:
    """Whether the convolution is handed a plain ``rearrange`` of a plain name."""
    if _called(call) not in ("causal_conv1d_fwd", "causal_conv1d_fwd_function") or not call.args:
        return False
    first = call.args[0]
    return (
        isinstance(first, ast.Call)
        and _called(first) == "rearrange"
        and bool(first.args)
        and isinstance(first.args[0], ast.Name)
    )


def _has(package: str, module: str, words: bytes) -> bool:
    """Whether a module's text has these words in it."""
    return words in _text(module_file(package, module))


def _own_parameters(package: str) -> tuple[str, ...]:
    tree = _parsed(_text(module_file(package, "mamba_ssm.modules.mamba_simple")))
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == "Mamba":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    names = nodes.named(method.args)
                    return tuple(name for name in names if name not in PARAMETERS_OF_MAMBA)
    return ()
