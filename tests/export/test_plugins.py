"""A model may leave its scans to plugins of TensorRT, whose kernels stand beside it as PTX.

There is no TensorRT here, so the file's functions are called with shapes that are numbers, through
a module in its place; and the kernel's entry point is read from the PTX.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
if not hasattr(getattr(torch.onnx, "ops", None), "symbolic_multi_out"):
    pytest.skip("needs torch 2.8", allow_module_level=True)

import onnx_ir

from jetson_mamba import export
from jetson_mamba.errors import CannotRun, Unavailable
from jetson_mamba.export import capture, forms, plugins
from jetson_mamba.export.forms.plugins import Plugin
from jetson_mamba.kernels import compiler
from jetson_mamba.ops import mamba_chunk_scan_combined, selective_scan_fn
from jetson_mamba.ops.selective_scan.plans import Variant, layout_of
from tests.kernels.test_compile_selective_scan import STATIC_SHARED_BYTES

BATCH, DIM, GROUPS, DSTATE, SEQLEN = 2, 96, 2, 16, 70
OPEN = [{0: "batch", 1: "seqlen"}]
VECTOR = {"D", "delta_bias"}


class Scans(nn.Module):
    """Two scans: with all that there may be, and one whose last state is returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.A, self.D = nn.Parameter(-torch.rand(DIM, DSTATE)), nn.Parameter(torch.randn(DIM))
        self.B, self.bias = nn.Parameter(torch.randn(DIM, DSTATE)), nn.Parameter(torch.randn(DIM))

    def forward(self, x: Tensor) -> Any:
        """(batch, seqlen, DIM) to the same, and a state."""
        u = x.transpose(1, 2)
        C = u[:, : GROUPS * DSTATE].unflatten(1, (GROUPS, DSTATE))
        z = u.sin()
        y: Any = selective_scan_fn(u, u, self.A, C, C, self.D, z, self.bias, delta_softplus=True)
        out, state = selective_scan_fn(
            y, y, self.A, self.B, C, z=u, delta_softplus=True, return_last_state=True
        )
        return out.transpose(1, 2), state


class Products(nn.Module):
    """A scan of Mamba-2."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(-torch.ones(2))

    def forward(self, x: Tensor) -> Any:
        """(batch, seqlen, 4) as two heads of two channels."""
        heads = x.unflatten(-1, (2, 2))
        return mamba_chunk_scan_combined(heads, heads[..., 0], self.A, heads, heads, 64)


@pytest.fixture(scope="module")
def nvrtc() -> None:
    """An NVRTC that compiles for the boards."""
    try:
        known = compiler.supported_architectures()
    except Unavailable as reason:
        pytest.skip(str(reason))
    if not {"sm_87", "sm_110"} <= known:
        pytest.skip(f"NVRTC {compiler.nvrtc_version()} does not compile for sm_87 and sm_110")


@pytest.fixture(scope="module")
def graph() -> Any:
    """The scans as they are captured, once for all tests."""
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seqlen")}
    return capture.captured(Scans().eval(), [torch.randn(BATCH, SEQLEN, DIM)], (dims,))


@pytest.fixture
def captured_once(monkeypatch: pytest.MonkeyPatch, graph: Any) -> None:
    monkeypatch.setattr(capture, "captured", lambda *_, **__: graph)


def written(graph: Any) -> list[Any]:
    """The plugins of the scans, in their order."""
    found = forms.written(graph, {"selective_scan": "plugin"})
    nodes = [node for node in found.graph if node.domain == "jetson_mamba"]
    assert [node.op_type for node in nodes] == [each.name for each in plugins.plugins_of(found)]
    assert found.opset_imports["jetson_mamba"] == 1
    return nodes


def imitation(registered: dict[str, list[Callable[..., Any]]]) -> Any:
    """As much of ``tensorrt`` as the file of plugins uses, of shapes that are numbers."""

    def collecting(name: str) -> Callable[..., Any]:
        def of(function: Callable[..., Any]) -> Callable[..., Any]:
            registered.setdefault(name, []).append(function)
            return function

        return of

    made: Any = ModuleType("tensorrt")
    made.float32 = "float32"
    made.plugin = ModuleType("tensorrt.plugin")
    vars(made.plugin).update(
        register=collecting,
        aot_impl=collecting,
        TensorDesc=object,
        KernelLaunchParams=SimpleNamespace,
        SymInt32=lambda size: ("SymInt32", size),
        SymIntExprs=SimpleNamespace(from_tuple=list),
        cdiv=lambda size, by: -(-size // by),
        from_shape_expr=lambda shape, dtype: (shape, dtype),
    )
    return made


def parameters(ptx: str, entry: str) -> list[str]:
    """The types of a kernel's parameters."""
    (found,) = re.findall(rf"\.visible \.entry {entry}\((.*?)\)", ptx, flags=re.DOTALL)
    return re.findall(r"\.param \.(u64|u32)", found)


