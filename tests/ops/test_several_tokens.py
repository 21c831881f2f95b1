"""Several tokens at once serve a block where they give what its steps give, to its own rounding."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

several_tokens: Any = import_module("jetson_mamba.ops.decoding.several_tokens")
FLOAT, BRAIN, HALF, WIDE = torch.float32, torch.bfloat16, torch.float16, torch.float64
TOLERANCE = {WIDE: 1e-9, FLOAT: 5e-3, BRAIN: 5e-2, HALF: 5e-2}
ALL = ("out", "conv_state", "ssm_state")


def step(block: Any, token: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return token * 2, conv, ssm


def same(off: dict[str, float], monkeypatch: pytest.MonkeyPatch, **dtypes: torch.dtype) -> bool:
    """Whether a block is served whose results are off by so much of themselves."""
    weight = dtypes.get("weight", WIDE)
    of = {name: dtypes.get(name, WIDE) for name in ALL}

    def at_once(block: Any, tokens: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
        assert tokens.shape == (3, 2, 4)
        conv.mul_(1 + off.get("conv_state", 0.0))
        ssm.mul_(1 + off.get("ssm_state", 0.0))
        return tokens * 2 * (1 + off.get("out", 0.0))

    monkeypatch.setattr(several_tokens, "_at_once", at_once)
    monkeypatch.setattr(several_tokens, "hook_of_convolution", lambda block: None)
    block = SimpleNamespace(out_proj=SimpleNamespace(weight=torch.zeros(1, dtype=weight)))
    states = [torch.ones(3, 4, 5, dtype=of[name]) for name in ("conv_state", "ssm_state")]
    before = [each.clone() for each in states]
    tokens = torch.ones(3, 6, 4, dtype=of["out"])
    found = several_tokens._computes_the_same(step, block, tokens, *states)
    assert all(torch.equal(one, other) for one, other in zip(states, before))
    return bool(found)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("narrow", TOLERANCE)
def test_each_result_may_be_off_by_the_rounding_of_the_weight(
    narrow: torch.dtype, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same({}, monkeypatch, weight=narrow)
    assert same({name: 0.9 * TOLERANCE[narrow]}, monkeypatch, weight=narrow)
    assert not same({name: 1.1 * TOLERANCE[narrow]}, monkeypatch, weight=narrow)
    assert not same({name: float("nan")}, monkeypatch, weight=narrow)


def test_the_narrowest_is_that_of_the_result_the_output_or_the_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    off = 0.03
    for name in ("conv_state", "ssm_state"):
        assert same({name: off}, monkeypatch, **{name: BRAIN})
        assert not same({name: off}, monkeypatch, **{name: FLOAT})
        assert same({name: off}, monkeypatch, out=BRAIN)
        assert not same({name: off}, monkeypatch, out=FLOAT)
        assert same({name: off}, monkeypatch, out=FLOAT, weight=BRAIN)
        other = "ssm_state" if name == "conv_state" else "conv_state"
        assert not same({name: off}, monkeypatch, **{other: BRAIN})


def test_a_block_that_is_another_than_it_looks_like_is_not_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def raises(*_: Any) -> Tensor:
        raise AttributeError("no x_proj")

    assert same({}, monkeypatch)
    monkeypatch.setattr(several_tokens, "_at_once", raises)
    block = SimpleNamespace(out_proj=SimpleNamespace(weight=torch.zeros(1)))
    given = (torch.ones(3, 6, 4), torch.ones(3, 4, 5), torch.ones(3, 4, 5))
    assert not several_tokens._computes_the_same(step, block, *given)
    monkeypatch.setattr(several_tokens, "hook_of_convolution", lambda block: "a hook")
    monkeypatch.setattr(several_tokens, "_at_once", lambda *given: torch.ones(3, 2, 4) * 2)
    assert not several_tokens._computes_the_same(step, block, *given)
