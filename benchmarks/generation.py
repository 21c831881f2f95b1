"""How long a token takes that a whole model generates, in every way that upstream offers.

``python -m benchmarks.generation`` needs a CUDA GPU, mamba_ssm on the path, and transformers. For a
model of each layer, with the sizes of the published 130M models (of 2.7B with ``--d-model 2560
--n-layer 64``) and random weights, it prints milliseconds per token at batch 1: without the
inference path, with it, with a whole step by one launch, as is the default, and with upstream's own
CUDA graph (``cg=True``). The prompt's pass is not in them: the time of a generation is taken from
one twice as long. Medians over repeated runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Callable

import torch

import jetson_mamba  # noqa: F401 - activates the overrides
from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.replay.models import whole_steps

PROMPT, TOKENS = 16, 64


# Name, whether the inference path is on, upstream's cg, and whole steps by this project's graphs.
WAYS = (
    ("path off", False, False, False),
    ("path on", True, False, False),
    ("whole steps", True, False, True),
    ("cg=True", True, True, False),
)


def milliseconds(generate: Callable[[int], None], length: int) -> float:
    """The time of one generation up to that length."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    generate(length)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--d-model", type=int, default=768)
    parser.add_argument("--n-layer", type=int, default=24)
    parser.add_argument("--ways", nargs="+", default=[way for way, *_ in WAYS], help="some of them")
    given = parser.parse_args()
    runs = given.runs
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| layer | way | ms per token |")
    print("| --- | --- | --- |")
    for layer in ("Mamba1", "Mamba2"):
        torch.manual_seed(0)
        config = MambaConfig(given.d_model, n_layer=given.n_layer, vocab_size=50277)
        config.ssm_cfg["layer"] = layer
        model = MambaLMHeadModel(config, device="cuda", dtype=torch.bfloat16).eval()
        prompt = torch.randint(0, config.vocab_size, (1, PROMPT), device="cuda")
        for way, on, cg, whole in WAYS:
            if way not in given.ways:
                continue

            def generate(length: int, cg: bool = cg) -> None:
                model.generate(prompt, max_length=PROMPT + length, cg=cg)  # noqa: B023

            with inference_path(on), whole_steps(whole):
                generate(2 * TOKENS)
                times = [
                    milliseconds(generate, 2 * TOKENS) - milliseconds(generate, TOKENS)
                    for _ in range(runs)
                ]
            print(f"| {layer} | {way} | {statistics.median(times) / TOKENS:.2f} |", flush=True)


if __name__ == "__main__":
    main()
