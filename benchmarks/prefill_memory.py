"""What a long prompt takes of a GPU's memory, in pieces beside at once.

``python -m benchmarks.prefill_memory`` needs a CUDA GPU, mamba_ssm on the path, and transformers.
For a model of each layer, with the sizes of the published 130M models and random bfloat16 weights,
it prints the peak in MiB beyond weights and states: of the first prompt and of a later one.
"""

from __future__ import annotations

import argparse
from typing import Any, Callable

import torch

import jetson_mamba

PROMPT, PIECE = 4096, 256


def peak(call: Callable[[Any], Any], params: Any) -> float:
    """MiB that a call takes beyond what there is."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(params)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / (1 << 20)


def main() -> None:
    """Print the table."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.utils.generation import InferenceParams

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompt", type=int, default=PROMPT)
    parser.add_argument("--piece", type=int, default=PIECE)
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| layer | way | first | later |")
    print("| --- | --- | --- | --- |")
    for layer in ("Mamba1", "Mamba2"):
        torch.manual_seed(0)
        config = MambaConfig(768, n_layer=24, vocab_size=50277, ssm_cfg={"layer": layer})
        model = MambaLMHeadModel(config, device="cuda", dtype=torch.bfloat16).eval()
        ids = torch.randint(0, config.vocab_size, (1, given.prompt), device="cuda")

        @torch.no_grad()
        def once(params: Any) -> Any:
            return model(ids, inference_params=params, num_last_tokens=1)  # noqa: B023

        def pieces(params: Any) -> Any:
            return jetson_mamba.prefill(model, ids, params, given.piece)  # noqa: B023

        for name, call in (("at once", once), (f"in pieces of {given.piece}", pieces)):
            found = []
            for _ in range(2):
                params = InferenceParams(max_seqlen=given.prompt + 1, max_batch_size=1)
                params.key_value_memory_dict = model.allocate_inference_cache(1, given.prompt + 1)
                found.append(peak(call, params))
            print(f"| {layer} | {name} | {found[0]:.1f} | {found[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
