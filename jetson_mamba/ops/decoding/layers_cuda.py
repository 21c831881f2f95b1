"""A layer's step between its norms, in as few kernels as its data allow: four, or three.

A product needs all of a vector, so a kernel ends where a vector is complete. What is between two
products is done by one of them, or by one kernel of its own: the convolution by the product of its
inputs, the gated norm by the product of its results, the step size's projection and the update of
the states together. What a kernel does not get from the one before, it loads while that drains.

With more sequences than a product of few vectors takes, products, convolution and norm are those of
a whole pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS, VECTOR_BYTES, address, index_of, processors

from ..causal_conv1d import causal_conv1d_update
from .contract import Case, Step
from .cuda import plan_of
from .products import MOST_VECTORS, Convolved, Product, product

# States that a thread has of a channel of Mamba, and the threads of a block.
STATES, THREADS = 4, 128
# Columns of a vector that every block of a product normalises for itself. Of more, and of several
# vectors, that takes longer than a kernel of its own.
MOST_NORMED = 2048
ACTIVATIONS = (None, "silu", "swish")

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
        _need(self.dtype in NUMBERS and activation in ACTIVATIONS and filter is not None)
        assert filter is not None
        for tensor in (conv_state, *(each for pair in others for each in pair)):
            _need(tensor is None or tensor.dtype == self.dtype)
        for tensor in (filter, filter_bias, *(each for pair in others for each in pair)):
            _need(tensor is None or tensor.is_contiguous())
        _need(filter_bias is None or filter_bias.dtype == filter.dtype)
        _need(filter.dtype in NUMBERS and filter.shape[-1] > 1)
        _need((self.batch, *filter.shape[::2]) == conv_state.shape)
        _need(all(conv_state.stride()))  # what is expanded cannot be written
        _need(hidden.stride(-1) == 1 and hidden.data_ptr() % VECTOR_BYTES == 0)
        _need(self.batch == 1 or hidden.stride(0) * self.size % VECTOR_BYTES == 0)
        self.device = hidden.device

    def product(self, weight: Tensor, strides: tuple[int, int], **more: Any) -> Product:
        """A product of few vectors."""
        found = product(weight, self.batch, strides, self.processors, self.index, **more)
        _need(found is not None)
        assert found is not None
        return found

    def convolved(self, first: int, state: Tensor, filters: Weights) -> Convolved:
        """The convolution that follows the first product, from a row of that on."""
        filter, filter_bias = filters
        assert filter is not None
        return Convolved(first, state, filter.squeeze(1), filter_bias, self.activation is not None)

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
        _need(not any(each is None for each in (W_in, W_x, W_dt, W_out, A_log)) and x_bias is None)
        assert W_in is not None and W_x is not None and W_dt is not None
        assert W_out is not None and A_log is not None
        rank, dstate, batch = of.dt_rank, of.d_state, self.batch
        self.dim, self.columns, width = W_in.shape[0] // 2, rank + 2 * dstate, W_out.shape[0]
        dim, columns = self.dim, self.columns
        _need(W_in.shape == (2 * dim, hidden.shape[-1]) and W_x.shape == (columns, dim))
        _need(W_dt.shape == (dim, rank) and W_out.shape == (width, dim))
        _need(A_log.shape == (dim, dstate) and states.shape == (batch, dim, dstate))
        _need(conv.shape[1] == dim)
        for each in (A_log, states, D, dt_bias):
            _need(each is None or _is_aligned(each))
        _need(_is_aligned(W_dt))
        for each in (D, dt_bias):
            _need(each is None or each.shape == (dim,))
        lanes, vector = dstate // STATES, VECTOR_BYTES // self.size
        while vector > 1 and (rank % vector or columns % vector):
            vector //= 2
        _need(lanes in (1, 2, 4, 8, 16, 32) and dstate == lanes * STATES)
        _need(rank % STATES == 0 and dim % STATES == 0)
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

    def __call__(
        self, block: nn.Module, hidden: Tensor, conv: Tensor, states: Tensor, weights: Any
    ) -> Tensor:
        """The result, (batch, 1, d_model); both states are written."""
        W_in, in_bias, filter, filter_bias, W_x, _, W_dt, dt_bias, W_out, out_bias, A_log, D = (
            weights
        )
        stream = compiler.current_stream(self.index)
        y = self.empty(self.batch, self.dim)
        if self.few:
            xz, low = self.empty(self.batch, 2 * self.dim), self.empty(self.batch, self.columns)
            x = xz
            self._in.start(
                *(stream, hidden.data_ptr(), W_in.data_ptr(), address(in_bias), xz.data_ptr()),
                *(conv.data_ptr(), filter.data_ptr(), address(filter_bias), 0, 0),
            )
            self._x.start(stream, x.data_ptr(), W_x.data_ptr(), 0, low.data_ptr(), 0, 0, 0, 0, 0)
        else:
            xz = functional.linear(hidden.squeeze(1), W_in, in_bias)
            x = self.convolve(xz[:, : self.dim], conv, filter, filter_bias)
            low = functional.linear(x, W_x)
        at = low.data_ptr()
        self._between(
            *(stream, states.data_ptr(), x.data_ptr(), xz.data_ptr() + self.dim * self.size, at),
            *(W_dt.data_ptr(), A_log.data_ptr(), at + self._B, at + self._C, address(D)),
            *(address(dt_bias), y.data_ptr(), *self._sizes),
        )
        if not self.few:
            return functional.linear(y, W_out, out_bias).unsqueeze(1)
        out = self.empty(self.batch, 1, W_out.shape[0])
        self._out.start(
            *(stream, y.data_ptr(), W_out.data_ptr(), address(out_bias), out.data_ptr()),
            *(0, 0, 0, 0, 0),
        )
        return out


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
        _need(W_in is not None and W_out is not None and A_log is not None)
        assert W_in is not None and W_out is not None and A_log is not None
        batch, dim, groups = self.batch, of.d_ssm, of.ngroups
        dstate, headdim = of.d_state, of.headdim
        nheads, wide, width = A_log.shape[0], conv.shape[1], W_out.shape[0]
        _need(wide == dim + 2 * groups * dstate and dim == nheads * headdim)
        # The part beside the heads that some layers have makes rows longer.
        _need(W_in.shape == (dim + wide + nheads, hidden.shape[-1]))
        _need(W_out.shape == (width, dim) and states.shape == (batch, nheads, headdim, dstate))
        for each in (A_log, D, dt_bias):
            _need(each is None or (each.shape == (nheads,) and each.is_contiguous()))
            _need(each is None or each.dtype in NUMBERS)
        _need(states.dtype in NUMBERS and (norm is not None) == of.rmsnorm)
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
        _need(plan is not None)
        assert plan is not None
        self._update = plan
        # In bytes, from the first of zxbcdt, and of xBC.
        self._xBC, self._dt = dim * self.size, (dim + wide) * self.size
        self._B, self._C = dim * self.size, (dim + groups * dstate) * self.size
        self._is_normed = False
        if self.few:
            convolved = self.convolved(dim, conv, (filter, filter_bias))
            self._in = self.product(W_in, (hidden.stride(0), self.rows), convolved=convolved)
            more: dict[str, Any] = {"early": True}
            whole = of.group_size in (None, dim) and not of.norm_before_gate
            whole = whole and batch == 1 and dim <= MOST_NORMED
            if norm is not None and whole and _is_aligned(norm):
                self._is_normed = True
                more["norm"] = (norm.dtype, self.rows, of.eps)
            self._out = self.product(W_out, (dim, width), **more)

    def __call__(
        self, block: Any, hidden: Tensor, conv: Tensor, states: Tensor, weights: Any
    ) -> Tensor:
        """The result, (batch, 1, d_model); both states are written."""
        W_in, in_bias, filter, filter_bias, W_out, out_bias, dt_bias, A_log, D, norm = weights
        stream = compiler.current_stream(self.index)
        y = self.empty(self.batch, self.dim)
        if self.few:
            zxbcdt = self.empty(self.batch, self.rows)
            self._in.start(
                *(stream, hidden.data_ptr(), W_in.data_ptr(), address(in_bias), zxbcdt.data_ptr()),
                *(conv.data_ptr(), filter.data_ptr(), address(filter_bias), 0, 0),
            )
            x = zxbcdt.data_ptr() + self._xBC
        else:
            zxbcdt = functional.linear(hidden.squeeze(1), W_in, in_bias)
            _, inputs, _ = zxbcdt.split(self._sizes, dim=1)
            xBC = self.convolve(inputs, conv, filter, filter_bias)
            x = xBC.data_ptr()
        z = zxbcdt.data_ptr()
        self._update.launch(
            *(stream, states.data_ptr(), x, z + self._dt, A_log.data_ptr(), x + self._B),
            *(x + self._C, address(D), 0 if self.rmsnorm else z, address(dt_bias), 0, y.data_ptr()),
            *self._update.constants,
        )
        if self.rmsnorm and not self._is_normed:
            y = block.norm(y, zxbcdt[:, : self.dim]).contiguous()
        if not self.few:
            return functional.linear(y, W_out, out_bias).unsqueeze(1)
        out = self.empty(self.batch, 1, W_out.shape[0])
        gate, scale = (z, norm.data_ptr()) if self._is_normed else (0, 0)
        self._out.start(
            *(stream, y.data_ptr(), W_out.data_ptr(), address(out_bias), out.data_ptr()),
            *(0, 0, 0, gate, scale),
        )
        return out


def _is_aligned(tensor: Tensor) -> bool:
    """Whether a tensor is one whole run of numbers that the kernels know."""
    whole = tensor.is_contiguous() and tensor.data_ptr() % VECTOR_BYTES == 0
    return whole and tensor.dtype in NUMBERS


def _need(served: bool) -> None:
    if not served:
        raise NotServed
