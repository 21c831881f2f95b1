"""Tokens after a prompt, and prompts in pieces: the states of a block, carried on by a step."""

from .pieces import prefill
from .selective_state_update import selective_state_update
from .several_tokens import several_tokens

__all__ = ["prefill", "selective_state_update", "several_tokens"]
