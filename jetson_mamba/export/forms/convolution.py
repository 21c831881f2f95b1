"""The causal convolution in ONNX: a depthwise ``Conv`` behind what came before."""

from __future__ import annotations

from typing import Any

import numpy as np

from .writer import Value, Writer

_TO_THE_END = np.iinfo(np.int64).max


def convolution(
    write: Writer,
    x: Value,
    weight: Value,
    bias: Value,
    initial_states: Value,
    return_final_states: bool,
    silu: bool,
) -> tuple[Any, Any]:
    """Output (batch, dim, seqlen), and what came last (batch, dim, width - 1) or nothing."""
    dim, width = weight.shape
    if initial_states is None:
        inputs = write.Pad(x, [width - 1, 0], None, [2])
    else:
        inputs = write.Concat(initial_states, x, axis=2)
    out = write.Conv(
        write.wide(inputs),
        write.Unsqueeze(write.wide(weight), [1]),
        None if bias is None else write.wide(bias),
        group=int(dim),
    )
    if silu:
        out = write.silu(out)
    final_states = None
    if return_final_states:
        final_states = write.Slice(inputs, [1 - width], [_TO_THE_END], [2])
    return write.like(out, x), final_states
