"""What a block calls with the weights of its projections does what the modules of these do."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.ops import mamba_inner_fn, mamba_split_conv1d_scan_combined
from tests.ops.test_ssd import mixer_case

DIM, DSTATE, RANK = 6, 3, 2


class Adapter(nn.Module):
    """A projection with something added, as adapters are; its weight may have any shape."""

    def __init__(self, base: nn.Linear, packed: bool = False) -> None:
        super().__init__()
        self.base = base
        self.added = nn.Linear(base.in_features, base.out_features, base.bias is not None)
        self.packed = packed

    @property
    def weight(self) -> Any:
        """As a fused call would take it."""
        return self.base.weight.flatten() if self.packed else self.base.weight

    @property
    def bias(self) -> Any:
        """The same."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Both."""
        out: Tensor = self.base(x) + self.added(x)
        return out

    def merged(self) -> nn.Linear:
        """One plain layer that computes the same."""
        found = deepcopy(self.base)
        for one, other in zip(found.parameters(), self.added.parameters()):
            one.data += other.data
        return found


class Mamba(nn.Module):
    """A block of Mamba after its first projection, as upstream writes it."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(DIM, DIM, 4, groups=DIM)
        self.x_proj = nn.Linear(DIM, RANK + 2 * DSTATE, bias=False)
        self.dt_proj = nn.Linear(RANK, DIM)
        self.out_proj = nn.Linear(DIM, 5, bias=bias)
        self.A, self.D = -torch.rand(DIM, DSTATE), torch.randn(DIM)

    def forward(self, xz: Tensor, **given: Tensor) -> Tensor:
        """(batch, seqlen, 5)"""
        return mamba_inner_fn(
            *(xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight),
            *(self.out_proj.weight, self.out_proj.bias, self.A),
            *(given.get("B"), given.get("C"), self.D),
            delta_bias=self.dt_proj.bias.float(),
        )


class Mamba2(nn.Module):
    """A mixer of Mamba-2 after its first projection."""

    def __init__(self) -> None:
        super().__init__()
        tensors, options = mixer_case("as a Mamba-2 block", 70)
        self.given = {**{name: each.float() for name, each in tensors.items()}, **options}
        out = self.given.pop("outproj_weight")
        self.given.pop("outproj_bias", None)
        self.out_proj = nn.Linear(out.shape[1], out.shape[0])

    def forward(self, zxbcdt: Tensor) -> Any:
        """(batch, seqlen, width), and the last state."""
        given = {**self.given, "zxbcdt": zxbcdt}
        return mamba_split_conv1d_scan_combined(
            **given,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            chunk_size=64,
            return_final_states=True,
        )


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["x_proj", "dt_proj", "out_proj"])
def test_an_adapter_in_a_block_of_mamba_computes_as_the_layer_that_it_is_merged_to(
    name: str, packed: bool, recorded: bool
) -> None:
    block = Mamba()
    adapter = Adapter(getattr(block, name), packed)
    xz = torch.randn(2, 2 * DIM, 9)
    with torch.set_grad_enabled(recorded):
        setattr(block, name, adapter.merged())
        expected = block(xz)
        setattr(block, name, adapter)
        torch.testing.assert_close(block(xz), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_with_b_and_c_given_the_first_projection_has_the_step_sizes_alone(bias: bool) -> None:
    block = Mamba(bias)
    matrices = {name: torch.randn(2, 1, DSTATE, 9) for name in "BC"}
    for given in ({}, {"B": matrices["B"]}, {"C": matrices["C"]}, matrices):
        columns = RANK + DSTATE * (2 - len(given))
        block.x_proj = nn.Linear(DIM, columns, bias=False)
        xz = torch.randn(2, 2 * DIM, 9)
        plain = nn.Linear(RANK, DIM)
        block.dt_proj = plain
        expected = block(xz, **given)
        adapter = Adapter(plain, packed=True)
        for each in adapter.added.parameters():
            each.data.zero_()
        block.dt_proj = adapter  # type: ignore[assignment]
        torch.testing.assert_close(block(xz, **given), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recorded", [True, False])
def test_an_adapter_in_a_mixer_of_mamba_2_computes_as_the_layer_that_it_is_merged_to(
    recorded: bool,
) -> None:
    block = Mamba2()
    adapter = Adapter(block.out_proj)
    zxbcdt = block.given["zxbcdt"]
    with torch.set_grad_enabled(recorded):
        block.out_proj = adapter.merged()
        expected = block(zxbcdt)
        block.out_proj = adapter  # type: ignore[assignment]
        for one, other in zip(block(zxbcdt), expected):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
