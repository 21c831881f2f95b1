"""Joints with libraries that change modules, or with modules that are changed as they do it.

A row is not run where its library is not there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.joints.declared import TRANSFORMERS, joint
from tests.joints.measures import Results, gradients, loss, out_of, trained
from tests.joints.subjects import Subject, fill, mixers

THEIRS = (TRANSFORMERS,)


def _adapted(s: Subject, **options: Any) -> Any:
    """A subject with LoRA on its mixers' projections, whose weights are none of them zero."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 2, "lora_alpha": 4, "target_modules": r".*(in_proj|out_proj)", **options}
    module: Any = nn.Sequential(s.module())
    model = get_peft_model(module, LoraConfig(**settings))
    fill(model)
    return model


@joint("peft: LoRA in training")
def lora(s: Subject) -> Results:
    return trained(_adapted(s), s.x)


@joint("peft: LoRA switched off, and on again")
def lora_off(s: Subject) -> Results:
    model = _adapted(s)
    with model.disable_adapter():
        off = out_of(model, s.x)
    return {"off": off, "on": out_of(model, s.x), **trained(model, s.x)}


@joint("peft: LoRA merged and unloaded")
def lora_merged(s: Subject) -> Results:
    model = _adapted(s)
    before = out_of(model, s.x)
    merged = model.merge_and_unload()
    return {"before": before, "merged": out_of(merged, s.x), **trained(merged, s.x)}


@joint("peft: DoRA")
def dora(s: Subject) -> Results:
    return trained(_adapted(s, use_dora=True), s.x)


@joint("peft: two adapters, one after the other")
def two_adapters(s: Subject) -> Results:
    from peft import LoraConfig

    model = _adapted(s)
    target = r".*(in_proj|out_proj)"
    model.add_adapter("second", LoraConfig(r=3, lora_alpha=2, target_modules=target))
    fill(model)
    found: Results = {}
    for name in ("second", "default"):
        model.set_adapter(name)
        found[name] = out_of(model, s.x)
    return {**found, **trained(model, s.x)}


@joint("peft: LoRA on every projection there is")
def lora_everywhere(s: Subject) -> Results:
    wanted = {"in_proj", "out_proj", "x_proj", "dt_proj"}
    targets = wanted & {name.rpartition(".")[2] for name, _ in s.module().named_modules()}
    return trained(_adapted(s, target_modules=rf".*({'|'.join(sorted(targets))})"), s.x)


@joint("peft: IA3")
def ia3(s: Subject) -> Results:
    from peft import IA3Config, get_peft_model

    config = IA3Config(target_modules=r".*(in_proj|out_proj)", feedforward_modules=[])
    model: Any = get_peft_model(nn.Sequential(s.module()), config)
    fill(model)
    return trained(model, s.x)


@joint("peft: generate with LoRA", on=THEIRS)
def lora_generates(s: Subject) -> Results:
    from peft import LoraConfig, get_peft_model

    from tests.joints.language import generated

    config = LoraConfig(r=2, target_modules=["in_proj", "out_proj"])
    model = get_peft_model(s.model(), config)
    fill(model)
    return generated(s, model, do_sample=False)


@joint("peft: LoRA in bfloat16 under autocast, checkpointed", rounded=True)
def lora_low(s: Subject) -> Results:
    from torch.utils.checkpoint import checkpoint

    model = _adapted(s)

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not s.exact):
            out: Tensor = checkpoint(model, x, use_reentrant=False)
        return out.float()

    return trained(model, s.x, call)


@joint("peft: LoRA, compiled", slow=True)
def lora_compiled(s: Subject) -> Results:
    model = _adapted(s)
    return trained(model, s.x, torch.compile(model, backend="aot_eager"))


def _quantised(s: Subject, config: Any) -> Any:
    """Of a module the large projections, as a configuration of torchao has them."""
    from torchao.quantization import quantize_

    module = s.module().eval()

    def large(_: nn.Module, name: str) -> bool:
        return name.endswith(("in_proj", "out_proj"))

    quantize_(module, config, large)
    return module


@joint("torchao: int8 weights", tolerance=1e-3)
def int8_weights(s: Subject) -> Results:
    from torchao.quantization import Int8WeightOnlyConfig

    return {"out": out_of(_quantised(s, Int8WeightOnlyConfig()), s.x)}


@joint("torchao: int8 weights and activations", tolerance=2e-2)
def int8_both(s: Subject) -> Results:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return {"out": out_of(_quantised(s, Int8DynamicActivationInt8WeightConfig()), s.x)}


@joint("torchao: float8 weights", tolerance=1e-3)
def float8_weights(s: Subject) -> Results:
    from torchao.quantization import Float8WeightOnlyConfig

    return {"out": out_of(_quantised(s, Float8WeightOnlyConfig()), s.x)}


@joint("torchao: int8 weights, compiled", tolerance=1e-3, slow=True)
def int8_compiled(s: Subject) -> Results:
    from torchao.quantization import Int8WeightOnlyConfig

    compiled: Any = torch.compile(_quantised(s, Int8WeightOnlyConfig()), backend="aot_eager")
    return {"out": out_of(compiled, s.x)}


