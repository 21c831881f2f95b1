"""The selective scan as operators of ``torch.library``: see ``dispatch/operators.py``."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any, Callable, Iterable

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.operators import define, forward_to, or_empty, real_tensors

from . import composed, decomposed
from .contract import (
    SCAN,
    Case,
    Gradients,
    Implementation,
    Returning,
    Scan,
    Scanned,
    real_dtype,
    upstream_rows,
    weight_dtype,
)

_ROWS = "Tensor? x, Tensor? out, bool recompute_out_z"


class Operators:
    """What takes the place of an :class:`Implementation` while a graph is traced.

    A graph is made for one number of rows of ``x``, that of the backend which serves while it is
    traced, and a graph may run when another one does, or elsewhere. So that number is an argument,
    ``rows``, and a graph keeps to the backends that have as many: both of its passes are then
    served alike. Where none of these works, ``x`` is only of that size, and no backend reads it.

    In a graph, ``x`` has one dimension for the rows and what is in them: the number of rows alone
    may be 1 or not, and a graph would be made for one of the two.

    ``choose`` gives the backend for a case, ``others`` all those that could serve it.
    """

    def __init__(
        self,
        choose: Callable[[Case], Implementation],
        others: Callable[[Case], Iterable[Implementation]],
    ) -> None:
        self._choose = choose
        self._others = others
        self._forward = forward_to(
            f"selective_scan({SCAN.schema}) -> (Tensor, Tensor, Tensor)", self._with_rows
        )
        self._forward_rows = define(
            f"selective_scan_rows({SCAN.schema}, SymInt rows) -> (Tensor, Tensor, Tensor)",
            self._run_forward,
            _fake_forward,
            _keep,
            self._differentiate,
            _composed_rows,
            _decomposed_rows,
        )
        self._backward = define(
            f"selective_scan_backward({SCAN.schema}, Tensor dout, {_ROWS}) "
            f"-> ({', '.join(['Tensor'] * len(Gradients._fields))})",
            self._run_backward,
            _fake_backward,
            _keep_again,
            _differentiate_again,
            _composed_whole_backward,
        )
        self._output = define(
            f"selective_scan_output({SCAN.schema}) -> Tensor",
            self._run_output,
            _fake_output,
            _keep_output,
            _differentiate_output,
            _composed_output,
            _decomposed_output,
        )

    def forward(self, scan: Scan) -> Scanned:
        """As ``contract`` says."""
        out, x, out_z = self._forward(*scan)
        # Not unflatten: Dynamo of torch 2.11 does not trace it where torch has a default device.
        x = x.view(*x.shape[:2], -1, 2 * scan.A.shape[1])
        return Scanned(out, x, None if scan.z is None else out_z)

    def differentiable(self, scan: Scan) -> tuple[Tensor, Tensor]:
        """The final output, ``out_z`` or without z ``out``, with its gradients, and flat ``x``."""
        out, x, out_z = self._forward(*scan)
        return (out if scan.z is None else out_z), x

    def output(self, scan: Scan) -> Tensor:
        """As ``contract`` says."""
        out: Tensor = self._output(*scan)
        return out

    def backward(self, scan: Scan, returning: Returning) -> Gradients:
        """As ``contract`` says."""
        dout, x, out, dz, recompute_out_z = returning
        if x is not None and x.dim() == 4:
            x = x.flatten(2)
        found = Gradients(*self._backward(*scan, dout, x, out, recompute_out_z))
        gate = None if scan.z is None else found.dz
        if gate is not None and dz is not None:
            gate = dz.copy_(gate)
        return found._replace(
            dD=None if scan.D is None else found.dD,
            ddelta_bias=None if scan.delta_bias is None else found.ddelta_bias,
            dz=gate,
            out_z=found.out_z if recompute_out_z else None,
        )

    def _with_rows(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        scan = Scan(*arguments)
        rows = self._rows(_case(scan))(scan.u.shape[2])
        found: tuple[Tensor, Tensor, Tensor] = self._forward_rows(*arguments, rows)
        return found

    def _rows(self, case: Case) -> Callable[[int], int]:
        """How many rows the backend keeps that serves a case; upstream's where none is found.

        There is none for meta tensors, nor for fake ones of a device that is not here.
        """
        if case.device.type != "meta":
            with suppress(RuntimeError), real_tensors():
                return self._choose(case).rows
        return upstream_rows

    def _serving(self, scan: Scan, rows: int) -> Implementation:
        """The backend that serves, or another one of as many rows, if there is one."""
        case, seqlen = _case(scan), scan.u.shape[2]
        chosen = self._choose(case)
        known = chain([chosen], self._others(case))
        return next((each for each in known if each.rows(seqlen) == rows), chosen)

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        scan, (rows,) = SCAN.split(arguments)
        out, x, out_z = self._serving(scan, rows).forward(scan)
        if x.shape[2] != rows:
            x = _of_size(x, rows)
        return out.contiguous(), x.contiguous().flatten(2), or_empty(out_z, out).contiguous()

    def _run_output(self, *arguments: Any) -> Tensor:
        scan = Scan(*arguments)
        return self._choose(_case(scan)).output(scan).contiguous()

    def _run_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        scan, (dout, x, out, recompute_out_z) = SCAN.split(arguments)
        if x is None:
            implementation = self._choose(_case(scan))
        else:
            x = x.unflatten(2, (-1, 2 * scan.A.shape[1]))
            implementation = self._serving(scan, x.shape[2])
        found = implementation.backward(scan, Returning(dout, x, out, None, recompute_out_z))
        return tuple(or_empty(gradient, scan.u).contiguous() for gradient in found)

    def _differentiate(
        self, ctx: Any, dout: Tensor, dx: Tensor, dout_z: Tensor
    ) -> tuple[Tensor | None, ...]:
        scan, (x, out) = SCAN.kept(ctx)
        gradient = dout if scan.z is None else dout_z
        found = self.backward(scan, Returning(gradient, x, out, None, False))
        return (*found.in_order, None)


def _of_size(x: Tensor, rows: int) -> Tensor:
    """Of ``x`` the last state, in a tensor of so many rows."""
    before = x.new_zeros((*x.shape[:2], rows - 1, x.shape[3]))
    return torch.cat((before, x[:, :, -1:]), 2)


def _case(scan: Scan) -> Case:
    # A graph is made for one number of states: it decides which backend serves.
    return Case(scan.u.device, scan.u.dtype, scan.A.is_complex(), int(scan.A.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    scan, _ = SCAN.split(inputs)
    out, x, _ = output
    SCAN.keep(ctx, scan, x, None if scan.z is None else out)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    scan, (rows,) = SCAN.split(arguments)
    case = _case(scan)
    batch, dim, _ = scan.u.shape
    out = scan.u.new_empty(scan.u.shape)
    x = scan.A.new_empty((batch, dim, rows * 2 * case.dstate), dtype=weight_dtype(case))
    return out, x, out.new_empty(0 if scan.z is None else out.shape)


def _fake_output(*arguments: Any) -> Tensor:
    scan = Scan(*arguments)
    return scan.u.new_empty(scan.u.shape)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    scan, (_, _, _, recompute_out_z) = SCAN.split(arguments)
    signal = scan.u.new_empty(scan.u.shape)
    vectors = (scan.D, scan.delta_bias)
    return (
        signal,
        torch.empty_like(signal),
        *(weight.new_empty(weight.shape) for weight in (scan.A, scan.B, scan.C)),
        *(
            scan.u.new_empty(0)
            if vector is None
            else vector.new_empty(vector.shape, dtype=real_dtype(_case(scan)))
            for vector in vectors
        ),
        *(
            torch.empty_like(signal) if wanted else scan.u.new_empty(0)
            for wanted in (scan.z is not None, recompute_out_z)
        ),
    )


def _keep_output(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    SCAN.keep(ctx, Scan(*inputs))


def _differentiate_output(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    scan, _ = SCAN.kept(ctx)
    return twice.gradients(_composed_output, scan, ctx.needs_input_grad, (dout,))


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    scan, (dout, _, _, ctx.recompute_out_z) = SCAN.split(inputs)
    SCAN.keep(ctx, scan, dout)


def _differentiate_again(ctx: Any, *dgradients: Tensor) -> tuple[Tensor | None, ...]:
    scan, (dout,) = SCAN.kept(ctx)
    arguments = (*scan, dout, ctx.recompute_out_z)
    needs, (of_dout, *_) = SCAN.split(ctx.needs_input_grad)
    needed: Any = (*needs, of_dout, False)
    *found, _ = twice.gradients(_composed_backward, arguments, needed, dgradients)
    return (*found, None, None, None)


def _composed_rows(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    scan, (rows,) = SCAN.split(arguments)
    out, x, out_z = composed.forward(scan)
    if x.shape[2] != rows:
        x = _of_size(x, rows)
    return out, x.flatten(2), or_empty(out_z, out)


def _composed_output(*arguments: Any) -> Tensor:
    return composed.output(Scan(*arguments))[0]


def _composed_backward(*arguments: Any) -> tuple[Tensor, ...]:
    scan, (dout, recompute_out_z) = SCAN.split(arguments)
    found = composed.backward(scan, dout)
    if not recompute_out_z:
        found = found._replace(out_z=None)
    return tuple(or_empty(gradient, dout) for gradient in found)


def _composed_whole_backward(*arguments: Any) -> tuple[Tensor, ...]:
    scan, (dout, _, _, recompute_out_z) = SCAN.split(arguments)
    return _composed_backward(*scan, dout, recompute_out_z)


def _refuse_in_onnx() -> None:
    """ONNX has no complex numbers; what is left of a program without them would say so late."""
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "A: expected real numbers, found complex ones, which ONNX does not have; export a "
            "model with real A"
        )


def _decomposed_rows(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    scan, (rows,) = SCAN.split(arguments)
    if scan.A.is_complex():
        _refuse_in_onnx()
        return _composed_rows(*arguments)
    out, last, out_z = decomposed.scanned(scan)
    # No backend reads another row, nor a decay.
    x = torch.stack((torch.zeros_like(last), last), -1).flatten(-2).unsqueeze(2)
    return out, _of_size(x, rows).flatten(2), or_empty(out_z, out)


def _decomposed_output(*arguments: Any) -> Tensor:
    scan = Scan(*arguments)
    if scan.A.is_complex():
        _refuse_in_onnx()
        return _composed_output(*arguments)
    out, _, out_z = decomposed.scanned(scan)
    return out if out_z is None else out_z
