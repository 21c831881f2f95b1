"""How long a token takes that a model of transformers generates.

``python -m benchmarks.generation_transformers`` needs a CUDA GPU, mamba_ssm on the path, and
transformers 5. For its Mamba and Mamba2 models, with the sizes of the published 130M models and
random bfloat16 weights, it prints milliseconds per token at batch 1 by ``generate``: by the mixers'
own tokens, and by few kernels. The prompt's pass is not in them. Medians over repeated runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

import jetson_mamba  # noqa: F401 - activates the overrides
from jetson_mamba.ops.decoding import layers

PROMPT, TOKENS = 16, 32
SIZES = {"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 24}
HEADS = {"state_size": 128, "head_dim": 64, "num_heads": 24, "n_groups": 1}


def seconds(model: Any, ids: Any, tokens: int) -> float:
    """Of so many tokens."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    import mamba_ssm  # noqa: F401 - without it transformers has functions of its own
    import transformers

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}")
    print("| model | mixers' own | few kernels |")
    print("| --- | --- | --- |")
    for kind, more in (("Mamba", {}), ("Mamba2", HEADS)):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**SIZES, **more)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        model = model.to("cuda", torch.bfloat16).eval()
        ids = torch.randint(1, SIZES["vocab_size"], (1, PROMPT), device="cuda")
        found, most = [], layers.MOST_SEQUENCES
        for sequences in (0, most):
            layers.MOST_SEQUENCES = sequences
            seconds(model, ids, TOKENS)
            times = [
                seconds(model, ids, 2 * TOKENS) - seconds(model, ids, TOKENS)
                for _ in range(given.runs)
            ]
            found.append(1e3 * statistics.median(times) / TOKENS)
        layers.MOST_SEQUENCES = most
        print(f"| {kind} | {found[0]:.2f} | {found[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
