"""A model as an ONNX graph in which each recurrence is still one node.

So a model is traced once, and each form is then written from the graph in a moment. What a form
does not serve is decomposed into torch's own operations before that.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.operators import decompositions
from jetson_mamba.errors import CannotRun
from jetson_mamba.ops.causal_conv1d import decomposed as convolution
from jetson_mamba.ops.selective_scan.contract import SCAN, Scan
from jetson_mamba.ops.ssd.library import ScanArguments

DOMAIN = "jetson_mamba"


def captured(
    module: torch.nn.Module, args: Sequence[Any], dynamic_shapes: Any, **names: Any
) -> Any:
    """An ``onnx_ir`` model with placeholders of the domain ``jetson_mamba``.

    ``names`` are ``input_names`` and ``output_names`` of :func:`torch.onnx.export`.

    Raises CannotRun for what cannot be exported.
    """
    try:
        with torch.no_grad(), _quiet(), _functions_serve_transformers():
            program = torch.export.export(module, tuple(args), dynamic_shapes=dynamic_shapes)
            program = program.run_decompositions(_table())
            exported: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, optimize=False, **names
            )
            return exported.model
    except CannotRun:
        raise
    except Exception as error:
        raise CannotRun(_reason(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporter logs and warns of by itself, whatever the model."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _functions_serve_transformers() -> Iterator[None]:
    """Let transformers call mamba_ssm's functions, as it does when it exports nothing.

    Elsewhere they cannot be exported, so that it goes step by step while torch exports: a file then
    has one length.
    """
    module: Any = sys.modules.get("transformers.integrations.hub_kernels")
    asked = getattr(module, "is_torchdynamo_exporting", None)
    if asked is None:
        yield
        return
    module.is_torchdynamo_exporting = lambda: False
    try:
        yield
    finally:
        module.is_torchdynamo_exporting = asked


def _reason(error: BaseException) -> str:
    """One line, of the first that went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, CannotRun):
        return str(error)
    said = " ".join((str(error) or type(error).__name__).split())
    return (
        "torch cannot export the model; leave sizes that it fixes out of dynamic, and take what "
        f"cannot be traced out of forward. torch says: {said[:500]}"
    )


def _table() -> dict[Any, Callable[..., Any]]:
    named = getattr(torch.ops, DOMAIN)
    whole = named.selective_scan.default  # calls that of rows
    return {
        **decompositions(),
        whole: torch.export.default_decompositions()[whole],
        named.causal_conv1d.default: _convolution,
        named.selective_scan_output.default: _scan_output,
        named.selective_scan_rows.default: _scan_rows,
        named.ssd_scan.default: _ssd,
    }


def _placeholder(
    name: str,
    tensors: Sequence[Tensor | None],
    options: Mapping[str, Any],
    results: Sequence[tuple[torch.dtype, Sequence[Any]]],
) -> Sequence[Tensor]:
    found: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{name}",
        list(tensors),
        dict(options),
        dtypes=[dtype for dtype, _ in results],
        shapes=[shape for _, shape in results],
        version=1,
    )
    return found


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    return_final_states: bool,
    silu: bool,
) -> Sequence[Tensor]:
    if seq_idx is not None:
        return convolution.forward(
            x, weight, bias, seq_idx, initial_states, return_final_states, silu
        )
    states = (x.shape[0], x.shape[1], weight.shape[1] - 1) if return_final_states else (0,)
    return _placeholder(
        "causal_conv1d",
        (x, weight, bias, initial_states),
        {"return_final_states": int(return_final_states), "silu": int(silu)},
        [(x.dtype, x.shape), (x.dtype, states)],
    )


def _scan(scan: Scan) -> Sequence[Tensor]:
    """Output and last state (batch, dim, dstate)."""
    u, A = scan.u, scan.A
    if A.is_complex():
        raise CannotRun(
            "A: expected real numbers, found complex ones, which ONNX does not have; export a "
            "model with real A"
        )
    return _placeholder(
        "selective_scan",
        SCAN.tensors(scan),
        {"delta_softplus": int(scan.delta_softplus), "longest": _longest(u.shape[2])},
        [(u.dtype, u.shape), (A.dtype, (u.shape[0], *A.shape))],
    )


def _scan_output(*arguments: Any) -> Tensor:
    return _scan(Scan(*arguments))[0]


def _scan_rows(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """As the operator: of the rows of ``x`` the last one holds the last state, and no other any."""
    scan, (rows,) = SCAN.split(arguments)
    u, A, z = scan.u, scan.A, scan.z
    out, last = _scan(scan._replace(z=None))
    if z is None:
        out_z = out.new_empty(0)
    else:
        out_z = (out.to(A.dtype) * torch.nn.functional.silu(z.to(A.dtype))).to(u.dtype)
    x = torch.stack((torch.zeros_like(last), last), -1).flatten(-2).unsqueeze(2)
    before = x.new_zeros((*x.shape[:2], rows - 1, x.shape[3]))
    return out, torch.cat((before, x), 2).flatten(2), out_z


def _longest(size: Any) -> int:
    """The longest sequence of a graph; 0 if it is left open."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    bounds = (1 << power for power in range(31))
    return next((bound for bound in bounds if statically_known_true(size <= bound)), 0)


def _ssd(*arguments: Any) -> Sequence[Tensor]:
    given = ScanArguments(*arguments)
    if given.seq_idx is not None or given.state_dtype is not None:
        found: Sequence[Tensor] = decompositions()[torch.ops.jetson_mamba.ssd_scan.default](
            *arguments
        )
        return found
    x, A = given.x, given.A
    state = (x.shape[0], *x.shape[2:], given.B.shape[3])
    return _placeholder(
        "ssd_scan",
        (x, given.dt, A, given.B, given.C, given.D, given.dt_bias, given.initial_states),
        {
            "dt_softplus": int(given.dt_softplus),
            "dt_least": float(given.dt_least),
            "dt_most": min(float(given.dt_most), math.inf),
        },
        [(x.dtype, x.shape), (torch.promote_types(A.dtype, torch.float32), state)],
    )
