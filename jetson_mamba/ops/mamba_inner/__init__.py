"""A Mamba block after its input projection: what modified copies call."""

from .op import mamba_inner_fn, through_inner_autograd

__all__ = ["mamba_inner_fn", "through_inner_autograd"]
