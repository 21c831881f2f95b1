"""Projections that are changed, wrapped, watched, shared or frozen: as modules they are called."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.joints.declared import BLOCKS, MODELS, TRANSFORMERS, joint
from tests.joints.measures import Results, gradients, loss, out_of, trained
from tests.joints.subjects import Subject, mixers

PROJECTIONS = ("in_proj", "x_proj", "out_proj")
# Their slow paths call these as modules too; mamba_ssm's own blocks take their weights.
MORE = ("conv1d", "dt_proj")


class Adapter(nn.Module):
    """A low rank beside a projection, as PEFT's LoRA is."""

    def __init__(self, base: nn.Linear, name: str) -> None:
        super().__init__()
        self.base_layer = base
        generator = torch.Generator().manual_seed(len(name))
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)
        with torch.no_grad():
            for each in (self.lora_A, self.lora_B):
                each.weight.copy_(0.3 * torch.randn(each.weight.shape, generator=generator))

    @property
    def weight(self) -> Tensor:
        """The base's, as PEFT's layers have it."""
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor | None:
        """The base's."""
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """The base's output and what is learnt."""
        out: Tensor = self.base_layer(x) + self.lora_B(self.lora_A(x))
        return out


def _each(
    module: nn.Module, change: Callable[[Any, str], Any], names: tuple[str, ...] = PROJECTIONS
) -> int:
    """Call ``change`` with each projection of each mixer, and put in its place what it returns."""
    changed = 0
    for mixer in mixers(module):
        for name in names:
            if hasattr(mixer, name):
                new = change(getattr(mixer, name), name)
                if new is not None:
                    setattr(mixer, name, new)
                changed += 1
    if not changed:
        raise AssertionError("no projection of that name")
    return changed


def _both(module: nn.Module, x: Tensor) -> Results:
    """Evaluated without gradients, and a step of training."""
    return {"evaluated": out_of(module, x), **trained(module, x)}


def _adapted(s: Subject, *names: str) -> Results:
    module = s.module().requires_grad_(False)
    _each(module, Adapter, names)
    return _both(module, s.x)


@joint("an adapter on out_proj")
def adapter_out(s: Subject) -> Results:
    return _adapted(s, "out_proj")


@joint("an adapter on in_proj")
def adapter_in(s: Subject) -> Results:
    return _adapted(s, "in_proj")


@joint("adapters on x_proj, in_proj and out_proj")
def adapter_all(s: Subject) -> Results:
    return _adapted(s, *PROJECTIONS)


@joint("an adapter that is put there after calls without it")
def adapter_later(s: Subject) -> Results:
    module = s.module()
    before = out_of(module, s.x)
    _each(module, Adapter)
    return {"before": before, **_both(module, s.x)}


@joint("an adapter that is merged and taken away")
def adapter_merged(s: Subject) -> Results:
    module = s.module()
    _each(module, Adapter)
    first = out_of(module, s.x)

    def merge(adapter: Any, _: str) -> nn.Linear:
        with torch.no_grad():
            adapter.base_layer.weight += adapter.lora_B.weight @ adapter.lora_A.weight
        base: nn.Linear = adapter.base_layer
        return base

    _each(module, merge)
    return {"adapted": first, **_both(module, s.x)}


@joint("a subclass of Linear with a forward of its own")
def subclass(s: Subject) -> Results:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 1.5 * super().forward(x)

    def change(linear: nn.Linear, _: str) -> nn.Linear:
        made = Scaled(linear.in_features, linear.out_features, bias=linear.bias is not None)
        made.load_state_dict(linear.state_dict())
        return made

    module = s.module()
    _each(module, change)
    return _both(module, s.x)


@joint("forward bound anew on an instance")
def forward_of_instance(s: Subject) -> Results:
    def change(linear: nn.Linear, _: str) -> None:
        forward = linear.forward
        vars(linear)["forward"] = lambda x: 1.5 * forward(x)

    module = s.module()
    _each(module, change)
    return _both(module, s.x)


