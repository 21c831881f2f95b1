"""A file is left behind only if it agrees with its model.

Of the rest it is said why there is none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
if not hasattr(getattr(torch.onnx, "ops", None), "symbolic_multi_out"):
    pytest.skip("needs torch 2.8", allow_module_level=True)

from onnxscript import optimizer

import jetson_mamba
from jetson_mamba import export
from jetson_mamba.cli import main
from jetson_mamba.errors import CannotRun
from jetson_mamba.export import capture, forms, tensorrt
from jetson_mamba.ops import causal_conv1d_fn, selective_scan_fn

OPEN = [{0: "batch", 1: "seqlen"}]


class Block(nn.Module):
    """A convolution and a scan."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.A = nn.Parameter((-torch.rand(4, 2)).to(dtype))

    def forward(self, x: Tensor) -> Any:
        """(batch, seqlen, 4) to the same."""
        u = causal_conv1d_fn(x.transpose(1, 2), self.weight, activation="silu")
        B = u[:, :2]
        if self.A.is_complex():
            B = torch.cat((B, B), -1)
        out: Any = selective_scan_fn(u, u, self.A, B, B, delta_softplus=True)
        return out.transpose(1, 2)


@pytest.fixture(scope="module")
def model() -> Block:
    return Block().eval()


@pytest.fixture(scope="module")
def graph(model: Block) -> Any:
    """The model as it is captured, once for all tests."""
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seqlen")}
    return capture.captured(model, [torch.randn(2, 70, 4)], (dims,))


@pytest.fixture(autouse=True)
def captured_once(monkeypatch: pytest.MonkeyPatch, graph: Any) -> None:
    monkeypatch.setattr(capture, "captured", lambda *_, **__: graph)


def test_a_file_is_compared_at_other_sizes_before_it_is_left(model: Block, tmp_path: Path) -> None:
    found = export.onnx(model, [torch.randn(1, 70, 4)], tmp_path / "m.onnx", dynamic=OPEN)
    assert os.listdir(tmp_path) == ["m.onnx"]
    assert found.path == tmp_path / "m.onnx"
    assert 0 < found.error <= found.tolerance == 1e-5
    sizes = [(each.sizes["batch"], each.sizes["seqlen"]) for each in found.compared]
    assert sizes[0] == (1, 70)
    assert {(1, 1), (1, 63), (1, 65), (1, 141), (3, 70), (3, 141)} <= set(sizes)
    assert found.forms["selective_scan"] in forms.TARGETS["onnxruntime"]["selective_scan"]
    assert found.nodes > 10
    assert found.times.eager > 0 and found.times.runtime > 0


