"""Tokens after a prompt or a piece of one: the states of a block, carried on by a step."""

from .layers import by_launches, in_few_kernels
from .op import OP, selective_state_update
from .pieces import prefill
from .several_tokens import several_tokens
from .token_logits import vocabulary

__all__ = [
    "OP",
    "by_launches",
    "in_few_kernels",
    "prefill",
    "selective_state_update",
    "several_tokens",
    "vocabulary",
]
