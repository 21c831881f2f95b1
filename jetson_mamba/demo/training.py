"""Trains a language model on characters.

The model is tested on text that it has not seen, and writes a sample. Everything random comes from
one seed and is drawn on the CPU, so that a run can be repeated.
"""

from __future__ import annotations

import math
from typing import Any, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from jetson_mamba.demo.text import Text

BATCH = 8
SEQLEN = 96
LEARNING_RATE = 5e-3
WARM_UP = 20
LARGEST_GRADIENT = 1.0
TEST_BATCHES = 16
# Below 1, a sample keeps to what the model is surer of.
TEMPERATURE = 0.7


def device() -> torch.device:
    """The GPU if there is one; otherwise the CPU, of which one core is used.

    A second core would gain less than twice the speed where it is idle. Where other programs
    are busy it would lose many times that: each of the many small operations of a step waits
    for the slower thread.
    """
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")


def encode(characters: str, text: Text) -> Tensor:
    """Each character as its place in the text's alphabet, int64 (characters,)."""
    places = {character: place for place, character in enumerate(text.alphabet)}
    return torch.tensor([places[character] for character in characters])


def train(model: Any, text: Text, steps: int, seed: int) -> Iterator[float]:
    """Train for ``steps`` steps on random pieces of the text; yields the loss of each."""
    where = next(model.parameters()).device
    characters = encode(text.training, text)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    model.train()
    for _ in range(steps):
        starts = torch.randint(len(characters) - SEQLEN, (BATCH,), generator=generator)
        pieces = torch.stack([characters[start : start + SEQLEN + 1] for start in starts])
        loss = _loss(model, pieces.to(where))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        yield loss.item()


@torch.no_grad()
def test(model: Any, text: Text) -> float:
    """The loss on the beginning of the text that was held out."""
    where = next(model.parameters()).device
    characters = encode(text.held_out[: TEST_BATCHES * BATCH * SEQLEN + 1], text)
    pieces = characters.unfold(0, SEQLEN + 1, SEQLEN)
    model.eval()
    losses = [_loss(model, batch.to(where)).item() * len(batch) for batch in pieces.split(BATCH)]
    return sum(losses) / len(pieces)


@torch.no_grad()
def sample(model: Any, text: Text, prompt: str, length: int, seed: int) -> str:
    """``length`` characters that the model writes after the prompt.

    Each comes from a forward pass over everything before it: upstream's step by step decoding
    runs Triton kernels.
    """
    where = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    characters = encode(prompt, text).to(where)
    model.eval()
    for _ in range(length):
        logits = model(characters[None]).logits[0, -1, : len(text.alphabet)]
        chances = F.softmax(logits.float().cpu() / TEMPERATURE, dim=-1)
        following = torch.multinomial(chances, 1, generator=generator)
        characters = torch.cat([characters, following.to(where)])
    return "".join(text.alphabet[place] for place in characters[len(prompt) :].tolist())


def _loss(model: Any, pieces: Tensor) -> Tensor:
    """Mean nats per character of ``pieces`` (batch, seqlen + 1) after the first."""
    logits = model(pieces[:, :-1]).logits
    return F.cross_entropy(logits.float().flatten(0, 1), pieces[:, 1:].flatten())
