"""Second derivatives of autograd functions whose backward pass autograd cannot see."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from jetson_mamba.dispatch.twice import keeps_copies, twice_differentiable

SEEN: list[tuple[bool, ...]] = []


def composed(x: Tensor, factor: float, y: Tensor | None, table: Tensor | None = None) -> Any:
    result = x.pow(3) * factor if y is None else x.pow(3) * y * factor
    return result, x.sum().detach()


class _Opaque(torch.autograd.Function):
    """``composed``, with a backward pass of numbers alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, factor: float, y: Tensor | None, table: Tensor | None = None
    ) -> Any:
        ctx.set_materialize_grads(False)
        cube = x.pow(3)
        ctx.save_for_backward(cube, x, y)
        ctx.factor = factor
        total = x.sum()
        ctx.mark_non_differentiable(total)
        return (cube * factor if y is None else cube * y * factor), total

    @staticmethod
    def backward(ctx: Any, dresult: Tensor | None, dtotal: Tensor | None) -> Any:
        assert dtotal is None
        if dresult is None:
            return None, None, None, None
        cube, x, y = ctx.saved_tensors
        assert len(ctx.saved_tensors) == 3
        SEEN.append(ctx.needs_input_grad)
        with torch.no_grad():
            outer = dresult * ctx.factor
            dx = outer * 3 * x.square() * (1 if y is None else y)
            return dx, None, None if y is None else outer * cube, None


twice = twice_differentiable(_Opaque, composed)


@pytest.fixture(autouse=True)
def _unseen() -> Iterator[None]:
    SEEN.clear()
    yield


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_is_one_function_for_each_pair() -> None:
    assert twice_differentiable(_Opaque, composed) is twice


@pytest.mark.parametrize("with_y", [True, False])
def test_first_and_second_derivatives_are_right(with_y: bool) -> None:
    x, y = drawn(5), drawn(5) if with_y else None

    def run(x: Tensor, y: Tensor | None) -> Tensor:
        result: Tensor = twice.apply(x.sin(), 2.0, y)[0]
        return result

    given: Any = (x, y) if with_y else (x,)
    assert torch.autograd.gradcheck(lambda *g: run(*g, *[None] * (2 - len(g))), given)
    assert torch.autograd.gradgradcheck(lambda *g: run(*g, *[None] * (2 - len(g))), given)


def test_a_batch_of_gradients_is_none_for_the_functions_own_backward() -> None:
    x, rows = drawn(5), torch.randn(3, 5, dtype=torch.float64)
    (found,) = torch.autograd.grad(twice.apply(x, 2.0, None)[0], x, rows, is_grads_batched=True)
    torch.testing.assert_close(found, rows * 6 * x.detach().square())
    assert not SEEN


def test_without_a_graph_the_functions_own_backward_runs() -> None:
    x, y = drawn(5), torch.randn(5, dtype=torch.float64)
    (once,) = torch.autograd.grad(twice.apply(x, 2.0, y)[0].sum(), x)
    assert SEEN == [(True, False, False)]
    (again,) = torch.autograd.grad(twice.apply(x, 2.0, y)[0].sum(), x, create_graph=True)
    assert len(SEEN) == 1
    torch.testing.assert_close(once, again)


def test_looks_like_the_function() -> None:
    result, total = twice.apply(drawn(3), 1.0, None)
    assert type(result.grad_fn).__name__ == "_OpaqueBackward"
    assert not total.requires_grad
    with torch.no_grad():
        assert twice.apply(drawn(3), 1.0, None)[0].grad_fn is None


@pytest.mark.parametrize("create_graph", [True, False])
def test_saved_tensors_are_unpacked_once_and_none_is_kept_twice(create_graph: bool) -> None:
    packed: list[Tensor] = []
    unpacked: list[int] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    def unpack(place: int) -> Tensor:
        unpacked.append(place)
        return packed[place]

    x, y = drawn(5), drawn(5)
    middle = x * 1
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result, _ = twice.apply(middle, 2.0, y)
    assert [tuple(tensor.shape) for tensor in packed] == [(5,)] * 3  # cube, middle, y
    torch.autograd.grad(result.sum(), middle, create_graph=create_graph)
    assert sorted(unpacked) == [0, 1, 2]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_hold(reentrant: bool) -> None:
    x, y = drawn(5), drawn(5)
    expected = torch.autograd.grad(twice.apply(x, 2.0, y)[0].sum(), (x, y))
    result = checkpoint(lambda *g: twice.apply(g[0], 2.0, g[1])[0], x, y, use_reentrant=reentrant)
    result.sum().backward()
    torch.testing.assert_close((x.grad, y.grad), expected)


