"""Checks of the scan's arguments, which are skipped for a call like one that passed them."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from operator import is_
from typing import Any, cast

import torch
from torch import Tensor

from jetson_mamba.dispatch.arguments import ANY, COMPLEX, FLOATING, check_device, check_dtype
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.paths import Way
from jetson_mamba.dispatch.tracing import untraced

from .contract import SCAN, Case, Scan, real_dtype, weight_dtype


def checked(
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
    chosen: Way = Way.KERNELS,
) -> tuple[Scan, Case]:
    """The arguments, checked and in the dtypes that a backend is promised, and their case.

    ``others`` have a say in what is the widest dtype; ``chosen`` is the way of the call. Arguments
    that look like those of a call that passed are not looked at again, which a small call would
    feel.
    """
    scan = Scan(u, delta, A, B, C, D, z, delta_bias, bool(delta_softplus))
    signature: tuple[Any, ...] | None = None
    if chosen is Way.KERNELS:
        # What is no tensor is left to the check, which has words for it.
        with suppress(AttributeError, TypeError):
            key = tuple(
                [
                    None if each is None else (each.shape, each.dtype, each.device)
                    for each in (*SCAN.tensors(scan), *others)
                ]
            )
            passed = _passed.find(key)
            signature = key
            if passed is not None:
                passed.used = _passed.clock()
                case, fits = passed.value
                return (scan if fits else _converted(scan, case)), case
    if signature is None:
        with untraced() if chosen is Way.COMPOSED else nullcontext():
            case = _check(scan, others)
        return _converted(scan, case), case
    # A mode that sees functions of torch is shown the same at the first call as at the next.
    with torch._C.DisableTorchFunction():
        case = _check(scan, others)
        fits = all(map(is_, SCAN.tensors(scan), _converted(scan, case)))
    _passed.put(signature, (case, fits))
    return (scan if fits else _converted(scan, case)), case


# By shape, dtype and device of every argument: the case, and whether the dtypes are right as they
# are.
_passed: Memo[tuple[Any, ...], tuple[Case, bool]] = Memo(1024)


def _check(scan: Scan, others: tuple[Tensor, ...]) -> Case:
    """The case of a scan; raises as :func:`selective_scan_fwd` says."""
    u, delta, A, B, C, D, z, delta_bias, _ = scan
    check_tensor("u", u, u)
    if u.dim() != 3:
        raise ValueError(f"u: expected 3 dimensions, (batch, dim, seqlen), found {tuple(u.shape)}")
    _batch, dim, seqlen = u.shape
    if seqlen < 1:
        raise ValueError(f"u: expected at least one step, found {tuple(u.shape)}")
    check_signal("delta", delta, u)
    if z is not None:
        check_signal("z", z, u)
    check_tensor("A", A, u, ANY)
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
            check_tensor(name, vector, u)
            check_shape(name, vector, (dim,))

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


def check_tensor(
    name: str, tensor: object, u: Tensor, dtypes: frozenset[torch.dtype] = FLOATING
) -> None:
    """Raise unless it is a tensor of one of the dtypes on u's device."""
    if getattr(tensor, "dtype", None) not in dtypes:
        check_dtype(name, tensor, dtypes)
    check_device(name, cast(Tensor, tensor), u.device, "u")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless it is of the shape."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}")


def check_signal(name: str, signal: Tensor, u: Tensor) -> None:
    """Raise unless it is a real tensor of u's shape and device."""
    if getattr(signal, "dtype", None) not in FLOATING or signal.device != u.device:
        check_tensor(name, signal, u)
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
        check_tensor(name, weight, u, COMPLEX if A.is_complex() else FLOATING)
        check_shape(name, weight, (dim, dstate))
        return
    check_tensor(name, weight, u)
    found = tuple(weight.shape)
    fits = len(found) == 4 and found == (batch, found[1], dstate, width)
    if not fits or found[1] < 1 or dim % found[1]:
        raise ValueError(
            f"{name}: expected shape (dim={dim}, dstate={dstate}) or (batch={batch}, "
            f"a divisor of dim={dim}, dstate={dstate}, {width}), found {found}"
        )
