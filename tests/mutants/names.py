"""Kind: names that are not what they are called: a user's own function under an extension's name.

And names that are nobody's: a binding in another scope, which changes nothing.
"""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.imports import CONV, imports_from, imports_of
from tests.mutants.registry import EXTENSION_USERS, Change, mutation
from tests.mutants.signatures import SCALED, applies, functions_of, with_more
from tests.mutants.texts import Text, unparse, walk, with_parameters

OWN_CONVOLUTION = '''def causal_conv1d_fn(x, weight, bias=None, activation=None, *rest, **options):
    """Somebody's own, which is no convolution."""
    return x * 2.0 + weight[:, :1]


causal_conv1d_fwd_function = causal_conv1d_fn
'''
OWN_SCAN = '''import torch


def fwd(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """Somebody's own, which is no scan."""
    batch, dim, _ = u.shape
    states = u.new_zeros(batch, dim, 1, 2 * A.shape[1])
    out = u * 2.0 + delta
    return (out, states) if z is None else (out, states, out * z)


def bwd(u, delta, A, B, C, D, z, delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z):
    """Its derivatives, as somebody wrote them."""
    tensors = (u, delta, A, B, C, D, delta_bias)
    gradients = [None if each is None else torch.full_like(each, 0.5) for each in tensors]
    gradients += [] if z is None else [z * 3.0 if dz is None else dz.fill_(3.0)]
    gradients += [u * 2.0] if recompute_out_z else []
    return tuple(gradients)
'''


def users_of(text: Text, name: str) -> list[tuple[str, ast.FunctionDef]]:
    """The functions that call a name."""
    return [
        (function_name, function)
        for function_name, function in text.functions()
        if any(isinstance(node, ast.Call) and unparse(node.func) == name for node in walk(function))
    ]


@mutation(*EXTENSION_USERS)
def own_function_imported_by_a_function(text: Text, choice: random.Random) -> Iterator[Change]:
    """A function imports somebody's ``causal_conv1d_fn`` for itself."""
    for name in ("causal_conv1d_fn", "causal_conv1d_fwd_function"):
        for user, function in users_of(text, name):
            edit = text.at_head(function, f"from own_helpers import {name}")
            files = {"/own_helpers.py": OWN_CONVOLUTION}
            yield Change(f"{name} {user}", text.edited(edit), files)


@mutation(*EXTENSION_USERS)
def own_function_in_a_function(text: Text, choice: random.Random) -> Iterator[Change]:
    """A function defines a ``causal_conv1d_fn`` for itself."""
    for name in ("causal_conv1d_fn", "causal_conv1d_fwd_function"):
        for user, function in users_of(text, name):
            code = f"def {name}(x, weight, *rest, **options):\n    return x * 2.0"
            yield Change(f"{name} {user}", text.edited(text.at_head(function, code)))
            code = f"{name} = lambda x, *rest, **options: x * 2.0"
            yield Change(f"{name} {user} lambda", text.edited(text.at_head(function, code)))


@mutation(*EXTENSION_USERS)
def own_function_in_the_module(text: Text, choice: random.Random) -> Iterator[Change]:
    """The module defines a ``causal_conv1d_fn`` after it has imported one."""
    for name in ("causal_conv1d_fn", "causal_conv1d_fwd_function"):
        if users_of(text, name):
            code = f"def {name}(x, weight, *rest, **options):\n    return x * 2.0"
            yield Change(name, text.edited(text.at_end(code)))


@mutation(*EXTENSION_USERS)
def own_function_as_a_parameter(text: Text, choice: random.Random) -> Iterator[Change]:
    """A function takes what it calls as a parameter, with somebody's own as its default."""
    for user, function in users_of(text, "causal_conv1d_fn"):
        written = with_more(text, function, "causal_conv1d_fn=lambda x, *rest, **_: x * 2.0")
        yield Change(user, text.edited(with_parameters(text, function, written)))


@mutation(*EXTENSION_USERS)
def own_module_under_its_name(text: Text, choice: random.Random) -> Iterator[Change]:
    """``import own_scan as selective_scan_cuda``."""
    for node, name in imports_of(text):
        if name == "selective_scan_cuda":
            new = f"import own_scan as {name}"
            yield Change(name, text.edited(text.replace(node, new)), {"/own_scan.py": OWN_SCAN})


@mutation(*EXTENSION_USERS)
def own_module_where_there_is_one(text: Text, choice: random.Random) -> Iterator[Change]:
    """Somebody's own before the extension, with the extension where it cannot be imported."""
    for node, name in imports_of(text):
        if name != "selective_scan_cuda":
            continue
        for there in (True, False):
            code = f"try:\n    import own_scan as {name}\nexcept ImportError:\n    {text.of(node)}"
            yield Change(
                f"{name} {'there' if there else 'missing'}",
                text.edited(text.replace(node, code)),
                {"/own_scan.py": OWN_SCAN} if there else {},
            )


