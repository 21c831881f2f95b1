"""Prints how far mamba_ssm's blocks are off with things on their projections.

``python -m tests.modules.blocks CHECK...`` prints a line for each result: the block, the
projection, what is on it, what was looked at, and the error beside a float64 block that calls each
module once; ``calls`` is how many calls there were too many or too few. The release is whatever
``mamba_ssm`` is first on the path.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

import jetson_mamba  # noqa: F401 - activates the overrides
from tests import checks
from tests.modules.things import HOOKS, THINGS, Thing, offload
from tests.references.selective_scan import selective_scan_reference
from tests.references.ssd import convolution, gated_rmsnorm, silu, ssd_scan
from tests.references.tolerance import relative_norm

D_MODEL, DSTATE, HEADDIM, SEQLEN = 16, 8, 8, 9
PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj", "norm")
MAMBA = {"d_state": DSTATE, "dt_rank": 3}
MAMBA2 = {"d_state": DSTATE, "headdim": HEADDIM, "chunk_size": 4}
BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mamba": ("mamba_simple.Mamba", MAMBA),
    "Mamba with biases": ("mamba_simple.Mamba", {**MAMBA, "bias": True}),
    "Mamba2": ("mamba2.Mamba2", MAMBA2),
    "Mamba2 without a norm": ("mamba2.Mamba2", {**MAMBA2, "rmsnorm": False}),
    "Mamba2 with an MLP": ("mamba2.Mamba2", {**MAMBA2, "d_ssm": 16}),
    "Mamba2Simple": ("mamba2_simple.Mamba2Simple", MAMBA2),
}
# Of what the release has.
BLOCKS = {
    name: block
    for name, block in BLOCKS.items()
    if find_spec(f"mamba_ssm.modules.{block[0].partition('.')[0]}")
}


def build(name: str, **more: Any) -> nn.Module:
    """A block with the same weights each time, large enough that all of it matters."""
    path, options = BLOCKS[name]
    module, _, kind = path.partition(".")
    torch.manual_seed(0)
    block: nn.Module = getattr(import_module(f"mamba_ssm.modules.{module}"), kind)(
        D_MODEL, **options, **more
    )
    with torch.no_grad():
        for projection in PROJECTIONS[:4]:
            if hasattr(block, projection):
                getattr(block, projection).weight.mul_(2)
    return block


class Norm(nn.Module):
    """The gated norm, in plain operations."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.weight, self.eps = like.weight, like.eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Of the scan's output and the gate."""
        return gated_rmsnorm(x, z, self.weight, eps=self.eps, ngroups=1, norm_before_gate=False)


def reference(block: Any, x: Tensor, seq_idx: Tensor | None = None) -> Tensor:
    """A block in float64, each module of which is called once."""
    taps, bias = block.conv1d.weight.squeeze(1), block.conv1d.bias
    A = -torch.exp(block.A_log)
    out: Tensor
    if hasattr(block, "x_proj"):
        signal, z = block.in_proj(x).chunk(2, -1)
        signal = convolution(signal, taps, bias, None, "silu")
        rank = block.dt_rank
        dt, B, C = block.x_proj(signal).split([rank, DSTATE, DSTATE], -1)
        _, y, _, _ = selective_scan_reference(
            *(signal.mT, block.dt_proj(dt).mT, A, B.mT, C.mT, block.D, z.mT), delta_softplus=True
        )
        out = block.out_proj(y.mT)
        return out
    projected = block.in_proj(x)
    dim = block.nheads * HEADDIM
    mlp = (projected.shape[-1] - 2 * dim - 2 * DSTATE - block.nheads) // 2
    up, gate, z, xBC, dt = projected.split([mlp, mlp, dim, dim + 2 * DSTATE, block.nheads], -1)
    xBC = convolution(xBC, taps, bias, seq_idx, "silu")
    signal, B, C = xBC.split([dim, DSTATE, DSTATE], -1)
    y, *_ = ssd_scan(
        signal.unflatten(-1, (-1, HEADDIM)),
        dt,
        A,
        B.unsqueeze(2),
        C.unsqueeze(2),
        D=block.D,
        dt_bias=block.dt_bias,
        seq_idx=seq_idx,
        dt_softplus=True,
    )
    y = y.flatten(2)
    y = block.norm(y, z) if hasattr(block, "norm") else y * silu(z)
    out = block.out_proj(torch.cat([silu(up) * gate, y], -1) if mlp else y)
    return out


def pair(name: str, projection: str, thing: Thing) -> tuple[nn.Module, nn.Module]:
    """A block with a thing on a projection, and the same in float64 to be computed by reference."""
    block, right = build(name), build(name)
    if hasattr(right, "norm"):
        right.norm = Norm(right.norm)
    thing(block, projection)
    thing(right, projection)
    return block, right.double()


