"""Compares one release of mamba-ssm with float64.

Its blocks and its functions are run. ``python -m tests.releases.compare VERSION CHECK...`` prints a
line for each result of each check: its name and the relative norm of its error. The release is
whatever ``mamba_ssm`` is first on the path; the package that is tested is activated by its startup
file alone, or imported here.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

import torch
from torch import Tensor

from tests import checks
from tests.references.blocks import mamba2_block, mamba_block
from tests.references.ssd import ssd_mixer, ssd_scan
from tests.references.tolerance import relative_norm

BATCH, SEQLEN, D_MODEL = 2, 35, 16


def block(
    module: torch.nn.Module, reference: Callable[[Any, Tensor], Tensor]
) -> Iterator[tuple[str, float]]:
    """The output of a block and the gradient of everything that has one."""
    x = torch.randn(BATCH, SEQLEN, D_MODEL, requires_grad=True)
    weights = torch.randn(BATCH, SEQLEN, D_MODEL)
    out = module(x)
    (out * weights).sum().backward()
    doubles = {
        name: each.detach().double().requires_grad_() for name, each in module.named_parameters()
    }
    double_x = x.detach().double().requires_grad_()
    expected = reference(doubles, double_x)
    (expected * weights.double()).sum().backward()
    yield "out", relative_norm(out, expected)
    yield "x", relative_norm(gradient(x), gradient(double_x))
    for name, parameter in module.named_parameters():
        yield name, relative_norm(gradient(parameter), gradient(doubles[name]))


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def mamba() -> Iterator[tuple[str, float]]:
    """A Mamba block."""
    from mamba_ssm.modules.mamba_simple import Mamba

    return block(Mamba(D_MODEL, d_state=8), mamba_block)


def mamba2() -> Iterator[tuple[str, float]]:
    """A Mamba-2 block."""
    from mamba_ssm.modules.mamba2 import Mamba2

    module = Mamba2(D_MODEL, d_state=16, headdim=8, chunk_size=16)
    return block(module, lambda weight, x: mamba2_block(weight, x, headdim=8, eps=module.norm.eps))


def mamba_inner() -> Iterator[tuple[str, float]]:
    """``MambaInnerFn``, with the parameters of a block that would not call it by itself."""
    from mamba_ssm.modules.mamba_simple import Mamba
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    module = Mamba(D_MODEL, d_state=8)

    class Inner(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            xz = (module.in_proj.weight @ x.reshape(-1, D_MODEL).T).reshape(-1, BATCH, SEQLEN)
            out: Tensor = mamba_inner_fn(
                xz.transpose(0, 1),
                module.conv1d.weight,
                module.conv1d.bias,
                module.x_proj.weight,
                module.dt_proj.weight,
                module.out_proj.weight,
                None,
                -torch.exp(module.A_log),
                None,
                None,
                module.D,
                delta_bias=module.dt_proj.bias,
                delta_softplus=True,
            )
            return out

        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            return module.named_parameters(*args, **kwargs)

    return block(Inner(), mamba_block)


def small_mixer(seqlen: int = 21) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a mixer with few heads, for the interpreter is slow, and its options.

    The compiled convolution takes rows and channels in multiples of 8 only, that begin at multiples
    of 16 bytes.
    """
    nheads, headdim, dstate = 4, 7, 18
    dim = nheads * headdim
    channels = dim + 2 * dstate
    tensors = {
        "zxbcdt": torch.randn(1, seqlen, dim + channels + nheads),
        "conv1d_weight": torch.randn(channels, 4) / 2,
        "conv1d_bias": torch.randn(channels),
        "dt_bias": torch.randn(nheads),
        "A": -torch.rand(nheads) - 0.5,
        "D": torch.randn(nheads),
        "rmsnorm_weight": torch.randn(dim),
        "outproj_weight": torch.randn(D_MODEL, dim) / 4,
    }
    return tensors, {"headdim": headdim, "norm_before_gate": False}


def against_float64(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    *,
    without_gradients: bool = True,
) -> Iterator[tuple[str, float]]:
    """The output of a function on upstream's Triton kernels, and every gradient."""
    import jetson_mamba.ops

    assert jetson_mamba.ops.triton_runs_on(torch.device("cpu")), "TRITON_INTERPRET=1 is needed"
    singles = {name: each.clone().requires_grad_() for name, each in tensors.items()}
    doubles = {name: each.double().requires_grad_() for name, each in tensors.items()}
    out = function(chunk_size=16, **singles, **options)
    expected, _, *_ = reference(**doubles, **options)
    weights = torch.randn(out.shape)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    yield "out", relative_norm(out, expected)
    for name, single in singles.items():
        yield name, relative_norm(gradient(single), gradient(doubles[name]))
    if without_gradients:
        with torch.no_grad():
            out = function(chunk_size=16, **singles, **options)
        yield "out without gradients", relative_norm(out, expected)


