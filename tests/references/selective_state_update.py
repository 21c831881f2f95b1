"""One step of the selective scan as plain loops, in float64: what the op is held to.

Written from Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
section 3.2, and Dao and Gu, "Transformers are SSMs", section 7.1, element by element.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def selective_state_update_reference(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, every state afterwards), in float64, every argument having its axis of heads.

    state (states, nheads, dim, dstate); x, dt and z (batch, nheads, dim); A (nheads, dim, dstate);
    B and C (batch, ngroups, dstate); D and dt_bias (nheads, dim).
    """
    batch, nheads, dim = x.shape
    states = state.double().clone()
    out = torch.zeros(batch, nheads, dim, dtype=torch.float64)
    slots = range(batch) if state_batch_indices is None else state_batch_indices.tolist()
    for sequence, slot in enumerate(slots):
        if slot < 0:
            continue
        for head in range(nheads):
            group = head // (nheads // B.shape[1])
            reads, writes = C[sequence, group].double(), B[sequence, group].double()
            for channel in range(dim):
                step = float(dt[sequence, head, channel])
                value = float(x[sequence, head, channel])
                if dt_bias is not None:
                    step += float(dt_bias[head, channel])
                if dt_softplus:
                    step = step if step > 20.0 else math.log1p(math.exp(step))
                decay = torch.exp(step * A[head, channel].double())
                row = decay * states[slot, head, channel] + step * value * writes
                states[slot, head, channel] = row
                result = float(row @ reads)
                if D is not None:
                    result += float(D[head, channel]) * value
                if z is not None:
                    gate = float(z[sequence, head, channel])
                    result *= gate / (1.0 + math.exp(-gate))
                out[sequence, head, channel] = result
    return out, states
