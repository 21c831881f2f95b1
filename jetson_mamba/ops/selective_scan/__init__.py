"""The selective scan, Mamba-1's recurrence, by whichever backend works on the device at hand.

``selective_scan_fwd`` and ``selective_scan_bwd`` stand in for the two functions of the compiled
module ``selective_scan_cuda``: same positional arguments, same results in the same number.
``selective_scan_fn`` is the two as one differentiable function. The recurrence is that of Gu and
Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.2.

Arguments, with ``width`` = seqlen for real A and 2 * seqlen for complex A, whose B and C hold the
real and the imaginary part of each step side by side:

* ``u``, ``delta``, ``z``: (batch, dim, seqlen); ``z``, which gates the output by silu, may be None
* ``A``: (dim, dstate), real or complex
* ``B``, ``C``, each on its own: constant, (dim, dstate) and complex where A is, or variable,
  (batch, groups, dstate, width)
* ``D``, ``delta_bias``: (dim,) or None
* ``delta_softplus``: whether softplus is applied to ``delta + delta_bias``

Every real dtype of float64, float32, bfloat16 and float16 is accepted for each argument by
itself. Computed is in the widest of float32 and the arguments' own, and each result has the dtype
of the argument it belongs to (``out`` and ``out_z``: of ``u``).
"""

from __future__ import annotations

from contextlib import suppress
from operator import is_
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends import Op
from ..operators import is_compiling
from . import pytorch
from .contract import (
    Case,
    Implementation,
    Returning,
    Scan,
    real_dtype,
    weight_dtype,
)
from .library import Operators

__all__ = ["OP", "selective_scan_bwd", "selective_scan_fn", "selective_scan_fwd"]

REAL_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
COMPLEX_DTYPES = (torch.complex64, torch.complex128)


