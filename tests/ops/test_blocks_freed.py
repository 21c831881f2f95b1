"""A block that a graph repeats is freed, copied or pickled as any other, whatever it holds."""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import weakref
from functools import partial
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.replay import captured
from tests.ops.imitated import Imitated
from tests.ops.test_blocks import Block, drawn, hold, replays, warmed


def test_the_graphs_of_a_block_end_with_it(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    assert captured.MEMORY.graphs == 1
    imitated.clear()
    del block
    gc.collect()
    assert captured.MEMORY.graphs == 0


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def called_as_before(block: Any, *given: Any, **named: Any) -> Any:
    return block._old_forward(*given, **named)


def as_accelerate_wraps_it(block: Any) -> None:
    block._old_forward = block.forward
    block.forward = partial(called_as_before, block)


def with_a_wrapped_submodule(block: Any) -> None:
    as_accelerate_wraps_it(block.project)
    block.project.owner = block.forward


def with_a_bound_method(block: Any) -> None:
    block.again = block.extra_repr


def with_a_partial_of_a_submodules(block: Any) -> None:
    block.project.again = partial(Block.extra_repr, block)


def with_a_closure_in_a_container(block: Any) -> None:
    block.given["again"] = [lambda: block]


def with_a_hook_that_knows_it(block: Any) -> None:
    block.project.register_forward_hook(lambda module, given, out: out + 0 * len(block.given))


def with_a_hook_of_its_own(block: Any) -> None:
    block.register_forward_hook(lambda module, given, out: out + 0 * len(block.given))


def with_a_parameter_that_knows_it(block: Any) -> None:
    block.weight.owner = block


def with_a_submodule_that_knows_it(block: Any) -> None:
    object.__setattr__(block.project, "owner", (block,))


def with_a_parametrization(block: Any) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            """Twice as much."""
            return x * 2 + 0 * len(block.given)

    nn.utils.parametrize.register_parametrization(block.project, "weight", Twice())


def with_an_adapter(block: Any) -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base = base
            self.down = nn.Linear(4, 1)
            object.__setattr__(self, "owner", block)

        def forward(self, x: Tensor) -> Tensor:
            """What PEFT puts in the place of a projection."""
            out: Tensor = self.base(x) + self.down(x)
            return out

    block.project = Adapted(block.project)


def as_it_was_made(block: Any) -> None:
    pass


HOLD_THEMSELVES = [
    as_it_was_made,
    as_accelerate_wraps_it,
    with_a_wrapped_submodule,
    with_a_bound_method,
    with_a_partial_of_a_submodules,
    with_a_closure_in_a_container,
    with_a_hook_that_knows_it,
    with_a_hook_of_its_own,
    with_a_parameter_that_knows_it,
    with_a_submodule_that_knows_it,
    with_a_parametrization,
    with_an_adapter,
]


@pytest.mark.parametrize("served_before", [True, False])
@pytest.mark.parametrize("change", HOLD_THEMSELVES)
def test_a_block_is_freed_whatever_it_holds(
    change: Callable[[Any], None], served_before: bool, imitated: list[Imitated]
) -> None:
    block = warmed(Block()) if served_before else Block()
    change(block)
    for _ in range(4):
        hold(block)
    everything = [weakref.ref(each) for each in (*block.modules(), *block.parameters())]
    imitated.clear()
    del block
    gc.collect()
    assert [each() for each in everything if each() is not None] == []
    assert (captured.MEMORY.graphs, captured.MEMORY.bytes) == (0, 0)


def test_a_block_that_is_unwrapped_again_has_a_graph_before_long(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    as_accelerate_wraps_it(block)
    hold(block)
    del vars(block)["forward"], vars(block)["_old_forward"]
    for _ in range(70):
        hold(block)
    before = replays()
    hold(block)
    assert replays() == before + 1


def test_copies_and_pickles_of_a_block_leave_its_graphs_behind(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    plain, x = set(vars(Block())), drawn()
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert set(vars(other)) == plain
        torch.testing.assert_close(other(x), inspect.unwrap(Block.forward)(block, x))
    assert len(imitated) == 1
