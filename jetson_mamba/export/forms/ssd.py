"""Mamba-2's scan in ONNX, by chunks or by ONNX Runtime's ``LinearAttention``.

``chunks`` multiplies each chunk by a masked matrix, and passes the state between chunks by one
more. Each sum of decays is taken by itself, in a product of matrices: no difference of two sums
cancels, so that float32 is enough. Axes: b (batch), k (chunks), q (steps of a chunk), g (groups),
r (heads of a group), p (headdim), n (dstate).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .writer import Value, Writer

CHUNK = 64
# The logarithm of a decay to nothing, of which sums are finite.
GONE = -1e4


class SsdScan(NamedTuple):
    """The arguments, as ``ops/ssd/contract.py`` has them."""

    x: Value
    dt: Value
    A: Value
    B: Value
    C: Value
    D: Value
    dt_bias: Value
    initial_states: Value
    dt_softplus: bool
    dt_limit: tuple[float, float]


def chunks(write: Writer, given: SsdScan) -> tuple[Any, Any]:
    """The output before the gate (batch, seqlen, nheads, headdim), and the last state."""
    nheads, headdim = given.x.shape[2:]
    groups, dstate = given.B.shape[2:]
    heads = [groups, nheads // groups]
    steps = _steps(write, given)
    seqlen = write.size(given.x, 1)

    def chunked(value: Any, tail: list[int], perm: list[int]) -> Any:
        padded = write.padded(value, 1, seqlen, CHUNK, 0.0)
        return write.Transpose(write.Reshape(padded, [0, -1, CHUNK, *tail]), perm=perm)

    x = write.wide(given.x)
    u = write.Mul(x, write.Unsqueeze(steps, [-1]))
    u = chunked(u, [*heads, headdim], [0, 1, 3, 4, 2, 5])  # b k g r q p
    log = write.Max(write.Mul(steps, _rates(write, given)), GONE)
    log = chunked(log, [*heads, 1], [0, 1, 3, 4, 2, 5])  # b k g r q 1
    B = chunked(write.wide(given.B), [groups, dstate], [0, 1, 3, 4, 2])  # b k g n q
    C = chunked(write.wide(given.C), [groups, dstate], [0, 1, 3, 2, 4])  # b k g q n

    lower = np.tril(np.ones((CHUNK, CHUNK), write.dtype))
    after = np.tril(np.ones((CHUNK, CHUNK), write.dtype), -1)
    decay = write.Mul(write.Exp(write.MatMul(lower, write.Mul(log, after))), lower)
    matrix = write.Mul(write.Unsqueeze(write.MatMul(C, B), [3]), decay)
    inside = write.MatMul(matrix, u)

    last_row = write.Slice(decay, [-1], [CHUNK], [4])  # b k g r 1 q
    leaving = write.Mul(u, write.Transpose(last_row, perm=[0, 1, 2, 3, 5, 4]))
    added = write.MatMul(write.Unsqueeze(B, [3]), leaving)  # b k g r n p
    added = write.Transpose(added, perm=[0, 2, 3, 1, 4, 5])
    added = write.Reshape(added, [0, *heads, -1, dstate * headdim])
    if given.initial_states is None:
        added = write.Pad(added, [1, 0], None, [3])
    else:
        first = write.Transpose(write.wide(given.initial_states), perm=[0, 1, 3, 2])
        first = write.Reshape(first, [0, *heads, 1, dstate * headdim])
        added = write.Concat(first, added, axis=3)
    through = write.Max(write.ReduceSum(log, [4], keepdims=0), GONE)  # b k g r 1
    through = write.Transpose(through, perm=[0, 2, 3, 1, 4])
    through = write.Pad(through, [1, 0], None, [3])  # b g r k+1 1
    places = write.Range(0, write.Squeeze(write.size(added, 3)), 1)
    to, since = write.Unsqueeze(places, [1]), write.Unsqueeze(places, [0])
    seen = write.Cast(write.GreaterOrEqual(to, since), to=write.onnx_dtype.value)
    since_then = write.Cast(write.Greater(to, since), to=write.onnx_dtype.value)
    between = write.Exp(write.MatMul(seen, write.Mul(through, since_then)))
    carried = write.MatMul(write.Mul(between, seen), added)  # b g r k+1 (n p)

    starts = write.Slice(carried, [0], [-1], [3])
    starts = write.Reshape(starts, [0, *heads, -1, dstate, headdim])
    starts = write.Transpose(starts, perm=[0, 3, 1, 2, 4, 5])
    entering = write.Exp(write.MatMul(lower, log))  # b k g r q 1
    read = write.Mul(write.MatMul(write.Unsqueeze(C, [3]), starts), entering)
    out = write.Transpose(write.Add(inside, read), perm=[0, 1, 4, 2, 3, 5])
    out = write.Slice(write.Reshape(out, [0, -1, nheads, headdim]), [0], seqlen, [1])
    state = write.Slice(carried, [-1], [np.iinfo(np.int64).max], [3])
    state = write.Transpose(write.Reshape(state, [0, nheads, dstate, headdim]), perm=[0, 1, 3, 2])
    return _with_skip(write, given, out, x), state


def attention(write: Writer, given: SsdScan) -> tuple[Any, Any]:
    """The same by one node of ONNX Runtime's own domain: C asks, B answers, x is what is said."""
    nheads, headdim = given.x.shape[2:]
    groups, dstate = given.B.shape[2:]
    steps = _steps(write, given)
    x = write.wide(given.x)

    def per_head(weight: Value) -> Any:
        """(batch, seqlen, groups, dstate) as (batch, seqlen, nheads * dstate)."""
        wide = write.Unsqueeze(write.wide(weight), [3])
        repeats = [1, 1, 1, nheads // groups, 1]
        return write.Reshape(write.Tile(wide, repeats), [0, 0, nheads * dstate])

    values = write.Reshape(write.Mul(x, write.Unsqueeze(steps, [-1])), [0, 0, nheads * headdim])
    first = None
    if given.initial_states is not None:
        first = write.Transpose(write.wide(given.initial_states), perm=[0, 1, 3, 2])
    decay = write.Max(write.Mul(steps, _rates(write, given)), GONE)
    out, state = write.LinearAttention(
        *(per_head(given.C), per_head(given.B), values, first, decay),
        outputs=2,
        q_num_heads=int(nheads),
        kv_num_heads=int(nheads),
        update_rule="gated",
        scale=1.0,
    )
    out = write.Reshape(out, [0, 0, nheads, headdim])
    return _with_skip(write, given, out, x), write.Transpose(state, perm=[0, 1, 3, 2])


def _steps(write: Writer, given: SsdScan) -> Any:
    steps = write.wide(given.dt)
    if given.dt_bias is not None:
        steps = write.Add(steps, write.wide(given.dt_bias))
    if given.dt_softplus:
        steps = write.Softplus(steps)
    least, most = given.dt_limit
    if least > -math.inf and not (given.dt_softplus and least <= 0):
        steps = write.Max(steps, float(least))
    return steps if most == math.inf else write.Min(steps, float(most))


def _rates(write: Writer, given: SsdScan) -> Any:
    """A, without infinity, of which a step of 0 would make no number."""
    return write.Max(write.wide(given.A), float(np.finfo(np.float32).min))


def _with_skip(write: Writer, given: SsdScan, out: Any, x: Any) -> Any:
    if given.D is not None:
        D = write.wide(given.D)
        D = write.Unsqueeze(D, [-1]) if len(given.D.shape) == 1 else D
        out = write.Add(out, write.Mul(x, D))
    return write.like(out, given.x)