def selective_scan_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Scan from zero states; records no graph. Arguments: see the module.

    Returns ``[out, x]``, and ``[out, x, out_z]`` with z: the output before the gate, laid out as
    delta; what the backward pass wants kept of the states, (batch, dim, rows, 2 * dstate), where
    ``x[:, :, -1, 1::2]`` is the last state (upstream's form, a row for each 2048 steps, from every
    backend but ``cuda``: see ``contract``); the gated output. ``x`` is float32, float64 if any
    argument is, or their complex counterparts.

    Raises ``TypeError`` for what is no tensor and for dtypes, ``ValueError`` for shapes and
    devices that do not fit.
    """
    scan, case = _checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    out, x, out_z = _implementation(case).forward(scan)
    found = [out, x] if out_z is None else [out, x, out_z]
    for place in (0, 2)[: len(found) - 1]:
        found[place] = found[place].to(u.dtype)
    return found


def selective_scan_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Every gradient of :func:`selective_scan_fwd`; records no graph.

    ``dout``, (batch, dim, seqlen), is the gradient of ``out_z`` with z, of ``out`` without.
    ``x`` and ``out`` are what the forward pass returned; x may be None, and is then computed
    again where it is needed, and out where z is. Where ``dz`` is given it is written in place and
    returned.

    Returns ``[du, ddelta, dA, dB, dC, dD, ddelta_bias]``, then ``dz`` with z, then ``out_z`` if
    ``recompute_out_z``, which needs z. ``dD`` and ``ddelta_bias`` are None without D and
    delta_bias. The gradient of a complex tensor is PyTorch's: d/d(real) + i d/d(imaginary).

    Raises as :func:`selective_scan_fwd` does.
    """
    scan, case = _checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus, dout)
    _check_signal("dout", dout, u)
    if x is not None:
        _check_tensor("x", x, u, REAL_DTYPES + COMPLEX_DTYPES)
        rows = x.shape[2] if x.dim() == 4 else 1
        _check_shape("x", x, (u.shape[0], u.shape[1], rows, 2 * A.shape[1]))
        if x.is_complex() != A.is_complex():
            raise TypeError(f"x: expected {weight_dtype(case)}, found {x.dtype}")
        x = x.to(weight_dtype(case))
    if z is None:
        if recompute_out_z:
            raise ValueError("recompute_out_z: expected False without z, found True")
        out = written = None
    else:
        if out is None:
            raise ValueError("out: expected the forward pass's out where z is given, found None")
        _check_signal("out", out, u)
        out = out.to(case.dtype)
        if dz is not None:
            _check_signal("dz", dz, u)
        written = dz if dz is not None and dz.dtype == case.dtype else None
    returning = Returning(dout.to(case.dtype), x, out, written, bool(recompute_out_z))
    found = _implementation(case).backward(scan, returning)
    gradients: list[Tensor | None] = [
        None if argument is None or gradient is None else gradient.to(argument.dtype)
        for argument, gradient in zip((u, delta, A, B, C, D, delta_bias), found)
    ]
    if z is not None and found.dz is not None:
        if dz is None:
            dz = found.dz.to(z.dtype)
        elif written is None:
            dz.copy_(found.dz)
        gradients.append(dz)
    if found.out_z is not None:
        gradients.append(found.out_z.to(u.dtype))
    return gradients


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan from zero states, differentiable once in any of the tensors.

    Arguments: see the module; a variable B or C of one group may leave the groups out, (batch,
    dstate, width). Returns the output, (batch, dim, seqlen), gated where z is given, or with
    ``return_last_state`` ``(output, last_state)``, the latter (batch, dim, dstate). As in
    mamba_ssm the last state is not differentiable: a loss on it sends nothing back.

    Raises as :func:`selective_scan_fwd` does.
    """
    if isinstance(B, Tensor) and B.dim() == 3:
        B = B.unsqueeze(1)
    if isinstance(C, Tensor) and C.dim() == 3:
        C = C.unsqueeze(1)
    if not torch.is_grad_enabled() and not return_last_state:
        scan, case = _checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return _implementation(case).output(scan).to(u.dtype)
    if is_compiling():
        scan, _ = _checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        output, x = _OPERATORS.differentiable(scan)
        output = output.to(u.dtype)
        if return_last_state:
            last_state = x[:, :, -2 * A.shape[1] :][..., 1::2].detach().clone()
    else:
        output, last_state = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
            u, delta, A, B, C, D, z, delta_bias, delta_softplus
        )
    return (output, last_state) if return_last_state else output


def _implementation(case: Case) -> Implementation | Operators:
    return _OPERATORS if is_compiling() else _backend(case)


def _backend(case: Case) -> Implementation:
    return OP.implementation(case)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> tuple[Tensor, Tensor]:
        out, x, *rest = selective_scan_fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        kept = out if z is not None else None
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, x, kept)
        ctx.delta_softplus = delta_softplus
        last_state = x[:, :, -1, 1::2].clone()
        ctx.mark_non_differentiable(last_state)
        return (rest[0] if rest else out), last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, delta_bias, x, out = ctx.saved_tensors
        softplus = ctx.delta_softplus
        found = selective_scan_bwd(
            u, delta, A, B, C, D, z, delta_bias, dout, x, out, None, softplus, False
        )
        du, ddelta, dA, dB, dC, dD, ddelta_bias, *rest = found
        dz = rest[0] if rest else None
        return du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, None


def _checked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *others: Tensor,
) -> tuple[Scan, Case]:
    """The arguments, checked and in the dtypes that a backend is promised, and their case.

    ``others`` have a say in what is the widest dtype. Arguments that look like those of a call
    that passed are not looked at again, which a small call would feel.
    """
    scan = Scan(u, delta, A, B, C, D, z, delta_bias, bool(delta_softplus))
    signature: tuple[Any, ...] | None = None
    if not is_compiling():
        # What is no tensor is left to the check, which has words for it; a symbolic size of a fake
        # tensor has no hash.
        with suppress(AttributeError, TypeError):
            key = tuple(
                [
                    None if each is None else (each.shape, each.dtype, each.device)
                    for each in (*scan[:8], *others)
                ]
            )
            passed = _passed.get(key)
            signature = key
            if passed is not None:
                case, fits = passed
                return (scan if fits else _converted(scan, case)), case
    case = _check(scan, others)
    converted = _converted(scan, case)
    if signature is not None:
        if len(_passed) >= MAXIMUM_PASSED:
            _passed.clear()
        _passed[signature] = (case, all(map(is_, scan[:8], converted)))
    return converted, case


# By shape, dtype and device of every argument: the case, and whether the dtypes are right as they
# are. A caller with ever new lengths starts over.
_passed: dict[tuple[Any, ...], tuple[Case, bool]] = {}
MAXIMUM_PASSED = 1024


def _check(scan: Scan, others: tuple[Tensor, ...]) -> Case:
    """The case of a scan; raises as :func:`selective_scan_fwd` says."""
    u, delta, A, B, C, D, z, delta_bias, _ = scan
    _check_tensor("u", u, u, REAL_DTYPES)
    if u.dim() != 3:
        raise ValueError(f"u: expected 3 dimensions, (batch, dim, seqlen), found {tuple(u.shape)}")
    _batch, dim, seqlen = u.shape
    if seqlen < 1:
        raise ValueError(f"u: expected at least one step, found {tuple(u.shape)}")
    _check_signal("delta", delta, u)
    if z is not None:
        _check_signal("z", z, u)
    _check_tensor("A", A, u, REAL_DTYPES + COMPLEX_DTYPES)
    if A.dim() != 2 or A.shape[0] != dim or A.shape[1] < 1:
        raise ValueError(
            f"A: expected shape (dim={dim}, dstate of at least 1), found {tuple(A.shape)}"
        )
    _check_weight("B", B, u, A)
    _check_weight("C", C, u, A)
    if B.dim() == C.dim() == 4 and B.shape[1] != C.shape[1]:
        raise ValueError(f"C: expected the {B.shape[1]} groups of B, found {C.shape[1]}")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            _check_tensor(name, vector, u, REAL_DTYPES)
            _check_shape(name, vector, (dim,))

    dtype = u.dtype
    for signal in (delta, z, *others, *(weight for weight in (B, C) if weight.dim() == 4)):
        if signal is not None and signal.dtype != dtype:
            dtype = torch.promote_types(dtype, signal.dtype)
    for weight in (A, B, C, D, delta_bias):
        if weight is not None and weight.dtype in (torch.float64, torch.complex128):
            dtype = torch.float64
    return Case(u.device, dtype, A.is_complex(), A.shape[1])


def _converted(scan: Scan, case: Case) -> Scan:
    """The scan in the dtypes that a backend is promised."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    dtype, real, weights = case.dtype, real_dtype(case), weight_dtype(case)
    return Scan(
        u.to(dtype),
        delta.to(dtype),
        A.to(weights),
        B.to(dtype if B.dim() == 4 else weights),
        C.to(dtype if C.dim() == 4 else weights),
        None if D is None else D.to(real),
        None if z is None else z.to(dtype),
        None if delta_bias is None else delta_bias.to(real),
        delta_softplus,
    )


