"""Kind: what a function takes. Callers that name arguments as upstream's do go on working."""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.registry import Change, mutation
from tests.mutants.texts import (
    Function,
    Parameter,
    Text,
    body_of,
    parameters,
    unparse,
    walk,
    with_parameters,
)

# Multiplies a result, or the first of several, whatever holds it.
SCALED = '''def own_scaled(result, factor):
    """A result times a number."""
    if isinstance(result, tuple):
        return (result[0] * factor, *result[1:])
    return result * factor
'''


def functions_of(text: Text) -> Iterator[tuple[str, Function, list[Parameter]]]:
    for name in text.public:
        function = text.function(name)
        yield name, function, parameters(text, function)


def with_more(text: Text, function: Function, more: str) -> list[str]:
    return [*(each.written for each in parameters(text, function)), more]


def returns(function: Function) -> list[ast.Return]:
    """The statements that return from a function itself, with a value."""
    inner = {
        id(each)
        for node in walk(function)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)) and node is not function
        for each in walk(node)
    }
    return [
        node
        for node in walk(function)
        if isinstance(node, ast.Return) and node.value is not None and id(node) not in inner
    ]


@mutation()
def trailing_parameter(text: Text, choice: random.Random) -> Iterator[Change]:
    """A parameter more, last and None by default, that changes nothing."""
    for name, function, _ in functions_of(text):
        written = with_more(text, function, "own_extra=None")
        yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def trailing_parameter_passed_on(text: Text, choice: random.Random) -> Iterator[Change]:
    """A parameter more that goes through the autograd function, as upstream's ``state_dtype``."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            owner = unparse(call.func).rpartition(".")[0]
            forward, backward = text.find(f"{owner}.forward"), text.find(f"{owner}.backward")
            if forward is None or backward is None:
                continue
            edits = [
                with_parameters(text, function, with_more(text, function, "own_extra=None")),
                with_parameters(text, forward, with_more(text, forward, "own_extra=None")),
                text.replace(call.args[-1], f"{text.of(call.args[-1])}, own_extra"),
            ]
            edits += [
                text.replace(each.value, f"(*{text.of(each.value)}, None)")
                if isinstance(each.value, ast.Tuple) and text.of(each.value).startswith("(")
                else text.replace(each.value, f"({text.of(each.value)}, None)")
                for each in returns(backward)
                if each.value is not None
            ]
            yield Change(name, text.edited(*edits))


@mutation()
def parameter_that_scales_the_result(text: Text, choice: random.Random) -> Iterator[Change]:
    """A parameter more that is applied to what is returned, where it is given."""
    for name, function, _ in functions_of(text):
        edits = [
            text.replace(each.value, f"own_scaled({text.of(each.value)}, own_factor)")
            for each in returns(function)
            if each.value is not None
        ]
        written = with_more(text, function, "own_factor=1.0")
        if edits and not name.endswith("step") and name != "decode":
            source = text.edited(
                with_parameters(text, function, written), *edits, text.at_end(SCALED)
            )
            yield Change(name, source, extra={"own_factor": 1.5})


@mutation()
def parameter_that_scales_an_operand(text: Text, choice: random.Random) -> Iterator[Change]:
    """A parameter more that is applied to an operand, where it is given."""
    for name, function, known in functions_of(text):
        operands = [each.name for each in known if each.name in ("x", "u", "A", "B", "weight")]
        for operand in operands[:2]:
            written = with_more(text, function, "own_factor=None")
            code = f"if own_factor is not None:\n    {operand} = {operand} * own_factor"
            yield Change(
                f"{name} {operand}",
                text.edited(with_parameters(text, function, written), text.at_head(function, code)),
                extra={"own_factor": 1.5},
            )


@mutation()
def parameter_in_the_middle(text: Text, choice: random.Random) -> Iterator[Change]:
    """An optional parameter more before the others that are optional."""
    for name, function, known in functions_of(text):
        place = next((i for i, each in enumerate(known) if each.default is not None), len(known))
        written = [each.written for each in known]
        written.insert(place, "own_extra=None")
        yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def renamed_parameter(text: Text, choice: random.Random) -> Iterator[Change]:
    """A parameter has another name, everywhere in its function."""
    for name, function, known in functions_of(text):
        candidates = [each.name for each in known if each.name not in ("self", "model")]
        for old in choice.sample(candidates, min(2, len(candidates))):
            edits = text.renamed(function, old, f"own_{old}")
            yield Change(f"{name} {old}", text.edited(*edits), renamed={old: f"own_{old}"})


@mutation()
def reordered_parameters(text: Text, choice: random.Random) -> Iterator[Change]:
    """The optional parameters stand in another order."""
    for name, function, known in functions_of(text):
        optional = [each.written for each in known if each.default is not None]
        if len(optional) < 2:
            continue
        required = [each.written for each in known if each.default is None]
        moved = optional[1:] + optional[:1]
        choice.shuffle(moved)
        yield Change(name, text.edited(with_parameters(text, function, [*required, *moved])))


@mutation()
def swapped_required_parameters(text: Text, choice: random.Random) -> Iterator[Change]:
    """Two parameters without a default have changed places: a call by place means another."""
    for name, function, known in functions_of(text):
        names = [each.name for each in known]
        for one, other in (("B", "C"), ("u", "delta"), ("weight", "bias")):
            if one not in names or other not in names:
                continue
            first, second = names.index(one), names.index(other)
            if (known[first].default is None) != (known[second].default is None):
                continue
            written = [each.written for each in known]
            written[first], written[second] = written[second], written[first]
            yield Change(
                f"{name} {one} {other}", text.edited(with_parameters(text, function, written))
            )


@mutation()
def keyword_only(text: Text, choice: random.Random) -> Iterator[Change]:
    """The optional parameters can be given by name only."""
    for name, function, known in functions_of(text):
        place = next((i for i, each in enumerate(known) if each.default is not None), None)
        if place is not None:
            written = [each.written for each in known]
            written.insert(place, "*")
            yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def more_keywords(text: Text, choice: random.Random) -> Iterator[Change]:
    """Any keyword is taken, and passed over."""
    for name, function, _ in functions_of(text):
        written = with_more(text, function, "**own_options")
        yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def changed_default(text: Text, choice: random.Random) -> Iterator[Change]:
    """A default is another one: a flag turned, a number moved."""
    for name, function, known in functions_of(text):
        for place, each in enumerate(known):
            if not isinstance(each.default, ast.Constant) or name == "decode":
                continue
            value = each.default.value
            if isinstance(value, bool):
                new = str(not value)
            elif isinstance(value, float) and value > 0:
                new = repr(value * 1e5 if value < 1 else value / 2)
            else:
                continue
            if each.name.startswith("return_") or each.name in ("prenorm", "residual_in_fp32"):
                continue
            written = [parameter.written for parameter in known]
            written[place] = f"{each.name}={new}"
            yield Change(
                f"{name} {each.name}", text.edited(with_parameters(text, function, written))
            )


@mutation()
def annotated(text: Text, choice: random.Random) -> Iterator[Change]:
    """Every parameter and the result say their types."""
    for name, function, known in functions_of(text):
        if any(":" in each.written for each in known):
            continue
        written = [
            f'{each.name}: "object"'
            + (f" = {text.of(each.default)}" if each.default is not None else "")
            for each in known
        ]
        yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def positional_only(text: Text, choice: random.Random) -> Iterator[Change]:
    """The first parameter can be given by place only."""
    for name, function, known in functions_of(text):
        written = [each.written for each in known]
        written.insert(2 if written[0] == "self" else 1, "/")
        yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def autograd_function_takes_more(text: Text, choice: random.Random) -> Iterator[Change]:
    """The forward pass of an autograd function has a parameter that nobody gives."""
    for owner in text.autograd_classes():
        forward = text.find(f"{owner.name}.forward")
        if forward is not None:
            written = with_more(text, forward, "own_extra=None")
            yield Change(owner.name, text.edited(with_parameters(text, forward, written)))


def applies(function: Function) -> list[ast.Call]:
    """The calls of ``apply`` of a class in a function."""
    return [
        node
        for node in walk(function)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "apply"
        and body_of(function)
    ]
