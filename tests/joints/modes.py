"""Joints of modes that see calls or stand in for them.

Devices without numbers are among them, and tools built on modes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.joints.declared import joint
from tests.joints.measures import (
    Results,
    gradients,
    loss,
    out_of,
    parameters,
    same,
    trained,
)
from tests.joints.subjects import Subject


class Functions(TorchFunctionMode):
    """Counts the functions of torch that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call, and make it."""
        self.seen.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the call, and make it."""
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _watched(s: Subject, mode: Any, train: bool) -> Results:
    module = s.module().train(train)
    counts, outs = [], []
    for _ in range(3):
        with mode() as watching, torch.set_grad_enabled(train):
            outs.append(module(s.x))
        counts.append(len(watching.seen))
    if len(set(counts)) > 1 or not counts[0]:
        raise AssertionError(f"calls that are seen the first, second and third time: {counts}")
    return {"out": outs[0].detach(), "third": outs[2].detach()}


@joint("TorchFunctionMode sees each call alike")
def function_mode(s: Subject) -> Results:
    return _watched(s, Functions, train=False)


@joint("TorchDispatchMode sees each call alike")
def dispatch_mode(s: Subject) -> Results:
    return _watched(s, Dispatches, train=False)


@joint("TorchDispatchMode in training")
def dispatch_mode_in_training(s: Subject) -> Results:
    module = s.module()
    with Dispatches():
        return trained(module, s.x)


@joint("TorchFunctionMode in training")
def function_mode_in_training(s: Subject) -> Results:
    module = s.module()
    with Functions():
        return trained(module, s.x)