def combinations() -> Iterator[tuple[str, str, str, Thing]]:
    for name in BLOCKS:
        block = build(name)
        for projection in PROJECTIONS:
            if hasattr(block, projection):
                things = HOOKS if projection == "norm" else THINGS
                yield from ((name, projection, each, thing) for each, thing in things.items())


def step(
    block: nn.Module, call: Callable[..., Tensor], x: Tensor, **more: Any
) -> dict[str, Tensor]:
    """The output and every gradient of a loss."""
    x = x.clone().requires_grad_()
    block.zero_grad()
    out = call(x, **more)
    (out * torch.linspace(-1, 1, D_MODEL, dtype=x.dtype)).sum().backward()
    found = {"out": out.detach(), "gradient of x": x.grad}
    found.update((f"gradient of {name}", each.grad) for name, each in block.named_parameters())
    return {name: each for name, each in found.items() if each is not None}


def compared(
    label: str, found: dict[str, Tensor], right: dict[str, Tensor]
) -> Iterator[tuple[str, float]]:
    """The largest error, of the same results."""
    yield f"{label} results", float(len(found.keys() ^ right.keys()))
    yield f"{label} error", max(relative_norm(found[each], right[each]) for each in right)


def called() -> Iterator[tuple[str, float]]:
    """Every thing on every projection of every block, forward, backward and without gradients."""
    for name, projection, what, thing in combinations():
        block, right = pair(name, projection, thing)
        label = f"{name}, {projection}, {what}"
        x = torch.randn(2, SEQLEN, D_MODEL)
        expected = step(right, lambda x, right=right: reference(right, x), x.double())
        yield from compared(label, step(block, block, x), expected)
        with torch.no_grad():
            yield f"{label} without gradients", relative_norm(block(x), expected["out"])
        yield f"{label} calls", calls_too_many(block, getattr(block, projection), x)


def calls_too_many(block: nn.Module, module: nn.Module, x: Tensor) -> float:
    """How many more calls of a module there are than one, or fewer."""
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    block(x)
    return float(abs(len(calls) - 1))


def everywhere() -> Iterator[tuple[str, float]]:
    """A hook on all modules of the process, and pre-hooks that leave all as it is."""
    for name in BLOCKS:
        block = build(name)
        projections = [getattr(block, each) for each in PROJECTIONS if hasattr(block, each)]
        x = torch.randn(2, SEQLEN, D_MODEL)
        right = step(block, block, x)
        calls: list[nn.Module] = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, given, out, calls=calls: calls.append(module)
        )
        found = step(block, block, x)
        handle.remove()
        yield f"{name} calls", float(sum(calls.count(each) != 1 for each in projections))
        yield from compared(name, found, right)


def biases() -> Iterator[tuple[str, float]]:
    """A bias of the output projection is trained, which upstream's own backward pass cannot."""
    block, right = pair("Mamba with biases", "", lambda owner, name: None)
    x = torch.randn(2, SEQLEN, D_MODEL)
    found = step(block, block, x)
    yield from compared("", found, step(right, lambda x: reference(right, x), x.double()))


def packed() -> Iterator[tuple[str, float]]:
    """Sequences of a pack stay apart, also where modules are called."""
    seq_idx = torch.tensor([[0] * 4 + [1] * 3 + [2] * 2], dtype=torch.int32)
    for name in BLOCKS.keys() & {"Mamba2", "Mamba2Simple"}:
        for projection in ("in_proj", "out_proj", "norm"):
            block, right = pair(name, projection, HOOKS["forward hook"])
            x = torch.randn(1, SEQLEN, D_MODEL)
            found = step(block, block, x, seq_idx=seq_idx)
            expected = step(
                right, lambda x, right=right: reference(right, x, seq_idx=seq_idx), x.double()
            )
            yield from compared(f"{name}, {projection}", found, expected)


def grouped() -> Iterator[tuple[str, float]]:
    """A hook that changes nothing changes nothing where B, C and the norm have groups."""
    x = torch.randn(2, SEQLEN, D_MODEL)
    for name in BLOCKS.keys() & {"Mamba2", "Mamba2Simple"}:
        block = build(name, ngroups=2)
        expected = step(block, block, x)
        for projection in ("in_proj", "out_proj", "norm"):
            calls: list[None] = []
            module = getattr(block, projection)
            handle = module.register_forward_hook(lambda *_, calls=calls: calls.append(None))
            yield from compared(f"{name}, {projection}", step(block, block, x), expected)
            yield f"{name}, {projection} calls", abs(len(calls) - 1)
            handle.remove()


def generated(block: Any, x: Tensor) -> Tensor:
    """What a block gives with a cache: for a prompt, then token by token."""
    width, dim = block.conv1d.kernel_size[0], block.conv1d.in_channels
    shape = (block.nheads, HEADDIM, DSTATE) if hasattr(block, "nheads") else (dim, DSTATE)
    states = (torch.zeros(len(x), dim, width), torch.zeros(len(x), *shape))
    cache = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={0: states})
    outs = [block(x[:, :4], inference_params=cache)]
    for place in range(4, x.shape[1]):
        cache.seqlen_offset = place
        outs.append(block(x[:, place : place + 1], inference_params=cache))
    return torch.cat(outs, 1)


