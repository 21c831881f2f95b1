"""Attention in hybrids, without flash-attn.

Where flash-attn cannot be imported the text decodes by torch's own attention, with the mask of a
first step: each token attends to the first alone. It refuses a rotary embedding. With functions of
ours in the place of flash-attn's it takes the way that it takes with those.
"""

from jetson_mamba.rewrite import Absent, Expression, ImportBeside, Override

BESIDE = "scaled_dot_product_attention"
# Up to 2.2.x the way of flash-attn cuts the pair of caches where it means the first of them.
PAIR = "inference_params.key_value_memory_dict[self.layer_idx]"

OVERRIDE = Override(
    target="mamba_ssm.modules.mha",
    edits=(
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
        Absent(
            of="flash_attn.flash_attn_with_kvcache",
            becomes="jetson_mamba.ops.flash_attn_with_kvcache",
            beside=BESIDE,
        ),
        Absent(
            of="flash_attn.layers.rotary.RotaryEmbedding",
            becomes="jetson_mamba.ops.RotaryEmbedding",
            beside=BESIDE,
        ),
        Expression(
            of=f"{PAIR}[:batch]", becomes=f"{PAIR}[0][:batch]", parameter="inference_params"
        ),
    ),
    required=False,
)