SHAPES = {
    **dict.fromkeys(("u", "delta", "z"), (BATCH, DIM, SEQLEN)),
    **dict.fromkeys(VECTOR, (DIM,)),
    "A": (DIM, DSTATE),
}


@pytest.mark.parametrize("architecture", ["sm_87", "sm_110"])
def test_a_plugin_starts_a_kernel_with_the_parameters_that_it_has(
    nvrtc: None,
    graph: Any,
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = written(graph)
    found = [each for each in map(Plugin.of, nodes) if each is not None]
    (tmp_path / "found.py").write_text(plugins.text(found, "m.onnx", architecture))
    registered: dict[str, list[Callable[..., Any]]] = {}
    made = imitation(registered)
    monkeypatch.setitem(sys.modules, "tensorrt", made)
    monkeypatch.setitem(sys.modules, "tensorrt.plugin", made.plugin)
    space: dict[str, Any] = {}
    exec((tmp_path / "found.py").read_text(), space)
    assert list(registered) == [f"jetson_mamba::{node.op_type}" for node in nodes]

    layout = layout_of(DSTATE, False)
    blocks = GROUPS * -(-DIM // GROUPS // (layout.forward_warps * layout.channels))
    expected = [
        ["u", "delta", "A", "B", "C", "D", "z", "delta_bias"],
        ["u", "delta", "A", "B", "C"],
    ]
    for plugin, names, (outputs, launched) in zip(found, expected, registered.values()):
        assert list(plugin.inputs) == names
        inputs = [
            SimpleNamespace(shape_expr=SHAPES.get(name), like=lambda: "as u") for name in names
        ]
        keeps_state = "z" not in names
        rows = ((BATCH, DIM, -(-SEQLEN // (2 * layout.interval)), 2 * DSTATE), "float32")
        assert outputs(*inputs) == ("as u", rows)[: 1 + keeps_state]
        entry, ptx, launch, sizes = launched(*inputs, None, None)
        assert (launch.grid_x, launch.grid_y, launch.grid_z) == (blocks, BATCH, 1)
        assert launch.block_x == 32 * layout.forward_warps
        # Addresses of inputs, sizes of 32 bits, addresses of outputs.
        assert sizes == [("SymInt32", size) for size in (DIM, DIM // GROUPS, SEQLEN)]
        types = parameters(ptx, entry)
        assert types == ["u64"] * len(names) + ["u32"] * 3 + ["u64"] * (1 + keeps_state)
        assert f".target {architecture}" in ptx and ptx.count(".entry") == 1


def test_the_kernels_of_plugins_fit_a_board(nvrtc: None) -> None:
    entry = "selective_scan_plugin"
    for dstate, dtype in ((16, torch.float32), (64, torch.float16)):
        variant = Variant(dtype, dstate, False, False, False, True, True, True)
        defines = variant.defines(layout_of(dstate, False).forward_warps)
        compiled = compiler.compile_source(f"{entry}.cu", entry, defines, "sm_87")
        assert compiled.spill_bytes == 0
        assert compiled.static_shared_bytes <= STATIC_SHARED_BYTES


def test_a_node_of_a_plugin_is_found_by_its_name_and_namespace(graph: Any) -> None:
    for node in written(graph):
        attributes = {name: each.value for name, each in node.attributes.items()}
        assert attributes == {"plugin_namespace": "jetson_mamba", "plugin_version": "1", "aot": 1}
        assert re.fullmatch(r"selective_scan_[0-9a-f]{8}", node.op_type)


def test_half_precision_is_the_kernels_where_all_rows_have_it(graph: Any) -> None:
    half = graph.clone()
    scan = next(node for node in half.graph if node.op_type == "selective_scan")
    for place, number in ((0, None), (1, None), (3, None), (4, "float"), (6, "half_t")):
        scan.inputs[place].type = onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
        node = written(half)[0]
        described = Plugin.of(node)
        assert described is not None
        assert number in (None, dict(described.defines)["NUMBER"])
        kinds = dict(zip(described.inputs, (value.dtype for value in node.inputs)))
        rows = {kinds[name] for name in ("u", "delta", "B", "C", "z")}
        assert rows == {onnx_ir.DataType["FLOAT16" if number == "half_t" else "FLOAT"]}
        assert {kinds[name] for name in ("A", "D", "delta_bias")} == {onnx_ir.DataType.FLOAT}


def test_a_model_is_compared_before_its_scans_become_plugins(
    nvrtc: None, captured_once: None, tmp_path: Path
) -> None:
    x = [torch.randn(BATCH, SEQLEN, DIM)]
    found = export.onnx(
        Scans().eval(),
        x,
        tmp_path / "my model.onnx",
        dynamic=OPEN,
        target="tensorrt",
        plugins="sm_87",
    )
    assert found.plugins == tmp_path / "my_model_plugins.py"
    assert {each.name for each in tmp_path.iterdir()} == {"my model.onnx", "my_model_plugins.py"}
    assert found.forms == {"selective_scan": "plugin"}
    assert len(found.compared) > 5 and 0 < found.error <= found.tolerance
    saved = onnx_ir.load(tmp_path / "my model.onnx")
    names = [node.op_type for node in saved.graph if node.domain]
    text = found.plugins.read_text()
    assert len(names) == 2
    assert all(f'"jetson_mamba::{name}"' in text for name in names)


def test_what_plugins_cannot_be_made_of_is_said_in_one_line(
    captured_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, file = [torch.randn(BATCH, SEQLEN, DIM)], tmp_path / "m.onnx"
    model = Scans().eval()
    options: dict[str, Any] = {"dynamic": OPEN, "target": "tensorrt"}
    with pytest.raises(CannotRun, match="plugins: expected the target tensorrt"):
        export.onnx(model, x, file, plugins="sm_87")
    with pytest.raises(CannotRun, match=r"compiles for, .*found sm_1$|is not installed"):
        export.onnx(model, x, file, plugins="sm_1", **options)
    monkeypatch.setattr(compiler, "_nvrtc", lambda: (_ for _ in ()).throw(Unavailable("none here")))
    with pytest.raises(CannotRun, match=r"plugins: none here; .*pip install"):
        export.onnx(model, x, file, plugins="sm_87", **options)


def test_a_model_without_a_selective_scan_has_no_plugins(nvrtc: None, tmp_path: Path) -> None:
    model, x = Products().eval(), [torch.randn(1, 4, 4)]
    with pytest.raises(CannotRun, match="plugins: expected a selective scan, found none"):
        export.onnx(model, x, tmp_path / "m.onnx", target="tensorrt", plugins="sm_87")
    assert list(tmp_path.iterdir()) == []
