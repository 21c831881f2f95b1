"""What else of mamba-ssm launches Triton: the same on a CPU as on upstream's kernels.

Run by ``test_past_targets`` in a process with a release on its path: on the kernels under Triton's
interpreter it tells how far the ops are from them, without it that all of it runs.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

from tests import checks
from tests.references.ssd import ssd_mixer, ssd_scan
from tests.references.tolerance import relative_norm

DIM = 16


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape or (3, 5, DIM), requires_grad=True)


def activations() -> Iterator[tuple[str, float]]:
    """``swiglu`` and the two functions under it."""
    from mamba_ssm.ops.triton import k_activations

    from jetson_mamba import ops

    xy, dout = rows(3, 5, 2 * DIM), torch.randn(3, 5, DIM)
    out = k_activations.swiglu(xy)
    (dxy,) = torch.autograd.grad(out, xy, dout)
    exact = xy.double().detach().requires_grad_()
    a, b = exact.chunk(2, -1)
    expected = a * torch.sigmoid(a) * b
    (dexpected,) = torch.autograd.grad(expected, exact, dout.double())
    yield "swiglu", relative_norm(out, expected)
    yield "gradient", relative_norm(dxy, dexpected)
    plain = xy.detach()
    for dtype in (torch.float32, torch.bfloat16):
        given = plain.to(dtype), dout.to(dtype)
        target, wider = torch.zeros(3, 5, DIM, dtype=dtype), torch.zeros(3, 5, 2 * DIM, dtype=dtype)
        for name, function in (
            ("upstream", k_activations._swiglu_bwd),
            ("op", ops.swiglu_backward),
        ):
            found = function(*given, dxy=wider, recompute_output=True, out=target)
            assert [each.dtype for each in found] == [dtype, dtype]
            yield f"{name} gradient {dtype}", relative_norm(found[0], dexpected)
            yield f"{name} output {dtype}", relative_norm(found[1], expected)
            assert torch.equal(found[0], wider) and torch.equal(found[1], target)


def norms() -> Iterator[tuple[str, float]]:
    """The norm with its projection, and that of ``MambaInnerFn``, beside the ops."""
    from mamba_ssm.ops import selective_scan_interface
    from mamba_ssm.ops.triton import layer_norm

    from jetson_mamba import ops

    cases: list[dict[str, Any]] = [
        {"residual": rows(), "prenorm": True, "is_rms_norm": True},
        {"residual": rows(), "eps": 0.1},
        {"prenorm": True, "residual_in_fp32": True},
    ]
    for index, options in enumerate(cases):
        weights = {
            "norm_weight": rows(DIM),
            "norm_bias": rows(DIM),
            "linear_weight": rows(7, DIM),
            "linear_bias": rows(7),
        }
        arguments = {"x": rows(), **weights, **options}
        leaves = [each for each in arguments.values() if isinstance(each, Tensor)]
        found = []
        for function in (ops.layer_norm_linear_fn, layer_norm.layer_norm_linear_fn):
            results = function(**arguments)
            results = results if isinstance(results, tuple) else (results,)
            total = sum((each * torch.linspace(-1, 1, each.shape[-1])).sum() for each in results)
            found.append([*results, *torch.autograd.grad(total, leaves)])
        for place, (ours, theirs) in enumerate(zip(*found)):
            assert ours.dtype == theirs.dtype
            yield f"linear {index} {place}", relative_norm(ours, theirs)
    # Releases before 2.2.3 have none.
    upstream = getattr(selective_scan_interface, "rms_norm_forward", ops.rms_norm_forward)
    x, weight = torch.randn(5, DIM), torch.randn(DIM)
    yield "rms", relative_norm(ops.rms_norm_forward(x, weight, None), upstream(x, weight, None))


def falcon() -> Iterator[tuple[str, float]]:
    """``mamba_inner_fn`` with norms of dt, B and C inside, trained."""
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn

    dim, dstate, rank, seqlen = 8, 4, 3, 11
    arguments = {
        "xz": rows(2, 2 * dim, seqlen),
        "conv1d_weight": rows(dim, 1, 4),
        "conv1d_bias": rows(dim),
        "x_proj_weight": rows(rank + 2 * dstate, dim),
        "delta_proj_weight": rows(dim, rank),
        "out_proj_weight": rows(6, dim),
        "out_proj_bias": None,
        "A": (-torch.rand(dim, dstate)).requires_grad_(),
        "D": rows(dim),
        "delta_bias": rows(dim),
        "b_rms_weight": torch.ones(dstate),
        "c_rms_weight": torch.ones(dstate),
        "dt_rms_weight": torch.ones(dim),
    }
    trained = mamba_inner_fn(**arguments)
    trained.sum().backward()
    for name, each in arguments.items():
        if each is not None and each.requires_grad:
            assert each.grad is not None and each.grad.isfinite().all(), name
    with torch.no_grad():
        yield "out", relative_norm(mamba_inner_fn(**arguments), trained)


def second(
    function: Callable[..., Any], tensors: dict[str, Tensor], **options: Any
) -> list[Tensor]:
    given = {name: each.detach().requires_grad_() for name, each in tensors.items()}
    result = function(**given, **options)
    out = result[0] if isinstance(result, tuple) else result
    first = torch.autograd.grad((out * out).sum(), list(given.values()), create_graph=True)
    penalty = sum((each.square().sum() for each in first), out.new_zeros(()))
    return [*first, *torch.autograd.grad(penalty, list(given.values()))]


def second_derivatives() -> Iterator[tuple[str, float]]:
    """Of what goes through upstream's autograd functions where Triton runs."""
    from mamba_ssm.ops.triton import layer_norm, layernorm_gated, ssd_combined

    nheads, headdim, dstate, seqlen = 2, 16, 16, 17
    dim = nheads * headdim
    channels = dim + 2 * dstate
    scan = {
        "x": torch.randn(1, seqlen, nheads, headdim),
        "dt": torch.randn(1, seqlen, nheads) - 1,
        "A": -torch.rand(nheads) - 0.5,
        "B": torch.randn(1, seqlen, 1, dstate) / 4,
        "C": torch.randn(1, seqlen, 1, dstate) / 4,
        "D": torch.randn(nheads),
        "z": torch.randn(1, seqlen, nheads, headdim),
    }
    mixer = {
        "zxbcdt": torch.randn(1, seqlen, dim + channels + nheads) / 2,
        "conv1d_weight": torch.randn(channels, 4) / 4,
        "conv1d_bias": torch.randn(channels) / 4,
        "dt_bias": torch.randn(nheads) - 1,
        "A": -torch.rand(nheads) - 0.5,
        "D": torch.randn(nheads),
        "rmsnorm_weight": torch.randn(dim),
        "outproj_weight": torch.randn(DIM, dim) / 8,
    }

    def rms(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
        total = x + residual
        return total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    def gated(x: Tensor, weight: Tensor, z: Tensor) -> Tensor:
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return normed * weight * z * torch.sigmoid(z)

    normed = {"x": torch.randn(3, DIM), "weight": torch.randn(DIM)}
    cases: list[tuple[Any, Any, dict[str, Tensor], dict[str, Any], dict[str, Any]]] = [
        (
            ssd_combined.mamba_chunk_scan_combined,
            ssd_scan,
            scan,
            {"chunk_size": 16},
            {"dt_softplus": True},
        ),
        (
            ssd_combined.mamba_split_conv1d_scan_combined,
            ssd_mixer,
            mixer,
            {"chunk_size": 16},
            {"headdim": headdim, "norm_before_gate": False},
        ),
        (
            layer_norm.rms_norm_fn,
            rms,
            {**normed, "residual": torch.randn(3, DIM)},
            {"bias": None},
            {},
        ),
        (
            layernorm_gated.rmsnorm_fn,
            gated,
            {**normed, "z": torch.randn(3, DIM)},
            {"bias": None},
            {},
        ),
    ]
    for function, reference, tensors, own, options in cases:
        exact = {name: each.double() for name, each in tensors.items()}
        found = second(function, tensors, **own, **options)
        expected = second(reference, exact, **options)
        for place, (actual, right) in enumerate(zip(found, expected)):
            yield f"{function.__name__} {place}", relative_norm(actual, right)
    x, weight = rows(3, DIM), rows(DIM)
    out = layer_norm.rms_norm_fn(x, weight, None, dropout_p=0.5)
    refused: Any = contextlib.nullcontext()
    from jetson_mamba import ops

    if ops.triton_runs_on(x.device):
        import pytest

        refused = pytest.raises(RuntimeError, match="dropout_p: expected 0")
    with refused:
        torch.autograd.grad(out.sum(), x, create_graph=True)
    yield "dropout", 0.0


def hybrid() -> Iterator[tuple[str, float]]:
    """A language model of Mamba-2 and gated MLPs, with and without the fused norms, trained."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    tokens = torch.randint(0, 48, (2, 6))
    outputs = []
    for fused in (True, False):
        torch.manual_seed(0)
        layer = {"layer": "Mamba2", "headdim": 8, "d_state": 16}
        config = MambaConfig(
            d_model=32,
            d_intermediate=48,
            n_layer=2,
            vocab_size=48,
            ssm_cfg=layer,
            attn_layer_idx=[1],
            attn_cfg={"causal": True, "num_heads": 4},
            fused_add_norm=fused,
        )
        model = MambaLMHeadModel(config)
        logits = model(tokens).logits
        logits.square().mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        outputs.append([logits, *(each.grad for each in model.parameters())])
    for place, (one, other) in enumerate(zip(*outputs)):
        yield f"{place}", relative_norm(one, other)


CHECKS = {
    check.__name__: check for check in (activations, norms, falcon, second_derivatives, hybrid)
}


def main() -> None:
    """Run the checks named on the command line."""
    checks.run(CHECKS)


if __name__ == "__main__":
    main()
