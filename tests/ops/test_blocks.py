"""When the method of a block is repeated by a graph; the graphs are imitated here."""

from __future__ import annotations

import copy
import inspect
import warnings
from functools import partial
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.replay import captured
from jetson_mamba.replay.blocks import forward_by_graph, step_by_graph
from tests.ops.imitated import Imitated

SLOPE = 1.0


class Block(nn.Module):
    """Has what blocks have, and counts how often Python runs its method."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0
        self.limit = (0.0, float("inf"))
        self.given = {"d_model": 4}
        self.project = nn.Linear(4, 4)
        self.convolve = nn.Conv1d(4, 4, 3, padding="same")
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("shift", torch.randn(4))
        self.eval()

    @forward_by_graph
    def forward(self, x: Tensor, seq_idx: Tensor | None = None, *, state: Any = None) -> Tensor:
        """(batch, seqlen, 4) to the same."""
        Block.runs += 1
        out: Tensor = self.project(x) * self.weight * self.scale * SLOPE + self.shift
        out = self.convolve(out.transpose(1, 2)).transpose(1, 2)
        return out if seq_idx is None else out * seq_idx

    @step_by_graph
    def step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, ...]:
        """One token."""
        Block.runs += 1
        conv_state.copy_(conv_state.roll(1, -1) + x)
        ssm_state.mul_(self.scale).add_(conv_state)
        return self.project(ssm_state), conv_state, ssm_state


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def drawn() -> Tensor:
    return torch.randn(2, 5, 4)


def hold(block: Block) -> bool:
    """Hold a call to what the method computes by itself; whether Python ran the method for it."""
    x = drawn()
    plain: Callable[..., Tensor] = inspect.unwrap(Block.forward)
    expected = plain(block, x)
    before = Block.runs
    torch.testing.assert_close(block(x), expected)
    return Block.runs > before


def warmed(block: Block) -> Block:
    """After the two calls that Python runs; the graph's imitation runs the method as well."""
    made = len(Imitated.made)
    assert hold(block) and len(Imitated.made) == made
    assert hold(block) and len(Imitated.made) == made + 1
    return block


def replays() -> int:
    return sum(graph.replays for graph in Imitated.made)


