"""A trial looks at each result of a backend before that is used."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.causal_conv1d import contract as conv_contract
from jetson_mamba.ops.causal_conv1d import pytorch as conv
from jetson_mamba.ops.causal_conv1d import trial as conv_trial
from jetson_mamba.ops.decoding import contract as step_contract
from jetson_mamba.ops.decoding import op as step_op
from jetson_mamba.ops.decoding import pytorch as step
from jetson_mamba.ops.norms import contract as norm_contract
from jetson_mamba.ops.norms import pytorch as norm
from jetson_mamba.ops.norms import serving
from jetson_mamba.ops.selective_scan import contract as scan_contract
from jetson_mamba.ops.selective_scan import pytorch as scan
from jetson_mamba.ops.selective_scan import trial as scan_trial
from jetson_mamba.ops.swiglu import contract as gate_contract
from jetson_mamba.ops.swiglu import op as gate_op
from jetson_mamba.ops.swiglu import pytorch as gate

CPU, FLOAT = torch.device("cpu"), torch.float32
Spoil = Callable[[Tensor], Tensor]


def spoiling(function: Any, place: int | str, spoil: Spoil) -> Any:
    """A function of which one result, by its place or name, comes out otherwise."""

    def call(*given: Any) -> Any:
        found = function(*given)
        if isinstance(place, str):
            return found._replace(**{place: spoil(getattr(found, place))})
        if isinstance(found, Tensor):
            return spoil(found)
        return type(found)(spoil(each) if i == place else each for i, each in enumerate(found))

    return call


def writing(function: Any, place: int, spoil: Spoil) -> Any:
    """A function that writes one of its arguments otherwise."""

    def call(*given: Any) -> Any:
        found = function(*given)
        target = given[place]
        target = target.states if isinstance(target, step_contract.Step) else target
        target.copy_(spoil(target.clone()))
        return found

    return call


def of_convolution(spoil: Spoil, function: str, how: Any, place: Any) -> None:
    case = conv_contract.Case(CPU, FLOAT, FLOAT, 4)
    original = conv_contract.Implementation(*conv.IMPLEMENTATION)
    changed = {function: how(getattr(original, function), place, spoil)} if function else {}
    # Equal, but not the same: the trial passes over what is PyTorch's.
    conv_trial.trial(original._replace(**changed), case)


def of_norms(spoil: Spoil, function: str, how: Any, place: Any) -> None:
    case = norm_contract.Case(CPU, FLOAT, FLOAT)
    original = norm_contract.Implementation(*norm.IMPLEMENTATION)
    changed = {function: how(getattr(original, function), place, spoil)} if function else {}
    serving._trial(original._replace(**changed), case)


def of_gate(spoil: Spoil, function: str, how: Any, place: Any) -> None:
    case = gate_contract.Case(CPU, FLOAT)
    original = gate_contract.Implementation(*gate.IMPLEMENTATION)
    changed = {function: how(getattr(original, function), place, spoil)} if function else {}
    gate_op._trial(original._replace(**changed), case)


def of_step(spoil: Spoil, function: str, how: Any, place: Any) -> None:
    case = step_contract.Case(CPU, FLOAT, FLOAT, FLOAT, FLOAT)
    original: Any = lambda given: step.update(given)  # noqa: E731, PLW0108 (it is another)
    step_op._trial(how(original, place, spoil) if function else original, case)


def of_scan(spoil: Spoil, function: str, how: Any, place: Any) -> None:
    case = scan_contract.Case(CPU, FLOAT, False, 3)
    original = scan_contract.Implementation(*scan.IMPLEMENTATION)
    changed = {function: how(getattr(original, function), place, spoil)} if function else {}
    scan_trial.trial(original._replace(**changed), case)


RESULTS: list[tuple[Any, float, str, Any, Any, str]] = [
    (of_convolution, 1e-3, "forward", spoiling, 0, "the output of a trial"),
    (of_convolution, 1e-3, "backward", spoiling, 0, "the dx of a trial"),
    (of_convolution, 1e-3, "backward", spoiling, 1, "the dweight of a trial"),
    (of_convolution, 1e-3, "backward", spoiling, 2, "the dbias of a trial"),
    (of_convolution, 1e-3, "update", spoiling, 0, "the output of a step of a trial"),
    (of_convolution, 1e-3, "update", writing, 1, "the state after a step of a trial"),
    (of_norms, 5e-2, "forward", spoiling, "out", "the output of a trial"),
    (of_norms, 5e-2, "backward", spoiling, "x", "the dx of a trial"),
    (of_norms, 5e-2, "backward", spoiling, "z", "the dz of a trial"),
    (of_norms, 5e-2, "backward", spoiling, "weight", "the dweight of a trial"),
    (of_gate, 5e-2, "forward", writing, 1, "the output of a trial"),
    (of_gate, 5e-2, "backward", writing, 3, "the output again of a trial"),
    (of_gate, 5e-2, "backward", writing, 2, "the gradient of a trial"),
    (of_step, 5e-2, "update", spoiling, 0, "the output of a trial"),
    (of_step, 5e-2, "update", writing, 0, "the state of a trial"),
    (of_scan, 1e-4, "forward", spoiling, "x", "the last state"),
    (of_scan, 1e-4, "forward", spoiling, "out_z", "out_z"),
    *(
        (of_scan, 1e-4, "backward", spoiling, name, name)
        for name in ("du", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias", "dz")
    ),
]


@pytest.mark.parametrize(("trial", "tolerance", "function", "how", "place", "name"), RESULTS)
def test_each_result_of_a_backend_is_looked_at(
    trial: Any, tolerance: float, function: str, how: Any, place: Any, name: str
) -> None:
    trial(lambda each: each, "", how, place)
    # What rounding may do is let pass; more is not, nor what is no number.
    trial(lambda each: each * (1 + 0.8 * tolerance), function, how, place)
    for factor in (1 + 1.2 * tolerance, 1 - 1.2 * tolerance, float("nan")):
        with pytest.raises(RuntimeError, match=f"^{name} is wrong"):
            trial(lambda each, factor=factor: each * factor, function, how, place)


def test_what_pytorch_computes_is_not_tried() -> None:
    nothing: Any = None
    conv_trial.trial(conv.IMPLEMENTATION, nothing)
    serving._trial(norm.IMPLEMENTATION, nothing)
    gate_op._trial(gate.IMPLEMENTATION, nothing)
    step_op._trial(step.update, nothing)


def test_a_step_that_is_none_of_a_backends_fails_its_trial() -> None:
    case = step_contract.Case(CPU, FLOAT, FLOAT, FLOAT, FLOAT)
    with pytest.raises(RuntimeError, match="the output of a trial is wrong"):
        step_op._trial(lambda given: None, case)