@pytest.mark.parametrize("wrong", ["everywhere", "elsewhere"])
def test_a_file_that_computes_something_else_is_not_left(
    model: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    right = forms.selective_scan.blocks

    def another(write: Any, given: Any) -> Any:
        out, last = right(write, given)
        seqlen = write.Cast(write.size(given.u, 2), to=1)
        off = write.Sub(seqlen, 70.0) if wrong == "elsewhere" else 1.0
        return write.Add(out, write.Mul(off, 10.0)), last

    monkeypatch.setitem(forms.FORMS["selective_scan"], "blocks", another)
    where = "batch=2, seqlen=70" if wrong == "everywhere" else "batch=2, seqlen=1:"
    with pytest.raises(CannotRun, match=f"something else at {where}.*none is left behind"):
        export.onnx(
            model,
            [torch.randn(2, 70, 4)],
            tmp_path / "m.onnx",
            dynamic=OPEN,
            forms={"selective_scan": "blocks"},
        )
    assert os.listdir(tmp_path) == []


def test_the_form_that_is_faster_is_kept(
    model: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {"scan": 2.0, "blocks": 1.0}
    order: list[str] = []
    write = forms.written

    def written(model: Any, chosen: Any) -> Any:
        order.append(chosen["selective_scan"])
        return write(model, chosen)

    monkeypatch.setattr(forms, "written", written)
    monkeypatch.setattr("jetson_mamba.export.check._seconds", lambda _: times[order[-1]])
    for _ in range(2):
        found = export.onnx(model, [torch.randn(2, 70, 4)], tmp_path / "m.onnx", dynamic=OPEN)
        assert found.forms == {"selective_scan": min(times, key=lambda form: times[form])}
        times.update(scan=1.0, blocks=2.0)


def test_what_tensorrt_takes_is_in_its_table(model: Block, graph: Any, tmp_path: Path) -> None:
    for recurrence, names in forms.TARGETS["tensorrt"].items():
        assert set(names) < set(forms.FORMS[recurrence])
    written = forms.written(graph, {"selective_scan": "blocks"})
    optimizer.optimize(written)  # what is constant is folded
    assert tensorrt.not_taken(written) == []
    assert list(tensorrt.TABLES) == ["10.1", "10.15"]
    assert len(tensorrt.TABLES["10.1"]) == 150 and "Attention" in tensorrt.TABLES["10.15"]
    later = written.clone()
    later.opset_imports[""] = 21
    assert tensorrt.not_taken(later) == ["opset 21"]
    computed = written.clone()
    changed = next(node for node in computed.graph if node.op_type == "Unsqueeze")
    changed.replace_input_with(1, computed.graph.inputs[0])
    assert tensorrt.not_taken(computed) == ["Unsqueeze with axes that are computed"]
    looped = forms.written(graph, {"selective_scan": "scan"})
    optimizer.optimize(looped)
    assert tensorrt.not_taken(looped) == ["Scan"]
    marked = [node for node in written.graph if "jetson_mamba.precision" in node.metadata_props]
    assert {"Exp", "Mul", "Softplus"} <= {node.op_type for node in marked}
    args = [torch.randn(2, 70, 4)]
    found = export.onnx(model, args, tmp_path / "m.onnx", dynamic=OPEN, target="tensorrt")
    assert found.forms == {"selective_scan": "blocks"}
    with pytest.raises(CannotRun, match=r"TensorRT takes from 10\.1 on, found Scan"):
        export.onnx(
            model,
            args,
            tmp_path / "other.onnx",
            dynamic=OPEN,
            target="tensorrt",
            forms={"selective_scan": "scan"},
        )
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_what_cannot_be_exported_is_said_in_one_line(model: Block, tmp_path: Path) -> None:
    x, file = [torch.randn(2, 9, 4)], tmp_path / "m.onnx"
    with pytest.raises(CannotRun, match=r"in training; model\.eval\(\)"):
        export.onnx(Block().train(), x, file)
    with pytest.raises(CannotRun, match="found 'cuda'"):
        export.onnx(model, x, file, target="cuda")
    named = jetson_mamba.backend(selective_scan="pytorch")
    with named, pytest.raises(CannotRun, match=r"no backend that is named.*found pytorch"):
        export.onnx(model, x, file)
    with pytest.raises(CannotRun, match="bfloat16"):
        export.onnx(nn.Linear(4, 4).bfloat16().eval(), [x[0].bfloat16()], file)
    with pytest.raises(CannotRun, match="one for each of the 1 arguments, found 2"):
        export.onnx(model, x, file, dynamic=[*OPEN, *OPEN])
    with pytest.raises(CannotRun, match="expected a folder"):
        export.onnx(model, x, tmp_path / "none" / "m.onnx")
    with pytest.raises(CannotRun, match="expected a block or a language model"):
        export.step(model, file)
    with pytest.raises(CannotRun, match=r"forms: expected some of .*selective_scan=scan"):
        export.onnx(model, x, file, forms={"selective_scan": "loop"})
    assert os.listdir(tmp_path) == []


def test_complex_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    complex_model = Block(torch.complex64).eval()
    with pytest.raises(CannotRun, match="A: expected real numbers, found complex ones"):
        export.onnx(complex_model, [torch.randn(2, 8, 4)], tmp_path / "m.onnx")


def test_the_command_says_what_is_wrong_with_its_arguments(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["jetson_mamba.cli.export"], "mamba_ssm", lambda: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "made.py").write_text(
        "import torch\nmodel = torch.nn.Linear(2, 2)\nnone = dict\n"
        "def asks(size): ...\ndef fails(): raise OSError('no\\nweights')\n"
    )
    (tmp_path / "broken.py").write_text("def")
    for name, text in (("torn", "{"), ("bare", '{"d_model": 8, "n_layer": 1, "vocab_size": 8}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
    for arguments, words in (
        (["made:absent", "m.onnx"], "has no attribute 'absent'"),
        (["absent:model", "m.onnx"], "No module named 'absent'"),
        (["made:none", "m.onnx"], "expected a torch.nn.Module, found dict"),
        (["made:model", "m.onnx"], "--shape: expected the shape of each argument"),
        (["made:asks", "m.onnx"], "made:asks: TypeError: asks() missing 1 required"),
        (["made:fails", "m.onnx"], "made:fails: OSError: no weights"),
        (["broken:model", "m.onnx"], "broken:model: SyntaxError"),
        (["made:model", "m.onnx", "--shape", "1,x"], "expected such as 2,70,768"),
        (["made:model", "m.onnx", "--shape", "1,0"], "expected such as 2,70,768"),
        (["made:model", "m.onnx", "--shape", "1,3"], "take arguments of float32 (1, 3), found Run"),
        (["made:model", "m.onnx", "--shape", "int64:1,2"], "of int64 (1, 2), found RuntimeError"),
        (["made:model", "m.onnx", "--shape", "1,2", "--plugins", "sm_87"], "the target tensorrt"),
        (["made:model", "m.onnx", "--shape", "2,2", "--dynamic", "0"], "0=batch,1=seqlen"),
        (["made:model", "m.onnx", "--step"], "expected a block or a language model"),
        ([str(tmp_path), "m.onnx"], "a folder with a config.json, found neither"),
        ([str(tmp_path / "torn"), "m.onnx"], "torn: JSONDecodeError"),
        ([str(tmp_path / "bare"), "m.onnx"], f"{tmp_path / 'bare'}: "),
    ):
        assert main(["export", *arguments]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
