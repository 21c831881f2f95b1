"""Times the selective scan's CUDA kernels against the least time that a GPU needs.

``python -m benchmarks.kernels_scan`` prints one table on the GPU at hand: 16 states, with D, z,
delta_bias and softplus; "scan output" is the forward pass that keeps nothing. Two floors stand
beside each time: the fewest bytes over the measured rate of a large copy, and one exponential for
each state and step (and those of softplus and the gate) at 16 a clock and multiprocessor.
``--graph`` times the replay of a captured graph, which leaves out what the host takes.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Iterator

import torch

from benchmarks import processors
from benchmarks.rows import Row, copy_rate, microseconds
from jetson_mamba.ops.selective_scan import cuda
from jetson_mamba.ops.selective_scan.contract import Returning, Scan

SHAPES = ((1, 1536, 256), (1, 1536, 2048), (8, 1536, 2048), (4, 5120, 4096))
DTYPES = (torch.bfloat16, torch.float32)
DSTATE = 16
# Rows of (batch, dim, seqlen) that are read and written once.
FORWARD_ROWS, OUTPUT_ROWS, BACKWARD_ROWS = 5, 4, 8
# Special functions a step and channel beyond the states': of softplus, the gate and their slopes.
FORWARD_SPECIAL, BACKWARD_SPECIAL = 3, 5


def rows() -> Iterator[tuple[Row, int]]:
    """Each pass at each size, with the special functions that it takes."""
    for shape in SHAPES:
        for dtype in DTYPES:
            scan = drawn_scan(shape, dtype)
            dout = torch.randn_like(scan.u)
            scanned = cuda.forward(scan)
            returning = Returning(dout, scanned.x, scanned.out, None, False)
            size = scan.u.numel()
            for name, count, special, call in (
                ("scan forward", FORWARD_ROWS, FORWARD_SPECIAL, partial(cuda.forward, scan)),
                ("scan output", OUTPUT_ROWS, FORWARD_SPECIAL, partial(cuda.output, scan)),
                (
                    "scan backward",
                    BACKWARD_ROWS,
                    BACKWARD_SPECIAL,
                    partial(cuda.backward, scan, returning),
                ),
            ):
                least = count * size * dtype.itemsize
                yield Row(name, shape, dtype, "", least, call), size * (DSTATE + special)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rep", type=int, default=200, help="milliseconds spent on each row")
    parser.add_argument("--graph", action="store_true", help="time the replay of a graph")
    processors.add_option(parser)
    arguments = parser.parse_args()
    with processors.limited(arguments.processors) as used:
        print_table(used, arguments.rep, arguments.graph)


def print_table(used: int, rep: int, graph: bool) -> None:
    """Print the rows, each timed for ``rep`` milliseconds on so many multiprocessors."""
    rate = copy_rate()
    exponentials = 16 * used * _clock_megahertz()
    name = torch.cuda.get_device_name()
    print(f"{name}: copy {rate / 1e6:.2f} TB/s, {exponentials / 1e6:.2f} T exp2/s")
    print("| op | B, D, L | dtype | memory floor | exp2 floor | measured |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row, special in rows():
        call = processors.captured(row.call) if graph else row.call
        time = microseconds(call, rep)
        dtype = str(row.dtype).rsplit(".", 1)[-1]
        shape = ", ".join(map(str, row.shape))
        print(
            f"| {row.op} | {shape} | {dtype} | {row.least_bytes / rate:.1f} "
            f"| {special / exponentials:.1f} | {time:.1f} |",
            flush=True,
        )


def drawn_scan(shape: tuple[int, int, int], dtype: torch.dtype) -> Scan:
    """Random arguments with all that is optional, steps of about a tenth."""
    batch, dim, seqlen = shape
    torch.manual_seed(0)

    def drawn(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device="cuda").to(dtype)

    rates = torch.arange(1.0, DSTATE + 1, device="cuda")
    return Scan(
        drawn(*shape),
        drawn(*shape) - 2,
        -rates * (torch.rand(dim, DSTATE, device="cuda") + 0.1),
        drawn(batch, 1, DSTATE, seqlen),
        drawn(batch, 1, DSTATE, seqlen),
        torch.randn(dim, device="cuda"),
        drawn(*shape),
        torch.rand(dim, device="cuda"),
        True,
    )


def _clock_megahertz() -> float:
    return float(getattr(torch.cuda.get_device_properties(0), "clock_rate", 1755e3)) / 1e3


if __name__ == "__main__":
    main()
