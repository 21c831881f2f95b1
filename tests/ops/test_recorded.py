"""States that a gradient goes through, kept from step to step or left by a scan."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops.decoding import recorded
from jetson_mamba.ops.decoding.recorded import with_gradients
from jetson_mamba.ops.selective_scan import autograd

STEPS, BATCH, HEADS, DIM, STATE = 3, 2, 2, 3, 4


def unrecorded(*arguments: Any, **keywords: Any) -> Any:
    """What records nothing, and is not to be called where a gradient is wanted."""
    raise AssertionError("a gradient was wanted")


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + len(shape))
    return torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()


def same_gradients(found: Tensor, expected: Tensor, by: list[Tensor]) -> None:
    """Of one number by all of these."""
    torch.testing.assert_close(found, expected)
    pairs = zip(*(torch.autograd.grad(each, by, retain_graph=True) for each in (found, expected)))
    for one, other in pairs:
        assert other.count_nonzero(), "expected a gradient"
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("optional", [(), ("D",), ("D", "z", "dt_bias")])
def test_steps_of_a_state(softplus: bool, optional: tuple[str, ...]) -> None:
    first = drawn(BATCH, HEADS, DIM, STATE)
    x, dt, z = (drawn(STEPS, BATCH, HEADS, DIM, seed=i) for i in range(3))
    A = drawn(HEADS, DIM, STATE, seed=4)
    B, C = (drawn(STEPS, BATCH, 1, STATE, seed=i) for i in (5, 6))
    more = {"D": drawn(HEADS, DIM, seed=7), "dt_bias": drawn(HEADS, DIM, seed=8)}
    more = {name: each for name, each in more.items() if name in optional}
    step = with_gradients("selective_state_update", unrecorded, True)
    state, outs = first.clone(), []
    for i in range(STEPS):
        gate = {"z": z[i]} if "z" in optional else {}
        given = (state, x[i], 0.3 * dt[i], A, B[i], C[i])
        outs.append(step(*given, **more, **gate, dt_softplus=softplus))
    found = torch.stack(outs).square().sum() + state.pow(3).sum()

    held, expected = first, torch.zeros((), dtype=torch.float64)
    for i in range(STEPS):
        size = 0.3 * dt[i] + more.get("dt_bias", 0.0)
        size = functional.softplus(size) if softplus else size
        held = held * torch.exp(size[..., None] * A) + (size * x[i])[..., None] * B[i][:, :, None]
        out = (held * C[i][:, :, None]).sum(-1)
        out = out + more["D"] * x[i] if "D" in more else out
        out = out * functional.silu(z[i]) if "z" in optional else out
        expected = expected + out.square().sum()
    expected = expected + held.pow(3).sum()
    by = [first, x, dt, A, B, C, *more.values(), *([z] if "z" in optional else [])]
    same_gradients(found, expected, by)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("width", "length"), [(2, 1), (4, 3), (4, 4), (3, 5)])
@pytest.mark.parametrize("at_once", [1, 2])
def test_steps_of_a_convolution(
    width: int, length: int, at_once: int, activation: str | None, biased: bool
) -> None:
    state = drawn(BATCH, DIM, length)
    x, weight = drawn(BATCH, DIM, 4, seed=1), drawn(DIM, width, seed=2)
    bias = drawn(DIM, seed=3) if biased else None
    step = with_gradients("causal_conv1d_update", unrecorded, True)
    held, outs = state.clone(), []
    for i in range(0, 4, at_once):
        outs.append(step(x[..., i : i + at_once], held, weight, bias, activation=activation))
    inputs = torch.cat((state, x), -1)
    whole = functional.conv1d(inputs, weight[:, None], bias, groups=DIM)[..., -4:]
    whole = functional.silu(whole) if activation else whole
    torch.testing.assert_close(torch.cat(outs, -1), whole)
    found = torch.cat(outs, -1).square().sum() + held.pow(3).sum()
    expected = whole.square().sum() + inputs[..., -length:].pow(3).sum()
    same_gradients(found, expected, [state, x, weight, *([] if bias is None else [bias])])


def scanned(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The last state, step by step."""
    state = torch.zeros(BATCH, DIM, STATE, dtype=A.dtype)
    for i in range(STEPS):
        size = functional.softplus(delta[..., i, None])
        state = state * torch.exp(size * A) + size * u[..., i, None] * B[..., i].unsqueeze(1)
    return state


