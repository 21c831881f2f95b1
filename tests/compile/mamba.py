"""Prints how far the Mamba block of one release is in a graph from its eager calls.

The block is compiled, and exported. ``python -m tests.compile.mamba CHECK...`` prints a line for
each result: its name and the relative norm of its difference. The release is whatever ``mamba_ssm``
is first on the path, the device is torch's default.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

import jetson_mamba  # noqa: F401 - activates the overrides
from jetson_mamba.dispatch.paths import inference_path
from tests import checks
from tests.references.tolerance import relative_norm

D_MODEL, DSTATE = 16, 8


def block() -> nn.Module:
    from mamba_ssm.modules.mamba_simple import Mamba

    torch.manual_seed(0)
    module: nn.Module = Mamba(D_MODEL, d_state=DSTATE)
    return module


def drawn(seqlen: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, seqlen, D_MODEL)


def step(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> dict[str, Tensor]:
    """The output and every gradient of a loss."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = call(x)
    (out * torch.linspace(-1, 1, D_MODEL)).sum().backward()
    found = {"out": out.detach(), "x": x.grad}
    found.update((name, each.grad) for name, each in module.named_parameters())
    # Copies: with CUDA graphs the next call writes to the same memory.
    return {name: each.clone() for name, each in found.items() if each is not None}


def compiled(
    autocast: bool = False, lengths: tuple[int, ...] = (35, 41), **options: Any
) -> Iterator[tuple[str, float]]:
    """A block in one graph, forward and backward, and without gradients."""
    module = block()
    module(drawn(4))  # as most programs do: ops are there before a compiler is imported
    torch._dynamo.reset()
    whole: Any = torch.compile(module, fullgraph=True, **options)
    for seqlen in lengths:
        x = drawn(seqlen)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            expected, found = step(module, module, x), step(module, whole, x)
            assert len(expected) == len(list(module.parameters())) + 2
            for name, right in expected.items():
                yield f"{seqlen} {name}", relative_norm(found[name], right)
            with torch.no_grad():
                yield f"{seqlen} without gradients", relative_norm(whole(x), module(x))


def traced() -> Iterator[tuple[str, float]]:
    yield from compiled(backend="aot_eager")


def traced_once() -> Iterator[tuple[str, float]]:
    """At one length: other lengths of other releases are as those of the latest."""
    yield from compiled(backend="aot_eager", lengths=(35,))


def symbolic() -> Iterator[tuple[str, float]]:
    yield from compiled(backend="aot_eager", dynamic=True)


def autocast() -> Iterator[tuple[str, float]]:
    yield from compiled(True, backend="aot_eager")


def inductor() -> Iterator[tuple[str, float]]:
    yield from compiled(dynamic=True)


def cuda_graphs() -> Iterator[tuple[str, float]]:
    yield from compiled(mode="reduce-overhead")


def inference() -> Iterator[tuple[str, float]]:
    """The inference path in bfloat16 beside upstream's autograd function."""
    module = block().bfloat16()
    x = drawn(300).bfloat16()
    with torch.no_grad():
        found = module(x)
        with inference_path(False):
            yield "inference", relative_norm(found, module(x))


def breaks() -> Iterator[tuple[str, float]]:
    """How often Dynamo has to leave its graph: no difference, but to be zero as well."""
    torch._dynamo.reset()
    explained = torch._dynamo.explain(block())(drawn(35))
    assert explained.graph_count == 1
    yield "graph breaks", explained.graph_break_count


def exported() -> Iterator[tuple[str, float]]:
    module = block()
    batch = torch.export.Dim("batch", min=2, max=64)
    seqlen = torch.export.Dim("seqlen", min=2, max=8192)
    program = torch.export.export(module, (drawn(35),), dynamic_shapes=({0: batch, 1: seqlen},))
    for x in (drawn(7, 3), drawn(2100, 2)):
        yield f"exported {tuple(x.shape)}", relative_norm(program.module()(x), module(x))


def fork() -> Iterator[tuple[str, float]]:
    """Upstream's own autograd function, traced as a fork's would be, which no edit leads past."""
    from mamba_ssm.ops.selective_scan_interface import MambaInnerFn

    module: Any = block()

    def inner(xz: Tensor, *weights: Tensor) -> Tensor:
        conv, bias, x_proj, dt_proj, out_proj, A, D, dt_bias = weights
        out: Tensor = MambaInnerFn.apply(
            *(xz, conv, bias, x_proj, dt_proj, out_proj, None),
            *(A, None, None, D, dt_bias, None, None, True),
        )
        return out

    weights = (
        *(module.conv1d.weight, module.conv1d.bias, module.x_proj.weight, module.dt_proj.weight),
        *(module.out_proj.weight, -module.A_log.exp(), module.D, module.dt_proj.bias),
    )
    leaves = [torch.randn(2, 4 * D_MODEL, 35), *(each.detach().clone() for each in weights)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    whole = torch.compile(inner, fullgraph=True, backend="aot_eager")
    results = []
    for call in (inner, whole):
        out = call(*leaves)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for index, (found, expected) in enumerate(zip(results[1], results[0])):
        yield f"fork {index}", relative_norm(found, expected)


CHECKS = {
    check.__name__: check
    for check in (
        *(traced, traced_once, symbolic, autocast, inductor, cuda_graphs),
        *(inference, breaks, exported, fork),
    )
}


def main() -> None:
    """Run the checks named on the command line."""
    checks.run(CHECKS)


if __name__ == "__main__":
    main()
