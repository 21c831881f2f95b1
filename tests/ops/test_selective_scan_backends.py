"""Which backend serves the selective scan, with what is installed."""

from __future__ import annotations

import sys
import warnings
from contextlib import contextmanager
from typing import Any, Iterator

import pytest
import torch

import tests.emulated
from jetson_mamba.dispatch.backends import BackendWarning, Op
from jetson_mamba.ops.selective_scan import op as selective_scan
from tests.ops.scan_setups import Variant, drawn, fwd, hold_to_reference


def without_extension(monkeypatch: pytest.MonkeyPatch) -> Op[Any, Any]:
    """The op as it stands on a machine with nothing installed, no choice made yet."""
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    whole = selective_scan.OP
    op = Op("selective_scan", selective_scan.OP._package, whole.order, whole._trial)
    monkeypatch.setattr(selective_scan, "OP", op)
    return op


@contextmanager
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_nothing_installed_means_pytorch_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    op = without_extension(monkeypatch)
    with no_warnings():
        hold_to_reference(drawn(Variant()))
    (choice,) = op.choices().values()
    assert choice.backend == "pytorch"
    assert ("extension", "selective_scan_cuda is not installed") in choice.passed_over


def test_an_extension_for_cuda_is_passed_over_on_the_cpu_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    op = without_extension(monkeypatch)
    cuda_only = tests.emulated.CUDA_ONLY
    with tests.emulated.installed(selective_scan=True, failure=cuda_only), no_warnings():
        hold_to_reference(drawn(Variant()))
    (choice,) = op.choices().values()
    assert choice.backend == "pytorch"
    assert "is_cuda() to be true" in dict(choice.passed_over)["extension"]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (tests.emulated.UNDEFINED_SYMBOL, "undefined symbol"),
        (tests.emulated.NO_KERNEL_IMAGE, "no kernel image"),
        (tests.emulated.WRONG_RESULTS, "is wrong by"),
    ],
)
def test_an_extension_that_does_not_work_is_named_once(
    failure: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = without_extension(monkeypatch)
    broken = tests.emulated.installed(selective_scan=True, failure=failure)
    with broken, pytest.warns(BackendWarning, match=message) as caught:
        hold_to_reference(drawn(Variant()))
        hold_to_reference(drawn(Variant(dtype=torch.bfloat16)))
    assert len(caught) == 1
    assert {choice.backend for choice in op.choices().values()} == {"pytorch"}


def test_a_working_extension_is_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    op = without_extension(monkeypatch)
    with tests.emulated.installed(selective_scan=True):
        hold_to_reference(drawn(Variant()))
        hold_to_reference(drawn(Variant(dtype=torch.float64)))
        hold_to_reference(drawn(Variant(dim=2, dstate=257, groups=1, seqlen=9)))
    chosen = {(case.dtype, case.dstate): choice.backend for case, choice in op.choices().items()}
    assert chosen == {
        (torch.float32, 5): "extension",
        (torch.float64, 5): "pytorch",
        (torch.float32, 257): "pytorch",
    }


def test_choosing_a_backend_leaves_the_random_numbers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_extension(monkeypatch)
    arguments = drawn(Variant())
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fwd(arguments)
    assert torch.equal(torch.rand(4), expected)