def test_what_the_function_does_not_keep_may_change_unless_it_is_asked_for() -> None:
    """A weight that is stepped between the passes, of which the function kept a cast copy."""
    x, table = drawn(5), torch.nn.Parameter(torch.zeros(3))
    result, _ = twice.apply(x, 2.0, None, table)
    with torch.no_grad():
        table.add_(1)
    torch.autograd.grad(result.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(result.sum(), x, create_graph=True)


def test_what_is_kept_is_let_go_with_the_graph() -> None:
    x = drawn(5)
    middle = x * 1
    alive = weakref.ref(middle)
    gc.collect()
    gc.disable()
    try:
        result, _ = twice.apply(middle, 2.0, None)
        del middle
        result.sum().backward()
        assert alive() is None
        result, _ = twice.apply(x * 1, 2.0, None)
        alive = weakref.ref(result)
        del result
        assert alive() is None
    finally:
        gc.enable()


def test_a_function_of_no_tensors_is_one_too() -> None:
    class _Ones(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, size: int, value: float | None) -> Tensor:
            return torch.full((size,), value or 1.0)

        @staticmethod
        def backward(ctx: Any, dresult: Tensor) -> Any:
            raise AssertionError("nothing asks for a gradient")

    def ones(size: int, value: float | None) -> Tensor:
        return torch.full((size,), value or 1.0)

    found = twice_differentiable(_Ones, ones).apply(3, None)
    assert found.tolist() == [1.0, 1.0, 1.0] and not found.requires_grad


def test_the_composition_runs_under_the_autocast_of_the_forward_pass() -> None:
    @keeps_copies
    def product(x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    class _Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            return x @ y

        @staticmethod
        def backward(ctx: Any, dresult: Tensor) -> Any:
            raise AssertionError("not where a graph is recorded")

    x, y = torch.randn(3, 3, requires_grad=True), torch.randn(3, 3, requires_grad=True)
    seen = []
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = twice_differentiable(_Product, product).apply(x, y)
        (dx,) = torch.autograd.grad(result.float().sum(), x, create_graph=True)
        seen.append(torch.equal(dx, torch.ones(3, 3) @ y.detach().t()))
    assert seen == [False, True]


def test_copies_that_the_function_would_make_and_keep_are_made_before_it() -> None:
    given: list[Tensor] = []

    @keeps_copies
    def total(x: Tensor) -> Tensor:
        return x.square().sum()

    class _Total(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            given.append(x)
            x = x.contiguous()
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        def backward(ctx: Any, dresult: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            return 2 * x * dresult

    x = drawn(2, 3, 4)
    of = twice_differentiable(_Total, total)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = of.apply((x * 1).transpose(1, 2))
    assert given[0].is_contiguous()
    assert len([each for each in packed if each.shape == (2, 4, 3)]) == 1
    torch.testing.assert_close(torch.autograd.grad(result, x)[0], 2 * x)


@pytest.mark.filterwarnings("ignore")
def test_compiled_autograd_takes_the_backward_pass_that_there_is() -> None:
    """It traces what autograd runs, and knows no context but its own."""
    dynamo: Any = pytest.importorskip("torch._dynamo")
    enable: Any = getattr(dynamo, "compiled_autograd", None)
    if not hasattr(enable, "_enable"):
        pytest.skip("this torch has no compiled autograd")
    x = torch.randn(3, requires_grad=True)
    y = torch.randn(3, requires_grad=True)
    with enable._enable(torch.compile(backend="eager")):
        twice.apply(x, 2.0, y)[0].sin().sum().backward()
    expected = torch.autograd.grad(composed(x, 2.0, y)[0].sin().sum(), (x, y))
    torch.testing.assert_close((x.grad, y.grad), expected)
    assert SEEN == [(True, False, True)]
