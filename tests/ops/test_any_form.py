"""The functions for names of extensions that a text uses in other ways than plain calls."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from jetson_mamba import call_forms, ops
from jetson_mamba.call_forms import Form
from jetson_mamba.ops.any_form import causal_conv1d, causal_conv1d_cuda, selective_scan_cuda
from jetson_mamba.rewrite import Call, Import, Rename
from tests.emulated import install, uninstall
from vendored_overrides.extensions import CONVOLUTION, IMPORTS

x, weight, bias = torch.randn(2, 3, 5), torch.randn(3, 4), torch.randn(3)
dout = torch.randn(2, 3, 5)
OTHERS: dict[str, Any] = {
    "x": x,
    "weight": weight,
    "bias": bias,
    "dout": dout,
    "return_dinitial_states": False,
    "return_final_states": False,
    "silu_activation": True,
    "activation": "silu",
    "conv_state": torch.randn(2, 3, 4),
}
CALLS = [each for each in CONVOLUTION if isinstance(each, Call)]


def given(form: Form) -> list[Any]:
    arguments = [OTHERS.get(name) for name in form.parameters]
    return [each.clone() if isinstance(each, torch.Tensor) else each for each in arguments]


def function(origin: str) -> Any:
    module, _, name = origin.rpartition(".")
    return getattr(importlib.import_module(f"jetson_mamba.ops.any_form.{module}"), name)


@pytest.mark.parametrize(
    ("origin", "call", "form"),
    [
        (origin, call, form)
        for call in CALLS
        for origin in call.of
        for form in call.forms
        if not form.optional
    ],
)
def test_every_form_that_the_rewriter_knows_is_taken(origin: str, call: Call, form: Form) -> None:
    op = getattr(ops, call.becomes.rpartition(".")[2])
    names = form.parameters[call.positional :]
    arguments = given(form)
    named = dict(zip(names, arguments[call.positional :]))
    if "silu_activation" in named:
        named["activation"] = "silu" if named.pop("silu_activation") else None
    first = [each.clone() for each in arguments[: call.positional]]
    expected = op(*first, **named)
    found = function(origin)(*arguments)
    # Before causal-conv1d 1.2, a backward pass had no states and no gradient of them.
    if "bwd" in origin and "initial_states" not in form.parameters:
        expected = expected[:3]
    torch.testing.assert_close(found, expected)
    assert isinstance(found, torch.Tensor) or len(found) == len(expected)


def test_arguments_may_be_given_by_name() -> None:
    found = causal_conv1d.causal_conv1d_fn(x=x, weight=weight, activation="silu")
    torch.testing.assert_close(found, ops.causal_conv1d_fn(x, weight, activation="silu"))
    activation = "silu"  # told apart from seq_idx when the call is made
    found = causal_conv1d.causal_conv1d_fn(x, weight, bias, activation)
    torch.testing.assert_close(found, ops.causal_conv1d_fn(x, weight, bias, activation="silu"))


@pytest.mark.parametrize("module", [each.of for each in IMPORTS if isinstance(each, Import)])
def test_every_module_has_every_function_that_is_replaced(module: str) -> None:
    edits = [each for each in CONVOLUTION if isinstance(each, (Call, Rename))]
    names = [name for edit in edits for name in edit.functions if name.startswith(f"{module}.")]
    assert all(callable(function(name)) for name in names)
    assert isinstance(importlib.import_module(f"jetson_mamba.ops.any_form.{module}"), ModuleType)


def test_the_scan_has_one_form() -> None:
    assert selective_scan_cuda.fwd is ops.selective_scan_fwd
    assert selective_scan_cuda.bwd is ops.selective_scan_bwd


def test_another_form_is_that_of_what_stands_in_for_the_extension() -> None:
    assert call_forms.matching(call_forms.FORWARD, [False] * 8, [], 3) is None
    out = torch.empty_like(x)
    causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
    torch.testing.assert_close(out, ops.causal_conv1d_fn(x, weight, bias, activation="silu"))
    with pytest.raises(TypeError, match=r"causal_conv1d_fwd.*incompatible function arguments"):
        causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, *[None] * 6)


def test_another_form_is_the_extensions_own_and_an_error_without_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eight = (x, weight, bias, None, None, None, None, True)
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", None)  # nor what stands in for it
    with pytest.raises(TypeError, match="form that is known, found 8 positional arguments"):
        causal_conv1d_cuda.causal_conv1d_fwd(*eight)
    with pytest.raises(TypeError, match="1 positional arguments, fast="):
        causal_conv1d_cuda.causal_conv1d_fwd(x, fast=1)
    monkeypatch.undo()
    install(causal_conv1d="1.5.2")
    try:
        out = torch.empty_like(x)
        causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, out, None, True)
    except TypeError as error:
        # Without CUDA the release with eight arguments refuses the tensors, not the form.
        assert "form that is known" not in str(error)
    finally:
        uninstall()


def test_what_else_an_extension_has_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AttributeError, match=r"selective_scan_cuda' has no attribute 'version'"):
        selective_scan_cuda.version  # noqa: B018
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    with pytest.raises(AttributeError, match=r"no selective_scan_cuda\.version"):
        selective_scan_cuda.version  # noqa: B018
    monkeypatch.undo()
    assert not hasattr(causal_conv1d_cuda, "other")
    install(selective_scan=True)
    try:
        compiled = importlib.import_module("selective_scan_cuda")
        compiled.version = 3  # type: ignore[attr-defined]
        assert selective_scan_cuda.version == 3
    finally:
        uninstall()
