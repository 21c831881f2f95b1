"""Times the kernels of norms, or of decoding steps, beside the least time for their bytes.

``python -m benchmarks.kernels_norms`` prints one table on the GPU at hand. The floor is the fewest
bytes (each input read once, each output written once) over the measured rate of a large copy.
"Gated" is the norm inside a Mamba-2 block; "added" that between blocks, of a sum in float32 with
the residual, which is returned. A step is one token of Mamba-2 for 24 heads of 64 channels, 128
states in float32 each, with all that a block has; ``--graph`` times its replay, since one that is
launched from the host takes as long as its launch. Beside each stands upstream's Triton kernel,
where a mamba-ssm that has it can be imported.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib import import_module
from typing import Any, Callable, Iterator, NamedTuple

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


class Pair(NamedTuple):
    """A row, and upstream's call for the same."""

    row: Row
    upstream: Callable[[], Any] | None


def upstream(module: str, function: str, *arguments: Any, **keywords: Any) -> Any:
    """A call of upstream's function; None where that is not there."""
    try:
        found = getattr(import_module(f"mamba_ssm.ops.triton.{module}"), function)
    except ImportError:
        return None
    return partial(found, *arguments, **keywords)


def norm_rows() -> Iterator[Pair]:
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
            kind = {"z": z, "norm_before_gate": False, "is_rms_norm": True}
            theirs = upstream("layernorm_gated", "_layer_norm_fwd", x, weight, None, 1e-5, **kind)
            yield Pair(Row("gated forward", shape, dtype, "", 3 * size, forward), theirs)
            if theirs is not None:
                statistics = theirs()[1:]
                given = (dout, x, weight, None, 1e-5, *statistics)
                theirs = upstream("layernorm_gated", "_layer_norm_bwd", *given, **kind)
            yield Pair(Row("gated backward", shape, dtype, "", 5 * size, backward), theirs)
            residual, dtotal = (torch.randn(rows, dim, device="cuda") for _ in range(2))
            added = Options(1e-5, dim, True)
            options = (weight, None, torch.float32, dtype, added, False)
            forward = partial(kernels.forward, x, residual, None, *options)
            total = forward().total
            assert total is not None
            back = (dout, dtotal, torch.float32, added, None)
            backward = partial(kernels.backward, total, None, weight, None, *back)
            least = 2 * size + 3 * wide if dtype != torch.float32 else 4 * size
            row = Row("added forward", shape, dtype, "", 2 * size + 2 * wide, forward)
            theirs = upstream(
                *("layer_norm", "_layer_norm_fwd", x, weight, None, 1e-5, residual),
                is_rms_norm=True,
            )
            yield Pair(row, theirs)
            if theirs is not None:
                rstd = theirs()[3]
                theirs = upstream(
                    *("layer_norm", "_layer_norm_bwd", dout, total, weight, None, 1e-5, None, rstd),
                    dresidual=dtotal,
                    has_residual=True,
                    is_rms_norm=True,
                    x_dtype=dtype,
                )
            yield Pair(Row("added backward", shape, dtype, "", least, backward), theirs)


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


def step_rows() -> Iterator[Pair]:
    """A decoding step at each batch."""
    for batch in BATCHES:
        step = step_of(batch)
        dtypes = (step.states.dtype, step.x.dtype, step.dt.dtype, step.A.dtype)
        call = partial(decoding.load(StepCase(step.x.device, *dtypes)), step)
        shape = (batch, NHEADS * HEADDIM, DSTATE)
        row = Row("step", shape, step.x.dtype, "", 2 * step.states.nbytes, call)
        given = (*step[:6], step.D, step.z, step.dt_bias, True)
        yield Pair(row, upstream("selective_state_update", "selective_state_update", *given))


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
    print("| op | B, L, D | dtype | floor | measured | of the floor | upstream |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for table in (norm_rows, step_rows):
        for row, theirs in table():
            floor = row.least_bytes / rate
            is_replayed = graph and table is step_rows
            time, other = (
                None if call is None else time_of(call, rep, is_replayed)
                for call in (row.call, theirs)
            )
            assert time is not None
            dtype = str(row.dtype).rsplit(".", 1)[-1]
            shape = ", ".join(map(str, row.shape))
            print(
                f"| {row.op} | {shape} | {dtype} | {floor:.1f} | {time:.1f} | {floor / time:.0%} | "
                f"{'' if other is None else format(other, '.1f')} |",
                flush=True,
            )


def time_of(call: Callable[[], Any], rep: int, is_replayed: bool) -> float:
    """Microseconds of a call; of one of 20 in a graph, where it is replayed."""
    if is_replayed:
        return microseconds(processors.captured(call, 20), rep) / 20
    return microseconds(call, rep)


if __name__ == "__main__":
    main()
