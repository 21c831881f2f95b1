"""The ops work in a torch that lacks what later releases have.

Much of it is asked for when a module is imported, so they are imported in a process of their own.
"""

from __future__ import annotations

import pytest

from tests import interpreters

# Of torch 2.4: what a graph that is traced can hold.
GRAPHS = ("torch.library.register_autograd", "torch.compiler.is_compiling")
ALL = (
    *GRAPHS,
    "torch.autograd.graph.increment_version",
    "torch.compiler._is_compiling_flag",
    "torch.library.register_vmap",
    "torch.get_autocast_dtype",
    "torch._foreach_addcmul_",
    "torch.OutOfMemoryError",
    "torch._C._get_fp32_precision_getter",
)
PROGRAM = """
import sys, warnings
import torch
lacking, taken = [each for each in sys.argv[1].split(",") if each], []
for name in lacking:
    *path, last = name.split(".")
    of = torch
    for part in path[1:]:
        of = getattr(of, part)
    if hasattr(of, last):
        taken.append((of, last, getattr(of, last)))
        delattr(of, last)
from jetson_mamba import ops
from jetson_mamba.ops import mamba3, swiglu
# torch itself goes on with them.
for given in taken:
    setattr(*given)

torch.manual_seed(0)
def drawn(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()
u, delta, z = drawn(2, 4, 9), drawn(2, 4, 9), drawn(2, 4, 9)
A, B, C = -torch.rand(4, 3, dtype=torch.float64), drawn(2, 1, 3, 9), drawn(2, 1, 3, 9)
results = [
    ops.causal_conv1d_fn(u, drawn(4, 4), drawn(4), activation="silu"),
    ops.selective_scan_fn(u, delta, A, B, C, drawn(4), z, drawn(4), True),
    ops.mamba_chunk_scan_combined(
        drawn(2, 9, 2, 4), drawn(2, 9, 2), -torch.rand(2, dtype=torch.float64),
        drawn(2, 9, 1, 3), drawn(2, 9, 1, 3), 4, dt_softplus=True,
    ),
    ops.rms_norm_fn(u, drawn(9), None, residual=z),
]
total = sum(each.square().sum() for each in results)
found = torch.autograd.grad(total, [u, delta, z, B, C])
again = torch.autograd.grad(
    ops.selective_scan_fn(u, delta, A, B, C).square().sum(), u, create_graph=True
)[0]
found += torch.autograd.grad(again.square().sum(), [delta])
with torch.no_grad():
    state = torch.randn(2, 4, 3, dtype=torch.float64)
    out = ops.selective_state_update(
        state, u[..., 0], delta[..., 0], A, B[:, 0, :, 0], C[:, 0, :, 0]
    )
mapped = torch.vmap(lambda x: ops.causal_conv1d_fn(x, torch.ones(4, 4, dtype=torch.float64)))(
    torch.ones(3, 2, 4, 9, dtype=torch.float64)
)
numbers = [each.double().sum().item() for each in (*results, *found, out, state, mapped)]
print(" ".join(f"{each:.9e}" for each in numbers))
"""


def numbers(*lacking: str) -> list[float]:
    """What is computed by a torch without these."""
    arguments = ["-W", "ignore", "-c", PROGRAM, ",".join(lacking)]
    done = interpreters.run(arguments)
    assert done.returncode == 0, done.stderr
    return [float(each) for each in done.stdout.split()]


@pytest.fixture(scope="module")
def whole() -> list[float]:
    found = numbers()
    assert len(found) == 13
    return found


@pytest.mark.parametrize("lacking", [GRAPHS, ALL])
def test_the_results_are_those_of_a_torch_that_has_it(
    lacking: tuple[str, ...], whole: list[float]
) -> None:
    assert numbers(*lacking) == pytest.approx(whole, rel=1e-6)
