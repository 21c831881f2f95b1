"""Faults of mamba-ssm itself that the overrides leave as they are, with a way around each.

They are found in the text that is installed, so a release that has mended one does not show it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Iterator

from jetson_mamba.report.installed import module_file


@dataclass(frozen=True)
class UpstreamFault:
    """What goes wrong in the module ``module``, how it shows, and what to do instead."""

    name: str
    module: str
    what: str
    seen: str
    instead: str


@dataclass(frozen=True)
class _Known:
    """A fault, and the words by which a text has it: all of ``has``, none of ``lacks``."""

    fault: UpstreamFault
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()


def _known(
    name: str, module: str, what: str, seen: str, instead: str, *has: str, lacks: str = ""
) -> _Known:
    fault = UpstreamFault(name, f"mamba_ssm.{module}", what, seen, instead)
    return _Known(fault, has, (lacks,) if lacks else ())


KNOWN = (
    _known(
        "projection-bias",
        "ops.selective_scan_interface",
        "Mamba(bias=True) cannot be trained through MambaInnerFn",
        "MambaInnerFnBackward returned an invalid gradient at index 6",
        "nothing where jetson_mamba computes the block; else Mamba(..., use_fast_path=False)",
        r"dout_proj_bias = dout\.sum\(dim=\(0, 1\)\)",
    ),
    _known(
        "d-has-hdim",
        "modules.mamba2",
        "Mamba2(D_has_hdim=True) cannot take a step of decoding",
        "D: expected shape (nheads=…, dim=…), or an assertion on the shape of D",
        "compute the whole sequence at each step, or train with D_has_hdim=False",
        r"D_has_hdim",
        r'D = repeat\(self\.D, "h -> h p"',
    ),
    _known(
        "cuda-graph",
        "utils.generation",
        "generate(cg=True) needs CUDA",
        "Tried to instantiate dummy base class _graph_pool_handle",
        "generate(cg=False) on a CPU; jetson_mamba captures blocks by itself on a GPU",
        r"torch\.cuda\.graphs\.graph_pool_handle\(\)",
    ),
    _known(
        "attention-convolution",
        "modules.mha",
        "MHA(d_conv > 0) keeps the outputs of its convolution for the next step, not its inputs",
        "nothing: after a prompt of any length the tokens that are decoded are wrong",
        "d_conv=0; with a trained d_conv compute the whole sequence at each step, without a cache",
        r"conv_state\.copy_\(F\.pad\(qkv_t",
        r"qkv_t = rearrange\(qkv, ",
    ),
    _known(
        "mamba3-decoding",
        "modules.mamba3",
        "a Mamba3 block hands its step a sequence of one token, and the step wants a token",
        'Error while processing rearrange-reduction pattern "b (r g s) -> b r g s"',
        "block.step(hidden_states[:, 0], *states) with the states of "
        "inference_params.key_value_memory_dict[block.layer_idx]",
        r"self\.step\(u, angle_dt_state",
        r'B = rearrange\(B, "b \(r g s\)',
    ),
    _known(
        "mamba3-groups",
        "modules.mamba3",
        "Mamba3(ngroups > 1) cannot take a step of decoding",
        "The expanded size of the tensor must match the existing size at non-singleton dimension 2",
        "compute the whole sequence at each step, or train with ngroups=1",
        r"B = B\.expand\(-1, -1, self\.nheads, -1\)",
    ),
    _known(
        "mamba3-dtype",
        "modules.mamba3",
        "Mamba3(is_mimo=True, is_outproj_norm=True) runs in float32 alone",
        "expected scalar type Float but found BFloat16",
        "keep mimo_o and mimo_z in float32 (block.mimo_o.data = block.mimo_o.data.float()), or use "
        "torch.autocast",
        r'y = rearrange\(y, "b l r h p -> b l r \(h p\)"\)\.float\(\)',
        r'torch\.einsum\("blrhp,hrp->blhp", y, self\.mimo_o\)',
        lacks=r"self\.fuse_pregate_headwise_norm",
    ),
    _known(
        "mamba3-blackwell",
        "ops.triton.mamba3.mamba3_siso_fwd",
        "Mamba-3's Triton kernels are pipelined on GPUs of compute capability 10 and 12, where "
        "Triton compiles that wrongly",
        "nothing: the outputs are wrong",
        "a mamba-ssm whose mamba3_siso_fwd.py chooses num_stages == 1 there",
        r"for s in \[1, 2, 3\]",
        lacks=r"early_config_prune",
    ),
    _known(
        "mamba3-packed-states",
        "ops.tilelang.mamba3.mamba3_mimo",
        "mamba3_mimo gives every packed sequence the last V of all as its state",
        "nothing: what is decoded after packed prompts is wrong on upstream's kernels",
        "prompts one by one; jetson_mamba's own way has each its own",
        r"Final_V = V\[:, -1, :, :\]",
    ),
)


def faults(package: str) -> tuple[UpstreamFault, ...]:
    """Those that the mamba_ssm in the folder ``package`` has."""
    return tuple(_found(package))


def _found(package: str) -> Iterator[UpstreamFault]:
    texts: dict[str, str] = {}
    for known in KNOWN:
        path = module_file(package, known.fault.module)
        if path not in texts:
            texts[path] = _text(path)
        text = texts[path]
        if all(re.search(each, text) for each in known.has) and not any(
            re.search(each, text) for each in known.lacks
        ):
            yield known.fault


def _text(path: str) -> str:
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
