"""Trains a Mamba-2 model of 130M parameters from several seeds, by a backend of its op.

``python -m benchmarks.loss_curves --backend cuda --seeds 0 1 2 --out curves.json`` needs a CUDA GPU
and mamba_ssm on the path; it trains on the demo's text, a character a token, under autocast to
bfloat16, and prints the mean loss of every ten steps. ``--compare curves.json other.json`` says how
far the curves of the second file lie from those of the same seeds in the first, whose seeds lie how
far from one another.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Iterator

import torch
import torch.nn.functional as F

import jetson_mamba
from jetson_mamba.demo.text import standard_library
from jetson_mamba.demo.training import encode

BATCH, SEQLEN, STEPS = 8, 512, 200
LEARNING_RATE, WARM_UP, LARGEST_GRADIENT = 6e-4, 20, 1.0
WIDTH, LAYERS = 768, 24
# Steps that a point of a curve is the mean of.
SMOOTHED = 10


def losses(seed: int, steps: int) -> Iterator[float]:
    """The loss of each step."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    text = standard_library()
    characters = encode(text.training, text)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    settings: dict[str, Any] = {"d_model": WIDTH, "n_layer": LAYERS, "ssm_cfg": {"layer": "Mamba2"}}
    config = MambaConfig(vocab_size=len(text.alphabet), **settings)
    model = MambaLMHeadModel(config, device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARM_UP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    for _ in range(steps):
        starts = torch.randint(len(characters) - SEQLEN, (BATCH,), generator=generator)
        pieces = torch.stack([characters[start : start + SEQLEN + 1] for start in starts]).cuda()
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(pieces[:, :-1]).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), pieces[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        yield loss.item()


def smoothed(curve: list[float]) -> list[float]:
    """The means of every few steps."""
    parts = [curve[i : i + SMOOTHED] for i in range(0, len(curve), SMOOTHED)]
    return [sum(part) / len(part) for part in parts]


def compare(given: list[list[float]], others: list[list[float]]) -> str:
    """How far curves are from the given of the same seeds, beside the spread of the given."""
    curves = list(map(smoothed, given))
    spreads = [max(point) - min(point) for point in zip(*curves)]
    apart = [
        abs(each - own)
        for curve, other in zip(curves, map(smoothed, others))
        for own, each in zip(curve, other)
    ]
    return (
        f"from the curve of the same seed at most {max(apart):.3f}, on average "
        f"{sum(apart) / len(apart):.3f}; from seed to seed on average "
        f"{sum(spreads) / len(spreads):.3f}, at most {max(spreads):.3f}"
    )


def main() -> None:
    """Train, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("cuda", "triton", "pytorch"), default="cuda")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, help="write the losses of all steps there")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="FILE")
    chosen = parser.parse_args()
    if chosen.compare:
        first, second = (json.loads(path.read_text()) for path in chosen.compare)
        sys.exit(print(compare(first, second)))
    curves = []
    for seed in chosen.seeds:
        with jetson_mamba.backend(ssd=chosen.backend):
            curves.append(list(losses(seed, chosen.steps)))
        print(seed, *(f"{each:.3f}" for each in smoothed(curves[-1])), flush=True)
    if chosen.out:
        chosen.out.write_text(json.dumps(curves))


if __name__ == "__main__":
    main()