def _hooked(s: Subject, names: tuple[str, ...]) -> Results:
    module = s.module()
    seen: list[str] = []

    def change(linear: nn.Module, name: str) -> None:
        def hook(_: nn.Module, args: Any, out: Tensor) -> Tensor:
            seen.append(name)
            return 1.25 * out

        linear.register_forward_hook(hook)

    _each(module, change, names)
    return {**_both(module, s.x), "seen": sorted(seen)}


@joint("forward hooks on projections")
def forward_hooks(s: Subject) -> Results:
    return _hooked(s, PROJECTIONS)


@joint("forward hooks on conv1d and dt_proj", on=(TRANSFORMERS,))
def forward_hooks_more(s: Subject) -> Results:
    return _hooked(s, MORE)


@joint("forward pre-hooks on projections")
def pre_hooks(s: Subject) -> Results:
    module = s.module()
    _each(
        module,
        lambda linear, _: (
            linear.register_forward_pre_hook(lambda _, args: (1.25 * args[0],)) and None
        ),
    )
    return _both(module, s.x)


@joint("full backward hooks on projections")
def backward_hooks(s: Subject) -> Results:
    module = s.module()
    seen: list[str] = []

    def change(linear: nn.Module, name: str) -> None:
        def hook(_: nn.Module, dinputs: Any, doutputs: Any) -> Any:
            seen.append(f"{name} {len(dinputs)} {len(doutputs)}")
            return tuple(None if each is None else 2 * each for each in dinputs)

        linear.register_full_backward_hook(hook)

    _each(module, change)
    found = trained(module, s.x)
    return {**found, "seen": sorted(seen)}


@joint("full backward pre-hooks on projections")
def backward_pre_hooks(s: Subject) -> Results:
    module = s.module()
    _each(
        module,
        lambda linear, _: (
            linear.register_full_backward_pre_hook(
                lambda _, doutputs: tuple(2 * each for each in doutputs)
            )
            and None
        ),
    )
    return trained(module, s.x)


@joint("hooks on every module, of the process")
def global_hooks(s: Subject) -> Results:
    module = s.module()
    seen: set[str] = set()
    handle = nn.modules.module.register_module_forward_hook(
        lambda called, *_: seen.add(type(called).__name__)
    )
    found = trained(module, s.x)
    handle.remove()
    linears = sum(isinstance(each, nn.Linear) for each in module.modules())
    return {**found, "linears": linears, "called": "Linear" in seen}


@joint("activations that a hook collects")
def collected(s: Subject) -> Results:
    module = s.module()
    kept: dict[str, Tensor] = {}

    for index, mixer in enumerate(mixers(module)):
        for name in PROJECTIONS:
            if hasattr(mixer, name):
                getattr(mixer, name).register_forward_hook(
                    lambda _, args, out, key=f"{name} {index}": kept.update({key: out.detach()})
                )
    out = out_of(module, s.x)
    return {"out": out, **{f"{k} of {v.numel()}": v.flatten().sort()[0] for k, v in kept.items()}}


@joint("a summary by hooks (torchinfo)")
def summary(s: Subject) -> Results:
    module = s.module().eval()
    shapes: dict[str, int] = {}
    for name, each in module.named_modules():
        if isinstance(each, nn.Linear):
            each.register_forward_hook(
                lambda _, args, out, name=name: shapes.update({name: out.numel()})
            )
    with torch.no_grad():
        module(s.x)
    return {"linears": sorted(shapes.items())}


@joint("weight_norm on projections")
def weight_norm(s: Subject) -> Results:
    module = s.module()
    _each(module, lambda linear, _: parametrizations.weight_norm(linear))
    return _both(module, s.x)


@joint("spectral_norm on projections")
def spectral_norm(s: Subject) -> Results:
    module = s.module()
    torch.manual_seed(3)
    _each(module, lambda linear, _: parametrizations.spectral_norm(linear), ("out_proj",))
    module.eval()
    return {"evaluated": out_of(module, s.x)}


