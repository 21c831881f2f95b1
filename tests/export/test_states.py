"""What is exported of a step, with its states as arguments.

The model here is small, and calls as mamba_ssm's do; ``make exports`` has those of every release.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.errors import CannotRun
from jetson_mamba.export import files, states

D_MODEL, INNER, WORDS = 4, 3, 7


class Block(nn.Module):
    """A block with two states, which it changes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.d_model = D_MODEL
        self.weight = nn.Parameter(torch.randn(D_MODEL, D_MODEL, dtype=torch.float64))

    def allocate_inference_cache(self, batch_size: int, max_seqlen: int) -> tuple[Tensor, Tensor]:
        """Both states, empty."""
        return (
            torch.zeros(batch_size, INNER, 4, dtype=torch.float64),
            torch.zeros(batch_size, INNER, D_MODEL, 5, dtype=torch.float64),
        )

    def step(self, x: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token more."""
        conv += x.sum() * 2
        ssm += x.sum() * 3
        return x @ self.weight + ssm.mean(), conv, ssm


class Model(nn.Module):
    """A language model of two of these, with what mamba_ssm calls it with."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, D_MODEL, dtype=torch.float64)
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(D_MODEL, WORDS, dtype=torch.float64)

    def allocate_inference_cache(self, batch: int, most: int) -> dict[int, Any]:
        """The states of each layer."""
        return {i: each.allocate_inference_cache(batch, most) for i, each in enumerate(self.blocks)}

    @property
    def blocks(self) -> list[Any]:
        """The layers."""
        return [*self.layers]

    def forward(self, ids: Tensor, inference_params: Any, num_last_tokens: int) -> Any:
        """Logits of the last tokens."""
        assert inference_params.max_seqlen == inference_params.max_batch_size == 1
        assert inference_params.seqlen_offset in (0, 1)
        if inference_params.seqlen_offset:
            assert ids.shape[1] == 1
        x = self.embedding(ids)
        outs = []
        for token in range(ids.shape[1]):
            each = x[:, token : token + 1]
            for i, block in enumerate(self.blocks):
                each, *_ = block.step(each, *inference_params.key_value_memory_dict[i])
            outs.append(each)
        logits = self.lm_head(torch.cat(outs, 1))[:, -num_last_tokens:]
        return SimpleNamespace(logits=logits)


@pytest.fixture(autouse=True)
def of_mamba_ssm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mamba_ssm", "mamba_ssm.utils", "mamba_ssm.utils.generation"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    generation: Any = sys.modules["mamba_ssm.utils.generation"]
    generation.InferenceParams = SimpleNamespace


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model().eval()


NAMES = ["conv_state_0", "ssm_state_0", "conv_state_1", "ssm_state_1"]


def test_a_step_of_a_block_leaves_the_states_that_it_is_given() -> None:
    block = Block()
    made = states.block_step(block)
    assert made.inputs == ["hidden_states", "conv_state", "ssm_state"]
    assert made.outputs == ["out", "conv_state_after", "ssm_state_after"]
    assert not made.is_variadic
    x, conv, ssm = made.args
    assert x.shape == (1, 1, D_MODEL) and x.dtype == torch.float64
    assert [each.shape for each in (conv, ssm)] == [(1, INNER, 4), (1, INNER, D_MODEL, 5)]
    # Not all the same, where a comparison would show less.
    assert conv.std() > 0 and ssm.std() > 0
    before = [each.clone() for each in made.args]
    found = made.module(*made.args)
    assert all(torch.equal(one, other) for one, other in zip(made.args, before))
    for one, other in zip(found, block.step(*before)):
        assert torch.equal(one, other)


def test_a_prompt_begins_with_empty_states_and_a_step_goes_on_from_its(model: Model) -> None:
    prompt, step = states.prompt(model, 9), states.token_step(model)
    assert prompt.inputs == ["input_ids"] and step.inputs == ["input_ids", *NAMES]
    outputs = ["logits", *(f"{name}_after" for name in NAMES)]
    assert prompt.outputs == step.outputs == outputs
    assert (prompt.is_variadic, step.is_variadic) == (False, True)
    (ids,) = prompt.args
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 0, 1]]
    token, *before = step.args
    assert token.tolist() == [[1]]
    cache = [each for pair in model.allocate_inference_cache(1, 1).values() for each in pair]
    assert [each.shape for each in before] == [each.shape for each in cache]
    # Text in two parts is what it is in one.
    ids = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 0, 3, 2]])
    whole, *last = prompt.module(ids)
    assert whole.shape == (2, WORDS)
    logits, *given = prompt.module(ids[:, :3])
    for place in (3, 4):
        kept = [each.clone() for each in given]
        logits, *after = step.module(ids[:, place : place + 1], *given)
        assert all(torch.equal(one, other) for one, other in zip(given, kept))
        given = after
    assert torch.allclose(logits, whole)
    assert all(torch.allclose(one, other) for one, other in zip(given, last))


