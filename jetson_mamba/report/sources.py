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
    required, missing = _closure(package)
    trees = [tree for target in TARGETS if (tree := _parsed(module_file(package, target)))]
    imports = [each for tree in trees for each in _imports(tree)]
    return Asks(
        required=required,
        missing=missing,
        mentioned=frozenset(module for module, _ in imports),
        calls=_calls(trees),
        bare_strides=any(_bare_strides(tree) for tree in trees),
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
        here = waiting.pop()
        path = _file_of(package, here)
        if path is None:
            continue
        around = here if os.path.basename(path) == "__init__.py" else here.rpartition(".")[0]
        for named, names in _required_by(path):
            module = _absolute(named, around)
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


def _absolute(module: str, package: str) -> str:
    """The name of a module that is imported in a package, without dots before it."""
    name = module.lstrip(".")
    parts = package.split(".")
    around = parts[: len(parts) + 1 - (len(module) - len(name))]
    return ".".join([*around, *([name] if name else [])]) if module != name else module


def _folder(package: str, module: str) -> str:
    return os.path.join(package, *module.split(".")[1:])


def _file_of(package: str, module: str) -> str | None:
    folder = _folder(package, module)
    for path in (os.path.join(folder, "__init__.py"), folder + ".py"):
        if os.path.isfile(path):
            return path
    return None


def _parsed(path: str) -> ast.Module | None:
    try:
        with open(path, "rb") as file:
            return ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return None


def _imports(tree: ast.Module) -> Iterator[tuple[str, str | None]]:
    """Each module that is imported anywhere in a file, with each name that is taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.module, alias.name) for alias in node.names)


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _calls(trees: list[ast.Module]) -> dict[str, tuple[int, ...]]:
    counts: dict[str, set[int]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _called(node) in CONVOLUTION:
                numbers = counts.setdefault(_called(node), set())
                numbers.add(len(node.args) + len(node.keywords))
    return {name: tuple(sorted(numbers)) for name, numbers in counts.items()}


def _bare_strides(tree: ast.Module) -> bool:
    """Whether the convolution is handed a plain ``rearrange`` of a plain name."""
    functions = ("causal_conv1d_fwd", "causal_conv1d_fwd_function")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) in functions and node.args:
            first = node.args[0]
            if isinstance(first, ast.Call) and _called(first) == "rearrange":
                return bool(first.args) and isinstance(first.args[0], ast.Name)
    return False


def _has(package: str, module: str, words: bytes) -> bool:
    """Whether a module's text has these words in it."""
    try:
        with open(module_file(package, module), "rb") as file:
            return words in file.read()
    except OSError:
        return False


def _own_parameters(package: str) -> tuple[str, ...]:
    tree = _parsed(module_file(package, "mamba_ssm.modules.mamba_simple"))
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == "Mamba":
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                    names = nodes.named(method.args)
                    return tuple(name for name in names if name not in PARAMETERS_OF_MAMBA)
    return ()
