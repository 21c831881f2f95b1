"""How long a token of a whole model takes on a CPU, beside what its weights' bytes take.

``python -m benchmarks.tokens_cpu`` needs mamba_ssm on the path, and transformers. For a model of
each layer, with the sizes of the published 130M models and random float32 weights, it prints
milliseconds at batch 1 for each number of threads: a token; the products of its weights alone; and
one pass over a copy of them, at the rate of which the last column says how many times that a token
takes. Medians over ``--runs``, each measured in turn; each row is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

import torch
from torch.nn import functional

import jetson_mamba  # noqa: F401 - activates the overrides

PROMPT = 8
# Columns of the one matrix that is read for the memory's rate.
COLUMNS = 8192


def milliseconds(calls: list[Callable[[], Any]], runs: int) -> list[float]:
    """Of each call, in turn."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, of_call in zip(calls, times):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [1e3 * statistics.median(each) for each in times]


def row(layer: str, n_layer: int, runs: int) -> str:
    """The cells of a layer, by as many threads as there are."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.utils.generation import InferenceParams

    torch.manual_seed(0)
    config = MambaConfig(768, n_layer=n_layer, vocab_size=50277, ssm_cfg={"layer": layer})
    model = MambaLMHeadModel(config, dtype=torch.float32).eval()
    count = sum(each.numel() for each in model.parameters())
    weights = [each for each in model.parameters() if each.ndim == 2 and min(each.shape) > 32]
    given = {each.shape[1]: torch.randn(1, each.shape[1]) for each in weights}
    read, vector = torch.ones(-(-count // COLUMNS), COLUMNS), torch.ones(COLUMNS)
    params = InferenceParams(max_seqlen=PROMPT + 1, max_batch_size=1)
    ids = torch.randint(0, config.vocab_size, (1, PROMPT))
    places = torch.full((1, 1), PROMPT)

    def token() -> None:
        model(ids[:, :1], position_ids=places, inference_params=params, num_last_tokens=1)

    def products() -> None:
        for weight in weights:
            functional.linear(given[weight.shape[1]], weight)

    with torch.inference_mode():
        model(ids, inference_params=params, num_last_tokens=1)
        params.seqlen_offset = PROMPT
        found = milliseconds([token, products, lambda: torch.mv(read, vector)], runs)
    times = " | ".join(f"{each:.1f}" for each in found)
    return f"| {layer} | {torch.get_num_threads()} | {times} | {found[0] / found[2]:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--n-layer", type=int, default=24)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(row(given.row, given.n_layer, given.runs))
        return
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    print("| layer | threads | token | products | read | token over read |")
    print("| --- | --- | --- | --- | --- | --- |")
    for threads in given.threads:
        for layer in ("Mamba1", "Mamba2"):
            more = ["--row", layer, "--n-layer", str(given.n_layer), "--runs", str(given.runs)]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.tokens_cpu", *more],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )


if __name__ == "__main__":
    main()
