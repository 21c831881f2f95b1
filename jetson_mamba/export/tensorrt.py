"""What TensorRT takes: the operators that its ONNX parser's published tables have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, Mapping

from .forms.plugins import Plugin

_RELEASES = json.loads(Path(__file__).with_name("tensorrt_operators.json").read_text("utf-8"))


def _tables() -> Iterator[tuple[str, frozenset[str]]]:
    taken: frozenset[str] = frozenset()
    for each in _RELEASES["releases"]:
        taken = (taken - {*each["removed"]}) | {*each["added"]}
        yield each["release"], taken


# By release, what its parser takes. Of 10.3, which JetPack 6 has, no table is to be had: what the
# one before it takes, and the one after it still does, it takes too.
TABLES: Mapping[str, frozenset[str]] = dict(_tables())
FIRST = next(iter(TABLES))
# The place of what must be constant: the axes.
_CONSTANT: Mapping[str, int] = _RELEASES["constant_inputs"]
OPSET = int(_RELEASES["releases"][0]["opset"])


def not_taken(model: Any) -> list[str]:
    """What of an ``onnx_ir`` model is not in every table, with its domain where it has one.

    A loop is no better: its results may have no length that is left open. Nor are axes that are
    computed. Plugins of this project are taken.
    """
    taken = frozenset.intersection(*TABLES.values()) - {"Loop", "Scan"}
    names = set()
    for node in model.graph.all_nodes():
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        if Plugin.of(node) is None and name not in taken:
            names.add(name)
        elif name in _CONSTANT and not _is_constant(node, _CONSTANT[name]):
            names.add(f"{name} with axes that are computed")
    opset = model.opset_imports.get("", 0)
    return sorted(names) + ([f"opset {opset}"] if opset > OPSET else [])


def _is_constant(node: Any, place: int) -> bool:
    value = node.inputs[place] if len(node.inputs) > place else None
    if value is None or value.const_value is not None:
        return True
    maker = value.producer()
    return maker is not None and maker.op_type == "Constant"
