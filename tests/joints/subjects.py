"""What joints are run over.

They are mamba_ssm's blocks and language models, and transformers' models. Each is tiny and has the
same weights in every process. Without the hook, where mamba_ssm cannot be imported, the twins stand
in for it; transformers takes its own slow path.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Mapping

import torch
from torch import Tensor, nn

import jetson_mamba
from tests.joints.declared import BLOCKS, MODELS, TRANSFORMERS

WIDTH, VOCABULARY, BATCH, SEQLEN = 16, 32, 2, 11
STATE = {"d_state": 8, "headdim": 8, "chunk_size": 4}
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH}
_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
_MAMBA1 = {**_SIZES, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 2}
_MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
_BLOCKS: dict[str, dict[str, Any]] = {"Mamba": {"d_state": 4}, "Mamba2": STATE}
_BLOCKS["Mamba2Simple"] = STATE
_MODELS: dict[str, dict[str, Any]] = {
    "LM Mamba": {"ssm_cfg": {"layer": "Mamba1", "d_state": 4}},
    "LM Mamba2": {"ssm_cfg": {"layer": "Mamba2", **STATE}},
    "LM GatedMLP": {"ssm_cfg": {"layer": "Mamba2", **STATE}, "d_intermediate": 24},
}
# Each token has every expert: which of them it had would depend on rounding.
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Mamba": _MAMBA1,
    "Mamba2": {**_SIZES, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 8}
    | {"n_groups": 1, "chunk_size": 4},
    "FalconMamba": _MAMBA1,
    "Bamba": {**_SIZES, **_ATTENTION, **_MAMBA2, "num_hidden_layers": 2}
    | {"attn_layer_indices": [1]},
    "FalconH1": {**_SIZES, **_ATTENTION, **_MAMBA2, "num_hidden_layers": 1}
    | {"mamba_d_ssm": 32, "head_dim": 8},
    "GraniteMoeHybrid": {**_SIZES, **_ATTENTION, **_MAMBA2, "num_hidden_layers": 2}
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 2}
    | {"num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "NemotronH": {**_SIZES, **_ATTENTION, "layers_block_type": ["mamba", "attention", "mlp"]}
    | {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8}
    | {"chunk_size": 4, "head_dim": 8, "num_hidden_layers": 3},
    "Zamba2": {**_SIZES, **_ATTENTION, "layers_block_type": ["mamba", "hybrid"]}
    | {"num_hidden_layers": 2, "mamba_d_state": 8, "mamba_ngroups": 1, "n_mamba_heads": 4}
    | {"mamba_headdim": 8, "chunk_size": 4, "num_mem_blocks": 1, "adapter_rank": 4},
    "Jamba": {**_SIZES, **_ATTENTION, "num_hidden_layers": 2, "mamba_dt_rank": 2}
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2}
    | {"expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 2, "mamba_d_state": 4},
}
# None of these is changed by the hook, or changes what it does; not every torch has them all.
_HEAVY = (
    "torch._dynamo.backends.debugging",
    "torch._dynamo.convert_frame",
    "torch._functorch.aot_autograd",
    "torch.ao.quantization",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch.export",
    "torch.onnx",
    "torch.utils.flop_counter",
)
SUBJECTS = {
    **dict.fromkeys(_BLOCKS, BLOCKS),
    **dict.fromkeys(_MODELS, MODELS),
    **dict.fromkeys((f"transformers {name}" for name in _TRANSFORMERS), TRANSFORMERS),
}


def hooked() -> bool:
    """Whether this process has the hook."""
    return jetson_mamba.is_active()


@lru_cache(maxsize=None)
def _mamba_ssm() -> Any:
    """Its blocks and model, or their twins."""
    from tests.joints import twins

    if not hooked():
        return twins
    mamba_ssm = import_module("mamba_ssm")
    simple = import_module("mamba_ssm.modules.mamba2_simple")
    model = import_module("mamba_ssm.models.mixer_seq_simple")
    return SimpleNamespace(
        Mamba=mamba_ssm.Mamba,
        Mamba2=mamba_ssm.Mamba2,
        Mamba2Simple=simple.Mamba2Simple,
        MambaLMHeadModel=model.MambaLMHeadModel,
        Config=model.MambaConfig,
    )


def prepare() -> None:
    """Import all that any subject needs, and what many joints would each take seconds to import."""
    _mamba_ssm()
    for name in _TRANSFORMERS:
        getattr(import_module("transformers"), f"{name}ForCausalLM")
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            import_module(name)


def fill(module: nn.Module) -> None:
    """Weights that depend on nothing but their names and shapes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("A_log"):
                value = 1.2 * torch.rand(parameter.shape, generator=generator)
            elif name.endswith((".D", "norm.weight")) or name == "D":
                value = 1 + 0.2 * noise
            elif parameter.dim() < 2:
                value = 0.3 * noise
            else:
                value = noise * 0.8 / math.sqrt(parameter[0].numel())
            parameter.copy_(value.to(parameter.dtype))


