"""The command `bench` times what is available here. It says what is not, and why."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch

from jetson_mamba import __version__ as jetson_mamba_version
from jetson_mamba.dispatch import selection
from jetson_mamba.errors import Unavailable
from jetson_mamba.report import bench, timing
from jetson_mamba.report.timing import Timer
from tests.cli.command import jetson_mamba, shadow
from tests.cli.test_bad_input import complaint
from tests.ops.small_op import broken, serve, small_op, unavailable

QUICK = ("--device", "cpu", "--op", "causal_conv1d", "--dtype", "float32", "--rep", "1")
CPU = torch.device("cpu")


def test_every_row_has_a_time_and_its_floor(tmp_path: Path) -> None:
    done = jetson_mamba("bench", "--device", "cpu", "--rep", "1", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["device"] == "cpu" and found["torch"] == torch.__version__
    rows = found["rows"]
    assert len(rows) == 2 * (2 * 2 * 2 + 2 * 2)
    assert {(row["op"], row["direction"]) for row in rows} == set(bench.LEAST_TENSORS)
    for row in rows:
        element = {"bfloat16": 2, "float32": 4}[row["dtype"]]
        tensors = bench.LEAST_TENSORS[row["op"], row["direction"]]
        least_bytes = tensors * element * row["batch"] * row["dim"] * row["seqlen"]
        assert row["floor_microseconds"] == pytest.approx(least_bytes / found["copy_rate"])
        fastest = min(row["microseconds"].values())
        assert row["of_floor"] == pytest.approx(row["floor_microseconds"] / fastest)
        assert row["failures"] == {}
    # Both passes of more work take longer: what is timed is the call.
    scan = [row for row in rows if row["op"] == "selective_scan" and row["dtype"] == "float32"]
    for direction in ("forward", "backward"):
        small, large = (row for row in scan if row["direction"] == direction)
        assert small["microseconds"]["pytorch"] < large["microseconds"]["pytorch"]


def test_each_backend_says_its_release_or_why_it_is_not_here(tmp_path: Path) -> None:
    done = jetson_mamba("bench", *QUICK, "--json", folder=tmp_path)
    backends = {each["name"]: each for each in json.loads(done.stdout)["backends"]}
    assert list(backends) == list(selection.OPS["causal_conv1d"].order)
    assert backends["pytorch"]["release"] == f"torch {torch.__version__}"
    assert backends["pytorch"]["unavailable"] == {}
    assert backends["cuda"]["unavailable"] == {"float32": "the kernels run on CUDA devices only"}


def test_without_a_gpu_it_runs_on_the_cpu_and_says_so(tmp_path: Path) -> None:
    done = jetson_mamba("bench", *QUICK[2:], folder=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "torch sees no GPU: this is the CPU, at sizes of its own\n"
    lines = done.stdout.splitlines()
    assert "causal_conv1d, forward, microseconds" in done.stdout
    assert any(line.split()[:5] == ["1,", "64,", "256", "float32", "BLD"] for line in lines)
    assert "CPU, 1 threads, torch" in done.stdout
    assert f"causal_conv1d, pytorch: torch {torch.__version__}" in lines
    assert "selective_scan" not in done.stdout
    assert max(map(len, lines)) < 100


def test_the_times_are_drawn(tmp_path: Path) -> None:
    done = jetson_mamba("bench", *QUICK, "--plot", "times.png", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "plot: times.png" in done.stderr
    picture = (tmp_path / "times.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(picture[16:20], "big") >= 1200


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    missing = "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')\n"
    path = shadow(tmp_path, "matplotlib", missing)
    line = complaint("bench", *QUICK, "--plot", "times.png", folder=tmp_path, path=(path,))
    assert "-m pip install matplotlib" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--op", "attention"), "--op attention: expected causal_conv1d or selective_scan"),
        (("--dtype", "fp64"), "--dtype fp64: expected bfloat16 or float32"),
        (("--device", "tpu"), "--device tpu: expected cpu or cuda"),
        (("--rep", "0"), "Invalid value for '--rep'"),
        (("--plot", "times.svg"), "--plot times.svg: expected a file whose name ends in .png"),
        (("--plot", "no/times.png"), "--plot no/times.png: expected a file in a folder that can"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    assert expected in complaint("bench", *arguments, folder=tmp_path)


def test_each_backend_is_timed_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that work, of which one lacks memory and one fails here, and two that do not."""
    op = small_op(
        monkeypatch,
        "causal_conv1d",
        absent=unavailable,
        built_wrongly=broken,
        quick=serve,
        wasteful=serve,
        wrong=serve,
    )
    monkeypatch.setattr(selection, "OPS", {"causal_conv1d": op})
    monkeypatch.setattr(bench, "OPS", selection.OPS)
    served: list[tuple[str, int]] = []

    def passes(case: bench.Case, device: torch.device) -> bench.Passes:
        def call() -> None:
            op.implementation("a")
            assert op.selection is not None
            served.append((op.selection.backend, case.size.seqlen))
            if case.size.seqlen == 512 and op.selection.backend == "wasteful":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            if case.size.seqlen == 512 and op.selection.backend == "wrong":
                raise ValueError("first\nsecond")

        return {"forward": call, "backward": call}

    monkeypatch.setitem(bench._PASSES, "causal_conv1d", passes)
    run = bench.Run(CPU, ["causal_conv1d"], ["float32"], rep=1)
    case = next(case for case in run.cases if case.size.seqlen == 512)
    served.clear()
    rows = run.rows(case)
    assert {backend for backend, _ in served} == {"quick", "wasteful", "wrong"}
    for row in rows:
        assert list(row.microseconds) == ["quick"]
        assert row.failures == {"wasteful": "out of memory", "wrong": "ValueError: first"}
    reasons = {each.name: each.unavailable for each in run.result(rows).backends}
    assert reasons == {
        "absent": {"float32": "not for a"},
        "built_wrongly": {"float32": "x.so: undefined symbol: _ZN3c10"},
        "quick": {},
        "wasteful": {},
        "wrong": {},
    }
    assert op.selection is None