@joint("torchao: trained as if quantised (fake quantisation)", tolerance=2e-2)
def fake_quantised(s: Subject) -> Results:
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    weights = IntxFakeQuantizeConfig(torch.int8, group_size=8)
    return trained(_quantised(s, QATConfig(weight_config=weights, step="prepare")), s.x)


@joint("captum: integrated gradients, and by layers", tolerance=1e-3)
def captum(s: Subject) -> Results:
    from captum.attr import IntegratedGradients, LayerActivation, LayerGradientXActivation

    module = s.module().eval()

    def of(x: Tensor) -> Tensor:
        return module(x).flatten(1).sum(1)  # type: ignore[no-any-return]

    layer = mixers(module)[0].out_proj
    return {
        "integrated": IntegratedGradients(of).attribute(s.x, n_steps=5).float(),
        "activation": LayerActivation(of, layer).attribute(s.x),
        "gradient": LayerGradientXActivation(of, layer).attribute(s.x),
    }


@joint("captum: feature ablation and occlusion", tolerance=1e-3, slow=True)
def ablated(s: Subject) -> Results:
    from captum.attr import FeatureAblation, Occlusion

    module = s.module().eval()

    def of(x: Tensor) -> Tensor:
        return module(x).flatten(1).sum(1)  # type: ignore[no-any-return]

    with torch.no_grad():
        groups = torch.arange(s.x.shape[1])[None, :, None].expand_as(s.x[:1])
        return {
            "ablated": FeatureAblation(of).attribute(s.x, feature_mask=groups),
            "occluded": Occlusion(of).attribute(s.x, (4, s.x.shape[2]), strides=(4, 16)),
        }


class LowRank(nn.Module):
    """A projection as two, which has no weight of its own."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Linear(plain.in_features, 3, bias=False)
        self.up = nn.Linear(3, plain.out_features, bias=plain.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        """As a projection's."""
        out: Tensor = self.up(self.down(x))
        return out


@joint("projections of low rank, which have no weight", on=THEIRS)
def low_rank(s: Subject) -> Results:
    module = s.module().eval()
    for mixer in mixers(module):
        for name in ("in_proj", "out_proj"):
            setattr(mixer, name, LowRank(getattr(mixer, name)))
    fill(module)
    out = module(s.x)
    loss(out).backward()
    return {"out": out.detach(), **gradients(module)}


@joint("a weight that is a buffer, dequantised when it is read")
def buffered(s: Subject) -> Results:
    class Packed(nn.Linear):
        def __init__(self, plain: nn.Linear) -> None:
            super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
            scale = plain.weight.detach().abs().amax() / 127
            del self._parameters["weight"]
            self.register_buffer("packed", (plain.weight.detach() / scale).round().to(torch.int8))
            self.scale = float(scale)
            if plain.bias is not None:
                self.bias = plain.bias

        @property
        def weight(self) -> Tensor:  # type: ignore[override]
            packed: Tensor = self.packed.float() * self.scale  # type: ignore[operator,assignment]
            return packed

    module = s.module()
    for mixer in mixers(module):
        mixer.out_proj = Packed(mixer.out_proj)
        mixer.in_proj = Packed(mixer.in_proj)
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}


@joint("hooks with keywords, and that are called at an error too")
def keyword_hooks(s: Subject) -> Results:
    module = s.module()
    seen: list[int] = []
    for mixer in mixers(module):
        mixer.out_proj.register_forward_pre_hook(
            lambda each, given, named: seen.append(1), with_kwargs=True
        )
        mixer.in_proj.register_forward_hook(
            lambda each, given, named, out: seen.append(2), with_kwargs=True, always_call=True
        )
    found = trained(module, s.x)
    return {**found, "evaluated": out_of(module, s.x), "seen": sorted(set(seen))}


@joint("orthogonal projections (parametrizations.orthogonal)")
def orthogonal(s: Subject) -> Results:
    module = s.module()
    for mixer in mixers(module):
        nn.utils.parametrizations.orthogonal(
            mixer.out_proj, orthogonal_map="cayley", use_trivialization=False
        )
        mixer.out_proj.parametrizations.weight.original.data.normal_(
            generator=torch.Generator().manual_seed(3)
        )
    return trained(module, s.x)


@joint("parametrizations that are cached")
def cached_parametrizations(s: Subject) -> Results:
    module = s.module()
    for mixer in mixers(module):
        nn.utils.parametrizations.weight_norm(mixer.in_proj)
        nn.utils.parametrizations.weight_norm(mixer.out_proj)
    with nn.utils.parametrize.cached():
        return {"again": out_of(module, s.x), **trained(module, s.x)}


@joint("spectral_norm of the old kind")
def old_spectral_norm(s: Subject) -> Results:
    module = s.module().eval()
    for mixer in mixers(module):
        torch.manual_seed(5)
        nn.utils.spectral_norm(mixer.out_proj)
    return {"evaluated": out_of(module, s.x), **trained(module.eval(), s.x)}
