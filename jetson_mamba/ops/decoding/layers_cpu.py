"""A layer's step between its norms on a CPU, in as few operations as its data allow.

There a token takes as long as the weights' bytes, and whatever else it does comes on top: each
operation a few microseconds of torch's own, and where torch divides one among threads, a wait that
lasts as long as the system lets a thread stand. So there are few, on no more elements than the
calling thread takes by itself; and no ``exp``, which MKL divides whatever its size, but ``exp2``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch import workers

from .layers_cuda import ACTIVATIONS, OfMamba, OfMamba2, Weights, need
from .products_cpu import product
from .pytorch import LOG2_E

STATES = (torch.float32, torch.bfloat16, torch.float16)
# Of states, that the calling thread takes part by part. More are divided among threads.
MOST_ALONE = 16 * workers.GRAIN


class _Layer:
    """What the steps of both kinds have in common."""

    # No device of CUDA is to be the current one.
    index = None

    def __init__(
        self, hidden: Tensor, conv: Tensor, states: Tensor, activation: Any, weights: Weights
    ) -> None:
        for tensor in (hidden, conv, *weights):
            need(tensor is None or tensor.dtype == torch.float32)
        need(states.dtype in STATES and activation in ACTIVATIONS)
        need(states.numel() > 0 and all(states.stride()) and all(conv.stride()))
        self._activates = activation is not None
        # A sum along so short an axis takes twice as long.
        self._ones = torch.ones(conv.shape[-1])

    def chain_of(self, weights: Weights) -> None:
        """There are no launches."""

    def convolved(self, x: Tensor, state: Tensor, filter: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution of one more input, (batch, channels), which the state takes in."""
        latest = torch.cat([state[..., 1:], x.unsqueeze(-1)], dim=-1)
        state.copy_(latest)
        out = torch.mv(latest.mul_(filter.squeeze(1)).flatten(0, 1), self._ones).view(x.shape)
        if bias is not None:
            out.add_(bias)
        return functional.silu(out, inplace=True) if self._activates else out


def decay_of(A_log: Tensor, dt: Tensor) -> Tensor:
    """``exp(-exp(A_log) * dt)``, by ``exp2``."""
    return ((A_log * LOG2_E).exp2_() * (dt * -LOG2_E)).exp2_()


class Mamba(_Layer):
    """The step of ``Mamba`` for tensors like these; raises as that of ``layers_cuda`` does."""

    def __init__(
        self, of: OfMamba, hidden: Tensor, conv: Tensor, states: Tensor, weights: Weights
    ) -> None:
        super().__init__(hidden, conv, states, of.activation, weights)
        W_in, _, filter, _, W_x, x_bias, W_dt, _, W_out, _, A_log, _ = weights
        need(not any(each is None for each in (W_in, filter, W_x, W_dt, W_out, A_log)))
        assert A_log is not None
        need(x_bias is None and states.shape == (hidden.shape[0], *A_log.shape))
        self._sizes = [of.dt_rank, of.d_state, of.d_state]

    def __call__(
        self,
        chain: Any,
        block: Any,
        hidden: Tensor,
        conv: Tensor,
        states: Tensor,
        weights: Any,
    ) -> Tensor:
        """The result, (batch, 1, d_model); both states are written."""
        W_in, in_bias, filter, filter_bias, W_x, _, W_dt, dt_bias, W_out, out_bias, A_log, D = (
            weights
        )
        x, z = product(hidden.squeeze(1), W_in, in_bias).chunk(2, dim=1)
        x = self.convolved(x, conv, filter, filter_bias)
        dt, B, C = product(x, W_x, None).split(self._sizes, dim=1)
        dt = functional.softplus(product(dt, W_dt, dt_bias))
        decay = decay_of(A_log, dt.unsqueeze(-1))
        y = stepped(states, decay, (dt * x).unsqueeze(-1), B.unsqueeze(1), C.unsqueeze(1))
        if D is not None:
            y.addcmul_(D, x)
        y.mul_(functional.silu(z))
        return product(y, W_out, out_bias).unsqueeze(1)