def test_a_row_that_nothing_serves_has_a_floor_and_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    op = small_op(monkeypatch, "selective_scan", absent=unavailable)
    monkeypatch.setattr(selection, "OPS", {"selective_scan": op})
    monkeypatch.setattr(bench, "OPS", selection.OPS)
    monkeypatch.setitem(
        bench._PASSES,
        "selective_scan",
        lambda case, device: {"forward": lambda: op.implementation("a"), "backward": int},
    )
    run = bench.Run(CPU, ["selective_scan"], ["bfloat16"], rep=1)
    for row in run.rows(run.cases[0]):
        assert row.floor_microseconds > 0
        assert (row.microseconds, row.of_floor) == ({}, None)


def test_a_time_is_the_median_of_calls_that_find_the_cache_cold() -> None:
    timer = Timer(CPU)
    calls: list[bool] = []

    def call() -> None:
        calls.append(bool(timer._cold.any()))
        timer._cold[::4096] = 1
        time.sleep(0.1 if len(calls) in (1, 5) else 0.002)

    median = timer.microseconds(call, milliseconds=200)
    assert 2_000 <= median < 50_000
    assert 5 <= len(calls) <= 102
    assert not any(calls)


def test_a_slow_call_is_repeated_a_few_times_only() -> None:
    calls: list[Any] = []

    def call() -> None:
        calls.append(None)
        time.sleep(0.03)

    assert Timer(CPU).microseconds(call, milliseconds=1) >= 30_000
    assert len(calls) == 5


def test_the_rate_of_a_copy_is_that_of_this_machine() -> None:
    """Within what any memory does: 0.1 to 2000 GB/s."""
    assert 1e2 < Timer(CPU).copy_rate() < 2e6


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_result_tells_what_it_was_measured_on(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.Run.__new__(bench.Run)
    run._timer = SimpleNamespace(device=torch.device(kind))  # type: ignore[assignment]
    run._copy_rate, run._unavailable = 12.5, {("selective_scan", "float32"): {"cuda": "no GPU"}}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device}")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(bench, "driver", lambda: "580")
    monkeypatch.setattr(bench, "_release", lambda op, backend: f"{backend} for {op}")
    found = run.result([])
    assert (found.device, found.rows, found.copy_rate) == (kind, (), 12.5)
    assert found.name == ("a GPU, cuda" if kind == "cuda" else "CPU, 3 threads")
    assert found.driver == ("580" if kind == "cuda" else None)
    assert (found.cuda, found.torch) == ("12.6", str(torch.__version__))
    assert found.jetson_mamba == jetson_mamba_version
    order = selection.OPS["selective_scan"].order
    assert [each.name for each in found.backends] == list(order)
    for each in found.backends:
        assert each.op == "selective_scan" and each.release == f"{each.name} for selective_scan"
        assert each.unavailable == ({"float32": "no GPU"} if each.name == "cuda" else {})


