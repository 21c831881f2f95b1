"""The norms agree with formulas in float64.

Outputs, sums and every gradient; what they refuse is named.
"""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba import ops
from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.ops.norms import pytorch
from tests.references.tolerance import relative_norm

# Untyped, so that tests can pass any keywords.
layer_norm_fn: Callable[..., Any] = ops.layer_norm_fn
rms_norm_fn: Callable[..., Any] = ops.rms_norm_fn
layernorm_fn: Callable[..., Any] = ops.layernorm_fn
rmsnorm_fn: Callable[..., Any] = ops.rmsnorm_fn

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
DIM = 12


@pytest.fixture(autouse=True, params=["plain", "served"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every norm as plain operations, and as a backend with a backward pass serves it on a GPU."""
    if request.param == "served":

        def served(x: Tensor, weight: Tensor, group: int, *others: Any, **_: Any) -> Any:
            found = way(x, weight, *others) is Way.KERNELS
            return pytorch.IMPLEMENTATION if found else None

        monkeypatch.setattr("jetson_mamba.ops.norms.op.kernels_for", served)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()


def layer(x: Tensor, eps: float) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], eps=eps)


def assert_agrees(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
) -> None:
    """Results and gradients of function are those of reference on the same rounded values."""
    given = {name: each.to(dtype).requires_grad_() for name, each in tensors.items()}
    exact = {name: each.detach().double().requires_grad_() for name, each in given.items()}
    results, expected = function(**given), reference(**exact)
    if isinstance(results, Tensor):
        results, expected = (results,), (expected,)
    assert len(results) == len(expected)
    weights = [torch.randn(each.shape).bfloat16().double() for each in expected]
    totals = [
        sum((each.double() * weight).sum() for each, weight in zip(found, weights))
        for found in (results, expected)
    ]
    gradients = torch.autograd.grad(totals[0], list(given.values()))
    right = torch.autograd.grad(totals[1], list(exact.values()))
    for found, wanted in (*zip(results, expected), *zip(gradients, right)):
        assert relative_norm(found, wanted) < TOLERANCE[dtype]
    for name, gradient in zip(given, gradients):
        assert gradient.dtype == given[name].dtype


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_rms_norm", [True, False])
@pytest.mark.parametrize("left_out", [(), ("bias",), ("residual",), ("bias", "residual")])
def test_a_norm_of_a_sum_with_a_residual(
    dtype: torch.dtype, is_rms_norm: bool, left_out: tuple[str, ...]
) -> None:
    tensors = {
        "x": drawn(2, 5, DIM),
        "weight": drawn(DIM),
        "bias": drawn(DIM),
        "residual": drawn(2, 5, DIM),
    }
    for name in left_out:
        del tensors[name]

    def function(x: Tensor, weight: Tensor, bias: Any = None, residual: Any = None) -> Any:
        options = {"residual": residual, "eps": 0.1, "prenorm": True}
        if is_rms_norm:
            return rms_norm_fn(x, weight, bias, **options)
        return layer_norm_fn(x, weight, bias, **options)

    def reference(x: Tensor, weight: Tensor, bias: Any = 0.0, residual: Any = 0.0) -> Any:
        total = x + residual
        return (rms if is_rms_norm else layer)(total, 0.1) * weight + bias, total

    assert_agrees(function, reference, tensors, dtype)


def test_a_second_branch_is_added_before_and_normed_by_its_own_weight() -> None:
    tensors = {
        **{name: drawn(3, DIM) for name in ("x", "x1", "residual")},
        **{name: drawn(DIM) for name in ("weight", "bias", "weight1", "bias1")},
    }

    def reference(**given: Tensor) -> Any:
        total = given["x"] + given["x1"] + given["residual"]
        normed = layer(total, 1e-6)
        return (
            normed * given["weight"] + given["bias"],
            normed * given["weight1"] + given["bias1"],
            total,
        )

    def function(**given: Tensor) -> Any:
        return layer_norm_fn(**given, prenorm=True)

    assert_agrees(function, reference, tensors, torch.float32)


def test_rows_are_scaled_first() -> None:
    tensors = {"x": drawn(3, DIM), "weight": drawn(DIM), "rowscale": drawn(3)}
    assert_agrees(
        lambda x, weight, rowscale: rms_norm_fn(x, weight, None, rowscale=rowscale, eps=1.0),
        lambda x, weight, rowscale: rms(x * rowscale[:, None], 1.0) * weight,
        tensors,
        torch.float32,
    )


@pytest.mark.parametrize("function", [layer_norm_fn, rms_norm_fn])
@pytest.mark.parametrize(
    ("residual", "residual_in_fp32", "expected"),
    [
        (None, False, torch.bfloat16),
        (None, True, torch.float32),
        (torch.float32, False, torch.float32),
        (torch.bfloat16, True, torch.bfloat16),
    ],
)
def test_the_sum_has_the_dtype_of_the_residual(
    function: Callable[..., Any],
    residual: torch.dtype | None,
    residual_in_fp32: bool,
    expected: torch.dtype,
) -> None:
    x, weight = torch.randn(3, DIM).bfloat16(), torch.ones(DIM)
    given = None if residual is None else torch.randn(3, DIM).to(residual)
    options = {"prenorm": True, "residual_in_fp32": residual_in_fp32}
    out, total = function(x, weight, None, residual=given, **options)
    assert (out.dtype, total.dtype) == (torch.bfloat16, expected)
    exact = x.double() if given is None else x.double() + given.double()
    assert torch.equal(total, exact.to(expected))
    if expected == torch.float32 and given is not None:
        assert not torch.equal(total, total.bfloat16().float())


def test_what_is_normed_is_the_sum_before_it_is_rounded() -> None:
    x, residual = torch.full((1, 4), 256.0).bfloat16(), torch.tensor([[1.0, 0.5, 0.25, 0.125]])
    out = layer_norm_fn(x, torch.ones(4), None, residual=residual.bfloat16(), eps=0.0)
    expected = layer(256 + residual.double(), 0.0)
    assert relative_norm(out, expected) < TOLERANCE[torch.bfloat16]


def test_dropout_keeps_the_mean_and_tells_what_it_kept() -> None:
    torch.manual_seed(0)
    x = torch.ones(1000, DIM, requires_grad=True)
    x1 = torch.full((1000, DIM), 2.0)
    _, total, kept, kept1 = layer_norm_fn(
        x, torch.ones(DIM), None, x1=x1, dropout_p=0.25, prenorm=True, return_dropout_mask=True
    )
    assert kept.dtype == kept1.dtype == torch.bool
    assert torch.equal(total, kept / 0.75 + 2 * kept1 / 0.75)
    for mask in (kept, kept1):
        assert abs(mask.float().mean() - 0.75) < 0.02
    (gradient,) = torch.autograd.grad(total.sum(), x)
    assert torch.equal(gradient, kept / 0.75)


def test_without_dropout_there_is_no_mask() -> None:
    found = rms_norm_fn(torch.ones(2, DIM), torch.ones(DIM), None, return_dropout_mask=True)
    assert found[1:] == (None, None)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("norm_before_gate", [True, False])
@pytest.mark.parametrize("is_rms_norm", [True, False])
def test_a_gated_norm_of_groups(
    dtype: torch.dtype, group_size: int | None, norm_before_gate: bool, is_rms_norm: bool
) -> None:
    tensors = {
        "x": drawn(2, 5, DIM),
        "weight": drawn(DIM),
        "bias": drawn(DIM),
        "z": drawn(2, 5, DIM),
    }

    def function(**given: Tensor) -> Any:
        options = {"eps": 0.1, "group_size": group_size, "norm_before_gate": norm_before_gate}
        return (rmsnorm_fn if is_rms_norm else layernorm_fn)(**given, **options)

    def reference(x: Tensor, weight: Tensor, bias: Tensor, z: Tensor) -> Tensor:
        gate = z * torch.sigmoid(z)
        if not norm_before_gate:
            x = x * gate
        parts = x.split(group_size or DIM, -1)
        out = torch.cat([(rms if is_rms_norm else layer)(part, 0.1) for part in parts], -1)
        out = out * weight + bias
        return out * gate if norm_before_gate else out

    assert_agrees(function, reference, tensors, dtype)


def test_a_gated_norm_does_without_gate_and_bias() -> None:
    x, weight = drawn(3, DIM), drawn(DIM)
    assert relative_norm(rmsnorm_fn(x, weight, None), rms(x, 1e-6) * weight) < 1e-12


WRONG: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (layer_norm_fn, {"weight": torch.ones(3)}, r"weight: expected \(dim,\), \(12,\), found \(3,\)"),
    (layer_norm_fn, {"residual": torch.ones(3, DIM)}, r"residual: .*shape of x.*found \(3, 12\)"),
    (rms_norm_fn, {"x1": torch.ones(3, DIM)}, r"x1: .*shape of x.*found \(3, 12\)"),
    (rms_norm_fn, {"bias1": torch.ones(1)}, r"bias1: .*found \(1,\)"),
    (
        layer_norm_fn,
        {"x1": torch.ones(2, DIM), "rowscale": torch.ones(2)},
        "rowscale: expected None beside x1",
    ),
    (layer_norm_fn, {"dropout_p": 1.0}, r"dropout_p: .*less than 1, found 1\.0"),
    (layernorm_fn, {"z": torch.ones(3, DIM)}, r"z: .*shape of x.*found \(3, 12\)"),
    (rmsnorm_fn, {"group_size": 5}, "group_size: expected a divisor of dim=12, found 5"),
]


@pytest.mark.parametrize(("function", "change", "message"), WRONG)
def test_an_argument_that_does_not_fit_is_named(
    function: Callable[..., Any], change: dict[str, Any], message: str
) -> None:
    arguments = {"x": torch.ones(2, DIM), "weight": torch.ones(DIM), "bias": None, **change}
    with pytest.raises(ValueError, match=message):
        function(**arguments)


FUNCTIONS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (layer_norm_fn, {"prenorm": True}),
    (rms_norm_fn, {"residual_in_fp32": True, "prenorm": True}),
    (layernorm_fn, {"group_size": 4}),
    (rmsnorm_fn, {"norm_before_gate": False}),
]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_a_norm_is_transformed_as_its_formula_is(
    function: Callable[..., Any], options: dict[str, Any]
) -> None:
    """Derivatives of either order and direction, batches, and those of each sample."""
    x, other = drawn(3, 2, DIM), drawn(3, 2, DIM)
    weight, bias = drawn(DIM), drawn(DIM)
    second = "z" if function in (layernorm_fn, rmsnorm_fn) else "residual"

    def call(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
        found = function(x, weight, bias, **{second: other}, **options)
        return found if isinstance(found, Tensor) else torch.cat(found, -1)

    given = tuple(each.requires_grad_() for each in (x, weight, bias, other))
    assert torch.autograd.gradcheck(call, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, given)
    plain = tuple(each.detach() for each in given)
    where = (0, None, None, 0)
    assert relative_norm(torch.vmap(call, where)(*plain), call(*plain)) < 1e-14
    gradient = torch.func.grad(lambda *tensors: call(*tensors).square().sum(), (0, 1))
    for found, expected in zip(
        torch.vmap(gradient, where)(*plain),
        zip(*(gradient(a, plain[1], plain[2], b) for a, b in zip(plain[0], plain[3]))),
    ):
        assert relative_norm(found, torch.stack(expected)) < 1e-14


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("function", "options"), FUNCTIONS)
def test_a_traced_norm_is_right_at_any_size(
    function: Callable[..., Any], options: dict[str, Any]
) -> None:
    weight, bias = drawn(DIM), drawn(DIM)

    def call(x: Tensor) -> Any:
        return function(x, weight, bias, x * 0.5, **options)

    trace = torch.jit.trace(call, drawn(2, 3, DIM), check_trace=False)
    for shape in ((2, 3, DIM), (1, 7, DIM)):
        x = drawn(*shape)
        found, expected = trace(x), call(x)
        pairs = [(found, expected)] if isinstance(found, Tensor) else zip(found, expected)
        for actual, right in pairs:
            assert relative_norm(actual, right) < 1e-14


def test_dropout_under_vmap_asks_for_a_kind_of_randomness() -> None:
    x, weight = torch.ones(3, 100, DIM), torch.ones(DIM)

    def call(x: Tensor) -> Any:
        return rms_norm_fn(x, weight, None, dropout_p=0.5, prenorm=True)[1]

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(call)(x)
    same = torch.vmap(call, randomness="same")(x)
    assert torch.equal(same[0], same[1]) and same.bool().any()
    different = torch.vmap(call, randomness="different")(x)
    assert not torch.equal(different[0], different[1])


def test_a_second_derivative_of_a_norm_with_dropout_is_refused() -> None:
    """What was kept is not known any more where the norm is computed again."""
    x, weight = torch.randn(2, DIM), torch.ones(DIM)
    rest = (None, None, None, None, None, 1e-6)
    with pytest.raises(RuntimeError, match=r"dropout_p: expected 0 .*found 0\.5"):
        ops.layer_norm_again(x, weight, *rest, 0.5, None, False, False, True, False)
    again = ops.layer_norm_again(x, weight, *rest, 0.0, None, False, False, True, False)
    assert torch.equal(again, rms_norm_fn(x, weight, None))


def test_the_norms_of_1_have_their_own_order() -> None:
    x, weight, residual = torch.randn(2, DIM), torch.randn(DIM), torch.randn(2, DIM)
    found = ops.layer_norm_of_1(x, weight, None, residual, 0.5, True, True, True)
    expected = rms_norm_fn(x, weight, None, residual=residual, eps=0.5, prenorm=True)
    for actual, right in zip(found, expected):
        assert torch.equal(actual, right)
