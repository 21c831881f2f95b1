"""Training: checkpoints, saved tensors, losses, optimizers."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    create_selective_checkpoint_contexts,
)

from tests.joints.declared import joint
from tests.joints.measures import Results, gradients, loss, named, parameters, same, trained
from tests.joints.subjects import Subject, mixers


@joint("forward and backward")
def forward_and_backward(s: Subject) -> Results:
    return trained(s.module(), s.x)


@joint("without gradients: no_grad")
def no_grad(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        return {"first": module(s.x), "second": module(s.x)}


@joint("without gradients: inference_mode")
def inference_mode(s: Subject) -> Results:
    module = s.module().eval()
    with torch.inference_mode():
        out = module(s.x)
    return {"inference tensor": out.is_inference(), "out": out.clone()}


@joint("an inference tensor in training")
def inference_tensor_in_training(s: Subject) -> Results:
    with torch.inference_mode():
        x = s.x * 1
    module = s.module().train()
    loss(module(x)).backward()
    return gradients(module)


@joint("enable_grad inside no_grad")
def enable_grad(s: Subject) -> Results:
    module = s.module()
    with torch.no_grad(), torch.enable_grad():
        return trained(module, s.x)


@joint("checkpoint, non-reentrant")
def checkpoint_non_reentrant(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, lambda x: checkpoint(module, x, use_reentrant=False))


@joint("checkpoint, non-reentrant, two passes back")
def checkpoint_twice(s: Subject) -> Results:
    module = s.module().train()
    value = loss(checkpoint(module, s.x, use_reentrant=False))
    value.backward(retain_graph=True)
    value.backward()
    return gradients(module)


@joint("checkpoint, reentrant")
def checkpoint_reentrant(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, lambda x: checkpoint(module, x, use_reentrant=True))


@joint("checkpoint without determinism check or rng")
def checkpoint_lenient(s: Subject) -> Results:
    module = s.module()
    options: Any = {
        "use_reentrant": False,
        "determinism_check": "none",
        "preserve_rng_state": False,
    }
    return trained(module, s.x, lambda x: checkpoint(module, x, **options))


@joint("checkpoint_sequential")
def sequential(s: Subject) -> Results:
    module = s.module()
    back = torch.nn.Linear(module(s.x).shape[-1], s.x.shape[-1], bias=False)
    torch.nn.init.eye_(back.weight)
    layers = torch.nn.Sequential(module, back, module, back)
    return trained(
        layers,
        s.x,
        lambda x: checkpoint_sequential(layers, 2, x, use_reentrant=False),
    )


@joint("selective activation checkpoint")
def selective_checkpoint(s: Subject) -> Results:
    module = s.module()
    contexts = partial(create_selective_checkpoint_contexts, [torch.ops.aten.mm.default])
    return trained(
        module,
        s.x,
        lambda x: checkpoint(module, x, use_reentrant=False, context_fn=contexts),
    )


@joint("save_on_cpu")
def save_on_cpu(s: Subject) -> Results:
    module = s.module()

    def call(x: Tensor) -> Tensor:
        with torch.autograd.graph.save_on_cpu():
            out: Tensor = module(x)
        return out

    return trained(module, s.x, call)


@joint("saved_tensors_hooks that unpack once")
def unpacked_once(s: Subject) -> Results:
    module = s.module()
    taken: set[int] = set()

    def unpack(box: list[Tensor]) -> Tensor:
        if id(box) in taken:
            raise RuntimeError("a saved tensor is unpacked a second time")
        taken.add(id(box))
        return box[0].clone()

    boxes: list[Any] = []

    def pack(tensor: Tensor) -> list[Tensor]:
        boxes.append([tensor.detach().clone()])
        return boxes[-1]  # type: ignore[no-any-return]

    def call(x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            out: Tensor = module(x)
        return out

    return trained(module, s.x, call)


@joint("saved_tensors_hooks that pack in another dtype")
def packed_in_another_dtype(s: Subject) -> Results:
    module = s.module()

    def pack(tensor: Tensor) -> tuple[torch.dtype, Tensor]:
        keep = tensor.dtype if not tensor.is_floating_point() else torch.float64
        return tensor.dtype, tensor.to(keep)

    def call(x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept[1].to(kept[0])):
            out: Tensor = module(x)
        return out

    return trained(module, s.x, call)


@joint("retain_graph and a second pass back")
def retained(s: Subject) -> Results:
    module = s.module().train()
    value = loss(module(s.x))
    value.backward(retain_graph=True)
    first = named("first", {k: v for k, v in gradients(module).items() if v is not None})
    value.backward()
    return {**first, **gradients(module)}


@joint("a second pass back without retain_graph")
def second_pass(s: Subject) -> Results:
    value = loss(s.module().train()(s.x))
    value.backward()
    value.backward()
    return {}


@joint("two losses")
def two_losses(s: Subject) -> Results:
    module = s.module().train()
    out = module(s.x)
    (loss(out) + out.square().mean()).backward(retain_graph=True)
    out[:, -1].sum().backward()
    return gradients(module)


@joint("accumulated gradients")
def accumulated(s: Subject) -> Results:
    module = s.module()
    trained(module, s.x)
    return trained(module, s.x.flip(1))


@joint("a gradient of A_log alone")
def of_a_log(s: Subject) -> Results:
    module = s.module().train()
    wanted = [mixer.A_log for mixer in mixers(module)]
    return {
        f"gradient {i}": gradient
        for i, gradient in enumerate(torch.autograd.grad(loss(module(s.x)), wanted))
    }


@joint("frozen weights, a gradient of the input alone")
def frozen(s: Subject) -> Results:
    module = s.module().requires_grad_(False)
    return trained(module, s.x)


@joint("frozen but for the mixers' conv1d")
def frozen_but_conv(s: Subject) -> Results:
    module = s.module().requires_grad_(False)
    for mixer in mixers(module):
        mixer.conv1d.requires_grad_(True)
    return trained(module, s.x)


@joint("frozen but for D and dt")
def frozen_but_steps(s: Subject) -> Results:
    module = s.module()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name.endswith(("D", "dt_bias", "dt_proj.bias")))
    return trained(module, s.x)


@joint("autograd.grad, allow_unused")
def allow_unused(s: Subject) -> Results:
    module = s.module().train()
    unused = torch.ones(3, requires_grad=True)
    names, wanted = zip(*module.named_parameters())
    found = torch.autograd.grad(loss(module(s.x)), [*wanted, unused], allow_unused=True)
    return {f"gradient of {name}": each for name, each in zip([*names, "unused"], found)}


@joint("autograd.grad of the output with a tensor")
def with_grad_outputs(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    out = module(x)
    (gradient,) = torch.autograd.grad(out, x, torch.ones_like(out).expand_as(out))
    return {"gradient": gradient}


@joint("hooks on tensors and gradients")
def tensor_hooks(s: Subject) -> Results:
    module = s.module().train()
    seen: list[str] = []
    for name, parameter in module.named_parameters():
        parameter.register_hook(lambda gradient: 2 * gradient)
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    x = s.x.clone().requires_grad_()
    out = module(x * 1)
    out.register_hook(lambda gradient: gradient + 0.01)
    loss(out).backward()
    return {"gradient of x": x.grad, "seen": sorted(seen), **gradients(module)}


@joint("weights changed in place before the pass back")
def changed_in_place(s: Subject) -> Results:
    module = s.module().train()
    value = loss(module(s.x))
    with torch.no_grad():
        for mixer in mixers(module):
            mixer.out_proj.weight.add_(1.0)
    value.backward()
    return gradients(module)


@joint("the input changed in place before the pass back")
def input_changed_in_place(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_() * 1
    value = loss(module(x))
    with torch.no_grad():
        x.add_(1.0)
    value.backward()
    return gradients(module)


@joint("the output changed in place before the pass back")
def output_changed_in_place(s: Subject) -> Results:
    module = s.module().train()
    out = module(s.x)
    out.mul_(2.0)
    loss(out).backward()
    return gradients(module)


@joint("detect_anomaly")
def anomaly(s: Subject) -> Results:
    with torch.autograd.detect_anomaly(check_nan=True):
        return trained(s.module(), s.x)


@joint("a pass back in another thread")
def back_in_a_thread(s: Subject) -> Results:
    module = s.module().train()
    value = loss(module(s.x))
    thread = threading.Thread(target=value.backward)
    thread.start()
    thread.join()
    return gradients(module)


def _steps(s: Subject, make: Any) -> Results:
    module = s.module()
    optimizer = make(module.parameters())
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        out = trained(module, s.x)["out"]
        losses.append(loss(out))
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return {"losses": torch.stack(losses), "after": module(s.x).detach()}


@joint("SGD with clipped gradients, three steps", tolerance=1e-3)
def sgd(s: Subject) -> Results:
    return _steps(s, partial(torch.optim.SGD, lr=0.05, momentum=0.9, foreach=True))


@joint("fused AdamW, three steps", tolerance=1e-2)
def adamw(s: Subject) -> Results:
    return _steps(s, partial(torch.optim.AdamW, lr=1e-3, eps=1e-3, fused=True))


@joint("L-BFGS", tolerance=1e-2)
def lbfgs(s: Subject) -> Results:
    module = s.module().train()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(module(s.x)).square()
        value.backward()
        return value

    return {"loss": optimizer.step(closure).detach(), "out": module(s.x).detach()}


@joint("GradScaler on a CPU")
def grad_scaler(s: Subject) -> Results:
    module = s.module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(loss(module(s.x))).backward()
    scaler.unscale_(optimizer)
    found = gradients(module)
    scaler.step(optimizer)
    scaler.update()
    return {**found, "scale": scaler.get_scale(), "after": module(s.x).detach()}


@joint("an average of weights (swa_utils)")
def averaged(s: Subject) -> Results:
    module = s.module().train()
    average = torch.optim.swa_utils.AveragedModel(
        module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(module(s.x)).backward()
        optimizer.step()
        average.update_parameters(module)
    return {"out": average(s.x).detach(), **named("weight", parameters(average.module))}


@joint("the same call twice gives the same bits")
def repeatable(s: Subject) -> Results:
    module = s.module()
    first = trained(module, s.x)
    module.zero_grad()
    second = trained(module, s.x)
    for name, value in first.items():
        if value is not None:
            same(name, second[name], value, tolerance=0.0)
    return first


@joint("checkpoints inside a checkpoint")
def nested_checkpoints(s: Subject) -> Results:
    module = s.module()

    def inner(x: Tensor) -> Tensor:
        out: Tensor = checkpoint(module, x, use_reentrant=False)
        return out * 2

    return trained(module, s.x, lambda x: checkpoint(inner, x, use_reentrant=False))


@joint("checkpoint that recomputes to the end")
def late_checkpoint(s: Subject) -> Results:
    module = s.module()
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        return trained(module, s.x, lambda x: checkpoint(module, x, use_reentrant=False))


class _Reversible(torch.autograd.Function):
    """Keeps its input alone, and computes the module again in its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: torch.nn.Module, *weights: Tensor) -> Tensor:
        ctx.module, ctx.weights = module, weights
        ctx.save_for_backward(x)
        with torch.no_grad():
            out: Tensor = module(x)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            out = ctx.module(x)
            found = torch.autograd.grad(out, (x, *ctx.weights), dout, allow_unused=True)
        return (found[0], None, *found[1:])


