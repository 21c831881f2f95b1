"""Models whose states are arguments, so that a runtime can call them token by token.

A model of mamba_ssm keeps the states of its layers in a cache that it writes to. Here they are
arguments and results, in one order: for each layer the convolution's, then the scan's.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from jetson_mamba.errors import CannotRun


class WithStates(NamedTuple):
    """A module to export, with arguments of batch 1, and the names of inputs and outputs."""

    module: nn.Module
    args: tuple[Tensor, ...]
    inputs: list[str]
    outputs: list[str]
    is_variadic: bool = False  # after the first argument


class _BlockStep(nn.Module):
    """One step of a block."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> Any:
        """Output (batch, 1, d_model) and both states."""
        step: Any = self.block.step
        return step(hidden_states, conv_state.clone(), ssm_state.clone())


class _Prompt(nn.Module):
    """A language model on a prompt, from nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        """Logits of the last token (batch, vocabulary) and the states after it."""
        model: Any = self.model
        return self._run(input_ids, model.allocate_inference_cache(input_ids.shape[0], 1), 0)

    def _run(self, input_ids: Tensor, cache: Any, offset: int) -> Any:
        model: Any = self.model
        params = _parameters(cache, offset)
        logits = model(input_ids, inference_params=params, num_last_tokens=1).logits
        return (logits[:, -1], *(state for pair in cache.values() for state in pair))


class _TokenStep(_Prompt):
    """A language model on one more token."""

    def forward(self, input_ids: Tensor, *states: Tensor) -> Any:
        """As of a prompt; the states are those before, in its order."""
        own = [state.clone() for state in states]
        cache = dict(enumerate(zip(own[::2], own[1::2])))
        return self._run(input_ids, cache, 1)


def _parameters(cache: Any, offset: int) -> Any:
    from mamba_ssm.utils.generation import InferenceParams

    return InferenceParams(
        max_seqlen=1, max_batch_size=1, seqlen_offset=offset, key_value_memory_dict=cache
    )


class _WithoutCache(nn.Module):
    """A model of transformers, which is asked for its first result alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        """Logits, or the last hidden states (batch, seqlen, ...)."""
        return self.model(input_ids=input_ids, use_cache=False, return_dict=True)[0]


def plain(model: nn.Module) -> nn.Module:
    """A model whose results are tensors: one of transformers gives its cache back as well."""
    is_of_transformers = any(
        each.__module__.startswith("transformers.") and each.__name__ == "PreTrainedModel"
        for each in type(model).__mro__
    )
    return _WithoutCache(model).train(model.training) if is_of_transformers else model


def is_language_model(model: nn.Module) -> bool:
    """Whether a model makes text of tokens, with a cache for its states."""
    return hasattr(model, "lm_head") and hasattr(model, "allocate_inference_cache")


def block_step(block: nn.Module) -> WithStates:
    """A step of ``Mamba`` or ``Mamba2``.

    Raises CannotRun for a module that has none.
    """
    allocate: Callable[..., Any] | None = getattr(block, "allocate_inference_cache", None)
    if allocate is None or not hasattr(block, "step"):
        raise CannotRun(
            f"--step: expected a block or a language model of mamba_ssm, which step token by "
            f"token, found {type(block).__name__}; export it without --step"
        )
    conv_state, ssm_state = (torch.randn_like(state) for state in allocate(1, 1))
    some: Any = next(block.parameters())
    x = torch.randn(1, 1, int(getattr(block, "d_model")), dtype=some.dtype)  # noqa: B009
    names = ["hidden_states", "conv_state", "ssm_state"]
    outputs = ["out", "conv_state_after", "ssm_state_after"]
    return WithStates(_BlockStep(block), (x, conv_state, ssm_state), names, outputs)


def prompt(model: nn.Module, length: int) -> WithStates:
    """A language model on a prompt of that length."""
    cache = _cache(model)
    names = _state_names(cache)
    ids = torch.arange(length).unsqueeze(0) % 7
    outputs = ["logits", *(f"{name}_after" for name in names)]
    return WithStates(_Prompt(model), (ids,), ["input_ids"], outputs)


def token_step(model: nn.Module) -> WithStates:
    """A language model on one more token, given the states that the prompt or a step gave."""
    cache = _cache(model)
    names = _state_names(cache)
    states = [torch.randn_like(state) for pair in cache.values() for state in pair]
    outputs = ["logits", *(f"{name}_after" for name in names)]
    ids = torch.tensor([[1]])
    inputs = ["input_ids", *names]
    return WithStates(_TokenStep(model), (ids, *states), inputs, outputs, is_variadic=True)


def _cache(model: Any) -> Any:
    cache = model.allocate_inference_cache(1, 1)
    if any(len(states) != 2 or states[1].dim() < 3 for states in cache.values()) or any(
        hasattr(module, "rotary_emb_dim") for module in model.modules()
    ):
        raise CannotRun(
            "model: expected layers of Mamba and Mamba2 alone, found attention, whose cache grows "
            "with the text; export the model without --step"
        )
    return cache


def _state_names(cache: Any) -> list[str]:
    return [f"{kind}_state_{layer}" for layer in cache for kind in ("conv", "ssm")]
