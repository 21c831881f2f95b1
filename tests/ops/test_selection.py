"""Naming a backend: by the variable for a whole process, by the context manager for a block."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Iterator

import pytest
import torch

import jetson_mamba
from jetson_mamba.dispatch import selection
from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.ops import causal_conv1d_fn, selective_scan_fn, through_scan_autograd
from jetson_mamba.ops.ssd import op as ssd
from jetson_mamba.ops.ssd.contract import Case
from tests import interpreters
from tests.ops.small_op import serve, small_op, unavailable

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Op[str, str]]]:
    """Two ops in the place of the real ones: each backend serves with its own name."""
    backends = {name: (lambda case, name=name: name) for name in ("fast", "slow")}
    made = {
        "conv": small_op(monkeypatch, "conv", **backends, other=serve),
        "scan": small_op(monkeypatch, "scan", never=unavailable, **backends),
    }
    monkeypatch.setattr(selection, "OPS", made)
    monkeypatch.setattr(selection, "_from_variable", {})
    yield made
    assert selection._blocks == []


def serving(ops: dict[str, Op[str, str]]) -> dict[str, str]:
    return {name: op.implementation("a") for name, op in ops.items()}


def test_a_block_names_backends_and_puts_back_what_was_before(ops: dict[str, Op[str, str]]) -> None:
    with jetson_mamba.backend(conv="slow"):
        assert serving(ops) == {"conv": "slow", "scan": "fast"}
        with jetson_mamba.backend(conv="fast", scan="slow"):
            assert serving(ops) == {"conv": "fast", "scan": "slow"}
            with jetson_mamba.backend(conv=None):
                assert serving(ops) == {"conv": "fast", "scan": "slow"}
                assert ops["conv"].selection is None
        assert serving(ops) == {"conv": "slow", "scan": "fast"}
    assert serving(ops) == {"conv": "fast", "scan": "fast"}
    assert ops["conv"].selection is None


def test_an_exception_puts_back_what_was_before(ops: dict[str, Op[str, str]]) -> None:
    with pytest.raises(KeyError), jetson_mamba.backend(conv="slow"):
        raise KeyError("from the block")
    assert serving(ops)["conv"] == "fast"


def test_blocks_of_two_threads_that_do_not_nest_leave_nothing_behind(
    ops: dict[str, Op[str, str]],
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with jetson_mamba.backend(conv="other"):
            entered.set()
            assert leave.wait(10)

    thread = threading.Thread(target=other)
    with jetson_mamba.backend(conv="slow"):
        thread.start()
        assert entered.wait(10)
        assert serving(ops)["conv"] == "served a"  # the latest decides, for every thread
    assert serving(ops)["conv"] == "served a"
    leave.set()
    thread.join()
    assert serving(ops)["conv"] == "fast"


def test_a_backend_that_cannot_serve_says_by_what_it_was_named_and_how_to_undo_it(
    ops: dict[str, Op[str, str]],
) -> None:
    with jetson_mamba.backend(scan="never"), pytest.raises(RuntimeError) as caught:
        ops["scan"].implementation("a")
    assert str(caught.value) == (
        "scan: the backend 'never', asked for by jetson_mamba.backend, cannot serve a: not for a. "
        "Name another (fast, slow), or leave the block of "
        "`with jetson_mamba.backend(scan='never')`"
    )


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"convolution": "fast"}, "expected ops among conv, scan, found 'convolution'"),
        ({"scan": "other"}, "scan: expected one of never, fast, slow, found 'other'"),
    ],
)
def test_the_context_manager_refuses_what_there_is_not_before_the_block(
    names: dict[str, str], message: str, ops: dict[str, Op[str, str]]
) -> None:
    with pytest.raises(ValueError, match=message):
        jetson_mamba.backend(**names)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("slow", {"conv": "slow", "scan": "slow"}),
        ("other", {"conv": "served a", "scan": "fast"}),  # of those ops that have it
        ("conv=slow", {"conv": "slow", "scan": "fast"}),
        (" scan = slow , conv=other", {"conv": "served a", "scan": "slow"}),
        ("", {"conv": "fast", "scan": "fast"}),
    ],
)
def test_the_variable_names_one_backend_or_one_for_each_op(
    value: str,
    expected: dict[str, str],
    ops: dict[str, Op[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JETSON_MAMBA_BACKEND", value)
    selection.read_variable()
    assert serving(ops) == expected
    with jetson_mamba.backend(conv="fast", scan=None):
        assert serving(ops) == {"conv": "fast", "scan": "fast"}
    assert serving(ops) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("best", "expected one of fast, slow, other, never, or pairs .* found 'best'"),
        ("fast,slow", "found 'fast,slow'"),
        ("conv=never", "conv: expected one of fast, slow, other, found 'never'"),
        ("conv=fast,convolution=slow", "expected ops among conv, scan, found 'convolution'"),
        ("conv=fast,", "expected ops among conv, scan, found ''"),
        ("conv=fast,conv=slow", "expected conv once"),
    ],
)
def test_a_value_that_is_not_understood_is_ignored_as_a_whole_with_one_warning(
    value: str, message: str, ops: dict[str, Op[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_MAMBA_BACKEND", value)
    with pytest.warns(RuntimeWarning, match=message) as caught:
        selection.read_variable()
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"JETSON_MAMBA_BACKEND={value}: ")
    assert serving(ops) == {"conv": "fast", "scan": "fast"}


def test_the_real_ops_can_be_named_with_their_own_backends() -> None:
    x, weight, states = torch.ones(1, 2, 5), torch.ones(2, 4), torch.ones(1, 1, 3, 5)
    with jetson_mamba.backend(causal_conv1d="pytorch", selective_scan="pytorch", ssd="pytorch"):
        causal_conv1d_fn(x, weight)
        selective_scan_fn(x, x, -weight[:, :3], states, states)
        selections = jetson_mamba.status().selections
    assert [(each.op, each.backend, each.asked_by) for each in selections] == [
        (op, "pytorch", "jetson_mamba.backend") for op in ("causal_conv1d", "selective_scan", "ssd")
    ]
    refusal = pytest.raises(RuntimeError, match="selective_scan: the backend 'cuda', asked for")
    with jetson_mamba.backend(selective_scan="cuda"), refusal:
        selective_scan_fn(x, x, -weight[:, :3], states, states)


def through_upstream(x: torch.Tensor) -> bool:
    return through_scan_autograd(x=x, dt=x[..., 0], A=x[0, 0, :, 0], B=x, C=x)


@pytest.mark.parametrize("named", [None, "triton", "pytorch"])
def test_training_goes_past_upstreams_function_where_another_backend_than_its_own_is_named(
    named: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.ones(1, 2, 3, 4)
    monkeypatch.setattr(ssd, "triton_runs_on", lambda device: True)
    with jetson_mamba.backend(ssd=named):
        assert through_upstream(x) is (named != "pytorch")
    with jetson_mamba.backend(ssd="pytorch"), jetson_mamba.backend(ssd=named):
        assert through_upstream(x) is (named != "pytorch")
    assert through_upstream(x)


def test_training_goes_past_upstreams_function_where_the_projects_kernels_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU: the kernels are stood in for by PyTorch's backend here."""
    monkeypatch.setattr(ssd, "triton_runs_on", lambda device: True)
    kernels = ssd.OP.implementation(Case(torch.device("cpu"), torch.float32))
    x = torch.ones(1, 2, 3, 4)
    for first in (False, True):
        served = kernels._replace(comes_before_triton=first)
        monkeypatch.setattr(ssd.OP, "implementation", lambda case, served=served: served)
        assert through_upstream(x) is not first
    with jetson_mamba.backend(ssd="triton"):
        assert through_upstream(x)
    with inference_path(False), torch.no_grad():
        assert through_upstream(x)
    # What no backend can be chosen for goes to the op, which says what is wrong.
    assert not through_scan_autograd(x=x, dt=None, A=None, B=3, C=x)


