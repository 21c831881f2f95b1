"""A fused call that would be refused, by a caller that has another way: it is left to that."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.dispatch import projections
from jetson_mamba.ops.ssd import mamba_split_conv1d_scan_combined as fused

HEADS, HEADDIM, STATE = 2, 4, 3
DIM, CHANNELS = HEADS * HEADDIM, HEADS * HEADDIM + 2 * STATE


class Mixer(nn.Module):
    """As those of transformers, whose wrapper may be given None."""

    def __init__(self, wrapped: Any, bias: bool = False) -> None:
        super().__init__()
        self.call = wrapped
        self.norm = nn.LayerNorm(DIM, bias=False)
        self.out_proj = nn.Linear(DIM, 5, bias=bias)

    def forward(self, zxbcdt: Tensor) -> Any:
        """The fused call's, or None."""
        return self.call(
            zxbcdt,
            torch.ones(CHANNELS, 4),
            None,
            torch.zeros(HEADS),
            -torch.ones(HEADS),
            torch.ones(HEADS),
            4,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=HEADDIM,
        )


def wrapper(name: str) -> Any:
    """A function of the module of that name, which calls the fused one."""
    namespace: dict[str, Any] = {"__name__": name}
    text = "def made(fused):\n    return lambda *given, **named: fused(*given, **named)\n"
    exec(text, namespace)
    return namespace["made"](fused)


@pytest.fixture
def zxbcdt() -> Tensor:
    return torch.ones(2, 5, DIM + CHANNELS + HEADS)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_projection_of_another_dtype(
    zxbcdt: Tensor, part: str, dtype: torch.dtype, compiled: bool
) -> None:
    mixer = Mixer(wrapper(projections._HAS_ANOTHER_WAY), bias=True)
    call: Any = torch.compile(mixer, backend="eager") if compiled else mixer
    assert call(zxbcdt).shape == (2, 5, 5)
    changed = nn.Parameter(getattr(mixer.out_proj, part).detach().to(dtype))
    setattr(mixer.out_proj, part, changed)
    assert call(zxbcdt) is None
    # Whoever has no other way is told.
    mixer.call = wrapper("another.module")
    with pytest.raises(TypeError, match=f"outproj_{part}: expected torch.float32, as zxbcdt"):
        mixer(zxbcdt)


def test_under_autocast_dtypes_may_differ(zxbcdt: Tensor) -> None:
    mixer = Mixer(wrapper(projections._HAS_ANOTHER_WAY))
    mixer.out_proj.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert mixer(zxbcdt).dtype == torch.bfloat16
