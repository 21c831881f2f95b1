"""Trains blocks on several processes, then once more on a single one.

A Mamba and a Mamba-2 block. ``torchrun`` starts it. It knows nothing of jetson_mamba: what serves
it is the startup file. Each process also trains the same blocks alone, on the whole batch, and
writes down how far the gradients of the two are apart: ``rank-N.json``, in the folder that it runs
in.
"""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist
from mamba_ssm import Mamba, Mamba2
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

BATCH, SEQLEN, D_MODEL, STEPS = 4, 33, 16, 3


def blocks() -> torch.nn.Sequential:
    """The two blocks, the same in every process."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        Mamba(D_MODEL, d_state=8),
        Mamba2(D_MODEL, d_state=16, headdim=8, chunk_size=16),
    )


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """One step of gradient descent; the gradients stay, to be compared."""
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()


def main() -> None:
    """Train, compare, and write down what ran."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, share = dist.get_rank(), BATCH // dist.get_world_size()
    distributed = DistributedDataParallel(blocks())
    alone = blocks()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (distributed, alone)]
    generator = torch.Generator().manual_seed(1)
    errors: dict[str, float] = {}
    for index in range(STEPS):
        x, y = torch.randn(2, BATCH, SEQLEN, D_MODEL, generator=generator)
        mine = slice(rank * share, (rank + 1) * share)
        step(distributed, optimizers[0], x[mine], y[mine])
        step(alone, optimizers[1], x, y)
        pairs = zip(distributed.module.parameters(), alone.named_parameters())
        for parameter, (name, expected) in pairs:
            assert parameter.grad is not None and expected.grad is not None
            error = (parameter.grad - expected.grad).norm() / expected.grad.norm()
            errors[f"step {index}, {name}"] = float(error)
    targets = ("selective_scan_interface", "triton.ssd_combined")
    written = {
        "errors": errors,
        "activated_by": sys.modules["jetson_mamba"].activated_by,
        "files": [sys.modules[f"mamba_ssm.ops.{name}"].__file__ for name in targets],
    }
    with open(f"rank-{rank}.json", "w") as file:
        json.dump(written, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
