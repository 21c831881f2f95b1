"""How long the selective scan takes on a CPU, or how much memory.

``python benchmarks/selective_scan.py`` prints seconds for the forward pass and for forward and
backward, and the peak of extra memory, for the backend that the op picks; and the same for
mamba_ssm's ``selective_scan_ref`` where mamba_ssm can be imported. Each row is a process of its
own, so that the peaks do not hide each other. Sizes: see ``--help``.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

# Runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

Scan = Callable[..., Any]


def ours() -> Scan:
    """The op, by the backend that it picks."""
    from jetson_mamba.ops.selective_scan import selective_scan_fn

    return selective_scan_fn


def upstream() -> Scan:
    """mamba_ssm's reference, which jetson_mamba makes importable without the extension."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    import jetson_mamba  # noqa: F401

    scan: Scan = selective_scan_ref
    return scan


def arguments(sizes: argparse.Namespace) -> list[Tensor]:
    """u, delta, A, B, C, D, z, delta_bias and the gradient that comes back."""
    batch, dim, seqlen, dstate = sizes.batch, sizes.dim, sizes.seqlen, sizes.dstate
    dtype = getattr(torch, sizes.dtype)
    torch.manual_seed(0)
    u, delta, z, dout = (torch.randn(batch, dim, seqlen, dtype=dtype) for _ in range(4))
    B, C = (torch.randn(batch, 1, dstate, seqlen, dtype=dtype) for _ in range(2))
    A = -torch.arange(1.0, dstate + 1).repeat(dim, 1)
    tensors = [u, delta, A, B, C, torch.ones(dim), z, torch.rand(dim) - 4, dout]
    return [tensor.to(sizes.device) for tensor in tensors]


def measure(scan: Scan, tensors: list[Tensor], repeats: int, backward: bool) -> None:
    """Print one row: forward, forward and backward, peak of extra memory."""
    *leaves, dout = tensors
    device = dout.device
    scan(*(leaf[..., :1] if leaf.dim() > 2 else leaf for leaf in leaves), True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def synchronized() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def forward() -> None:
        with torch.no_grad():
            scan(*leaves, True)

    def both() -> None:
        wanted = [leaf.detach().requires_grad_() for leaf in leaves]
        torch.autograd.grad(scan(*wanted, True), wanted, dout)

    def seconds(run: Callable[[], None]) -> float:
        taken = []
        for _ in range(repeats):
            start = synchronized()
            run()
            taken.append(synchronized() - start)
        return min(taken)

    times = [f"{seconds(forward):9.3f} s", f"{seconds(both):9.3f} s" if backward else "        - s"]
    if device.type == "cuda":
        extra = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    else:
        # Kibibytes on Linux.
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    print(*times, f"{extra:9.0f} MiB", flush=True)


def main() -> None:
    """Run both, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--dstate", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--upstream-backward",
        action="store_true",
        help="time upstream's backward pass too: minutes and gigabytes on a CPU",
    )
    parser.add_argument("--only", choices=["ours", "upstream"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()

    if chosen.only is None:
        print(f"{'':22}{'forward':>9}   {'+ backward':>9}  {'extra memory':>12}")
        for only in ("ours", "upstream"):
            print(f"{only:20}", end="", flush=True)
            command = [sys.executable, __file__, *sys.argv[1:], "--only", only]
            if subprocess.run(command, check=False).returncode:
                print("did not run")
        return
    torch.set_num_threads(chosen.threads)
    try:
        scan = {"ours": ours, "upstream": upstream}[chosen.only]()
    except ImportError as error:
        print(f"not measured: {error}")
        return
    tensors = arguments(chosen)
    backward = chosen.only == "ours" or chosen.upstream_backward
    measure(scan, tensors, chosen.repeats if backward else 1, backward)


if __name__ == "__main__":
    main()
