"""Times the kernels of norms, or of decoding steps, beside the least time for their bytes.

``python -m benchmarks.kernels_norms`` prints one table on the GPU at hand. The floor is the fewest
bytes (each input read once, each output written once) over the measured rate of a large copy.
"Gated" is the norm inside a Mamba-2 block; "added" that between blocks, of a sum in float32 with
the residual, which is returned. A step is one token of Mamba-2 for 24 heads of 64 channels, 128
states in float32 each, with all that a block has; ``--graph`` times its replay, since one that is
launched from the host takes as long as its launch.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Iterator

import torch
from torch import Tensor

from benchmarks import processors
from benchmarks.rows import Row, copy_rate, microseconds
from jetson_mamba.ops.decoding import cuda as decoding
from jetson_mamba.ops.decoding.contract import Case as StepCase
from jetson_mamba.ops.decoding.contract import Step
from jetson_mamba.ops.norms import cuda as norms
from jetson_mamba.ops.norms.contract import Case, Gate, Options

# Batch, seqlen, dim.
SHAPES = ((1, 2048, 1536), (8, 2048, 1536), (4, 4096, 5120))
DTYPES = (torch.bfloat16, torch.float32)
BATCHES = (1, 16, 128)
NHEADS, HEADDIM, DSTATE = 24, 64, 128


def norm_rows() -> Iterator[Row]:
    """Both passes of a gated norm, and of one of a sum with a residual in float32."""
    for shape in SHAPES:
        for dtype in DTYPES:
            rows, dim = shape[0] * shape[1], shape[2]
            x, z, dout = (torch.randn(rows, dim, device="cuda").to(dtype) for _ in range(3))
            weight = torch.rand(dim, device="cuda")
            kernels = norms.load(Case(x.device, dtype, weight.dtype))
            size, wide = rows * dim * dtype.itemsize, rows * dim * 4
            gated = Options(1e-5, dim, True, Gate.INPUT)
            forward = partial(kernels.forward, x, None, z, weight, None, None, dtype, gated, False)
            backward = partial(kernels.backward, x, z, weight, None, dout, None, None, gated, None)
            yield Row("gated forward", shape, dtype, "", 3 * size, forward)
            yield Row("gated backward", shape, dtype, "", 5 * size, backward)
            residual, dtotal = (torch.randn(rows, dim, device="cuda") for _ in range(2))
            added = Options(1e-5, dim, True)
            options = (weight, None, torch.float32, dtype, added, False)
            forward = partial(kernels.forward, x, residual, None, *options)
            total = forward().total
            assert total is not None
            back = (dout, dtotal, torch.float32, added, None)
            backward = partial(kernels.backward, total, None, weight, None, *back)
            least = 2 * size + 3 * wide if dtype != torch.float32 else 4 * size
            yield Row("added forward", shape, dtype, "", 2 * size + 2 * wide, forward)
            yield Row("added backward", shape, dtype, "", least, backward)


def step_of(batch: int) -> Step:
    """Random arguments, as a Mamba-2 block has them."""
    heads = (batch, NHEADS, HEADDIM)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(*sizes, device="cuda").bfloat16()

    def tied(*sizes: int) -> Tensor:
        return torch.rand(*sizes, device="cuda")

    return Step(
        torch.randn(*heads, DSTATE, device="cuda"),
        drawn(*heads),
        drawn(batch, NHEADS, 1).expand(heads),
        -tied(NHEADS, 1, 1).expand(NHEADS, HEADDIM, DSTATE),
        drawn(batch, 1, DSTATE),
        drawn(batch, 1, DSTATE),
        tied(NHEADS, 1).expand(NHEADS, HEADDIM),
        drawn(*heads),
        tied(NHEADS, 1).expand(NHEADS, HEADDIM),
        None,
        True,
    )


def step_rows() -> Iterator[Row]:
    """A decoding step at each batch."""
    for batch in BATCHES:
        step = step_of(batch)
        dtypes = (step.states.dtype, step.x.dtype, step.dt.dtype, step.A.dtype)
        call = partial(decoding.load(StepCase(step.x.device, *dtypes)), step)
        shape = (batch, NHEADS * HEADDIM, DSTATE)
        yield Row("step", shape, step.x.dtype, "", 2 * step.states.nbytes, call)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rep", type=int, default=200, help="milliseconds spent on each row")
    parser.add_argument("--graph", action="store_true", help="time steps of 20 in a graph")
    processors.add_option(parser)
    arguments = parser.parse_args()
    with processors.limited(arguments.processors):
        print_table(arguments.rep, arguments.graph)


def print_table(rep: int, graph: bool) -> None:
    """Print the rows, each timed for ``rep`` milliseconds."""
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {rate / 1e6:.2f} TB/s")
    print("| op | B, L, D | dtype | floor | measured | of the floor |")
    print("| --- | --- | --- | --- | --- | --- |")
    for table in (norm_rows, step_rows):
        for row in table():
            floor = row.least_bytes / rate
            if graph and table is step_rows:
                time = microseconds(processors.captured(row.call, 20), rep) / 20
            else:
                time = microseconds(row.call, rep)
            dtype = str(row.dtype).rsplit(".", 1)[-1]
            shape = ", ".join(map(str, row.shape))
            print(
                f"| {row.op} | {shape} | {dtype} | {floor:.1f} | {time:.1f} | {floor / time:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
