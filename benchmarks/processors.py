"""A GPU as if it had fewer multiprocessors, for benchmarks: ``--processors N``.

A board's GPU has 8 to 20 multiprocessors, and plans that suit a large one may not suit it. With
this option the kernels' plans are made for N and, where the driver can set that many apart (CUDA
12.4, "Green Contexts"), everything runs on these alone: a table for 8 beside one for 20 compares
plans on a large GPU. Its multiprocessors, its memory and its caches stay those of the large one.
"""

from __future__ import annotations

import argparse
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Iterator

import torch

from jetson_mamba.kernels import tensors

# CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING: by twos, not by eights.
SINGLY = 1
# CU_GREEN_CTX_DEFAULT_STREAM, which is required; CU_STREAM_NON_BLOCKING likewise.
DEFAULT_STREAM = NON_BLOCKING = 1


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let a benchmark take ``--processors``."""
    parser.add_argument(
        "--processors",
        type=int,
        metavar="N",
        help="plan for N multiprocessors, and run on no others where the GPU allows",
    )


@contextmanager
def limited(count: int | None) -> Iterator[int]:
    """Plan and run on so many of the current GPU's multiprocessors; gives how many it really uses.

    With None on all of them. Everything that is launched on torch's current stream keeps to them;
    a capture has to name that stream (:func:`captured`).
    """
    index = torch.cuda.current_device()
    there = torch.cuda.get_device_properties(index).multi_processor_count
    if count is None:
        yield there
        return
    if not 0 < count <= there:
        raise SystemExit(f"--processors {count}: expected 1 to {there}, those of this GPU")
    tensors.planned_for[index] = count
    try:
        try:
            stream, used = _set_apart(index, count)
        except (ImportError, AttributeError, RuntimeError) as reason:
            print(f"Plans for {count} multiprocessors, run on {there}: {reason}", flush=True)
            yield there
            return
        print(f"Plans for {count} multiprocessors, run on {used} of {there}", flush=True)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            yield used
            torch.cuda.synchronize()
    finally:
        del tensors.planned_for[index]


def captured(call: Any, calls: int = 1) -> Any:
    """Calls in a CUDA graph, one after another, on the multiprocessors of the current stream."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    current = torch.cuda.current_stream()
    # The default stream cannot be captured; torch then takes one of its own.
    named: dict[str, Any] = {} if current == torch.cuda.default_stream() else {"stream": current}
    with torch.cuda.graph(graph, **named):
        for _ in range(calls):
            call()
    return graph.replay


def _set_apart(index: int, count: int) -> tuple[Any, int]:
    """A stream of a green context with at least so many multiprocessors, and how many it has."""
    driver = import_module("cuda.bindings.driver")
    device = _checked(driver.cuDeviceGet(index))
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    all_of_them = _checked(driver.cuDeviceGetDevResource(device, kind))
    groups = _checked(driver.cuDevSmResourceSplitByCount(1, all_of_them, SINGLY, count))[0]
    described = _checked(driver.cuDevResourceGenerateDesc(groups, 1))
    context = _checked(driver.cuGreenCtxCreate(described, device, DEFAULT_STREAM))
    stream = _checked(driver.cuGreenCtxStreamCreate(context, NON_BLOCKING, 0))
    return torch.cuda.ExternalStream(int(stream)), int(groups[0].sm.smCount)


def _checked(result: tuple[Any, ...]) -> Any:
    """The value, or values, of a binding's result; RuntimeError unless its status is success."""
    status, *values = result
    if int(status):
        raise RuntimeError(f"the driver says {status.name}")
    return values[0] if len(values) == 1 else values
