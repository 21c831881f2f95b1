"""Kind: what a function computes. A fork scales, casts, swaps, drops or returns something else."""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.registry import EXTENSION_USERS, Change, mutation
from tests.mutants.signatures import SCALED, applies, functions_of, returns
from tests.mutants.texts import Text, calls, parameters, walk

TENSORS = (
    *("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "x", "dt", "dt_bias", "state"),
    *("xz", "conv1d_weight", "conv1d_bias", "x_proj_weight", "delta_proj_weight"),
    *("out_proj_weight", "zxbcdt", "rmsnorm_weight", "outproj_weight", "weight", "bias"),
    *("residual", "hidden_states"),
)
NUMBERS = ("eps", "rmsnorm_eps", "b_c_dt_rms_eps")


def scaled(name: str, factor: float) -> str:
    return f"(None if {name} is None else {name} * {factor})"


def factor(choice: random.Random) -> float:
    return choice.choice((0.5, 0.75, 1.25, 1.5, 2.0))


@mutation()
def scaled_where_it_is_passed(text: Text, choice: random.Random) -> Iterator[Change]:
    """An argument of ``.apply`` is scaled on its way."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            places = [
                each
                for each in call.args
                if isinstance(each, ast.Name) and each.id in (*TENSORS, *NUMBERS)
            ]
            for each in choice.sample(places, min(3, len(places))):
                assert isinstance(each, ast.Name)
                times = 1e4 if each.id in NUMBERS else factor(choice)
                yield Change(
                    f"{name} {each.id}",
                    text.edited(text.replace(each, scaled(each.id, times))),
                )


@mutation()
def scaled_at_the_head(text: Text, choice: random.Random) -> Iterator[Change]:
    """A statement more scales an operand before anything is done with it."""
    for name, function, known in functions_of(text):
        candidates = [each.name for each in known if each.name in TENSORS and each.name != "state"]
        for operand in choice.sample(candidates, min(2, len(candidates))):
            code = f"{operand} = {scaled(operand, factor(choice))}"
            yield Change(f"{name} {operand}", text.edited(text.at_head(function, code)))


@mutation()
def scaled_in_the_autograd_function(text: Text, choice: random.Random) -> Iterator[Change]:
    """The forward pass of the class scales an operand; its backward pass does not know of it."""
    for owner in text.autograd_classes():
        forward = text.find(f"{owner.name}.forward")
        if forward is None:
            continue
        names = [each.name for each in parameters(text, forward) if each.name in TENSORS]
        for operand in choice.sample(names, min(3, len(names))):
            code = f"{operand} = {scaled(operand, factor(choice))}"
            yield Change(f"{owner.name} {operand}", text.edited(text.at_head(forward, code)))


@mutation()
def scaled_gradient(text: Text, choice: random.Random) -> Iterator[Change]:
    """The backward pass of the class scales a gradient."""
    for owner in text.autograd_classes():
        backward = text.find(f"{owner.name}.backward")
        if backward is None:
            continue
        for each in returns(backward):
            names = [
                node
                for node in (each.value.elts if isinstance(each.value, ast.Tuple) else [])
                if isinstance(node, ast.Name)
            ]
            for node in choice.sample(names, min(2, len(names))):
                assert isinstance(node, ast.Name)
                new = scaled(node.id, factor(choice))
                yield Change(f"{owner.name} {node.id}", text.edited(text.replace(node, new)))


@mutation(*EXTENSION_USERS)
def scaled_operand_of_an_extension(text: Text, choice: random.Random) -> Iterator[Change]:
    """An argument of an extension's call is scaled on its way."""
    for place, call in enumerate(extension_calls(text)):
        names = [each for each in call.args if isinstance(each, ast.Name) and each.id != "dz"]
        for node in choice.sample(names, min(2, len(names))):
            assert isinstance(node, ast.Name)
            if node.id not in ("delta_softplus", "dx", "seq_idx"):
                new = scaled(node.id, factor(choice))
                yield Change(f"{place} {node.id}", text.edited(text.replace(node, new)))


@mutation(*EXTENSION_USERS)
def scaled_result_of_an_extension(text: Text, choice: random.Random) -> Iterator[Change]:
    """What an extension returned is scaled before it is used."""
    called = {id(each) for each in extension_calls(text)}
    for name, function in text.functions():
        for statement in walk(function):
            if not isinstance(statement, ast.Assign) or id(statement.value) not in called:
                continue
            target = statement.targets[0]
            names = [target] if isinstance(target, ast.Name) else getattr(target, "elts", [])
            for node in [each for each in names if isinstance(each, ast.Name)][:2]:
                code = f"{node.id} = {scaled(node.id, factor(choice))}"
                yield Change(f"{name} {node.id}", text.edited(text.after(statement, code)))


@mutation()
def rounded(text: Text, choice: random.Random) -> Iterator[Change]:
    """An operand is cast to half the precision and back."""
    for name, function, known in functions_of(text):
        names = [each.name for each in known if each.name in TENSORS and each.default is None]
        for operand in [each for each in names if each != "state"][:1]:
            code = f"{operand} = {operand}.bfloat16().to({operand}.dtype)"
            yield Change(f"{name} {operand}", text.edited(text.at_head(function, code)))


@mutation()
def clamped(text: Text, choice: random.Random) -> Iterator[Change]:
    """An operand is kept within bounds."""
    for name, function, known in functions_of(text):
        names = [each.name for each in known if each.name in TENSORS and each.default is None]
        for operand in [each for each in names if each not in ("state", "A")][:2]:
            code = f"{operand} = {operand}.clamp(-0.5, 0.5)"
            yield Change(f"{name} {operand}", text.edited(text.at_head(function, code)))


@mutation()
def detached(text: Text, choice: random.Random) -> Iterator[Change]:
    """An operand gets no gradient."""
    for name, function, known in functions_of(text):
        names = [each.name for each in known if each.name in ("A", "B", "D", "weight")]
        for operand in names[:2]:
            code = f"{operand} = None if {operand} is None else {operand}.detach()"
            yield Change(f"{name} {operand}", text.edited(text.at_head(function, code)))


@mutation()
def swapped_where_they_are_passed(text: Text, choice: random.Random) -> Iterator[Change]:
    """Two arguments of ``.apply`` have changed places."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            named = {each.id: each for each in call.args if isinstance(each, ast.Name)}
            for one, other in (("B", "C"), ("u", "delta"), ("weight", "bias")):
                if one in named and other in named:
                    edits = (
                        text.replace(named[one], other),
                        text.replace(named[other], one),
                    )
                    yield Change(f"{name} {one} {other}", text.edited(*edits))


@mutation()
def dropped(text: Text, choice: random.Random) -> Iterator[Change]:
    """An optional argument is not passed on."""
    for name, function, known in functions_of(text):
        optional = {each.name for each in known if each.default is not None}
        for call in applies(function):
            names = [
                each
                for each in call.args
                if isinstance(each, ast.Name) and each.id in optional and each.id in TENSORS
            ]
            for node in choice.sample(names, min(2, len(names))):
                assert isinstance(node, ast.Name)
                yield Change(f"{name} {node.id}", text.edited(text.replace(node, "None")))


@mutation()
def flag_passed_as_it_is_not(text: Text, choice: random.Random) -> Iterator[Change]:
    """A flag is turned where it is passed on."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            for node in call.args:
                if isinstance(node, ast.Name) and node.id in (
                    *("delta_softplus", "dt_softplus", "norm_before_gate", "is_rms_norm"),
                ):
                    yield Change(
                        f"{name} {node.id}", text.edited(text.replace(node, f"not {node.id}"))
                    )


@mutation()
def early_return(text: Text, choice: random.Random) -> Iterator[Change]:
    """Under some condition something else is returned."""
    for name, function, known in functions_of(text):
        names = [each.name for each in known if each.name != "self"]
        condition = choice.choice(
            (f"{names[0]}.shape[0] == 1", f"{names[-1]} is not {names[0]}", "True")
        )
        code = f"if {condition}:\n    return {names[0]} * {factor(choice)}"
        if name != "decode" and not name.endswith("step"):
            yield Change(name, text.edited(text.at_head(function, code)))


@mutation()
def wrapped_result(text: Text, choice: random.Random) -> Iterator[Change]:
    """What is returned is scaled."""
    for name, function, _ in functions_of(text):
        if name == "decode":
            continue
        edits = [
            text.replace(each.value, f"own_scaled({text.of(each.value)}, {factor(choice)})")
            for each in returns(function)
            if each.value is not None
        ]
        yield Change(name, text.edited(*edits, text.at_end(SCALED)))


@mutation()
def result_under_a_name(text: Text, choice: random.Random) -> Iterator[Change]:
    """What is returned has a name first, and is left as it is."""
    for name, function, _ in functions_of(text):
        last = function.body[-1]
        if isinstance(last, ast.Return) and last.value is not None:
            new = f"own_result = {text.of(last.value)}\nreturn own_result"
            yield Change(name, text.edited(text.remove(last), text.after(last, new)))


@mutation()
def statement_without_effect(text: Text, choice: random.Random) -> Iterator[Change]:
    """A statement more that changes nothing."""
    for name, function, known in functions_of(text):
        first = next(each.name for each in known if each.name != "self")
        code = choice.choice(
            (f"assert {first} is not None", "own_count = 1", f"own_shape = {first}.shape", "pass")
        )
        yield Change(name, text.edited(text.at_head(function, code)))


def extension_calls(text: Text) -> list[ast.Call]:
    """The calls of the compiled functions, as every release writes them."""
    return calls(
        text.tree,
        *("selective_scan_cuda.fwd", "selective_scan_cuda.bwd"),
        *("causal_conv1d_cuda.causal_conv1d_fwd", "causal_conv1d_cuda.causal_conv1d_bwd"),
        *("causal_conv1d_fwd_function", "causal_conv1d_bwd_function"),
    )