def test_what_has_no_step_is_refused(model: Model) -> None:
    for other in (nn.Linear(2, 2), SimpleNamespace(step=len), SimpleNamespace()):
        with pytest.raises(CannotRun, match="expected a block or a language model of mamba_ssm"):
            states.block_step(other)  # type: ignore[arg-type]
    with pytest.raises(CannotRun, match="found Linear; export it without --step"):
        states.block_step(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["one state", "a flat state", "rotary"])
def test_layers_of_attention_are_refused(kind: str, model: Model) -> None:
    block: Any = model.blocks[1]
    shapes: dict[str, list[tuple[int, ...]]] = {
        "one state": [(1, 2, 3)],
        "a flat state": [(1, 2, 3), (1, 2)],
    }
    if kind == "rotary":
        block.rotary_emb_dim = 2
    else:
        found = tuple(torch.zeros(shape) for shape in shapes[kind])
        block.allocate_inference_cache = lambda *_: found
    with pytest.raises(CannotRun, match="expected layers of Mamba and Mamba2 alone"):
        states.prompt(model, 3)
    with pytest.raises(CannotRun, match="expected layers of Mamba and Mamba2 alone"):
        states.token_step(model)


def test_a_language_model_is_one_with_a_head_and_a_cache(model: Model) -> None:
    assert states.is_language_model(model)
    assert not states.is_language_model(model.blocks[0])
    assert not states.is_language_model(nn.Linear(2, 2))


@pytest.mark.parametrize("training", [False, True])
def test_a_model_of_transformers_gives_its_first_result_alone(training: bool) -> None:
    class PreTrainedModel(nn.Module):
        """As that of transformers."""

        def forward(self, input_ids: Tensor, **options: Any) -> Any:
            assert options == {"use_cache": False, "return_dict": True}
            return (input_ids * 2, "a cache")

    PreTrainedModel.__module__ = "transformers.modeling_utils"

    class Of(PreTrainedModel):
        """A model of it."""

    made = states.plain(Of().train(training))
    assert made.training is training
    assert made(torch.tensor([1, 2])).tolist() == [2, 4]
    linear = nn.Linear(2, 2)
    assert states.plain(linear) is linear


def exported(monkeypatch: pytest.MonkeyPatch, model: nn.Module, **options: Any) -> list[Any]:
    """What is handed on of each file."""
    found: list[Any] = []
    monkeypatch.setattr(files, "_check_possible", lambda *given: None)
    monkeypatch.setattr(files, "_exported", lambda *given: found.append(given))
    files.step(model, "some/m.onnx", **options)
    return found


def test_a_language_model_becomes_two_files_with_open_sizes(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, step = exported(monkeypatch, model, target="tensorrt", plugins="sm_87")
    for given, name, axes in ((prompt, "prompt", {0, 1}), (step, "step", {0})):
        module, shapes, names, check, file, target, forms, plugins = given
        assert file.as_posix() == f"some/m.{name}.onnx" and target == "tensorrt" and forms == {}
        assert plugins == ("sm_87" if name == "prompt" else None)
        assert check.module is module
        first = shapes[0]
        assert {axis: dim.__name__ for axis, dim in first.items()} == {
            axis: ("batch", "seqlen")[axis] for axis in axes
        }
        if name == "step":
            assert list(shapes[1]) == [first] * 4
            assert names["input_names"] == ["input_ids", *NAMES]
        else:
            assert shapes == (first,) and names["input_names"] == ["input_ids"]
        # It is compared at other sizes of these than its own too.
        assert list(check.sizes) == [("batch", "seqlen")[axis] for axis in sorted(axes)]
        assert [len(each.places) for each in check.sizes.values()] == [len(check.args)] * len(axes)
    assert len(prompt[3].args) == 1 and prompt[3].args[0].shape == (1, 70)


def test_a_block_becomes_one_file_and_has_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    ((_, shapes, names, _, file, *_),) = exported(monkeypatch, Block())
    assert file.as_posix() == "some/m.onnx"
    assert [list(each) for each in shapes] == [[0]] * 3
    assert names["output_names"] == ["out", "conv_state_after", "ssm_state_after"]
    with pytest.raises(CannotRun, match="plugins: expected a scan, found a step of a block"):
        exported(monkeypatch, Block(), target="tensorrt", plugins="sm_87")
