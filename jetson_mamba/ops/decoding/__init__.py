"""One token at a time: the states of a block, carried on by a step."""

from .op import OP, selective_state_update

__all__ = ["OP", "selective_state_update"]