def split_conv1d_scan(seqlen: int = 21) -> Iterator[tuple[str, float]]:
    """``MambaSplitConv1dScanCombinedFn`` on upstream's Triton kernels."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

    tensors, options = small_mixer(seqlen)
    yield from against_float64(
        mamba_split_conv1d_scan_combined, ssd_mixer, tensors, options, without_gradients=False
    )


def split_conv1d_scan_without_gradients() -> Iterator[tuple[str, float]]:
    """The same function on its way past ``MambaSplitConv1dScanCombinedFn``."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined

    tensors, options = small_mixer()
    doubles: dict[str, Any] = {name: each.double() for name, each in tensors.items()}
    with torch.no_grad():
        out = mamba_split_conv1d_scan_combined(chunk_size=16, **tensors, **options)
    yield "out without gradients", relative_norm(out, ssd_mixer(**doubles, **options)[0])


def ssd_on_triton() -> Iterator[tuple[str, float]]:
    """The op ``ssd`` by its backend ``triton``, called as where nothing is dispatched to it."""
    import mamba_ssm.ops.triton.ssd_combined  # noqa: F401 - whose copy hands over the kernels

    from jetson_mamba.ops import ssd

    tensors, options = small_mixer()
    yield from against_float64(ssd.mamba_split_conv1d_scan_combined, ssd_mixer, tensors, options)
    scan = {
        "x": torch.randn(1, 17, 2, 8),
        "dt": torch.randn(1, 17, 2),
        "A": -torch.rand(2) - 0.5,
        "B": torch.randn(1, 17, 1, 16),
        "C": torch.randn(1, 17, 1, 16),
        "D": torch.randn(2),
        "z": torch.randn(1, 17, 2, 8),
        "dt_bias": torch.randn(2),
        "initial_states": torch.randn(1, 2, 8, 16),
    }
    errors = against_float64(ssd.mamba_chunk_scan_combined, ssd_scan, scan, {"dt_softplus": True})
    for name, error in errors:
        yield f"{name} of a scan", error
    if hasattr(torch.library, "register_autograd"):
        errors = against_float64(
            core_by_its_operator, ssd_mixer, tensors, options, without_gradients=False
        )
        for name, error in errors:
            yield f"{name} of a core", error
    assert {choice.backend for choice in ssd.OP.choices().values()} == {"triton"}


def core_by_its_operator(
    *, chunk_size: int, headdim: int, norm_before_gate: bool, outproj_weight: Tensor, **tensors: Any
) -> Tensor:
    """A mixer as a compiled graph computes it where Triton runs."""
    order = ("zxbcdt", "conv1d_weight", "conv1d_bias", "dt_bias", "A", "D", "rmsnorm_weight")
    out, *_ = torch.ops.jetson_mamba.ssd_core(
        *(tensors[name] for name in order),
        *(None, chunk_size, 0.0, float("inf"), "silu", 1e-6, headdim, 1),
        *(norm_before_gate, None),
    )
    return torch.nn.functional.linear(out, outproj_weight)


def norms_on_triton() -> Iterator[tuple[str, float]]:
    """The norms of ``jetson_mamba.ops`` against upstream's on its Triton kernels."""
    from mamba_ssm.ops.triton import layer_norm, layernorm_gated

    from jetson_mamba import ops

    def rows() -> Tensor:
        return torch.randn(3, 5, D_MODEL, requires_grad=True)

    def weight() -> Tensor:
        return torch.randn(D_MODEL, requires_grad=True)

    branch = {"x1": rows(), "weight1": weight(), "bias1": weight()}
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("layer_norm_fn", layer_norm, {"residual": rows(), "prenorm": True}),
        ("layer_norm_fn", layer_norm, {"residual": rows(), "prenorm": True, **branch}),
        ("rms_norm_fn", layer_norm, {"residual": rows()}),
        ("rms_norm_fn", layer_norm, {"rowscale": torch.randn(3, 5), "eps": 1.0}),
        ("layernorm_fn", layernorm_gated, {"z": rows(), "group_size": 8}),
        ("rmsnorm_fn", layernorm_gated, {"z": rows(), "norm_before_gate": False}),
    ]
    for index, (name, upstream, options) in enumerate(cases):
        arguments = {"x": rows(), "weight": weight(), "bias": weight(), **options}
        leaves = [
            each for each in arguments.values() if isinstance(each, Tensor) and each.requires_grad
        ]
        found = []
        for function in (getattr(ops, name), getattr(upstream, name)):
            results = function(**arguments)
            results = results if isinstance(results, tuple) else (results,)
            total = sum((each * torch.linspace(-1, 1, D_MODEL)).sum() for each in results)
            found.append([*results, *torch.autograd.grad(total, leaves)])
        for place, (ours, theirs) in enumerate(zip(*found)):
            yield f"{name} {index} {place}", relative_norm(ours, theirs)
        with torch.no_grad():
            results = getattr(ops, name)(**arguments)
        results = results if isinstance(results, tuple) else (results,)
        for place, (ours, theirs) in enumerate(zip(results, found[1])):
            yield f"{name} {index} {place} without gradients", relative_norm(ours, theirs)


