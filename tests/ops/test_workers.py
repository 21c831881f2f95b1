"""Ops that threads of a CPU divide among them: nothing tells by how many it was computed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.division import divided
from jetson_mamba.ops.causal_conv1d import pytorch as convolution
from jetson_mamba.ops.decoding import pytorch as decoding
from jetson_mamba.ops.decoding.contract import Step
from jetson_mamba.ops.selective_scan import parts as scan_parts
from jetson_mamba.ops.selective_scan import pytorch as selective_scan
from jetson_mamba.ops.selective_scan.contract import Returning
from jetson_mamba.ops.selective_scan.contract import Scan as SelectiveScan
from jetson_mamba.ops.ssd import pytorch as ssd
from jetson_mamba.ops.ssd.contract import Scan
from tests.references.tolerance import relative_norm

Results = Any
LENGTH = 70


@pytest.fixture(params=[2, 3, 8])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many, whatever torch has here and however small the op."""
    before = torch.get_num_threads()
    number: int = request.param
    monkeypatch.setattr(workers._POOL, "calls_alone", 0)
    monkeypatch.setattr(scan_parts, "FEWEST_STATES", 1)
    torch.set_num_threads(number)
    yield number
    torch.set_num_threads(before)


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def selective_scans(
    batch: int, groups: int, constant: bool, of_complex: bool, dtype: torch.dtype
) -> Callable[[], Results]:
    dim, dstate = 12, 3
    real = torch.float64 if dtype == torch.float64 else torch.float32
    A = -drawn(dim, dstate, dtype=real).exp()
    width = LENGTH
    if of_complex:
        A, width = torch.complex(A, drawn(dim, dstate, dtype=real)), 2 * LENGTH
    variable = drawn(batch, groups, dstate, width, dtype=dtype)
    scan = SelectiveScan(
        drawn(batch, dim, LENGTH, dtype=dtype),
        drawn(batch, dim, LENGTH, dtype=dtype),
        A,
        drawn(dim, dstate, dtype=real).to(A.dtype) if constant else variable,
        variable.flip(-2),
        drawn(dim, dtype=real),
        drawn(batch, dim, LENGTH, dtype=dtype),
        drawn(dim, dtype=real),
        True,
    )
    dout = drawn(batch, dim, LENGTH, dtype=dtype)

    def call() -> Results:
        scanned = selective_scan.forward(scan)
        returning = Returning(dout, scanned.x, scanned.out, None, True)
        return (*scanned, *selective_scan.backward(scan, returning))

    return call


def scans(batch: int, groups: int, whole: bool, dtype: torch.dtype) -> Callable[[], Results]:
    """``whole``: with all that a scan may have."""
    nheads, headdim, dstate = 6, 4, 5
    length = 150
    real = torch.float64 if dtype == torch.float64 else torch.float32
    scan = Scan(
        drawn(batch, length, nheads, headdim, dtype=dtype),
        drawn(batch, length, nheads, dtype=dtype),
        -drawn(nheads, dtype=real).exp(),
        drawn(batch, length, groups, dstate, dtype=dtype),
        drawn(batch, length, groups, dstate, dtype=dtype),
        drawn(nheads, headdim, dtype=real) if whole else drawn(nheads, dtype=real),
        None,
        drawn(nheads, dtype=real) if whole else None,
        drawn(batch, nheads, headdim, dstate, dtype=real) if whole else None,
        torch.arange(length).div(60).int().expand(batch, -1) if whole else None,
        None,
        256,
        True,
        (0.0, float("inf")),
    )
    z, dout = drawn(*scan.x.shape, dtype=dtype), drawn(*scan.x.shape, dtype=dtype)
    dstates = drawn(batch, nheads, headdim, dstate, dtype=real)

    def call() -> Results:
        gradients = ssd.scan_backward(scan, dout, dstates if whole else None)
        return (*ssd.scan_forward(scan._replace(z=z)), *gradients)

    return call


