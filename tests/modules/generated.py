"""Tokens one after another by models of mamba_ssm, beside whole passes over the same.

``python -m tests.modules.generated CHECK...`` prints a line for each result: its name and the
relative norm of its difference. A check's name ends with the device. The release is whatever
``mamba_ssm`` is first on the path.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Iterator

import torch
from torch import Tensor

import jetson_mamba  # noqa: F401 - activates the overrides
from tests import checks
from tests.references.tolerance import relative_norm

WORDS, WIDTH, PROMPT, TOKENS = 64, 64, 9, 512
LAYERS: dict[str, dict[str, Any]] = {
    "Mamba1": {},
    "Mamba2": {"d_state": 32, "headdim": 32, "chunk_size": 32},
}
SAMPLED: dict[str, Any] = {"top_k": 0, "top_p": 0.9, "temperature": 0.8}
Results = Iterator[tuple[str, float]]


def models(device: str, **more: Any) -> Iterator[tuple[str, Any]]:
    """A small one of each layer."""
    from mamba_ssm.models.config_mamba import MambaConfig
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel

    for layer, sizes in LAYERS.items():
        torch.manual_seed(0)
        config = MambaConfig(WIDTH, n_layer=2, vocab_size=WORDS, ssm_cfg={"layer": layer, **sizes})
        for name, value in more.items():
            setattr(config, name, value)
        yield layer, MambaLMHeadModel(config, device=device, dtype=torch.float32).eval()


def prompts(device: str, batch: int = 2, length: int = PROMPT) -> Tensor:
    return torch.randint(0, WORDS, (batch, length), device=device)


def off(model: Any, out: Any) -> float:
    """How far the logits of a generation are from those of one pass over what it wrote."""
    with torch.no_grad():
        right = model(out.sequences[:, :-1]).logits[:, PROMPT - 1 :]
    return relative_norm(torch.stack(out.scores, 1), right)


def written(model: Any, prompt: Tensor, tokens: int = TOKENS, **more: Any) -> Any:
    torch.manual_seed(3)
    return model.generate(
        *(prompt, PROMPT + tokens),
        **{"output_scores": True, "return_dict_in_generate": True, **more},
    )


def greedy(device: str) -> Results:
    """Each token the likeliest."""
    for layer, model in models(device):
        yield layer, off(model, written(model, prompts(device)))


def sampled(device: str) -> Results:
    """Drawn with a seed, twice."""
    for layer, model in models(device):
        prompt = prompts(device)
        out, again = (written(model, prompt, **SAMPLED) for _ in range(2))
        yield f"{layer} of the same seed", float(not torch.equal(out.sequences, again.sequences))
        yield layer, off(model, out)


def unequal(device: str) -> Results:
    """Prompts of several lengths, each read by itself, then a token of all at a time."""
    from mamba_ssm.utils.generation import InferenceParams

    lengths = (5, 9, 2, 17)
    for layer, model in models(device):
        own = [prompts(device, 1, length) for length in lengths]
        states: list[Any] = []
        with torch.no_grad():
            for ids in own:
                params = InferenceParams(max_seqlen=TOKENS, max_batch_size=1)
                model(ids, inference_params=params, num_last_tokens=1)
                states.append(params.key_value_memory_dict)
            params = InferenceParams(max_seqlen=TOKENS, max_batch_size=len(own), seqlen_offset=1)
            for index in states[0]:
                pairs = zip(*(each[index] for each in states))
                params.key_value_memory_dict[index] = tuple(torch.cat(pair) for pair in pairs)
            further = prompts(device, len(own), 64)
            logits = [
                model(
                    *(token, torch.ones_like(token), params),
                    num_last_tokens=1,
                ).logits
                for token in further.split(1, dim=1)
            ]
            found = torch.cat(logits, 1)
            for ids, after, one in zip(own, further, found):
                right = model(torch.cat([ids[0], after]).unsqueeze(0)).logits[0, ids.shape[1] :]
                yield f"{layer} {ids.shape[1]}", relative_norm(one, right)


def hybrid(device: str) -> Results:
    """With attention in one layer, and a multilayer perceptron in each."""
    attention = {"num_heads": 4, "causal": True, "rotary_emb_dim": 16}
    more = {"attn_layer_idx": [1], "attn_cfg": attention, "d_intermediate": 96}
    for layer, model in models(device, n_layer=3, **more):
        for batch in (1, 3):
            out = written(model, prompts(device, batch), tokens=64)
            yield f"{layer} {batch}", off(model, out)


CHECKS: dict[str, Callable[[], Results]] = {
    f"{check.__name__}_{device}": partial(check, device)
    for check in (greedy, sampled, unequal, hybrid)
    for device in ("cpu", "cuda")
}

if __name__ == "__main__":
    checks.run(CHECKS)
