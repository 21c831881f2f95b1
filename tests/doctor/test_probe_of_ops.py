"""What the ops are asked on each device."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import jetson_mamba
from jetson_mamba.errors import Unavailable
from jetson_mamba.report import probe
from jetson_mamba.report.status import Backend, PassedOver, Selected

BACKEND = Backend("ssd", {"device": "cpu"}, "pytorch", (PassedOver("cuda", "no GPU"),))
CALLS = {
    "causal_conv1d": ("causal_conv1d_fn", [(1, 8, 16), (8, 4)], {"activation": "silu"}),
    "selective_scan": (
        "selective_scan_fn",
        [(1, 8, 16), (1, 8, 16), (8, 16), (1, 1, 16, 16), (1, 1, 16, 16)],
        {},
    ),
    "ssd": (
        "mamba_chunk_scan_combined",
        [(1, 16, 2, 4), (1, 16, 2), (2,), (1, 16, 1, 4), (1, 16, 1, 4), 16],
        {},
    ),
}
DECAYS = {"selective_scan": 2, "ssd": 2}  # the place of A, which is negative
NOTHING = "Triton launches nothing on {} ({}), so the op serves there."


class Ops(ModuleType):
    """The ops as they are asked, by their functions and devices."""

    def __init__(self) -> None:
        super().__init__("jetson_mamba.ops")
        self.asked: list[tuple[str, str, list[Any], dict[str, Any]]] = []
        self.refused: dict[str, BaseException] = {}
        self.runs = True
        self.said: list[str] = []
        for op, (function, _, _) in CALLS.items():
            setattr(self, function, self._function(op))

    def _function(self, op: str) -> Any:
        def function(*arguments: Any, **keywords: Any) -> None:
            first = arguments[0]
            shapes = [tuple(getattr(each, "shape", ())) or each for each in arguments]
            if op in DECAYS:
                assert (arguments[DECAYS[op]] == -1).all()
            self.asked.append((op, DEVICES.get(id(first), "?"), shapes, keywords))
            if op in self.refused:
                raise self.refused[op]

        return function

    def triton_runs_on(self, device: torch.device) -> bool:
        """Whether kernels of Triton's run there."""
        for said in self.said:
            warnings.warn(said, RuntimeWarning, stacklevel=1)
        return self.runs


# What each tensor is said to be on.
DEVICES: dict[int, str] = {}
KEPT: list[torch.Tensor] = []


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ops that note what they are asked, where torch sees two GPUs."""
    made = Ops()
    ones = torch.ones

    def named(*shape: int, device: str) -> torch.Tensor:
        tensor = ones(*shape)
        KEPT.append(tensor)
        DEVICES[id(tensor)] = device
        return tensor

    monkeypatch.setattr(torch, "ones", named)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setitem(sys.modules, "jetson_mamba.ops", made)
    monkeypatch.setattr(jetson_mamba, "ops", made, raising=False)
    selected: list[Selected] = []
    status = SimpleNamespace(backends=(BACKEND,), selections=selected)
    monkeypatch.setattr("jetson_mamba.report.status.status", lambda: status)
    made.selected = selected  # type: ignore[attr-defined]
    yield made
    DEVICES.clear()
    KEPT.clear()


@pytest.mark.parametrize("runs", [True, False])
def test_every_op_is_called_on_every_device(runs: bool, ops: Any) -> None:
    """That of Mamba-2 only where upstream's kernels do not run, which take long to be tuned."""
    ops.runs = runs
    answer = probe._ops()
    assert answer == {
        "backends": [asdict(BACKEND)],
        "selections": [],
        "unserved": [],
        "triton_launch": None,
        "ignored": None,
    }
    names = [op for op in CALLS if op != "ssd" or not runs]
    assert ops.asked == [
        (op, device, CALLS[op][1], CALLS[op][2])
        for device in ("cpu", "cuda:0", "cuda:1")
        for op in names
    ]