@joint("a mode that scales what a projection gives")
def scaling_mode(s: Subject) -> Results:
    class Scaling(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            return 2 * out if func is torch.nn.functional.silu else out

    module = s.module().eval()
    with torch.no_grad():
        before = module(s.x)
        with Scaling():
            module(s.x)
        return {"before": before, "after": module(s.x)}


def _fake(s: Subject, module: torch.nn.Module) -> Results:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        out = module.train()(mode.from_tensor(s.x))
        loss(out).backward()
    return {"shape": tuple(out.shape), "dtype": str(out.dtype)}


@joint("FakeTensorMode at the first call")
def fake_first(s: Subject) -> Results:
    found = _fake(s, s.module())
    return {**found, **trained(s.module(), s.x)}


@joint("FakeTensorMode after a call")
def fake_later(s: Subject) -> Results:
    trained(s.module(), s.x)
    return _fake(s, s.module())


@joint("a module that is made under FakeTensorMode")
def made_fake(s: Subject) -> Results:
    with FakeTensorMode(), torch.device("cpu"):
        module = s.module() if s.kind == "blocks" else s.model()
        x = torch.randn(*s.x.shape) if s.kind == "blocks" else torch.zeros(2, 5, dtype=torch.int64)
        out = module.eval()(x)
    out = out if isinstance(out, Tensor) else out.logits
    return {"shape": tuple(out.shape)}


def _fx(s: Subject, mode: Any) -> Results:
    module = s.module().eval()
    weights = parameters(module)

    def run(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(module, weights, (x,))
        return out

    with torch.no_grad():
        graph = make_fx(run, tracing_mode=mode)(weights, s.x)
        x = s.x.flip(1)
        out = graph(weights, x)
        same("the graph with other numbers", out, module(x))
        found = {"out": graph(weights, s.x), "flipped": out}
        if mode == "symbolic":
            longer = torch.cat([s.x, s.x.flip(1)], 1)
            found["longer"] = graph(weights, longer)
            same("the graph at another size", found["longer"], module(longer))
    return found


@joint("make_fx, real")
def fx_real(s: Subject) -> Results:
    return _fx(s, "real")


@joint("make_fx, fake")
def fx_fake(s: Subject) -> Results:
    return _fx(s, "fake")


@joint("make_fx, symbolic", may_refuse=True)
def fx_symbolic(s: Subject) -> Results:
    return _fx(s, "symbolic")


@joint("make_fx of a gradient")
def fx_of_gradient(s: Subject) -> Results:
    module = s.module().train()

    def of_input(x: Tensor) -> Tensor:
        return loss(module(x))

    graph = make_fx(torch.func.grad(of_input))(s.x)
    return {"gradient of x": graph(s.x), "of another": graph(s.x.flip(1))}


@joint("FlopCounterMode: as many the first time as the second")
def flops(s: Subject) -> Results:
    module = s.module().train()
    counts = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            loss(module(s.x)).backward()
        counts.append(counter.get_total_flops())
    if len(set(counts)) > 1 or not counts[0]:
        raise AssertionError(f"operations the first, second and third time: {counts}")
    return gradients(module)


@joint("MemTracker")
def mem_tracker(s: Subject) -> Results:
    from torch.distributed._tools.mem_tracker import MemTracker

    module = s.module()
    tracker = MemTracker()
    tracker.track_external(module)
    with tracker:
        return trained(module, s.x)


@joint("ModuleTracker")
def module_tracker(s: Subject) -> Results:
    from torch.utils.module_tracker import ModuleTracker

    module = s.module()
    with ModuleTracker():
        return trained(module, s.x)


@joint("the profiler")
def profiler(s: Subject) -> Results:
    module = s.module()
    with torch.profiler.profile(record_shapes=True, with_flops=True, profile_memory=True) as found:
        results = trained(module, s.x)
    return {**results, "events": bool(found.key_averages())}


@joint("the meta device")
def meta(s: Subject) -> Results:
    module = s.module().to("meta").train()
    out = module(s.x.to("meta"))
    out.sum().backward()
    return {"shape": tuple(out.shape), "device": str(out.device)}


@joint("the meta device without gradients, at the first call")
def meta_no_grad(s: Subject) -> Results:
    module = s.module().to("meta").eval()
    with torch.no_grad():
        out = module(s.x.to("meta"))
    return {"shape": tuple(out.shape), "device": str(out.device), **trained(s.module(), s.x)}


@joint("made on the meta device, then materialised")
def materialised(s: Subject) -> Results:
    with torch.device("meta"):
        module = s.module()
    module.to_empty(device="cpu")
    with torch.no_grad():
        source = s.module()
        for tensors in ("named_parameters", "named_buffers"):
            theirs = dict(getattr(source, tensors)(remove_duplicate=False))
            for name, ours in getattr(module, tensors)(remove_duplicate=False):
                ours.copy_(theirs[name])
    return trained(module, s.x)


@joint("made on the meta device, assigned")
def assigned(s: Subject) -> Results:
    with torch.device("meta"):
        module = s.module()
    source = s.module()
    module.load_state_dict(source.state_dict(), assign=True)
    for path, buffer in source.named_buffers():
        home, _, name = path.rpartition(".")
        module.get_submodule(home).register_buffer(name, buffer, persistent=False)
    return trained(module, s.x)


@joint("a context of the default device, cpu")
def device_context(s: Subject) -> Results:
    with torch.device("cpu"):
        return trained(s.module(), s.x)


@joint("a context of the default device, meta, around a call")
def meta_context(s: Subject) -> Results:
    module = s.module().eval()
    with torch.no_grad(), torch.device("meta"):
        out = module(s.x)
    return {"out": out}


@joint("set_default_device meta, and a call on the CPU")
def default_meta(s: Subject) -> Results:
    module, x = s.module().eval(), s.x
    torch.set_default_device("meta")
    with torch.no_grad():
        out = module(x)
    torch.set_default_device("cpu")
    return {"out": out, "later": out_of(module, x)}


@joint("a module that is made in inference mode")
def made_in_inference_mode(s: Subject) -> Results:
    with torch.inference_mode():
        module = s.module()
        inside = out_of(module, s.x)
    return {"inside": inside.clone(), "outside": out_of(module, s.x)}


@joint("training of a module that is made in inference mode")
def trained_from_inference_mode(s: Subject) -> Results:
    with torch.inference_mode():
        module = s.module()
    return trained(module, s.x)


@joint("every function watched: sys.setprofile")
def profiled_functions(s: Subject) -> Results:
    import sys

    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(event))
    try:
        found = trained(s.module(), s.x)
    finally:
        sys.setprofile(None)
    return {"watched": len(calls) > 100, **found}


@joint("every warning an error")
def warnings_are_errors(s: Subject) -> Results:
    import warnings

    module = s.module()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {"out": out_of(module, s.x), **trained(module, s.x)}
