"""Trains transformers' Mamba models a step with things on their projections.

``python -m tests.modules.models FILE`` writes to FILE what each model gives with each thing on each
projection of its first mixer: the loss, the gradients, and how often the module was called. Whoever
starts the process decides whether there is a ``mamba_ssm`` that jetson_mamba lets be imported.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any, Iterator

import torch
from torch import Tensor

from tests.modules.things import HOOKS, THINGS

ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 32}
MAMBA = {"state_size": 8, "time_step_rank": 4, "num_hidden_layers": 1}
HEADS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
MIXED = {**ATTENTION, "num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "Mamba": MAMBA,
    "FalconMamba": MAMBA,
    "Mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    | {"num_hidden_layers": 1},
    "Bamba": {**MIXED, **HEADS, "attn_layer_indices": [1]},
    "FalconH1": {**ATTENTION, **HEADS, "num_hidden_layers": 1, "mamba_d_ssm": 32, "head_dim": 8},
    "GraniteMoeHybrid": {**MIXED, **HEADS, "layer_types": ["mamba", "attention"]}
    | {"shared_intermediate_size": 16, "num_local_experts": 0},
    "NemotronH": {**ATTENTION, "layers_block_type": ["mamba", "attention"], "ssm_state_size": 8}
    | {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "head_dim": 8},
    "Zamba2": {**MIXED, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1}
    | {"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 8, "mamba_ngroups": 1},
    "Jamba": {**MIXED, "mamba_d_state": 8, "mamba_dt_rank": 4, "num_experts": 2}
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": True},
}
PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj", "norm")
CHOSEN = ("adapter", "forward hook", "backward hook", "parametrization")


def build(name: str) -> Any:
    """A model in training, with the same weights in every process, all of which matter."""
    torch.manual_seed(0)
    package = import_module("transformers")
    shared = {"vocab_size": 50, "hidden_size": 16}
    config = getattr(package, f"{name}Config")(**shared, **MODELS[name])
    model = getattr(package, f"{name}ForCausalLM")(config).train()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "conv1d" in parameter_name:
                parameter.add_(torch.randn_like(parameter))
    return model


def mixer(model: Any) -> Any:
    """Its first Mamba mixer."""
    return next(each for each in model.modules() if hasattr(each, "A_log"))


def trained(model: Any, **more: Tensor) -> dict[str, Tensor]:
    """The loss and the gradients of a step."""
    torch.manual_seed(2)
    tokens = torch.randint(3, 50, (2, 9))
    loss = model(tokens, labels=tokens, use_cache=False, **more).loss
    loss.backward()
    named = model.named_parameters()
    return {"loss": loss.detach(), **{name: x.grad for name, x in named if x.grad is not None}}


def computed() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """By model, projection and thing, and for sequences with padding before them."""
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    for name in MODELS:
        yield f"{name}, padded", trained(build(name), attention_mask=mask)
        for projection in PROJECTIONS:
            for what in CHOSEN:
                model = build(name)
                if hasattr(mixer(model), projection) and (projection != "norm" or what in HOOKS):
                    THINGS[what](mixer(model), projection)
                    found = trained(model)
                    calls: list[int] = []
                    module = getattr(mixer(model), projection)
                    module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
                    trained(model)
                    found["calls"] = torch.tensor(len(calls))
                    yield f"{name}, {projection}, {what}", found


def compiled() -> Iterator[tuple[str, dict[str, Tensor]]]:
    """In graphs of torch.compile."""
    for name, projection, what in (
        ("Mamba", "x_proj", "adapter"),
        ("Mamba2", "out_proj", "forward hook"),
    ):
        torch._dynamo.reset()
        model = build(name)
        THINGS[what](mixer(model), projection)
        whole = torch.compile(model, backend="eager")
        found = trained(whole)
        yield (
            f"{name}, {projection}, {what}, compiled",
            {each.replace("_orig_mod.", ""): value for each, value in found.items()},
        )


def main() -> None:
    """Compute all of it."""
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    torch.save({**dict(computed()), **dict(compiled())}, sys.argv[1])


if __name__ == "__main__":
    main()