@pytest.mark.parametrize("op", ["causal_conv1d", "selective_scan"])
def test_what_a_backend_is_made_of_is_told_with_its_releases(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = {"cuda-core": "0.3", "causal-conv1d": "1.6", "mamba-ssm": "2.3"}

    def version(name: str) -> str:
        if name not in recorded:
            raise metadata.PackageNotFoundError(name)
        return recorded[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr("jetson_mamba.kernels.compiler.nvrtc_version", lambda: "13.0")
    own = f"jetson-mamba {jetson_mamba_version}, NVRTC 13.0, cuda-core 0.3"
    package = "causal-conv1d 1.6" if op == "causal_conv1d" else "not on record"
    extension = "causal-conv1d 1.6" if op == "causal_conv1d" else "mamba-ssm 2.3"
    releases = {"pytorch": f"torch {torch.__version__}", "cuda": own, "triton": "not on record"}
    releases.update(package=package, extension=extension)
    assert {name: bench._release(op, name) for name in releases} == releases
    recorded.clear()
    for name in ("cuda", "package", "extension"):
        assert bench._release(op, name) == "not on record"

    def unavailable() -> str:
        raise Unavailable("no NVRTC")

    recorded["cuda-core"] = "0.3"
    monkeypatch.setattr("jetson_mamba.kernels.compiler.nvrtc_version", unavailable)
    assert bench._release(op, "cuda") == "not on record"


def test_the_cases_are_every_size_dtype_and_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = SimpleNamespace(copy_rate=lambda: 1.0, device=CPU)
    monkeypatch.setattr(bench, "Timer", lambda device: timer)
    monkeypatch.setattr(bench, "_unavailable", lambda *given: given)
    ops, dtypes = ("causal_conv1d", "selective_scan"), ("float32", "bfloat16")
    for kind, sizes in (
        ("cpu", [(1, 64, 256), (2, 256, 512)]),
        ("cuda", [(1, 1536, 2048), (8, 1536, 2048), (4, 5120, 4096)]),
    ):
        run = bench.Run(torch.device(kind), ops, dtypes, 3)
        assert (run._rep, run._copy_rate) == (3, 1.0)
        reasons: Any = run._unavailable
        assert reasons == {
            (op, dtype): (op, dtype, torch.device(kind)) for op in ops for dtype in dtypes
        }
        small = [(1, 1536, 256)] if kind == "cuda" else []
        assert run.cases == [
            (op, size, dtype, layout)
            for op, all_sizes, layouts in (
                ("causal_conv1d", sizes, ("BDL", "BLD")),
                ("selective_scan", [*small, *sizes], ("BDL",)),
            )
            for size in all_sizes
            for dtype in dtypes
            for layout in layouts
        ]


def test_what_is_timed_is_the_call_of_a_model() -> None:
    """Its arguments are those of the sizes, and drawn alike for every backend."""
    size = bench.Size(2, 8, 16)
    for layout in ("BDL", "BLD"):
        case = bench.Case("causal_conv1d", size, "bfloat16", layout)
        forward: Any = bench._PASSES["causal_conv1d"](case, CPU)["forward"]
        backward: Any = bench._PASSES["causal_conv1d"](case, CPU)["backward"]
        x, weight, bias = forward.args
        assert (x.shape, weight.shape, bias.shape) == ((2, 8, 16), (8, 4), (8,))
        assert x.dtype == weight.dtype == torch.bfloat16
        assert x.stride(-1 if layout == "BDL" else 1) == 1
        assert forward.keywords == {"activation": "silu"}
        assert all(torch.equal(*pair) for pair in zip(forward.args, backward.args))
        dout, dx = backward.args[3], backward.keywords["dx"]
        assert dout.shape == dx.shape == x.shape and dout.stride() == dx.stride() == x.stride()
        assert backward.keywords["activation"] == "silu" and not torch.equal(dout, x)
    case = bench.Case("selective_scan", size, "float32", "BDL")
    passes: Any = bench._PASSES["selective_scan"](case, CPU)
    u, delta, A, B, C, D, z, bias, softplus = passes["forward"].args
    assert softplus is True
    assert u.shape == delta.shape == z.shape == (2, 8, 16) and A.shape == (8, 16)
    assert B.shape == C.shape == (2, 1, 16, 16)
    assert A[3].tolist() == [-float(state) for state in range(1, 17)]
    assert D.tolist() == [1.0] * 8 and bias.tolist() == [-2.0] * 8
    *given, dout, x, out, dz, softplus, recompute = passes["backward"].args
    assert all(torch.equal(*pair) for pair in zip(given, passes["forward"].args[:8]))
    assert (dz, softplus, recompute) == (None, True, False) and dout.shape == u.shape
    right, states, _ = passes["forward"]()
    assert torch.equal(out, right) and torch.equal(x, states)


class ImitatedGpu:
    """A clock that goes on with each call, and events that read it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[Any] = []
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing

            def record(self) -> None:
                gpu.log.append("event")
                self.at = gpu.now

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        def device(of: Any) -> Any:
            gpu.log.append(of)
            return nullcontext()

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "device", device)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: gpu.log.append("waited"))

    def take(self, milliseconds: float) -> None:
        """Take that long."""
        self.log.append("call")
        self.now += milliseconds


@pytest.mark.parametrize(
    ("properties", "cold"),
    [
        ({"L2_cache_size": 1 << 20}, timing.CACHES_OVER << 20),
        ({"L2_cache_size": 0}, timing.UNKNOWN_COLD_BYTES),
        ({}, timing.UNKNOWN_COLD_BYTES),
    ],
)
def test_on_a_gpu_a_call_is_timed_by_events_after_its_cache_is_overwritten(
    properties: dict[str, int], cold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = ImitatedGpu(monkeypatch)
    asked: list[Any] = []
    real = torch.empty

    def properties_of(device: Any) -> Any:
        asked.append(device)
        return SimpleNamespace(**properties)

    def empty(size: int, **options: Any) -> Any:
        asked.append((size, options["device"]))
        return SimpleNamespace(zero_=lambda: gpu.log.append("overwritten"))

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties_of)
    monkeypatch.setattr(torch, "empty", empty)
    timer = timing.Timer(torch.device("cuda"))
    monkeypatch.setattr(torch, "empty", real)
    of = torch.device("cuda", 3)
    assert asked == [of, (cold, of)] and timer.device == of
    lengths = iter((5.0, 0.25, 0.5))
    assert timer._repeat(lambda: gpu.take(next(lengths)), 3) == [5000.0, 250.0, 500.0]
    assert gpu.log == [of, *["overwritten", "event", "call", "event"] * 3, "waited"]


def test_a_copy_takes_no_more_than_an_eighth_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    timer = timing.Timer(torch.device("cpu"))
    timer.device = torch.device("cuda", 1)
    made: list[tuple[Any, ...]] = []
    asked: list[Any] = []

    def free(device: Any) -> tuple[int, int]:
        asked.append(device)
        return 8 * 1000, 1 << 40

    def ones(size: int, **options: Any) -> Any:
        made.append((size, options))
        return real(size, dtype=options["dtype"])

    real = torch.ones
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr(torch, "ones", ones)
    # What is beside it on that device lies here.
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    copied: list[Any] = []

    def microseconds(call: Callable[[], Any]) -> float:
        copied.append(call())
        return 4.0

    monkeypatch.setattr(timer, "microseconds", microseconds)
    assert timer.copy_rate() == 2 * 1000 / 4.0
    assert made == [(1000, {"dtype": torch.uint8, "device": timer.device})]
    assert asked == [timer.device] and copied[0].sum() == 1000
