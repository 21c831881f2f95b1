"""Functions of mamba-ssm that launch kernels, on a CPU beside float64.

Programs import them. Run by ``test_launched`` in a process with a release on its path; under
Triton's interpreter it is upstream's kernels that are held to the same.
"""

from __future__ import annotations

import inspect
from typing import Any, Iterator

import torch
from torch import Tensor

from tests import checks
from tests.references.mamba3 import mamba3 as mamba3_reference
from tests.references.ssd import gated_rmsnorm, ssd_scan
from tests.references.tolerance import relative_norm

Results = Iterator["tuple[str, float]"]
NHEADS, NGROUPS, HEADDIM, DSTATE, CHUNK, SEQLEN = 4, 2, 16, 16, 16, 21


def scan() -> dict[str, Tensor]:
    shapes = {
        "x": (2, SEQLEN, NHEADS, HEADDIM),
        "dt": (2, SEQLEN, NHEADS),
        "A": (NHEADS,),
        "B": (2, SEQLEN, NGROUPS, DSTATE),
        "C": (2, SEQLEN, NGROUPS, DSTATE),
        "D": (NHEADS, HEADDIM),
        "z": (2, SEQLEN, NHEADS, HEADDIM),
        "dt_bias": (NHEADS,),
        "initial_states": (2, NHEADS, HEADDIM, DSTATE),
        "seq_idx": (2, SEQLEN),
    }
    made = {name: torch.randn(shape) for name, shape in shapes.items()}
    boundaries = torch.tensor([[7], [18]])
    seq_idx = (torch.arange(SEQLEN) >= boundaries).int()
    return {**made, "A": -made["A"].abs(), "seq_idx": seq_idx}


def parts() -> Results:
    """The parts of Mamba-2's scan, as a program puts them together, with packed sequences."""
    from mamba_ssm.ops.triton import ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_state_passing

    given = scan()
    x, dt, A, B, C, seq_idx = (given[name] for name in ("x", "dt", "A", "B", "C", "seq_idx"))
    initial = given["initial_states"]
    sums, steps = ssd_chunk_state._chunk_cumsum_fwd(
        dt, A, CHUNK, dt_bias=given["dt_bias"], dt_softplus=True
    )
    states = ssd_chunk_state._chunk_state_fwd(B, x, steps, sums, seq_idx=seq_idx)
    starts, last = ssd_state_passing._state_passing_fwd(
        *(states.flatten(3), sums[..., -1]),
        initial_states=initial.flatten(2),
        seq_idx=seq_idx,
        chunk_size=CHUNK,
    )
    starts = starts.unflatten(-1, (HEADDIM, DSTATE))
    cb = ssd_bmm._bmm_chunk_fwd(C, B, CHUNK, seq_idx=seq_idx, output_dtype=torch.float32)
    out, before = ssd_chunk_scan._chunk_scan_fwd(
        *(cb, x, steps, sums, C, starts), D=given["D"], z=given["z"], seq_idx=seq_idx
    )
    exact: Any = {name: each.double() for name, each in given.items() if name != "seq_idx"}
    expected, state, _ = ssd_scan(**exact, seq_idx=seq_idx, dt_softplus=True)
    yield "out", relative_norm(out, expected)
    yield "last", relative_norm(last.unflatten(-1, (HEADDIM, DSTATE)), state)
    del exact["z"]
    expected, *_ = ssd_scan(**exact, seq_idx=seq_idx, dt_softplus=True)
    yield "before the gate", relative_norm(before, expected)
    if hasattr(ssd_chunk_state, "chunk_state_varlen"):
        ends = torch.tensor([0, 7, SEQLEN], dtype=torch.int32)
        found = ssd_chunk_state.chunk_state_varlen(
            *(B[0], x[0], steps[0], sums[0], ends, starts[0])
        )
        yield "varlen", relative_norm(found[1], state[0])


