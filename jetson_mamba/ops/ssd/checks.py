"""Which arguments of Mamba-2's scan fit together, or of its mixer."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.arguments import (
    FLOATING,
    INTEGER,
    boundaries,
    check_boundaries,
    check_dtype,
    check_groups,
    check_shape,
    check_steps,
    check_tensors,
    dims,
)
from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.dispatch.tracing import sizes

from .contract import Mixer, Scan


def check_scan(scan: Scan) -> None:
    """Raise ValueError or TypeError where the arguments of a scan do not fit together."""
    tensors = _tensors(
        scan,
        required=("x", "dt", "A", "B", "C"),
        optional=("D", "z", "dt_bias", "initial_states", "seq_idx"),
    )
    batch, seqlen, nheads, headdim = dims("x", scan.x, ("batch", "seqlen", "nheads", "headdim"))
    dims("B", scan.B, ("batch", "seqlen", "ngroups", "dstate"))
    ngroups, dstate = scan.B.shape[2:]
    check_steps("x", seqlen)
    check_groups(ngroups, nheads, "B: its third axis, ngroups,")
    _check_shapes(
        tensors,
        {
            "dt": {"batch": batch, "seqlen": seqlen, "nheads": nheads},
            "A": {"nheads": nheads},
            "B": {"batch": batch, "seqlen": seqlen, "ngroups": ngroups, "dstate": dstate},
            "C": {"batch": batch, "seqlen": seqlen, "ngroups": ngroups, "dstate": dstate},
            "z": {"batch": batch, "seqlen": seqlen, "nheads": nheads, "headdim": headdim},
            "dt_bias": {"nheads": nheads},
            "initial_states": _states(batch, nheads, headdim, dstate),
            "seq_idx": {"batch": batch, "seqlen": seqlen},
        },
    )
    if scan.D is not None and scan.D.shape not in ((nheads,), (nheads, headdim)):
        raise ValueError(
            f"D: expected shape (nheads={nheads},) or (nheads={nheads}, headdim={headdim}), "
            f"found {tuple(scan.D.shape)}"
        )


def check_mixer(mixer: Mixer) -> None:
    """Raise ValueError or TypeError where the arguments of a mixer do not fit together."""
    tensors = _tensors(
        mixer,
        required=("zxbcdt", "conv1d_weight", "dt_bias", "A", "D"),
        optional=(
            "conv1d_bias",
            "initial_states",
            "rmsnorm_weight",
            "outproj_weight",
            "outproj_bias",
            "seq_idx",
        ),
    )
    batch, seqlen, width = dims("zxbcdt", mixer.zxbcdt, ("batch", "seqlen", "columns"))
    channels, _ = dims("conv1d_weight", mixer.conv1d_weight, ("channels", "width"))
    nheads = mixer.D.shape[0]
    dim = nheads * mixer.headdim
    check_steps("zxbcdt", seqlen)
    check_groups(mixer.ngroups, nheads, "ngroups:")
    dstate = (channels - dim) // (2 * mixer.ngroups)
    if dstate < 1 or channels != dim + 2 * mixer.ngroups * dstate:
        raise ValueError(
            f"conv1d_weight: expected dim + 2 * ngroups * dstate channels for dim={dim}, "
            f"ngroups={mixer.ngroups} and some dstate, found {channels}"
        )
    least = dim + channels + nheads
    if width < least or (width - least) % 2:
        raise ValueError(
            f"zxbcdt: expected dim + channels + nheads = {dim} + {channels} + {nheads} = {least} "
            f"columns, or an even number more, found {width}"
        )
    mlp = (width - least) // 2
    _check_shapes(
        tensors,
        {
            "conv1d_bias": {"channels": channels},
            "dt_bias": {"nheads": nheads},
            "A": {"nheads": nheads},
            "initial_states": _states(batch, nheads, mixer.headdim, dstate),
            "rmsnorm_weight": {"dim": dim},
            "seq_idx": {"batch": batch, "seqlen": seqlen},
        },
    )
    if mixer.activation not in (None, "silu", "swish"):
        raise ValueError(
            f"activation: expected None, 'silu' or 'swish', found {mixer.activation!r}"
        )
    if mixer.outproj_weight is not None:
        out_dim, inner = dims("outproj_weight", mixer.outproj_weight, ("out_dim", "dim"))
        if inner != mlp + dim:
            raise ValueError(
                f"outproj_weight: expected {mlp + dim} columns (of the gated MLP and of the "
                f"scan, {mlp} + {dim}), found {inner}"
            )
        _check_shapes(tensors, {"outproj_bias": {"out_dim": out_dim}})
        if autocast_dtype(mixer.zxbcdt.device) is None:
            for name in ("outproj_weight", "outproj_bias"):
                if tensors[name] is not None:
                    dtype = mixer.zxbcdt.dtype
                    words = f"{dtype}, as zxbcdt, outside autocast"
                    check_dtype(name, tensors[name], (dtype,), words)
    elif mixer.outproj_bias is not None:
        raise ValueError("outproj_bias: expected None where outproj_weight is None, found a tensor")


def needs_cast(zxbcdt: Tensor, *projection: Tensor | None) -> bool:
    """Whether a projection is of another dtype than its input, which outside autocast is refused.

    False as well for what is no tensor: the checks above say so.
    """
    dtype = getattr(zxbcdt, "dtype", None)
    for each in projection:
        if each is not None and getattr(each, "dtype", dtype) != dtype:
            return autocast_dtype(zxbcdt.device) is None
    return False


def head_size(D: Tensor, headdim: int | None) -> int:
    """The headdim that D says, or that has to be given beside it."""
    check_dtype("D", D)
    if D.dim() == 2:
        return sizes(D)[1]
    if D.dim() != 1:
        raise ValueError(
            f"D: expected shape (nheads,) or (nheads, headdim), found {tuple(D.shape)}"
        )
    if headdim is None or headdim < 1:
        raise ValueError(f"headdim: expected at least 1 where D is (nheads,), found {headdim}")
    return headdim


def check_chunk_size(chunk_size: int) -> None:
    """Raise unless it is a positive int."""
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
        raise TypeError(f"chunk_size: expected an int, found {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1, found {chunk_size}")


def check_state_dtype(state_dtype: Any) -> torch.dtype | None:
    """It; raise TypeError unless it is None or a dtype that states can have."""
    if state_dtype is not None and state_dtype not in FLOATING:
        raise TypeError(
            "state_dtype: expected None, float16, bfloat16, float32 or float64, "
            f"found {state_dtype!r}"
        )
    checked: torch.dtype | None = state_dtype
    return checked


def limits(dt_limit: Sequence[float]) -> tuple[float, float]:
    """The two of them; a list, as a configuration in JSON has it, will do."""
    if len(dt_limit) != 2 or not dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"dt_limit: expected (low, high) with low <= high, found {dt_limit}")
    return dt_limit[0], dt_limit[1]


def check_sequences(scan: Scan, look_at_values: bool) -> None:
    """Raise unless cu_seqlens holds the boundaries of sequences in a batch of 1."""
    cu_seqlens = scan.cu_seqlens
    if cu_seqlens is None:
        raise ValueError("cu_seqlens: expected a tensor with return_varlen_states, found None")
    batch, seqlen = scan.x.shape[:2]
    check_boundaries(cu_seqlens, "x", batch, "return_varlen_states")
    if look_at_values:
        boundaries(cu_seqlens, seqlen)


def _tensors(
    arguments: Scan | Mixer, required: tuple[str, ...], optional: tuple[str, ...]
) -> Mapping[str, Tensor | None]:
    """The tensors by name, of dtypes that fit and on one device."""
    given = {name: getattr(arguments, name) for name in (*required, *optional)}
    check_tensors(given, optional, {"seq_idx": INTEGER})
    return given


def _states(batch: int, nheads: int, headdim: int, dstate: int) -> Mapping[str, int]:
    return {"batch": batch, "nheads": nheads, "headdim": headdim, "dstate": dstate}


def _check_shapes(
    tensors: Mapping[str, Tensor | None], expected: Mapping[str, Mapping[str, int]]
) -> None:
    for name, wanted in expected.items():
        check_shape(name, tensors[name], wanted)
