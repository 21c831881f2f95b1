"""The kernels of TensorRT's plugins, started from their PTX as TensorRT starts them, on a GPU."""

from __future__ import annotations

import ctypes
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
from jetson_mamba.export import plugins
from jetson_mamba.export.forms.plugins import Plugin, Size
from jetson_mamba.kernels import compiler
from tests.export.test_forms import BATCH, SEQLEN, alone, scan_tensors, shapes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
TOLERANCE = 3e-6


def number(size: Size, u: Tensor) -> int:
    """A size, as the file of plugins says it in terms of u's shape."""
    space: dict[str, Any] = {
        "u": SimpleNamespace(shape_expr=u.shape),
        "trtp": SimpleNamespace(cdiv=lambda size, by: -(-size // by)),
    }
    return int(eval(str(size), space))


def launched(plugin: Plugin, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The outputs of a plugin: inputs, sizes of 32 bits and outputs are its arguments."""
    core: Any = import_module("cuda.core")
    major, minor = torch.cuda.get_device_capability()
    code = compiler.ptx(plugin.source, plugin.defines, f"sm_{major}{minor}")
    stream = compiler.current_stream(torch.cuda.current_device())
    kernel = core.ObjectCode.from_ptx(code.encode()).get_kernel(plugin.entry)
    u = tensors["u"]
    outputs = [
        torch.full([number(size, u) for size in shape], torch.nan, device="cuda")
        for shape in plugin.outputs
    ]
    grid = [number(size, u) for size in plugin.grid]
    core.launch(
        stream,
        core.LaunchConfig(grid=tuple(grid), block=(plugin.threads, 1, 1)),
        kernel,
        *(tensors[name].data_ptr() for name in plugin.inputs),
        *(ctypes.c_int32(number(size, u)) for size in plugin.sizes),
        *(each.data_ptr() for each in outputs),
    )
    torch.cuda.synchronize()
    return outputs


@pytest.mark.parametrize(
    "case", ["plain", "alone", "groups", "constant B", "constant C, groups", "strong"]
)
def test_a_plugin_computes_the_scan_at_every_length(case: str) -> None:
    given = shapes(scan_tensors(case, BATCH, SEQLEN), BATCH, SEQLEN)
    model = alone("selective_scan", given, 2, "plugin", delta_softplus=1, longest=0)
    (plugin,) = plugins.plugins_of(model)
    for batch, seqlen in ((1, 1), (2, 63), (2, 64), (3, 65), (1, 1000)):
        tensors = scan_tensors(case, batch, seqlen)
        on_device = {name: each.cuda() for name, each in tensors.items() if each is not None}
        out, rows = launched(plugin, on_device)
        plain: Any = {**tensors, "z": None}
        _, ungated, states, _ = selective_scan_reference(**plain, delta_softplus=True)
        assert relative_norm(out, ungated) < TOLERANCE, (batch, seqlen)
        assert relative_norm(rows[:, :, -1, 1::2], states[..., -1]) < TOLERANCE, (batch, seqlen)
