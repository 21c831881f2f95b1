"""Some chunks of a sequence that are worked on at once: what each pass multiplies.

On a GPU the time of a chunked scan is that of its passes over memory, more than that of its matrix
products. So what decides here is how often something large is read and written. The largest, a
matrix of (chunk, chunk) for each head, takes two passes: ``exponents`` writes ``log(decay * dt)``
in one, from sums in float64, and :func:`weighted` reads it once, where it takes the exponential and
the product with ``C B`` together. That one operation wants exponents of at most 0: the greatest
of each chunk and head is taken off, as a power of two, which ``scale`` brings back with the smaller
factor of the product that follows. What is masked is so in ``C B``, which all heads share.

Axes: k (chunks), b (batch), g (groups), r (heads of a group), q (steps of a chunk), p (headdim),
n (dstate). Chunks come first, so that a state passes through all of them by one product of
matrices, (k + 1, k + 1) by (k + 1, p n), for each head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.in_place import addcmul

from .contract import Scan
from .steps import finite

# Measured on a CPU with 24 heads of 64 channels, dstate 128: 128 and 256 cost more elementwise
# work per step, 32 makes the products too small.
CHUNK = 64

# Elements of the (chunk, chunk) matrices of one block: within a CPU's caches (measured as above),
# elsewhere enough to fill a GPU and to make the launches few.
BLOCK_ELEMENTS_CPU = 1 << 20
BLOCK_ELEMENTS = 1 << 25

# A step that decays a state by exp(-1000) leaves nothing of it in any dtype. Sums of larger ones
# would only lose their digits.
MOST_DECAY = 1000.0
# In place of a step of 0, whose logarithm is no number: what it writes is then nothing beside
# any other, and its gradient is still found.
LEAST_STEP = 1e-20


class Block(NamedTuple):
    """``nchunks`` chunks of ``chunk`` steps each, from step ``start`` on."""

    start: int
    nchunks: int
    chunk: int

    def of(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, ...), as a view (nchunks, batch, chunk, ...)."""
        stop = self.start + self.nchunks * self.chunk
        chunks = torch.unflatten(tensor[:, self.start : stop], 1, (self.nchunks, self.chunk))
        return chunks.transpose(0, 1)


