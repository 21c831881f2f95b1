"""How long a token of a whole model takes on a CPU, beside what its weights' bytes take.

``python -m benchmarks.tokens_cpu`` needs mamba_ssm on the path, and transformers. For a model of
each layer, with the sizes of the published 130M models and random float32 weights, it prints
milliseconds for each number of threads: a token; the products of its weights by
``functional.linear``; a sum and a copy of as many bytes as they have, the copy's read and written
ones together; and how many times a token takes the sum's time. Medians over ``--runs``, each
measured in turn; each row is a process of its own. ``--processor-time`` is for a machine that is
not idle: the least time that the process's threads had a core for.
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


def milliseconds(calls: list[Callable[[], Any]], runs: int, of_processor: bool) -> list[float]:
    """Of each call, in turn."""
    clock = time.process_time if of_processor else time.perf_counter
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, of_call in zip(calls, times):
            start = clock()
            call()
            of_call.append(clock() - start)
    return [1e3 * (min(each) if of_processor else statistics.median(each)) for each in times]


def row(layer: str, n_layer: int, batch: int, runs: int, of_processor: bool) -> str:
    """The cells of a layer, by as many threads as there are."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.utils.generation import InferenceParams

    torch.manual_seed(0)
    config = MambaConfig(768, n_layer=n_layer, vocab_size=50277, ssm_cfg={"layer": layer})
    model = MambaLMHeadModel(config, dtype=torch.float32).eval()
    count = sum(each.numel() for each in model.parameters())
    weights = [each for each in model.parameters() if each.ndim == 2 and min(each.shape) > 32]
    given = {each.shape[1]: torch.randn(batch, each.shape[1]) for each in weights}
    read = torch.ones(count)
    copied, target = read[: count // 2], torch.empty(count // 2)
    params = InferenceParams(max_seqlen=PROMPT + 1, max_batch_size=batch)
    ids = torch.randint(0, config.vocab_size, (batch, PROMPT))
    places = torch.full((batch, 1), PROMPT)

    def token() -> None:
        model(ids[:, :1], position_ids=places, inference_params=params, num_last_tokens=1)

    def products() -> None:
        for weight in weights:
            functional.linear(given[weight.shape[1]], weight)

    with torch.inference_mode():
        model(ids, inference_params=params, num_last_tokens=1)
        params.seqlen_offset = PROMPT
        calls: list[Callable[[], Any]] = [token, products, read.sum, lambda: target.copy_(copied)]
        found = milliseconds(calls, runs, of_processor)
    times = " | ".join(f"{each:.1f}" for each in found)
    return f"| {layer} | {torch.get_num_threads()} | {times} | {found[0] / found[2]:.2f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--n-layer", type=int, default=24)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        print(row(given.row, given.n_layer, given.batch, given.runs, given.processor_time))
        return
    print(f"{os.cpu_count()} cores, torch {torch.__version__}")
    print("| layer | threads | token | products | sum | copy | token over sum |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for threads in given.threads:
        for layer in ("Mamba1", "Mamba2"):
            more = ["--row", layer, "--n-layer", str(given.n_layer), "--runs", str(given.runs)]
            more += ["--batch", str(given.batch)] + ["--processor-time"] * given.processor_time
            subprocess.run(
                [sys.executable, "-m", "benchmarks.tokens_cpu", *more],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )


if __name__ == "__main__":
    main()