def convolutions(batch: int, whole: bool, dtype: torch.dtype) -> Callable[[], Results]:
    dim, width = 10, 4
    x, weight = drawn(batch, dim, LENGTH, dtype=dtype), drawn(dim, width, dtype=dtype)
    bias = drawn(dim, dtype=dtype)
    dout = drawn(batch, dim, LENGTH, dtype=dtype)
    seq_idx = None if whole else torch.arange(LENGTH).div(30).int().expand(batch, -1)
    initial = drawn(batch, dim, width - 1, dtype=dtype) if whole else None

    def call() -> Results:
        final = torch.zeros(batch, dim, width - 1, dtype=dtype) if whole else None
        out = convolution.forward(x, weight, bias, seq_idx, initial, final, True)
        gradients = convolution.backward(
            x, weight, bias, dout, seq_idx, initial, final, None, whole, True
        )
        return (out, final, *gradients)

    return call


def steps(
    batch: int, form: str, indices: list[int] | None, dtype: torch.dtype
) -> Callable[[], Results]:
    nheads, dim, groups = (1, 9, 1) if form == "Mamba" else (6, 4, 2)
    dstate, dtype_of_states = 5, torch.float64 if dtype == torch.float64 else torch.float32
    states = drawn(batch + 3, nheads, dim, dstate, dtype=dtype)
    x = drawn(batch, nheads, dim, dtype=dtype)
    A = -drawn(nheads, dim, dstate, dtype=dtype_of_states).exp()
    step = Step(
        states,
        x,
        drawn(batch, nheads, dim, dtype=dtype),
        A if form == "Mamba" else A[:, :1, :1].expand(-1, dim, dstate),
        drawn(batch, groups, dstate, dtype=dtype),
        drawn(batch, groups, dstate, dtype=dtype),
        drawn(nheads, dim, dtype=dtype_of_states),
        drawn(batch, nheads, dim, dtype=dtype),
        drawn(nheads, dim, dtype=dtype_of_states),
        None if indices is None else torch.tensor(indices),
        True,
    )

    def call() -> Results:
        own = step._replace(states=states.clone())
        return decoding.update(own), own.states

    return call


WIDE, NARROW = torch.float64, torch.bfloat16
CALLS: dict[str, Callable[[], Callable[[], Results]]] = {
    **{
        f"selective scan {args}": partial(selective_scans, *args)
        for args in (
            (1, 1, False, False, WIDE),
            (1, 1, False, False, NARROW),
            (1, 3, True, False, WIDE),
            (2, 4, False, True, WIDE),
            (5, 1, True, True, WIDE),
            (9, 2, False, False, WIDE),
        )
    },
    **{
        f"ssd {args}": partial(scans, *args)
        for args in (
            (1, 1, False, WIDE),
            (1, 1, True, NARROW),
            (1, 3, True, WIDE),
            (2, 2, True, WIDE),
            (4, 1, True, WIDE),
            (9, 6, False, WIDE),
        )
    },
    **{
        f"convolution {args}": partial(convolutions, *args)
        for args in ((1, True, WIDE), (2, False, WIDE), (9, True, WIDE), (3, True, NARROW))
    },
    **{
        f"step {args}": partial(steps, *args)
        for args in (
            (1, "Mamba", None, WIDE),
            (4, "Mamba", [6, -1, 0, 3], WIDE),
            (3, "Mamba", [-1, -1, -1], WIDE),
            (1, "Mamba2", None, WIDE),
            (4, "Mamba2", [-1, 6, 0, 3], WIDE),
            (9, "Mamba2", None, NARROW),
        )
    },
}


