"""When a token of a whole model is repeated by a graph; the graphs are imitated here."""

from __future__ import annotations

import gc
import weakref
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.replay import captured
from jetson_mamba.replay.models import decoding_by_graph, whole_steps
from jetson_mamba.replay.noticing import Read
from tests.ops.imitated import Imitated

Output = namedtuple("Output", ["logits"])
WORDS, WIDTH = 7, 4
SLOPE = 1.0


@dataclass
class Params:
    """What mamba_ssm hands from token to token."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    key_value_memory_dict: dict[int, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None


@dataclass
class Config:
    """What a model is made of."""

    width: int = WIDTH
    layers: list[str] = field(default_factory=lambda: ["one"])


class Model(nn.Module):
    """A model of one layer with a state, which counts how often Python runs it."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.scale = 0.5
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)
        self.eval()

    def step(self, x: Tensor, conv_state: Tensor, state: Tensor) -> Tensor:
        """One token."""
        conv_state.copy_(conv_state.roll(1, -1) + x)
        state.mul_(self.scale).add_(conv_state)
        return state * SLOPE

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
    ) -> Output:
        """The logits after the last token."""
        Model.runs += 1
        batch = input_ids.shape[0]
        states = inference_params.key_value_memory_dict
        if 0 not in states:
            states[0] = (torch.zeros(batch, WIDTH), torch.zeros(batch, WIDTH))
        out = None
        for token in self.embedding(input_ids).unbind(1):
            out = self.step(token, *states[0])
        return Output(self.head(self.norm(out)).unsqueeze(1))


def plain_decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    cg: bool = False,
    streamer: Any = None,
    output_scores: bool = False,
) -> tuple[Tensor, Tensor]:
    """The tokens and the logits of a greedy generation, as mamba_ssm makes one."""
    params = Params(max_length, len(input_ids))
    tokens, scores = [input_ids], []
    while params.seqlen_offset < max_length - 1:
        places = None
        if params.seqlen_offset > 0:
            places = torch.full((len(input_ids), 1), params.seqlen_offset)
        logits = model(
            tokens[-1], position_ids=places, inference_params=params, num_last_tokens=1
        ).logits.squeeze(1)
        params.seqlen_offset += tokens[-1].shape[1]
        scores.append(logits)
        tokens.append(logits.argmax(-1, keepdim=True))
        if streamer is not None:
            streamer.put(tokens[-1])
    return torch.cat(tokens, 1), torch.stack(scores, 1)


decode = decoding_by_graph(plain_decode)


@pytest.fixture(autouse=True)
def switched_on() -> Iterator[None]:
    with whole_steps(True), torch.inference_mode():
        yield


def hold(model: Model, batch: int = 2, length: int = 12, **more: Any) -> int:
    """Hold a generation to that of the model alone; how often Python ran the model for it."""
    prompt = torch.randint(0, WORDS, (batch, 3))
    right = plain_decode(prompt, model, length)
    before = Model.runs
    found = decode(prompt, model, length, **more)
    for one, other in zip(found, right):
        assert torch.equal(one, other)
    return Model.runs - before


def replays() -> int:
    return sum(graph.replays for graph in Imitated.made)


# A prompt and eight tokens, the first of which makes no graph and the second one.
STEPS = 8


def test_the_second_token_makes_a_graph_for_this_and_later_generations(
    imitated: list[Imitated],
) -> None:
    model = Model()
    hold(model)
    assert (len(imitated), replays()) == (1, STEPS - 1)
    for count in (1, 2):
        hold(model)
        assert (len(imitated), replays()) == (1, STEPS - 1 + count * STEPS)


def test_lengths_share_a_graph_and_batches_have_their_own(imitated: list[Imitated]) -> None:
    model = Model()
    for length in (12, 5, 20):
        hold(model, length=length)
    assert len(imitated) == 1
    hold(model, batch=3)
    assert len(imitated) == 2


def test_weights_that_change_where_they_lie_are_read(imitated: list[Imitated]) -> None:
    model = Model()
    hold(model)
    model.head.weight.mul_(-2)
    before = replays()
    hold(model)
    assert (len(imitated), replays()) == (1, before + STEPS)


def other_head(model: Model) -> None:
    model.head = nn.Linear(WIDTH, WORDS)


def other_numbers(model: Model) -> None:
    model.embedding.weight.data = torch.randn(WORDS, WIDTH)


def other_scale(model: Model) -> None:
    model.scale = 0.25


def other_configuration(model: Model) -> None:
    model.config.layers.append("two")


@pytest.mark.parametrize("change", [other_head, other_numbers, other_scale, other_configuration])
def test_what_a_model_reads_has_a_graph_of_its_own(
    change: Callable[[Model], None], imitated: list[Imitated]
) -> None:
    model = Model()
    hold(model)
    change(model)
    before = replays()
    hold(model)
    assert (len(imitated), replays()) == (2, before + STEPS - 1)


