"""Kind: how an extension is called. The call means the same, however it is written."""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.operands import extension_calls
from tests.mutants.registry import EXTENSION_USERS, Change, mutation
from tests.mutants.texts import Text, unparse, walk

# Of the functions of causal_conv1d.cpp_functions, which are Python's.
KEYWORDS = {
    "causal_conv1d_fwd_function": (
        *("x", "weight", "bias", "seq_idx", "initial_states", "final_states_out"),
        "silu_activation",
    ),
    "causal_conv1d_bwd_function": (
        *("x", "weight", "bias", "dout", "seq_idx", "initial_states", "dfinal_states", "dx"),
        *("return_dinitial_states", "silu_activation"),
    ),
}


def statements_of(text: Text) -> list[tuple[ast.stmt, ast.Call]]:
    """The calls of extensions, each with the statement that it is the value of, or is inside."""
    found: list[tuple[ast.stmt, ast.Call]] = []
    for call in extension_calls(text):
        inside = [
            node
            for node in walk(text.tree)
            if isinstance(node, (ast.Assign, ast.Return, ast.Expr))
            and any(each is call for each in walk(node))
        ]
        found.append((inside[-1], call))
    return found


@mutation(*EXTENSION_USERS)
def function_has_a_local_name(text: Text, choice: random.Random) -> Iterator[Change]:
    """``forward = selective_scan_cuda.fwd``, and the call is of that."""
    for place, (statement, call) in enumerate(statements_of(text)):
        edits = (
            text.before(statement, f"own_function = {text.of(call.func)}"),
            text.replace(call.func, "own_function"),
        )
        yield Change(str(place), text.edited(*edits))


@mutation(*EXTENSION_USERS)
def module_has_a_local_name(text: Text, choice: random.Random) -> Iterator[Change]:
    """``scan = selective_scan_cuda``, and the call is of an attribute of that."""
    for place, (statement, call) in enumerate(statements_of(text)):
        if isinstance(call.func, ast.Attribute):
            edits = (
                text.before(statement, f"own_module = {text.of(call.func.value)}"),
                text.replace(call.func.value, "own_module"),
            )
            yield Change(str(place), text.edited(*edits))


@mutation(*EXTENSION_USERS)
def by_keyword(text: Text, choice: random.Random) -> Iterator[Change]:
    """The arguments after the third are given by name."""
    for place, call in enumerate(extension_calls(text)):
        names = KEYWORDS.get(unparse(call.func))
        if names is not None and len(names) == len(call.args):
            given = list(zip(names[3:], call.args[3:]))
            edits = [text.replace(node, f"{name}={text.of(node)}") for name, node in given]
            yield Change(str(place), text.edited(*edits))


@mutation(*EXTENSION_USERS)
def in_parentheses(text: Text, choice: random.Random) -> Iterator[Change]:
    """Parentheses around what is called, the call and its arguments, over several lines."""
    for place, call in enumerate(extension_calls(text)):
        arguments = ", ".join(f"(\n            {text.of(each)})" for each in call.args)
        new = f"(({text.of(call.func)})({arguments},))"
        yield Change(str(place), text.edited(text.replace(call, new)))


@mutation(*EXTENSION_USERS)
def flag_by_an_expression(text: Text, choice: random.Random) -> Iterator[Change]:
    """The last flag is written as an expression."""
    for place, call in enumerate(extension_calls(text)):
        last = call.args[-1]
        forms = (
            f"bool({text.of(last)})",
            f"not not {text.of(last)}",
            f"({text.of(last)}) or False",
        )
        yield Change(str(place), text.edited(text.replace(last, choice.choice(forms))))


@mutation(*EXTENSION_USERS)
def in_a_function_of_its_own(text: Text, choice: random.Random) -> Iterator[Change]:
    """The call stands in a helper of the module, or in a lambda."""
    for place, call in enumerate(extension_calls(text)):
        names = ", ".join(f"a{index}" for index in range(len(call.args)))
        code = f"def own_call({names}):\n    return {text.of(call.func)}({names})"
        edits = (text.replace(call.func, "own_call"), text.at_end(code))
        yield Change(f"{place} helper", text.edited(*edits))
        new = f"(lambda {names}: {text.of(call.func)}({names}))"
        yield Change(f"{place} lambda", text.edited(text.replace(call.func, new)))


@mutation(*EXTENSION_USERS)
def calls_of_several_forms(text: Text, choice: random.Random) -> Iterator[Change]:
    """A helper more makes the convolution's call, beside those that are there."""
    for call in extension_calls(text):
        if "fwd" in unparse(call.func) and "conv" in unparse(call.func):
            middle = ", None" * (len(call.args) - 4)
            code = (
                f"def own_convolution(x, weight, bias):\n"
                f"    return {text.of(call.func)}(x, weight, bias{middle}, False)"
            )
            yield Change("helper", text.edited(text.at_end(code)))
            break


UNREADABLE = {
    "starred": "{0}(*({1},))",
    "getattr": 'getattr({2}, "{3}")({1})',
    "list": "[{0}][0]({1})",
    "condition": "({0} if True else None)({1})",
}


@mutation(*EXTENSION_USERS, refusable="what is called, or with what, shows only as it runs")
def by_what_shows_as_it_runs(text: Text, choice: random.Random) -> Iterator[Change]:
    """Arguments unpacked, or a function looked up by an expression."""
    for place, call in enumerate(extension_calls(text)):
        for form, new in UNREADABLE.items():
            if form == "getattr" and not isinstance(call.func, ast.Attribute):
                continue
            owner, _, name = text.of(call.func).rpartition(".")
            arguments = ", ".join(text.of(each) for each in call.args)
            written = new.format(text.of(call.func), arguments, owner, name)
            if choice.random() < 0.5:
                yield Change(f"{place} {form}", text.edited(text.replace(call, written)))
