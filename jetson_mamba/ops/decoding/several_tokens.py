"""``step`` of a block with several tokens: what follows a state, in one pass.

Upstream's ``step`` takes one token and refuses more. Here more go through the ops of ``forward``,
begun from the states. That this computes what the block's own step does is not taken on trust: the
first call of a block holds it to the steps of two tokens. Where they differ, as for a block that
somebody else wrote, and where tensors are traced or transformed, its own step takes the tokens one
after another.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from jetson_mamba.dispatch.block_modules import hook_of_convolution
from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.dispatch.projections import is_plain

from ..causal_conv1d import causal_conv1d_fn
from ..selective_scan import selective_scan_fn
from ..ssd import mamba_chunk_scan_combined

Step = Callable[..., Any]

# Of two tokens, relative norms: they tell rounding, TF32's too, from another computation.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 5e-3}
TOLERANCE_OF_OTHERS = 5e-2
# Numbers, of channels and tokens, that follow a state at once where memory is to be little.
MOST_AT_ONCE = 1 << 17


def several_tokens(step: Step) -> Step:
    """A block's ``step`` for (batch, tokens, d_model), both states changed in place.

    What it does with one token it still does, and what a block does with several by itself. It
    returns (batch, tokens, d_model) and the states.
    """
    known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    @wraps(step)
    def call(block: Any, hidden_states: Any, conv_state: Any, ssm_state: Any) -> Any:
        tokens = hidden_states.shape[1] if getattr(hidden_states, "ndim", 0) == 3 else 1
        given = (hidden_states, conv_state, ssm_state)
        if tokens <= 1:
            return step(block, *given)
        try:
            if __debug__ or type(block).__module__.split(".")[0] != "mamba_ssm":
                return step(block, *given)
        except AssertionError:
            pass
        if not isinstance(block, nn.Module) or way(*given) is not Way.KERNELS:
            return _one_by_one(step, block, *given)
        may = known.get(block)
        if may is None:
            may = known[block] = _computes_the_same(step, block, *given)
        if not may:
            return _one_by_one(step, block, *given)
        return _at_once(block, *given), conv_state, ssm_state

    return call


def _one_by_one(
    step: Step, block: Any, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    outs = []
    for token in hidden_states.split(1, dim=1):
        out, conv_state, ssm_state = step(block, token, conv_state, ssm_state)
        outs.append(out)
    return torch.cat(outs, dim=1), conv_state, ssm_state


def _at_once(block: Any, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
    of = _mamba if hasattr(block, "x_proj") else _mamba2
    return of(block, hidden_states, conv_state, ssm_state)


@torch.no_grad()
def _computes_the_same(
    step: Step, block: Any, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor
) -> bool:
    """Whether two tokens at once give what two steps give, on copies of the states."""
    if hook_of_convolution(block) is not None:
        return False
    tokens = hidden_states[:, :2].detach()
    try:
        states = conv_state.detach().clone(), ssm_state.detach().clone()
        out = _at_once(block, tokens, *states)
    except Exception:
        # Whatever it is, the block is another than it looks like.
        return False
    others = conv_state.detach().clone(), ssm_state.detach().clone()
    expected, *others_after = _one_by_one(step, block, tokens, *others)
    for found, right in zip((out, *states), (expected, *others_after)):
        narrow = min((found.dtype, out.dtype, block.out_proj.weight.dtype), key=_digits)
        most = TOLERANCE.get(narrow, TOLERANCE_OF_OTHERS)
        norm, off = right.double().norm(), (found.double() - right.double()).norm()
        if found.shape != right.shape or not bool(off <= most * norm):  # a NaN fails
            return False
    return True


def _digits(dtype: torch.dtype) -> float:
    return -torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def _convolved(block: Any, x: Tensor, conv_state: Tensor) -> Tensor:
    """The convolution of (batch, dim, tokens), whose inputs become the latest of the state."""
    weight = block.conv1d.weight.squeeze(1)
    before = conv_state[..., conv_state.shape[-1] - weight.shape[1] + 1 :].to(x.dtype)
    out: Tensor = causal_conv1d_fn(
        x, weight, block.conv1d.bias, initial_states=before, activation=block.activation
    )
    length = conv_state.shape[-1]
    latest = torch.cat([conv_state.to(x.dtype), x[..., -length:]], dim=-1)
    with torch.no_grad():
        conv_state.copy_(latest[..., -length:])
    return out


def _mamba(block: Any, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
    x, z = block.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)
    x = _convolved(block, x, conv_state)
    sizes = [block.dt_rank, block.d_state, block.d_state]
    dt, B, C = block.x_proj(x.transpose(1, 2)).split(sizes, dim=-1)
    bias: Tensor | None
    if is_plain(block.dt_proj):
        dt, bias = functional.linear(dt, block.dt_proj.weight), block.dt_proj.bias
    else:
        dt, bias = block.dt_proj(dt), None
    dt, B, C = (each.transpose(1, 2) for each in (dt, B, C))
    A = -torch.exp(block.A_log.float())
    bias = None if bias is None else bias.float()
    scanned: Any = selective_scan_fn(
        x, dt, A, B, C, block.D.float(), z, bias, True, return_last_state=True
    )
    y, last = scanned
    # Some channels after others: what each has would be larger than anything else.
    count = dt.shape[1]
    some = count if torch.is_grad_enabled() else max(1, count * MOST_AT_ONCE // max(1, dt.numel()))
    for first in range(0, count, some):
        own = slice(first, first + some)
        of_bias = None if bias is None else bias[own]
        rest, decayed = _of_first_state(
            ssm_state[:, own], dt[:, own], of_bias, A[own], C, z[:, own]
        )
        if torch.is_grad_enabled():
            y = (y + rest).to(y.dtype)
        else:
            y[:, own].add_(rest)
        with torch.no_grad():
            ssm_state[:, own].copy_(last[:, own] + decayed)
    out: Tensor = block.out_proj(y.transpose(1, 2))
    return out


def _of_first_state(
    state: Tensor, dt: Tensor, bias: Tensor | None, A: Tensor, C: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """What a scan from a state gives beyond one from zero: output after the gate, and last state.

    A scan is linear in its first state, which each step decays: at step t, (batch, dim, dstate),
    it is ``exp(A (dt[0] + ... + dt[t]))`` times what it was.
    """
    steps = dt.to(A.dtype) if bias is None else dt.to(A.dtype) + bias.unsqueeze(-1)
    elapsed = functional.softplus(steps).double().cumsum(-1).to(A.dtype)
    del steps
    state, C = state.to(A.dtype), C.to(A.dtype)
    read = torch.zeros_like(elapsed)
    in_place = not torch.is_grad_enabled()
    for n in range(A.shape[1]):
        decay = elapsed * A[:, n, None]
        if in_place:
            read.addcmul_(decay.exp_().mul_(state[:, :, n, None]), C[:, n, None])
        else:
            read = read + decay.exp() * state[:, :, n, None] * C[:, n, None]
    decayed = state * torch.exp(elapsed[..., -1:] * A)
    del elapsed
    gate = z.to(A.dtype)
    gated = read.mul_(functional.silu(gate)) if in_place else read * functional.silu(gate)
    return gated, decayed


def _mamba2(block: Any, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Tensor:
    zxbcdt = block.in_proj(hidden_states)
    of_groups = block.ngroups * block.d_state
    d_conv = block.d_ssm + 2 * of_groups
    d_mlp = (zxbcdt.shape[-1] - block.d_ssm - d_conv - block.nheads) // 2
    up, gate, z, xBC, dt = zxbcdt.split([d_mlp, d_mlp, block.d_ssm, d_conv, block.nheads], dim=-1)
    xBC = _convolved(block, xBC.transpose(1, 2), conv_state).transpose(1, 2)
    x, B, C = xBC.split([block.d_ssm, of_groups, of_groups], dim=-1)
    by_head = (-1, block.headdim)
    scanned: Any = mamba_chunk_scan_combined(
        torch.unflatten(x, -1, by_head),
        dt,
        -torch.exp(block.A_log.float()),
        torch.unflatten(B, -1, (block.ngroups, -1)),
        torch.unflatten(C, -1, (block.ngroups, -1)),
        chunk_size=block.chunk_size,
        D=torch.unflatten(block.D, 0, by_head) if block.D_has_hdim else block.D,
        z=None if block.rmsnorm else torch.unflatten(z, -1, by_head),
        dt_bias=block.dt_bias,
        initial_states=ssm_state,
        dt_softplus=True,
        dt_limit=block.dt_limit,
        return_final_states=True,
    )
    y, last = scanned
    with torch.no_grad():
        ssm_state.copy_(last)
    y = y.flatten(2)
    if block.rmsnorm:
        y = block.norm(y, z)
    if d_mlp > 0:
        y = torch.cat([functional.silu(up) * gate, y], dim=-1)
    out: Tensor = block.out_proj(y)
    return out