def _check_tensor(name: str, tensor: object, u: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).replace("torch.", "") for dtype in dtypes)
        raise TypeError(f"{name}: expected one of {names}, found {tensor.dtype}")
    if tensor.device != u.device:
        raise ValueError(f"{name}: expected the device of u, {u.device}, found {tensor.device}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}")


def _check_signal(name: str, signal: Tensor, u: Tensor) -> None:
    _check_tensor(name, signal, u, REAL_DTYPES)
    if signal.shape != u.shape:
        raise ValueError(
            f"{name}: expected the shape of u, {tuple(u.shape)}, found {tuple(signal.shape)}"
        )


def _check_weight(name: str, weight: Tensor, u: Tensor, A: Tensor) -> None:
    """B or C."""
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    width = 2 * seqlen if A.is_complex() else seqlen
    if isinstance(weight, Tensor) and weight.dim() == 2:
        _check_tensor(name, weight, u, COMPLEX_DTYPES if A.is_complex() else REAL_DTYPES)
        _check_shape(name, weight, (dim, dstate))
        return
    _check_tensor(name, weight, u, REAL_DTYPES)
    found = tuple(weight.shape)
    fits = len(found) == 4 and found == (batch, found[1], dstate, width)
    if not fits or found[1] < 1 or dim % found[1]:
        raise ValueError(
            f"{name}: expected shape (dim={dim}, dstate={dstate}) or (batch={batch}, "
            f"a divisor of dim={dim}, dstate={dstate}, {width}), found {found}"
        )


def _trial(implementation: Implementation, case: Case) -> None:
    """Hold one small scan, forward and backward, to PyTorch's in float64 on the CPU."""
    # More steps than a kernel does at once, fewer than would be felt.
    dim, groups, steps = 4, 2, 70
    width = 2 * steps if case.is_complex else steps
    # A generator of its own: choosing a backend must not change the caller's random numbers.
    source = torch.Generator(device="cpu").manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, dtype=dtype, device="cpu", generator=source).to(case.dtype)

    rates = drawn(case.dstate * dim).view(dim, case.dstate).to(real_dtype(case))
    A = torch.complex(-rates.abs(), rates) if case.is_complex else -rates.abs()
    trial = Scan(
        drawn(1, dim, steps),
        drawn(1, dim, steps),
        A,
        drawn(1, groups, case.dstate, width),
        drawn(1, groups, case.dstate, width),
        drawn(dim).to(real_dtype(case)),
        drawn(1, dim, steps),
        drawn(dim).to(real_dtype(case)),
        True,
    )
    dout = drawn(1, dim, steps)
    expected = _both_passes(
        pytorch.IMPLEMENTATION,
        Scan(*(_moved(field, torch.device("cpu"), True) for field in trial)),
        dout.double(),
    )
    found = _both_passes(
        implementation,
        Scan(*(_moved(field, case.device, False) for field in trial)),
        dout.to(case.device),
    )
    tolerance = max(1e-4, 16 * torch.finfo(case.dtype).eps)
    for name, right, actual in zip(_TRIAL_RESULTS, expected, found):
        error = float((actual.to("cpu", right.dtype) - right).norm() / right.norm())
        if not error <= tolerance:
            raise RuntimeError(f"{name} is wrong by {error:.1e} of its norm")


_TRIAL_RESULTS = (
    "the last state",
    "out_z",
    "du",
    "ddelta",
    "dA",
    "dB",
    "dC",
    "dD",
    "ddelta_bias",
    "dz",
)


def _both_passes(implementation: Implementation, scan: Scan, dout: Tensor) -> list[Tensor]:
    out, x, out_z = implementation.forward(scan)
    returning = Returning(dout, x, out, dz=None, recompute_out_z=False)
    gradients = implementation.backward(scan, returning)
    results = (x[:, :, -1, 1::2], out_z, *gradients[:8])
    return [result for result in results if result is not None]


def _moved(field: Any, device: torch.device, doubled: bool) -> Any:
    if not isinstance(field, Tensor):
        return field
    if doubled:
        field = field.to(torch.complex128 if field.is_complex() else torch.float64)
    return field.to(device)


OP: Op[Case, Implementation] = Op(
    "selective_scan", __name__, order=("extension", "cuda", "pytorch"), trial=_trial
)
_OPERATORS = Operators(_backend)