def test_without_a_gpu_the_cpu_is_all(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    probe._ops()
    assert {device for _, device, _, _ in ops.asked} == {"cpu"}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([], None),
        ([NOTHING.format("cuda:0", "no ptxas")], "no ptxas"),
        ([NOTHING.format("cuda:0", "no ptxas"), "Something else (x), so it is."], "no ptxas"),
        (["Something else (x), so it is."], None),
        ([f"Of old: {NOTHING.format('cuda:0', 'no ptxas')}"], None),
    ],
)
def test_why_triton_launches_nothing_is_told(said: list[str], reason: Any, ops: Any) -> None:
    ops.said = said
    assert probe._ops()["triton_launch"] == reason


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize(
    ("message", "cause", "reason"),
    [
        ("not\nserved", None, "not"),
        ("it does not serve", OSError("no\nlibrary"), "no"),
        ("", None, "no message"),
    ],
)
def test_what_a_named_backend_refuses_is_told_of_each_device(
    op: str, message: str, cause: Any, reason: str, ops: Any
) -> None:
    ops.runs = False
    ops.refused[op] = RuntimeError(message)
    ops.refused[op].__cause__ = cause
    with pytest.raises(RuntimeError):  # where none is named it is a fault
        probe._ops()
    other = next(each for each in CALLS if each != op)
    ops.selected.append(Selected(other, "cuda", "JETSON_MAMBA_BACKEND"))
    with pytest.raises(RuntimeError):
        probe._ops()
    ops.selected.append(Selected(op, "cuda", "JETSON_MAMBA_BACKEND"))
    answer = probe._ops()
    assert answer["unserved"] == [
        {"op": op, "device": device, "reason": reason} for device in ("cpu", "cuda:0", "cuda:1")
    ]
    assert answer["selections"] == [asdict(each) for each in ops.selected]


def test_an_error_of_another_kind_is_no_refusal(ops: Any) -> None:
    ops.refused["causal_conv1d"] = TypeError("x")
    ops.selected.append(Selected("causal_conv1d", "cuda", "JETSON_MAMBA_BACKEND"))
    with pytest.raises(TypeError):
        probe._ops()


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ([], None),
        (["JETSON_MAMBA_BACKEND: expected a name"], "JETSON_MAMBA_BACKEND: expected a name"),
        (["else", "JETSON_MAMBA_BACKEND: 1", "JETSON_MAMBA_BACKEND: 2"], "JETSON_MAMBA_BACKEND: 1"),
        (["of JETSON_MAMBA_BACKEND"], None),
    ],
)
def test_that_the_variable_is_ignored_is_told_as_the_import_says_it(
    says: list[str], told: str | None, ops: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Says(ModuleType):
        def __getattr__(self, name: str) -> Any:
            for each in says:
                warnings.warn(each, RuntimeWarning, stacklevel=1)
            return ops if name == "ops" else getattr(jetson_mamba, name)

    monkeypatch.setitem(sys.modules, "jetson_mamba", Says("jetson_mamba"))
    assert probe._ops()["ignored"] == told


def test_torch_tells_its_version_and_its_file() -> None:
    assert probe._torch() == {"version": torch.__version__, "path": torch.__file__}


def test_each_task_has_its_function(monkeypatch: pytest.MonkeyPatch) -> None:
    for task in ("devices", "ops", "compiler", "trial"):
        assert probe._function_of(task) is getattr(probe, f"_{task}")
    monkeypatch.setattr(probe, "_module", lambda name: {"path": name})
    assert probe._function_of("triton")() == {"path": "triton"}


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("refused", [None, "nvrtc", "all"])
def test_what_compiles_tells_its_releases_and_why_it_does_not(
    installed: bool, refused: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import metadata

    def version(name: str) -> str:
        if not installed:
            raise metadata.PackageNotFoundError(name)
        return f"of {name}"

    def unless(kind: str, value: Any = None) -> Any:
        def asked() -> Any:
            if refused == kind:
                raise Unavailable("no driver")
            return value

        return asked

    compiler = "jetson_mamba.kernels.compiler"
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(f"{compiler}.nvrtc_version", unless("nvrtc", "13.0"))
    monkeypatch.setattr(f"{compiler}.require", unless("all"))
    expected: dict[str, Any] = {"cuda_core": "of cuda-core"} if installed else {}
    if refused != "nvrtc":
        expected["nvrtc"] = "13.0"
    if refused is not None:
        expected["reason"] = "no driver"
    assert probe._compiler() == expected


def test_a_trial_gives_the_version_or_why_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from jetson_mamba.report import trial

    monkeypatch.setattr(trial, "run", lambda: "2.3.1")
    assert probe._trial() == {"version": "2.3.1"}

    def fails() -> str:
        raise trial.Failed("the block fails")

    monkeypatch.setattr(trial, "run", fails)
    assert probe._trial() == {"error": "the block fails"}
