"""What ``mamba_ssm.modules.mha`` takes of flash-attn, for where that cannot be imported.

Without it a model with layers of attention decodes wrongly and says nothing: its own way out masks
a step as if it were the first. The functions have the names, parameters and results of
flash-attn's, as far as the module uses them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# torch 2.0 takes none but its own.
_TAKES_SCALE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 1)


@torch.no_grad()
def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    rotary_interleaved: bool = True,
) -> Tensor:
    """Attention of the next steps to all before them: k and v are written into the caches first.

    Shapes: q (batch, new, nheads, headdim), k and v (batch, new, nheads_kv, headdim), k_cache and
    v_cache (batch, longest, nheads_kv, headdim), of which the first ``cache_seqlens``, a number or
    (batch,), are filled. With ``rotary_cos`` and ``rotary_sin``, (longest, rotary_dim / 2), q and k
    are turned first: k by the place of each step, q too where ``causal``, else all of it by that of
    the first. Where ``causal``, a step attends to those up to itself.

    Returns (batch, new, nheads, headdim), without a graph. Raises ValueError where the caches are
    too short.
    """
    batch, new = q.shape[:2]
    longest = k_cache.shape[1]
    filled = torch.as_tensor(longest if cache_seqlens is None else cache_seqlens, device=q.device)
    filled = filled.expand(batch).long()
    steps = torch.arange(new, device=q.device)
    places = filled.unsqueeze(1) + steps
    if k is not None and v is not None:
        if int(filled.max()) + k.shape[1] > longest:
            raise ValueError(
                f"k_cache: expected room for {int(filled.max()) + k.shape[1]} steps, found "
                f"{longest}; raise max_seqlen"
            )
        if rotary_cos is not None and rotary_sin is not None:
            table = (rotary_cos, rotary_sin, rotary_interleaved)
            k = _turned(k, places, *table)
            q = _turned(q, places if causal else places[:, :1].expand(-1, new), *table)
        rows = torch.arange(batch, device=q.device).unsqueeze(1)
        k_cache[rows, places] = k.to(k_cache.dtype)
        v_cache[rows, places] = v.to(v_cache.dtype)
        filled = filled + new
    keys = torch.arange(longest, device=q.device)
    last = places if causal else (filled - 1).unsqueeze(1).expand(-1, new)
    seen = keys <= last.unsqueeze(-1)
    repeats = q.shape[2] // k_cache.shape[2]
    heads = (each.repeat_interleave(repeats, 2).transpose(1, 2) for each in (k_cache, v_cache))
    # What the caches hold beyond is whatever the memory held, also no number.
    keys_, values = (each.masked_fill(~seen[:, -1, None, :, None], 0.0) for each in heads)
    options: dict[str, Any] = {}
    if softmax_scale is not None and _TAKES_SCALE:
        options["scale"] = softmax_scale
    elif softmax_scale is not None:
        q = q * (softmax_scale * q.shape[3] ** 0.5)
    return functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys_.to(q.dtype),
        values.to(q.dtype),
        attn_mask=seen.unsqueeze(1),
        **options,
    ).transpose(1, 2)


class RotaryEmbedding(torch.nn.Module):
    """Turns pairs of the first ``dim`` channels of each head by the place of their step.

    A pair is (i, i + dim / 2), or (2 i, 2 i + 1) where ``interleaved``; its angle a step is
    ``base ** (-2 i / dim)``. Has no parameters, and nothing in a state dict, as flash-attn's.
    """

    def __init__(
        self, dim: int, base: float = 10000.0, interleaved: bool = False, device: Any = None
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None

    def forward(
        self,
        q: Tensor,
        kv: Tensor,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """q (batch, seqlen, nheads, headdim) and kv (batch, seqlen, 2, nheads_kv, headdim), turned.

        ``seqlen_offset``, a number or (batch,), is the place of the first step.
        """
        offset = torch.as_tensor(seqlen_offset, device=q.device).expand(q.shape[0]).long()
        seqlen = q.shape[1]
        if max_seqlen is None:
            max_seqlen = seqlen + int(offset.max())
        self._update_cos_sin_cache(max_seqlen, device=q.device, dtype=q.dtype)
        assert self._cos_cached is not None and self._sin_cached is not None
        places = offset.unsqueeze(1) + torch.arange(seqlen, device=q.device)
        table = (self._cos_cached, self._sin_cached, self.interleaved)
        k, v = kv.unbind(2)
        return _turned(q, places, *table), torch.stack([_turned(k, places, *table), v], 2)

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Make the tables for so many steps, unless there are longer ones."""
        dtype = dtype or torch.get_default_dtype()
        cos = self._cos_cached
        if (
            cos is not None
            and cos.shape[0] >= seqlen
            and (cos.device, cos.dtype) == (device, dtype)
        ):
            return
        pairs = torch.arange(0, self.dim, 2, device=device, dtype=torch.float64)
        angles = torch.outer(
            torch.arange(seqlen, device=device, dtype=torch.float64),
            self.base ** (-pairs / self.dim),
        )
        self._cos_cached, self._sin_cached = angles.cos().to(dtype), angles.sin().to(dtype)


def _turned(x: Tensor, places: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x (batch, steps, nheads, headdim), turned by the rows (batch, steps) of the tables."""
    cos, sin = (each[places].unsqueeze(2) for each in (cos, sin))
    rotated, rest = x.split([2 * cos.shape[-1], x.shape[-1] - 2 * cos.shape[-1]], -1)
    if interleaved:
        a, b = torch.unflatten(rotated, -1, (-1, 2)).unbind(-1)
    else:
        a, b = rotated.chunk(2, -1)
    both = (a * cos - b * sin, a * sin + b * cos)
    turned = torch.stack(both, -1).flatten(-2) if interleaved else torch.cat(both, -1)
    return torch.cat([turned, rest], -1)
