"""What is tried in processes of their own: whatever becomes of one of them, there is an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from jetson_mamba.report import probe
from tests.doctor.sandbox import REPOSITORY

# A clock that a slow import of torch puts forward, and on which each look takes a second.
SLOW = """
import sys, time, types
from jetson_mamba.report import probe

now = 0
def passes(seconds):
    global now
    now += seconds
probe.time = types.SimpleNamespace(
    monotonic=lambda: now, sleep=lambda _: (time.sleep(0.001), passes(1))
)
probe._torch = lambda: passes(200) or {"version": "1"}
probe.main(["torch", "quick", "hangs"], sys.argv[1])
print(now)
"""


def found(**value: Any) -> Any:
    return lambda: value


def ends(code: int) -> Any:
    return lambda: os._exit(code)


def dies() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fails() -> dict[str, Any]:
    raise OSError("\nno such file\nat all")


A_TORCH = found(version="2.9")
TASKS = {
    "good": found(x=1),
    "ends": ends(3),
    "dies": dies,
    "fails": fails,
    "devices": found(gpus=[]),
    "ops": found(backends=[]),
    "compiler": found(nvrtc="13.0"),
    "trial": found(version="2.3.1"),
}


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The answers to these tasks, by a torch that answers with this."""
    monkeypatch.setattr(probe, "SECONDS", 40.0)

    def run(tasks: dict[str, Any], of_torch: Any = A_TORCH) -> dict[str, Any]:
        monkeypatch.setattr(probe, "_torch", of_torch)
        monkeypatch.setattr(probe, "_function_of", tasks.__getitem__)
        probe.main(["torch", *tasks], str(tmp_path))
        return {task: probe._result(str(tmp_path), task) for task in ("torch", *tasks)}

    return run


pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.mark.parametrize("forks", [True, False])
def test_every_task_has_its_answer_whatever_becomes_of_its_process(
    forks: bool, tried: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = dict(TASKS)
    if not forks:
        monkeypatch.delattr(os, "fork")
        tasks = {name: each for name, each in tasks.items() if name not in ("ends", "dies")}
    answers = tried(tasks)
    assert answers.pop("torch") == {"version": "2.9"}
    if forks:
        assert answers.pop("ends") == {"error": "the process ended with exit status 3"}
        assert answers.pop("dies") == {"error": "the process ended with signal SIGKILL"}
    assert answers == {
        "good": {"x": 1},
        "fails": {"error": "OSError: no such file"},
        "devices": {"gpus": []},
        "ops": {"backends": []},
        "compiler": {"nvrtc": "13.0"},
        "trial": {"version": "2.3.1"},
    }


def test_without_a_torch_what_needs_it_is_not_tried(tried: Any) -> None:
    answers = tried({"good": TASKS["good"], **dict.fromkeys(NEED_TORCH, dies)}, fails)
    assert answers.pop("torch") == {"error": "OSError: no such file"}
    assert answers.pop("good") == {"x": 1}
    assert answers == {name: {"error": "torch cannot be imported"} for name in NEED_TORCH}


NEED_TORCH = ("devices", "ops", "compiler", "trial")


@pytest.mark.parametrize(
    ("code", "said", "error"),
    [
        (1, "Traceback\nImportError: no numpy\n", "ImportError: no numpy"),
        (1, "", "exit status 1"),
        (2, "words\n", "exit status 2"),
        (-signal.SIGSEGV, "words\n", "signal SIGSEGV"),
        (None, "", "no answer within 300 s"),
    ],
)
def test_a_process_that_leaves_no_answer_says_how_it_ended(
    code: int | None, said: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append((command, options))
        folder = json.loads(command[-1])[2]
        probe._write(folder, "devices", {"gpus": []})
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return SimpleNamespace(returncode=code, stderr=said)

    monkeypatch.setattr(subprocess, "run", run)
    answers = probe.probe(["/a", "/b"], ["some_module"])
    assert answers == {
        **{task: {"error": error} for task in ("torch", "ops", "some_module")},
        "devices": {"gpus": []},
    }
    ((command, options),) = asked
    assert command[0] == sys.executable and "ignore" in command
    path, tasks, folder = json.loads(command[-1])
    assert (path, tasks) == (["/a", "/b"], ["torch", "devices", "ops", "some_module"])
    assert not os.path.exists(folder)
    assert os.path.basename(folder).startswith("jetson-mamba-")
    assert options == {
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True},
        **{"errors": "replace", "timeout": 300.0, "check": False},
    }


def test_a_stand_in_says_why_what_is_installed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("some_extension")
    monkeypatch.setitem(sys.modules, "some_extension", module)
    module.__file__ = "/site/some_extension.so"
    assert probe._module("some_extension") == {"path": "/site/some_extension.so", "parameters": {}}
    module.__jetson_mamba_reason__ = "undefined symbol\nand more"
    assert probe._module("some_extension") == {"error": "undefined symbol"}


OF_THE_CONVOLUTION = ("causal_conv1d_fwd", "causal_conv1d_bwd", "causal_conv1d_update")


@pytest.mark.parametrize("lacking", [*OF_THE_CONVOLUTION, None])
def test_the_functions_of_the_convolution_tell_their_parameters(
    lacking: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jetson_mamba.ops.causal_conv1d import extension

    module: Any = ModuleType("causal_conv1d_cuda")
    there = [name for name in OF_THE_CONVOLUTION if name != lacking]
    vars(module).update(dict.fromkeys(there, len))
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", module)
    monkeypatch.setattr(extension, "parameters", lambda function: 8)
    counts = dict.fromkeys(there, 8)
    assert probe._module("causal_conv1d_cuda") == {"path": None, "parameters": counts}

    def unknown(function: Any) -> int:
        raise TypeError("it does not tell")

    monkeypatch.setattr(extension, "parameters", unknown)
    assert probe._module("causal_conv1d_cuda")["parameters"] == {}


@pytest.mark.parametrize("available", [True, False])
def test_the_gpus_that_torch_sees_are_told(
    available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def properties(index: int) -> Any:
        return SimpleNamespace(
            name=f"GPU {index}", major=8, minor=7 + index, total_memory=1000 + index
        )

    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch._C, "_cuda_getArchFlags", lambda: "sm_80 sm_87", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch, "compiled_with_cxx11_abi", lambda: True)
    answer = probe._devices()
    gpus = answer.pop("gpus")
    assert answer == {
        "cuda": "12.6",
        "hip": None,
        "cxx11_abi": True,
        "architectures": ["sm_80", "sm_87"],
        "cuda_available": available,
    }
    assert (
        gpus
        == [
            {"name": "GPU 0", "capability": "8.7", "memory_bytes": 1000},
            {"name": "GPU 1", "capability": "8.8", "memory_bytes": 1001},
        ][: 2 * available]
    )
    monkeypatch.delattr(torch._C, "_cuda_getArchFlags")
    monkeypatch.delattr(torch, "compiled_with_cxx11_abi")
    answer = probe._devices()
    assert answer["architectures"] == [] and answer["cxx11_abi"] is None


def test_what_hangs_is_ended_before_nobody_waits_any_more(tmp_path: Path) -> None:
    """However long torch took: else the fork that hangs would be left behind."""
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)\n")
    (tmp_path / "quick.py").touch()
    done = subprocess.run(
        [sys.executable, "-S", "-c", SLOW, str(tmp_path)],
        env={"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 200 < int(done.stdout) < probe.SECONDS
    told = {
        name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("quick", "hangs")
    }
    assert "error" not in told["quick"]
    assert told["hangs"] == {"error": "no answer in time"}


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit status 0"), (3, "exit status 3"), (-9, "signal SIGKILL"), (-40, "signal 40")],
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert probe._end(code) == words