@mutation(*EXTENSION_USERS)
def own_function_where_there_is_one(text: Text, choice: random.Random) -> Iterator[Change]:
    """The same for the convolution: ``try: from own import … except ImportError: …``."""
    for node in imports_from(text, *CONV):
        if [alias.name for alias in node.names] != ["causal_conv1d_fn"]:
            continue
        for there in (True, False):
            for first in (True, False):
                own, upstream = "from own_helpers import causal_conv1d_fn", text.of(node)
                one, other = (own, upstream) if first else (upstream, own)
                indentation = " " * node.col_offset
                code = f"\n{indentation}".join(
                    ("try:", f"    {one}", "except ImportError:", f"    {other}")
                )
                yield Change(
                    f"{'own' if first else 'upstream'} first, {'there' if there else 'missing'}",
                    text.edited(text.replace(node, code)),
                    {"/own_helpers.py": OWN_CONVOLUTION} if there else {},
                )


@mutation()
def parameter_called_jetson_mamba(text: Text, choice: random.Random) -> Iterator[Change]:
    """A parameter has the name of this package."""
    for name, function, _ in functions_of(text):
        written = with_more(text, function, "jetson_mamba=None")
        yield Change(name, text.edited(with_parameters(text, function, written)))


@mutation()
def variable_called_jetson_mamba(text: Text, choice: random.Random) -> Iterator[Change]:
    """A variable has the name of this package: the module's, or a function's."""
    yield Change("module", text.edited(text.at_end("jetson_mamba = None")))
    for name, function, _ in functions_of(text):
        yield Change(name, text.edited(text.at_head(function, "jetson_mamba = 1")))


@mutation(*EXTENSION_USERS)
def same_name_in_another_scope(text: Text, choice: random.Random) -> Iterator[Change]:
    """A name of an extension is bound where no call of it can see that."""
    names = [name for _, name in imports_of(text)]
    names += [alias.name for node in imports_from(text, *CONV) for alias in node.names]
    forms = {
        "variable": "def own_function():\n    {0} = 3\n    return {0}",
        "parameter": "def own_function({0}=3):\n    return {0}",
        "attribute": "class Own:\n    {0} = 3",
        "comprehension": "OWN_LIST = [{0} for {0} in range(3)]",
        "lambda": "own_function = lambda {0}: {0}",
        "keyword": "OWN_OPTIONS = dict({0}=3)",
        "method": "class Own:\n    def {0}(self):\n        return 3",
    }
    for name in names:
        for form in choice.sample(sorted(forms), 2):
            yield Change(f"{name} {form}", text.edited(text.at_end(forms[form].format(name))))


@mutation()
def wrapped_afterwards(text: Text, choice: random.Random) -> Iterator[Change]:
    """The public function is bound to something else after it is defined."""
    for name in text.public:
        if "." in name or name == "decode":
            continue
        code = (
            f"{SCALED}\n\nown_{name} = {name}\n\n\ndef {name}(*arguments, **options):\n"
            f"    return own_scaled(own_{name}(*arguments, **options), 1.5)"
        )
        yield Change(f"{name} def", text.edited(text.at_end(code)))
        code = (
            f"{SCALED}\n\n{name} = (lambda f: lambda *a, **k: own_scaled(f(*a, **k), 1.5))({name})"
        )
        yield Change(f"{name} lambda", text.edited(text.at_end(code)))


@mutation()
def defined_twice(text: Text, choice: random.Random) -> Iterator[Change]:
    """A second function of the public name, which is the one that counts."""
    for name, _, known in functions_of(text):
        if "." in name or name == "decode":
            continue
        listed = ", ".join(each.written for each in known)
        first = known[1 if known[0].name == "state" else 0].name
        code = f"def {name}({listed}):\n    return {first} * 1.5"
        yield Change(name, text.edited(text.at_end(code)))
        guard = f"if True:\n    def {name}({listed}):\n        return {first} * 1.5"
        yield Change(f"{name} guarded", text.edited(text.at_end(guard)))


@mutation()
def class_defined_again(text: Text, choice: random.Random) -> Iterator[Change]:
    """A subclass takes the name of its base, and scales."""
    for owner in text.autograd_classes():
        if text.find(f"{owner.name}.forward") is None:
            continue
        code = (
            f"class {owner.name}({owner.name}):\n    @staticmethod\n"
            f"    def forward(ctx, first, *rest):\n"
            f"        return own_base_{owner.name}.forward(ctx, first * 1.5, *rest)"
        )
        yield Change(
            owner.name,
            text.edited(text.at_end(f"own_base_{owner.name} = {owner.name}\n\n\n{code}")),
        )


@mutation()
def class_of_another_name_called(text: Text, choice: random.Random) -> Iterator[Change]:
    """A local variable with the name of the class holds another."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            owner = unparse(call.func).rpartition(".")[0]
            code = (
                f"class {owner}:\n    @staticmethod\n    def apply(first, *rest):\n"
                f"        return first * 1.5"
            )
            yield Change(name, text.edited(text.at_head(function, code)))
