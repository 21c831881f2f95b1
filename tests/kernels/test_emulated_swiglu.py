"""The kernels of the gate of an MLP agree on a CPU with float64.

All that surrounds them runs with them: tensors say that they are on a GPU.
"""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.kernels import compiler
from jetson_mamba.ops.swiglu import cuda
from jetson_mamba.ops.swiglu import op as swiglu
from tests.kernels.emulated import emulate, serve
from tests.references.tolerance import relative_norm

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {FLOAT: 2e-6, HALF: 1e-3, BRAIN: 6e-3}


@pytest.fixture(autouse=True)
def launched(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were loaded, for a GPU that is imitated."""
    emulate(monkeypatch, libraries)
    serve(monkeypatch, cuda)
    names: list[str] = []
    load: Any = compiler.load

    def noting(source: str, entry: str, defines: Any, index: int) -> Any:
        names.append(f"{entry} {dict(defines)['VECTOR']}")
        return load(source, entry, defines, index)

    monkeypatch.setattr(compiler, "load", noting)
    of: Any = swiglu.OP
    monkeypatch.setattr(swiglu, "OP", Op("swiglu", of._package, of.order, of._trial))
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    monkeypatch.setattr(Tensor, "is_cuda", True)
    return names


def drawn(dtype: torch.dtype, *shape: int, apart: int = 0) -> Tensor:
    return torch.randn(*shape[:-1], shape[-1] + apart).to(dtype)[..., apart:]


CASES = [
    # As many numbers at once as rows, their distances and where they begin allow.
    (FLOAT, 32, 0, 4),
    (FLOAT, 6, 0, 2),
    (FLOAT, 7, 0, 1),
    (FLOAT, 32, 1, 1),
    (BRAIN, 24, 0, 8),
    (BRAIN, 24, 2, 2),
    (HALF, 4, 4, 4),
    # More than the threads of one block.
    (FLOAT, 1100, 0, 4),
]


@pytest.mark.parametrize(("dtype", "dim", "apart", "vector"), CASES)
def test_both_passes_agree_with_the_definition(
    dtype: torch.dtype, dim: int, apart: int, vector: int, launched: list[str]
) -> None:
    torch.manual_seed(0)
    xy, dout = drawn(dtype, 2, 3, 2 * dim, apart=apart), drawn(dtype, 2, 3, dim)
    exact = xy.double().requires_grad_()
    first, second = exact.chunk(2, dim=-1)
    right = functional.silu(first) * second
    (gradient,) = torch.autograd.grad(right, exact, dout.double())
    out = swiglu.swiglu_forward(xy)
    assert f"swiglu_forward {vector}" in launched
    assert out.dtype == dtype and relative_norm(out, right) < TOLERANCE[dtype]
    dxy = swiglu.swiglu_backward(xy, dout)
    assert isinstance(dxy, Tensor) and relative_norm(dxy, gradient) < TOLERANCE[dtype]
    again, once_more = swiglu.swiglu_backward(xy, dout, recompute_output=True)
    assert torch.equal(again, dxy) and torch.equal(once_more, out)
    assert any(name.startswith("swiglu_backward") for name in launched)


@pytest.mark.parametrize("kind", ["whole", "a slice", "columns apart", "another dtype"])
def test_what_is_given_to_be_written_is_what_is_written(kind: str, launched: list[str]) -> None:
    torch.manual_seed(0)
    xy, dout = drawn(FLOAT, 2, 3, 16), drawn(FLOAT, 2, 3, 8)
    expected = swiglu.swiglu_forward(xy)
    gradient: Any = swiglu.swiglu_backward(xy, dout)

    def room(columns: int) -> Tensor:
        if kind == "columns apart":
            return torch.zeros(2, 3, columns, 2)[..., 1]
        whole = torch.zeros(2, 3, columns + 3, dtype=torch.float64 if "dtype" in kind else FLOAT)
        return whole[..., 3:] if kind == "a slice" else whole[..., :columns]

    for target in (room(8), room(8)):
        assert swiglu.swiglu_forward(xy, target) is target
        assert torch.equal(target.float(), expected)
    into, output = room(16), room(8)
    found = swiglu.swiglu_backward(xy, dout, into, True, output)
    assert found[0] is into and found[1] is output
    assert torch.equal(into.float(), gradient) and torch.equal(output.float(), expected)


@pytest.mark.parametrize("kind", ["float64", "two dtypes", "a gradient to come", "nothing"])
def test_what_the_kernels_do_not_take_is_computed_all_the_same(
    kind: str, launched: list[str]
) -> None:
    xy, dout = drawn(FLOAT, 2, 3, 16), drawn(FLOAT, 2, 3, 8)
    if kind == "float64":
        xy, dout = xy.double(), dout.double()
    elif kind == "two dtypes":
        dout = dout.half()
    elif kind == "nothing":
        xy, dout = xy[:0], dout[:0]
    else:
        xy = xy.requires_grad_()
    out = swiglu.swiglu_backward(xy, dout)
    assert isinstance(out, Tensor) and out.shape == xy.shape and out.dtype == xy.dtype
    assert not any(name.startswith("swiglu_backward") for name in launched)
