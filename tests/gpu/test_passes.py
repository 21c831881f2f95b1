"""Steps of training that CUDA graphs launch give what those without graphs do."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import jetson_mamba
from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.ops.ssd import mamba_split_conv1d_scan_combined
from jetson_mamba.replay import captured

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
HEADS, HEADDIM, DSTATE, SEQLEN = 4, 32, 32, 96
DIM = HEADS * HEADDIM
CHANNELS = DIM + 2 * DSTATE
BACKENDS = ("cuda", "pytorch")


@pytest.fixture(autouse=True, params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    captured.MEMORY.forget()
    with jetson_mamba.backend(ssd=request.param):
        yield request.param
    captured.MEMORY.forget()


class Mixer:
    """The weights of a mixer, and a step with them."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> None:
        torch.manual_seed(seed)

        def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(shape, device="cuda", dtype=dtype)

        self.dtype = dtype
        self.weights = {
            "conv1d_weight": drawn(CHANNELS, 4),
            "conv1d_bias": drawn(CHANNELS),
            "dt_bias": drawn(HEADS, dtype=torch.float32),
            "A": -drawn(HEADS, dtype=torch.float32).exp(),
            "D": drawn(HEADS, dtype=torch.float32),
            "rmsnorm_weight": drawn(DIM),
            "outproj_weight": drawn(64, DIM) / DIM**0.5,
        }
        for each in self.weights.values():
            each.requires_grad_()

    def given(self, seqlen: int = SEQLEN) -> Tensor:
        """An input."""
        shape = (2, seqlen, DIM + CHANNELS + HEADS)
        return torch.randn(shape, device="cuda", dtype=self.dtype, requires_grad=True)

    def __call__(self, zxbcdt: Tensor, **options: Any) -> Any:
        """Run it."""
        return mamba_split_conv1d_scan_combined(
            zxbcdt, **self.weights, chunk_size=64, headdim=HEADDIM, **options
        )

    def step(self, zxbcdt: Tensor, **options: Any) -> list[Tensor]:
        """The output, the last state and all gradients."""
        out, state = self(zxbcdt, return_final_states=True, **options)
        of = [zxbcdt, *self.weights.values()]
        return [
            out.detach(),
            state.detach(),
            *torch.autograd.grad((out.square().sum() + state.sum()), of),
        ]


def without_graphs(call: Callable[..., Any], *given: Any, **options: Any) -> Any:
    with inference_path(False):
        return call(*given, **options)


def gradient(mixer: Mixer, x: Tensor) -> Tensor:
    return torch.autograd.grad(mixer(x).sum(), x)[0]


def gradient_of_state(mixer: Mixer, x: Tensor) -> Tensor:
    return torch.autograd.grad(mixer(x, return_final_states=True)[1].sum(), x)[0]


def graphs() -> int:
    return captured.MEMORY.graphs


def test_graphs_give_the_bits_of_the_passes() -> None:
    mixer, results = Mixer(), []
    for _ in range(6):
        x = mixer.given()
        results.append((mixer.step(x), without_graphs(mixer.step, x)))
    assert graphs() >= 2
    # At the end: what a caller has is never written again.
    for found, expected in results:
        assert all(map(torch.equal, found, expected))


def test_layers_and_weights_that_change_share_graphs() -> None:
    layers = [Mixer(seed=seed) for seed in range(3)]
    for _ in range(3):
        layers[0].step(layers[0].given())
    before = graphs()
    for mixer in layers:
        x = mixer.given()
        with torch.no_grad():
            mixer.weights["D"].add_(1)
        found, expected = mixer.step(x), without_graphs(mixer.step, x)
        assert all(map(torch.equal, found, expected))
    assert graphs() == before >= 2


def test_passes_may_be_of_many_calls_before_they_are_run_back() -> None:
    mixer = Mixer()
    for _ in range(3):
        mixer.step(mixer.given())
    inputs = [mixer.given() for _ in range(4)]
    outs = [mixer(x) for x in inputs]
    found = [
        torch.autograd.grad(out.sum(), x, retain_graph=True)[0] for out, x in zip(outs, inputs)
    ]
    again = [torch.autograd.grad(out.sum(), x)[0] for out, x in zip(outs, inputs)]
    for x, one, other in zip(inputs, found, again):
        right = without_graphs(gradient, mixer, x)
        assert torch.equal(one, right) and torch.equal(other, right)


def test_who_looks_otherwise_is_served_as_without_graphs() -> None:
    mixer = Mixer()
    x = mixer.given()
    for _ in range(3):
        expected = mixer.step(x)
    weights = [*mixer.weights.values()]

    out = checkpoint(mixer, x, use_reentrant=False)
    (found,) = torch.autograd.grad(out.square().sum(), x)
    (right,) = torch.autograd.grad(mixer(x).square().sum(), x)
    assert torch.equal(found, right)

    (first,) = torch.autograd.grad(mixer(x).square().sum(), x, create_graph=True)
    assert first.requires_grad
    second = torch.autograd.grad(first.square().sum(), weights)
    assert all(bool(each.isfinite().all()) for each in second)

    out = mixer(x)
    rows = torch.stack([torch.ones_like(out), torch.randn_like(out)])
    (batched,) = torch.autograd.grad(out, x, rows, is_grads_batched=True)
    for found, row in zip(batched, rows):
        (right,) = torch.autograd.grad(mixer(x), x, row)
        torch.testing.assert_close(found, right, rtol=5e-2, atol=5e-2)

    with torch.autograd.detect_anomaly(check_nan=False):
        assert all(map(torch.equal, mixer.step(x), expected))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            found_all = mixer.step(x)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found_all, expected))


def test_a_capture_of_the_user_holds_the_kernels_themselves() -> None:
    mixer = Mixer()
    x = mixer.given()
    for _ in range(3):
        mixer.step(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = mixer.step(x)
    with torch.no_grad():
        x.normal_()
    graph.replay()
    assert all(map(torch.equal, found, without_graphs(mixer.step, x)))


def test_kinds_are_told_apart() -> None:
    mixer = Mixer()
    others: dict[str, Any] = {"norm_before_gate": False, "rmsnorm_eps": 0.5, "dt_limit": (0.1, 0.2)}
    for options in ({}, *({name: value} for name, value in others.items())):
        for seqlen in (SEQLEN, 33):
            for _ in range(3):
                x = mixer.given(seqlen)
                found = mixer.step(x, **options)
                right = without_graphs(mixer.step, x, **options)
                assert all(map(torch.equal, found, right))
    x = mixer.given()
    for of in (gradient, gradient_of_state):
        for _ in range(3):
            one = of(mixer, x)
        assert torch.equal(one, without_graphs(of, mixer, x))


def test_large_calls_are_not_copied(backend: str) -> None:
    mixer = Mixer()
    seqlen = captured.MOST_ELEMENTS // (2 * (DIM + CHANNELS + HEADS)) + 1
    before = None
    for _ in range(3):
        mixer.step(mixer.given(seqlen))
        large = [
            graph
            for _, graph in captured.MEMORY.kept.items()
            if graph.bytes > captured.MOST_ELEMENTS
        ]
        assert large == []
        before = before or captured.MEMORY.bytes
    assert captured.MEMORY.bytes <= captured.MOST_BYTES
