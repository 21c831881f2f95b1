"""How the steps of a scan lie in chunks: each sequence begins one of its own.

So everything within a chunk is computed for all of them at once, and only between chunks it
matters where a sequence begins. What fills a last chunk up is zero: steps that change no state.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Layout:
    """The chunks of ``size`` steps of one sequence a row of the batch, or of several in one row.

    ``ends`` are the boundaries of those several; ``counts`` says how many chunks each sequence has.
    """

    def __init__(
        self, seqlen: int, size: int, ends: tuple[int, ...] | None, device: torch.device
    ) -> None:
        self.size = size
        self.ends = ends
        self._seqlen = seqlen
        lengths = [seqlen] if ends is None else [b - a for a, b in zip(ends, ends[1:])]
        self.counts = [-(-length // size) for length in lengths]
        self.chunks = sum(self.counts)
        self._source = self._ahead = self._target = None
        if ends is None:
            return
        # Places of steps among the chunks, with one more row of zeros for what is none.
        source: list[int] = []
        ahead: list[int] = []
        target = [self.chunks * size] * seqlen
        for start, stop, count in zip(ends, ends[1:], self.counts):
            steps = [*range(start, stop), *[seqlen] * (count * size - (stop - start))]
            target[start:stop] = range(len(source), len(source) + stop - start)
            source += steps
            ahead += [each + 1 if each + 1 < stop else seqlen for each in steps]
        self._source, self._ahead, self._target = (
            torch.tensor(each, dtype=torch.int64, device=device) for each in (source, ahead, target)
        )

    def of(self, tensor: Tensor) -> Tensor:
        """(batch, seqlen, ...) as (batch, chunks, size, ...)."""
        return self._laid(tensor, self._source)

    def ahead(self, tensor: Tensor) -> Tensor:
        """The same of the step after each; zero after the last of a sequence."""
        if self.ends is None:
            tensor = tensor[:, 1:]
        return self._laid(tensor, self._ahead)

    def back(self, tensor: Tensor) -> Tensor:
        """(batch, chunks, size, ...) as (batch, seqlen, ...); zero where no sequence is."""
        flat = tensor.flatten(1, 2)
        if self._target is None:
            return flat[:, : self._seqlen]
        return _with_zeros(flat, 1).index_select(1, self._target)

    def last(self, tensor: Tensor, initial: Tensor | None) -> Tensor:
        """The last step of each sequence, of (batch, seqlen, ...): (sequences, ...).

        ``initial`` is what a sequence without steps has; zero where it is None.
        """
        if self.ends is None:
            return tensor[:, -1]
        bounds = zip(self.ends, self.ends[1:])
        steps = torch.tensor([stop - 1 if stop > start else -1 for start, stop in bounds])
        steps = steps.to(tensor.device)
        if initial is None:
            initial = torch.zeros_like(tensor[0, :1])
        there = (steps >= 0).reshape(-1, *[1] * (tensor.dim() - 2))
        return torch.where(there, tensor[0, steps.clamp(min=0)], initial.to(tensor.dtype))

    def of_sequence(self, states: Tensor, number: int) -> Tensor:
        """(sequences, ...) of one of them: (batch, ...)."""
        return states if self.ends is None else states[number : number + 1]

    def joined(self, states: list[Tensor]) -> Tensor:
        """What :meth:`of_sequence` took apart."""
        return states[0] if self.ends is None else torch.cat(states)

    def _laid(self, tensor: Tensor, source: Tensor | None) -> Tensor:
        if source is None:
            rows = self.chunks * self.size
            tensor = _with_zeros(tensor, rows - tensor.shape[1])
        else:
            tensor = _with_zeros(tensor, 1).index_select(1, source)
        return torch.unflatten(tensor, 1, (self.chunks, self.size))


def _with_zeros(tensor: Tensor, rows: int) -> Tensor:
    if not rows:
        return tensor
    return functional.pad(tensor, (*(0, 0) * (tensor.dim() - 2), 0, rows))
