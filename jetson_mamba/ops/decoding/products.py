"""A matrix times a few vectors by the project's own kernel, which reads each weight once.

What libraries have for that is made for many vectors. Here the sums of a vector do not depend on
how many others there are, and what follows a product in a layer's step goes with it: the
convolution, or before it the gated norm. ``kernels/projection.cu`` says how it is cut.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.chains import Place
from jetson_mamba.kernels.tensors import NUMBERS, VECTOR_BYTES

# With more, a library's product is as fast.
MOST_VECTORS = 4


class Form(NamedTuple):
    """How a product is cut: ``projection.cu`` says what the numbers are."""

    team: int
    rows: int
    depth: int
    threads: int


class Convolved(NamedTuple):
    """The rows of a product that are a convolution's inputs.

    ``first`` is the first of them; ``state`` is (batch, channels, width).
    """

    first: int
    state: Tensor
    filter: Tensor
    filter_bias: Tensor | None
    silu: bool


class Product(NamedTuple):
    """A launch, and what follows the addresses among its arguments."""

    launch: compiler.Launch
    constants: tuple[int, ...]

    def arguments(self, *addresses: int | Place) -> tuple[compiler.Launch, tuple[int | Place, ...]]:
        """The launch, and what it takes.

        Addresses of x, W, bias, out; conv_state, filter, its bias; z, the norm's weight.
        """
        none = (0,) * (9 - len(addresses))
        return self.launch, (*addresses, *none, *self.constants)


def form_of(rows: int, columns: int, vector: int, batch: int, processors: int) -> Form:
    """How a matrix is cut: as many threads to a row as have two or three runs of it each.

    Few rows have as many as there can be, so that all of the device is at work. Measured on an
    H200 with the sizes of the published models: ``docs/notes-kernels.md``.
    """
    vectors = columns // vector
    if rows < 4 * processors:
        team = next(team for team in (32, 64, 128, 256) if team >= min(vectors, 256))
        return Form(team, 1, min(2, -(-vectors // team)), max(128, team))
    team = 32 if vectors <= 128 else 128 if 256 < vectors <= 512 else 64
    many = rows >= 16 * processors and (team == 32 or batch > 1)
    depth = 2 if batch > 2 else 4
    return Form(team, 2 if many else 1, min(depth, -(-vectors // team)), 128)


def vector_of(weight: Tensor) -> int | None:
    """Columns that one access takes; None where rows are no whole runs of 16 bytes."""
    size = weight.element_size()
    if not weight.is_contiguous() or weight.data_ptr() % VECTOR_BYTES:
        return None
    return None if weight.shape[1] * size % VECTOR_BYTES else VECTOR_BYTES // size


def product(
    weight: Tensor,
    batch: int,
    strides: tuple[int, int],
    processors: int,
    index: int,
    *,
    early: bool = False,
    convolved: Convolved | None = None,
    norm: tuple[torch.dtype, int, float] | None = None,
) -> Product | None:
    """The product of ``weight`` (rows, columns) and ``batch`` vectors; None where it has none.

    ``strides`` are those of x and of out from vector to vector. ``early`` is whether the weights
    need not wait for the kernel before. ``norm`` is of x times silu(z): the dtype of its weight,
    the stride of z, and eps.

    Raises :class:`jetson_mamba.errors.Unavailable` where there is no compiler.
    """
    rows, columns = weight.shape
    vector = vector_of(weight)
    if vector is None or not 0 < batch <= MOST_VECTORS or weight.dtype not in NUMBERS:
        return None
    form = form_of(rows, columns, vector, batch, processors)
    filter_dtype, first, channels, width = torch.float32, 0, 0, 0
    state_strides: tuple[int, ...] = (0, 0, 0)
    if convolved is not None:
        filter_dtype, first = convolved.filter.dtype, convolved.first
        state_strides = convolved.state.stride()
        channels, width = convolved.state.shape[1:]
    scale_dtype, z_stride, eps = norm or (torch.float32, 0, 0.0)
    defines = {
        "INPUT": NUMBERS[weight.dtype],
        "SCALE": NUMBERS[scale_dtype],
        "FILTER": NUMBERS[filter_dtype],
        "VECTOR": str(vector),
        "BATCH": str(batch),
        **{name.upper(): str(value) for name, value in form._asdict().items()},
        "EARLY": str(int(early)),
        "WIDTH": str(width),
        "SILU": str(int(convolved is not None and convolved.silu)),
        "NORM": str(int(norm is not None)),
    }
    # A number for each warp and sum.
    shared = form.threads // 32 * (form.rows + int(norm is not None)) * batch * 4
    kernel = compiler.load("projection.cu", "projection", tuple(defines.items()), index)
    blocks = -(-rows // (form.threads // form.team * form.rows))
    launch = compiler.Launch(
        *(kernel, (blocks, 1, 1), (form.threads, 1, 1)), overlapping=True, shared_bytes=shared
    )
    constants = (rows, columns, *strides, first, channels, *state_strides, z_stride, bits_of(eps))
    return Product(launch, constants)


def bits_of(number: float) -> int:
    """A float32 as the integer that a kernel is given for it."""
    bits: int = struct.unpack("I", struct.pack("f", number))[0]
    return bits