def scan_inputs() -> list[Tensor]:
    u, delta = (drawn(BATCH, DIM, STEPS, seed=i) for i in range(2))
    A = drawn(DIM, STATE).detach().abs().neg().requires_grad_()
    return [u, delta, A, *(drawn(BATCH, STATE, STEPS, seed=i) for i in (3, 4))]


def last_of(scan: Callable[..., Any], given: list[Tensor]) -> Any:
    return scan(*given, delta_softplus=True, return_last_state=True)


def test_the_last_state_of_a_scan() -> None:
    given = scan_inputs()
    out, last = last_of(with_gradients("selective_scan_fn", unrecorded, True), given)
    same_gradients(last.pow(3).sum(), scanned(*given[:4]).pow(3).sum(), given[:4])
    # And the output beside it, whose gradient is what it was.
    both = torch.autograd.grad(out.square().sum() + last.pow(3).sum(), given, retain_graph=True)
    alone = torch.autograd.grad(out.square().sum(), given, retain_graph=True)
    state = torch.autograd.grad(last.pow(3).sum(), given, allow_unused=True)
    for one, two, three in zip(both, alone, state):
        torch.testing.assert_close(one, two if three is None else two + three)


def test_the_last_state_is_computed_again_only_for_a_pass_through_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, runs = scan_inputs(), []
    composed = autograd._composed_state

    def counted(*arguments: Any) -> Tensor:
        runs.append(1)
        return composed(*arguments)

    monkeypatch.setattr(autograd, "_composed_state", counted)
    out, last = last_of(with_gradients("selective_scan_fn", unrecorded, True), given)
    out.sum().backward(retain_graph=True)
    assert runs == []
    last.sum().backward()
    assert runs == [1]


def test_the_last_state_within_a_transform_and_twice() -> None:
    given = scan_inputs()
    scan = with_gradients("selective_scan_fn", unrecorded, True)

    def of_u(u: Tensor) -> Tensor:
        return last_of(scan, [u, *given[1:]])[1].pow(3).sum()  # type: ignore[no-any-return]

    expected = torch.func.grad(lambda u: scanned(u, *given[1:4]).pow(3).sum())(given[0])
    torch.testing.assert_close(torch.func.grad(of_u)(given[0]), expected)
    assert torch.autograd.gradgradcheck(of_u, (given[0],))


def test_nothing_else_is_done_where_no_gradient_is_wanted() -> None:
    def plain(*arguments: Any) -> str:
        return "the kernel's"

    step = with_gradients("selective_state_update", plain, True)
    weights = torch.ones(2, requires_grad=True)
    assert step(weights.detach()) == "the kernel's"
    with torch.no_grad():
        assert step(weights) == "the kernel's"
    with torch.inference_mode():
        assert step(weights) == "the kernel's"
    assert with_gradients("mamba_inner_fn", plain, True) is plain


@pytest.mark.parametrize(("extension", "calls"), [(True, "the kernel's"), (False, "recorded")])
def test_on_a_gpu_with_an_extension_the_kernel_serves(
    monkeypatch: pytest.MonkeyPatch, extension: bool, calls: str
) -> None:
    """As it does without this package: a program of one step after another keeps no graph."""

    class OnAGpu(Tensor):
        is_cuda = True

    monkeypatch.setitem(recorded._RECORDED, "selective_scan_fn", lambda *given: "recorded")
    scan = with_gradients("selective_scan_fn", lambda *given: "the kernel's", extension)
    there = torch.ones(2).as_subclass(OnAGpu).requires_grad_()
    assert scan(there) == calls
    assert scan(torch.ones(2, requires_grad=True)) == "recorded"


def test_every_way_of_a_call_gives_the_same_state_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = scan_inputs()
    scan = with_gradients("selective_scan_fn", unrecorded, True)
    found = []
    for way in Way:
        monkeypatch.setattr(autograd, "way", lambda *_, way=way: way)
        found.append(torch.autograd.grad(last_of(scan, given)[1].sum(), given[:4]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
