"""Threads, forks, errors that pass, modules imported again or in another order."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from tests.joints.declared import BLOCKS, joint
from tests.joints.measures import Results, loss, out_of, same, trained
from tests.joints.subjects import Subject, hooked


@joint("eight threads at the first call")
def eight_threads(s: Subject) -> Results:
    module = s.module().eval()
    barrier = threading.Barrier(8)

    def run(_: int) -> torch.Tensor:
        barrier.wait()
        return out_of(module, s.x)

    with ThreadPoolExecutor(8) as pool:
        outs = list(pool.map(run, range(8)))
    for out in outs:
        same("what each thread gets", out, outs[0])
    return {"out": outs[0]}


@joint("four threads in training, a module each")
def threads_in_training(s: Subject) -> Results:
    modules = [s.module() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda module: trained(module, s.x), modules))
    for each in found:
        same("what each thread gets", each["gradient of x"], found[0]["gradient of x"])
    return found[-1]


@joint("a fork after calls")
def fork_after_calls(s: Subject) -> Results:
    module = s.module()
    first = out_of(module, s.x)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        good = torch.allclose(out_of(module, s.x), first, atol=1e-5)
        os.write(writer, b"1" if good else b"0")
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 1)
    os.waitpid(child, 0)
    return {"out": first, "child": answer.decode()}


@joint("one OutOfMemoryError, and then memory")
def out_of_memory_once(s: Subject) -> Results:
    module = s.module().eval()
    places: list[tuple[Any, str]] = [(torch, "cumsum"), (torch, "einsum"), (torch, "exp")]
    places += [(torch.Tensor, "cumsum"), (torch.Tensor, "exp")]
    real = [getattr(place, name) for place, name in places]
    raised: list[bool] = []

    def once(function: Any) -> Any:
        def call(*args: Any, **keywords: Any) -> Any:
            if not raised:
                raised.append(True)
                raise torch.OutOfMemoryError("CUDA out of memory, once")
            return function(*args, **keywords)

        return call

    for (place, name), function in zip(places, real):
        setattr(place, name, once(function))
    # Each computes otherwise, and may meet it where it can try again or where it cannot.
    with contextlib.suppress(torch.OutOfMemoryError):
        out_of(module, s.x)
    for (place, name), function in zip(places, real):
        setattr(place, name, function)
    if not raised:
        raise AssertionError("a call of an exponential or a sum: expected one, found none")
    return {"out": out_of(module, s.x), **trained(module, s.x)}


@joint("KeyboardInterrupt in a call, and then another")
def interrupted(s: Subject) -> Results:
    module = s.module().eval()
    real = torch.Tensor.exp

    def stop(*args: Any, **keywords: Any) -> Any:
        raise KeyboardInterrupt

    torch.Tensor.exp = stop  # type: ignore[method-assign]
    real_exp, torch.exp = torch.exp, stop
    with contextlib.suppress(KeyboardInterrupt):
        out_of(module, s.x)
    torch.Tensor.exp, torch.exp = real, real_exp  # type: ignore[method-assign]
    return {"out": out_of(module, s.x)}


@joint("jetson_mamba reloaded after calls")
def reloaded(s: Subject) -> Results:
    import importlib

    import jetson_mamba

    module = s.module()
    first = out_of(module, s.x)
    if hooked():
        importlib.reload(jetson_mamba)
    finders = sum(type(each).__module__.startswith("jetson_mamba") for each in sys.meta_path)
    return {"first": first, "more than one": finders > 1, **trained(s.module(), s.x)}


@joint("jetson_mamba purged from sys.modules and imported again")
def purged(s: Subject) -> Results:
    module = s.module()
    first = out_of(module, s.x)
    if hooked():
        for name in [each for each in sys.modules if each.partition(".")[0] == "jetson_mamba"]:
            del sys.modules[name]
        import jetson_mamba
        import jetson_mamba.ops

        assert jetson_mamba.ops
    finders = sum(type(each).__module__.startswith("jetson_mamba") for each in sys.meta_path)
    return {"first": first, "more than one": finders > 1, "out": out_of(module, s.x)}


@joint("mamba_ssm's target reloaded", on=(BLOCKS,))
def target_reloaded(s: Subject) -> Results:
    import importlib

    module = s.module()
    first = out_of(module, s.x)
    if hooked():
        for name in ("mamba_ssm.ops.selective_scan_interface", "mamba_ssm.ops.triton.ssd_combined"):
            importlib.reload(sys.modules[name])
    return {"first": first, **trained(module, s.x)}


@joint("torch.utils.benchmark")
def benchmark(s: Subject) -> Results:
    from torch.utils.benchmark import Timer

    module = s.module()
    timer = Timer("out_of(module, x)", globals={"out_of": out_of, "module": module, "x": s.x})
    return {"runs": timer.timeit(2).number_per_run, "out": out_of(module, s.x)}


ORDERS = {
    "torch and transformers before, mamba_ssm last": "import torch, transformers, mamba_ssm",
    "mamba_ssm first": "import mamba_ssm, torch, transformers",
    "transformers' models before mamba_ssm": (
        "from transformers import MambaForCausalLM, Mamba2ForCausalLM; import mamba_ssm"
    ),
}


@joint("imports in any order, each in a process of its own", on=(BLOCKS,), slow=True)
def orders(s: Subject) -> Results:
    """With the hook mamba_ssm can be imported; without it nothing else is kept from it."""
    found = {}
    for order, imports in ORDERS.items():
        # The hook is activated first, where no startup file has seen to it.
        text = f"import jetson_mamba; {imports}" if hooked() else "import torch, transformers"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", f"{text}; print('imported')"],
            capture_output=True,
            text=True,
            check=False,
        )
        found[order] = done.stdout.strip() or done.stderr.strip()[-300:]
    return found


@joint("a computation in a subprocess of the same environment", on=(BLOCKS,), slow=True)
def subprocess_of_its_own(s: Subject) -> Results:
    text = (
        "import json, sys; from tests.joints.subjects import Subject; "
        "from tests.joints.measures import out_of; s = Subject(sys.argv[1]); "
        "json.dump(out_of(s.module(), s.x).tolist(), sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", text, s.name],
        capture_output=True,
        text=True,
        check=True,
    )
    import json

    return {"out": torch.tensor(json.loads(done.stdout))}


@joint("python -OO, in a process of its own", on=(BLOCKS,), slow=True)
def without_asserts(s: Subject) -> Results:
    text = (
        "import json, sys; from tests.joints.subjects import Subject; "
        "from tests.joints.measures import trained; s = Subject(sys.argv[1]); "
        "json.dump(trained(s.module(), s.x)['gradient of x'].tolist(), sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-OO", "-W", "ignore", "-c", text, s.name],
        capture_output=True,
        text=True,
        check=True,
    )
    import json

    return {"gradient of x": torch.tensor(json.loads(done.stdout))}


@joint("workers that are spawned", on=(BLOCKS,), slow=True)
def spawned(s: Subject) -> Results:
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        found = pool.apply(_step, (s.name,))
    return {"gradient of x": torch.tensor(found)}


def _step(name: str) -> Any:
    found = Subject(name)
    return trained(found.module(), found.x)["gradient of x"].tolist()


@joint("three threads, each in a mode of its own")
def threads_and_modes(s: Subject) -> Results:
    module = s.module().eval()

    def in_inference(_: int) -> torch.Tensor:
        with torch.inference_mode():
            out: torch.Tensor = module(s.x)
        return out.clone()

    def in_training(_: int) -> torch.Tensor:
        x = s.x.clone().requires_grad_()
        loss(module(x)).backward()
        assert x.grad is not None
        return x.grad

    calls = (lambda _: out_of(module, s.x), in_training, in_inference) * 3
    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda call: call(0), calls))
    return dict(zip(("no_grad", "gradient of x", "inference_mode"), found))


@joint("a fork between the passes of training", slow=True)
def fork_between_passes(s: Subject) -> Results:
    module = s.module().train()
    x = s.x.clone().requires_grad_()
    value = loss(module(x))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = b"0"
        with contextlib.suppress(Exception):
            value.backward()
            assert x.grad is not None
            again = trained(s.module(), s.x)["gradient of x"]
            answer = b"1" if torch.allclose(again, x.grad, atol=1e-4) else b"0"
        os.write(writer, answer)
        os._exit(0)
    os.close(writer)
    answer = os.read(reader, 1)
    os.waitpid(child, 0)
    value.backward()
    return {"gradient of x": x.grad, "child": answer.decode()}