@joint("an autograd function around it that computes again")
def reversible(s: Subject) -> Results:
    module = s.module()
    apply: Any = _Reversible.apply
    return trained(module, s.x, lambda x: apply(x, module, *module.parameters()))


@joint("optimizer steps inside the pass back")
def steps_inside(s: Subject) -> Results:
    module = s.module().train()
    for parameter in module.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def step(_: Tensor, optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(step)
    loss(module(s.x)).backward()
    return {name: parameter.detach() for name, parameter in module.named_parameters()}


@joint("a pass back into some leaves alone")
def some_leaves(s: Subject) -> Results:
    module = s.module().train()
    chosen = [each for name, each in module.named_parameters() if name.endswith(("A_log", "D"))]
    loss(module(s.x)).backward(inputs=chosen)
    return gradients(module)


@joint("saved tensors that may be changed")
def changed_saved(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_()
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        twice = x * 2
        value = loss(module(twice))
        with torch.no_grad():
            twice.zero_()
        value.backward()
    return {"gradient of x": x.grad, **gradients(module)}


@joint("hooks of saved tensors forbidden")
def forbidden_hooks(s: Subject) -> Results:
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        return trained(s.module(), s.x)


@joint("autograd without threads")
def without_threads(s: Subject) -> Results:
    with torch.autograd.set_multithreading_enabled(False):
        return trained(s.module(), s.x)


@joint("gradients by edges of the graph")
def by_edges(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_()
    out = module(x)
    edge = torch.autograd.graph.get_gradient_edge(x)
    (gradient,) = torch.autograd.grad(loss(out), [edge])
    return {"gradient of x": gradient}
