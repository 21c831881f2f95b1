"""What the convolution is tried with, and the check that every backend has to pass.

The tests for the CPU and for a GPU share it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.ops.causal_conv1d import causal_conv1d_bwd, causal_conv1d_fn, op
from jetson_mamba.ops.causal_conv1d.contract import Case, Implementation
from tests.references.causal_conv1d import convolve
from tests.references.tolerance import TOLERANCES, relative_norm

# One for each signature that a function has had, and for each change of meaning.
RELEASES = (
    "1.0.2",
    "1.1.3.post1",
    "1.2.2.post1",
    "1.4.0",
    "1.5.0.post8",
    "1.5.1",
    "1.6.1",
    "1.7.0",
)
LAYOUTS = ("time", "channels", "time slice", "channels slice", "general")


def fresh_op(*order: str) -> Op[Case, Implementation]:
    return Op("causal_conv1d", op.OP._package, order or op.OP.order, op.OP._trial)


class Options(NamedTuple):
    """Everything about a call but the dtype and the layout."""

    width: int = 4
    dim: int = 16
    seqlen: int = 11
    bias: bool = True
    silu: bool = True
    # "runs": sequences one after another; "padding": with padding; "mixed": interleaved.
    sequences: str = ""
    initial_states: bool = False
    final_states: bool = False
    weight_dtype: torch.dtype | None = None


OPTIONS = (
    Options(),
    Options(width=2, bias=False, silu=False),
    Options(width=3, bias=False, seqlen=16),
    Options(dim=12, weight_dtype=torch.float32),
    Options(sequences="runs", seqlen=16),
    Options(width=3, sequences="padding", silu=False),
    Options(sequences="mixed", dim=13, bias=False),
    Options(initial_states=True),
    Options(width=2, initial_states=True, final_states=True, bias=False),
    Options(sequences="padding", initial_states=True, width=3),
    Options(final_states=True, silu=False),
    Options(initial_states=True, final_states=True, seqlen=2),
    Options(final_states=True, seqlen=1),
    Options(initial_states=True, dim=20, width=3),
)


class Setup(NamedTuple):
    """One call."""

    dtype: torch.dtype
    layout: str
    options: Options


# Every layout in float32; the other dtypes where layouts are hardest to get right.
SETUPS = tuple(
    Setup(dtype, layout, options)
    for options in OPTIONS
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for layout in (LAYOUTS if dtype == torch.float32 else ("channels", "time slice"))
)


def name(setup: Setup) -> str:
    """A short name of a setup for the test report."""
    changed = [
        f"{field}={value}"
        for field, value in setup.options._asdict().items()
        if value != Options._field_defaults[field]
    ]
    return "-".join((str(setup.dtype)[6:], setup.layout, *changed)).replace(" ", "_")


class Inputs(NamedTuple):
    """The tensors of a call, and the gradients that come back to it."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    seq_idx: Tensor | None
    initial_states: Tensor | None
    dout: Tensor
    dfinal_states: Tensor | None


class Expected(NamedTuple):
    """The results that the reference gives, in float64."""

    out: Tensor
    final_states: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor | None
    dinitial_states: Tensor | None


@lru_cache(maxsize=None)
def inputs(dtype: torch.dtype, options: Options) -> Inputs:
    """Contiguous tensors on the CPU."""
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    batch, dim, seqlen, width = 2, options.dim, options.seqlen, options.width
    states = (batch, dim, width - 1)
    weight_dtype = options.weight_dtype or dtype
    return Inputs(
        x=normal(batch, dim, seqlen),
        weight=normal(dim, width).to(weight_dtype),
        bias=normal(dim).to(weight_dtype) if options.bias else None,
        seq_idx=_sequences(options, batch),
        initial_states=normal(*states) if options.initial_states else None,
        dout=normal(batch, dim, seqlen),
        dfinal_states=normal(*states) if options.final_states else None,
    )


def _sequences(options: Options, batch: int) -> Tensor | None:
    if not options.sequences:
        return None
    pattern = {
        "runs": [0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 3],
        "padding": [4, 4, 4, -1, -1, 0, 0, -1, 1, 1, -1],
        "mixed": [0, 1, 0, 0, 1, 1, 0, 2],
    }[options.sequences]
    rows = [[pattern[(t + b) % len(pattern)] for t in range(options.seqlen)] for b in range(batch)]
    return torch.tensor(rows, dtype=torch.int32)


