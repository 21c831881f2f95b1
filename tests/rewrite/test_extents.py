"""A node is found in the text however it is written there. It begins and ends where it does."""

from __future__ import annotations

import ast
from itertools import product

import pytest

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Refused, rewrite
from tests.rewrite.known import rewrite_as_known

INTERFACE = copies.override("mamba_ssm.ops.selective_scan_interface")
COMBINED = copies.override("mamba_ssm.ops.triton.ssd_combined")
GENERATION = copies.override("mamba_ssm.utils.generation")
NAME = "causal_conv1d_cuda.causal_conv1d_fwd"
CALLED = (
    NAME,
    f"({NAME})",
    f"(({NAME}))",
    f"(  # (a comment)\n        {NAME}  # ), another\n    )",
    "(causal_conv1d_cuda\n    .causal_conv1d_fwd)",
    "(causal_conv1d_cuda.  # of it\n    causal_conv1d_fwd\n    )",
    "causal_conv1d_cuda\\\n    .causal_conv1d_fwd",
    "causal_conv1d_cuda . causal_conv1d_fwd \\\n",
    "(causal_conv1d_cuda)\\\n    .causal_conv1d_fwd",
)
ARGUMENTS = (
    "(a, b, c, None, None, None, {0})",
    "( ( a ), b,\n(c) # ,\n, None, (\n  None\n), ((None)), ( {0} ) , )",
    "((a), (lambda p, q=(1, 2): p), c[1, 2], f(x, y), {{1: 2, 3: 4}}, None, ({0}))",
    "(a, lambda p, q: p, (b)(c), d, (e, f), (x for x in y), {0})",
    "(\\\n a, b, c, None, (yield), (x := 1), {0} # the last )\n)",
)
FLAGS = ("True", "flag", "not flag", "a if b else c", "(flag)\n  or (other)", "lambda a, b: a")
# What surrounds the call on its lines.
AROUND = ("return {0}", "x = ({0})[0]; y = 1", "return ({0}), 1", "x = {0} # a comment")


def expected(arguments: str, flag: str) -> str:
    text = f"def f():\n  _{arguments.format(flag)}"
    call = ast.parse(text).body[0].body[0].value  # type: ignore[attr-defined]
    given = [f"({ast.get_source_segment(text, each)})" for each in call.args]
    given[-1] = {"True": "'silu'"}.get(flag, f"('silu' if {given[-1]} else None)")
    names = ("seq_idx", "initial_states", "final_states_out", "activation")
    named = [f"{name}={value}" for name, value in zip(names, given[3:])]
    return f"jetson_mamba.ops.causal_conv1d_fn({', '.join(given[:3] + named)})"


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("called", CALLED)
def test_the_arguments_of_a_call_are_told_apart(called: str, around: str) -> None:
    for arguments, flag in product(ARGUMENTS, FLAGS):
        written = around.format(called + arguments.format(flag))
        text = f"import causal_conv1d_cuda\ndef function():\n    {written}\n    last = 1\n"
        ast.parse(text)
        found = rewrite(text, INTERFACE).text
        meant = around.format(expected(arguments, flag))
        assert ast.dump(ast.parse(found)) == ast.dump(
            ast.parse(f"import jetson_mamba.ops\ndef function():\n    {meant}\n    last = 1")
        )
        assert found.count("\n") == text.count("\n")


def test_a_call_in_an_f_string_is_replaced_or_refused() -> None:
    text = f"import causal_conv1d_cuda\ndef f(x):\n    return f'{{{NAME}(x, x, x, 1, 2, 3, x)}}'\n"
    try:
        found = rewrite(text, INTERFACE).text
    except Refused as refused:
        assert "line 3 cannot be told apart" in str(refused)
    else:
        assert "activation=" in found


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    "keyword",
    ["silu_activation={0}", "silu_activation \\\n = ({0})", "silu_activation=( # it\n ({0}) )"],
)
def test_a_flag_by_name_is_told_apart(keyword: str, flag: str) -> None:
    called = "(causal_conv1d_fwd_function)(a, (b), c, None, None, None, " + keyword.format(flag)
    flag = f"({flag})" if "\n" in flag else flag
    text = (
        "from causal_conv1d.cpp_functions import causal_conv1d_fwd_function\n"
        f"def function():\n    return {called} , )\n"
    )
    found = rewrite(text, COMBINED).text
    value = "'silu'" if flag == "True" else f"('silu' if ({flag}) else None)"
    (call,) = (x for x in ast.walk(ast.parse(found)) if isinstance(x, ast.Call))
    (given,) = (each.value for each in call.keywords if each.arg == "activation")
    assert ast.dump(given) == ast.dump(ast.parse(value, mode="eval").body)
    assert found.count("\n") == text.count("\n")


