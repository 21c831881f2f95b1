"""Joints of derivatives of every kind. The transforms of torch.func are among them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tests.joints.declared import BLOCKS, joint
from tests.joints.measures import (
    Results,
    directions,
    function,
    gradients,
    loss,
    named,
    parameters,
    same,
)
from tests.joints.subjects import Subject


@joint("func.functional_call")
def functional_call(s: Subject) -> Results:
    module = s.module()
    halves = {name: weight / 2 for name, weight in parameters(module).items()}
    with torch.no_grad():
        return {"out at half": function(module)(halves, s.x)}


@joint("func.grad of the parameters")
def func_grad(s: Subject) -> Results:
    run = function(s.module())
    found = torch.func.grad(lambda w: loss(run(w, s.x)))(parameters(s.module()))
    return named("gradient of", found)


@joint("func.grad of the input")
def func_grad_of_input(s: Subject) -> Results:
    module = s.module().train()
    return {"gradient of x": torch.func.grad(lambda x: loss(module(x)))(s.x)}


@joint("func.grad_and_value")
def grad_and_value(s: Subject) -> Results:
    module = s.module().train()
    gradient, (value, out) = torch.func.grad_and_value(
        lambda x: (loss(module(x)), module(x)), has_aux=True
    )(s.x)
    return {"gradient of x": gradient, "loss": value, "out": out}


@joint("func.vjp")
def vjp(s: Subject) -> Results:
    module = s.module().train()
    out, back = torch.func.vjp(module, s.x)[:2]
    return {"out": out, "vjp": back(torch.ones_like(out))[0]}


@joint("func.jvp of the input")
def jvp(s: Subject) -> Results:
    out, tangent = torch.func.jvp(s.module().train(), (s.x,), (s.x.cos(),))[:2]
    return {"out": out, "tangent": tangent}


@joint("func.jvp of the parameters")
def jvp_of_parameters(s: Subject) -> Results:
    run, weights = function(s.module()), parameters(s.module())
    out, tangent = torch.func.jvp(lambda w: run(w, s.x), (weights,), (directions(weights),))[:2]
    return {"out": out, "tangent of parameters": tangent}


@joint("func.linearize")
def linearize(s: Subject) -> Results:
    out, tangent = torch.func.linearize(s.module().train(), s.x)
    return {"out": out, "tangent": tangent(s.x.cos())}


@joint("func.vmap over the batch")
def vmap(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        return {"out": torch.func.vmap(lambda x: module(x[None])[0])(s.x)}


@joint("func.vmap over inputs of several batches")
def vmap_of_batches(s: Subject) -> Results:
    module = s.module().train()
    out = torch.func.vmap(module, in_dims=1, out_dims=1)(torch.stack([s.x, s.x.flip(1)], 1))
    loss(out).backward()
    return {"stacked": out, **gradients(module)}


@joint("func.vmap in chunks")
def vmap_in_chunks(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        return {"out": torch.func.vmap(lambda x: module(x[None])[0], chunk_size=1)(s.x)}


@joint("gradients of each sample: vmap of grad")
def per_sample(s: Subject) -> Results:
    run, weights = function(s.module()), parameters(s.module())

    def of_one(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return loss(run(w, x[None]))

    found = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))(weights, s.x)
    return named("of each sample", found)


@joint("an ensemble: stack_module_state and vmap")
def ensemble(s: Subject) -> Results:
    modules = [s.module().eval() for _ in range(2)]
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.mul_(0.9)
    weights, buffers = torch.func.stack_module_state(modules)

    def run(w: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        out: Tensor = torch.func.functional_call(modules[0], (w, b), (s.x,))
        return out

    with torch.no_grad():
        out = torch.func.vmap(run)(weights, buffers)
    return {"outs": out}


@joint("func.hessian-vector product, forward over reverse", tolerance=1e-3)
def forward_over_reverse(s: Subject) -> Results:
    module = s.module().train()
    gradient = torch.func.grad(lambda x: loss(module(x)))
    return {"product": torch.func.jvp(gradient, (s.x,), (s.x.cos(),))[1]}


@joint("func.hessian-vector product, reverse over reverse", tolerance=1e-3)
def reverse_over_reverse(s: Subject) -> Results:
    module = s.module().train()
    gradient = torch.func.grad(lambda x: loss(module(x)))
    return {"product": torch.func.grad(lambda x: (gradient(x) * s.x.cos()).sum())(s.x)}


@joint("func.jacrev")
def jacrev(s: Subject) -> Results:
    module = s.module().train()
    return {"jacobian": torch.func.jacrev(lambda x: module(x).sum((1, 2)))(s.x)}


@joint("func.jacfwd")
def jacfwd(s: Subject) -> Results:
    module = s.module().train()
    short = s.x[:1, :3, :]
    return {"jacobian": torch.func.jacfwd(lambda x: module(x).sum((1, 2)))(short)}


@joint("func.hessian", tolerance=1e-3)
def hessian(s: Subject) -> Results:
    module = s.module().train()
    short = s.x[:1, :2, :2]
    rest = s.x[:1, :2, 2:]
    return {"hessian": torch.func.hessian(lambda x: loss(module(torch.cat([x, rest], -1))))(short)}


@joint("double backward: a gradient penalty", tolerance=1e-3)
def gradient_penalty(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(module(x)), x, create_graph=True)
    gradient.square().sum().backward()
    return {"penalised": gradient, "second of x": x.grad} | named(
        "second", {k: v for k, v in gradients(module).items() if v is not None}
    )


@joint("double backward through the parameters (MAML)", tolerance=1e-3)
def maml(s: Subject) -> Results:
    module = s.module().train()
    run = function(module)
    weights: dict[str, Tensor] = dict(module.named_parameters())
    found = torch.autograd.grad(loss(run(weights, s.x)), list(weights.values()), create_graph=True)
    adapted = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), found)}
    value = loss(run(adapted, s.x.flip(1)))
    value.backward()
    return {"adapted": value.detach(), **gradients(module)}


@joint("create_graph and no second pass")
def create_graph(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    wanted = {"x": x, **dict(module.named_parameters())}
    found = torch.autograd.grad(loss(module(x)), list(wanted.values()), create_graph=True)
    return {f"gradient of {name}": each.detach() for name, each in zip(wanted, found)}


@joint("third derivatives", tolerance=1e-2)
def third(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    value = loss(module(x))
    for _ in range(2):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        value = (gradient * s.x.sin()).sum()
    (gradient,) = torch.autograd.grad(value, x)
    return {"third": gradient}


@joint("forward-mode derivative")
def forward_mode(s: Subject) -> Results:
    module = s.module().train()
    with forward_ad.dual_level():
        out = forward_ad.unpack_dual(module(forward_ad.make_dual(s.x, s.x.cos())))
    assert out.tangent is not None
    return {"out": out.primal.detach(), "tangent": out.tangent.detach()}


@joint("forward-mode derivative under no_grad")
def forward_mode_no_grad(s: Subject) -> Results:
    with torch.no_grad():
        return {**forward_mode(s)}


@joint("forward-mode derivative after calls without")
def forward_mode_later(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        module(s.x), module(s.x)
        with forward_ad.dual_level():
            out = forward_ad.unpack_dual(module(forward_ad.make_dual(s.x, s.x.cos())))
    return {"out": out.primal, "tangent": out.tangent}


@joint("autograd.functional.jacobian, vectorised")
def functional_jacobian(s: Subject) -> Results:
    module = s.module().train()
    found = torch.autograd.functional.jacobian(lambda x: module(x).sum((1, 2)), s.x, vectorize=True)
    return {"jacobian": found}


@joint("autograd.functional.vhp", tolerance=1e-3)
def functional_vhp(s: Subject) -> Results:
    module = s.module().train()
    value, product = torch.autograd.functional.vhp(lambda x: loss(module(x)), s.x, s.x.cos())
    return {"loss": value, "product": product}


@joint("autograd.grad of a batch of gradients")
def batched_gradients(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    out = module(x).mean((1, 2))
    (found,) = torch.autograd.grad(out, x, torch.eye(len(out)), is_grads_batched=True)
    return {"batched": found}


@joint("gradcheck in float64", on=(BLOCKS,))
def gradcheck(s: Subject) -> Results:
    module = s.module().double().train()
    x = s.x[:1, :3].double().requires_grad_()
    # A block takes these in float32, whatever they are.
    single = ("A_log", "D", "dt_proj.bias")
    weights = [x, *(each for name, each in module.named_parameters() if name not in single)]

    def run(x: Tensor, *_: Tensor) -> Tensor:
        out: Tensor = module(x)
        return out

    return {"passes": torch.autograd.gradcheck(run, weights, fast_mode=True, atol=1e-5)}


@joint("gradcheck in float64, forward mode and batched", on=(BLOCKS,))
def gradcheck_forward(s: Subject) -> Results:
    module = s.module().double().train()
    x = s.x[:1, :3].double().requires_grad_()
    with warnings.catch_warnings():
        # Of torch's own: it tells of a batching rule that it has not.
        warnings.simplefilter("ignore")
        passes = torch.autograd.gradcheck(
            module, x, fast_mode=True, check_forward_ad=True, check_batched_grad=True, atol=1e-5
        )
    return {"passes": passes}


@joint("gradgradcheck in float64", on=(BLOCKS,))
def gradgradcheck(s: Subject) -> Results:
    module = s.module().double().train()
    x = s.x[:1, :3].double().requires_grad_()
    return {"passes": torch.autograd.gradgradcheck(module, x, fast_mode=True, atol=1e-5)}


@joint("integrated gradients")
def integrated(s: Subject) -> Results:
    module = s.module().eval()
    total = torch.zeros_like(s.x)
    for step in (0.25, 0.5, 0.75, 1.0):
        x = (step * s.x).requires_grad_()
        (gradient,) = torch.autograd.grad(module(x)[:, -1].sum(), x)
        total += gradient
    return {"attributions": s.x * total / 4}


@joint("Hutchinson's trace through vmap", tolerance=1e-3)
def hutchinson(s: Subject) -> Results:
    module = s.module().train()

    def of_input(x: Tensor) -> Tensor:
        return loss(module(x))

    def product(v: Tensor) -> Tensor:
        found: Tensor = torch.func.vjp(torch.func.grad(of_input), s.x)[1](v)[0]
        return found

    probes = torch.stack([s.x.sign(), s.x.flip(1).sign()])
    return {"trace": (torch.func.vmap(product)(probes) * probes).sum((1, 2, 3))}


@joint("func.functionalize")
def functionalize(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad():
        out = torch.func.functionalize(module)(s.x)
    same("out", out, module(s.x).detach())
    return {"out": out}


@joint("gradients of an ensemble: vmap of grad over weights")
def ensemble_gradients(s: Subject) -> Results:
    modules = [s.module().train() for _ in range(2)]
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.mul_(0.9)
    weights, buffers = torch.func.stack_module_state(modules)

    def value(w: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(modules[0], (w, b), (x,))
        return out.square().sum()  # loss draws its factors, which vmap would forbid

    each = torch.func.vmap(torch.func.grad(value), in_dims=(0, 0, None))
    found = each({name: weight.detach() for name, weight in weights.items()}, buffers, s.x)
    return named("gradients of", found)


@joint("func.vmap over steps' axis as the batch, in and out", slow=True)
def vmap_inside(s: Subject) -> Results:
    module = s.module().eval()
    several = torch.stack([s.x, s.x.flip(1), 0.5 * s.x], 1)
    out = torch.func.vmap(module, in_dims=1, out_dims=1)(several)
    same("one of them", out[:, 0], module(s.x))
    return {"out": out.detach()}


@joint("func.vmap inside func.vmap", slow=True)
def vmap_of_vmap(s: Subject) -> Results:
    module = s.module().eval()
    several = torch.stack([s.x[:, None], 0.5 * s.x[:, None]])
    return {"out": torch.func.vmap(torch.func.vmap(module))(several).detach()}


@joint("func.vmap over decays, step sizes and taps alone")
def vmap_over_some(s: Subject) -> Results:
    run, weights = function(s.module()), parameters(s.module())
    ends = ("A_log", ".D", "dt_bias", "dt_proj.bias", "conv1d.weight")
    some = {
        name: torch.stack([weight, 0.9 * weight])
        for name, weight in weights.items()
        if name.endswith(ends)
    }
    out = torch.func.vmap(lambda changed: run({**weights, **changed}, s.x))(some)
    same("the first", out[0], run(weights, s.x))
    return {"out": out.detach()}


@joint("func.vmap of func.jvp", slow=True)
def vmap_of_jvp(s: Subject) -> Results:
    module = s.module().eval()
    tangents = torch.stack([s.x.flip(1), s.x.flip(0)])
    found = torch.func.vmap(lambda tangent: torch.func.jvp(module, (s.x,), (tangent,))[1])(tangents)
    return {"tangents": found.detach()}


@joint("func.jvp of func.grad over decays and step sizes", tolerance=1e-3, slow=True)
def jvp_of_grad(s: Subject) -> Results:
    run, weights = function(s.module()), parameters(s.module())
    ends = ("A_log", "dt_bias", "dt_proj.bias")
    some = {name: weight for name, weight in weights.items() if name.endswith(ends)}

    def of(changed: dict[str, Tensor]) -> Tensor:
        return loss(run({**weights, **changed}, s.x))

    ones = {name: torch.ones_like(weight) for name, weight in some.items()}
    found: Any = torch.func.jvp(torch.func.grad(of), (some,), (ones,))
    return named("second", found[1])
