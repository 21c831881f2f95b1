"""The norms by upstream's launchers, without a GPU.

These are imitated here, as 1.x has them and as later releases do, and compute with PyTorch.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.norms import op as norms
from jetson_mamba.ops.norms import triton
from tests.references.tolerance import relative_norm

plain, plain_gated = norms._plain_norm, norms._plain_gated
calls: list[dict[str, Any]] = []


def rows(*tensors: Tensor | None) -> None:
    """As the kernels need them."""
    for each in tensors:
        assert each is None or (each.dim() == 2 and each.stride(1) == 1)


def normed(
    x: Tensor, others: dict[str, Any], eps: float, dtype: Any, is_rms: bool
) -> tuple[Any, ...]:
    """Outputs and the sum, x itself where there is none."""
    names = ("weight", "bias", "residual", "x1", "weight1", "bias1", "rowscale")
    tensors: Any = (x, *(others.get(name) for name in names))
    total_dtype = x.dtype if dtype is None else dtype
    found = plain(
        *(tensors, torch.float32, total_dtype, x.dtype, eps, 0.0, True, is_rms),
        False,
    )
    is_sum = others.get("residual") is not None or others.get("x1") is not None
    changed = is_sum or others.get("rowscale") is not None or total_dtype != x.dtype
    *outs, total = found
    return (*outs, total if changed else x)


def of_2(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    eps: float,
    residual: Any = None,
    x1: Any = None,
    weight1: Any = None,
    bias1: Any = None,
    dropout_p: float = 0.0,
    rowscale: Any = None,
    out_dtype: Any = None,
    residual_dtype: Any = None,
    is_rms_norm: bool = False,
) -> tuple[Any, ...]:
    """As the launcher of 2.0 and later."""
    given = locals()
    rows(x, residual, x1)
    calls.append(given)
    if rowscale is not None:
        assert rowscale.shape == (x.shape[0],)
        given["rowscale"] = rowscale
    y, *more, total = normed(x, given, eps, residual_dtype, is_rms_norm)
    return y, (more or [None])[0], x, x, total, None, None


def of_1(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    eps: float,
    residual: Any = None,
    residual_dtype: Any = None,
    is_rms_norm: bool = False,
) -> tuple[Any, ...]:
    """As the launcher of 1.x."""
    given = locals()
    rows(x, residual)
    calls.append(given)
    y, total = normed(x, given, eps, residual_dtype, is_rms_norm)
    return y, x, x, total


def gated(
    x: Tensor,
    weight: Tensor,
    bias: Any,
    eps: float,
    z: Any = None,
    out: Any = None,
    group_size: Any = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> tuple[Any, ...]:
    """As the launcher of the norm with a gate."""
    rows(x, z)
    calls.append(locals())
    size = group_size or x.shape[-1]
    return plain_gated(x, weight, bias, z, eps, size, norm_before_gate, is_rms_norm), x, x


RELEASES = ("norm_forward", "norm_forward_of_1")


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The op that the imported release hands its launcher to; Triton runs here."""
    op: str = request.param
    names = {
        op: {"_layer_norm_fwd": of_2 if op == "norm_forward" else of_1},
        "gated_norm_forward": {"_layer_norm_fwd": gated},
    }
    calls.clear()
    monkeypatch.setattr(triton, "_repeatable", {})
    monkeypatch.setattr(triton, "launchers_of", names.get)
    monkeypatch.setattr(norms, "triton_runs_on", lambda device: True)
    return op


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape)