def test_autocast_has_a_graph_of_its_own(imitated: list[Imitated]) -> None:
    model = Model()
    hold(model)
    with torch.autocast("cpu", torch.bfloat16):
        hold(model)
    assert len(imitated) == 2


def test_a_global_that_it_reads_is_noticed(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    hold(model)
    before = replays()
    monkeypatch.setitem(globals(), "Output", namedtuple("Output", ["logits", "more"], defaults=[0]))
    hold(model)
    assert (len(imitated), replays()) == (2, before + STEPS - 1)
    monkeypatch.setitem(globals(), "SLOPE", 3.0)  # which a method that it calls reads
    hold(model)
    assert (len(imitated), replays()) == (3, before + 2 * (STEPS - 1))


def test_a_class_that_is_patched_is_noticed(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, step = Model(), Model.step
    hold(model)
    before = replays()
    monkeypatch.setattr(Model, "step", lambda self, *given: -step(self, *given))
    hold(model)
    assert (len(imitated), replays()) == (2, before + STEPS - 1)


def with_hook(model: Model) -> None:
    model.norm.register_forward_hook(lambda module, given, out: out * 2)


def with_hook_of_its_own(model: Model) -> None:
    model.register_forward_hook(lambda module, given, out: Output(-out.logits))


def with_forward_of_its_own(model: Model) -> None:
    plain = model.forward
    vars(model)["forward"] = lambda *given, **named: Output(-plain(*given, **named).logits)


class Adapter(nn.Module):
    """Somebody else's module."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        """One more."""
        out: Tensor = self.inside(x) + 1
        return out


def with_adapter(model: Model) -> None:
    model.head = Adapter(model.head)  # type: ignore[assignment]


def with_an_object(model: Model) -> None:
    model.seen = [object()]  # type: ignore[assignment]


@pytest.mark.parametrize(
    "change",
    [with_hook, with_hook_of_its_own, with_forward_of_its_own, with_adapter, with_an_object],
)
def test_a_model_that_a_graph_cannot_know_takes_its_steps_as_it_is(
    change: Callable[[Model], None], imitated: list[Imitated]
) -> None:
    model, known = Model(), Model()
    hold(known)
    for each in (model, known):
        change(each)
        before = replays()
        assert hold(each) == STEPS + 1
        assert replays() == before


def test_a_model_that_a_graph_can_know_again_has_one(imitated: list[Imitated]) -> None:
    model = Model()
    plain = model.head
    with_adapter(model)
    hold(model)
    assert imitated == []
    model.head = plain
    hold(model)
    assert (len(imitated), replays()) == (1, STEPS - 1)


def test_what_changes_between_tokens_is_noticed_where_a_streamer_may_do_it(
    imitated: list[Imitated],
) -> None:
    model = Model()
    hold(model)

    class Streamer:
        def __init__(self) -> None:
            self.seen = 0

        def put(self, tokens: Tensor) -> None:
            self.seen += 1
            if self.seen == 4:
                model.scale = 0.125

    prompt = torch.tensor([[1, 2, 3]])
    right = plain_decode(prompt, model, 12, streamer=Streamer())
    model.scale = 0.5
    found = decode(prompt, model, 12, streamer=Streamer())
    assert torch.equal(found[1], right[1])
    model.scale = 0.5
    by_position = decode(prompt, model, 12, False, Streamer())
    assert torch.equal(by_position[1], right[1])


@pytest.mark.parametrize("streamer", [None, "one"])
def test_a_model_is_looked_at_between_tokens_only_for_a_streamer(
    streamer: Any, imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, look = Model(), Read.is_as_it_was
    looks: list[None] = []
    hold(model)

    class Streamer:
        def put(self, tokens: Tensor) -> None:
            pass

    def noting(read: Read) -> bool:
        looks.append(None)
        return look(read)

    monkeypatch.setattr(Read, "is_as_it_was", noting)
    decode(torch.tensor([[1, 2, 3]] * 2), model, 12, streamer=streamer and Streamer())
    assert len(looks) == (STEPS if streamer else 1)


def test_a_generation_within_another_leaves_its_states_alone(imitated: list[Imitated]) -> None:
    model = Model()
    hold(model, batch=1)
    inner: list[Any] = []

    class Streamer:
        def put(self, tokens: Tensor) -> None:
            if len(inner) < 3:
                inner.append(None)
                inner[-1] = decode(torch.tensor([[len(inner), 5, 6]]), model, 9)

    prompt = torch.tensor([[1, 2, 3]])
    found = decode(prompt, model, 12, streamer=Streamer())
    assert torch.equal(found[1], plain_decode(prompt, model, 12)[1])
    for number, result in enumerate(inner, 1):
        right = plain_decode(torch.tensor([[number, 5, 6]]), model, 9)
        assert torch.equal(result[1], right[1])


def test_an_interrupted_generation_leaves_the_graph_to_the_next(imitated: list[Imitated]) -> None:
    model = Model()
    hold(model, batch=1)

    class Streamer:
        left = 5

        def put(self, tokens: Tensor) -> None:
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupt:
        decode(torch.tensor([[1, 2, 3]]), model, 12, streamer=Streamer())
    before = replays()
    assert hold(model, batch=1) == STEPS + 1  # what an imitated graph runs, and the prompt
    assert replays() == before + STEPS
    del interrupt  # whose frames keep all of the generation until now


def test_the_states_of_a_generation_are_copied_once(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = Model(), []
    hold(model)
    launched = Imitated.launched

    def noting(graph: Imitated, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        given.append(len(inputs))
        return launched(graph, inputs, stream)

    monkeypatch.setattr(Imitated, "launched", noting)
    hold(model)
    assert given == [4] + [2] * (STEPS - 1)


class Placed(Model):
    """Depends on how far it is, as attention does."""

    def step(self, x: Tensor, conv_state: Tensor, state: Tensor) -> Tensor:
        """By the place."""
        out: Tensor = super().step(x, conv_state, state) * self.far
        return out

    def forward(self, *given: Any, **named: Any) -> Output:
        """By the place."""
        self.far = 1 + named["inference_params"].seqlen_offset
        return super().forward(*given, **named)


class PlacedByIds(Model):
    """Depends on the positions that it is given."""

    def forward(self, *given: Any, **named: Any) -> Output:
        """By the positions."""
        out = super().forward(*given, **named)
        places = named.get("position_ids")
        return out if places is None else Output(out.logits * (1 + places.unsqueeze(-1)))


def test_a_step_that_asks_how_far_it_is_has_no_graph(imitated: list[Imitated]) -> None:
    for _ in range(2):
        assert hold(Placed()) == STEPS + 1
    assert imitated == []


def test_positions_are_read_anew(imitated: list[Imitated]) -> None:
    hold(PlacedByIds())
    assert replays() == STEPS - 1


def test_layers_with_other_states_have_no_graph(imitated: list[Imitated]) -> None:
    class Hybrid(Model):
        def forward(self, *given: Any, **named: Any) -> Output:
            """With one state more, which nothing steps."""
            named["inference_params"].key_value_memory_dict.setdefault(
                1, (torch.zeros(2, 1), torch.zeros(2, 1))
            )
            return super().forward(*given, **named)

    assert hold(Hybrid()) == STEPS + 1
    assert imitated == []


def test_what_upstream_s_own_graphs_leave_in_a_model_is_none_of_it(
    imitated: list[Imitated],
) -> None:
    model = Model()
    model._decoding_cache = object()  # type: ignore[assignment]
    hold(model)
    assert (len(imitated), replays()) == (1, STEPS - 1)


@pytest.mark.parametrize("off", ["by name", "the inference path", "upstream's own"])
def test_switched_off_every_token_is_the_model_s(off: str, imitated: list[Imitated]) -> None:
    model = Model()
    with whole_steps(off != "by name"), inference_path(off != "the inference path"):
        assert hold(model, cg=off == "upstream's own") == STEPS + 1
    assert imitated == []


def test_a_call_on_a_cpu_is_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "_capture", Imitated)
    Imitated.made = []
    assert hold(Model()) == STEPS + 1
    assert Imitated.made == []


def test_the_graphs_of_a_model_end_with_it(imitated: list[Imitated]) -> None:
    model = Model()
    hold(model)
    everything = [weakref.ref(each) for each in (*model.modules(), *model.parameters())]
    assert captured.MEMORY.graphs == 1
    imitated.clear()
    del model
    gc.collect()
    assert captured.MEMORY.graphs == 0
    assert [each() for each in everything if each() is not None] == []


def test_a_model_in_another_release_s_arguments_is_called_as_it_is(
    imitated: list[Imitated],
) -> None:
    model = Model()

    def other(input_ids: Tensor, model: Any, max_length: int) -> Tensor:
        params = Params(max_length, 1)
        assert model.config is model.config and model.scale == 0.5
        model(input_ids, None, params, 1)
        params.seqlen_offset = 3
        for _ in range(4):
            logits: Tensor = model(input_ids[:, :1], inference_params=params).logits
        return logits

    assert torch.equal(
        decoding_by_graph(other)(torch.tensor([[1, 2, 3]]), model, 9),
        other(torch.tensor([[1, 2, 3]]), model, 9),
    )
    assert imitated == []
