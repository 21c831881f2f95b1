"""Runs transformers' Mamba models on whatever functions they find.

The models are tiny and have random weights. ``python -m tests.releases.transformers_models FILE
DEVICE WHAT...`` writes to FILE what each model computes (``COMPUTED``), and prints as JSON which
functions its module has found and how often an op was called. Whoever starts the process decides
what there is to be found: a ``mamba_ssm`` that jetson_mamba lets be imported, and the stand-in, or
neither.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from importlib import import_module
from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import Op

VOCABULARY, BATCH, SEQLEN, STEPS = 50, 2, 21, 3
SHARED = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "Mamba": {**SHARED, "state_size": 8, "time_step_rank": 4},
    "Mamba2": {**SHARED, "state_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1}
    | {"chunk_size": 16},
}
# By model, the functions that its module looks for in causal_conv1d and mamba_ssm.
FUNCTIONS = {
    "Mamba": (
        "causal_conv1d_fn",
        "causal_conv1d_update",
        "mamba_inner_fn",
        "mamba_selective_scan",
        "mamba_selective_state_update",
    ),
    "Mamba2": (
        "causal_conv1d_fn",
        "causal_conv1d_update",
        "mamba2_split_conv1d_scan_combined",
        "mamba2_chunk_scan",
        "mamba2_selective_state_update",
    ),
}


def module(name: str) -> Any:
    """The module that defines a model."""
    return import_module(f"transformers.models.{name.lower()}.modeling_{name.lower()}")


def build(name: str, device: str) -> Any:
    """A model with the same weights in every process."""
    torch.manual_seed(0)
    package = import_module("transformers")
    config = getattr(package, f"{name}Config")(**MODELS[name])
    model = getattr(package, f"{name}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # What a constructor sets to zero would hide what it is multiplied with.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.to(device)


def found(name: str) -> dict[str, str]:
    """The module of each function that the model's wrappers call."""
    home = module(name)
    return {
        function: inspect.getclosurevars(getattr(home, function))
        .nonlocals["implementation"]
        .__module__
        for function in FUNCTIONS[name]
    }


def differentiated(model: Any, tokens: Tensor, training: bool) -> dict[str, Tensor]:
    """The logits and every gradient; in training by one function for all of a mixer."""
    model.train(training)
    model.zero_grad()
    out = model(tokens, labels=tokens, use_cache=False)
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"logits": out.logits.detach(), **gradients}


def continued(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The logits, and the states that a generation would go on from."""
    model.eval()
    with torch.no_grad():
        out = model(tokens, use_cache=True)
    states = {}
    for index, layer in enumerate(out.cache_params.layers):
        states[f"conv state {index}"] = layer.conv_states[0]
        states[f"state {index}"] = layer.recurrent_states[0]
    return {"logits": out.logits, **states}


def decoded(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The logits of single steps, each from the states before it."""
    model.eval()
    with torch.no_grad():
        out = model(tokens[:, :-STEPS], use_cache=True)
        logits = {}
        for step in range(-STEPS, 0):
            out = model(
                tokens[:, step : step + 1 or None], cache_params=out.cache_params, use_cache=True
            )
            logits[f"logits {step}"] = out.logits
    return logits


def generated(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """The tokens of a greedy generation, and the logits that they were chosen by."""
    model.eval()
    out = model.generate(
        tokens,
        max_new_tokens=2 * STEPS,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return {"sequences": out.sequences, "logits": torch.stack(out.logits)}


COMPUTED: dict[str, Callable[[Any, Tensor], dict[str, Tensor]]] = {
    "training": lambda model, tokens: differentiated(model, tokens, True),
    "evaluated": lambda model, tokens: differentiated(model, tokens, False),
    "continued": continued,
    "decoded": decoded,
    "generated": generated,
}


def count(calls: Counter[str]) -> None:
    """Count how often a call of each op has looked up its backend."""

    def counted(lookup: Any) -> Any:
        def look(op: Any, case: Any) -> Any:
            found = lookup(op, case)
            calls[op.name] += found is not None
            return found

        return look

    Op.implementation = counted(Op.implementation)  # type: ignore[method-assign]
    Op.find = counted(Op.find)  # type: ignore[method-assign]


def main() -> None:
    """Run both models."""
    path, device, *wanted = sys.argv[1:]
    torch.set_num_threads(1)
    tokens = torch.randint(VOCABULARY, (BATCH, SEQLEN), generator=torch.Generator().manual_seed(2))
    computed: dict[str, dict[str, Tensor]] = {}
    report: dict[str, Any] = {"found": {}, "calls": {}}
    calls: Counter[str] = Counter()
    count(calls)
    for name in MODELS:
        model = build(name, device)
        report["found"][name] = found(name)
        for what in wanted:
            calls.clear()
            results = COMPUTED[what](model, tokens.to(device))
            computed[f"{name} {what}"] = {each: result.cpu() for each, result in results.items()}
            report["calls"][f"{name} {what}"] = dict(calls)
    torch.save(computed, path)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
