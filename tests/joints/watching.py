"""Joints of what looks at a computation, or checks it.

Schemas, shapes, graphs of autograd, profiles, debuggers.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import Any

import torch
from torch import Tensor, nn

from tests.joints.declared import joint
from tests.joints.measures import Results, gradients, loss, out_of, trained
from tests.joints.subjects import Subject, mixers


@joint("schemas of operators checked: SchemaCheckMode")
def schemas(s: Subject) -> Results:
    from torch._subclasses.schema_check_mode import SchemaCheckMode

    module = s.module().eval()
    mode: Any = SchemaCheckMode()
    with torch.no_grad(), mode:
        return {"out": module(s.x)}


@joint("each operator held to its fake: CrossRefFakeMode")
def cross_references(s: Subject) -> Results:
    from torch._subclasses.fake_utils import CrossRefFakeMode

    module = s.module()
    mode: Any = CrossRefFakeMode()
    with mode:
        return {"out": out_of(module, s.x)}


@joint("python's dispatcher: enable_python_dispatcher")
def python_dispatcher(s: Subject) -> Results:
    from torch._dispatch.python import enable_python_dispatcher

    dispatcher: Any = enable_python_dispatcher
    with dispatcher():
        return trained(s.module(), s.x)


@joint("DebugMode")
def debug_mode(s: Subject) -> Results:
    from torch.utils._debug_mode import DebugMode

    module = s.module()
    mode: Any = DebugMode(record_torchfunction=True)
    with mode:
        found = trained(module, s.x)
    return {**found, "says": bool(mode.debug_string())}


@joint("a mode that logs in a checkpoint: debug=True")
def checkpoint_debug(s: Subject) -> Results:
    from torch.utils.checkpoint import checkpoint

    module = s.module()
    return trained(module, s.x, lambda x: checkpoint(module, x, use_reentrant=False, debug=True))


def _nodes(out: Tensor) -> list[Any]:
    found: list[Any] = []
    waiting, seen = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.append(node)
            waiting += [each for each, _ in node.next_functions]
    return found


@joint("a walk over the graph of autograd (torchviz)")
def walked(s: Subject) -> Results:
    module = s.module().train()
    leaves = set()
    for node in _nodes(module(s.x)):
        assert node.name()
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        for name in dir(node):
            if name.startswith("_saved_"):
                getattr(node, name)
    reached = [name for name, each in module.named_parameters() if id(each) in leaves]
    return {"parameters": sorted(reached)}


@joint("hooks on every node of the graph")
def node_hooks(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_()
    out = module(x)
    calls: list[int] = []
    for node in _nodes(out):
        node.register_prehook(lambda given: calls.append(1))
        node.register_hook(lambda *given: calls.append(2))
    loss(out).backward()
    return {"called": {1, 2} == set(calls), "gradient of x": x.grad, **gradients(module)}


@joint("a hook of several gradients: register_multi_grad_hook")
def multi_grad_hook(s: Subject) -> Results:
    module = s.module().train()
    seen: list[int] = []
    each = torch.autograd.graph.register_multi_grad_hook(
        tuple(module.parameters()), lambda found: seen.append(sum(g is not None for g in found))
    )
    loss(module(s.x)).backward()
    each.remove()
    return {"seen": seen, **gradients(module)}


# With stacks torch 2.13 raises a UnicodeDecodeError now and then, with the hook or without.
@joint("the profiler with shapes, memory and flops")
def profiled(s: Subject) -> Results:
    from torch.profiler import ProfilerActivity, profile, record_function

    module = s.module()
    options: dict[str, Any] = {"record_shapes": True, "profile_memory": True}
    with profile(activities=[ProfilerActivity.CPU], with_flops=True, **options) as found:
        with record_function("a part"):
            result = trained(module, s.x)
        found.step()
    names = {each.key for each in found.key_averages()}
    return {
        **result,
        "part": "a part" in names,
        "products": bool(names & {"aten::mm", "aten::addmm"}),
    }


@joint("a debugger: sys.settrace")
def debugged(s: Subject) -> Results:
    lines = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += 1
        return trace

    module = s.module()
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        found = trained(module, s.x)
    finally:
        sys.settrace(before)
    return {**found, "traced": lines > 100}


@joint("tasks of asyncio, some in threads")
def tasks(s: Subject) -> Results:
    module = s.module().eval()

    async def at_once() -> tuple[Tensor, ...]:
        async def here() -> Tensor:
            return out_of(module, s.x)

        return await asyncio.gather(here(), asyncio.to_thread(out_of, module, s.x), here())

    return {f"out {i}": out for i, out in enumerate(asyncio.run(at_once()))}


@joint("no collector, and none of its own accord")
def without_collector(s: Subject) -> Results:
    import gc

    gc.disable()
    module = s.module()
    trained(module, s.x)
    module.zero_grad()
    return trained(module, s.x)


@joint("a stack of little depth left")
def deep(s: Subject) -> Results:
    """As many calls as a recursive program has above a module."""
    module = s.module()

    def at(depth: int) -> Results:
        return at(depth - 1) if depth else trained(module, s.x)

    return at(600)


@joint("a thread with a small stack")
def small_stack(s: Subject) -> Results:
    module, found = s.module(), {}
    before = threading.stack_size(512 * 1024)
    thread = threading.Thread(target=lambda: found.update(trained(module, s.x)))
    thread.start()
    thread.join()
    threading.stack_size(before)
    return found


@joint("gradients that are views of one buffer")
def bucketed(s: Subject) -> Results:
    module = s.module().train()
    weights = [*module.parameters()]
    flat = torch.zeros(sum(each.numel() for each in weights))
    for each, part in zip(weights, flat.split([each.numel() for each in weights])):
        each.grad = part.view_as(each)
    for _ in range(2):
        loss(module(s.x)).backward()
    assert flat.count_nonzero()
    return gradients(module)


@joint("gradients that were laid out otherwise")
def laid_out(s: Subject) -> Results:
    module = s.module().train()
    for each in module.parameters():
        if each.dim() == 2:
            each.grad = torch.ones(each.shape[::-1]).T
    loss(module(s.x)).backward()
    return gradients(module)


@joint("autograd.grad that materialises, of some outputs")
def materialised(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_()
    out = module(x)
    unused = torch.ones(3, requires_grad=True)
    options: dict[str, Any] = {"allow_unused": True, "materialize_grads": True}
    found = torch.autograd.grad((loss(out[:, :4]), loss(out[:1])), (x, unused), **options)
    return {"of x": found[0], "of none": found[1]}


@joint("weights frozen and thawed between calls")
def frozen_between(s: Subject) -> Results:
    module = s.module().train()
    found: Results = {}
    for place in range(3):
        for mixer in mixers(module):
            mixer.requires_grad_(place != 1)
            mixer.in_proj.requires_grad_(place == 1)
        module.zero_grad()
        x = s.x.clone().requires_grad_()
        loss(module(x)).backward()
        found |= {f"{name} {place}": each for name, each in gradients(module).items()}
        found[f"gradient of x {place}"] = x.grad
    return found


@joint("Muon and AdamW, three steps", tolerance=2e-2)
def muon(s: Subject) -> Results:
    module = s.module()
    flat = [each for each in module.parameters() if each.dim() == 2]
    others = [each for each in module.parameters() if each.dim() != 2]
    both: tuple[Any, ...] = (
        torch.optim.Muon(flat, lr=1e-3),
        torch.optim.AdamW(others, lr=1e-3, eps=1e-3),
    )
    losses = []
    for _ in range(3):
        losses.append(loss(trained(module, s.x)["out"]))
        for optimizer in both:
            optimizer.step()
            optimizer.zero_grad()
    return {"losses": torch.stack(losses)}


@joint("a state of an optimizer that is saved, and training that goes on")
def resumed(s: Subject) -> Results:
    import io

    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        module = s.module()
        return module, torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss(module.train()(s.x)).backward()
        optimizer.step()

    first = made()
    step(*first)
    buffer = io.BytesIO()
    torch.save([each.state_dict() for each in first], buffer)
    buffer.seek(0)
    second = made()
    states = torch.load(buffer, weights_only=True)
    second[0].load_state_dict(states[0])
    second[1].load_state_dict(states[1])
    step(*second)
    step(*second)
    return {name: each.detach() for name, each in second[0].named_parameters()}
