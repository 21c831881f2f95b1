"""A layer's step between its norms, in as few kernels as its data allow: four, or three.

A product needs all of a vector, so a kernel ends where a vector is complete. What is between two
products is done by one of them, or by one kernel of its own: the convolution by the product of its
inputs, the gated norm by the product of its results, the step size's projection and the update of
the states together. What a kernel does not get from the one before, it loads while that drains.

With more sequences than a product of few vectors takes, products, convolution and norm are those of
a whole pass. With few, a layer has a *chain* of launches for the weights of each block.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jetson_mamba.kernels import chains, compiler
from jetson_mamba.kernels.chains import Chain, Place
from jetson_mamba.kernels.tensors import NUMBERS, VECTOR_BYTES, address, index_of, processors

from ..causal_conv1d import causal_conv1d_update
from ..norms import contract as norms
from ..norms import cuda as norms_cuda
from .contract import Case, Step
from .cuda import plan_of
from .products import MOST_VECTORS, Convolved, Product, product

# States that a thread has of a channel of Mamba, and the threads of a block.
STATES, THREADS = 4, 128
# Columns of a vector that every team of a product gates and normalises for itself. With more, and
# with several vectors, that takes as long as a kernel of its own.
MOST_NORMED = 2048
ACTIVATIONS = (None, "silu", "swish")

# What a chain is told the addresses of: the block's arguments, what is between its kernels, and the
# result.
HIDDEN, CONV_STATE, STATE, ROOM, OUT = range(5)
# Bytes that a part of the room begins at a multiple of.
ALIGNMENT = 256

Weights = Tuple[Optional[Tensor], ...]


class NotServed(Exception):
    """A step is none of the kernels'."""


class OfMamba(NamedTuple):
    """What a step of ``Mamba`` reads of its block beside tensors."""

    dt_rank: int
    d_state: int
    activation: str


class OfMamba2(NamedTuple):
    """What a step of ``Mamba2`` reads of its block and its norm beside tensors."""

    d_ssm: int
    ngroups: int
    d_state: int
    headdim: int
    activation: str
    rmsnorm: bool
    eps: float
    group_size: int | None
    norm_before_gate: bool


