"""torch.compile, with what else is done to a module."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.joints.declared import BLOCKS, MODELS, joint
from tests.joints.measures import Results, gradients, loss, same, trained
from tests.joints.subjects import Subject, hooked


@joint("compile, eager", slow=True)
def eager(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, torch.compile(module, backend="eager"))


@joint("compile, eager, one graph")
def eager_whole(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, torch.compile(module, backend="eager", fullgraph=True))


@joint("compile, aot_eager")
def aot(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, torch.compile(module, backend="aot_eager"))


@joint("compile, aot_eager, one graph")
def aot_whole(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, torch.compile(module, backend="aot_eager", fullgraph=True))


@joint("compile, aot_eager, decomposed for inductor", slow=True)
def aot_decomposed(s: Subject) -> Results:
    module = s.module()
    backend = "aot_eager_decomp_partition"
    return trained(module, s.x, torch.compile(module, backend=backend))


@joint("compile, no_grad")
def no_grad(s: Subject) -> Results:
    module = s.module().eval()
    compiled = torch.compile(module, backend="aot_eager")
    with torch.no_grad():
        return {"out": compiled(s.x), "again": compiled(s.x.flip(1))}


@joint("compile, inference_mode", slow=True)
def inference(s: Subject) -> Results:
    module = s.module().eval()
    compiled = torch.compile(module, backend="aot_eager")
    with torch.inference_mode():
        return {"out": compiled(s.x).clone()}


@joint("compile, dynamic sizes", slow=True)
def dynamic(s: Subject) -> Results:
    module = s.module()
    compiled = torch.compile(module, backend="aot_eager", dynamic=True)
    found: Results = {}
    for length in (11, 5):
        module.zero_grad()
        each = trained(module, s.x[:, :length], compiled)
        # For models that torch takes too long for without the hook.
        alone = trained(s.module(), s.x[:, :length])
        same(f"the gradient at {length}", each["gradient of x"], alone["gradient of x"])
        found |= {f"{name} at {length}": value for name, value in each.items()}
    return found


@joint("compile, then another size", slow=True)
def recompiled(s: Subject) -> Results:
    module = s.module()
    compiled = torch.compile(module, backend="aot_eager")
    trained(module, s.x, compiled)
    module.zero_grad()
    return trained(module, s.x[:, :5], compiled)


@joint("compile, inductor", slow=True, on=(BLOCKS, MODELS))
def inductor(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, torch.compile(module, backend="inductor"))


@joint("compile and checkpoint inside")
def with_checkpoint(s: Subject) -> Results:
    module = s.module()

    def run(x: Tensor) -> Tensor:
        out: Tensor = checkpoint(module, x, use_reentrant=False)
        return out + 0

    return trained(module, s.x, torch.compile(run, backend="aot_eager"))


@joint("checkpoint of what is compiled", slow=True)
def checkpoint_of_compiled(s: Subject) -> Results:
    module = s.module()
    compiled = torch.compile(module, backend="aot_eager")
    return trained(module, s.x, lambda x: checkpoint(compiled, x, use_reentrant=False))


@joint("compile and autocast", rounded=True)
def with_autocast(s: Subject) -> Results:
    module = s.module()
    compiled = torch.compile(module, backend="aot_eager")

    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=not s.exact):
            out: Tensor = compiled(x)
        return out.float()

    return trained(module, s.x, call)


@joint("compile in place: Module.compile", slow=True)
def in_place(s: Subject) -> Results:
    module = s.module()
    module.compile(backend="aot_eager")
    return trained(module, s.x)


@joint("compile a step of training", slow=True)
def training_step(s: Subject) -> Results:
    module = s.module().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        value = loss_of(module(x))
        value.backward()
        optimizer.step()
        return value

    def loss_of(out: Tensor) -> Tensor:
        return out.square().mean()

    first = step(s.x).detach()
    return {"first": first, "second": step(s.x).detach(), "out": module(s.x).detach()}


@joint("compiled autograd", slow=True)
def compiled_autograd(s: Subject) -> Results:
    module = s.module().train()
    value = loss(module(s.x))
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        value.backward()
    return gradients(module)


@joint("compile func.grad")
def func_grad(s: Subject) -> Results:
    module = s.module().train()
    run = torch.compile(torch.func.grad(lambda x: module(x).square().sum()), backend="aot_eager")
    return {"gradient": run(s.x)}


@joint("compile func.vmap", slow=True)
def func_vmap(s: Subject) -> Results:
    module = s.module().eval()
    run = torch.compile(
        torch.func.vmap(lambda x: module(x[None])[0], randomness="same"), backend="eager"
    )
    with torch.no_grad():
        return {"out": run(s.x)}


@joint("a double backward of what is compiled for eager")
def double_backward(s: Subject) -> Results:
    module, x = s.module().train(), s.x.clone().requires_grad_()
    compiled = torch.compile(module, backend="eager")
    (gradient,) = torch.autograd.grad(loss(compiled(x)), x, create_graph=True)
    gradient.square().sum().backward()
    return {"second of x": x.grad}


@joint("a backend switched after compiling", slow=True)
def backend_switched(s: Subject) -> Results:
    module = s.module()
    compiled = torch.compile(module, backend="aot_eager")
    trained(module, s.x, compiled)
    found: dict[str, Any] = {}
    with _backend("pytorch"):
        for shape in ((2, 11), (1, 7)):
            module.zero_grad()
            each = trained(module, s.x[: shape[0], : shape[1]], compiled)
            found |= {f"{name} at {shape}": value for name, value in each.items()}
    module.zero_grad()
    return {**found, **trained(module, s.x, compiled)}


def _backend(name: str) -> Any:
    """The backend of the ops by name, where there are any."""
    if not hooked():
        return contextlib.nullcontext()
    import jetson_mamba

    return jetson_mamba.backend(causal_conv1d=name, selective_scan=name, ssd=name)


@joint("a projection replaced after compiling")
def replaced_after_compiling(s: Subject) -> Results:
    from tests.joints.subjects import mixers

    module = s.module().eval()
    compiled = torch.compile(module, backend="eager")
    with torch.no_grad():
        before = compiled(s.x)
        for mixer in mixers(module):
            mixer.out_proj.register_forward_hook(lambda *call: 2 * call[2])
        after = compiled(s.x)
        same("after", after, module(s.x))
    return {"before": before, "after": after}


@joint("explain: graph breaks", on=(BLOCKS, MODELS), slow=True)
def explained(s: Subject) -> Results:
    module = s.module().train()
    found = torch._dynamo.explain(module)(s.x)
    return {"breaks": found.graph_break_count, "graphs": found.graph_count}


@joint("compile, a length that is marked dynamic", slow=True)
def marked_dynamic(s: Subject) -> Results:
    module = s.module().eval()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = s.x.clone()
    torch._dynamo.mark_dynamic(x, 1)
    found: Results = {}
    with torch.no_grad():
        for length in (11, 5):
            found[f"out at {length}"] = compiled(x[:, :length] if length < 11 else x)
    return found


@joint("compile each mixer by itself", slow=True)
def regions(s: Subject) -> Results:
    from tests.joints.subjects import mixers

    module = s.module()
    for mixer in mixers(module):
        mixer.compile(backend="aot_eager")
    return trained(module, s.x)


@joint("compile around mixers that are left out", slow=True)
def mixers_left_out(s: Subject) -> Results:
    from tests.joints.subjects import mixers

    module = s.module()
    for mixer in mixers(module):
        mixer.forward = torch.compiler.disable(mixer.forward)
    return trained(module, s.x, torch.compile(module, backend="eager"))


@joint("a copy of what is compiled", slow=True)
def compiled_copied(s: Subject) -> Results:
    module = s.module()
    compiled = torch.compile(module, backend="aot_eager")
    trained(module, s.x, compiled)
    other: Any = copy.deepcopy(compiled)
    other.zero_grad()
    return trained(other, s.x)


@joint("AOTAutograd by hand, what can be computed again left out", slow=True)
def aot_by_hand(s: Subject) -> Results:
    from functorch import compile as aot  # type: ignore[import-untyped]

    module = s.module()
    cut = aot.min_cut_rematerialization_partition
    call = aot.aot_module(module, fw_compiler=aot.nop, bw_compiler=aot.nop, partition_fn=cut)
    return trained(module, s.x, call)


@joint("compile, one graph, dynamic sizes", slow=True)
def whole_dynamic(s: Subject) -> Results:
    module = s.module().eval()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        return {f"out at {size}": compiled(s.x[:, :size]) for size in (11, 7)}


@joint("compile, max-autotune-no-cudagraphs", slow=True, on=(BLOCKS,))
def autotuned(s: Subject) -> Results:
    module = s.module()
    return trained(module, s.x, torch.compile(module, mode="max-autotune-no-cudagraphs"))


@joint("compile, reduce-overhead", slow=True, on=(BLOCKS,))
def reduced_overhead(s: Subject) -> Results:
    module = s.module().eval()
    compiled = torch.compile(module, mode="reduce-overhead")
    with torch.no_grad():
        return {"out": compiled(s.x).clone(), "again": compiled(s.x.flip(1)).clone()}


def _stances(s: Subject, stance: str) -> Results:
    module = s.module().eval()
    compiled = torch.compile(module, backend="aot_eager")
    with torch.no_grad():
        first = compiled(s.x)
        with torch.compiler.set_stance(stance):
            same_size, other = compiled(s.x.flip(1)), compiled(s.x[:, :5])
    return {"first": first, "same size": same_size, "other": other}


@joint("compile, set_stance: eager_on_recompile", slow=True)
def eager_on_recompile(s: Subject) -> Results:
    return _stances(s, "eager_on_recompile")


@joint("compile, set_stance: force_eager", slow=True)
def force_eager(s: Subject) -> Results:
    return _stances(s, "force_eager")


@joint("compile a step of an optimizer", slow=True, tolerance=1e-3)
def compiled_optimizer(s: Subject) -> Results:
    module = s.module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, eps=1e-3)
    step: Any = torch.compile(optimizer.step, backend="aot_eager")
    compiled = torch.compile(module, backend="aot_eager")
    for _ in range(2):
        optimizer.zero_grad()
        trained(module, s.x, compiled)
        step()
    return {"out": module(s.x).detach()}


@joint("compile, part of the activations computed again (a memory budget)", slow=True)
def memory_budget(s: Subject) -> Results:
    module = s.module()
    with torch._functorch.config.patch(activation_memory_budget=0.3):
        return trained(module, s.x, torch.compile(module, backend="aot_eager_decomp_partition"))


@joint("compile, by what another call decides (torch.cond)", slow=True)
def conditional(s: Subject) -> Results:
    module = s.module().eval()

    def run(x: Tensor) -> Any:
        return torch.cond(x.sum() > 0, module, lambda x: module(-x), (x,))

    compiled = torch.compile(run, backend="aot_eager")
    with torch.no_grad():
        return {"out": compiled(s.x), "negative": compiled(-s.x)}


@joint("compile DistributedDataParallel over gloo, one process", slow=True)
def compiled_ddp(s: Subject) -> Results:
    from tests.joints.lifetimes import _group

    _group()
    wrapped = torch.nn.parallel.DistributedDataParallel(s.module(), find_unused_parameters=True)
    return trained(wrapped, s.x, torch.compile(wrapped, backend="aot_eager"))
