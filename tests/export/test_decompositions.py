"""Exported programs are decomposed into torch's own operations, which leave sizes open."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.ops import (
    causal_conv1d_fn,
    causal_conv1d_update,
    mamba_chunk_scan_combined,
    selective_scan_fn,
)

pytestmark = pytest.mark.filterwarnings("ignore")
if not hasattr(torch.export, "default_decompositions"):
    pytest.skip("this torch decomposes nothing of others", allow_module_level=True)

SIZES = [(1, 3), (2, 63), (1, 65), (3, 600)]


class Scan(nn.Module):
    """A convolution with packed sequences and a scan, or its last state as well."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.A = nn.Parameter((-torch.rand(4, 2)).to(dtype))

    def forward(self, x: Tensor, seq_idx: Tensor) -> Any:
        """(batch, 4, seqlen), and the sequence of each step."""
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
        u = causal_conv1d_fn(x, self.weight, seq_idx=seq_idx, activation="silu")
        B = u[:, :2].unsqueeze(1)
        if self.A.is_complex():
            B = torch.cat((B, B), -1)
        return selective_scan_fn(
            u, x, self.A, B, B, z=x, delta_softplus=True, return_last_state=True
        )


class Chunks(nn.Module):
    """A scan of Mamba-2 over packed sequences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.A, self.D = nn.Parameter(-torch.rand(2) * 3), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor, seq_idx: Tensor) -> Any:
        """(batch, 4, seqlen) as two heads of two channels."""
        heads = x.transpose(1, 2).unflatten(-1, (2, 2))
        return mamba_chunk_scan_combined(
            heads,
            heads[..., 0],
            self.A,
            heads[:, :, :1],
            heads[:, :, 1:],
            64,
            D=self.D,
            z=heads,
            dt_softplus=True,
            seq_idx=seq_idx,
            return_final_states=True,
        )


def drawn(batch: int, seqlen: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seqlen)
    steps = torch.arange(seqlen).expand(batch, -1)
    return torch.randn(batch, 4, seqlen), (steps // 40 - (steps < 2).long()).int().contiguous()


def operators(program: Any) -> set[str]:
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    return {name for name in names if "jetson_mamba" in name}


@pytest.mark.parametrize(("make", "with_gradients"), [(Scan, False), (Chunks, True)])
def test_a_decomposed_program_is_right_at_other_sizes(
    make: type[nn.Module], with_gradients: bool
) -> None:
    module = make().eval()
    dims = torch.export.Dim("batch"), torch.export.Dim("seqlen")
    shapes = ({0: dims[0], 2: dims[1]}, {0: dims[0], 1: dims[1]})
    with torch.set_grad_enabled(with_gradients):
        program = torch.export.export(module, drawn(2, 70), dynamic_shapes=shapes)
        assert operators(program)
        decomposed = program.run_decompositions()
    assert operators(decomposed) == set()
    with torch.no_grad():
        for size in SIZES:
            given = drawn(*size)
            torch.testing.assert_close(
                decomposed.module()(*given), module(*given), rtol=1e-5, atol=1e-5
            )


def test_an_operator_that_is_taken_off_the_table_stays() -> None:
    module = Chunks().eval()
    table = torch.export.default_decompositions()
    del table[torch.ops.jetson_mamba.ssd_scan.default]
    with torch.no_grad():
        program = torch.export.export(module, drawn(2, 9)).run_decompositions(table)
    assert operators(program) == {"jetson_mamba.ssd_scan.default"}


def test_complex_weights_are_decomposed_too() -> None:
    module = Scan(torch.complex64).eval()
    with torch.no_grad():
        program = torch.export.export(module, drawn(2, 9)).run_decompositions()
        assert operators(program) == set()
        given = drawn(2, 9)
        torch.testing.assert_close(program.module()(*given), module(*given))


class Step(nn.Module):
    """A step of the convolution, whose state is written."""

    def forward(self, x: Tensor, state: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the state after it."""
        state = state.clone()
        return causal_conv1d_update(x, state, weight, activation="silu"), state


def test_an_operator_that_writes_is_decomposed_too() -> None:
    given = torch.randn(2, 4), torch.randn(2, 4, 3), torch.randn(4, 3)
    with torch.no_grad():
        program = torch.export.export(Step(), given).run_decompositions()
        assert operators(program) == set()
        torch.testing.assert_close(program.module()(*given), Step()(*given))


def test_a_compiler_keeps_the_operators() -> None:
    found: list[set[str]] = []

    def backend(graph: Any, _: Any) -> Any:
        found.append({str(node.target) for node in graph.graph.nodes})
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    given = drawn(2, 9)
    with torch.no_grad():
        torch.compile(Chunks(), backend=aot_autograd(fw_compiler=backend), fullgraph=True)(*given)
    assert "jetson_mamba.ssd_scan.default" in found[0]
