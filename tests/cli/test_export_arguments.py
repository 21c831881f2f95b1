"""What the command `export` makes of what it is given, before anything is exported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from jetson_mamba.cli import export  # noqa: E402
from jetson_mamba.errors import CannotRun  # noqa: E402

MODULE = """
import torch

class Block(torch.nn.Module):
    d_model = 24

class Inside:
    made = Block()

def number():
    return 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the folder that is worked in."""
    (tmp_path / "blocks_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "blocks_of_a_user", raising=False)


@pytest.mark.usefixtures("module")
def test_a_model_is_what_is_named_or_what_that_returns() -> None:
    for name, training in (("Block", False), ("Inside.made", False)):
        found = export._model(f"blocks_of_a_user:{name}")
        assert (type(found).__name__, found.training) == ("Block", training)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("blocks_of_a_user:number", "blocks_of_a_user:number: expected a torch.nn.Module, found"),
        ("blocks_of_a_user:absent", "blocks_of_a_user:absent: "),
        ("not_a_module:x", "not_a_module:x: "),
        ("no_folder", "no_folder: expected MODULE:CALLABLE, or a folder with a config.json"),
    ],
)
def test_what_is_no_model_is_one_line(name: str, said: str) -> None:
    with pytest.raises(CannotRun) as caught:
        export._model(name)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("2,70,768", (False, [2, 70, 768])), ("int64:2,70", (True, [2, 70])), ("1", (False, [1]))],
)
def test_a_shape_says_its_sizes_and_whether_it_holds_integers(text: str, shape: Any) -> None:
    assert export._shape(text) == shape


@pytest.mark.parametrize(
    ("shapes", "dynamic"),
    [
        (["float16:2,70"], None),
        ([":2,70"], None),
        (["2,0,8"], None),
        (["2,-1"], None),
        (["2,x"], None),
        ([""], None),
        (["2,70"], ["0"]),
        (["2,70"], ["0="]),
        (["2,70"], ["a=batch"]),
    ],
)
def test_a_shape_that_is_none_is_refused_with_what_one_is(shapes: Any, dynamic: Any) -> None:
    with pytest.raises(CannotRun, match="--shape, --dynamic: expected such as 2,70,768"):
        export._given(None, shapes, dynamic)


def test_axes_are_for_all_arguments_or_for_each() -> None:
    usual = {0: "batch", 1: "seqlen"}
    model = torch.nn.Linear(2, 2)
    model.d_model = 24
    assert export._given(model, None, None) == ([(False, [1, 70, 24])], [usual])
    shapes = ["2,70", "int64:2,70"]
    found = [(False, [2, 70]), (True, [2, 70])]
    assert export._given(model, shapes, None) == (found, [])
    assert export._given(model, shapes, ["1=seqlen"]) == (found, [{1: "seqlen"}] * 2)
    each = ["0=batch,1=seqlen", "0=batch"]
    assert export._given(model, shapes, each) == (found, [usual, {0: "batch"}])


def test_a_text_is_what_a_language_model_takes() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.Linear(8, 5))
    with pytest.raises(CannotRun, match="--shape: expected the shape of each argument"):
        export._usual(model)
    model.lm_head = model[1]
    assert export._usual(model) == (True, [1, 70])
    del model.lm_head
    model.get_input_embeddings = lambda: model[0]
    assert export._usual(model) == (True, [1, 70])
    ids = export._argument(model, (True, [2, 50]))
    assert (ids.dtype, ids.shape, int(ids.max())) == (torch.int64, (2, 50), 4)
    assert export._argument(torch.nn.Linear(2, 2), (True, [4, 40])).max() == 1
    for dtype in (torch.float32, torch.float64):
        assert export._argument(model.to(dtype), (False, [2, 3, 8])).dtype == dtype
    assert export._argument(torch.nn.ReLU(), (False, [2, 3])).dtype == torch.float32