def decoded() -> Iterator[tuple[str, float]]:
    """Generation calls the same modules: it gives what the whole sequence gives at once."""
    x = torch.randn(2, SEQLEN, D_MODEL)
    chosen = ("adapter", "forward hook", "parametrization")
    for name in ("Mamba", "Mamba2"):
        for projection in PROJECTIONS:
            for what in ("forward hook",) if projection == "norm" else chosen:
                block = build(name, layer_idx=0)
                if not hasattr(block, projection):
                    continue
                THINGS[what](block, projection)
                with torch.no_grad():
                    error = relative_norm(generated(block, x), block(x))
                yield f"{name}, {projection}, {what}", error


def offloaded() -> Iterator[tuple[str, float]]:
    """Weights that are kept elsewhere until their modules are called."""
    x = torch.randn(2, SEQLEN, D_MODEL)
    for name in BLOCKS:
        more = {} if name == "Mamba2Simple" else {"layer_idx": 0}
        block = build(name, **more)
        with torch.no_grad():
            right = block(x)
            offload(block, "")
            yield f"{name}", relative_norm(block(x), right)
            if more and "MLP" not in name:
                yield f"{name}, generating", relative_norm(generated(block, x), right)
        left = [each for module in block.children() for each in module.parameters()]
        yield f"{name}, left behind", float(sum(not each.is_meta for each in left))


def quantised() -> Iterator[tuple[str, float]]:
    """torch's dynamic quantisation: projections of another class, whose weight is a method."""
    from torch.ao.quantization import quantize_dynamic

    x = torch.randn(2, SEQLEN, D_MODEL)
    for name in BLOCKS:
        block = build(name).eval()
        small = quantize_dynamic(block, {nn.Linear})
        assert type(small.out_proj) is not nn.Linear
        with torch.no_grad():
            found = small(x)
            yield f"{name} changed", float(torch.equal(found, block(x)))
            yield f"{name}", relative_norm(found, block(x))
    block = build("Mamba", layer_idx=0).eval()
    with torch.no_grad():
        small = quantize_dynamic(block, {nn.Linear})
        yield "Mamba, generating", relative_norm(generated(small, x), generated(block, x))


def traced() -> Iterator[tuple[str, float]]:
    """In one graph of torch.compile."""
    x = torch.randn(2, SEQLEN, D_MODEL)
    for name, projection, what in (
        ("Mamba", "in_proj", "adapter"),
        ("Mamba", "dt_proj", "parametrization"),
        ("Mamba2", "out_proj", "adapter"),
        ("Mamba2Simple", "norm", "forward hook"),
    ):
        torch._dynamo.reset()
        block, right = pair(name, projection, THINGS[what])
        whole: Any = torch.compile(block, backend="aot_eager", fullgraph=True)
        expected = step(right, lambda x, right=right: reference(right, x), x.double())
        yield from compared(f"{name}, {projection}, {what}", step(block, whole, x), expected)


class Foreign(nn.Module):
    """A block that others wrote, with modules of their own names around the fused function."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.rest = inner
        self.project_in, self.project_x = inner.in_proj, inner.x_proj
        self.project_dt, self.project_out = inner.dt_proj, inner.out_proj

    def forward(self, x: Tensor) -> Tensor:
        """The block, of its modules here."""
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

        rest = self.rest
        out: Tensor = mamba_inner_fn(
            self.project_in(x).transpose(1, 2),
            rest.conv1d.weight,
            rest.conv1d.bias,
            self.project_x.weight,
            self.project_dt.weight,
            self.project_out.weight,
            None,
            -torch.exp(rest.A_log),
            None,
            None,
            rest.D,
            delta_bias=self.project_dt.bias,
            delta_softplus=True,
        )
        return out


def foreign() -> Iterator[tuple[str, float]]:
    """Modules are found by their weights where they have other names, also beside a graph."""
    x = torch.randn(2, SEQLEN, D_MODEL)
    for projection, what in (("x", "forward hook"), ("dt", "adapter"), ("out", "adapter")):
        block, right = pair("Mamba", f"{projection}_proj", THINGS[what])
        found = Foreign(block)
        expected = step(right, lambda x, right=right: reference(right, x), x.double())["out"]
        yield f"{projection}, {what}", relative_norm(found(x), expected)
        torch._dynamo.reset()
        compiled: Any = torch.compile(found, backend="eager")
        yield f"{projection}, {what}, compiled", relative_norm(compiled(x), expected)


CHECKS = {
    each.__name__: each
    for each in (
        *(
            called,
            everywhere,
            biases,
            packed,
            grouped,
            decoded,
            offloaded,
            quantised,
            traced,
            foreign,
        ),
    )
}

if __name__ == "__main__":
    checks.run(CHECKS)
