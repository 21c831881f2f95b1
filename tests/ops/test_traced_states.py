"""States that a step writes in place, where something records the step: at any sizes, kept."""

from __future__ import annotations

from typing import Any, Callable, Tuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops import mamba_chunk_scan_combined, selective_state_update
from jetson_mamba.ops.causal_conv1d import causal_conv1d_update
from tests.references.tolerance import relative_norm

# What torch says of its own tracers.
pytestmark = pytest.mark.filterwarnings("ignore")
DIM, DSTATE, WIDTH = 4, 3, 4
Made = Callable[[int], Tuple[Tensor, ...]]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape)


def scanning(heads: tuple[int, ...], state: torch.dtype, indexed: bool) -> tuple[Any, Made]:
    A, D = -torch.rand(*heads, DIM, DSTATE), drawn(*heads, DIM)

    def call(states: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, *index: Tensor) -> Any:
        out = selective_state_update(states, x, dt, A, B, C, D, x, None, True, *index)
        return out, states

    def made(batch: int) -> tuple[Tensor, ...]:
        each = (batch, *heads, DIM)
        states = drawn(batch + 2 * indexed, *heads, DIM, DSTATE).to(state)
        index = (torch.arange(batch + 1, 1, -1),) if indexed else ()
        of_state = (drawn(batch, DSTATE) for _ in range(2))
        return (states, drawn(*each), drawn(*each), *of_state, *index)

    return call, made


def convolving(steps: tuple[int, ...], places: str | None) -> tuple[Any, Made]:
    weight, bias = drawn(DIM, WIDTH), drawn(DIM)

    def call(x: Tensor, states: Tensor, *index: Tensor) -> Any:
        named = {} if places is None else {places: index[0]}
        return causal_conv1d_update(x, states, weight, bias, "silu", **named), states

    def made(batch: int) -> tuple[Tensor, ...]:
        index = () if places is None else (torch.arange(batch, dtype=torch.int32),)
        return (drawn(batch, DIM, *steps), drawn(batch, DIM, WIDTH), *index)

    return call, made


torch.manual_seed(0)
STEPS = {
    "no heads": scanning((), torch.float32, False),
    "no heads, indices": scanning((), torch.float32, True),
    "heads": scanning((2,), torch.float32, False),
    "heads, indices": scanning((2,), torch.float32, True),
    "a state in 16 bits": scanning((), torch.float16, False),
    "convolution": convolving((1,), None),
    "convolution, no axis of steps": convolving((), None),
    "convolution, indices": convolving((1,), "conv_state_indices"),
    "convolution, ring": convolving((1,), "cache_seqlens"),
}
each_step = pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)


def agree(found: Any, expected: Any) -> None:
    for each, right in zip(found, expected):
        assert each.shape == right.shape
        assert relative_norm(each, right) < 1e-5


def copied(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.clone() for each in given)


def exported(module: torch.nn.Module, given: tuple[Tensor, ...], path: str) -> Any:
    """A session of what torch's exporter for traces makes of a module, of any batch."""
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    names = [f"given{place}" for place in range(len(given))]
    with torch.no_grad():
        torch.onnx.export(
            *(module, copied(given), path),
            dynamo=False,
            opset_version=17,
            input_names=names,
            dynamic_axes={name: {0: f"batch of {name}"} for name in names},
        )
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(given: tuple[Tensor, ...]) -> list[Tensor]:
        named = {name: each.numpy() for name, each in zip(names, given)}
        return [torch.from_numpy(each) for each in session.run(None, named)]

    return run


class Module(torch.nn.Module):
    """A function as what is exported."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *given: Tensor) -> Any:
        """What the function gives."""
        return self.call(*given)


@each_step
def test_a_state_is_written_in_onnx(step: tuple[Any, Made], tmp_path: Any) -> None:
    call, made = step
    run = exported(Module(call), made(2), str(tmp_path / "of.onnx"))
    for batch in (2, 1, 3):
        given = made(batch)
        agree(run(given), call(*copied(given)))


VIEWS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "scan": (
        lambda cache, x: selective_state_update(
            cache[0], x, x, -torch.rand(DIM, DSTATE), x[:, :DSTATE], x[:, :DSTATE]
        ),
        (2, 2, DIM, DSTATE),
    ),
    "convolution": (
        lambda cache, x: causal_conv1d_update(x, cache[0], torch.ones(DIM, WIDTH)),
        (2, 2, DIM, WIDTH),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_refused_whose_write_an_export_would_lose(name: str, tmp_path: Any) -> None:
    call, shape = VIEWS[name]
    given = (drawn(*shape), drawn(2, DIM))
    with pytest.raises(RuntimeError, match=r"found a view.*give the exported model the state"):
        exported(Module(call), given, str(tmp_path / "of.onnx"))
    # The numbers of a trace are right, and so is what it writes.
    traced: Any = torch.jit.trace(call, copied(given), check_trace=False)
    caches = [given[0].clone() for _ in range(2)]
    torch.manual_seed(1)
    traced(caches[0], given[1])
    assert not torch.equal(caches[0][0], given[0][0])
    assert torch.equal(caches[0][1], given[0][1])


@pytest.mark.parametrize("traced_at", [1, 2])
@each_step
def test_a_graph_of_make_fx_is_right_at_every_batch(step: tuple[Any, Made], traced_at: int) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    call, made = step
    graph = make_fx(call)(*copied(made(traced_at)))
    for batch in (1, 2, 3):
        given = made(batch)
        agree(graph(*copied(given)), call(*copied(given)))


def test_a_graph_of_gradients_refuses_those_of_another_size() -> None:
    """``sum`` gives its gradient in the size of the trace, which would be broadcast."""
    from torch.fx.experimental.proxy_tensor import make_fx

    A = -torch.rand(2)

    def gradient(x: Tensor, dt: Tensor, B: Tensor) -> Any:
        x = x.detach().requires_grad_()
        out: Any = mamba_chunk_scan_combined(x, dt, A, B, B, 16)
        return torch.autograd.grad(out.square().sum(), x)

    def made(seqlen: int) -> tuple[Tensor, ...]:
        return drawn(2, seqlen, 2, 3), torch.rand(2, seqlen, 2), drawn(2, seqlen, 1, 4)

    graph = make_fx(gradient)(*made(20))
    given = made(20)
    agree(graph(*given), gradient(*given))
    with pytest.raises(RuntimeError, match=r"dout: expected shape.*trace a function again"):
        graph(*made(1))
