"""Divides an op over the channels of some sequences into parts, one for each thread."""

from __future__ import annotations

from typing import NamedTuple


class Part(NamedTuple):
    """Some of the sequences and some of the channels, which are those of whole groups or of one."""

    batch: slice
    channels: slice
    groups: slice


def divided(
    threads: int, batch: int, channels: int, groups: int = 1, fewest: int = 1
) -> list[Part]:
    """At least as many parts as threads, if each can have as many as ``fewest`` channels.

    Sequences are told apart before channels: they share less. Channels ``i * channels / groups``
    and on belong to group ``i``.
    """
    if threads == 1:
        return [Part(slice(0, batch), slice(0, channels), slice(0, groups))]
    sequences = runs(batch, min(threads, batch))
    among = max(1, min(-(-threads // len(sequences)), channels // max(1, fewest)))
    parts = []
    width = channels // groups
    of_groups = runs(groups, min(among, groups))
    for group in of_groups:
        first, last = group.start * width, group.stop * width
        # Channels of one group may be divided, those of several not: their shares are unequal.
        count = max(1, among // len(of_groups)) if group.stop - group.start == 1 else 1
        for part in runs(last - first, min(count, last - first)):
            own = slice(first + part.start, first + part.stop)
            parts += [Part(each, own, group) for each in sequences]
    return parts


def runs(total: int, count: int) -> list[slice]:
    """``count`` runs that cover ``total``, as equal as can be; one where there is nothing."""
    count = max(1, count)
    return [slice(total * i // count, total * (i + 1) // count) for i in range(count)]
