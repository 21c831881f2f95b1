"""Imports torch, the extensions or the ops in a process of their own.

A report must outlive what it reports on: an extension that was built for another torch may take its
process with it. Torch is imported once, in a process that a report starts. Each thing to be tried
is then tried in a fork of that process, which writes what it found to a file; where the fork ends
before it does, that is what is reported.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any, Callable, Sequence

# What a report waits for: a first launch may compile kernels, and a board is slow.
SECONDS = 300.0
START = (
    "import json, sys; path, tasks, folder = json.loads(sys.argv[1]); sys.path[:] = path; "
    "from jetson_mamba.report import probe; probe.main(tasks, folder)"
)


def probe(path: Sequence[str], modules: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What torch says of itself and its devices, what importing each module gives, the ops.

    ``path`` is the ``sys.path`` of the process. The keys are "torch", "devices", "ops" and the
    modules. A value with "error" tells of something that failed.
    """
    tasks = ["torch", "devices", "ops", *modules]
    with tempfile.TemporaryDirectory(prefix="jetson-mamba-") as folder:
        # -E and -S would change what is on trial; warnings are read from the results.
        arguments = json.dumps([list(path), tasks, folder])
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", START, arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=SECONDS,
                check=False,
            )
            end = _end(done.returncode)
            if end == "exit status 1":
                end = (done.stderr.strip().splitlines() or [end])[-1]
        except subprocess.TimeoutExpired:
            end = f"no answer within {SECONDS:.0f} s"
        return {task: _result(folder, task) or {"error": end} for task in tasks}


def main(tasks: list[str], folder: str) -> None:
    """Try each task, which leaves ``folder/<task>.json``."""
    # Before that of who started this, which would leave the forks behind.
    deadline = time.monotonic() + SECONDS - 10
    torch = _attempt(_torch)
    _write(folder, "torch", torch)
    waiting = {}
    for task in tasks[1:]:
        if "error" in torch and task in ("devices", "ops", "compiler", "trial"):
            _write(folder, task, {"error": "torch cannot be imported"})
        elif hasattr(os, "fork"):
            sys.stdout.flush()
            sys.stderr.flush()
            child = os.fork()
            if child == 0:
                _write(folder, task, _attempt(_function_of(task)))
                os._exit(0)
            waiting[child] = task
        else:
            _write(folder, task, _attempt(_function_of(task)))
    while waiting:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            task = waiting.pop(child)
            if _result(folder, task) is None:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                _write(folder, task, {"error": f"the process ended with {_end(code)}"})
        elif time.monotonic() > deadline:
            for child, task in waiting.items():
                os.kill(child, signal.SIGKILL)
                _write(folder, task, {"error": "no answer in time"})
            break
        else:
            time.sleep(0.005)


def _torch() -> dict[str, Any]:
    import torch

    return {"version": str(torch.__version__), "path": torch.__file__}


def _devices() -> dict[str, Any]:
    """How torch was built, and the GPUs that it sees."""
    import torch

    compiled = getattr(torch._C, "_cuda_getArchFlags", str)() or ""
    abi = getattr(torch, "compiled_with_cxx11_abi", None)
    available = bool(torch.cuda.is_available())
    gpus = []
    for index in range(torch.cuda.device_count() if available else 0):
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
            }
        )
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cxx11_abi": bool(abi()) if abi else None,
        "architectures": compiled.split(),
        "cuda_available": available,
        "gpus": gpus,
    }


def _module(name: str) -> dict[str, Any]:
    module = importlib.import_module(name)
    reason = getattr(module, "__jetson_mamba_reason__", None)
    if reason is not None:  # what is installed cannot be imported, and the stand-in was
        return {"error": reason.splitlines()[0]}
    counts = {}
    if name == "causal_conv1d_cuda":
        # Without ops, and of what does not tell, nothing is known; the module loads all the same.
        with contextlib.suppress(ImportError):
            from jetson_mamba.ops.causal_conv1d.extension import parameters

            for function in ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update"):
                with contextlib.suppress(AttributeError, TypeError):
                    counts[function] = parameters(getattr(module, function))
    return {"path": getattr(module, "__file__", None), "parameters": counts}


def _ops() -> dict[str, Any]:
    """The backends that serve a call of each op on each device, and what a named one refuses."""
    from dataclasses import asdict

    import torch

    from jetson_mamba.report.status import status

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from jetson_mamba import ops
    told = [str(each.message) for each in caught]
    triton_launch = None
    selections = [asdict(each) for each in status().selections]
    unserved = []

    def call(
        op: str, device: str, function: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> None:
        try:
            function(*arguments, **keywords)
        except RuntimeError as error:
            if not any(each["op"] == op for each in selections):
                raise
            reason = (str(error.__cause__ or error) or "no message").splitlines()[0]
            unserved.append({"op": op, "device": device, "reason": reason})

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    for device in devices:
        x = torch.ones(1, 8, 16, device=device)
        weight = torch.ones(8, 4, device=device)
        states = torch.ones(1, 1, 16, 16, device=device)
        call("causal_conv1d", device, ops.causal_conv1d_fn, x, weight, activation="silu")
        A = -weight.repeat(1, 4)
        call("selective_scan", device, ops.selective_scan_fn, x, x, A, states, states)
        heads = torch.ones(1, 16, 2, 4, device=device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs = ops.triton_runs_on(heads.device)
        for each in caught:
            match = re.match(r"Triton launches nothing on .*? \((.*?)\), so ", str(each.message))
            triton_launch = match[1] if match else triton_launch
        if not runs:
            B = heads[:, :, :1]
            scan = ops.mamba_chunk_scan_combined
            call("ssd", device, scan, heads, heads[..., 0], -weight[:2, 0], B, B, 16)
    return {
        "backends": [asdict(each) for each in status().backends],
        "selections": selections,
        "unserved": unserved,
        "triton_launch": triton_launch,
        "ignored": next((each for each in told if each.startswith("JETSON_MAMBA_BACKEND")), None),
    }


def _compiler() -> dict[str, Any]:
    """The releases of what compiles and launches this package's kernels."""
    from importlib import metadata

    from jetson_mamba.errors import Unavailable
    from jetson_mamba.kernels import compiler

    found: dict[str, Any] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["cuda_core"] = metadata.version("cuda-core")
    try:
        found["nvrtc"] = compiler.nvrtc_version()
        compiler.require()
    except Unavailable as reason:
        found["reason"] = str(reason)
    return found


def _trial() -> dict[str, Any]:
    """What importing mamba_ssm and running a block of each kind gives."""
    from jetson_mamba.report import trial

    try:
        return {"version": trial.run()}
    except trial.Failed as failed:
        return {"error": str(failed)}


def _function_of(task: str) -> Callable[[], dict[str, Any]]:
    own = {"devices": _devices, "ops": _ops, "compiler": _compiler, "trial": _trial}
    return own.get(task) or (lambda: _module(task))


def _attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return function()
    except BaseException as error:  # whatever a broken installation raises
        text = (str(error).strip() or "no message").splitlines()[0]
        return {"error": f"{type(error).__name__}: {text}"}


def _write(folder: str, task: str, result: dict[str, Any]) -> None:
    partial = os.path.join(folder, f"{task}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace(partial, os.path.join(folder, f"{task}.json"))


def _result(folder: str, task: str) -> dict[str, Any] | None:
    try:
        with open(os.path.join(folder, f"{task}.json"), encoding="utf-8") as file:
            result: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return None
    return result


def _end(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        known = {int(each): each.name for each in signal.Signals}
        return f"signal {known.get(-code, -code)}"
    return f"exit status {code}"