SCAN = """
import selective_scan_cuda
class SelectiveScanFn: pass
def selective_scan_fn(u, delta, A, B, C, D=None):
    return {0}(u, delta, (A), B,
      C, D)
"""


@pytest.mark.parametrize(
    "called",
    [
        "(SelectiveScanFn.apply)",
        "(SelectiveScanFn\n    .apply)",
        "SelectiveScanFn\\\n    .apply",
        "(SelectiveScanFn).apply  \\\n  ",
    ],
)
def test_a_way_past_leaves_the_lines(monkeypatch: pytest.MonkeyPatch, called: str) -> None:
    text = SCAN.format(called)
    found = rewrite_as_known(monkeypatch, text, INTERFACE, "selective_scan_fn")
    assert found.left_out == () and ".twice_differentiable(SelectiveScanFn, " in found.text
    assert found.text.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    "statement",
    [
        "from causal_conv1d import (\n    causal_conv1d_fn,  # it\n); y = 1",
        "y = 1; from causal_conv1d import (\n    causal_conv1d_fn\n) ;",
        "from causal_conv1d import \\\n    causal_conv1d_fn; y = 1  # (",
        "from \\\n causal_conv1d \\\n import causal_conv1d_fn",
        "if y: from causal_conv1d import (\n causal_conv1d_fn\n); z = 1",
    ],
)
def test_a_statement_after_an_import_over_lines_stays(statement: str) -> None:
    text = f"{statement}\ndef f(x): return causal_conv1d_fn(x, x)\nlast = 1\n"
    found = rewrite(text, INTERFACE)
    assert [x.lineno for x in ast.parse(found.text).body] == [
        x.lineno for x in ast.parse(text).body
    ]
    assert "causal_conv1d import" not in found.text.replace("any_form.causal_conv1d import", "")


@pytest.mark.parametrize(
    "start",
    [
        "from transformers.generation",
        "from transformers . generation",
        "from transformers.\\\n generation \\\n",
    ],
)
def test_the_module_of_an_import_is_replaced_however_it_is_spelled(start: str) -> None:
    text = f"{start} import GreedySearchDecoderOnlyOutput\nlast = 1\n"
    found = rewrite(text, GENERATION).text
    assert "from jetson_mamba.compat.transformers_generation" in found
    assert found.count("\n") == text.count("\n")


def test_a_module_beside_is_another() -> None:
    text = "from .transformers.generation import GreedySearchDecoderOnlyOutput\n"
    assert rewrite(text, GENERATION).text == text


TIMED = "import torch\ndef decode({0}):\n    event = {1}(enable_timing=enable_timing)\n"


@pytest.mark.parametrize(
    "parameters",
    ["enable_timing", "x, /, enable_timing", "enable_timing, /", "x, *, enable_timing"],
)
@pytest.mark.parametrize(
    "event", ["torch.cuda.Event", "(torch.cuda\n  .Event)", "torch \\\n .cuda.Event"]
)
def test_whichever_way_a_function_takes_what_tells_it(parameters: str, event: str) -> None:
    text = TIMED.format(parameters, event)
    found = rewrite(text, GENERATION).text
    assert "jetson_mamba.compat.cuda_events.event" in found
    assert found.count("\n") == text.count("\n")


@pytest.mark.parametrize("ending", ["", "  # a comment", "; y = 1"])
def test_an_expression_over_lines_may_end_its_statement(ending: str) -> None:
    body = f"    e = torch \\\n .cuda.Event{ending}\n    return e\n"
    text = f"import torch\ndef f(enable_timing):\n{body}"
    found = rewrite(text, GENERATION).text
    assert "e = jetson_mamba.compat.cuda_events.event" in found
    assert found.count("\n") == text.count("\n")