def test_the_second_call_makes_a_graph(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    for count in (2, 3, 4):
        hold(block)
        assert (len(imitated), replays()) == (1, count)


def test_the_method_keeps_its_name_and_its_signature() -> None:
    assert Block.forward.__name__ == "forward"
    assert list(inspect.signature(Block().forward).parameters) == ["x", "seq_idx", "state"]
    assert Block.step.__doc__ == "One token."


CHANGES: dict[str, Callable[[Block], Any]] = {
    "an attribute": lambda block: setattr(block, "scale", 3.0),
    "a tuple": lambda block: setattr(block, "limit", (0.1, 1.0)),
    "a value in a dict": lambda block: block.given.update(d_model=5),
    "a submodule": lambda block: setattr(block, "project", nn.Linear(4, 4)),
    "an attribute of a submodule": lambda block: setattr(block.project, "out_features", 5),
    "a parameter": lambda block: setattr(block, "weight", nn.Parameter(torch.randn(4))),
    "the memory of a parameter": lambda block: setattr(block.weight, "data", torch.randn(4)),
    "a parameter of a submodule": lambda block: setattr(
        block.project, "bias", nn.Parameter(torch.randn(4))
    ),
    "no parameter": lambda block: setattr(block.project, "bias", None),
    "a parameter more": lambda block: block.register_parameter("more", nn.Parameter(drawn())),
    "a buffer": lambda block: setattr(block, "shift", torch.randn(4)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_the_method_reads_has_a_graph_of_its_own(
    change: Callable[[Block], Any], imitated: list[Imitated]
) -> None:
    block = warmed(Block())
    change(block)
    before = replays()
    assert hold(block) and replays() == before
    hold(block)
    assert len(imitated) == 2


def test_a_global_that_the_method_reads_has_a_graph_of_its_own(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = warmed(Block())
    monkeypatch.setitem(globals(), "SLOPE", 4.0)
    before = replays()
    assert hold(block) and replays() == before


def test_weights_that_change_where_they_lie_are_read(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    block.weight.mul_(3)
    block.project.bias.add_(1)
    hold(block)
    assert (len(imitated), replays()) == (1, 2)


def test_autocast_has_a_graph_of_its_own(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    with torch.autocast("cpu", torch.bfloat16):
        assert block(drawn()).dtype == block(drawn()).dtype == torch.bfloat16
    assert len(imitated) == 2


def with_pre_hook(block: Block) -> None:
    block.project.register_forward_pre_hook(lambda module, given: (given[0] * 2,))


def with_hook(block: Block) -> None:
    block.project.register_forward_hook(lambda module, given, out: out * 2)


def with_forward_of_its_own(block: Block) -> None:
    plain = block.project.forward
    vars(block.project)["forward"] = lambda x: plain(x) * 2


def with_buffers_in_training(block: Block) -> None:
    block.train()


def with_an_object(block: Block) -> None:
    block.seen = [object()]  # type: ignore[assignment]


def with_a_tensor(block: Block) -> None:
    block.seen = torch.zeros(1)


def with_a_module_of_its_own(block: Block) -> None:
    class Own(nn.Linear):
        pass

    block.project = Own(4, 4)


def with_a_weight_made_of_others(block: Block) -> None:
    nn.utils.parametrizations.weight_norm(block.project)


@pytest.mark.parametrize(
    "change",
    [
        with_pre_hook,
        with_hook,
        with_forward_of_its_own,
        with_buffers_in_training,
        with_an_object,
        with_a_tensor,
        with_a_module_of_its_own,
        with_a_weight_made_of_others,
    ],
)
def test_a_block_that_a_graph_cannot_know_is_called_as_it_is(
    change: Callable[[Block], None], imitated: list[Imitated]
) -> None:
    block, known = Block(), warmed(Block())
    for each in (block, known):
        change(each)
        before = replays()
        for _ in range(3):
            assert hold(each)
        assert replays() == before
    assert len(imitated) == 1


def plain_forward(self: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, self.weight, self.bias) * 2


def called_otherwise(self: nn.Module, *given: Any, **named: Any) -> Any:
    return self.forward(*given, **named)


@pytest.mark.parametrize(
    ("of", "name", "by"),
    [
        (nn.Linear, "forward", plain_forward),
        (nn.Module, "__call__", called_otherwise),
        (nn.Linear, "__call__", called_otherwise),
    ],
)
@pytest.mark.parametrize("before", [True, False], ids=["before the graph", "after it"])
def test_a_class_that_is_patched_is_noticed(
    of: Any,
    name: str,
    by: Any,
    before: bool,
    imitated: list[Imitated],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block = Block() if before else warmed(Block())
    monkeypatch.setattr(of, name, by)
    count = replays()
    x = drawn()
    torch.testing.assert_close(block(x), inspect.unwrap(Block.forward)(block, x))
    assert replays() == count
    if name == "__call__":  # whoever puts that in place of torch's own wants to see each call
        for _ in range(3):
            assert hold(block)
        assert replays() == count
    monkeypatch.undo()


def test_hooks_of_the_block_itself_run_at_each_call(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    seen: list[None] = []
    block.register_forward_hook(lambda module, given, out: seen.append(None))
    for _ in range(3):
        hold(block)
    assert len(seen) == 3
    assert len(imitated) == 1


@pytest.mark.parametrize("always_call", [False, True])
def test_a_hook_of_all_modules_is_not_left_out(always_call: bool, imitated: list[Imitated]) -> None:
    block = warmed(Block())
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, given, out: seen.append(type(module).__name__), always_call=always_call
    )
    try:
        block(drawn())
    finally:
        handle.remove()
    assert seen == ["Linear", "Conv1d", "Block"]


def test_training_has_a_graph_of_its_own(imitated: list[Imitated]) -> None:
    block = Block()
    del block.shift
    block.shift = 1.0  # type: ignore[assignment]
    warmed(block)
    block.train()
    assert hold(block)
    hold(block)
    assert len(imitated) == 2


def test_a_block_that_changes_itself_is_run_at_each_call(imitated: list[Imitated]) -> None:
    class Counts(Block):
        calls = 0

        @forward_by_graph
        def forward(self, x: Tensor, seq_idx: Tensor | None = None, *, state: Any = None) -> Tensor:
            """Count."""
            self.calls += 1
            return x * self.calls

    block = Counts()
    for count in range(1, 6):
        assert torch.equal(block(torch.ones(1, 1, 4)), torch.full((1, 1, 4), float(count)))
    assert imitated == []


def test_further_arguments_are_the_methods_own(imitated: list[Imitated]) -> None:
    block = Block()
    x, seq_idx = drawn(), torch.full((2, 5, 1), 3.0)
    for _ in range(3):
        torch.testing.assert_close(block(x, seq_idx), block(x) * 3)
        torch.testing.assert_close(block(x, state=1), block(x, None, state=None))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        block()
    with pytest.raises(TypeError, match="unexpected keyword argument 'cache'"):
        block(x, cache=1)


def test_with_gradients_and_where_it_is_switched_off_there_is_no_graph(
    imitated: list[Imitated],
) -> None:
    block = Block()
    with torch.enable_grad():
        for _ in range(3):
            assert block(drawn()).requires_grad
    with inference_path(False):
        for _ in range(3):
            assert hold(block)
    assert imitated == []


def test_a_call_on_a_cpu_is_the_methods_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "_capture", Imitated)
    Imitated.made = []
    block = Block()
    for _ in range(3):
        assert hold(block)
    assert Imitated.made == []


def test_copies_of_a_block_and_blocks_of_a_class_below_have_their_own(
    imitated: list[Imitated],
) -> None:
    class Below(Block):
        def forward(self, *given: Any, **named: Any) -> Tensor:
            """Twice as much."""
            out: Tensor = super().forward(*given, **named) * 2
            return out

    block = warmed(Block())
    warmed(copy.deepcopy(block))
    below, x = Below(), drawn()
    expected = inspect.unwrap(Block.forward)(below, x) * 2
    for _ in range(3):
        torch.testing.assert_close(below(x), expected)
    assert len(imitated) == 3


def test_a_step_changes_the_states_it_is_given(imitated: list[Imitated]) -> None:
    block = Block()
    plain: Callable[..., Any] = inspect.unwrap(Block.step)
    states, others = [torch.zeros(2, 4), torch.ones(2, 4)], [torch.zeros(2, 4), torch.ones(2, 4)]
    for turn in range(6):
        if turn == 3:  # states of another generation lie elsewhere
            states = [each.clone() for each in states]
        x = torch.randn(2, 4)
        out, *returned = block.step(x, *states)
        assert all(one is other for one, other in zip(returned, states))
        expected, *_ = plain(block, x, *others)
        torch.testing.assert_close(out, expected)
        for one, other in zip(states, others):
            torch.testing.assert_close(one, other)
    assert [graph.replays for graph in imitated] == [5]


def test_a_step_that_returns_other_states_is_called_as_it_is(imitated: list[Imitated]) -> None:
    class Elsewhere(Block):
        @step_by_graph
        def step(self, x: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, ...]:
            """Leave the states as they are."""
            return x, conv_state + x, ssm_state + x

    block, state = Elsewhere(), torch.zeros(2, 4)
    for _ in range(3):
        x, *states = block.step(torch.ones(2, 4), state, state.clone())
        assert [each.tolist() for each in (state, *states)] == [[[0.0] * 4] * 2] + [x.tolist()] * 2
    assert imitated == []


class Functions(TorchFunctionMode):
    """Notes what is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Notes what is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "sees"),
    [(Functions, "linear"), (Operations, "convolution")],
    ids=["functions", "operations"],
)
def test_a_mode_sees_what_it_would_see_without_graphs(
    mode: Any, sees: str, imitated: list[Imitated]
) -> None:
    block = warmed(Block())
    with mode() as first:
        assert hold(block)
    assert sees in first.seen
    assert replays() == 1


def test_a_default_device_is_no_listener(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    before = replays()
    with torch.device("cpu"):
        for _ in range(3):
            hold(block)
    # It decides where a tensor is made that names no device: a graph of its own.
    assert replays() == before + 2


def test_transforms_tangents_traces_and_anomalies_have_no_graph(imitated: list[Imitated]) -> None:
    block = warmed(Block())
    plain: Callable[..., Tensor] = partial(inspect.unwrap(Block.forward), block)
    x, before = torch.randn(3, 2, 5, 4), replays()
    torch.testing.assert_close(torch.vmap(block)(x), torch.vmap(plain)(x))
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, of torch.jit
        dual = forward_ad.make_dual(x[0], x[1])
        found, expected = (forward_ad.unpack_dual(each(dual)) for each in (block, plain))
        torch.testing.assert_close(found.tangent, expected.tangent)
        traced = torch.jit.trace(block, (x[0],))
    torch.testing.assert_close(traced(x[1]), plain(x[1]))
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        assert hold(block)
    assert replays() == before


def test_a_tensor_of_a_class_of_its_own_is_the_methods_own(imitated: list[Imitated]) -> None:
    class Wrapped(Tensor):
        pass

    block = warmed(Block())
    for _ in range(3):
        assert isinstance(block(drawn().as_subclass(Wrapped)), Wrapped)
    block.weight = nn.Parameter(torch.randn(4).as_subclass(Wrapped))
    for _ in range(3):
        assert hold(block)
    assert replays() == 1


def test_states_that_a_graph_writes_have_another_version(imitated: list[Imitated]) -> None:
    block, states = Block(), [torch.zeros(2, 4), torch.ones(2, 4)]
    for _ in range(4):
        before = [each._version for each in states]
        block.step(torch.randn(2, 4), *states)
        assert all(each._version > version for each, version in zip(states, before))
    assert replays() == 3


def test_a_state_that_is_given_twice_is_the_methods_own(imitated: list[Imitated]) -> None:
    block, state, other = Block(), torch.zeros(2, 4), torch.zeros(2, 4)
    for _ in range(4):
        x = torch.randn(2, 4)
        out, *_ = block.step(x, state, state)
        expected, *_ = inspect.unwrap(Block.step)(block, x, other, other)
        torch.testing.assert_close((out, state), (expected, other))
    assert imitated == []
