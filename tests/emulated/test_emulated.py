"""The stand-ins are as strict as what they stand in for."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import emulated
from tests.references.tolerance import relative_norm

X, W, B = torch.randn(2, 8, 8), torch.randn(8, 4), torch.randn(8)
FORWARD = {
    "1.0.2": (X, W, B, True),
    "1.1.3": (X, W, B, None, True),
    "1.2.2": (X, W, B, None, None, None, True),
    "1.7.0": (X, W, B, None, None, torch.empty(2, 8, 8), None, True),
}
BACKWARD = {
    "1.0.2": (X, W, B, X, None, True),
    "1.1.3": (X, W, B, X, None, None, True),
    "1.2.2": (X, W, B, X, None, None, None, None, False, True),
    "1.7.0": (X, W, B, X, None, None, None, X + 0, W * 0, B * 0, None, True),
}


@pytest.mark.parametrize("release", FORWARD)
@pytest.mark.parametrize("function", ["causal_conv1d_fwd", "causal_conv1d_bwd"])
def test_a_call_fits_the_releases_that_it_was_written_for_only(release: str, function: str) -> None:
    calls: dict[str, tuple[Any, ...]] = FORWARD if function.endswith("fwd") else BACKWARD
    with emulated.installed(causal_conv1d=release):
        called = getattr(import_module("causal_conv1d_cuda"), function)
        for written_for, arguments in calls.items():
            if written_for != release:
                with pytest.raises(TypeError, match=rf"{function}\(\): incompatible function arg"):
                    called(*arguments)
        result = called(*calls[release])
        assert (result is None) == (release == "1.7.0")
        with pytest.raises(TypeError, match="incompatible"):
            called(None, *calls[release][1:])
        with pytest.raises(TypeError, match="incompatible"):
            called(*calls[release][:-1], silu=True)
        assert called.__doc__.startswith(f"{function}(arg0: torch.Tensor, arg1: ")


def test_layouts_are_refused_as_the_kernels_refuse_them() -> None:
    seq_idx = torch.zeros(2, 8, dtype=torch.int32)
    with emulated.installed(causal_conv1d="1.2.2"):
        forward = import_module("causal_conv1d_cuda").causal_conv1d_fwd
        for x, message in (
            (torch.zeros(2, 8, 8, 2)[..., 0], "x.stride"),
            (torch.zeros(2, 8, 9)[..., :8].mT, "multiples of 8"),
            (torch.zeros(2, 8, 9)[..., 1:], "misaligned address"),
        ):
            with pytest.raises(RuntimeError, match=message):
                forward(x, W, B, None, None, None, True)
        with pytest.raises(RuntimeError, match="seq_idx is only supported for channel last"):
            forward(X, W, B, seq_idx, None, None, True)
        with pytest.raises(RuntimeError, match="divisible by 8"):
            forward(torch.zeros(2, 8, 4).mT, W[:4], B[:4], None, None, None, True)


def test_stand_ins_come_and_go() -> None:
    absent = "causal_conv1d_cuda" not in sys.modules
    with emulated.installed(causal_conv1d="1.0"):
        assert import_module("causal_conv1d_cuda").__doc__ is None
    assert ("causal_conv1d_cuda" not in sys.modules) == absent
    with pytest.raises(ValueError, match="failure: expected one of"):
        emulated.install(failure="other")


def test_like_the_real_ones_they_need_torch_first() -> None:
    program = (
        "import tests.emulated as emulated\n"
        "emulated.install(causal_conv1d='1.7.0', selective_scan=True)\n"
        "for name in ('causal_conv1d_cuda', 'selective_scan_cuda'):\n"
        "    try: __import__(name)\n"
        "    except ImportError as error: print(error)\n"
        "import torch, causal_conv1d_cuda, selective_scan_cuda\n"
        "print(selective_scan_cuda.bwd.__name__)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert [line[:10] for line in lines] == ["libc10.so:", "libc10.so:", "bwd"]


def test_the_scan_gives_outputs_states_and_gradients() -> None:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch, dim, seqlen, dstate = 1, 4, 2050, 2
    u, delta, z, dout = (normal(batch, dim, seqlen) for _ in range(4))
    A, B, C = -normal(dim, dstate).exp(), normal(1, 2, dstate, seqlen), normal(dim, dstate)
    # Steps small enough for the product of all decays to stay a number.
    D, delta_bias = normal(dim), normal(dim) - 7
    inputs = (u, delta, A, B, C.contiguous(), D, z, delta_bias)
    with emulated.installed(selective_scan=True):
        module = import_module("selective_scan_cuda")
        out, x, out_z = module.fwd(*inputs, True)
        dz = torch.full_like(z, 7)
        results = module.bwd(*inputs, dout, x, out, dz, True, True)
        with pytest.raises(TypeError, match="incompatible"):
            module.fwd(*inputs)
        with pytest.raises(RuntimeError, match=r"x_\.has_value"):
            module.bwd(*inputs, dout, None, out, dz, True, False)
    assert x.shape == (batch, dim, 2, 2 * dstate)
    assert relative_norm(out_z, out * torch.nn.functional.silu(z)) < 1e-6
    du, ddelta, dA, dB, dC, dD, ddelta_bias, found_dz, again = results
    assert found_dz is dz and relative_norm(again, out_z) < 1e-6
    # The states at the end are those of the recurrence, written out in float64.
    step = torch.nn.functional.softplus(delta.double() + delta_bias[:, None].double())
    state = torch.zeros(batch, dim, dstate, dtype=torch.float64)
    product = torch.ones_like(state)
    for t in range(seqlen):
        decay = torch.exp(step[..., t, None] * A)
        mixed = step[..., t, None] * u[..., t, None] * B[..., t].repeat_interleave(2, dim=1)
        state, product = decay * state + mixed, product * decay
        if t == 2047:
            assert relative_norm(x[:, :, 0, 1::2], state) < 1e-5
            assert relative_norm(x[:, :, 0, 0::2], product) < 1e-4
    assert relative_norm(x[:, :, 1, 1::2], state) < 1e-5
    # Each gradient against a difference along a direction, the outputs being smooth.
    for index, gradient in zip(range(8), (du, ddelta, dA, dB, dC, dD, dz, ddelta_bias)):
        assert gradient.shape == inputs[index].shape
        direction = torch.randn(gradient.shape, generator=generator) * 1e-2
        ends = []
        for sign in (1, -1):
            moved = list(inputs)
            moved[index] = inputs[index] + sign * direction
            with emulated.installed(selective_scan=True):
                ends.append(import_module("selective_scan_cuda").fwd(*moved, True)[2].double())
        slope = ((ends[0] - ends[1]) * dout).sum() / 2
        assert abs(float(slope - (gradient * direction).sum())) < 0.02 * float(
            gradient.norm() * direction.norm()
        )