# Rows with gaps between them, and columns apart.
X = {
    "rows": drawn(2, 3, 8),
    "a slice": drawn(2, 3, 12)[..., 2:10],
    "columns apart": drawn(2, 3, 8, 2)[..., 1],
}
WEIGHT, BIAS, RESIDUAL = torch.rand(8) + 0.5, drawn(8), drawn(2, 3, 8)
NORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "with a bias": {"bias": BIAS},
    "of the sum": {"residual": RESIDUAL, "prenorm": True},
    "of the sum in float64": {"residual": RESIDUAL, "residual_in_fp32": True},
    "with its sum": {"prenorm": True},
    "with a wider sum": {"prenorm": True, "residual_in_fp32": True},
    "by the root": {"is_rms_norm": True, "eps": 0.1},
    "with masks": {"return_dropout_mask": True, "prenorm": True},
}
OF_TWO: dict[str, dict[str, Any]] = {
    "of two": {"x1": drawn(2, 3, 8)},
    "by two weights": {"weight1": torch.rand(8), "bias1": drawn(8)},
    "scaled by rows": {"rowscale": torch.rand(2, 3)},
}

# 1.x has no such norms.
LATER: dict[str, dict[str, dict[str, Any]]] = {"norm_forward": OF_TWO, "norm_forward_of_1": {}}


def both(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], ...]:
    """What it gives by the launchers, three times alike, and without them."""
    found = []
    with torch.no_grad():
        for _ in range(3):
            results = function()
            found.append([results] if isinstance(results, Tensor) else [*results])
        count = len(calls)
        with monkeypatch.context() as patch:
            patch.setattr(norms, "triton_runs_on", lambda device: False)
            results = function()
    assert len(calls) == count
    for again in found[1:]:
        for one, other in zip(found[0], again):
            assert one is other is None or torch.equal(one, other)
    return found[0], [results] if isinstance(results, Tensor) else [*results]


@pytest.mark.parametrize("layout", X)
@pytest.mark.parametrize(
    ("release", "kind"),
    [(release, kind) for release in RELEASES for kind in (*NORMS, *LATER[release])],
    indirect=["release"],
)
def test_a_norm_is_what_the_launcher_computes(
    kind: str, layout: str, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"bias": None, **{**NORMS, **LATER[release]}[kind]}
    bias = options.pop("bias")
    x = X[layout]
    found, right = both(lambda: norms.layer_norm_fn(x, WEIGHT, bias, **options), monkeypatch)
    assert calls and len(found) == len(right)
    for one, other in zip(found, right):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.shape == other.shape and one.dtype == other.dtype
            assert relative_norm(one, other) < 1e-6
    last = calls[-1]
    assert last["eps"] == options.get("eps", 1e-6)
    assert last["is_rms_norm"] is options.get("is_rms_norm", False)
    assert last["weight"].is_contiguous()


@pytest.mark.parametrize("layout", X)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_before_gate": False},
        {"group_size": 4, "is_rms_norm": True, "eps": 0.1},
        {"z": None, "bias": BIAS},
    ],
)
def test_a_gated_norm_is_what_the_launcher_computes(
    options: dict[str, Any], layout: str, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, given = X[layout], {"bias": None, "z": drawn(2, 3, 16)[..., ::2], **options}
    found, right = both(lambda: norms.layernorm_fn(x, WEIGHT, **given), monkeypatch)
    assert calls[-1]["norm_before_gate"] is given.get("norm_before_gate", True)
    assert calls[-1]["group_size"] == given.get("group_size", 8)
    for one, other in zip(found, right):
        assert one.shape == x.shape and relative_norm(one, other) < 1e-6


def test_where_no_upstream_is_imported_it_is_computed_all_the_same(
    release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "launchers_of", lambda op: None)
    with torch.no_grad():
        assert triton.norm((X["rows"],), None, 1e-6, False) is None
        assert triton.gated_norm((X["rows"],), 1e-6, None, True, False) is None
        out = norms.layer_norm_fn(X["rows"], WEIGHT, BIAS)
        gate = norms.layernorm_fn(X["rows"], WEIGHT, BIAS, RESIDUAL)
    assert out.shape == gate.shape == (2, 3, 8) and calls == []


def test_with_a_gradient_to_come_no_launcher_is_asked(release: str) -> None:
    weight = WEIGHT.clone().requires_grad_()
    norms.layer_norm_fn(X["rows"], weight, None).sum().backward()
    norms.layernorm_fn(X["rows"], weight, None).sum().backward()
    assert calls == [] and weight.grad is not None