class FromEmbeddings(nn.Module):
    """A language model as a function of its embeddings (batch, seqlen, width) to its logits."""

    def __init__(self, model: nn.Module, *, transformers: bool) -> None:
        super().__init__()
        self.model = model
        self.options: dict[str, Any] = {"use_cache": False} if transformers else {}
        if not transformers:
            model.backbone.embedding = nn.Identity()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seqlen, width) to (batch, seqlen, vocabulary)."""
        if self.options:
            logits: Tensor = self.model(inputs_embeds=x, **self.options).logits
        else:
            logits = self.model(x).logits
        return logits


class Subject:
    """A module or model; ``exact`` stands for any half precision that a joint asks for."""

    def __init__(self, name: str, *, exact: bool = False) -> None:
        self.name, self.kind, self.exact = name, SUBJECTS[name], exact
        generator = torch.Generator().manual_seed(7)
        self.x = torch.randn(BATCH, SEQLEN, WIDTH, generator=generator)
        self.tokens = torch.randint(3, VOCABULARY, (BATCH, SEQLEN), generator=generator)

    def low(self, dtype: torch.dtype) -> torch.dtype:
        """``dtype``, or float32 where what is computed is the measure of others."""
        return torch.float32 if self.exact else dtype

    def module(self, **made: Any) -> nn.Module:
        """A new module from (batch, seqlen, width) to (batch, seqlen, width or vocabulary)."""
        if self.kind == BLOCKS:
            block = getattr(_mamba_ssm(), self.name)(WIDTH, **_BLOCKS[self.name], **made)
            assert isinstance(block, nn.Module)
            fill(block)
            return block
        model = self.model(**made)
        return FromEmbeddings(model, transformers=self.kind == TRANSFORMERS)

    def model(self, configured: Mapping[str, Any] | None = None, **made: Any) -> Any:
        """A new language model of tokens; one of transformers may be ``configured`` otherwise."""
        if self.kind == MODELS:
            config = _mamba_ssm().Config(
                d_model=WIDTH, n_layer=2, vocab_size=VOCABULARY, **_MODELS[self.name]
            )
            model = _mamba_ssm().MambaLMHeadModel(config, **made)
        else:
            name = self.name.rpartition(" ")[2]
            package = import_module("transformers")
            options = {**_TRANSFORMERS[name], **(configured or {})}
            config = getattr(package, f"{name}Config")(**options)
            model = getattr(package, f"{name}ForCausalLM")(config)
            model.to(made.get("device"), made.get("dtype"))
        fill(model)
        return model


def mixers(module: nn.Module) -> list[Any]:
    """The Mamba layers in a module."""
    return [
        each for each in module.modules() if "A_log" in dict(each.named_parameters(recurse=False))
    ]
