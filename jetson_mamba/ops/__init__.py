"""The operations that the modified copies call, each by whichever backend works here.

The copies know these names and nothing else of this package.
"""

from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.dispatch.block_modules import calling_modules
from jetson_mamba.dispatch.in_place import addmm
from jetson_mamba.dispatch.paths import through_autograd
from jetson_mamba.dispatch.projections import may_be_fused
from jetson_mamba.dispatch.selection import backend, read_variable
from jetson_mamba.dispatch.triton_dispatch import on_a_gpu, where_triton_runs
from jetson_mamba.dispatch.twice import twice_differentiable
from jetson_mamba.dispatch.unchecked import by_name, unchecked
from jetson_mamba.ops.attention import RotaryEmbedding, flash_attn_with_kvcache
from jetson_mamba.ops.causal_conv1d import (
    causal_conv1d_bwd,
    causal_conv1d_fn,
    causal_conv1d_update,
)
from jetson_mamba.ops.decoding import (
    by_launches,
    in_few_kernels,
    selective_state_update,
    several_tokens,
    vocabulary,
)
from jetson_mamba.ops.mamba3 import (
    apply_rotary_qk_inference_fwd,
    mamba3_mimo,
    mamba3_siso_combined,
    mamba3_siso_step,
    mamba3_step_fn,
)
from jetson_mamba.ops.mamba_inner import mamba_inner_fn, through_inner_autograd
from jetson_mamba.ops.norms import (
    gated_norm_backward,
    gated_norm_forward,
    layer_norm_again,
    layer_norm_fn,
    layer_norm_linear_fn,
    layer_norm_of_1,
    layernorm_fn,
    norm_forward,
    norm_forward_of_1,
    rms_norm_fn,
    rms_norm_forward,
    rmsnorm_fn,
    through_norm_autograd,
)
from jetson_mamba.ops.selective_scan import (
    selective_scan_bwd,
    selective_scan_fn,
    selective_scan_fwd,
)
from jetson_mamba.ops.ssd import (
    bmm_chunk_forward,
    chunk_cumsum_forward,
    chunk_scan,
    chunk_scan_combined_backward,
    chunk_scan_forward,
    chunk_state,
    chunk_state_forward,
    chunk_state_varlen,
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
    state_passing,
    state_passing_forward,
    through_mixer_autograd,
    through_scan_autograd,
    triton_runs_on,
)
from jetson_mamba.ops.swiglu import swiglu_backward, swiglu_forward
from jetson_mamba.replay.blocks import forward_by_graph, step_by_graph
from jetson_mamba.replay.models import decoding_by_graph

__all__ = [
    "RotaryEmbedding",
    "addmm",
    "apply_rotary_qk_inference_fwd",
    "autocast_dtype",
    "backend",
    "bmm_chunk_forward",
    "by_launches",
    "by_name",
    "calling_modules",
    "causal_conv1d_bwd",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "chunk_cumsum_forward",
    "chunk_scan",
    "chunk_scan_combined_backward",
    "chunk_scan_forward",
    "chunk_state",
    "chunk_state_forward",
    "chunk_state_varlen",
    "decoding_by_graph",
    "flash_attn_with_kvcache",
    "forward_by_graph",
    "gated_norm_backward",
    "gated_norm_forward",
    "in_few_kernels",
    "layer_norm_again",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_of_1",
    "layernorm_fn",
    "mamba3_mimo",
    "mamba3_siso_combined",
    "mamba3_siso_step",
    "mamba3_step_fn",
    "mamba_chunk_scan_combined",
    "mamba_inner_fn",
    "mamba_split_conv1d_scan_combined",
    "may_be_fused",
    "norm_forward",
    "norm_forward_of_1",
    "on_a_gpu",
    "rms_norm_fn",
    "rms_norm_forward",
    "rmsnorm_fn",
    "selective_scan_bwd",
    "selective_scan_fn",
    "selective_scan_fwd",
    "selective_state_update",
    "several_tokens",
    "state_passing",
    "state_passing_forward",
    "step_by_graph",
    "swiglu_backward",
    "swiglu_forward",
    "through_autograd",
    "through_inner_autograd",
    "through_mixer_autograd",
    "through_norm_autograd",
    "through_scan_autograd",
    "triton_runs_on",
    "twice_differentiable",
    "unchecked",
    "vocabulary",
    "where_triton_runs",
]

read_variable()
