"""Prompts in pieces through models of mamba_ssm, beside the same in one pass.

``python -m tests.modules.prefilled CHECK...`` prints a line for each result: its name and the
relative norm of its difference, or a count. The release is whatever ``mamba_ssm`` is first on the
path.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Iterator

import torch

import jetson_mamba
from tests import checks
from tests.references.tolerance import relative_norm

# The package has the function of that name.
several_tokens: Any = import_module("jetson_mamba.ops.decoding.several_tokens")
LENGTH = 512
LAYERS: dict[str, dict[str, Any]] = {
    "Mamba1": {},
    "Mamba2": {"d_state": 32, "headdim": 32, "chunk_size": 32},
}


def pieces() -> Iterator[tuple[str, float]]:
    """Logits and states after 512 tokens, and in how many calls of ``step``."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel
    from mamba_ssm.utils.generation import InferenceParams

    one_by_one, counted = several_tokens._one_by_one, []

    def count(*given: Any) -> Any:
        counted.append(given[2].shape[1])
        return one_by_one(*given)

    several_tokens._one_by_one = count
    for layer, sizes in LAYERS.items():
        config = MambaConfig(
            d_model=64, n_layer=2, vocab_size=64, ssm_cfg={"layer": layer, **sizes}
        )
        model: Any = MambaLMHeadModel(config).eval()
        ids = torch.randint(0, 64, (2, LENGTH))
        whole = InferenceParams(max_seqlen=LENGTH + 1, max_batch_size=2)
        with torch.no_grad():
            right = model(ids, inference_params=whole, num_last_tokens=1).logits
        for piece in (256, 100, 3):
            counted.clear()
            params = InferenceParams(max_seqlen=LENGTH + 1, max_batch_size=2)
            found = jetson_mamba.prefill(model, ids, params, piece=piece)
            yield f"{layer} {piece} logits", relative_norm(found, right)
            for index, states in params.key_value_memory_dict.items():
                pairs = zip(states, whole.key_value_memory_dict[index])
                off = max(relative_norm(one, other) for one, other in pairs)
                yield f"{layer} {piece} states {index}", off
            yield f"{layer} {piece} offset", float(abs(params.seqlen_offset - LENGTH))
            # Two tokens of each layer are stepped once, to compare.
            yield f"{layer} {piece} steps", float(sum(counted) > 2 * config.n_layer)


def foreign() -> Iterator[tuple[str, float]]:
    """A block whose own step computes something else takes its steps one by one."""
    from mamba_ssm.modules.mamba_simple import Mamba

    class Doubled(Mamba):  # type: ignore[misc]
        def step(self, *given: Any) -> Any:
            """Twice as much."""
            assert given[0].shape[1] == 1
            out, *states = Mamba.step(self, *given)
            return (2 * out, *states)

    Doubled.step = several_tokens.several_tokens(Doubled.step)  # type: ignore[method-assign]
    block: Any = Doubled(16).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        states = block.allocate_inference_cache(2, 1)
        others = block.allocate_inference_cache(2, 1)
        out, *_ = block.step(x, *states)
        right = torch.cat([block.step(each, *others)[0] for each in x.split(1, 1)], 1)
    yield "doubled", relative_norm(out, right)
    for state, other in zip(states, others):
        yield "state", relative_norm(state, other)


CHECKS = {check.__name__: check for check in (pieces, foreign)}

if __name__ == "__main__":
    checks.run(CHECKS)