@joint("a parametrization of one's own")
def parametrized(s: Subject) -> Results:
    class Halved(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    module = s.module()
    _each(
        module, lambda linear, _: parametrize.register_parametrization(linear, "weight", Halved())
    )
    return _both(module, s.x)


@joint("weight_norm of the old kind")
def old_weight_norm(s: Subject) -> Results:
    module = s.module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _each(module, lambda linear, _: nn.utils.weight_norm(linear))
    return _both(module, s.x)


@joint("pruned projections")
def pruned(s: Subject) -> Results:
    module = s.module()
    _each(module, lambda linear, _: prune.l1_unstructured(linear, "weight", 0.5))
    return _both(module, s.x)


@joint("pruned and made permanent")
def pruned_for_good(s: Subject) -> Results:
    module = s.module()
    _each(module, lambda linear, _: prune.l1_unstructured(linear, "weight", 0.5))
    _each(module, lambda linear, _: prune.remove(linear, "weight"))
    return _both(module, s.x)


@joint("dynamic int8 quantisation", tolerance=2e-2)
def quantised(s: Subject) -> Results:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.ao.quantization.quantize_dynamic(s.module().eval(), {nn.Linear})
    return {"out": out_of(module, s.x)}


@joint("projections with a bias", on=(BLOCKS,))
def with_bias(s: Subject) -> Results:
    module = s.module()

    def change(linear: nn.Linear, name: str) -> None:
        linear.bias = nn.Parameter(torch.linspace(-0.5, 0.5, linear.out_features))

    _each(module, change, ("in_proj", "out_proj"))
    return _both(module, s.x)


@joint("a weight shared by two layers", on=(MODELS, TRANSFORMERS))
def shared(s: Subject) -> Results:
    module = s.module()
    found = mixers(module)
    for mixer in found[1:]:
        mixer.out_proj.weight = found[0].out_proj.weight
    return _both(module, s.x)


@joint("GradSampleModule: hooks that make gradients of each sample")
def grad_sample(s: Subject) -> Results:
    module = s.module().train()
    kept: dict[str, Tensor] = {}
    samples: dict[str, Tensor] = {}

    def change(name: str, linear: nn.Linear) -> None:
        linear.register_forward_hook(lambda _, args, out: kept.update({name: args[0].detach()}))

        def back(_: nn.Module, dinputs: Any, doutputs: Any) -> None:
            samples[name] = doutputs[0].flatten(0, -2).mT @ kept[name].flatten(0, -2)

        linear.register_full_backward_hook(back)

    for index, mixer in enumerate(mixers(module)):
        for name in PROJECTIONS:
            if hasattr(mixer, name):
                change(f"{index} {name}", getattr(mixer, name))
    loss(module(s.x)).backward()
    return {f"samples of {name}": value for name, value in samples.items()} | gradients(module)


@joint("a projection in another dtype with casts around it")
def cast_projection(s: Subject) -> Results:
    class Wide(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear.double()
            self.weight, self.bias = linear.weight, linear.bias

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x.double()).float()
            return out

    module = s.module()
    _each(module, lambda linear, _: Wide(linear), ("out_proj",))
    return _both(module, s.x)


@joint("dropout after a projection, of probability 1")
def dropped(s: Subject) -> Results:
    module = s.module()
    _each(module, lambda linear, _: nn.Sequential(linear, nn.Dropout(1.0)), ("out_proj",))
    module.train()
    return {"out": module(s.x).detach()}


@joint("a checkpoint around a projection")
def checkpointed_projection(s: Subject) -> Results:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    module = s.module()
    _each(module, lambda linear, _: checkpoint_wrapper(linear), ("in_proj", "out_proj"))
    return _both(module, s.x)


@joint("weight_norm on conv1d")
def normed_convolution(s: Subject) -> Results:
    module = s.module()
    for mixer in mixers(module):
        parametrizations.weight_norm(mixer.conv1d)
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}


class Halved(nn.Module):
    """A parametrization that halves a tensor."""

    def forward(self, tensor: Tensor) -> Tensor:
        """Half of it."""
        return tensor / 2


@joint("parametrizations of A_log and D")
def parametrized_rates(s: Subject) -> Results:
    module = s.module()
    for mixer in mixers(module):
        for name in ("A_log", "D"):
            parametrize.register_parametrization(mixer, name, Halved())
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}
