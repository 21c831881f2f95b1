"""The selective scan in ONNX, in a form with a loop or in one without.

``scan`` is ONNX's own loop, with everything that a step takes in its body: nothing is kept but
the state. ``blocks`` has no loop. TensorRT asks for that, since its loops take no length that is
left open; it unrolls blocks of steps side by side, and what the blocks hand on is the same
recurrence over fewer steps. In both no decay is divided by and no sum of decays taken from another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import onnx_ir as ir

from .writer import Value, Writer

BLOCK = 8


class SelectiveScan(NamedTuple):
    """The arguments, as ``ops/selective_scan/contract.py`` has them; A is real."""

    u: Value
    delta: Value
    A: Value
    B: Value
    C: Value
    D: Value
    z: Value
    delta_bias: Value
    delta_softplus: bool
    # The longest sequence, or None if it is left open.
    longest: int | None
    # Whether anything reads the last state.
    returns_state: bool

    @property
    def groups(self) -> int:
        """Those of B and C; a weight that does not vary in time has none."""
        return next((int(w.shape[1]) for w in (self.B, self.C) if len(w.shape) == 4), 1)


def scan(write: Writer, given: SelectiveScan) -> tuple[Any, Any]:
    """The output (batch, dim, seqlen) and the last state (batch, dim, dstate), by ONNX's loop."""
    signal, steps = _signal_and_steps(write, given)
    (dim, dstate), groups = given.A.shape, given.groups
    heads = [groups, dim // groups]

    def by_step(value: Any) -> Any:
        """(batch, dim, seqlen) as (seqlen, batch, groups, channels)."""
        return write.Reshape(write.Transpose(value, perm=[2, 0, 1]), [0, 0, *heads])

    A = write.Reshape(write.wide(given.A), [*heads, dstate])
    batch = write.size(given.u, 0)
    first = write.Expand(0.0, write.Concat(batch, [*heads, dstate], axis=0))
    scanned = [by_step(steps), by_step(write.Mul(steps, signal))]
    body = write.within("step")
    open_batch = given.u.shape[0]
    state = _input("state", body, [open_batch, *heads, dstate])
    step = _input("step", body, [open_batch, *heads])
    driven = _input("driven", body, [open_batch, *heads])
    inputs = [state, step, driven]
    weights = []
    for name, weight in (("B", given.B), ("C", given.C)):
        if len(weight.shape) == 2:
            weights.append(write.Reshape(write.wide(weight), [*heads, dstate]))
            continue
        scanned.append(write.Transpose(write.wide(weight), perm=[3, 0, 1, 2]))
        inputs.append(_input(name, body, [open_batch, groups, dstate]))
        weights.append(body.Unsqueeze(inputs[-1], [2]))
    decay = body.Exp(body.Mul(body.Unsqueeze(step, [-1]), A))
    after = body.Add(body.Mul(decay, state), body.Mul(body.Unsqueeze(driven, [-1]), weights[0]))
    if len(given.C.shape) == 4:
        read = body.Squeeze(body.MatMul(after, body.Unsqueeze(inputs[-1], [-1])), [-1])
    else:
        read = body.ReduceSum(body.Mul(after, weights[1]), [-1], keepdims=0)
    for result, like in ((after, state), (read, step)):
        result.shape, result.type = like.shape, like.type
    graph = ir.Graph(inputs, [after, read], nodes=body.nodes, name=body.name)
    last, y = write.Scan(first, *scanned, outputs=2, body=graph, num_scan_inputs=len(scanned))
    y = write.Transpose(write.Reshape(y, [0, 0, dim]), perm=[1, 2, 0])
    return _gated(write, given, y, signal), write.Reshape(last, [0, dim, dstate])


def blocks(write: Writer, given: SelectiveScan) -> tuple[Any, Any]:
    """The output and the last state as of :func:`scan`, without a loop."""
    signal, steps = _signal_and_steps(write, given)
    (dim, dstate), groups = given.A.shape, given.groups
    heads = [groups, dim // groups]

    def by_step(value: Any) -> Any:
        """(batch, dim, seqlen) as (batch, seqlen, groups, channels, 1)."""
        return write.Reshape(write.Transpose(value, perm=[0, 2, 1]), [0, 0, *heads, 1])

    def weight(value: Value, shape: list[int]) -> Any:
        """B or C, (batch, seqlen, groups, *shape) or (groups, channels, dstate)."""
        if len(value.shape) == 2:
            return write.Reshape(write.wide(value), [*heads, dstate])
        turned = write.Transpose(write.wide(value), perm=[0, 3, 1, 2])
        return write.Reshape(turned, [0, 0, groups, *shape])

    A = write.Reshape(write.wide(given.A), [*heads, dstate])
    decays = write.Exp(write.Mul(by_step(steps), A))
    driven = write.Mul(by_step(write.Mul(steps, signal)), weight(given.B, [1, dstate]))
    tail = [*heads, dstate]
    states, last = _recurrence(write, decays, driven, write.size(given.u, 2), tail, given.longest)
    if len(given.C.shape) == 4:
        y = write.MatMul(states, weight(given.C, [dstate, 1]))
    else:
        y = write.ReduceSum(write.Mul(states, weight(given.C, [])), [-1], keepdims=0)
    y = write.Transpose(write.Reshape(y, [0, -1, dim]), perm=[0, 2, 1])
    return _gated(write, given, y, signal), write.Reshape(last, [0, dim, dstate])


def _recurrence(
    write: Writer,
    decays: Any,
    inputs: Any,
    steps: Any,
    tail: list[int],
    longest: int | None,
) -> tuple[Any, Any]:
    """``h[t] = decays[t] h[t-1] + inputs[t]`` of (batch, steps, *tail), and the last ``h``.

    Where the length is left open, a runtime refuses one that is too long for the memory of any
    board: the last level has ``BLOCK`` steps, and sizes do not fit then.
    """
    longest = BLOCK**6 if longest is None else longest
    by_block = [0, -1, BLOCK, *tail]
    decays = write.Reshape(write.padded(decays, 1, steps, BLOCK, 1.0), by_block)
    inputs = write.Reshape(write.padded(inputs, 1, steps, BLOCK, 0.0), by_block)
    each_decay = write.Split(decays, outputs=BLOCK, axis=2, num_outputs=BLOCK)
    each_input = write.Split(inputs, outputs=BLOCK, axis=2, num_outputs=BLOCK)
    inner, passed = [each_input[0]], [each_decay[0]]
    for decay, driven in zip(each_decay[1:], each_input[1:]):
        inner.append(write.Add(write.Mul(decay, inner[-1]), driven))
        passed.append(write.Mul(decay, passed[-1]))
    states = write.Concat(*inner, axis=2)
    ends = write.Squeeze(inner[-1], [2])  # batch, blocks, *tail
    if longest <= BLOCK:
        last = ends
    else:
        count = write.Div(write.Add(steps, [BLOCK - 1]), [BLOCK])
        through = write.Squeeze(passed[-1], [2])
        ends, last = _recurrence(write, through, ends, count, tail, -(-longest // BLOCK))
        before = write.Slice(write.Pad(ends, [1, 0], None, [1]), [0], [-1], [1])
        handed_on = write.Mul(write.Concat(*passed, axis=2), write.Unsqueeze(before, [2]))
        states = write.Add(states, handed_on)
    states = write.Reshape(states, [0, -1, *tail])
    return write.Slice(states, [0], steps, [1]), last


def _signal_and_steps(write: Writer, given: SelectiveScan) -> tuple[Any, Any]:
    steps = write.wide(given.delta)
    if given.delta_bias is not None:
        steps = write.Add(steps, write.Unsqueeze(write.wide(given.delta_bias), [-1]))
    return write.wide(given.u), write.Softplus(steps) if given.delta_softplus else steps


def _gated(write: Writer, given: SelectiveScan, y: Any, signal: Any) -> Any:
    if given.D is not None:
        y = write.Add(y, write.Mul(signal, write.Unsqueeze(write.wide(given.D), [-1])))
    if given.z is not None:
        y = write.Mul(y, write.silu(write.wide(given.z)))
    return write.like(y, given.u)


def _input(name: str, write: Writer, shape: list[Any]) -> Value:
    kind = ir.TensorType(write.onnx_dtype)
    return ir.Value(name=f"{write.name}.{name}", shape=ir.Shape(shape), type=kind)
