"""How the models of the demo are trained."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jetson_mamba.demo import training
from jetson_mamba.demo.text import Text

TEXT = Text("a text", "abcd" * 100, "dcba" * 7000, "abcd")


class Model(torch.nn.Module):
    """One number for each pair of characters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(4, 4))
        self.given: list[torch.Tensor] = []
        self.trains: list[bool] = []

    def forward(self, ids: torch.Tensor) -> Any:
        """The logits of what follows each character."""
        self.given.append(ids)
        self.trains.append(self.training)
        return SimpleNamespace(logits=self.table[ids])


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the optimizer, its schedule and the limit of gradients are told."""
    told: dict[str, Any] = {"limits": []}
    adam, schedule = torch.optim.Adam, torch.optim.lr_scheduler.LambdaLR
    clip = torch.nn.utils.clip_grad_norm_

    def made(parameters: Any, **options: Any) -> Any:
        told["adam"] = options
        return adam(parameters, **options)

    def scheduled(optimizer: Any, factor: Any) -> Any:
        told["factor"] = factor
        return schedule(optimizer, factor)

    def clipped(parameters: Any, limit: float) -> Any:
        told["limits"].append(limit)
        return clip(parameters, limit)

    monkeypatch.setattr(torch.optim, "Adam", made)
    monkeypatch.setattr(torch.optim.lr_scheduler, "LambdaLR", scheduled)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    return told


def test_a_model_is_trained_on_pieces_of_the_text(settings: dict[str, Any]) -> None:
    model = Model().eval()
    losses = list(training.train(model, TEXT, 30, 0))
    assert len(losses) == 30 and losses[0] == pytest.approx(math.log(4)) and losses[-1] < 1.34
    assert settings["adam"] == {"lr": 5e-3, "betas": (0.9, 0.95)}
    assert settings["limits"] == [1.0] * 30
    assert {tuple(each.shape) for each in model.given} == {(8, 96)} and all(model.trains)
    # Each piece is one of the text's, and they are drawn by the seed.
    assert all(((each[:, 1:] - each[:, :-1]) % 4 == 1).all() for each in model.given)
    assert len({int(start) for each in model.given for start in each[:, 0]}) == 4
    again, other = Model(), Model()
    assert list(training.train(again, TEXT, 30, 0)) == losses
    list(training.train(other, TEXT, 30, 1))
    assert torch.equal(torch.stack(again.given), torch.stack(model.given))
    assert not torch.equal(torch.stack(other.given), torch.stack(model.given))
    assert torch.equal(model.table, again.table)


def test_the_rate_rises_and_falls_as_a_cosine(settings: dict[str, Any]) -> None:
    next(training.train(Model(), TEXT, 100, 0))
    found = [settings["factor"](step) for step in (0, 9, 10, 50, 75, 100)]
    cosine = 0.5 + 0.5 * math.cos(0.75 * math.pi)
    assert found == pytest.approx([1 / 20, 10 / 20, 11 / 20, 0.5, cosine, 0.0], abs=1e-9)


def test_a_model_is_tested_on_the_beginning_of_what_it_has_not_seen() -> None:
    model = Model().train()
    assert training.test(model, TEXT) == pytest.approx(math.log(4))
    assert not any(model.trains)
    shapes = [tuple(each.shape) for each in model.given]
    assert shapes == [(8, 96)] * 16
    pieces = torch.cat(model.given).flatten()
    begin = training.encode(TEXT.held_out[: len(pieces)], TEXT)
    assert torch.equal(pieces, begin)
    # Of a shorter one all, the mean over its pieces.
    short = TEXT._replace(held_out="dcba" * 222)
    model = Model()
    with torch.no_grad():
        model.table[3, 2] = 5.0
    found = training.test(model, short)
    assert [tuple(each.shape) for each in model.given] == [(8, 96), (1, 96)]
    following = training.encode(short.held_out[: 9 * 96 + 1], short)
    right = torch.nn.functional.cross_entropy(model.table[following[:-1]], following[1:])
    assert found == pytest.approx(float(right.detach()))


@pytest.mark.parametrize("gpu", [True, False])
def test_a_cpu_is_used_by_one_thread(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert training.device() == torch.device("cuda" if gpu else "cpu")
    assert threads == [] if gpu else threads == [1]


def test_the_warmth_of_a_sample_sharpens_its_chances(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Tensor] = []

    def multinomial(chances: torch.Tensor, count: int, generator: Any) -> torch.Tensor:
        assert count == 1 and generator.initial_seed() == 7
        drawn.append(chances)
        return torch.tensor([1])

    monkeypatch.setattr(torch, "multinomial", multinomial)
    model = Model()
    with torch.no_grad():
        model.table[:, 0] = 0.7
    assert training.sample(model, TEXT, "ab", 3, 7) == "bbb"
    right = torch.softmax(torch.tensor([1.0, 0.0, 0.0, 0.0]), 0)
    for each in drawn:
        torch.testing.assert_close(each, right)
    assert [each.shape[1] for each in model.given] == [2, 3, 4]