def combined() -> Results:
    """The functions around the scan that programs with an autograd function of their own call."""
    from mamba_ssm.ops.triton import ssd_combined

    given: Any = scan()
    seq_idx = given.pop("seq_idx")
    leaves = {name: each.double().requires_grad_() for name, each in given.items()}
    expected, state, _ = ssd_scan(**leaves, seq_idx=seq_idx, dt_softplus=True)
    dout, dstate = torch.randn(expected.shape), torch.randn(state.shape)
    gradients = torch.autograd.grad(
        [expected, state], list(leaves.values()), [dout.double(), dstate.double()]
    )
    options = {"seq_idx": seq_idx, "dt_softplus": True, "chunk_size": CHUNK}
    out, before, *_, last = ssd_combined._mamba_chunk_scan_combined_fwd(**given, **options)
    yield "out", relative_norm(out, expected)
    yield "last", relative_norm(last, state)
    found = ssd_combined._mamba_chunk_scan_combined_bwd(
        dout=dout, out=before, dfinal_states=dstate, **given, **options
    )
    for name, actual, right in zip(leaves, found, gradients):
        yield name, relative_norm(actual, right)
    whole = {name: given[name][:, :CHUNK] for name in ("x", "dt", "B", "C")}
    whole["A"], whole["dt"] = given["A"], whole["dt"].abs()
    leaves = {name: each.double().requires_grad_() for name, each in whole.items()}
    expected, *_ = ssd_scan(**leaves)
    given = {name: each.detach().requires_grad_() for name, each in whole.items()}
    out = ssd_combined.mamba_chunk_scan(**given, chunk_size=8)
    yield "apart", relative_norm(out, expected)
    weights = torch.randn(out.shape)
    found = torch.autograd.grad(out, list(given.values()), weights)
    gradients = torch.autograd.grad(expected, list(leaves.values()), weights.double())
    for name, actual, right in zip(leaves, found, gradients):
        yield f"apart {name}", relative_norm(actual, right)


def norms() -> Results:
    """The functions under the norms."""
    from mamba_ssm.ops.triton import layer_norm, layernorm_gated

    x, z, dy, residual = torch.randn(4, 5, 16)
    weight, bias = torch.randn(2, 16)
    wide = (x + residual).double()
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1) + 1e-3).sqrt()
    y, _, mean, rstd, total, *_ = layer_norm._layer_norm_fwd(x, weight, bias, 1e-3, residual)
    yield "norm", relative_norm(y, centred / deviation[:, None] * weight + bias)
    yield "mean", relative_norm(mean, wide.mean(-1))
    yield "rstd", relative_norm(rstd, 1 / deviation)
    yield "sum", relative_norm(total, wide)
    for first in (True, False):
        options = {"norm_before_gate": first}
        leaves = [each.double().requires_grad_() for each in (x, weight, z)]
        expected = gated_rmsnorm(leaves[0], leaves[2], leaves[1], eps=1e-3, ngroups=2, **options)
        right = torch.autograd.grad(expected, leaves, dy.double())
        arguments: Any = {"group_size": 8, "is_rms_norm": True, **options}
        target = torch.empty_like(x)
        out, mean, rstd = layernorm_gated._layer_norm_fwd(
            x, weight, None, 1e-3, z=z, out=target, **arguments
        )
        assert out is target and mean is None
        yield f"gated {first}", relative_norm(out, expected)
        dz, again = torch.empty_like(z), torch.empty_like(x)
        dx, dweight, _, dgate, recomputed = layernorm_gated._layer_norm_bwd(
            *(dy, x, weight, None, 1e-3, mean, rstd, z),
            recompute_output=True,
            dz=dz,
            out=again,
            **arguments,
        )
        assert dgate is dz and recomputed is again
        yield f"again {first}", relative_norm(again, expected)
        for name, actual, each in zip(("x", "weight", "z"), (dx, dweight, dz), right):
            yield f"gradient {first} {name}", relative_norm(actual, each)


def attention() -> Results:
    """Hybrids decode as they compute the whole."""
    from mamba_ssm.modules.mha import MHA
    from mamba_ssm.utils.generation import InferenceParams

    cases: list[dict[str, Any]] = [
        {},
        {"num_heads_kv": 2, "softmax_scale": 0.3},
        {"rotary_emb_dim": 8},
        {"rotary_emb_dim": 16, "head_dim": 32, "rotary_emb_interleaved": True},
        {"rotary_emb_dim": 16, "head_dim": 32, "mlp_dim": 256},
    ]
    shares_heads = "repeat_interleave" in inspect.getsource(MHA)  # 2.0's own attention does not
    for number, case in enumerate(cases):
        if "num_heads_kv" in case and not shares_heads:
            continue
        block = MHA(32, 4, causal=True, layer_idx=0, **case).double()
        x = torch.randn(2, 9, 32).double()
        params = InferenceParams(max_seqlen=9, max_batch_size=2)
        with torch.no_grad():
            whole = block(x)
            outs = [block(x[:, :4], inference_params=params)]
            for step in range(4, 9):
                params.seqlen_offset = step
                outs.append(block(x[:, step : step + 1], inference_params=params))
        yield f"{number}", relative_norm(torch.cat(outs, 1), whole)


