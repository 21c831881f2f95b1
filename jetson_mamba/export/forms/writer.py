"""Writes the nodes of a form into an ONNX graph."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
import onnx_ir as ir

# The operators with a domain of their own.
_DOMAINS = {"LinearAttention": "com.microsoft"}


class Writer:
    """Nodes in the order in which they were asked for: ``writer.Add(a, 1.0)`` adds one.

    What is no value of the graph becomes a constant, numbers and lists of integers as int64 where
    they say a shape and else as ``dtype``, in which everything is computed. None stays out.
    """

    def __init__(self, *computed: ir.Value | None) -> None:
        wide = any(value is not None and value.dtype == ir.DataType.DOUBLE for value in computed)
        self.onnx_dtype = ir.DataType.DOUBLE if wide else ir.DataType.FLOAT
        self.dtype = np.float64 if wide else np.float32
        self._tape = ir.tape.Tape()

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """What has been written."""
        return self._tape.nodes

    def __getattr__(self, op_type: str) -> Any:
        def write(*inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
            written = self._tape.op_multi_out(
                op_type,
                [self._value(each) for each in inputs],
                attributes,
                num_outputs=outputs,
                domain=_DOMAINS.get(op_type, ""),
            )
            return written[0] if outputs == 1 else written

        return write

    def _value(self, given: Any) -> Any:
        if given is None or isinstance(given, ir.Value):
            return given
        if isinstance(given, np.ndarray):
            array = given
        else:
            array = np.asarray(given, self.dtype if isinstance(given, float) else np.int64)
        return self._tape.op("Constant", [], {"value": ir.tensor(array)})

    def wide(self, value: ir.Value) -> ir.Value:
        """A value in the dtype that is computed in."""
        same = value.dtype == self.onnx_dtype
        return value if same else self.Cast(value, to=self.onnx_dtype.value)

    def like(self, value: ir.Value, model: ir.Value) -> ir.Value:
        """What was computed, in the dtype of a value that was given."""
        narrow = model.dtype is not None and model.dtype != self.onnx_dtype
        return self.Cast(value, to=model.dtype.value) if narrow else value

    def silu(self, value: ir.Value) -> ir.Value:
        """``value * sigmoid(value)``."""
        return self.Mul(value, self.Sigmoid(value))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size along an axis, int64 of shape (1,)."""
        return self.Shape(value, start=axis, end=axis + 1)

    def padded(self, value: ir.Value, axis: int, steps: ir.Value, block: int, fill: float) -> Any:
        """``value``, ``steps`` long along an axis, to a multiple of ``block``."""
        missing = self.Sub(self.Mul(self.Div(self.Add(steps, [block - 1]), [block]), [block]), steps)
        return self.Pad(value, self.Concat([0], missing, axis=0), fill, [axis])