@lru_cache(maxsize=None)
def expected(dtype: torch.dtype, options: Options) -> Expected:
    """The reference's results for :func:`inputs`."""
    given = inputs(dtype, options)
    leaves = {
        field: value.double().requires_grad_()
        for field, value in given._asdict().items()
        if field in ("x", "weight", "bias", "initial_states") and value is not None
    }
    out, final_states = convolve(**leaves, seq_idx=given.seq_idx, silu=options.silu)
    loss = (out * given.dout.double()).sum()
    if given.dfinal_states is not None:
        loss = loss + (final_states * given.dfinal_states.double()).sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))
    return Expected(
        out.detach(),
        final_states.detach(),
        gradients["x"],
        gradients["weight"],
        gradients.get("bias"),
        gradients.get("initial_states"),
    )


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """A copy of a (batch, dim, seqlen) tensor with other strides, in a buffer of its own."""
    batch, dim, seqlen = tensor.shape
    empty = tensor.new_zeros
    if layout == "time":
        place = empty((batch, dim, seqlen))
    elif layout == "channels":
        place = empty((batch, seqlen, dim)).transpose(1, 2)
    elif layout == "time slice":
        # Neither the address nor the strides are multiples of a vector.
        place = empty((batch, dim + 2, seqlen + 3))[:, 1:-1, 1:-2]
    elif layout == "channels slice":
        place = empty((batch, seqlen, dim + 5))[..., 3:-2].transpose(1, 2)
    else:
        place = empty((batch, dim, seqlen, 2))[..., 1]
    return place.copy_(tensor)


def check(setup: Setup, device: torch.device) -> None:
    """Hold the backend in use to the reference, with autograd and by the explicit backward."""
    dtype, layout, options = setup
    cpu = inputs(dtype, options)
    reference = expected(dtype, options)
    moved: dict[str, Any] = {
        field: None if tensor is None else tensor.to(device)
        for field, tensor in cpu._asdict().items()
    }
    given = Inputs(**moved)
    x = laid_out(given.x, layout).requires_grad_()
    leaves = [x] + [
        tensor.detach().clone().requires_grad_()
        for tensor in (given.weight, given.bias, given.initial_states)
        if tensor is not None
    ]
    weight, *others = leaves[1:]
    bias = others.pop(0) if given.bias is not None else None
    initial_states = others.pop(0) if given.initial_states is not None else None
    activation = "silu" if options.silu else None

    results = causal_conv1d_fn(
        x,
        weight,
        bias,
        given.seq_idx,
        initial_states,
        return_final_states=options.final_states,
        activation=activation,
    )
    out, final_states = results if options.final_states else (results, None)
    assert out.dtype == dtype
    _assert_near("out", out, reference.out, dtype)
    outputs, gradients = [out], [given.dout]
    if final_states is not None and given.dfinal_states is not None:
        assert final_states.dtype == dtype
        _assert_near("final_states", final_states, reference.final_states, dtype)
        outputs.append(final_states)
        gradients.append(given.dfinal_states)
    found = list(torch.autograd.grad(outputs, leaves, gradients))
    wanted = [
        ("dx", reference.dx, dtype),
        ("dweight", reference.dweight, weight.dtype),
        ("dbias", reference.dbias, weight.dtype),
        ("dinitial_states", reference.dinitial_states, dtype),
    ]
    for (label, value, of), gradient in zip(
        [entry for entry in wanted if entry[1] is not None], found
    ):
        assert value is not None
        assert gradient.dtype == of, label
        _assert_near(label, gradient, value, dtype)

    for target_layout in ("time", "channels slice"):
        dx = laid_out(torch.full_like(given.x, float("nan")), target_layout)
        direct = causal_conv1d_bwd(
            x.detach(),
            weight.detach(),
            None if bias is None else bias.detach(),
            laid_out(given.dout, layout),
            seq_idx=given.seq_idx,
            initial_states=given.initial_states,
            dfinal_states=given.dfinal_states,
            dx=dx,
            return_dinitial_states=options.initial_states,
            activation=activation,
        )
        assert direct[0] is dx
        for (label, value, _), gradient_or_none in zip(wanted, direct):
            if value is None:
                assert gradient_or_none is None, label
            else:
                assert gradient_or_none is not None, label
                _assert_near(label, gradient_or_none, value, dtype)


def _assert_near(label: str, actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    error = relative_norm(actual, wanted)
    assert error <= TOLERANCES[dtype], f"{label}: {error:.2e}"