@pytest.mark.parametrize("setup", CALLS.values(), ids=CALLS)
def test_parts_give_what_the_whole_gives(
    setup: Callable[[], Callable[[], Results]], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = setup()
    whole = call()
    run, divisions = workers.run, []

    def counted(parts: Any, number: int, **more: Any) -> Any:
        divisions.append(len(parts))
        return run(parts, number, **more)

    monkeypatch.setattr(workers, "threads_for", lambda elements: threads)
    monkeypatch.setattr(workers, "run", counted)
    divided_up = call()
    assert max(divisions) > 1
    for found, right in zip(divided_up, whole):
        assert (found is None) == (right is None)
        if right is not None and right.numel():
            assert (found.dtype, found.shape) == (right.dtype, right.shape)
            narrow = right.dtype not in (torch.float64, torch.complex128)
            assert relative_norm(found, right) < (4e-3 if narrow else 1e-12)


@pytest.mark.parametrize("threads_asked", [1, 2, 5, 12])
@pytest.mark.parametrize(("batch", "channels", "groups"), [(1, 12, 1), (3, 12, 4), (7, 6, 2)])
def test_parts_cover_everything_once(
    threads_asked: int, batch: int, channels: int, groups: int
) -> None:
    parts = divided(threads_asked, batch, channels, groups)
    seen = torch.zeros(batch, channels)
    for part in parts:
        seen[part.batch, part.channels] += 1
        width = channels // groups
        whole = (part.groups.start * width, part.groups.stop * width)
        if part.groups.stop - part.groups.start > 1:
            assert (part.channels.start, part.channels.stop) == whole
        else:
            assert whole[0] <= part.channels.start < part.channels.stop <= whole[1]
    assert (seen == 1).all()
    assert len(parts) >= min(threads_asked, batch * groups)


def test_a_part_runs_as_its_caller(threads: int) -> None:
    """In its inference mode, recording nothing, dividing nothing, and without autocast."""

    def state() -> tuple[bool, bool, int, bool]:
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            torch.is_autocast_enabled(),
        )

    with torch.autocast("cpu", torch.bfloat16):
        for inference in (False, True):
            with torch.inference_mode(inference):
                found = workers.run([state] * 4, threads)
            assert found == [(inference, False, 1, False)] * 4
    assert torch.get_num_threads() == threads


def test_what_a_part_raises_is_raised(threads: int) -> None:
    def fails() -> None:
        raise ValueError("this part")

    with pytest.raises(ValueError, match="this part"):
        workers.run([fails, fails], threads)
    assert workers.run([lambda: 1, lambda: 2], threads) == [1, 2]


def test_a_caller_of_short_parts_leaves_none_to_threads_that_do_not_come(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, one_goes_on = workers._POOL.of(threads), threading.Event()
    held = [pool.submit(one_goes_on.wait, 300) for _ in range(threads)]
    try:
        seen = workers.run([threading.get_ident] * 4, threads, short=True)
    finally:
        one_goes_on.set()
    assert seen == [threading.get_ident()] * 4
    assert all(each.result() for each in held)


def test_a_part_that_a_short_call_s_caller_takes_runs_as_any(threads: int) -> None:
    def state() -> tuple[bool, bool, int, bool]:
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        own = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        return (*own, torch.get_num_threads(), product.dtype == torch.float32)

    with torch.autocast("cpu", torch.bfloat16):
        for inference in (False, True):
            with torch.inference_mode(inference):
                found = workers.run([state] * 4, threads, short=True)
            assert found == [(inference, False, 1, True)] * 4
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("waits", [True, False])
def test_after_a_long_wait_short_calls_are_the_caller_s(
    waits: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, worked = iter([0.0, 2.5 if waits else 1.5]), iter([10.0, 11.0])
    monkeypatch.setattr(workers, "perf_counter", lambda: next(times))
    monkeypatch.setattr(workers, "thread_time", lambda: next(worked))
    monkeypatch.setattr(workers, "CALLS_ALONE", 3)
    workers.run([lambda: 1, lambda: 2], threads, short=True)
    assert workers._POOL.calls_alone == (3 if waits else 0)
    if waits:
        # Who would ask for the time, or for threads, would find none.
        monkeypatch.setattr(workers._POOL, "of", None)
        for _ in range(3):
            assert workers.run([lambda: 1, lambda: 2], threads, short=True) == [1, 2]
        assert workers._POOL.calls_alone == 0


def test_what_one_of_several_short_parts_raises_is_raised(threads: int) -> None:
    def fails() -> None:
        raise ValueError("this part")

    with pytest.raises(ValueError, match="this part"):
        workers.run([lambda: None, fails, lambda: None], threads, short=True)
    assert workers.run([lambda: 1, lambda: 2], threads, short=True) == [1, 2]


PROGRAM = """
import atexit, os, torch
from jetson_mamba.dispatch import workers
torch.set_num_threads(2)
parts = [lambda: 1, lambda: 2]
assert workers.run(parts, 2) == workers.run(parts, 2, short=True) == [1, 2]
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        os._exit(0 if workers.run(parts, 2) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0
atexit.register(lambda: print(workers.run(parts, 2)))
"""


def test_a_forked_child_and_the_end_of_a_process_have_results(tmp_path: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "JETSON_MAMBA_CACHE": str(tmp_path)},
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[1, 2]"), done.stderr
