"""What an op takes where nothing is given is what the function takes whose place it has."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any, Iterator

from jetson_mamba import ops, overrides

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RELEASES = REPOSITORY / ".releases"
TARGETS = REPOSITORY / "vendored_overrides" / "mamba_ssm"
OP = re.compile(
    r"jetson_mamba\.ops\.(\w+)\W*$|jetson_mamba\.ops\.\w+\(\w+, jetson_mamba\.ops\.(\w+)"
)
# No states, which an op may be given as a tuple of none.
OTHERWISE = {("mamba3_siso_step", "Input_States"): (None, ())}


def newest(distribution: str, path: str) -> Path:
    """The file of the last release that has it."""

    def release(file: Path) -> list[int]:
        return [*map(int, re.findall(r"\d+", file.relative_to(RELEASES).parts[0]))]

    return max(RELEASES.glob(f"{distribution}-*/{path}"), key=release)


def replaced() -> Iterator[tuple[str, Path, str]]:
    """An op, the file of a function that it takes the place of, and the function."""
    for file in sorted(TARGETS.rglob("*.py")):
        path = file.relative_to(TARGETS.parent)
        if file.name == "__init__.py":
            continue
        for edit in overrides.declared(".".join(path.with_suffix("").parts)).edits:
            name = getattr(edit, "inside", getattr(edit, "of", ""))
            found = OP.search(getattr(edit, "becomes", ""))
            if isinstance(name, str) and name.isidentifier() and found:
                yield found[1] or found[2], newest("mamba-ssm", path.as_posix()), name
    wrapper = newest("causal-conv1d", "causal_conv1d/causal_conv1d_interface.py")
    for name in ("causal_conv1d_fn", "causal_conv1d_update"):
        yield name, wrapper, name


def defaults(file: Path, function: str) -> dict[str, Any]:
    """Those of a function, as its text has them."""
    tree = ast.parse(file.read_text("utf-8"))
    (found,) = (
        each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == function
    )
    places = [*found.args.posonlyargs, *found.args.args]
    given = found.args.defaults
    pairs = [
        *zip(places[len(places) - len(given) :], given),
        *zip(found.args.kwonlyargs, found.args.kw_defaults),
    ]
    values = {place.arg: eval(ast.unparse(value), {}) for place, value in pairs if value}
    return values


REPLACED = sorted({(op, file, name) for op, file, name in replaced()})


def test_every_kind_of_op_is_among_them() -> None:
    found = {op for op, *_ in REPLACED}
    assert len(found) > 25
    assert {"selective_scan_fn", "causal_conv1d_fn", "mamba3_mimo", "layernorm_fn"} <= found


def test_an_op_has_the_defaults_of_what_it_replaces() -> None:
    for op, file, function in REPLACED:
        parameters = inspect.signature(getattr(ops, op)).parameters
        for name, value in defaults(file, function).items():
            if name not in parameters:
                continue
            own = parameters[name].default
            if own is inspect.Parameter.empty:
                continue
            assert OTHERWISE.get((op, name), (value, value)) == (value, own), (op, name)


def test_attention_and_rotation_have_those_of_flash_attn() -> None:
    """Which is not among the releases that are at hand."""
    attention = inspect.signature(ops.flash_attn_with_kvcache).parameters
    assert attention["causal"].default is False
    assert attention["rotary_interleaved"].default is True
    assert attention["softmax_scale"].default is None
    rotary = inspect.signature(ops.RotaryEmbedding).parameters
    assert rotary["base"].default == 10000.0 and rotary["interleaved"].default is False
