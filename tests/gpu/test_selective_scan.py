"""The selective scan on a CUDA device: every backend that works there, and the choice itself."""

from __future__ import annotations

import pytest
import torch

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.compiled import compiled_module
from jetson_mamba.errors import Unavailable
from jetson_mamba.ops.selective_scan import op as selective_scan
from tests.ops.scan_setups import (
    VARIANTS,
    Arguments,
    Variant,
    bwd,
    drawn,
    fwd,
    hold_to_reference,
    named,
    on,
    use_only,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(params=["extension", "cuda", "pytorch"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "extension":
        try:
            compiled_module("selective_scan_cuda")
        except Unavailable as reason:
            pytest.skip(str(reason))
    if name == "cuda":
        pytest.importorskip("jetson_mamba.ops.selective_scan.cuda")
    use_only(name, monkeypatch)
    return name


@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_agrees_with_the_loop_over_time(backend: str, variant: Variant) -> None:
    if backend != "pytorch" and variant.dtype == torch.float64:
        pytest.skip("float64 is PyTorch's alone")
    hold_to_reference(drawn(variant, "cuda"), upstream_rows=backend != "cuda")


def test_agrees_with_rows_that_begin_anywhere(backend: str) -> None:
    """Vectorised loads need aligned rows, which these are not."""
    arguments = drawn(Variant(seqlen=256), "cuda")
    shifted = {
        name: torch.cat((field[..., :1], field), -1)[..., 1:]
        for name, field in arguments._asdict().items()
        if isinstance(field, torch.Tensor) and field.dim() > 2
    }
    hold_to_reference(Arguments(**{**arguments._asdict(), **shifted}), backend != "cuda")


def test_backward_writes_into_half_of_a_larger_dz(backend: str) -> None:
    arguments = drawn(Variant(seqlen=256), "cuda")
    batch, dim, seqlen = arguments.u.shape
    whole = torch.full((batch, 2 * dim, seqlen), 7.0, device="cuda")
    half = whole.chunk(2, dim=1)[1]
    out, x, _ = fwd(arguments)
    alone = bwd(arguments, x, out)
    found = bwd(arguments, x, out, half)
    assert found[7].data_ptr() == half.data_ptr()
    assert torch.equal(half, alone[7])
    assert bool((whole[:, :dim] == 7).all())


def test_the_choice_agrees_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = selective_scan.OP
    op = Op("selective_scan", selective_scan.OP._package, whole.order, whole._trial)
    monkeypatch.setattr(selective_scan, "OP", op)
    arguments = drawn(Variant(seqlen=2049))
    moved = Arguments(*(on("cuda", field) for field in arguments))
    (out, x, out_z), there = fwd(arguments), fwd(moved)
    torch.testing.assert_close(there[0].cpu(), out, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(there[2].cpu(), out_z, atol=1e-4, rtol=1e-4)
    last = there[1][:, :, -1, 1::2].cpu()
    torch.testing.assert_close(last, x[:, :, -1, 1::2], atol=1e-4, rtol=1e-4)
