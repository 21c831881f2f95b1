"""Small layers of both kinds, whose step is as it is defined: what kernels are held to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, activation: Any
) -> Tensor:
    """One more input of a convolution; (batch, channels), the state changed in place."""
    state.copy_(torch.cat([state[..., 1:], x.unsqueeze(-1)], dim=-1))
    out = (state.float() * weight.float()).sum(-1)
    out = out if bias is None else out + bias.float()
    return (functional.silu(out) if activation else out).to(x.dtype)


def selective_state_update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor
) -> Tensor:
    """One more step of (batch, heads, channels, dstate) in place; dt (batch, heads, channels)."""
    after = state.float() * torch.exp(dt.unsqueeze(-1) * A)
    after += (dt * x.float()).unsqueeze(-1) * B.float().unsqueeze(2)
    state.copy_(after)
    return (after * C.float().unsqueeze(2)).sum(-1) + D.float() * x.float()


class Layer(nn.Module):
    """What both have; its step looks its functions up where it was written, as a module's does."""

    def __init__(self, width: int, inner: int, wide: int, rows: int, bias: bool) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, rows, bias=bias)
        self.conv1d = nn.Conv1d(wide, wide, 4, groups=wide)
        self.out_proj = nn.Linear(inner, width, bias=bias)
        self.activation = "silu"

    def convolved(self, x: Tensor, state: Tensor) -> Tensor:
        """The convolution."""
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        return causal_conv1d_update(x, state, weight, bias, self.activation)


class Mamba(Layer):
    """A layer of Mamba."""

    def __init__(self, width: int = 64, d_state: int = 16, dt_rank: int = 4, bias: bool = False):
        super().__init__(width, 2 * width, 2 * width, 4 * width, bias)
        self.d_state, self.dt_rank, inner = d_state, dt_rank, 2 * width
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.rand(inner, d_state))
        self.D = nn.Parameter(torch.rand(inner))

    def states(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Some states."""
        inner = self.D.shape[0]
        conv = torch.randn(batch, inner, 4, dtype=self.D.dtype)
        return conv, torch.randn(batch, inner, self.d_state).to(dtype)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Any:
        """One token."""
        x, z = self.in_proj(hidden_states.squeeze(1)).chunk(2, dim=-1)
        x = self.convolved(x, conv_state)
        low, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = functional.linear(low, self.dt_proj.weight).float() + self.dt_proj.bias.float()
        y = selective_state_update(
            *(ssm_state.unsqueeze(1), x.unsqueeze(1), functional.softplus(dt).unsqueeze(1)),
            *(-torch.exp(self.A_log.float()), B.unsqueeze(1), C.unsqueeze(1), self.D),
        ).squeeze(1)
        y = (y * functional.silu(z.float())).to(hidden_states.dtype)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state


class Norm(nn.Module):
    """A gated norm."""

    # As the gated norms of mamba_ssm are known by.
    __module__ = "mamba_ssm.ops.triton.layernorm_gated"

    def __init__(self, width: int, group_size: int | None, norm_before_gate: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width))
        self.eps, self.group_size, self.norm_before_gate = 1e-5, group_size, norm_before_gate

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """Before the gate or after it, group by group."""
        wide, gate = x.float(), functional.silu(z.float())
        wide = wide if self.norm_before_gate else wide * gate
        groups = wide.unflatten(-1, (-1, self.group_size or x.shape[-1]))
        scale = (groups.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        wide = (groups * scale).flatten(-2) * self.weight.float()
        out: Tensor = (wide * gate if self.norm_before_gate else wide).to(x.dtype)
        return out


class Mamba2(Layer):
    """A layer of Mamba-2."""

    def __init__(
        self,
        width: int = 64,
        ngroups: int = 1,
        bias: bool = False,
        rmsnorm: bool = True,
        group_size: int | None = None,
        norm_before_gate: bool = False,
    ):
        inner, self_state, nheads = 2 * width, 16, 2 * width // 32
        wide = inner + 2 * ngroups * self_state
        super().__init__(width, inner, wide, inner + wide + nheads, bias)
        self.d_ssm, self.ngroups, self.d_state, self.headdim = inner, ngroups, self_state, 32
        self.rmsnorm, self.nheads = rmsnorm, nheads
        self.A_log, self.D, self.dt_bias = (nn.Parameter(torch.rand(nheads)) for _ in range(3))
        if rmsnorm:
            self.norm = Norm(inner, group_size, norm_before_gate)

    def states(self, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Some states; the convolution's lies as upstream lays it."""
        conv = torch.randn(batch, 4, self.conv1d.weight.shape[0], dtype=self.D.dtype)
        shape = (batch, self.nheads, self.headdim, self.d_state)
        return conv.transpose(1, 2), torch.randn(shape).to(dtype)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Any:
        """One token."""
        zxbcdt = self.in_proj(hidden_states.squeeze(1))
        wide = self.conv1d.weight.shape[0]
        z, xBC, dt = zxbcdt.split([self.d_ssm, wide, self.nheads], dim=-1)
        of_groups = self.ngroups * self.d_state
        x, B, C = self.convolved(xBC, conv_state).split([self.d_ssm, of_groups, of_groups], dim=-1)
        B, C = (
            each.unflatten(-1, (self.ngroups, 1, self.d_state))
            .expand(-1, -1, self.nheads // self.ngroups, -1)
            .flatten(1, 2)
            for each in (B, C)
        )
        dt = functional.softplus(dt.float() + self.dt_bias.float()).unsqueeze(-1)
        heads = (self.nheads, self.headdim)
        y = selective_state_update(
            *(ssm_state, x.unflatten(-1, heads), dt.expand(-1, *heads)),
            *(-torch.exp(self.A_log.float()).view(-1, 1, 1), B, C, self.D.unsqueeze(-1)),
        ).flatten(1)
        y = y if self.rmsnorm else y * functional.silu(z.float())
        y = y.to(hidden_states.dtype)
        y = self.norm(y, z) if self.rmsnorm else y
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state


# Each with what the kernels do otherwise.
LAYERS = SimpleNamespace(
    mamba=Mamba,
    mamba_of_other_sizes=lambda: Mamba(96, d_state=8, dt_rank=8, bias=True),
    mamba2=Mamba2,
    mamba2_in_groups=lambda: Mamba2(ngroups=2, group_size=64, bias=True),
    mamba2_without_norm=lambda: Mamba2(rmsnorm=False),
    mamba2_normed_before_the_gate=lambda: Mamba2(norm_before_gate=True),
)
