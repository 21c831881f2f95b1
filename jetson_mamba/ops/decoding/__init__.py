"""Tokens after a prompt or a piece of one: the states of a block, carried on by a step."""

from .op import OP, selective_state_update
from .pieces import prefill
from .several_tokens import several_tokens

__all__ = ["OP", "prefill", "selective_state_update", "several_tokens"]
