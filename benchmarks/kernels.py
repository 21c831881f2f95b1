"""Times the project's CUDA kernels against the least time that their bytes take.

``python -m benchmarks.kernels`` prints one table on the GPU at hand. The floor is the fewest
bytes (each input read once, each output written once) over the measured rate of a large copy.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Iterator

import torch
from torch import Tensor

from benchmarks import processors
from benchmarks.rows import Row, copy_rate, microseconds
from jetson_mamba.ops.causal_conv1d import cuda
from jetson_mamba.ops.causal_conv1d.contract import Case

SHAPES = ((1, 1536, 2048), (8, 1536, 2048), (4, 5120, 4096))
DTYPES = (torch.bfloat16, torch.float32)
WIDTH = 4


def convolution_rows() -> Iterator[Row]:
    """Forward and backward in both layouts (BDL: time contiguous, BLD: channels), with SiLU."""
    for shape in SHAPES:
        for dtype in DTYPES:
            kernels = cuda.load(Case(torch.device("cuda", 0), dtype, dtype, WIDTH))
            for layout in ("BDL", "BLD"):
                x, dout = _sequence(shape, dtype, layout), _sequence(shape, dtype, layout)
                dx = torch.empty_like(x)
                weight = torch.randn(shape[1], WIDTH, device="cuda", dtype=dtype)
                bias = torch.randn(shape[1], device="cuda", dtype=dtype)
                tensor = x.numel() * x.element_size()
                yield Row(
                    "conv forward",
                    shape,
                    dtype,
                    layout,
                    2 * tensor,
                    partial(kernels.forward, x, weight, bias, None, None, None, True),
                )
                yield Row(
                    "conv backward",
                    shape,
                    dtype,
                    layout,
                    3 * tensor,
                    partial(
                        kernels.backward,
                        *(x, weight, bias, dout, None, None, None),
                        *(dx, False, True),
                    ),
                )


TABLES = (convolution_rows,)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--op", default="", help="only the rows whose op contains this")
    parser.add_argument("--rep", type=int, default=200, help="milliseconds spent on each row")
    processors.add_option(parser)
    arguments = parser.parse_args()
    with processors.limited(arguments.processors):
        print_table(arguments.op, arguments.rep)


def print_table(op: str, rep: int) -> None:
    """Print the rows whose op contains ``op``, each timed for ``rep`` milliseconds."""
    rate = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {rate / 1e6:.2f} TB/s")
    print("| op | B, D, L | dtype | layout | floor | measured | of the floor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for table in TABLES:
        for row in table():
            if op not in row.op:
                continue
            floor, time = row.least_bytes / rate, microseconds(row.call, rep)
            dtype = str(row.dtype).rsplit(".", 1)[-1]
            shape = ", ".join(map(str, row.shape))
            print(
                f"| {row.op} | {shape} | {dtype} | {row.layout} | {floor:.1f} | {time:.1f} "
                f"| {floor / time:.0%} |",
                flush=True,
            )


def _sequence(shape: tuple[int, int, int], dtype: torch.dtype, layout: str) -> Tensor:
    batch, dim, seqlen = shape
    if layout == "BDL":
        return torch.randn(batch, dim, seqlen, device="cuda", dtype=dtype)
    return torch.randn(batch, seqlen, dim, device="cuda", dtype=dtype).transpose(1, 2)


if __name__ == "__main__":
    main()
