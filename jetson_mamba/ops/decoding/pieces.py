"""A long prompt in little memory: piece by piece, each from the states that the one before left."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def prefill(model: nn.Module, input_ids: Tensor, inference_params: Any, piece: int = 256) -> Tensor:
    """Read a prompt into the states of a model of mamba_ssm, ``piece`` tokens at a time.

    Args:
        model: one whose ``forward`` takes ``inference_params`` and ``num_last_tokens``, as
            ``MambaLMHeadModel``.
        input_ids: (batch, seqlen), the prompt, or what goes on after ``inference_params``.
        inference_params: mamba_ssm's ``InferenceParams``. Its states are written, and its
            ``seqlen_offset`` is raised by seqlen, so that the next call of the model is a step.
        piece: tokens of a piece, at least 1. Memory beyond the states grows with it, and not with
            seqlen.

    Returns:
        The logits that follow the last token, (batch, 1, vocabulary).

    Raises:
        TypeError: the model takes no ``inference_params``, or ids are no integers.
        ValueError: ``piece`` is less than 1, or there is no token.
    """
    taken = signature(model.forward).parameters
    if not {"inference_params", "num_last_tokens"} <= taken.keys():
        raise TypeError(
            "model: expected a model of mamba_ssm, whose forward takes inference_params and "
            f"num_last_tokens, found {type(model).__name__}, which takes {', '.join(taken)}"
        )
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        found = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise TypeError(f"input_ids: expected a tensor of integers, found {found}")
    if isinstance(piece, bool) or not isinstance(piece, int) or piece < 1:
        raise ValueError(f"piece: expected an integer of at least 1, found {piece!r}")
    if input_ids.ndim != 2 or input_ids.shape[1] < 1:
        raise ValueError(
            f"input_ids: expected (batch, seqlen), seqlen at least 1, found {[*input_ids.shape]}"
        )
    logits: Any = None
    for ids in input_ids.split(piece, dim=1):
        logits = None  # the one before is not needed beside it
        logits = model(ids, inference_params=inference_params, num_last_tokens=1).logits
        inference_params.seqlen_offset += ids.shape[1]
    result: Tensor = logits
    return result
