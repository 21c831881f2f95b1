"""The arguments of the functions of Mamba-3: what fits together."""

from __future__ import annotations

from torch import Tensor

from jetson_mamba.dispatch import arguments


def check_heads(
    nheads: int, ngroups: int, dstate: int, angles: int, q: str = "Q", of_angles: str = "Angles"
) -> None:
    """Raise unless groups share the heads evenly, and there are pairs enough to turn.

    ``q`` and ``of_angles`` are what the caller calls the arguments.
    """
    if ngroups < 1 or nheads % ngroups:
        raise ValueError(f"{q}: expected heads that divide those of V, {nheads}, found {ngroups}")
    if dstate % 2:
        raise ValueError(f"{q}: expected an even last axis, found {dstate}")
    if angles > dstate // 2:
        raise ValueError(f"{of_angles}: expected at most {dstate // 2}, found {angles}")


def boundaries(cu_seqlens: Tensor | None, batch: int, seqlen: int) -> tuple[int, ...] | None:
    """The boundaries of packed sequences in plain numbers; None where none are given."""
    arguments.check_steps("Q", seqlen)
    if cu_seqlens is None:
        return None
    arguments.check_boundaries(cu_seqlens, "Q", batch, "cu_seqlens")
    ends = arguments.boundaries(cu_seqlens, seqlen)
    if ends[0] == ends[-1]:
        raise ValueError("cu_seqlens: expected at least one step, found none")
    return ends
