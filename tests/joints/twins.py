"""mamba_ssm in plain torch: what it would be without kernels.

These are its blocks and its language model. mamba_ssm cannot be imported without the hook, so that
these stand in for it: modules of the same names, parameters and signatures, each projection called
as a module, the recurrences written as sums over earlier steps (Dao and Gu, section 3), in float64.
Nothing of them depends on the sizes of an input, so that torch may trace, transform and
differentiate them.
"""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Logits = namedtuple("Logits", ["logits"])


def softplus(x: Tensor) -> Tensor:
    """Not torch's own, of whose gradient graphs of torch.compile expect other strides."""
    return torch.logaddexp(x, torch.zeros_like(x))


def decays(rates: Tensor) -> Tensor:
    """``exp`` of the sums of rates over (s, t] for every pair of steps: (..., t, s), 0 above."""
    sums = rates.cumsum(-1)
    size = rates.shape[-1]
    lower = torch.ones(size, size, dtype=torch.bool, device=rates.device).tril()
    pairs = sums[..., :, None] - sums[..., None, :]
    return torch.where(lower, pairs, float("-inf")).exp()


def pair_of_states(module: Any, params: Any, batch: int) -> tuple[Tensor, Tensor]:
    """The states of a layer in the parameters of an inference, made at their first use."""
    if module.layer_idx not in params.key_value_memory_dict:
        states = module.allocate_inference_cache(batch, params.max_seqlen)
        params.key_value_memory_dict[module.layer_idx] = states
    found: tuple[Tensor, Tensor] = params.key_value_memory_dict[module.layer_idx]
    return found


