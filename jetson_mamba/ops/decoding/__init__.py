"""One token at a time: the states of a block, carried on by a step."""

from .selective_state_update import selective_state_update

__all__ = ["selective_state_update"]
