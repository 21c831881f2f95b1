"""Times the kernels of Mamba-2's scan beside the least time that its bytes take.

``python -m benchmarks.kernels_ssd`` prints one table on the GPU at hand: headdim 64, 128 states,
one group, bf16, with D, dt bias and softplus; the GPU's time of all kernels of a pass, as torch's
profiler has it. The floor of a pass is x, B, C, dt and out (or twice these, for the gradients) once
over the rate of a large copy. ``--upstream`` times upstream's Triton kernels beside, with their
chunk of 256; their first calls take minutes.
"""

from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

from benchmarks import processors
from benchmarks.rows import copy_rate
from jetson_mamba.ops.ssd import cuda_backward, cuda_forward
from jetson_mamba.ops.ssd.contract import Scan

SHAPES = ((1, 1024, 24), (8, 2048, 24), (4, 4096, 80), (1, 8192, 128))
HEADDIM, DSTATE, CHUNK = 64, 128, 256


def drawn_scan(shape: tuple[int, int, int], dtype: torch.dtype = torch.bfloat16) -> Scan:
    """Random arguments, x, B and C side by side as a mixer has them."""
    batch, seqlen, heads = shape
    torch.manual_seed(0)
    width = heads * HEADDIM
    xBC = torch.randn(batch, seqlen, width + 2 * DSTATE, device="cuda").to(dtype)
    x, B, C = xBC.split([width, DSTATE, DSTATE], -1)
    dt = torch.randn(batch, seqlen, heads, device="cuda").to(dtype)
    return Scan(
        x.unflatten(-1, (heads, HEADDIM)),
        dt,
        -torch.linspace(1, 16, heads, device="cuda"),
        B.unsqueeze(2),
        C.unsqueeze(2),
        torch.ones(heads, device="cuda"),
        None,
        torch.full((heads,), -3.0, device="cuda"),
        None,
        None,
        None,
        CHUNK,
        True,
        (0.0, math.inf),
    )


def gpu_microseconds(call: Callable[[], Any], count: int = 20) -> tuple[float, dict[str, float]]:
    """What the kernels of a call take on the GPU, together and each."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(count):
            call()
        torch.cuda.synchronize()
    each: dict[str, float] = {}
    for event in profile.key_averages():
        time = float(getattr(event, "self_device_time_total", 0.0))
        if time:
            each[event.key] = time / count
    return sum(each.values()), each


def floor(scan: Scan, rate: float) -> float:
    """Microseconds that the bytes of a forward pass take."""
    size = scan.x.element_size()
    numbers = 2 * scan.x.numel() + scan.B.numel() + scan.C.numel() + scan.dt.numel()
    return numbers * size / rate


def upstream_calls(scan: Scan, dout: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Both passes by upstream's kernels."""
    from mamba_ssm.ops.triton import ssd_combined as upstream

    options: dict[str, Any] = {"D": scan.D, "dt_bias": scan.dt_bias, "dt_softplus": True}
    x, dt, A, B, C = scan[:5]
    out = upstream._mamba_chunk_scan_combined_fwd(x, dt, A, B, C, CHUNK, **options)[0]
    return (
        lambda: upstream._mamba_chunk_scan_combined_fwd(x, dt, A, B, C, CHUNK, **options),
        lambda: upstream._mamba_chunk_scan_combined_bwd(
            dout, x, dt, A, B, C, out, CHUNK, **options
        ),
    )


def rows(shapes: tuple[Any, ...], with_upstream: bool) -> Iterator[tuple[Any, ...]]:
    """Of each size: the floors and the times of both passes."""
    rate = copy_rate()
    for shape in shapes:
        scan = drawn_scan(shape)
        dout = torch.randn(scan.x.shape, device="cuda").to(scan.x.dtype)
        least = floor(scan, rate)
        calls: list[Callable[[], Any]] = [
            partial(cuda_forward.forward, scan),
            partial(cuda_backward.backward, scan, dout, None),
        ]
        calls += upstream_calls(scan, dout) if with_upstream else ()
        yield shape, least, [gpu_microseconds(call) for call in calls]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream", action="store_true", help="time upstream's kernels too")
    parser.add_argument("--kernels", action="store_true", help="print each kernel's time too")
    processors.add_option(parser)
    arguments = parser.parse_args()
    with processors.limited(arguments.processors):
        print_table(arguments.upstream, arguments.kernels)


def print_table(upstream: bool, kernels: bool) -> None:
    """Print a line a size, with upstream's kernels and each kernel's time where asked for."""
    print(f"{torch.cuda.get_device_name()}: copy {copy_rate() / 1e6:.2f} TB/s")
    for shape, least, times in rows(SHAPES, upstream):
        print("x".join(map(str, shape)), f"floor {least:.0f}", *(f"{t:.1f}" for t, _ in times))
        if kernels:
            for name, time in (pair for _, each in times[:2] for pair in each.items()):
                print(f"    {name}: {time:.1f}")


if __name__ == "__main__":
    main()
