"""The rule of an operator in a graph that is mapped: one call for each entry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jetson_mamba.dispatch.operators import _mapped

INFO: Any = SimpleNamespace(batch_size=3)


def test_each_entry_is_a_call_along_its_own_axis() -> None:
    x, y, scale = torch.randn(3, 4), torch.randn(4, 3), torch.randn(4)
    found, place = _mapped(torch.ops.aten.addcmul.default)(INFO, (0, 1, None), x, y, scale)
    assert place == 0
    assert torch.equal(found, torch.addcmul(x, y.t(), scale))


def test_several_results_are_mapped_each() -> None:
    x = torch.randn(4, 3)
    found, places = _mapped(torch.ops.aten.sort.default)(INFO, (1, None, None), x, -1, True)
    assert places == (0, 0)
    for one, other in zip(found, x.t().sort(-1, True)):
        assert torch.equal(one, other)


def test_what_is_written_is_written_by_each_entry_or_refused() -> None:
    rule = _mapped(torch.ops.aten.add_.Tensor)
    x, y = torch.zeros(3, 4), torch.randn(3, 4)
    rule(INFO, (0, 0), x, y)
    assert torch.equal(x, y)
    with pytest.raises(RuntimeError, match=r"aten\.add_.*self is written in place, and expected"):
        rule(INFO, (None, 0), torch.zeros(4), y)
