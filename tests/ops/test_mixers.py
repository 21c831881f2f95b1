"""Tokens of transformers' mixers by few kernels, imitated here by the mixers' own."""

from __future__ import annotations

from inspect import unwrap
from types import SimpleNamespace
from typing import Any, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.kernels import compiler
from jetson_mamba.ops.decoding import layers, mixers

transformers: Any = pytest.importorskip("transformers")


class Kernels:
    """In place of the kernels: what the mixer itself computes, times a factor."""

    runs: int
    factor: float
    index = -1

    def __init__(self, of: Any, *given: Any) -> None:
        self.of = of

    def chain_of(self, weights: Any) -> None:
        """It launches none."""

    def __call__(self, chain: None, mixer: Any, *given: Any) -> Tensor:
        """Run."""
        Kernels.runs += 1
        forward, cache = unwrap(type(mixer).forward), caches[-1]
        out: Tensor = mixers._own_step(forward, cache, mixer, *given[:3])[0]
        return out * Kernels.factor


caches: list[Any] = []


@pytest.fixture(autouse=True)
def imitated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Kernels.runs, Kernels.factor = 0, 1.0
    for name in ("_MAMBA", "_MAMBA2"):
        monkeypatch.setattr(layers, name, getattr(layers, name)._replace(layer=Kernels))
    monkeypatch.setattr(layers, "_is_on_a_gpu", lambda tensor: True)
    monkeypatch.setattr(layers, "_is_capturing", lambda: False)
    monkeypatch.setattr(compiler, "current_device", lambda: -1)
    found = mixers._states

    def noting(cache: Any, mixer: Any) -> Any:
        caches.append(cache)
        return found(cache, mixer)

    monkeypatch.setattr(mixers, "_states", noting)
    with torch.no_grad():
        yield
    caches.clear()


SIZES = {"vocab_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 16}
HEADS = {"head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 8}


@pytest.fixture(params=["Mamba", "Mamba2"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    kind = request.param
    config = getattr(transformers, f"{kind}Config")
    made = config(**SIZES, **(HEADS if kind == "Mamba2" else {}))
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(made).eval()
    mixer = type(model.backbone.layers[0].mixer)
    calls = mixers.MIXERS[mixer.__name__]
    assert set(calls) <= unwrap(mixer.forward).__globals__.keys()
    monkeypatch.setattr(mixer, "forward", mixers.by_few_kernels(mixer.forward, calls))
    return model


TOKENS = 5


def generated(model: Any, **more: Any) -> Tensor:
    torch.manual_seed(1)
    ids = torch.randint(1, 32, (2, 6))
    out: Tensor = model.generate(
        ids, max_new_tokens=TOKENS, do_sample=False, attention_mask=torch.ones_like(ids), **more
    )
    return out


def plain(model: Any, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Tensor:
    with monkeypatch.context() as patched:
        patched.setattr(layers, "MOST_SEQUENCES", 0)
        return generated(model, **more)


def test_tokens_after_the_prompt_are_taken(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = plain(model, monkeypatch)
    assert Kernels.runs == 0
    assert torch.equal(generated(model), expected)
    # A trial for both layers, and each layer's tokens but the prompt's.
    assert Kernels.runs == 1 + 2 * (TOKENS - 1)


def test_kernels_that_compute_something_else_are_not_used(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Kernels.factor = 1.5
    assert torch.equal(generated(model), plain(model, monkeypatch))
    assert Kernels.runs == 1


def test_beams_are_taken_with_the_states_that_they_are_given(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plain(model, monkeypatch, num_beams=3)
    assert torch.equal(generated(model, num_beams=3), expected)
    assert Kernels.runs > 1


def test_a_trial_leaves_the_cache_as_it_was(model: Any) -> None:
    cache = model(torch.randint(1, 32, (1, 6)), use_cache=True).cache_params
    mixer, hidden = model.backbone.layers[1].mixer, torch.randn(1, 1, 32)
    layer = cache.layers[1]
    before = [layer.conv_states[0], layer.recurrent_states[0]]
    numbers = [each.clone() for each in before]
    Kernels.factor = float("nan")
    states = mixers._states(cache, mixer)
    assert states is not None
    few = layers.FewKernels({}, (), mixers._options)

    def own(block: Any, *given: Tensor) -> tuple[Tensor]:
        found: tuple[Tensor] = mixers._own_step(unwrap(type(mixer).forward), cache, block, *given)
        return found

    assert few.taken(own, mixer, hidden, *states) is None
    assert Kernels.runs == 1
    for one, other, number in zip(
        before, (layer.conv_states[0], layer.recurrent_states[0]), numbers
    ):
        assert one is other
        assert torch.equal(one, number)


@pytest.mark.parametrize("what", ["mask", "gradients", "no states", "hook", "two tokens"])
def test_what_is_no_plain_token_is_the_mixer_s(model: Any, what: str) -> None:
    cache = model(torch.randint(1, 32, (1, 6)), use_cache=True).cache_params
    mixer, hidden = model.backbone.layers[0].mixer, torch.randn(1, 1, 32)
    more: dict[str, Any] = {"attention_mask": torch.ones(1, 1)} if what == "mask" else {}
    if what == "no states":
        cache = transformers.DynamicCache(config=model.config)
    if what == "hook":
        mixer.in_proj.register_forward_hook(lambda module, given, out: out * 2)
    if what == "two tokens":
        hidden = torch.randn(1, 2, 32)
    with torch.set_grad_enabled(what == "gradients"):
        out = mixer(hidden, cache_params=cache, **more)
    assert out.shape == hidden.shape
    assert Kernels.runs == 0


def test_only_mixers_of_the_known_form_are_joined() -> None:
    def forward(self: Any, hidden_states: Any, cache_params: Any, attention_mask: Any) -> None:
        """As transformers writes it."""

    def another(self: Any, x: Any) -> None:
        """As somebody else does."""

    module: Any = SimpleNamespace(
        MambaMixer=type("MambaMixer", (), {"forward": forward}),
        Mamba2Mixer=type("Mamba2Mixer", (), {"forward": another}),
    )
    mixers.join(module)
    assert unwrap(module.MambaMixer.forward) is forward
    assert module.MambaMixer.forward is not forward
    assert module.Mamba2Mixer.forward is another
    mixers.join(SimpleNamespace(MambaMixer=3))