def test_the_backward_pass_of_the_convolution_runs_on_the_backend_of_its_forward_pass() -> None:
    x = torch.randn(1, 2, 5, requires_grad=True)
    out = causal_conv1d_fn(x, torch.ones(2, 4))
    with jetson_mamba.backend(causal_conv1d="cuda"):
        out.sum().backward()
    assert x.grad is not None


def test_the_variable_is_read_when_the_ops_are_imported_and_not_at_interpreter_start() -> None:
    program = (
        "import os, sys, jetson_mamba\n"
        "assert 'torch' not in sys.modules\n"
        "os.environ['JETSON_MAMBA_BACKEND'] = 'causal_conv1d=cuda'\n"
        "import jetson_mamba.ops, torch\n"
        "os.environ['JETSON_MAMBA_BACKEND'] = 'pytorch'\n"
        "jetson_mamba.ops.causal_conv1d_fn(torch.ones(1, 2, 5), torch.ones(2, 4))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JETSON_MAMBA_BACKEND": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "the backend 'cuda', asked for by JETSON_MAMBA_BACKEND, cannot serve" in done.stderr
    assert "or unset JETSON_MAMBA_BACKEND and start again" in done.stderr


def test_a_process_with_a_wrong_value_warns_once_and_runs() -> None:
    program = (
        "import jetson_mamba.ops, torch\n"
        "print(jetson_mamba.ops.causal_conv1d_fn(torch.ones(1, 1, 2), torch.ones(1, 2)).sum())\n"
    )
    done = interpreters.run(["-c", program], env={**os.environ, "JETSON_MAMBA_BACKEND": "fastest"})
    assert done.stdout == "tensor(3.)\n"
    assert done.stderr.count("RuntimeWarning: JETSON_MAMBA_BACKEND=fastest: expected one of") == 1
