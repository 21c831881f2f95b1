"""Joints of what becomes of a module.

It is copied, stored, wrapped, spread over processes, and freed.
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.joints.declared import BLOCKS, joint
from tests.joints.measures import Results, by_any_error, gradients, loss, out_of, trained
from tests.joints.subjects import Subject, mixers


def _used(s: Subject) -> nn.Module:
    """A module that has been called already, so that whatever it remembers is there."""
    module = s.module()
    out_of(module, s.x), out_of(module, s.x)
    trained(module, s.x)
    module.zero_grad()
    return module


@joint("deepcopy")
def deepcopy(s: Subject) -> Results:
    module = _used(s)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return {"out": out_of(other, s.x), **trained(other, s.x)}


@joint("pickle")
def pickled(s: Subject) -> Results:
    other = pickle.loads(pickle.dumps(_used(s)))
    return trained(other, s.x)


@joint("torch.save of a whole module")
def saved_whole(s: Subject) -> Results:
    buffer = io.BytesIO()
    torch.save(_used(s), buffer)
    buffer.seek(0)
    return trained(torch.load(buffer, weights_only=False), s.x)


@joint("state_dict, saved and loaded with weights_only")
def state_dict(s: Subject) -> Results:
    source, other = _used(s), s.module()
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    out_of(other, s.x)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return {"keys": sorted(source.state_dict()), **trained(other, s.x)}


@joint("safetensors")
def safetensors(s: Subject) -> Results:
    from safetensors.torch import load_model, save_model

    other = s.module()
    with tempfile.TemporaryDirectory() as folder:
        save_model(_used(s), str(Path(folder) / "model.safetensors"))
        load_model(other, str(Path(folder) / "model.safetensors"))
    return trained(other, s.x)


@joint("weights changed in place after calls")
def changed_after_calls(s: Subject) -> Results:
    module = _used(s)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}


@joint("weights bound anew after calls")
def bound_after_calls(s: Subject) -> Results:
    module = _used(s)
    for parameter in module.parameters():
        parameter.data = parameter.data * 0.5
    for mixer in mixers(module):
        mixer.out_proj.weight = nn.Parameter(mixer.out_proj.weight.detach() * 3)
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}


@joint("moved to float64 and back after calls")
def moved(s: Subject) -> Results:
    module = _used(s)
    wide = out_of(module.double(), s.x.double())
    return {"wide": wide.float(), **trained(module.float(), s.x)}


@joint("share_memory")
def share_memory(s: Subject) -> Results:
    return trained(_used(s).share_memory(), s.x)


def _send(module: nn.Module, x: Tensor, queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(out_of(module, x).tolist())


@joint("multiprocessing, fork")
def forked(s: Subject) -> Results:
    context = torch.multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_send, args=(_used(s), s.x, queue))
    process.start()
    out = torch.tensor(queue.get())
    process.join()
    return {"out": out, "exit": process.exitcode}


@joint("accelerate's wrapping of forward (_old_forward)")
def accelerate(s: Subject) -> Results:
    module = s.module()
    for each in module.modules():
        old = each.forward
        vars(each)["_old_forward"] = old

        def forward(self: Any, *args: Any, **keywords: Any) -> Any:
            return self._old_forward(*args, **keywords)

        each.forward = functools.update_wrapper(functools.partial(forward, each), old)
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}


@joint("freed when it is deleted")
def freed(s: Subject) -> Results:
    module = _used(s)
    references = [weakref.ref(each) for each in mixers(module)]
    weights = [weakref.ref(each.out_proj.weight) for each in mixers(module)]
    out = out_of(module, s.x)
    del module
    gc.collect()
    left = sum(each() is not None for each in (*references, *weights))
    return {"out": out, "left": left}


@joint("freed when it is deleted, wrapped as accelerate does")
def freed_wrapped(s: Subject) -> Results:
    module = s.module()
    for each in mixers(module):
        each._old_forward = each.forward
        each.forward = functools.partial(type(each).forward, each)
    trained(module, s.x)
    out_of(module, s.x), out_of(module, s.x)
    references = [weakref.ref(each) for each in mixers(module)]
    del module, each
    gc.collect()
    return {"left": sum(each() is not None for each in references)}


@joint("activations freed after the pass back")
def activations_freed(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_()
    out = module(x)
    references = [weakref.ref(x), weakref.ref(out)]
    loss(out).backward()
    del x, out
    gc.collect()
    return {"left": sum(each() is not None for each in references), **gradients(module)}


@joint("DataParallel's replicas")
def replicas(s: Subject) -> Results:
    """As torch.nn.parallel.replicate makes them, which asks for GPUs: weights are no parameters."""
    module = s.module().train()
    copies: dict[nn.Module, Any] = {
        each: each._replicate_for_data_parallel() for each in module.modules()
    }
    shared = {weight: weight * 1 for weight in module.parameters()}
    for each, copied in copies.items():
        for name, child in each._modules.items():
            copied._modules[name] = None if child is None else copies[child]
        for name, weight in each._parameters.items():
            copied._parameters.pop(name, None)
            setattr(copied, name, None if weight is None else shared[weight])
    out = copies[module](s.x)
    loss(out).backward()
    return {"out": out.detach(), **gradients(module)}


def _group() -> None:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )


@joint("DistributedDataParallel over gloo, one process")
def ddp(s: Subject) -> Results:
    _group()
    module = s.module()
    wrapped = nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
    return trained(wrapped, s.x)


@joint("DistributedDataParallel, static graph, with checkpoints")
def ddp_static(s: Subject) -> Results:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.inner, x, use_reentrant=False)
            return out

    _group()
    wrapped = nn.parallel.DistributedDataParallel(Checkpointed(s.module()), static_graph=True)
    trained(wrapped, s.x)
    wrapped.zero_grad()
    return trained(wrapped, s.x)


@joint("FSDP2: fully_shard on a mesh of one CPU")
def fsdp(s: Subject) -> Results:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    _group()
    mesh = init_device_mesh("cpu", (1,))
    module = s.module()
    for mixer in mixers(module):
        fully_shard(mixer, mesh=mesh)
    if module not in mixers(module):
        fully_shard(module, mesh=mesh)
    found = trained(module, s.x)
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in found.items()
    }


@joint("DTensor weights, replicated")
def dtensor(s: Subject) -> Results:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor

    _group()
    mesh = init_device_mesh("cpu", (1,))
    module = distribute_module(s.module(), mesh).eval()
    x = distribute_tensor(s.x, mesh, [Replicate()])
    with torch.no_grad(), by_any_error():
        out = module(x)
    return {"out": out.full_tensor()}


@joint("tensor parallel: in_proj by columns", on=(BLOCKS,))
def tensor_parallel(s: Subject) -> Results:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    _group()
    mesh = init_device_mesh("cpu", (1,))
    module = parallelize_module(s.module(), mesh, {"in_proj": ColwiseParallel()})
    return {"out": out_of(module, s.x)}


@joint("a class that inherits a block", on=(BLOCKS,))
def inherited(s: Subject) -> Results:
    base: Any = type(s.module())

    class Twice(base):  # type: ignore[misc]
        def forward(self, *args: Any, **keywords: Any) -> Tensor:
            return 2 * super().forward(*args, **keywords)  # type: ignore[no-any-return]

    module = s.module()
    module.__class__ = Twice
    return {"evaluated": out_of(module, s.x), **trained(module, s.x)}


@joint("forward bound anew on the whole module")
def forward_of_module(s: Subject) -> Results:
    module = s.module()
    for mixer in mixers(module):
        forward = mixer.forward
        mixer.forward = lambda *args, forward=forward, **keywords: 2 * forward(*args, **keywords)
    return {"evaluated": out_of(module, s.x)}


@joint("hooks on the mixers")
def mixer_hooks(s: Subject) -> Results:
    module = s.module()
    seen: list[str] = []
    for mixer in mixers(module):
        mixer.register_forward_pre_hook(lambda *_: seen.append("before"))
        mixer.register_forward_hook(lambda *_: seen.append("after"))
        mixer.register_full_backward_hook(lambda *_: seen.append("back"))
    found = trained(module, s.x)
    out_of(module, s.x)
    return {**found, "seen": seen}


@joint("a copy with torch.func.functional_call and tied weights")
def tied(s: Subject) -> Results:
    module = s.module().eval()
    weights = {name: value * 0.5 for name, value in module.state_dict().items()}
    with torch.no_grad():
        out = torch.func.functional_call(module, weights, (s.x,), tie_weights=True)
    return {"half": out, "out": out_of(module, s.x)}


@joint("swap_tensors on conversion")
def swapped(s: Subject) -> Results:
    torch.__future__.set_swap_module_params_on_conversion(True)
    module = s.module()
    out_of(module, s.x)
    return {"wide": out_of(module.double(), s.x.double()), **trained(module.float(), s.x)}


@joint("repr, and the names of parameters and modules")
def names(s: Subject) -> Results:
    module = s.module()
    sizes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return {"parameters": sorted(sizes.items()), "says": bool(repr(module))}


@joint("weights that are views of one flat tensor")
def flat_weights(s: Subject) -> Results:
    module = _used(s).train()
    vector = nn.utils.parameters_to_vector(module.parameters()).detach()
    nn.utils.vector_to_parameters(vector, module.parameters())
    found = trained(module, s.x)
    with torch.no_grad():
        vector.mul_(0.5)
    return {**found, "halved": out_of(module, s.x)}


@joint("a shallow copy, whose weights are changed")
def shallow_copy(s: Subject) -> Results:
    module = _used(s)
    other = copy.copy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.9)
    return {"out": out_of(other, s.x), **trained(other, s.x)}


@joint("load_state_dict with assign, after calls")
def assigned_after_calls(s: Subject) -> Results:
    module = _used(s)
    halves = {name: 0.5 * each for name, each in module.state_dict().items()}
    module.load_state_dict(halves, assign=True)
    return {"out": out_of(module, s.x), **trained(module, s.x)}


@joint("swap_tensors after calls")
def swapped_later(s: Subject) -> Results:
    module = _used(s)
    module.zero_grad(set_to_none=True)
    for parameter in module.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(0.5 * parameter.detach()))
    return {"out": out_of(module, s.x), **trained(module, s.x)}


@joint("FSDP1 on one CPU, with its own parameters")
def fsdp1(s: Subject) -> Results:
    from torch.distributed.fsdp import FullyShardedDataParallel

    _group()
    options: dict[str, Any] = {"use_orig_params": True, "device_id": torch.device("cpu")}
    return trained(FullyShardedDataParallel(s.module(), **options), s.x)


@joint("DistributedDataParallel, gradients compressed to float16", tolerance=2e-2)
def ddp_compressed(s: Subject) -> Results:
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    _group()
    wrapped = nn.parallel.DistributedDataParallel(s.module(), find_unused_parameters=True)
    wrapped.register_comm_hook(None, fp16_compress_hook)
    with wrapped.no_sync():
        trained(wrapped, s.x)
    return trained(wrapped, s.x)


@joint("checkpoint_wrapper of torch.distributed, both kinds", slow=True)
def checkpoint_wrappers(s: Subject) -> Results:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrappers

    found: Results = {}
    for kind in wrappers.CheckpointImpl:
        wrapped = wrappers.checkpoint_wrapper(s.module(), checkpoint_impl=kind)
        found |= {f"{kind.name} {name}": value for name, value in trained(wrapped, s.x).items()}
    return found


@joint("ZeroRedundancyOptimizer, two steps", slow=True)
def zero_redundancy(s: Subject) -> Results:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    _group()
    module = s.module()
    wrapped = nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
    optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.SGD, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss(wrapped(s.x)).backward()
        optimizer.step()
    return {name: weight.detach() for name, weight in module.named_parameters()}


@joint("freed with a cycle and hooks")
def freed_with_cycle(s: Subject) -> Results:
    module = s.module()
    out_of(module, s.x)
    trained(module, s.x)
    for mixer in mixers(module):
        mixer.__dict__["itself"] = mixer
        mixer.in_proj.register_forward_hook(lambda *call: None)
    trained(module, s.x)
    gone = [weakref.ref(each) for each in module.modules()]
    del module, mixer
    gc.collect()
    return {"left": sum(each() is not None for each in gone)}
