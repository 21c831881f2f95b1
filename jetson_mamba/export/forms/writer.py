"""Writes the nodes of a form into an ONNX graph."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
import onnx_ir as ir

# An ``onnx_ir.Value``, or None for what was left out; its shape holds numbers but for open sizes.
Value = Any

PRECISION = {"jetson_mamba.precision": "float32"}
# The operators with a domain of their own.
_DOMAINS = {"LinearAttention": "com.microsoft"}


class Writer:
    """Nodes in the order in which they were asked for: ``writer.Add(a, 1.0)`` adds one.

    What is no value of the graph becomes a constant: floats in ``dtype``, in which everything is
    computed, integers as int64. None stays out. Nodes and values are named after ``name``. What is
    computed in float32 whatever the model's dtype says so in its metadata (``PRECISION``), for
    whoever builds an engine of mixed precision.
    """

    def __init__(self, name: str, *computed: Value) -> None:
        self.name = name
        wide = any(value is not None and value.dtype == ir.DataType.DOUBLE for value in computed)
        self.onnx_dtype = ir.DataType.DOUBLE if wide else ir.DataType.FLOAT
        self.dtype = np.float64 if wide else np.float32
        self.nodes: list[ir.Node] = []

    def within(self, name: str) -> Writer:
        """A writer for a graph inside of this one."""
        inner = Writer(f"{self.name}.{name}")
        inner.dtype, inner.onnx_dtype = self.dtype, self.onnx_dtype
        return inner

    def __getattr__(self, op_type: str) -> Any:
        def write(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            domain = _DOMAINS.get(op_type, "")
            values = [self._value(each) for each in inputs]
            written = self.node(domain, op_type, values, attributes, outputs, PRECISION)
            return written[0] if outputs == 1 else written

        return write

    def node(
        self,
        domain: str,
        op_type: str,
        inputs: Sequence[Value],
        attributes: Any,
        outputs: int,
        metadata: Mapping[str, str],
    ) -> Sequence[ir.Value]:
        """The results of a node of any domain."""
        name = f"{self.name}.{len(self.nodes)}"
        node = ir.Node(
            domain,
            op_type,
            inputs,
            ir.convenience.convert_attributes(attributes),
            num_outputs=outputs,
            name=f"{name}.{op_type}",
            metadata_props=dict(metadata),
        )
        for place, value in enumerate(node.outputs):
            value.name = f"{name}.{place}"
        self.nodes.append(node)
        return node.outputs

    def _value(self, given: Any) -> Any:
        if given is None or isinstance(given, ir.Value):
            return given
        if isinstance(given, np.ndarray):
            array = given
        else:
            array = np.asarray(given, self.dtype if isinstance(given, float) else np.int64)
        return self.node("", "Constant", [], {"value": ir.tensor(array)}, 1, PRECISION)[0]

    def wide(self, value: Value) -> Any:
        """A value in the dtype that is computed in."""
        same = value.dtype == self.onnx_dtype
        return value if same else self.Cast(value, to=self.onnx_dtype.value)

    def like(self, value: Value, model: Value) -> Any:
        """What was computed, in the dtype of a value that was given."""
        narrow = model.dtype is not None and model.dtype != self.onnx_dtype
        return self.Cast(value, to=model.dtype.value) if narrow else value

    def silu(self, value: Value) -> Any:
        """``value * sigmoid(value)``."""
        return self.Mul(value, self.Sigmoid(value))

    def size(self, value: Value, axis: int) -> Any:
        """The size along an axis, int64 of shape (1,)."""
        return self.Shape(value, start=axis, end=axis + 1)

    def padded(self, value: Value, axis: int, steps: Value, block: int, fill: float) -> Any:
        """``value``, ``steps`` long along an axis, to a multiple of ``block``."""
        missing = self.Sub(
            self.Mul(self.Div(self.Add(steps, [block - 1]), [block]), [block]), steps
        )
        return self.Pad(value, self.Concat([0], missing, axis=0), fill, [axis])
