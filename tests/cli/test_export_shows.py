"""What the command `export` hands on of its options.

What it shows of what was written, too.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from jetson_mamba.export.check import Compared, Times
from jetson_mamba.export.files import Exported

COMMAND: Any = import_module("jetson_mamba.cli.export")


class Block(torch.nn.Module):
    """A block of that width, in a dtype of its own."""

    d_model = 24

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))


def written(name: str, **others: Any) -> Exported:
    compared = [
        Compared({"batch": 1, "seqlen": 70}, 2e-7),
        Compared({"batch": 3, "seqlen": 9}, 3e-6),
        Compared({"batch": 1, "seqlen": 70}, 1e-7),
    ]
    given: dict[str, Any] = {"forms": {"selective_scan": "scan", "ssd": "chunks"}, "plugins": None}
    return Exported(
        path=Path("folder") / name,
        nodes=123,
        tolerance=1e-5,
        compared=compared,
        times=Times(0.00125, 0.0345),
        **{**given, **others},
    )


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was exported, with its options."""
    found: list[tuple[Any, ...]] = []
    room: Any = import_module("jetson_mamba.export")

    def onnx(model: Any, args: Any, file: Any, **options: Any) -> Exported:
        found.append((model, args, file, options))
        return written("m.onnx")

    def step(model: Any, file: Any, **options: Any) -> list[Exported]:
        found.append((model, None, file, options))
        more = {"plugins": Path("folder/m_plugins.py"), "forms": {}}
        return [written("m.prompt.onnx", **more), written("m.step.onnx", forms={})]

    monkeypatch.setattr(room, "onnx", onnx)
    monkeypatch.setattr(room, "step", step)
    monkeypatch.setattr(COMMAND, "mamba_ssm", lambda: None)
    monkeypatch.setattr(COMMAND, "_model", lambda name: Block())
    return found


def run(**options: Any) -> None:
    given = {"shape": None, "dynamic": None, "target": "onnxruntime", "step": False}
    COMMAND.export("made:model", Path("m.onnx"), **{**given, "plugins": None, **options})


def test_without_a_shape_it_is_that_of_a_block_with_open_sizes(called: list[Any]) -> None:
    run()
    ((_, (x,), file, options),) = called
    assert x.shape == (1, 70, 24) and x.dtype == torch.float64
    assert file == Path("m.onnx")
    opened = [{0: "batch", 1: "seqlen"}]
    assert options == {"dynamic": opened, "target": "onnxruntime", "plugins": None}
    # The numbers are the same each time.
    run()
    assert torch.equal(called[1][1][0], x)


def test_shapes_sizes_and_the_target_are_handed_on(called: list[Any]) -> None:
    run(
        shape=["2,9,24", "int64:2,9"],
        dynamic=["0=b", "1=t"],
        target="tensorrt",
        plugins="sm_87",
    )
    ((_, (x, ids), _, options),) = called
    assert x.shape == (2, 9, 24)
    assert ids.shape == (2, 9) and ids.dtype == torch.int64 and ids.max() < 2
    assert options == {
        "dynamic": [{0: "b"}, {1: "t"}],
        "target": "tensorrt",
        "plugins": "sm_87",
    }


def test_a_step_has_no_shape(called: list[Any]) -> None:
    run(step=True, target="tensorrt", plugins="sm_87")
    assert [each[1:] for each in called] == [
        (None, Path("m.onnx"), {"target": "tensorrt", "plugins": "sm_87"})
    ]


def test_a_row_for_each_file_says_what_it_is_and_how_near(
    called: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run()
    text = " ".join(capsys.readouterr().out.split())
    assert "file nodes form largest error runtime eager" in text
    row = "m.onnx 123 selective_scan scan, ssd chunks 3.0e-06 of 1e-05 1.25 ms 34.50 ms"
    assert row in text
    assert text.endswith("Compared at batch=1 seqlen=70; batch=3 seqlen=9.")
    assert "TensorRT" not in text
    run(step=True)
    text = " ".join(capsys.readouterr().out.split())
    assert "m.prompt.onnx 123 none to choose" in text and "m.step.onnx 123 none" in text
    assert "TensorRT's Python is to import m_plugins.py before it parses." in text


def test_what_has_no_open_sizes_is_compared_once_more(
    called: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = written("m.onnx")._replace(compared=[Compared({}, 1e-7), Compared({}, 2e-7)])
    monkeypatch.setattr(import_module("jetson_mamba.export"), "onnx", lambda *_, **__: closed)
    run()
    assert capsys.readouterr().out.splitlines()[-1] == "Compared once more."
