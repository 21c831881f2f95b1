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
OPSET = int(_RELEASES["releases"][0]["opset"])


def not_taken(model: Any) -> list[str]:
    """What of an ``onnx_ir`` model is not in every table, with its domain where it has one.

    A loop is no better: its results may have no length that is left open. Plugins of this project
    are taken.
    """
    taken = frozenset.intersection(*TABLES.values()) - {"Loop", "Scan"}
    names = {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in model.graph.all_nodes()
        if Plugin.of(node) is None and (node.domain or node.op_type not in taken)
    }
    opset = model.opset_imports.get("", 0)
    return sorted(names) + ([f"opset {opset}"] if opset > OPSET else [])
