"""What ``mamba_ssm.modules.mha`` takes of flash-attn."""

from .op import RotaryEmbedding, flash_attn_with_kvcache

__all__ = ["RotaryEmbedding", "flash_attn_with_kvcache"]
