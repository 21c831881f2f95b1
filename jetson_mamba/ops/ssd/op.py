"""Mamba-2's scan, alone or in its whole mixer, past upstream's autograd functions.

The two functions take the place of the functions of the same names in
``mamba_ssm.ops.triton.ssd_combined``, with the same parameters and results, wherever
:func:`through_scan_autograd` and :func:`through_mixer_autograd` are false: where another backend
than ``triton`` serves, while something traces or transforms, and where no gradient is recorded.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from copy import copy
from typing import Any, Callable, Mapping, cast

import torch
from torch import Tensor, nn

from jetson_mamba.dispatch.autocast import autocast_dtype, without_autocast
from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.paths import Way, may_replay, through_autograd, way
from jetson_mamba.dispatch.projections import Modules, passed
from jetson_mamba.dispatch.selection import register
from jetson_mamba.dispatch.tracing import sizes, untraced
from jetson_mamba.dispatch.triton_runs import triton_runs_on
from jetson_mamba.ops.causal_conv1d import op as causal_conv1d
from jetson_mamba.ops.norms import serving as norms
from jetson_mamba.replay.captured import Captured, Weights

from . import composed
from .checks import (
    check_chunk_size,
    check_mixer,
    check_scan,
    check_sequences,
    check_state_dtype,
    head_size,
    limits,
    needs_cast,
)
from .contract import MIXER, Case, Implementation, Mixer, Scan, case_of_mixer
from .gates import gate
from .library import Operators
from .mixer import compose, mlp_columns, project
from .trial import trial

MOST_FITTING = 1024


def through_scan_autograd(**given: Any) -> bool:
    """Whether a call of ``mamba_chunk_scan_combined`` goes through upstream's autograd function.

    Its Triton kernels are the backend ``triton``: so it does where that is named and, where none
    is, unless the project's own kernels come before. Without gradients it does where the inference
    path is off. The arguments are those of the call, by name; what no backend could be chosen for
    is left to the op, which says what is wrong.
    """
    return _through_autograd(given.get("x"), _case_of_scan, given)


def through_mixer_autograd(**given: Any) -> bool:
    """The same of a call of ``mamba_split_conv1d_scan_combined``."""
    return _through_autograd(given.get("zxbcdt"), _case_of_mixer, given)


def _through_autograd(
    first: Any, case_of: Callable[[Mapping[str, Any]], Case], given: Mapping[str, Any]
) -> bool:
    if not isinstance(first, Tensor) or not through_autograd(first):
        return False
    if OP.selection is not None:
        return OP.selection.backend == "triton" and triton_runs_on(first.device)
    if first.device.type != "cuda" and not triton_runs_on(first.device):
        return False
    if torch.is_grad_enabled():
        try:
            case = case_of(given)
            if OP.find(case) is None and "conv1d_weight" in given:
                _begin(case, first, given["conv1d_weight"], given.get("rmsnorm_weight"))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
            return False
        # Before a launch of Triton's is tried, which takes longer than all else of a first call.
        if OP.implementation(case).comes_before_triton:
            return False
    return triton_runs_on(first.device)


def _case_of_scan(given: Mapping[str, Any]) -> Case:
    """Of the arguments of a call, which need not fit together."""
    return Scan(**{name: given.get(name) for name in Scan._fields}).case  # type: ignore[arg-type]


def _case_of_mixer(given: Mapping[str, Any]) -> Case:
    D = given["D"]
    return case_of_mixer(
        *(given["zxbcdt"], given["conv1d_weight"], given["A"], D, given["dt_bias"]),
        given.get("initial_states"),
        head_size(D, given.get("headdim")),
        given.get("ngroups", 1),
        given.get("state_dtype"),
    )


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Scan ``h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]^T``, read out as ``C[t] h[t] + D x[t]``.

    Shapes: x and z (batch, seqlen, nheads, headdim), dt (batch, seqlen, nheads), A and dt_bias
    (nheads,), B and C (batch, seqlen, ngroups, dstate), D (nheads,) or (nheads, headdim),
    initial_states (batch, nheads, headdim, dstate). All floating, in any mixture of dtypes;
    products are in float32, or float64 if any argument is. ``dt`` becomes
    ``clamp(softplus(dt + dt_bias), *dt_limit)``, where asked for; with z the output is
    multiplied by ``silu(z)``. ``chunk_size`` is how many steps upstream's kernels take at once;
    the PyTorch backend has a size of its own, unless ``state_dtype`` is given: to that the states
    at the start of each chunk are rounded, and from them its outputs are read. The last state is
    not rounded.

    ``seq_idx`` (batch, seqlen), integers, marks packed sequences: the state starts from zero
    wherever it changes. The initial states belong to sequence 0. Negative means padding, which
    writes nothing into the state.

    Returns out, of the shape and dtype of x; with ``return_final_states`` also the last state,
    in the dtype of the products, and with ``return_varlen_states`` (batch 1, no backward) the state
    at the end of each sequence ``cu_seqlens[i]:cu_seqlens[i + 1]``, (sequences, nheads, headdim,
    dstate) in the dtype of C.

    Raises ValueError or TypeError for arguments that do not fit together. Algorithm: Dao and Gu,
    "Transformers are SSMs", 2024, section 6.
    """
    check_chunk_size(chunk_size)
    scan = Scan(
        *(x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx),
        cu_seqlens if return_varlen_states else None,
        chunk_size,
        bool(dt_softplus),
        limits(dt_limit),
        check_state_dtype(state_dtype),
        bool(return_final_states),
    )
    found = way(x, dt, A, B, C, D, z, dt_bias, initial_states)
    with untraced() if found is Way.COMPOSED else nullcontext():
        check_scan(scan)
        if return_varlen_states:
            check_sequences(scan, found is Way.KERNELS)
    if found is Way.COMPOSED:
        out, final_states, varlen_states = composed.scan(scan)
    elif found is Way.OPERATORS:
        out, final_states = _OPERATORS.scan(scan)
        if z is not None:
            out = gate(out, z).to(out.dtype)
        varlen_states = composed.varlen_states(scan)
    else:
        out, final_states, varlen_states = _scan(scan)
    results: tuple[Tensor, ...] = (out,)
    if return_final_states:
        results += (final_states,)
    if return_varlen_states and varlen_states is not None:
        results += (varlen_states,)
    return results if len(results) > 1 else out


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Everything of a Mamba-2 mixer after its input projection.

    With dim = nheads * headdim and channels = dim + 2 * ngroups * dstate, zxbcdt (batch, seqlen,
    2 * mlp + dim + channels + nheads) holds side by side: the two halves of a gated MLP (mlp may
    be 0), the gate z, the channels x, B, C of the convolution, and dt. conv1d_weight is
    (channels, width), conv1d_bias (channels,) or None; dt_bias and A are (nheads,); D is
    (nheads,), with headdim given, or (nheads, headdim).

    The convolved x, B, C and ``softplus(dt + dt_bias)`` go through
    :func:`mamba_chunk_scan_combined`. With rmsnorm_weight (dim,) follows a gated RMSNorm over
    the ``dim / ngroups`` channels of each group, otherwise the gate alone. The MLP's output is
    put in front, and outproj_weight (out_dim, mlp + dim), outproj_bias (out_dim,) project the
    whole, in the dtype of autocast where it is on.

    A norm or projection of the caller that is no plain module is called in place of its weight:
    see ``projections``.

    Returns out (batch, seqlen, mlp + dim or out_dim); with ``return_final_states`` also the last
    state (batch, nheads, headdim, dstate).

    Raises ValueError or TypeError for arguments that do not fit together.
    """
    refused = needs_cast(zxbcdt, outproj_weight, outproj_bias)
    by_modules = passed(refused=refused, norm=rmsnorm_weight, out_proj=outproj_weight)
    modules: Modules = {}
    if by_modules is not None:
        if by_modules.declined:
            return cast(Tensor, None)
        modules = by_modules.modules
        if "norm" in modules:
            rmsnorm_weight = None
        if "out_proj" in modules:
            outproj_weight = outproj_bias = None
    options = (
        chunk_size,
        limits(dt_limit),
        activation,
        rmsnorm_eps,
        headdim,
        ngroups,
        bool(norm_before_gate),
        check_state_dtype(state_dtype),
        bool(return_final_states),
    )
    weights = (conv1d_weight, conv1d_bias, dt_bias, D, rmsnorm_weight, outproj_weight, outproj_bias)
    found = way(zxbcdt, A, initial_states, *weights)
    if (
        found is not Way.KERNELS
        or torch.is_grad_enabled()
        or modules
        or initial_states is not None
        or seq_idx is not None
        or not may_replay()
    ):
        out, final_states = _mixed(
            zxbcdt, A, weights, initial_states, seq_idx, options, found, modules
        )
        return (out, final_states) if return_final_states else out
    results = _CAPTURED((zxbcdt, A), weights, return_final_states, options)
    return (results[0], results[1]) if return_final_states else results[0]


def _scan(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    implementation = _implementation(scan)
    return (implementation.scan if torch.is_grad_enabled() else implementation.scan_forward)(scan)


def _mixed(
    zxbcdt: Tensor,
    A: Tensor,
    weights: tuple[Any, ...],
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    options: tuple[Any, ...],
    found: Way,
    modules: Modules,
) -> tuple[Tensor, Tensor]:
    """A mixer, its arguments being checked: its output and the last state.

    ``modules`` are called in place of ``norm`` and ``out_proj``, whose weights are None then.
    """
    conv1d_weight, conv1d_bias, dt_bias, D, rmsnorm_weight, outproj_weight, outproj_bias = weights
    chunk_size, dt_limit, activation, rmsnorm_eps, headdim, ngroups, *others = options
    norm_before_gate, state_dtype, last_state = others
    check_chunk_size(chunk_size)
    mixer = Mixer(
        zxbcdt=zxbcdt,
        conv1d_weight=conv1d_weight,
        conv1d_bias=conv1d_bias,
        dt_bias=dt_bias,
        A=A,
        D=D,
        initial_states=initial_states,
        rmsnorm_weight=rmsnorm_weight,
        outproj_weight=outproj_weight,
        outproj_bias=outproj_bias,
        seq_idx=seq_idx,
        chunk_size=chunk_size,
        dt_limit=dt_limit,
        activation=activation,
        rmsnorm_eps=rmsnorm_eps,
        headdim=head_size(D, headdim),
        ngroups=ngroups,
        norm_before_gate=norm_before_gate,
        state_dtype=state_dtype,
        last_state=last_state,
    )
    if found is not Way.KERNELS:
        with untraced() if found is Way.COMPOSED else nullcontext():
            check_mixer(mixer)
    elif not _is_known_to_fit(mixer):
        check_mixer(mixer)
        _note_that_it_fits(mixer)
    if "norm" in modules:
        out, state = compose(
            mixer,
            lambda scan: _scan_by(found, scan),
            autocast_dtype(zxbcdt.device),
            _over_groups(modules["norm"], mixer),
        )
    else:
        out, state = _computed(mixer, found)
    return (modules["out_proj"](out) if "out_proj" in modules else out), state


def _over_groups(norm: nn.Module, mixer: Mixer) -> nn.Module:
    """A mixer's norm over groups, as a fused call has it: Mamba2Simple makes one over all.

    Its hooks are the module's, and are given this copy.
    """
    if mixer.ngroups == 1 or getattr(norm, "group_size", 0) is not None:
        return norm
    norm = copy(norm)
    norm.group_size = sizes(mixer.A)[0] * mixer.headdim // mixer.ngroups  # type: ignore[assignment]
    return norm


# Mixers of which the like have passed the checks: these look at nothing but this.
_fitting: Memo[tuple[Any, ...], None] = Memo(MOST_FITTING)


def _is_known_to_fit(mixer: Mixer) -> bool:
    try:
        known = _fitting.find(_likeness(mixer))
    except (AttributeError, TypeError):  # what is no tensor, or has no hash
        return False
    if known is None:
        return False
    known.used = _fitting.clock()
    return True


def _note_that_it_fits(mixer: Mixer) -> None:
    # Of another dtype than the input, the projection fits under autocast alone.
    projection = (mixer.outproj_weight, mixer.outproj_bias)
    if all(each is None or each.dtype == mixer.zxbcdt.dtype for each in projection):
        _fitting.put(_likeness(mixer), None)


def _likeness(mixer: Mixer) -> tuple[Any, ...]:
    tensors = [
        None if each is None else (each.shape, each.dtype, each.device)
        for each in MIXER.tensors(mixer)
    ]
    return (mixer.headdim, mixer.ngroups, mixer.activation, *tensors)


def _scan_by(found: Way, scan: Scan) -> tuple[Tensor, Tensor]:
    """The scan of a mixer that is put together of its parts."""
    if found is Way.COMPOSED:
        return composed.scan(scan)[:2]
    return _OPERATORS.scan(scan) if found is Way.OPERATORS else _scan(scan)[:2]


def _computed(mixer: Mixer, found: Way) -> tuple[Tensor, Tensor]:
    device = mixer.zxbcdt.device
    if found is not Way.KERNELS:
        projection_dtype = autocast_dtype(device)
        if found is Way.COMPOSED:
            return composed.mixer(mixer, projection_dtype)
        if not _is_one_operator(mixer):
            return compose(mixer, _OPERATORS.scan, projection_dtype)
        out, final_states = _OPERATORS.core(mixer)
        with without_autocast(device):
            return project(mixer, out, projection_dtype), final_states
    implementation = _implementation(mixer)
    return (implementation.mixer if torch.is_grad_enabled() else implementation.mixer_forward)(
        mixer
    )


def _is_one_operator(given: Mixer) -> bool:
    """Whether a mixer's core is one operator in a graph: on a GPU, where it has that form.

    On a CPU a compiler fuses what is around the scan.
    """
    return (
        given.zxbcdt.is_cuda
        and given.rmsnorm_weight is not None
        and given.initial_states is None
        and mlp_columns(given) == 0
    )


def _from_parts(
    inputs: tuple[Tensor, ...],
    weights: Weights,
    return_final_states: bool,
    options: tuple[Any, ...],
) -> tuple[Tensor, ...]:
    """The function that is captured."""
    zxbcdt, A = inputs
    results = _mixed(zxbcdt, A, weights, None, None, options, Way.KERNELS, {})
    return results if return_final_states else results[:1]


_CAPTURED = Captured(_from_parts)


def _implementation(given: Scan | Mixer) -> Implementation:
    case = given.case
    found = OP.find(case)
    if found is not None:
        return found
    if isinstance(given, Mixer):
        _begin(case, given.zxbcdt, given.conv1d_weight, given.rmsnorm_weight)
    return OP.implementation(case)


def _begin(
    case: Case, zxbcdt: Tensor, conv1d_weight: Tensor, rmsnorm_weight: Tensor | None
) -> None:
    """Begin to choose what all parts of a mixer take at once: each is tried, which takes a while.

    The scan's first, which takes longest.
    """
    if zxbcdt.is_cuda:
        OP.begin(case)
        causal_conv1d.begin(zxbcdt, conv1d_weight)
        if rmsnorm_weight is not None:
            norms.begin(zxbcdt, rmsnorm_weight)


OP: Op[Case, Implementation] = register(
    Op("ssd", str(__package__), ("cuda", "triton", "pytorch"), trial)
)
_OPERATORS = Operators(_implementation)
