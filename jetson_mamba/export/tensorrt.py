"""What TensorRT takes: the operators that its ONNX parser's published table has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# A table of onnx-tensorrt; releases after it have only added to it.
TABLE = json.loads(Path(__file__).with_name("tensorrt_operators.json").read_text("utf-8"))


def not_taken(model: Any) -> list[str]:
    """What of an ``onnx_ir`` model is not in the table, with its domain where it has one.

    A loop is no better: its results may have no length that is left open.
    """
    taken = set(TABLE["operators"]) - {"Loop", "Scan"}
    names = {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in model.graph
        if node.domain or node.op_type not in taken
    }
    return sorted(names)
