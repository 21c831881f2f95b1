"""What is captured of a model's step."""

from __future__ import annotations

import operator
import weakref
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.replay import models
from tests.ops.test_whole_steps import WIDTH, Model, Output, Params


def test_a_step_may_ask_whether_it_is_the_first_and_nothing_else_of_how_far_it_is() -> None:
    later: Any = models._Later()
    asks: tuple[Callable[[Any, Any], Any], ...] = (operator.gt, operator.eq, operator.ne)
    assert [ask(later, 0) for ask in asks] == [True, False, True]
    assert bool(later) is True
    for other in (1, 0.0, None, True, False, "0", later):
        for ask in asks:
            with pytest.raises(TypeError, match="depends on how far it is"):
                ask(later, other)
    with pytest.raises(TypeError, match="unhashable"):
        hash(later)


@pytest.mark.parametrize("leaves", ["the same", "another", "more", "fewer"])
def test_a_step_that_leaves_other_states_is_no_graphs(leaves: str) -> None:
    model = Model()
    states = (torch.zeros(2, WIDTH), torch.zeros(2, WIDTH))
    seen: list[Any] = []

    def forward(input_ids: Tensor, **given: Any) -> Output:
        params = given.pop("inference_params")
        assert given == {"position_ids": places, "num_last_tokens": 1}
        seen.append(params)
        kept = params.key_value_memory_dict
        if leaves == "another":
            kept["layer"] = (kept["layer"][0], kept["layer"][1].clone())
        elif leaves == "more":
            kept["other"] = kept["layer"]
        elif leaves == "fewer":
            kept.clear()
        return Output(input_ids * 2)

    vars(model)["forward"] = forward
    function = models._function(weakref.ref(model))
    ids, places = torch.tensor([[1], [2]]), torch.tensor([[5], [5]])
    given = ((ids, places, *states), (), (Params, ("layer",), 2))
    if leaves == "the same":
        (logits,) = function(*given)
        assert torch.equal(logits, ids * 2)
    else:
        with pytest.raises(RuntimeError, match="leaves other states"):
            function(*given)
    (params,) = seen
    assert params.max_batch_size == 2
    assert all(type(each) is models._Later for each in (params.seqlen_offset, params.max_seqlen))