class _Layer:
    """What the steps of both kinds have in common: their products, and the convolution."""

    def __init__(
        self,
        hidden: Tensor,
        conv_state: Tensor,
        activation: Any,
        filters: Weights,
        *others: Weights,
    ) -> None:
        filter, filter_bias = filters
        self.batch, self.dtype = hidden.shape[0], hidden.dtype
        self.index = index_of(hidden.device)
        self.processors = processors(self.index)
        self.few = self.batch <= MOST_VECTORS
        self.activation = activation
        self.size = hidden.element_size()
        need(self.dtype in NUMBERS and activation in ACTIVATIONS and filter is not None)
        assert filter is not None
        for tensor in (conv_state, *(each for pair in others for each in pair)):
            need(tensor is None or tensor.dtype == self.dtype)
        for tensor in (filter, filter_bias, *(each for pair in others for each in pair)):
            need(tensor is None or tensor.is_contiguous())
        need(filter_bias is None or filter_bias.dtype == filter.dtype)
        need(filter.dtype in NUMBERS and filter.shape[-1] > 1)
        need((self.batch, *filter.shape[::2]) == conv_state.shape)
        need(all(conv_state.stride()))  # what is expanded cannot be written
        need(hidden.stride(-1) == 1 and hidden.data_ptr() % VECTOR_BYTES == 0)
        need(self.batch == 1 or hidden.stride(0) * self.size % VECTOR_BYTES == 0)
        self.device = hidden.device

    def product(self, weight: Tensor, strides: tuple[int, int], **more: Any) -> Product:
        """A product of few vectors."""
        found = product(weight, self.batch, strides, self.processors, self.index, **more)
        need(found is not None)
        assert found is not None
        return found

    def convolved(self, first: int, state: Tensor, filters: Weights) -> Convolved:
        """The convolution that follows the first product, from a row of that on."""
        filter, filter_bias = filters
        assert filter is not None
        return Convolved(first, state, filter.squeeze(1), filter_bias, self.activation is not None)

    def chain(self, *launches: tuple[compiler.Launch, tuple[int | Place, ...]]) -> Chain:
        """Launches of a step, one after another."""
        return chains.Chain(launches, OUT + 1)

    def parts(self, *columns: int) -> list[int]:
        """Where parts of so many columns begin in the room, in bytes; last, its size in numbers."""
        starts = [0]
        for count in columns:
            size = self.batch * count * self.size
            starts.append(starts[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
        starts[-1] //= self.size
        return starts

    def launched(
        self, chain: Chain, hidden: Tensor, conv: Tensor, states: Tensor, size: int, width: int
    ) -> Tensor:
        """The result of a chain, (batch, 1, width), with a room of ``size`` numbers."""
        # The quickest of what makes a tensor; a step's result mostly looks like what it is given.
        room = hidden.new_empty_strided((size,), (1,))
        shape = (self.batch, 1, width)
        if hidden.shape == shape and hidden.is_contiguous():
            out = torch.empty_like(hidden)
        else:
            out = self.empty(*shape)
        chain(
            *(self.index, hidden.data_ptr(), conv.data_ptr(), states.data_ptr()),
            *(room.data_ptr(), out.data_ptr()),
        )
        return out

    def convolve(self, x: Tensor, state: Tensor, filter: Tensor, bias: Tensor | None) -> Tensor:
        """The same by itself."""
        out: Tensor = causal_conv1d_update(x, state, filter.squeeze(1), bias, self.activation)
        return out.contiguous()

    def empty(self, *shape: int) -> Tensor:
        """A tensor for results."""
        return torch.empty(shape, dtype=self.dtype, device=self.device)


class Mamba(_Layer):
    """The step of ``Mamba`` for tensors like these; raises :class:`NotServed`.

    The weights are those of in_proj, conv1d, x_proj, dt_proj and out_proj, each with its bias, and
    A_log and D. Raises :class:`jetson_mamba.errors.Unavailable` where there is no compiler.
    """

    def __init__(
        self, of: OfMamba, hidden: Tensor, conv: Tensor, states: Tensor, weights: Weights
    ) -> None:
        W_in, in_bias, filter, filter_bias, W_x, x_bias = weights[:6]
        W_dt, dt_bias, W_out, out_bias, A_log, D = weights[6:]
        super().__init__(
            *(hidden, conv, of.activation, (filter, filter_bias)),
            *((W_in, in_bias), (W_x, x_bias), (W_dt, None), (W_out, out_bias)),
        )
        need(not any(each is None for each in (W_in, W_x, W_dt, W_out, A_log)) and x_bias is None)
        assert W_in is not None and W_x is not None and W_dt is not None
        assert W_out is not None and A_log is not None
        rank, dstate, batch = of.dt_rank, of.d_state, self.batch
        dim, columns, width = W_in.shape[0] // 2, rank + 2 * dstate, W_out.shape[0]
        self.dim, self._width = dim, width
        need(W_in.shape == (2 * dim, hidden.shape[-1]) and W_x.shape == (columns, dim))
        need(W_dt.shape == (dim, rank) and W_out.shape == (width, dim))
        need(A_log.shape == (dim, dstate) and states.shape == (batch, dim, dstate))
        need(conv.shape[1] == dim)
        for each in (A_log, states, D, dt_bias):
            need(each is None or _is_aligned(each))
        need(_is_aligned(W_dt))
        for each in (D, dt_bias):
            need(each is None or each.shape == (dim,))
        lanes, vector = dstate // STATES, VECTOR_BYTES // self.size
        while vector > 1 and (rank % vector or columns % vector):
            vector //= 2
        need(lanes in (1, 2, 4, 8, 16, 32) and dstate == lanes * STATES)
        need(rank % STATES == 0 and dim % STATES == 0)
        defines = {
            "INPUT": NUMBERS[self.dtype],
            "STATE": NUMBERS[states.dtype],
            "RATE": NUMBERS[A_log.dtype],
            "SKIP": NUMBERS[self.dtype if D is None else D.dtype],
            "BIAS": NUMBERS[self.dtype if dt_bias is None else dt_bias.dtype],
            "VECTOR": str(vector),
            "LANES": str(lanes),
            "ROUNDS": str(-(-rank // (vector * lanes))),
            "THREADS": str(THREADS),
            "EARLY": str(int(self.few)),
        }
        kernel = compiler.load("mamba_step.cu", "mamba_step", tuple(defines.items()), self.index)
        grid = (-(-dim // (THREADS // lanes)), batch, 1)
        self._between = compiler.Launch(kernel, grid, (THREADS, 1, 1), overlapping=True)
        # Of x_proj's results: where B and C begin.
        self._B, self._C = rank * self.size, (rank + dstate) * self.size
        x_stride = 2 * dim if self.few else dim
        strides = (x_stride, 2 * dim, columns, columns, columns, dim)
        self._sizes = (dim, rank, states.stride(0), *strides)
        if self.few:
            convolved = self.convolved(0, conv, (filter, filter_bias))
            self._in = self.product(W_in, (hidden.stride(0), 2 * dim), convolved=convolved)
            self._x = self.product(W_x, (2 * dim, columns), early=True)
            self._out = self.product(W_out, (dim, width), early=True)
            *self._parts, self._room = self.parts(2 * dim, columns, dim)

    def chain_of(self, weights: Weights) -> Chain | None:
        """The launches with a block's weights; None where there are too many sequences."""
        if not self.few:
            return None
        W_in, in_bias, filter, filter_bias, W_x, _ = map(address, weights[:6])
        W_dt, dt_bias, W_out, out_bias, A_log, D = map(address, weights[6:])
        xz, low, y = self._parts
        z, x = Place(ROOM, xz + self.dim * self.size), Place(ROOM, xz)
        B, C = Place(ROOM, low + self._B), Place(ROOM, low + self._C)
        return self.chain(
            self._in.arguments(
                Place(HIDDEN), W_in, in_bias, x, Place(CONV_STATE), filter, filter_bias, 0, 0
            ),
            self._x.arguments(x, W_x, 0, Place(ROOM, low)),
            (
                self._between,
                (
                    *(Place(STATE), x, z, Place(ROOM, low), W_dt, A_log, B, C, D, dt_bias),
                    *(Place(ROOM, y), *self._sizes),
                ),
            ),
            self._out.arguments(Place(ROOM, y), W_out, out_bias, Place(OUT)),
        )

    def __call__(
        self,
        chain: Chain | None,
        block: nn.Module,
        hidden: Tensor,
        conv: Tensor,
        states: Tensor,
        weights: Any,
    ) -> Tensor:
        """The result, (batch, 1, d_model); both states are written."""
        if chain is not None:
            return self.launched(chain, hidden, conv, states, self._room, self._width)
        W_in, in_bias, filter, filter_bias, W_x, _, W_dt, dt_bias, W_out, out_bias, A_log, D = (
            weights
        )
        y = self.empty(self.batch, self.dim)
        xz = functional.linear(hidden.squeeze(1), W_in, in_bias)
        x = self.convolve(xz[:, : self.dim], conv, filter, filter_bias)
        low = functional.linear(x, W_x)
        at = low.data_ptr()
        self._between(
            compiler.current_stream(self.index),
            *(states.data_ptr(), x.data_ptr(), xz.data_ptr() + self.dim * self.size, at),
            *(W_dt.data_ptr(), A_log.data_ptr(), at + self._B, at + self._C, address(D)),
            *(address(dt_bias), y.data_ptr(), *self._sizes),
        )
        return functional.linear(y, W_out, out_bias).unsqueeze(1)


class Mamba2(_Layer):
    """The step of ``Mamba2`` for tensors like these; raises as :class:`Mamba` does.

    The weights are those of in_proj, conv1d and out_proj, each with its bias, and dt_bias, A_log,
    D, and the norm's.
    """

    def __init__(
        self, of: OfMamba2, hidden: Tensor, conv: Tensor, states: Tensor, weights: Weights
    ) -> None:
        W_in, in_bias, filter, filter_bias, W_out, out_bias, dt_bias, A_log, D, norm = weights
        super().__init__(
            *(hidden, conv, of.activation, (filter, filter_bias)),
            *((W_in, in_bias), (W_out, out_bias)),
        )
        need(W_in is not None and W_out is not None and A_log is not None)
        assert W_in is not None and W_out is not None and A_log is not None
        batch, dim, groups = self.batch, of.d_ssm, of.ngroups
        dstate, headdim = of.d_state, of.headdim
        nheads, wide, width = A_log.shape[0], conv.shape[1], W_out.shape[0]
        need(wide == dim + 2 * groups * dstate and dim == nheads * headdim)
        # The part beside the heads that some layers have makes rows longer.
        need(W_in.shape == (dim + wide + nheads, hidden.shape[-1]))
        need(W_out.shape == (width, dim) and states.shape == (batch, nheads, headdim, dstate))
        for each in (A_log, D, dt_bias):
            need(each is None or (each.shape == (nheads,) and each.is_contiguous()))
            need(each is None or each.dtype in NUMBERS)
        need(states.dtype in NUMBERS and (norm is not None) == of.rmsnorm)
        self.dim, self.wide, self.rows, self.rmsnorm = dim, wide, W_in.shape[0], of.rmsnorm
        self._sizes = [dim, wide, nheads]
        # As the tensors of every call are cut.
        zxbcdt = self.empty(batch, self.rows)
        z, xBC, dt = zxbcdt.split(self._sizes, dim=1)
        if not self.few:
            xBC = self.empty(batch, wide)
        x, B, C = xBC.split([dim, groups * dstate, groups * dstate], dim=1)
        heads = (nheads, headdim)
        step = Step(
            states,
            torch.unflatten(x, 1, heads),
            dt.unsqueeze(2).expand(batch, *heads),
            A_log.view(nheads, 1, 1).expand(*heads, dstate),
            torch.unflatten(B, 1, (groups, dstate)),
            torch.unflatten(C, 1, (groups, dstate)),
            None if D is None else D.view(nheads, 1).expand(heads),
            None if of.rmsnorm else torch.unflatten(z, 1, heads),
            None if dt_bias is None else dt_bias.view(nheads, 1).expand(heads),
            None,
            True,
        )
        case = Case(self.device, states.dtype, self.dtype, self.dtype, A_log.dtype)
        plan = plan_of(*(step, case, self.index, self.processors), logarithm=True, early=self.few)
        need(plan is not None)
        assert plan is not None
        self._update = plan
        # In bytes, from the first of zxbcdt, and of xBC.
        self._xBC, self._dt = dim * self.size, (dim + wide) * self.size
        self._B, self._C = dim * self.size, (dim + groups * dstate) * self.size
        self._width = width
        self._norm: norms_cuda.Plan | None = None
        self._is_normed = False
        if self.few:
            convolved = self.convolved(dim, conv, (filter, filter_bias))
            self._in = self.product(W_in, (hidden.stride(0), self.rows), convolved=convolved)
            more: dict[str, Any] = {"early": True}
            if norm is not None:
                need(_is_aligned(norm) and norm.shape == (dim,))
                whole = of.group_size in (None, dim) and not of.norm_before_gate
                self._is_normed = whole and batch == 1 and dim <= MOST_NORMED
                if self._is_normed:
                    more["norm"] = (norm.dtype, self.rows, of.eps)
                else:
                    self._norm = self._normed(of, z, norm)
            self._out = self.product(W_out, (dim, width), **more)
            *self._parts, self._room = self.parts(self.rows, dim, dim)

    def _normed(self, of: OfMamba2, z: Tensor, weight: Tensor) -> norms_cuda.Plan:
        """The gated norm by a kernel of its own."""
        group = of.group_size or self.dim
        need(self.dim % group == 0 and norms_cuda.takes(group, needs_backward=False))
        gate = norms.Gate.OUTPUT if of.norm_before_gate else norms.Gate.INPUT
        x, out = self.empty(self.batch, self.dim), self.empty(self.batch, self.dim)
        return norms_cuda.plan_of(
            (x, None, z, weight, None, out, None),
            norms.Case(self.device, self.dtype, weight.dtype),
            norms.Options(of.eps, group, True, gate),
        )

    def chain_of(self, weights: Weights) -> Chain | None:
        """As :meth:`Mamba.chain_of`."""
        if not self.few:
            return None
        W_in, in_bias, filter, filter_bias, W_out, out_bias, dt_bias, A_log, D, norm = map(
            address, weights
        )
        first, y, normed = self._parts
        z, xBC = Place(ROOM, first), first + self._xBC
        x, dt = Place(ROOM, xBC), Place(ROOM, first + self._dt)
        B, C = Place(ROOM, xBC + self._B), Place(ROOM, xBC + self._C)
        gate = 0 if self.rmsnorm else z
        launches: list[Any] = [
            self._in.arguments(
                Place(HIDDEN), W_in, in_bias, z, Place(CONV_STATE), filter, filter_bias, 0, 0
            ),
            (
                self._update.launch,
                (
                    *(Place(STATE), x, dt, A_log, B, C, D, gate, dt_bias, 0, Place(ROOM, y)),
                    *self._update.constants,
                ),
            ),
        ]
        if self._norm is not None:
            tensors = (Place(ROOM, y), 0, z, norm, 0, Place(ROOM, normed), 0, 0)
            launches.append((self._norm.launch, (*tensors, *self._norm.constants)))
        last = y if self._norm is None else normed
        out = self._out.arguments(
            *(Place(ROOM, last), W_out, out_bias, Place(OUT), 0, 0, 0),
            *((z, norm) if self._is_normed else (0, 0)),
        )
        return self.chain(*launches, out)

    def __call__(
        self,
        chain: Chain | None,
        block: Any,
        hidden: Tensor,
        conv: Tensor,
        states: Tensor,
        weights: Any,
    ) -> Tensor:
        """The result, (batch, 1, d_model); both states are written."""
        if chain is not None:
            return self.launched(chain, hidden, conv, states, self._room, self._width)
        W_in, in_bias, filter, filter_bias, W_out, out_bias, dt_bias, A_log, D, _ = weights
        y = self.empty(self.batch, self.dim)
        zxbcdt = functional.linear(hidden.squeeze(1), W_in, in_bias)
        _, inputs, _ = zxbcdt.split(self._sizes, dim=1)
        xBC = self.convolve(inputs, conv, filter, filter_bias)
        x, z = xBC.data_ptr(), zxbcdt.data_ptr()
        self._update.launch(
            compiler.current_stream(self.index),
            *(states.data_ptr(), x, z + self._dt, A_log.data_ptr(), x + self._B, x + self._C),
            *(address(D), 0 if self.rmsnorm else z, address(dt_bias), 0, y.data_ptr()),
            *self._update.constants,
        )
        if self.rmsnorm:
            y = block.norm(y, zxbcdt[:, : self.dim]).contiguous()
        return functional.linear(y, W_out, out_bias).unsqueeze(1)


def _is_aligned(tensor: Tensor) -> bool:
    """Whether a tensor is one whole run of numbers that the kernels know."""
    whole = tensor.is_contiguous() and tensor.data_ptr() % VECTOR_BYTES == 0
    return whole and tensor.dtype in NUMBERS


def need(served: bool) -> None:
    """Raise :class:`NotServed` where it is not."""
    if not served:
        raise NotServed