class Block(nn.Module):
    """What both kinds of block share: a convolution, and states that go on from step to step."""

    conv1d: nn.Conv1d
    in_proj: nn.Module
    out_proj: nn.Module
    layer_idx: int | None
    d_conv: int

    def convolution(self, x: Tensor) -> Tensor:
        """(batch, seqlen, channels), causal."""
        return F.silu(self.conv1d(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)

    def convolution_step(self, x: Tensor, state: Tensor) -> Tensor:
        """(batch, channels), and the state written in place."""
        with torch.no_grad():
            state.copy_(torch.cat([state[..., 1:], x[..., None].to(state.dtype)], -1))
        weight, bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        out = (state.to(x.dtype) * weight.to(x.dtype)).sum(-1)
        return F.silu(out if bias is None else out + bias.to(x.dtype))

    def keep(self, conv_state: Tensor, x: Tensor) -> None:
        """Write the last inputs of the convolution (batch, seqlen, channels) into its state."""
        with torch.no_grad():
            conv_state.copy_(F.pad(x.transpose(1, 2), (self.d_conv - x.shape[1], 0)))

    def step(self, u: Tensor, conv_state: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One step of decoding, (batch, 1, d_model); states are written in place."""
        raise NotImplementedError

    def mixed(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, the convolution's input and the last state."""
        raise NotImplementedError

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """States of zeros, of the weights' dtype."""
        raise NotImplementedError

    def forward(self, u: Tensor, inference_params: Any = None) -> Tensor:
        """(batch, seqlen, d_model) to the same."""
        if inference_params is None:
            return self.mixed(u)[0]
        conv_state, state = pair_of_states(self, inference_params, u.shape[0])
        if inference_params.seqlen_offset > 0:
            return self.step(u, conv_state, state)[0]
        out, x, last = self.mixed(u)
        self.keep(conv_state, x)
        with torch.no_grad():
            state.copy_(last)
        return out


class Mamba(Block):
    """Gu and Dao, figure 3 and algorithm 2."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, rank = expand * d_model, -(-d_model // 16)
        self.d_inner, self.rank, self.d_state, self.d_conv = inner, rank, d_state, d_conv
        self.layer_idx = layer_idx
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False, **made)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner, padding=d_conv - 1, **made)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False, **made)
        self.dt_proj = nn.Linear(rank, inner, **made)
        self.A_log = nn.Parameter(torch.ones(inner, d_state, device=device))
        self.D = nn.Parameter(torch.ones(inner, device=device))
        self.out_proj = nn.Linear(inner, d_model, bias=False, **made)

    def selected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt, B and C of each step, in float64."""
        dt, B, C = self.x_proj(x).split([self.rank, self.d_state, self.d_state], -1)
        dt = softplus(self.dt_proj(dt).double())
        return dt, B.double(), C.double()

    def mixed(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base says."""
        x, z = self.in_proj(u).chunk(2, -1)
        kept, x = x, self.convolution(x)
        dt, B, C = self.selected(x)
        wide = x.double()
        # (batch, channels, dstate, seqlen): a step's rate of decay, and what it adds.
        rates = dt.transpose(1, 2)[:, :, None] * -self.A_log.double().exp()[..., None]
        added = (dt * wide).transpose(1, 2)[:, :, None] * B.transpose(1, 2)[:, None]
        states = torch.einsum("bdnts,bdns->bdnt", decays(rates), added)
        y = torch.einsum("bdnt,btn->btd", states, C) + self.D.double() * wide
        out = self.out_proj((y * F.silu(z.double())).to(z.dtype))
        return out, kept, states[..., -1]

    def step(self, u: Tensor, conv_state: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base says."""
        x, z = self.in_proj(u.squeeze(1)).chunk(2, -1)
        x = self.convolution_step(x, conv_state)
        dt, B, C = self.selected(x)
        wide = x.double()
        decay = (dt[..., None] * -self.A_log.double().exp()).exp()
        new = state.double() * decay + (dt * wide)[..., None] * B[:, None]
        with torch.no_grad():
            state.copy_(new)
        y = torch.einsum("bdn,bn->bd", new, C) + self.D.double() * wide
        out = self.out_proj((y * F.silu(z.double())).to(z.dtype))
        return out.unsqueeze(1), conv_state, state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the base says."""
        made: dict[str, Any] = {
            "device": self.out_proj.weight.device,
            "dtype": dtype or self.conv1d.weight.dtype,
        }
        conv_state = torch.zeros(batch_size, self.d_inner, self.d_conv, **made)
        return conv_state, torch.zeros(batch_size, self.d_inner, self.d_state, **made)


class Mamba2(Block):
    """Dao and Gu, section 7."""

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        chunk_size: int = 256,
        layer_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        inner, heads = expand * d_model, expand * d_model // headdim
        self.d_inner, self.d_state, self.d_conv, self.headdim = inner, d_state, d_conv, headdim
        self.nheads, self.layer_idx = heads, layer_idx
        channels = inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, inner + channels + heads, bias=False, **made)
        self.conv1d = nn.Conv1d(
            channels, channels, d_conv, groups=channels, padding=d_conv - 1, **made
        )
        self.dt_bias = nn.Parameter(torch.ones(heads, **made))
        self.A_log = nn.Parameter(torch.ones(heads, **made))
        self.D = nn.Parameter(torch.ones(heads, device=device))
        self.norm = nn.RMSNorm(inner, eps=1e-5, **made)
        self.out_proj = nn.Linear(inner, d_model, bias=False, **made)

    def parted(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gate, the convolution's input, and dt in float64."""
        z, x, dt = self.in_proj(u).split(
            [self.d_inner, self.d_inner + 2 * self.d_state, self.nheads], -1
        )
        return z, x, softplus(dt.double() + self.dt_bias.double())

    def gated(self, y: Tensor, z: Tensor) -> Tensor:
        """The gate, the norm and the projection at the end."""
        y = y * F.silu(z.double())
        y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * self.norm.weight.double()
        out: Tensor = self.out_proj(y.to(z.dtype))
        return out

    def mixed(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base says."""
        z, kept, dt = self.parted(u)
        sizes = [self.d_inner, self.d_state, self.d_state]
        x, B, C = self.convolution(kept).double().split(sizes, -1)
        x = x.unflatten(-1, (self.nheads, self.headdim))
        decay = decays((dt * -self.A_log.double().exp()).transpose(1, 2))
        added = torch.einsum("bsh,bshp,bsn->bshpn", dt, x, B)
        states = torch.einsum("bhts,bshpn->bthpn", decay, added)
        y = torch.einsum("bthpn,btn->bthp", states, C) + self.D.double()[:, None] * x
        return self.gated(y.flatten(-2), z), kept, states[:, -1]

    def step(self, u: Tensor, conv_state: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As the base says."""
        z, x, dt = self.parted(u.squeeze(1))
        sizes = [self.d_inner, self.d_state, self.d_state]
        x, B, C = self.convolution_step(x, conv_state).double().split(sizes, -1)
        x = x.unflatten(-1, (self.nheads, self.headdim))
        decay = (dt * -self.A_log.double().exp()).exp()[..., None, None]
        new = state.double() * decay + torch.einsum("bh,bhp,bn->bhpn", dt, x, B)
        with torch.no_grad():
            state.copy_(new)
        y = torch.einsum("bhpn,bn->bhp", new, C) + self.D.double()[:, None] * x
        return self.gated(y.flatten(-2), z).unsqueeze(1), conv_state, state

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """As the base says."""
        made: dict[str, Any] = {
            "device": self.out_proj.weight.device,
            "dtype": dtype or self.conv1d.weight.dtype,
        }
        channels = self.conv1d.weight.shape[0]
        conv_state = torch.zeros(batch_size, channels, self.d_conv, **made)
        return conv_state, torch.zeros(batch_size, self.nheads, self.headdim, self.d_state, **made)


class Mamba2Simple(Mamba2):
    """The same without decoding."""


class GatedMLP(nn.Module):
    """Two projections with a gate between them."""

    def __init__(self, d_model: int, hidden: int, **made: Any) -> None:
        super().__init__()
        hidden = -(-hidden // 128) * 128
        self.fc1 = nn.Linear(d_model, 2 * hidden, bias=False, **made)
        self.fc2 = nn.Linear(hidden, d_model, bias=False, **made)

    def forward(self, x: Tensor) -> Tensor:
        """As mamba_ssm's."""
        y, gate = self.fc1(x).chunk(2, -1)
        out: Tensor = self.fc2(y * F.silu(gate))
        return out


class Layer(nn.Module):
    """A mixer, perhaps an MLP, each with a norm before it and a residual in float32 past it."""

    def __init__(self, d_model: int, mixer: Block, d_intermediate: int, **made: Any) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-5, **made)
        self.mixer = mixer
        self.mlp = GatedMLP(d_model, d_intermediate, **made) if d_intermediate else None
        if self.mlp is not None:
            self.norm2 = nn.RMSNorm(d_model, eps=1e-5, **made)

    def forward(self, residual: Tensor, inference_params: Any = None) -> Tensor:
        """As mamba_ssm's."""
        dtype = self.norm.weight.dtype
        out = self.mixer(normed(self.norm, residual).to(dtype), inference_params=inference_params)
        residual = residual + out
        if self.mlp is not None:
            residual = residual + self.mlp(normed(self.norm2, residual).to(dtype))
        return residual


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    wide = x.float() if x.dtype != torch.float64 else x
    scale = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return wide * scale * norm.weight.to(wide.dtype)


@dataclass
class Config:
    """The sizes of a language model."""

    d_model: int
    n_layer: int
    vocab_size: int
    d_intermediate: int = 0
    ssm_cfg: dict[str, Any] = field(default_factory=dict)


class Backbone(nn.Module):
    """Embedding, layers, and a norm at the end."""

    def __init__(self, config: Any, **made: Any) -> None:
        super().__init__()
        options = dict(config.ssm_cfg)
        kind = {"Mamba1": Mamba, "Mamba2": Mamba2}[options.pop("layer", "Mamba1")]
        width = config.d_model
        self.embedding = nn.Embedding(config.vocab_size, width, **made)
        self.layers = nn.ModuleList(
            Layer(width, kind(width, layer_idx=i, **options, **made), config.d_intermediate, **made)
            for i in range(config.n_layer)
        )
        self.norm_f = nn.RMSNorm(width, eps=1e-5, **made)

    def forward(self, input_ids: Tensor, inference_params: Any = None) -> Tensor:
        """As mamba_ssm's."""
        residual = self.embedding(input_ids)
        dtype = residual.dtype
        residual = residual if dtype == torch.float64 else residual.float()
        for layer in self.layers:
            residual = layer(residual, inference_params=inference_params)
        return normed(self.norm_f, residual).to(dtype)


class MambaLMHeadModel(nn.Module):
    """A language model with tied embeddings, and greedy or sampled generation."""

    def __init__(self, config: Any, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, device=device, dtype=dtype)
        self.lm_head = nn.Linear(
            config.d_model, config.vocab_size, bias=False, device=device, dtype=dtype
        )
        self.lm_head.weight = self.backbone.embedding.weight

    def forward(
        self, input_ids: Tensor, inference_params: Any = None, num_last_tokens: int = 0
    ) -> Logits:
        """As mamba_ssm's."""
        hidden = self.backbone(input_ids, inference_params=inference_params)
        return Logits(self.lm_head(hidden[:, -num_last_tokens:] if num_last_tokens else hidden))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        cg: bool = False,
    ) -> Any:
        """The tokens, or with them the logits that each was chosen by."""
        tokens, scores = input_ids, []
        while tokens.shape[1] < max_length:
            logits = self(tokens, num_last_tokens=1).logits.squeeze(1)
            scores.append(logits)
            if top_k == 1:
                new = logits.argmax(-1, keepdim=True)
            else:
                best, indices = logits.topk(min(top_k, logits.shape[-1]), -1)
                new = indices.gather(1, torch.multinomial((best / temperature).softmax(-1), 1))
            tokens = torch.cat([tokens, new], 1)
        if return_dict_in_generate:
            return SimpleNamespace(sequences=tokens, scores=tuple(scores))
        return tokens
