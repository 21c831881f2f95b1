"""The selective scan as operators of ``torch.library``: see ``ops/operators.py``."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from ..operators import define, or_empty, real_tensors
from .contract import (
    Case,
    Gradients,
    Implementation,
    Returning,
    Scan,
    Scanned,
    real_dtype,
    weight_dtype,
)

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool delta_softplus"
)


class Operators:
    """What takes the place of an :class:`Implementation` while a graph is traced.

    In a graph, ``x`` has one dimension for the rows and what is in them: the number of rows alone
    may be 1 or not, and a graph would be made for one of the two.

    ``choose`` gives the backend for a case; it is asked when an operator runs, and when a fake
    implementation has to tell how many rows that backend keeps of the states.
    """

    def __init__(self, choose: Callable[[Case], Implementation]) -> None:
        self._choose = choose
        self._forward = define(
            f"selective_scan({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
            self._run_forward,
            self._fake_forward,
            _keep,
            self._differentiate,
        )
        self._backward = define(
            f"selective_scan_backward({_ARGUMENTS}, Tensor dout, Tensor? x, Tensor? out, "
            f"bool recompute_out_z) -> ({', '.join(['Tensor'] * 9)})",
            self._run_backward,
            _fake_backward,
        )
        self._output = define(
            f"selective_scan_output({_ARGUMENTS}) -> Tensor", self._run_output, _fake_output
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
        """As ``contract`` says; not differentiable."""
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

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        scan = Scan(*arguments)
        out, x, out_z = self._choose(_case(scan)).forward(scan)
        return out.contiguous(), x.contiguous().flatten(2), or_empty(out_z, out).contiguous()

    def _fake_forward(self, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        scan = Scan(*arguments)
        case = _case(scan)
        with real_tensors():
            implementation = self._choose(case)
        batch, dim, seqlen = scan.u.shape
        rows = implementation.rows(seqlen)
        out = scan.u.new_empty(scan.u.shape)
        x = scan.A.new_empty((batch, dim, rows * 2 * case.dstate), dtype=weight_dtype(case))
        return out, x, out.new_empty(0 if scan.z is None else out.shape)

    def _run_output(self, *arguments: Any) -> Tensor:
        scan = Scan(*arguments)
        return self._choose(_case(scan)).output(scan).contiguous()

    def _run_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        scan = Scan(*arguments[:9])
        dout, x, out, recompute_out_z = arguments[9:]
        if x is not None:
            x = x.unflatten(2, (-1, 2 * scan.A.shape[1]))
        found = self._choose(_case(scan)).backward(
            scan, Returning(dout, x, out, None, recompute_out_z)
        )
        return tuple(or_empty(gradient, scan.u).contiguous() for gradient in found)

    def _differentiate(
        self, ctx: Any, dout: Tensor, dx: Tensor, dout_z: Tensor
    ) -> tuple[Tensor | None, ...]:
        *arguments, x, out = ctx.saved_tensors
        scan = Scan(*(*arguments, ctx.delta_softplus))
        gradient = dout if scan.z is None else dout_z
        found = self.backward(scan, Returning(gradient, x, out, None, False))
        du, ddelta, dA, dB, dC, dD, ddelta_bias, dz, _ = found
        return du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, None


def _case(scan: Scan) -> Case:
    # A graph is made for one number of states: it decides which backend serves.
    return Case(scan.u.device, scan.u.dtype, scan.A.is_complex(), int(scan.A.shape[1]))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *arguments, ctx.delta_softplus = inputs
    out, x, _ = output
    ctx.save_for_backward(*arguments, x, None if arguments[6] is None else out)


def _fake_output(*arguments: Any) -> Tensor:
    u: Tensor = arguments[0]
    return u.new_empty(u.shape)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    scan = Scan(*arguments[:9])
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
            for wanted in (scan.z is not None, arguments[12])
        ),
    )
