"""Kind: what stands elsewhere yet decides what a target means. Down to the Triton kernels."""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.operands import factor
from tests.mutants.registry import Change, mutation
from tests.mutants.texts import Function, Text, body_of, calls, parameters, unparse, walk

# Targets that launch kernels of their own.
WITH_KERNELS = (
    *("ops/triton/ssd_combined.py", "ops/triton/layernorm.py"),
    *("ops/triton/selective_state_update.py",),
)


def kernels_of(text: Text) -> list[Function]:
    """The functions that Triton compiles."""
    return [
        function
        for _, function in text.functions()
        if any("jit" in unparse(each) for each in function.decorator_list)
    ]


def launchers_of(text: Text) -> list[Function]:
    """The functions that launch them for an autograd function."""
    return [
        function
        for name, function in text.functions()
        if name.startswith("_") and function not in kernels_of(text)
    ]


@mutation(*WITH_KERNELS, kernels=True)
def scaled_in_the_kernel(text: Text, choice: random.Random) -> Iterator[Change]:
    """A kernel scales what it stores."""
    for kernel in kernels_of(text):
        stores = [each for each in calls(kernel, "tl.store") if len(each.args) > 1]
        for call in stores[-1:]:
            value = call.args[1]
            new = f"({text.of(value)}) * {factor(choice)}"
            yield Change(kernel.name, text.edited(text.replace(value, new)))


@mutation(*WITH_KERNELS, kernels=True)
def scaled_by_the_launcher(text: Text, choice: random.Random) -> Iterator[Change]:
    """The function that launches a kernel scales its first operand."""
    for function in launchers_of(text):
        first = parameters(text, function)[0].name
        code = f"{first} = {first} * {factor(choice)}"
        if body_of(function):
            yield Change(function.name, text.edited(text.at_head(function, code)))


@mutation(*WITH_KERNELS, kernels=True)
def constant_in_the_kernel(text: Text, choice: random.Random) -> Iterator[Change]:
    """A number in a kernel is another."""
    for kernel in kernels_of(text):
        numbers = [
            node
            for node in walk(kernel)
            if isinstance(node, ast.Constant) and type(node.value) is float and node.value
        ]
        for node in choice.sample(numbers, min(1, len(numbers))):
            number = text.of(node)
            edit = text.replace(node, f"({number} * 0.5)")
            yield Change(f"{kernel.name} {number}", text.edited(edit))


@mutation(*WITH_KERNELS, kernels=True)
def comment_in_the_kernel(text: Text, choice: random.Random) -> Iterator[Change]:
    """A comment in a kernel, which means nothing."""
    for kernel in kernels_of(text)[:2]:
        yield Change(kernel.name, text.edited(text.at_head(kernel, "# One block for each row.")))
