"""Recurrences as plugins of TensorRT: one node each, whose kernel is this project's own.

TensorRT calls a kernel that was compiled ahead in one way: one launch, with the addresses of the
inputs, then sizes of 32 bits, then the addresses of the outputs. So a kernel goes through all of
time in one launch, options are compiled into it, and tensors are contiguous.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NamedTuple, Union

import onnx_ir as ir
import torch

from jetson_mamba.errors import CannotRun
from jetson_mamba.ops.selective_scan.plans import Variant, layout_of

from .selective_scan import SelectiveScan
from .writer import Value, Writer

DOMAIN = "jetson_mamba"
DESCRIBED = "jetson_mamba.plugin"

_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
}

# A number, or one in terms of the inputs' shapes: ``u.shape_expr[2]``.
Size = Union[int, str]


class Plugin(NamedTuple):
    """A kernel, and how it is launched for inputs of any size."""

    op: str
    source: str
    entry: str
    defines: tuple[tuple[str, str], ...]
    inputs: tuple[str, ...]
    sizes: tuple[Size, ...]
    # Their shapes; the first is of the dtype of the first input, others of float32.
    outputs: tuple[tuple[Size, ...], ...]
    grid: tuple[Size, Size, Size]
    threads: int

    @property
    def name(self) -> str:
        """The type of its nodes: of each kernel another."""
        return f"{self.op}_{hashlib.sha256(self.described().encode()).hexdigest()[:8]}"

    def described(self) -> str:
        """All of it, as a node's metadata hold it."""
        return json.dumps(self)

    @classmethod
    def of(cls, node: ir.Node) -> Plugin | None:
        """That of a node, or None for a node of another kind."""
        described = node.metadata_props.get(DESCRIBED)
        return None if described is None else cls._make(json.loads(described))


def selective_scan(write: Writer, given: SelectiveScan) -> tuple[Any, Any]:
    """The output (batch, dim, seqlen), and the last state if anything reads it."""
    (dim, dstate), groups = given.A.shape, given.groups
    varying = [each for each in (given.B, given.C) if len(each.shape) == 4]
    rows = [given.u, given.delta, *varying, *([] if given.z is None else [given.z])]
    kinds = {each.dtype for each in rows}
    kind = kinds.pop() if len(kinds) == 1 else ir.DataType.FLOAT
    if kind not in _DTYPES:
        raise CannotRun(
            f"plugins: expected a model of float32 or float16, of which the kernels are, found "
            f"{kind.name.lower()}; export model.float(), or leave plugins out"
        )

    def cast(value: Value, to: ir.DataType) -> Value:
        if value is None or value.dtype == to:
            return value
        made = write.Cast(value, to=to.value)
        made.type = ir.TensorType(to)
        return made

    def weight(value: Value) -> Value:
        return cast(value, kind if len(value.shape) == 4 else ir.DataType.FLOAT)

    # With the state, the gate is applied behind the plugin: it writes two tensors, not three.
    z = None if given.returns_state else given.z
    inputs = {
        "u": cast(given.u, kind),
        "delta": cast(given.delta, kind),
        "A": cast(given.A, ir.DataType.FLOAT),
        "B": weight(given.B),
        "C": weight(given.C),
        "D": cast(given.D, ir.DataType.FLOAT),
        "z": cast(z, kind),
        "delta_bias": cast(given.delta_bias, ir.DataType.FLOAT),
    }
    there = {name: value for name, value in inputs.items() if value is not None}
    layout = layout_of(dstate, is_complex=False)
    variant = Variant(
        _DTYPES[kind],
        dstate,
        is_complex=False,
        constant_b=len(given.B.shape) == 2,
        constant_c=len(given.C.shape) == 2,
        has_d="D" in there,
        has_z="z" in there,
        has_bias="delta_bias" in there,
        softplus=given.delta_softplus,
        kept=given.returns_state,
    )
    batch, seqlen = "u.shape_expr[0]", "u.shape_expr[2]"
    states = (batch, dim, f"trtp.cdiv({seqlen}, {2 * layout.interval})", 2 * dstate)
    plugin = Plugin(
        "selective_scan",
        "selective_scan_plugin.cu",
        "selective_scan_plugin",
        variant.defines(layout.forward_warps),
        tuple(there),
        (dim, dim // groups, seqlen),
        ((batch, dim, seqlen), *([states] if given.returns_state else [])),
        (groups * -(-(dim // groups) // (layout.forward_warps * layout.channels)), batch, 1),
        32 * layout.forward_warps,
    )
    out, *kept = write.node(
        DOMAIN,
        plugin.name,
        list(there.values()),
        {"plugin_namespace": DOMAIN, "plugin_version": "1", "aot": 1},
        len(plugin.outputs),
        {DESCRIBED: plugin.described()},
    )
    out.shape, out.type = given.u.shape, ir.TensorType(kind)
    if given.z is not None and z is None:
        out = write.Mul(write.wide(out), write.silu(write.wide(given.z)))
        out.type = ir.TensorType(write.onnx_dtype)
    last = None
    for rows_of_states in kept:
        rows_of_states.type = ir.TensorType(ir.DataType.FLOAT)
        end = write.Slice(rows_of_states, [-1], [1 << 62], [2])
        last = write.Squeeze(write.Slice(end, [1], [1 << 62], [3], [2]), [2])
    return cast(out, given.u.dtype), last
