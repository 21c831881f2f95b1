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

from functools import lru_cache
from typing import Any, Iterator

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.arguments import ANY
from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.paths import Way, is_batched, way, way_back
from jetson_mamba.dispatch.selection import register

from . import composed
from .autograd import composed_output, differentiable
from .checks import (
    check_shape,
    check_signal,
    check_tensor,
    checked,
)
from .contract import Case, Gradients, Implementation, Returning, weight_dtype
from .library import Operators
from .trial import trial


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
    chosen = way(u, delta, A, B, C, D, z, delta_bias)
    scan, case = checked(u, delta, A, B, C, D, z, delta_bias, delta_softplus, chosen=chosen)
    if chosen is Way.COMPOSED:
        out, x, out_z = composed.forward(scan)
    else:
        out, x, out_z = _implementation(case, chosen).forward(scan)
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
    chosen = way_back(u, delta, A, B, C, D, z, delta_bias, dout)
    arguments = (u, delta, A, B, C, D, z, delta_bias)
    scan, case = checked(*arguments, delta_softplus, dout, chosen=chosen)
    check_signal("dout", dout, u)
    if x is not None:
        check_tensor("x", x, u, ANY)
        rows = x.shape[2] if x.dim() == 4 else 1
        check_shape("x", x, (u.shape[0], u.shape[1], rows, 2 * A.shape[1]))
        if x.is_complex() != A.is_complex():
            raise TypeError(f"x: expected {weight_dtype(case)}, found {x.dtype}")
        x = x.to(weight_dtype(case))
    if z is None:
        if recompute_out_z:
            raise ValueError("recompute_out_z: expected False without z, found True")
        out = place = None
    else:
        if out is None:
            raise ValueError("out: expected the forward pass's out where z is given, found None")
        check_signal("out", out, u)
        out = out.to(case.dtype)
        if dz is not None:
            check_signal("dz", dz, u)
        place = dz if dz is not None and dz.dtype == case.dtype else None
    recorded = (
        torch.is_grad_enabled()
        and twice.in_backward_pass()
        and any(each is not None and each.requires_grad for each in (*arguments, dout))
    )
    if chosen is Way.COMPOSED:
        place = None
        found = composed.backward(scan, dout.to(case.dtype))
    else:
        returning = Returning(dout.to(case.dtype), x, out, place, bool(recompute_out_z))
        if chosen is Way.OPERATORS:
            found = _OPERATORS.backward(scan, returning)
        else:
            before = version(place)
            found = _backend(case).backward(scan, returning)
            count_write(place, before)
    if recorded and (chosen is not Way.COMPOSED or is_batched(dout)):
        once: Any = twice.once_only(found, (*arguments, dout))
        found = Gradients(*once)
    gradients: list[Tensor | None] = [
        None if argument is None or gradient is None else gradient.to(argument.dtype)
        for argument, gradient in zip((u, delta, A, B, C, D, delta_bias), found)
    ]
    if z is not None and found.dz is not None:
        if dz is None:
            dz = found.dz.to(z.dtype)
        elif place is None or recorded:
            twice.write(dz, found.dz)
        gradients.append(dz)
    if recompute_out_z and found.out_z is not None:
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
    """Scan from zero states, differentiable in any of the tensors.

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
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    chosen = way(u, delta, A, B, C, D, z, delta_bias)
    if chosen is Way.COMPOSED:
        output, last_state = composed_output(*arguments)
    elif not torch.is_grad_enabled() and not return_last_state:
        scan, case = checked(*arguments, chosen=chosen)
        return _implementation(case, chosen).output(scan).to(u.dtype)
    elif chosen is Way.OPERATORS:
        scan, _ = checked(*arguments, chosen=chosen)
        output, x = _OPERATORS.differentiable(scan)
        output = output.to(u.dtype)
        if return_last_state:
            # By their places, not by a slice: whether that is the whole depends on the length, for
            # which a graph would be made anew.
            last = torch.arange(1 - 2 * A.shape[1], 0, 2, device=x.device) + x.shape[2]
            last_state = x.detach().index_select(2, last)
    else:
        output, last_state = differentiable(_backend, selective_scan_bwd, *arguments)
    return (output, last_state) if return_last_state else output


twice.keeps_copies(selective_scan_fn)


def _implementation(case: Case, chosen: Way) -> Implementation | Operators:
    return _OPERATORS if chosen is Way.OPERATORS else _backend(case)


def _backend(case: Case) -> Implementation:
    return OP.implementation(case)


def _others(case: Case) -> Iterator[Implementation]:
    """The backends that can serve a case, whether or not they are the ones that do."""
    for backend in OP.order:
        implementation = _named(backend, case)
        if implementation is not None:
            yield implementation


@lru_cache(maxsize=64)
def _named(backend: str, case: Case) -> Implementation | None:
    try:
        implementation: Implementation = OP._load(backend, case)
        return implementation
    except torch.cuda.OutOfMemoryError:
        raise  # Which is not remembered: it may go by.
    except Exception:
        return None


OP: Op[Case, Implementation] = register(
    Op("selective_scan", str(__package__), order=("extension", "cuda", "pytorch"), trial=trial)
)
_OPERATORS = Operators(_backend, _others)
