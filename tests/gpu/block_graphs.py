"""Blocks of a release that a CUDA graph launches whole, beside the same calls without graphs.

``python -m tests.gpu.block_graphs CHECK...`` prints a line for each result: its name and the
relative norm of its difference. The release is whatever ``mamba_ssm`` is first on the path.
"""

from __future__ import annotations

import copy
from typing import Any, Iterator

import torch
from torch import Tensor, nn

import jetson_mamba  # noqa: F401 - activates the overrides
from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.ops.decoding import layers
from jetson_mamba.replay import captured
from tests import checks
from tests.references.tolerance import relative_norm

D_MODEL = 64
Results = Iterator[tuple[str, float]]


def blocks(**kept: Any) -> dict[str, nn.Module]:
    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.modules.mamba2_simple import Mamba2Simple
    from mamba_ssm.modules.mamba_simple import Mamba

    torch.manual_seed(0)
    sizes = {"d_state": 32, "headdim": 32, "chunk_size": 32, "device": "cuda", **kept}
    return {
        "Mamba": Mamba(D_MODEL, device="cuda", **kept),
        "Mamba in parts": Mamba(D_MODEL, device="cuda", use_fast_path=False, **kept),
        "Mamba2": Mamba2(D_MODEL, **sizes),
        "Mamba2 in parts": Mamba2(D_MODEL, use_mem_eff_path=False, **sizes),
        "Mamba2Simple": Mamba2Simple(D_MODEL, **sizes),
    }


def drawn(batch: int, seqlen: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, seqlen, D_MODEL, device="cuda", dtype=dtype)


def hold(module: nn.Module, x: Tensor) -> float:
    """The difference between a call and the same call by upstream's own way."""
    found = module(x)
    with inference_path(False):
        return relative_norm(found, module(x))


def forward() -> Results:
    """Each block at two sizes, also after its weights were changed where they lie."""
    for name, module in blocks(dtype=torch.bfloat16).items():
        before = captured.MEMORY.graphs
        with torch.no_grad():
            for size in ((1, 16), (2, 77)):
                for call in range(4):
                    yield f"{name} {size} {call}", hold(module, drawn(*size, torch.bfloat16))
            for parameter in module.parameters():
                parameter.mul_(0.9)
            yield f"{name} by other weights", hold(module, drawn(1, 16, torch.bfloat16))
        # One for each size, and none for a function inside.
        yield f"{name} graphs", captured.MEMORY.graphs - before - 2


def single_precision() -> Results:
    """In float32, with ``inference_mode``, and under autocast."""
    for name, module in blocks().items():
        before = captured.MEMORY.graphs
        with torch.inference_mode():
            for call in range(3):
                yield f"{name} {call}", hold(module, drawn(1, 16, torch.float32))
            with torch.autocast("cuda", torch.bfloat16):
                for call in range(3):
                    x = drawn(1, 16, torch.float32)
                    assert module(x).dtype == torch.bfloat16
                    yield f"{name} autocast {call}", hold(module, x)
        yield f"{name} graphs", captured.MEMORY.graphs - before - 2


def training_between() -> Results:
    """Steps of an optimizer between calls without gradients.

    Beside the graph of the block, its mixer's has one for each pass of training.
    """
    for name, module in blocks().items():
        before = captured.MEMORY.graphs
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for call in range(4):
            x = drawn(1, 16, torch.float32)
            module.train()
            module(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            module.eval()
            with torch.no_grad():
                yield f"{name} {call}", hold(module, x)
        passes = 2 if name in ("Mamba2", "Mamba2Simple") else 0
        yield f"{name} graphs", captured.MEMORY.graphs - before - 1 - passes


def step() -> Results:
    """Tokens through each block that has a step, for two generations, each by a graph of it."""
    few, layers.MOST_SEQUENCES = layers.MOST_SEQUENCES, 0
    try:
        for name, each in stepping():
            before = captured.MEMORY.graphs
            yield from tokens(name, each)
            yield f"{name} graphs", captured.MEMORY.graphs - before - 1
    finally:
        layers.MOST_SEQUENCES = few


def step_in_few_kernels() -> Results:
    """The same by the kernels that take its place, which need no graph."""
    for name, each in stepping():
        before = captured.MEMORY.graphs
        yield from tokens(name, each)
        yield f"{name} graphs", captured.MEMORY.graphs - before


def step_in_a_graph_of_the_user() -> Results:
    """By those kernels, whose launches are captured, beside the launches."""
    for name, each in stepping():
        x = drawn(2, 1, torch.bfloat16)
        states = each.allocate_inference_cache(2, 1)
        with torch.no_grad():
            aside = torch.cuda.Stream()
            with torch.cuda.stream(aside):
                each.step(x, *states)
            aside.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out, *_ = each.step(x, *states)
            others = copy.deepcopy(states)
            for token in range(5):
                x.copy_(drawn(2, 1, torch.bfloat16))
                graph.replay()
                expected, *_ = each.step(x, *others)
                yield f"{name} {token}", differing((out, expected), *zip(states, others))


def stepping() -> Iterator[tuple[str, Any]]:
    """The blocks that have a step."""
    for name, module in blocks(dtype=torch.bfloat16).items():
        if hasattr(module, "step"):
            yield name, module


def tokens(name: str, each: Any) -> Results:
    """The difference of tokens from the same by upstream's own way."""
    with torch.no_grad():
        for generation in range(2):
            states = each.allocate_inference_cache(2, 1)
            others = copy.deepcopy(states)
            for token in range(5):
                x = drawn(2, 1, torch.bfloat16)
                out, *returned = each.step(x, *states)
                assert all(one is other for one, other in zip(returned, states))
                with inference_path(False):
                    expected, *_ = each.step(x, *others)
                pairs = ((out, expected), *zip(states, others))
                yield f"{name} {generation} {token}", differing(*pairs)


def differing(*pairs: tuple[Tensor, Tensor]) -> float:
    """The largest difference of a pair."""
    return max(relative_norm(found, right) for found, right in pairs)


_CHECKS = (
    *(forward, single_precision, training_between),
    *(step, step_in_few_kernels, step_in_a_graph_of_the_user),
)
CHECKS = {check.__name__: check for check in _CHECKS}

if __name__ == "__main__":
    checks.run(CHECKS)
