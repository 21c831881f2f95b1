"""How far the selective scan's CUDA kernels are from the loop over time in float64.

``python -m benchmarks.accuracy`` prints, for each dtype, length and kind of decays, the relative
norm of the error of every result. "rounded" stands beside them: the error of the reference's own
output once rounded to the dtype, which is the floor of a result that is rounded once. "again" is
the output that the backward pass makes again from ``out`` as it was stored, and so rounds twice;
``dz`` comes from it too.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from jetson_mamba.ops.selective_scan import cuda
from jetson_mamba.ops.selective_scan.contract import Returning, Scan
from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm

SEQLENS = (1, 7, 64, 2047, 2048, 2049, 8192)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
BATCH, DIM, DSTATE = 1, 32, 16
ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
RESULTS = ("out", "out_z", "again", "last state")
GRADIENTS = ("du", "ddelta", "dA", "dB", "dC", "dD", "dz", "ddelta_bias")


def drawn(seqlen: int, dtype: torch.dtype, is_wide: bool) -> Scan:
    """Arguments as a trained model's, or with A from -1e-4 to -100 and steps from 1e-3 to 10."""
    torch.manual_seed(seqlen)
    rows = (BATCH, DIM, seqlen)
    A = -(torch.rand(DIM, DSTATE) + 0.1) * torch.arange(1.0, DSTATE + 1)
    delta = torch.randn(rows) - 2
    if is_wide:
        A = -torch.logspace(-4, 2, DIM * DSTATE).view(DIM, DSTATE)
        delta = torch.exp(torch.empty(rows).uniform_(-6.9, 2.3))
    fields: tuple[Any, ...] = (
        torch.randn(rows).to(dtype),
        delta.to(dtype),
        A,
        torch.randn(BATCH, 1, DSTATE, seqlen).to(dtype),
        torch.randn(BATCH, 1, DSTATE, seqlen).to(dtype),
        torch.randn(DIM),
        torch.randn(rows).to(dtype),
        None if is_wide else torch.rand(DIM) - 0.5,
        not is_wide,
    )
    moved: Any = [field.cuda() if isinstance(field, Tensor) else field for field in fields]
    return Scan(*moved)


def errors(scan: Scan) -> dict[str, float]:
    """Of every result, and under "rounded" that of the reference's output in the scan's dtype."""
    dout = torch.randn_like(scan.u)
    scanned = cuda.forward(scan)
    gradients = cuda.backward(scan, Returning(dout, scanned.x, scanned.out, None, True))
    leaves = [None if field is None else field.double().requires_grad_() for field in scan[:8]]
    call: Any = selective_scan_reference
    out, gated, states, _ = call(*leaves, scan.delta_softplus)
    given = {f"d{name}": leaf for name, leaf in zip(ARGUMENTS, leaves) if leaf is not None}
    expected = dict(zip(given, torch.autograd.grad(gated, list(given.values()), dout.double())))
    found: dict[str, Any] = {name: getattr(gradients, name) for name in given}
    expected.update(zip(RESULTS, (out, gated, gated, states[..., -1])))
    last = scanned.x[:, :, -1, 1::2]
    found.update(zip(RESULTS, (scanned.out, scanned.out_z, gradients.out_z, last)))
    result = {"rounded": relative_norm(gated.to(scan.u.dtype), gated)}
    result.update((name, relative_norm(found[name], expected[name])) for name in expected)
    return result


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    columns = ("rounded", *RESULTS, *GRADIENTS)
    print(torch.cuda.get_device_name())
    print(f"| dtype | seqlen | decays | {' | '.join(columns)} |")
    print("| --- " * (3 + len(columns)) + "|")
    for dtype in DTYPES:
        for is_wide in (False, True):
            for seqlen in SEQLENS:
                found = errors(drawn(seqlen, dtype, is_wide))
                values = (f"{found[name]:.1e}" if name in found else "" for name in columns)
                kind = "wide" if is_wide else "usual"
                name = str(dtype).rsplit(".", 1)[-1]
                print(f"| {name} | {seqlen} | {kind} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