def autocast() -> Iterator[tuple[str, float]]:
    """Both blocks under a CPU's autocast, as in training; their products are in bfloat16."""

    class Autocast(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                out: Tensor = self.module(x)
            assert out.dtype == torch.bfloat16
            return out

        def named_parameters(self, *args: Any, **kwargs: Any) -> Any:
            return self.module.named_parameters(*args, **kwargs)

    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.modules.mamba_simple import Mamba

    yield from block(Autocast(Mamba(D_MODEL, d_state=8)), mamba_block)
    second = Mamba2(D_MODEL, d_state=16, headdim=8, chunk_size=16)
    yield from block(
        Autocast(second),
        lambda weight, x: mamba2_block(weight, x, headdim=8, eps=second.norm.eps),
    )


def gradchecks() -> Iterator[tuple[str, float]]:
    """The differentiable functions of both targets against finite differences, in float64."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
    from mamba_ssm.ops.triton import ssd_combined

    def double(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def check(function: Callable[..., Any], *arguments: Any) -> float:
        return 0.0 if torch.autograd.gradcheck(function, arguments, fast_mode=True) else 1.0

    dim, dstate, seqlen, rank = 4, 3, 6, 2
    yield (
        "selective_scan_fn",
        check(
            lambda u, delta, A, *rest: selective_scan_fn(u, delta, -A.exp(), *rest, True),
            *(double(2, dim, seqlen), double(2, dim, seqlen), double(dim, dstate)),
            *(double(2, 1, dstate, seqlen), double(2, 1, dstate, seqlen)),
            *(double(dim), double(2, dim, seqlen), double(dim)),
        ),
    )
    yield (
        "mamba_inner_fn",
        check(
            lambda xz, conv, bias, x_proj, dt_proj, out, A, D, dt: mamba_inner_fn(
                xz, conv, bias, x_proj, dt_proj, out, None, -A.exp(), None, None, D, delta_bias=dt
            ),
            *(double(2, 2 * dim, seqlen), double(dim, 1, 3), double(dim)),
            *(double(rank + 2 * dstate, dim), double(dim, rank), double(5, dim)),
            *(double(dim, dstate), double(dim), double(dim)),
        ),
    )
    nheads, headdim = 2, 4
    channels = nheads * headdim + 2 * dstate
    yield (
        "mamba_chunk_scan_combined",
        check(
            lambda x, dt, A, B, C, D, z, bias: ssd_combined.mamba_chunk_scan_combined(
                x, dt, -A.exp(), B, C, 4, D=D, z=z, dt_bias=bias, dt_softplus=True
            ),
            *(double(2, seqlen, nheads, headdim), double(2, seqlen, nheads), double(nheads)),
            *(double(2, seqlen, 1, dstate), double(2, seqlen, 1, dstate), double(nheads)),
            *(double(2, seqlen, nheads, headdim), double(nheads)),
        ),
    )
    yield (
        "mamba_split_conv1d_scan_combined",
        check(
            lambda zxbcdt, conv, bias, dt, A, D, norm, out: (
                ssd_combined.mamba_split_conv1d_scan_combined(
                    *(zxbcdt, conv, bias, dt, -A.exp(), D, 4),
                    rmsnorm_weight=norm,
                    outproj_weight=out,
                    headdim=headdim,
                )
            ),
            *(double(2, seqlen, nheads * headdim + channels + nheads), double(channels, 3)),
            *(double(channels), double(nheads), double(nheads), double(nheads)),
            *(double(nheads * headdim), double(5, nheads * headdim)),
        ),
    )


CHECKS = {
    check.__name__: check
    for check in (
        *(mamba, mamba2, mamba_inner, split_conv1d_scan, split_conv1d_scan_without_gradients),
        *(ssd_on_triton, norms_on_triton, autocast, gradchecks),
    )
}


def main() -> None:
    """Run the checks named on the command line."""
    checks.run(CHECKS)


if __name__ == "__main__":
    main()