def blocks(scan: Scan, start: int, stop: int) -> list[Block]:
    """Blocks that cover the steps ``start:stop``; what is left of a chunk is one of its own."""
    batch, _, nheads, _ = scan.x.shape
    # Where states are rounded between chunks, these are as the caller says.
    chunk = CHUNK if scan.state_dtype is None else scan.chunk_size
    elements = BLOCK_ELEMENTS_CPU if scan.x.device.type == "cpu" else BLOCK_ELEMENTS
    most = max(1, elements // max(1, batch * nheads * chunk * chunk))
    whole = (stop - start) // chunk
    found = []
    while whole > 0:
        # Of one size, as far as they can be.
        count = -(-whole // -(-whole // most))
        found.append(Block(start, count, chunk))
        start += count * chunk
        whole -= count
    if start < stop:
        found.append(Block(start, 1, stop - start))
    return found


def operand_dtype(scan: Scan) -> torch.dtype:
    """What the backward pass multiplies pairs of steps in; sums are in the dtype of computation.

    bfloat16 where the tensors are that, of which products are exact, and where torch has products
    of it with sums in float32. Of all gradients that of x alone is further rounded by that.
    """
    narrow = torch.bfloat16
    has_products = hasattr(torch.ops.aten.bmm, "dtype") and scan.x.is_cuda
    is_narrow = all(each.dtype == narrow for each in (scan.x, scan.B, scan.C))
    return narrow if has_products and is_narrow and scan.dtype == torch.float32 else scan.dtype


def product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """``a @ b`` with results in ``dtype``, of tensors whose axes before the last two are the same.

    ``out`` is for factors of that dtype.
    """
    if out is None and a.dtype == dtype:
        return a @ b
    first, second = a.flatten(0, -3), b.flatten(0, -3)
    if out is not None:
        torch.bmm(first, second, out=out.flatten(0, -3))
        return out
    return torch.unflatten(torch.bmm(first, second, out_dtype=dtype), 0, a.shape[:-2])


def weighted(values: Tensor, exponents: Tensor, out: Tensor) -> Tensor:
    """``values * exp(exponents)`` in one pass, into out; the exponential of more than 0 is 1."""
    # With these constants the backward pass of an ELU is just that.
    torch.ops.aten.elu_backward.grad_input(values, 1, 1, 1, False, exponents, grad_input=out)
    return out


class Local:
    """One block in the dtype of computation, with the decays that it needs."""

    def __init__(self, scan: Scan, steps: Tensor, resets: Tensor | None, block: Block) -> None:
        self.block = block
        self.groups = scan.B.shape[2]
        self.dtype = steps.dtype
        self._scan = scan
        self.x = self.view(scan.x)
        self.B = self._per_group(scan.B)
        self.C = self._per_group(scan.C)
        self.dt = self.per_head(self.view(steps))
        # Signs can be left to no logarithm.
        self.signs: Tensor | None = None
        if not (scan.dt_softplus and scan.dt_limit[0] >= 0):
            self.signs = torch.where(self.dt < 0, -1.0, 1.0).to(self.dtype)

        # Decay from the start of the chunk through each step, and from after each step to the
        # end, (k, b, g, r, q); across the whole chunk, (k, b, g, r, 1).
        # The sums grow over a chunk while their differences decide: float64 keeps those exact.
        A = torch.unflatten(finite(scan.A.double()), 0, (self.groups, -1)).unsqueeze(-1)
        self._log = (self.dt * A).clamp_(min=-MOST_DECAY).cumsum_(-1)
        last = self._log[..., -1:]
        self.enter = self._log.to(self.dtype).exp()
        self.leave = (last - self._log).to(self.dtype).exp_()
        self.carry = last.to(self.dtype).exp()
        self._connected: Tensor | None = None
        self._passed: Tensor | None = None
        if resets is not None:
            count = block.of(resets)  # k b q
            before = functional.pad(resets, (1, 0))[:, block.start :: block.chunk].t()
            before = before[: block.nchunks].unsqueeze(-1)  # k b 1
            self._connected = (count.unsqueeze(-1) == count.unsqueeze(-2)).unsqueeze(2)
            self._passed = torch.cat([before, count[-1:, :, -1:]]).squeeze(-1)
            self.enter *= (count == before)[:, :, None, None]
            self.leave *= (count == count[..., -1:])[:, :, None, None]
            self.carry *= (count[..., -1:] == before)[:, :, None, None]
        self.sending = self.dt * self.leave

    def view(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, nheads, ...), as a view (k, b, q, g, r, ...)."""
        return torch.unflatten(self.block.of(tensor), 3, (self.groups, -1))

    def per_head(
        self, view: Tensor, factor: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """A view as (k, b, g, r, q, ...), times a factor (k, b, g, r, q), in memory of its own."""
        order = (0, 1, 3, 4, 2, 5)[: view.dim()]
        return self._laid(view.permute(order), factor, dtype)

    def per_step(self, view: Tensor, factor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A view, times a factor (k, b, g, r, q), as (k, b, g, q, r p), in memory of its own."""
        order = (0, 1, 3, 2, 4, 5)
        return self._laid(view.permute(order), factor.transpose(3, 4), dtype).flatten(4)

    def _laid(self, values: Tensor, factor: Tensor | None, dtype: torch.dtype | None) -> Tensor:
        dtype = dtype or self.dtype
        if factor is None and values.dtype == dtype:
            return values.contiguous()
        laid = torch.empty(values.shape, dtype=dtype, device=values.device)
        if factor is None:
            return laid.copy_(values)
        return torch.mul(values, factor.unsqueeze(-1), out=laid)

    def _per_group(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, groups, dstate), as (k, b, g, q, n)."""
        return self._laid(self.block.of(tensor).transpose(2, 3), None, None)

    def lengths(self) -> Tensor:
        """The steps without their signs, at least :data:`LEAST_STEP`."""
        lengths = self.dt if self.signs is None else self.dt.abs()
        return lengths.clamp(min=LEAST_STEP)

    def exponents(self) -> tuple[Tensor, Tensor]:
        """``log(decay * abs(dt))`` (k, b, g, r, q, q) from step j to step i, less the logarithm of
        the second result, ``scale`` (k, b, g, r, 1). At most 0 where ``j <= i``."""
        lengths = self.lengths().double().log_()
        sent = self._log - lengths
        if self.signs is None:
            # All steps of a head decay its state, or all let it grow.
            greatest = lengths.amax(-1, keepdim=True) + self._log[..., -1:].clamp(min=0)
        else:
            greatest = (self._log - sent.cummin(-1).values).amax(-1, keepdim=True)
        power = (greatest / math.log(2.0)).ceil_()
        power_log = power * math.log(2.0)
        rows = self._log - power_log
        size = rows.shape[-1]
        exponents = torch.empty((*rows.shape, size), dtype=self.dtype, device=rows.device)
        torch.sub(rows.unsqueeze(-1), sent.unsqueeze(-2), out=exponents)
        if self.dtype == torch.float64:
            # Large sums have lost digits of this dtype; a step with itself needs none of them.
            exponents.diagonal(dim1=-2, dim2=-1).copy_(lengths - power_log)
        return exponents, torch.exp2(power).to(self.dtype)

    def masked(self, pairs: Tensor) -> Tensor:
        """Pairs of steps (k, b, g, q, q), nothing where the first cannot see the second; in place.

        The second of a pair is the earlier one.
        """
        pairs.tril_()
        return pairs if self._connected is None else pairs.mul_(self._connected)

    def mixing(
        self, exponents: Tensor, scale: Tensor, dtype: torch.dtype, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``C B`` masked, (k, b, g, 1, q, q), and by what x is multiplied, over ``scale``: with the
        decays, the steps and D, unless D is per channel, (k, b, g, r, q, q)."""
        CB = self.masked(product(self.C, self.B.transpose(-1, -2), self.dtype)).unsqueeze(3)
        if out is None:
            out = torch.empty(exponents.shape, dtype=dtype, device=exponents.device)
        matrix = weighted(CB, exponents, out)
        if self.signs is not None:
            matrix *= self.signs.unsqueeze(-2)
        D = self._scan.D
        if D is not None and D.dim() == 1:
            D = torch.unflatten(D.to(self.dtype), 0, (self.groups, -1)).unsqueeze(-1)
            matrix.diagonal(dim1=-2, dim2=-1).add_(D / scale)
        return CB, matrix

    def channels_of_d(self) -> Tensor | None:
        """A D per channel, (g, r, p), in the dtype of computation."""
        D = self._scan.D
        if D is None or D.dim() == 1:
            return None
        return torch.unflatten(D.to(self.dtype), 0, (self.groups, -1))

    def read(self, starts: Tensor) -> Tensor:
        """What each step reads of the state before its chunk, undecayed, (k, b, q, g, r, p)."""
        return self.heads(product(self.C, starts.transpose(-1, -2), self.dtype))

    def output(self, read: Tensor, out: Tensor | None = None) -> Tensor:
        """``y`` before the gate, (k, b, q, g, r, p), where asked for into a tensor of any dtype."""
        exponents, scale = self.exponents()
        matrix = self.mixing(exponents, scale, self.dtype, out=exponents)[1]
        inside = product(matrix, self.per_head(self.x, scale), self.dtype)
        del matrix, exponents
        terms = (inside.permute(0, 1, 4, 2, 3, 5), read, self.along(self.enter))
        D = self.channels_of_d()
        if D is None:
            return addcmul(*terms, out=out)
        return addcmul(torch.addcmul(*terms), self.x, D, out=out)

    def heads(self, values: Tensor) -> Tensor:
        """(k, b, g, q, r p) as a view (k, b, q, g, r, p)."""
        return torch.unflatten(values, -1, (-1, self.x.shape[-1])).transpose(2, 3)

    def along(self, factor: Tensor) -> Tensor:
        """(k, b, g, r, q) as a view (k, b, q, g, r, 1)."""
        return factor.permute(0, 1, 4, 2, 3).unsqueeze(-1)

    def _passing(self, back: bool) -> Tensor:
        """How :meth:`pass_on` multiplies, (b, g, r, k, k)."""
        total = functional.pad(self._log[..., -1].cumsum(0), (0, 0) * 3 + (1, 0))
        total = (total[1:] if back else total[:-1]).permute(1, 2, 3, 0)
        # The upper half is left out after exp: there the difference is positive.
        left = (total.unsqueeze(-1) - total.unsqueeze(-2)).exp_().tril_().to(self.dtype)
        if self._passed is not None:
            passed = (self._passed[1:] if back else self._passed[:-1]).t()
            left *= (passed.unsqueeze(-1) == passed.unsqueeze(-2))[:, None, None]
        return left.transpose(-1, -2) if back else left

    def states(self, state: Tensor, last: bool = True) -> tuple[Tensor, Tensor]:
        """The states at the start of each chunk, (k, b, g, r p, n), and after the last one.

        Without ``last`` the second of these may be any state, to save the work.
        """
        count = self.block.nchunks
        if count == 1 and not last:
            return state.unsqueeze(0), state
        sources = torch.empty((count + 1, *state.shape), dtype=self.dtype, device=state.device)
        sources[0] = state
        left = self.per_step(self.x, self.sending)
        product(left.transpose(-1, -2), self.B, self.dtype, out=sources[1:])
        del left
        starts = self.pass_on(sources[:-1])
        # In memory of its own: it is kept for long, and the others are not.
        return starts, torch.addcmul(sources[-1], starts[-1], self.kept(-1))

    def kept(self, chunk: int) -> Tensor:
        """What a chunk leaves of the state before it, (b, g, r p, 1)."""
        return self.carry[chunk].repeat_interleave(self.x.shape[-1], 2)

    def pass_on(self, sources: Tensor, *, back: bool = False) -> Tensor:
        """The state before each chunk, of what the block starts from and each chunk but the last
        adds to it, (k, b, g, r p, n). ``back``: the gradients after each chunk, of those of the
        states before each chunk but the first and after the last."""
        count = sources.shape[0]
        if count == 1:
            return sources
        passing = self._passing(back).flatten(0, 2)
        carried = torch.empty_like(sources)
        torch.bmm(
            passing,
            sources.view(count, len(passing), -1).transpose(0, 1),
            out=carried.view(count, len(passing), -1).transpose(0, 1),
        )
        return carried