def exact_mamba3(block: Any, u: Tensor) -> Tensor:
    """A block of Mamba-3 in float64, by its parameters and the recurrence."""
    weight = {name: each.detach().double() for name, each in block.named_parameters()}
    rank, heads, angles = block.mimo_rank, block.nheads, block.num_rope_angles
    states = block.d_state * block.num_bc_heads * rank
    sizes = [block.d_inner, block.d_inner, states, states, heads, heads, heads, angles]
    z, x, B, C, dt, A, trap, rates = (u.double() @ weight["in_proj.weight"].t()).split(sizes, -1)
    z, x = (each.unflatten(-1, (heads, block.headdim)) for each in (z, x))

    def normed(each: Tensor, name: str) -> Tensor:
        each = each.unflatten(-1, (rank, block.num_bc_heads, block.d_state))
        root = (each.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        result: Tensor = each / root * weight[f"{name}_norm.weight"]
        return result

    dt = torch.nn.functional.softplus(dt + weight["dt_bias"])
    decay = torch.nn.functional.softplus(A).clamp(min=block.A_floor)
    y, _ = mamba3_reference(
        normed(C, "C"),
        normed(B, "B"),
        x,
        (-decay * dt).transpose(1, 2),
        dt.transpose(1, 2),
        trap.transpose(1, 2),
        weight["C_bias"],
        weight["B_bias"],
        rates[:, :, None].expand(-1, -1, heads, -1),
        D=weight["D"],
        v_proj=weight.get("mimo_x"),
        halves=block.is_mimo,
    )
    gate = z[:, :, None]
    if block.is_mimo:
        gate = gate * weight["mimo_z"].transpose(0, 1)
    if block.is_outproj_norm:
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        y = y * weight["norm.weight"].unflatten(0, (heads, block.headdim))
    y = y * torch.nn.functional.silu(gate)
    if block.is_mimo:
        y = y * weight["mimo_o"].transpose(0, 1)
    out: Tensor = y.sum(2).flatten(2) @ weight["out_proj.weight"].t()
    return out


def mamba3() -> Results:
    """Blocks of Mamba-3: whole, packed, trained, and step for step."""
    from mamba_ssm import Mamba3
    from mamba_ssm.utils.generation import InferenceParams

    for mimo in (False, True):
        for norm in (False, True):
            for fraction in (0.5, 1.0):
                kind = f"{mimo} {norm} {fraction}"
                block = Mamba3(
                    *(32, 16, 2, 16),
                    rope_fraction=fraction,
                    is_mimo=mimo,
                    is_outproj_norm=norm,
                    layer_idx=0,
                )
                for parameter in block.parameters():
                    parameter.data += 0.1 * torch.randn_like(parameter)
                u = torch.randn(2, 9, 32)
                out = block(u)
                expected = exact_mamba3(block, u)
                yield f"{kind} out", relative_norm(out, expected)
                out.square().mean().backward()
                for name, parameter in block.named_parameters():
                    used = parameter.grad is not None and parameter.grad.abs().sum() > 0
                    assert used or name == "norm.bias", (kind, name)
                with torch.no_grad():
                    ends = torch.tensor([0, 4, 9], dtype=torch.int32)
                    apart = [block(u[:1, :4]), block(u[:1, 4:])]
                    packed = block(u[:1], cu_seqlens=ends)
                    yield f"{kind} packed", relative_norm(packed, torch.cat(apart, 1))
                    params = InferenceParams(max_seqlen=9, max_batch_size=2)
                    block(u[:, :6], inference_params=params)
                    states = params.key_value_memory_dict[0]
                    for step in range(6, 9):
                        stepped, *_ = block.step(u[:, step], *states)
                        yield f"{kind} step {step}", relative_norm(stepped, expected[:, step])


def mamba3_model() -> Results:
    """A stack of blocks of Mamba-3 learns on a CPU."""
    from mamba_ssm import Mamba3
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, mimo: bool) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(16)
            self.block = Mamba3(16, d_state=8, headdim=8, is_mimo=mimo, mimo_rank=2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x + self.block(self.norm(x))
            return out

    model = nn.Sequential(nn.Embedding(12, 16), Residual(False), Residual(True), nn.Linear(16, 12))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    tokens = torch.randint(0, 12, (4, 1)).repeat(1, 13) + torch.arange(13)
    tokens = tokens % 12
    losses = []
    for _ in range(25):
        logits = model(tokens[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
    yield "learns", 0.0


CHECKS = {
    check.__name__: check for check in (parts, combined, norms, attention, mamba3, mamba3_model)
}


def main() -> None:
    """Run the checks named on the command line."""
    checks.run(CHECKS)


if __name__ == "__main__":
    main()