class Mamba2(_Layer):
    """The step of ``Mamba2`` for tensors like these; raises as :class:`Mamba` does."""

    def __init__(
        self, of: OfMamba2, hidden: Tensor, conv: Tensor, states: Tensor, weights: Weights
    ) -> None:
        super().__init__(hidden, conv, states, of.activation, weights)
        W_in, _, filter, _, W_out, _, dt_bias, A_log, D, norm = weights
        need(not any(each is None for each in (W_in, filter, W_out, A_log)))
        assert W_in is not None and A_log is not None
        self._of, nheads = of, A_log.shape[0]
        need((norm is not None) == of.rmsnorm and nheads % of.ngroups == 0)
        for each in (A_log, D, dt_bias):
            need(each is None or each.shape == (nheads,))
        need(states.shape == (hidden.shape[0], nheads, of.headdim, of.d_state))
        wide = of.d_ssm + 2 * of.ngroups * of.d_state
        need(nheads * of.headdim == of.d_ssm and conv.shape[1] == wide)
        # The part beside the heads that some layers have makes rows longer.
        need(W_in.shape[0] == of.d_ssm + wide + nheads)
        self._sizes = [of.d_ssm, wide, nheads]
        of_groups = of.ngroups * of.d_state
        self._parts = [of.d_ssm, of_groups, of_groups]
        self._repeats = nheads // of.ngroups

    def __call__(
        self,
        chain: Any,
        block: Any,
        hidden: Tensor,
        conv: Tensor,
        states: Tensor,
        weights: Any,
    ) -> Tensor:
        """The result, (batch, 1, d_model); both states are written."""
        W_in, in_bias, filter, filter_bias, W_out, out_bias, dt_bias, A_log, D, norm = weights
        of = self._of
        z, xBC, dt = product(hidden.squeeze(1), W_in, in_bias).split(self._sizes, dim=1)
        xBC = self.convolved(xBC, conv, filter, filter_bias)
        x, B, C = xBC.split(self._parts, dim=1)
        x = torch.unflatten(x, 1, (-1, of.headdim))
        dt = functional.softplus(dt if dt_bias is None else dt + dt_bias)
        decay = decay_of(A_log, dt)
        B, C = self._by_head(B), self._by_head(C)
        entering = (dt.unsqueeze(-1) * x).unsqueeze(-1)
        y = stepped(states, decay.view(*decay.shape, 1, 1), entering, B, C)
        if D is not None:
            y.addcmul_(D.unsqueeze(-1), x)
        y = y.flatten(1)
        if norm is None:
            y.mul_(functional.silu(z))
        else:
            y = self._normed(y, z, norm)
        return product(y, W_out, out_bias).unsqueeze(1)

    def _by_head(self, of_groups: Tensor) -> Tensor:
        """(batch, nheads or 1, 1, dstate)."""
        by_group = of_groups.view(of_groups.shape[0], self._of.ngroups, 1, self._of.d_state)
        if self._of.ngroups == 1:
            return by_group
        return by_group.repeat_interleave(self._repeats, dim=1)

    def _normed(self, y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """The gated norm."""
        of, gate = self._of, functional.silu(z)
        if not of.norm_before_gate:
            y.mul_(gate)
        groups = y.view(y.shape[0], -1, of.group_size or y.shape[1])
        scale = groups.square().mean(-1, keepdim=True).add_(of.eps).rsqrt_()
        y = groups.mul_(scale).view(y.shape).mul_(weight)
        return y.mul_(gate) if of.norm_before_gate else y


def stepped(states: Tensor, decay: Tensor, entering: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """Let states decay, take in what enters times B, and read them out by C.

    Shapes: states (batch, heads or channels, ..., dstate); the others are those or 1.
    """
    elements, count = states.numel(), states.shape[1]
    threads = workers.threads_for(elements)
    if threads == 1:
        return _stepped(states, decay, entering, B, C)
    if elements > MOST_ALONE:
        some = -(-count // threads)
    else:
        # No more than torch leaves to the thread that asks; of other threads it leaves all to each.
        threads, some = 1, max(1, count * (workers.GRAIN - 1) // elements)
    out = torch.empty(states.shape[:-1])

    def of_some(first: int) -> None:
        own = slice(first, first + some)
        parts = [each[:, own] if each.shape[1] > 1 else each for each in (decay, entering, B, C)]
        out[:, own] = _stepped(states[:, own], *parts)

    workers.run([partial(of_some, first) for first in range(0, count, some)], threads)
    return out


def _stepped(states: Tensor, decay: Tensor, entering: Tensor, B: Tensor, C: Tensor) -> Tensor:
    after = states if states.dtype == torch.float32 else states.float()
    after.mul_(decay).addcmul_(entering, B)
    if after is not states:
        states.copy_(after)
    if C.shape[1:-1].numel() > 1:  # some heads have one, and some another
        return (after * C).sum(-1)
    read = [torch.mv(own.flatten(0, -2), by.flatten()) for own, by in zip(after, C)]
    return (read[0] if len(read) == 1 else torch.stack(read)).view(after.shape[:-1])
