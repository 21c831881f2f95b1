"""Mamba-2 on a GPU, called in every way that does without autograd, beside upstream's function.

``python -m tests.gpu.mamba2 CHECK...`` prints a line for each result, as ``tests.compile.mamba2``
does, of which some checks are made here as well.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch

import jetson_mamba
from tests.compile import mamba2
from tests.compile.mamba2 import Model, Results, Subject, block, model
from tests.references.tolerance import relative_norm

mamba2.DEVICE = torch.device("cuda")
# Few sizes: for each, Triton tries every configuration of every kernel.
mamba2.D_MODEL, mamba2.VOCABULARY = 64, 64
mamba2.LAYER = {"d_state": 32, "headdim": 32, "chunk_size": 32}


def in_bfloat16(subject: Subject) -> Subject:
    module = copy.deepcopy(subject.module).to(torch.bfloat16)
    return Model(module) if isinstance(subject, Model) else Subject(module)


def inference() -> Results:
    """In bfloat16: the inference path, four times with other numbers, against the way past it.

    Once by upstream's kernels; then by this project's, one by one and by CUDA graphs.
    """
    from jetson_mamba.dispatch.paths import inference_path
    from jetson_mamba.replay import captured

    subjects = {
        "block": block(),
        "gated": block(rmsnorm=False),
        "MLP": block(d_ssm=64),
        "parts": block(use_mem_eff_path=False),
        "model": model(),
    }
    most_elements = captured.MOST_ELEMENTS
    ways = (("triton", 0), ("kernels", 0), ("graphs", most_elements))
    for way, captured.MOST_ELEMENTS in ways:
        for name, subject in subjects.items():
            low = in_bfloat16(subject)
            for call in range(4):
                x = subject.given(2, 77)
                x = x.detach().bfloat16() if x.is_floating_point() else x
                with torch.no_grad():
                    with jetson_mamba.backend(ssd="triton" if way == "triton" else None):
                        found = low.out(low.module, x)
                    with inference_path(False):
                        expected = low.out(low.module, x)
                yield f"{name} by {way} {call}", relative_norm(found, expected)


def captured() -> Results:
    """The inference path captured in a CUDA graph, and on a stream of its own."""
    low = in_bfloat16(block())
    x = torch.randn(2, 77, mamba2.D_MODEL, device="cuda", dtype=torch.bfloat16)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(3):
                warm = low.module(x)
        torch.cuda.current_stream().wait_stream(stream)
        expected = low.module(x)
        yield "on a stream", relative_norm(warm, expected)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = low.module(x)
        x.normal_()
        graph.replay()
        yield "in a graph", relative_norm(out, low.module(x))


def reduce_overhead() -> Results:
    """Compiled with CUDA graphs, block and model, with other numbers at each call."""
    subjects = {"block": block(), "model": model(), "model of Mamba": model(layer="Mamba1")}
    for name, subject in subjects.items():
        torch._dynamo.reset()
        low = in_bfloat16(subject)
        whole: Any = torch.compile(low.module, fullgraph=True, mode="reduce-overhead")
        for call in range(4):
            x = subject.given(2, 77)
            x = x.detach().bfloat16() if x.is_floating_point() else x
            with torch.no_grad():
                torch.compiler.cudagraph_mark_step_begin()
                found, expected = low.out(whole, x).clone(), low.out(low.module, x)
            yield f"{name} {call}", relative_norm(found, expected)


CHECKS = {
    **{
        name: mamba2.CHECKS[name]
        for name in (
            *("traced_block", "traced_model_of_mamba", "autocast_block"),
            *("breaks", "exported", "inductor_model"),
        )
    },
    **{check.__name__: check for check in (inference, captured, reduce_overhead)},
}


def main() -> None:
    """Run the checks named on the command line."""
    for name in sys.argv[1:]:
        for result, difference in CHECKS[name]():
            print(f"{name} {result} {difference:.3e}", flush=True)


if __name__ == "__main__":
    main()
