"""Attention over a cache agrees with attention to all in float64.

The rotary embedding is held to float64 too.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.attention import RotaryEmbedding, flash_attn_with_kvcache
from tests.references.tolerance import relative_norm

BATCH, LONGEST, NHEADS, NHEADS_KV, HEADDIM = 3, 9, 4, 2, 8


def rotated(x: Tensor, places: Tensor, pairs: int, interleaved: bool) -> Tensor:
    """x (batch, steps, heads, headdim), turned as complex numbers."""
    rates = 10000.0 ** (-torch.arange(pairs).double() / pairs)
    turn = torch.polar(torch.ones(()).double(), places[..., None, None] * rates)
    part, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        turned = torch.view_as_real(torch.complex(part[..., ::2], part[..., 1::2]) * turn)
        return torch.cat([turned.flatten(-2), rest], -1)
    turned = torch.complex(part[..., :pairs], part[..., pairs:]) * turn
    return torch.cat([turned.real, turned.imag, rest], -1)


def attended(q: Tensor, k: Tensor, v: Tensor, first: int, causal: bool, scale: float) -> Tensor:
    """One sequence, step for step and head for head: q (new, nheads, headdim)."""
    out = torch.zeros_like(q)
    for step in range(q.shape[0]):
        seen = first + step + 1 if causal else k.shape[0]
        for head in range(NHEADS):
            shared = head // (NHEADS // NHEADS_KV)
            weights = torch.exp(scale * (k[:seen, shared] @ q[step, head]))
            out[step, head] = weights @ v[:seen, shared] / weights.sum()
    return out


@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("turn", [None, "halves", "interleaved"])
@pytest.mark.parametrize("filled", [5, [5, 0, 2]])
def test_the_next_steps_attend_to_all_before_them(
    new: int, causal: bool, turn: str | None, filled: int | list[int]
) -> None:
    torch.manual_seed(0)
    lengths = [filled] * BATCH if isinstance(filled, int) else filled
    q = torch.randn(BATCH, new, NHEADS, HEADDIM, dtype=torch.float64)
    k, v = torch.randn(2, BATCH, new, NHEADS_KV, HEADDIM, dtype=torch.float64)
    before = torch.randn(2, BATCH, LONGEST, NHEADS_KV, HEADDIM, dtype=torch.float64)
    caches = torch.full_like(before, float("nan"))
    for row, length in enumerate(lengths):
        caches[:, row, :length] = before[:, row, :length]
    cos = sin = None
    if turn is not None:
        rotary = RotaryEmbedding(4, interleaved=turn == "interleaved")
        rotary._update_cos_sin_cache(LONGEST, dtype=torch.float64)
        cos, sin = rotary._cos_cached, rotary._sin_cached
    out = flash_attn_with_kvcache(
        *(q, caches[0], caches[1], k, v),
        rotary_cos=cos,
        rotary_sin=sin,
        cache_seqlens=filled if isinstance(filled, int) else torch.tensor(filled).int(),
        softmax_scale=0.3,
        causal=causal,
        rotary_interleaved=turn == "interleaved",
    )
    for row, length in enumerate(lengths):
        places = length + torch.arange(new)
        mine, keys = q[row : row + 1], k[row : row + 1]
        if turn is not None:
            of_q = places if causal else places[:1].expand(new)
            mine = rotated(mine, of_q[None], 2, turn == "interleaved")
            keys = rotated(keys, places[None], 2, turn == "interleaved")
        keys = torch.cat([before[0, row, :length], keys[0]])
        values = torch.cat([before[1, row, :length], v[row]])
        assert relative_norm(out[row], attended(mine[0], keys, values, length, causal, 0.3)) < 1e-12
        assert relative_norm(caches[0, row, : length + new], keys) < 1e-12
        assert torch.equal(caches[1, row, : length + new], values)
        assert caches[:, row, length + new :].isnan().all()


def test_a_cache_without_room_is_refused() -> None:
    q, cache = torch.zeros(1, 2, 1, 4), torch.zeros(1, 3, 1, 4)
    with pytest.raises(ValueError, match="expected room for 4 steps, found 3"):
        flash_attn_with_kvcache(q, cache, cache, q, q, cache_seqlens=2)


def test_no_graph_is_kept_of_the_cache() -> None:
    q = torch.randn(1, 1, 1, 4, requires_grad=True)
    cache = torch.zeros(1, 3, 1, 4)
    assert not flash_attn_with_kvcache(q, cache, cache, q, q, cache_seqlens=0).requires_grad
    assert not cache.requires_grad


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("offset", [0, 2, [3, 0, 1]])
@pytest.mark.parametrize("longest", [None, LONGEST])
def test_the_rotary_embedding(
    interleaved: bool, offset: int | list[int], longest: int | None
) -> None:
    torch.manual_seed(0)
    q = torch.randn(BATCH, 4, NHEADS, HEADDIM, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(BATCH, 4, 2, NHEADS_KV, HEADDIM, dtype=torch.float64, requires_grad=True)
    rotary = RotaryEmbedding(6, interleaved=interleaved)
    given = offset if isinstance(offset, int) else torch.tensor(offset)
    found = rotary(q, kv, seqlen_offset=given, max_seqlen=longest)
    places = torch.as_tensor(offset).expand(BATCH)[:, None] + torch.arange(4)
    k = rotated(kv[:, :, 0], places, 3, interleaved)
    expected = (rotated(q, places, 3, interleaved), torch.stack([k, kv[:, :, 1]], 2))
    for actual, right in zip(found, expected):
        assert relative_norm(actual, right) < 1e-12
        weight = torch.randn_like(actual)
        gradients = [
            torch.autograd.grad(each, (q, kv), weight, allow_unused=True)
            for each in (actual, right)
        ]
        for one, other in zip(*gradients):
            assert (one is None) == (other is None)
            assert one is None or other is None or relative_norm(one, other) < 1e-12
    assert rotary.state_dict() == {} and list(rotary.parameters()) == []
