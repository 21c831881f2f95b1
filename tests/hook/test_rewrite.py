"""Which ways of calling the extensions are understood. What is refused has its reason."""

from __future__ import annotations

import ast
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Override, Refused, Rewritten, rewrite

OVERRIDE = copies.override("mamba_ssm.ops.selective_scan_interface")
GENERATION = copies.override("mamba_ssm.utils.generation")


def rewritten(text: str, override: Override = OVERRIDE) -> str:
    return rewrite(dedent(text), override).text


def call_in(text: str) -> str:
    """The one call of an op in the copy, as a tree."""
    (found,) = (
        node
        for node in ast.walk(ast.parse(rewritten(text)))
        if isinstance(node, ast.Call) and "'jetson_mamba'" in ast.dump(node.func)
    )
    return ast.dump(found)


FORWARD = "causal_conv1d_fn(x, w, b, seq_idx=s, initial_states=None, final_states_out=None, "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # mamba-ssm 1.0, 1.1, 1.2 to 2.2.4, and 2.2.5 on.
        (
            "import causal_conv1d_cuda\ncausal_conv1d_cuda.causal_conv1d_fwd(x, w, b, True)",
            "causal_conv1d_fn(x, w, b, activation='silu')",
        ),
        (
            "import causal_conv1d_cuda\ncausal_conv1d_cuda.causal_conv1d_fwd(x, w, b, s, False)",
            "causal_conv1d_fn(x, w, b, seq_idx=s, activation=None)",
        ),
        (
            "import causal_conv1d_cuda\n"
            "causal_conv1d_cuda.causal_conv1d_fwd(x, w, b, s, None, None, a in ['silu'])",
            FORWARD + "activation='silu' if a in ['silu'] else None)",
        ),
        (
            "from causal_conv1d.cpp_functions import causal_conv1d_fwd_function\n"
            "causal_conv1d_fwd_function(x, w, b, s, None, None, True)",
            FORWARD + "activation='silu')",
        ),
        # Under other names, as forks import them.
        (
            "import causal_conv1d_cuda as ccc\nccc.causal_conv1d_fwd(x, w, b, True)",
            "causal_conv1d_fn(x, w, b, activation='silu')",
        ),
        (
            "from causal_conv1d_cuda import causal_conv1d_fwd as f\nf(x, w, b, True)",
            "causal_conv1d_fn(x, w, b, activation='silu')",
        ),
        (
            "import torch, causal_conv1d_cuda, math as m\n"
            "causal_conv1d_cuda.causal_conv1d_fwd(x, w, b, True)",
            "causal_conv1d_fn(x, w, b, activation='silu')",
        ),
        (
            "import causal_conv1d.cpp_functions\n"
            "causal_conv1d.cpp_functions.causal_conv1d_fwd_function(x, w, b, s, None, None, True)",
            FORWARD + "activation='silu')",
        ),
        # By keyword, in any order.
        (
            "from causal_conv1d.cpp_functions import causal_conv1d_fwd_function as f\n"
            "f(x, w, b, silu_activation=flag, seq_idx=s, initial_states=i, final_states_out=o)",
            "causal_conv1d_fn(x, w, b, activation='silu' if flag else None, seq_idx=s, "
            "initial_states=i, final_states_out=o)",
        ),
        # The backward pass; the first two forms are unpacked as three values.
        (
            "import causal_conv1d_cuda as c\n"
            "dx, dw, db = c.causal_conv1d_bwd(x, w, b, g, dx, True)",
            "causal_conv1d_bwd(x, w, b, g, dx=dx, activation='silu')",
        ),
        (
            "import causal_conv1d_cuda as c\n"
            "dx, dw, db = c.causal_conv1d_bwd(x, w, b, g, s, dx, True)",
            "causal_conv1d_bwd(x, w, b, g, seq_idx=s, dx=dx, activation='silu')",
        ),
        (
            "import causal_conv1d_cuda as c\n"
            "dx, *_ = c.causal_conv1d_bwd(x, w, b, g, s, i, f, dx, False, True)",
            "causal_conv1d_bwd(x, w, b, g, seq_idx=s, initial_states=i, dfinal_states=f, dx=dx, "
            "return_dinitial_states=False, activation='silu')",
        ),
        # The wrapper.
        (
            "from causal_conv1d import causal_conv1d_fn\ncausal_conv1d_fn(x, w, b, 'silu')",
            "causal_conv1d_fn(x, w, b, activation='silu')",
        ),
        (
            "from causal_conv1d import causal_conv1d_fn as f\nf(x, w, b, s, 'silu')",
            "causal_conv1d_fn(x, w, b, seq_idx=s, activation='silu')",
        ),
        (
            "from causal_conv1d import causal_conv1d_fn\n"
            "causal_conv1d_fn(x=x, weight=w, activation=a)",
            "causal_conv1d_fn(x=x, weight=w, activation=a)",
        ),
        # A step of decoding.
        (
            "import causal_conv1d_cuda as c\nc.causal_conv1d_update(x, state, w, b, True, n, i)",
            "causal_conv1d_update(x, state, w, b, activation='silu', cache_seqlens=n, "
            "conv_state_indices=i)",
        ),
        (
            "import selective_scan_cuda\nselective_scan_cuda.fwd(u, d, A, B, C, D, z, t, True)",
            "selective_scan_fwd(u, d, A, B, C, D, z, t, True)",
        ),
    ],
)
def test_a_call_becomes_a_call_of_the_op(text: str, expected: str) -> None:
    meant = ast.parse(f"jetson_mamba.ops.{expected}", mode="eval").body
    assert call_in(text) == ast.dump(meant)


def test_three_values_are_given_where_three_are_unpacked() -> None:
    text = "import causal_conv1d_cuda as c\na, b, d = c.causal_conv1d_bwd(x, w, b, g, dx, True)"
    assert rewritten(text).endswith('activation="silu")[:3]')


def test_forms_may_be_mixed_in_one_file_and_classes_added_as_forks_do() -> None:
    text = '''
    # Ünïcode before, 模型 too
    import causal_conv1d_cuda
    import selective_scan_cuda

    class MambaInnerFnNoOutProj:
        """文档"""; name = "é"; y = causal_conv1d_cuda.causal_conv1d_fwd(x, w, b, None, True)

        def forward(ctx):
            one = causal_conv1d_cuda.causal_conv1d_fwd(
                x,  # 输入
                (w),
                b, None,

                None, None,  # states (of which there are none)
                (flag and
                 True),
            )
            return causal_conv1d_cuda.causal_conv1d_fwd(f(x, (1, 2), k=[3]), w, b, None, True)

    class BiMambaInnerFn:
        def backward(ctx):
            return causal_conv1d_cuda.causal_conv1d_bwd(
                x, w, b, dout, None, None, None, dx, False, True
            )
    '''
    found = rewrite(dedent(text), OVERRIDE)
    assert [type(each.edit).__name__ for each in found.applied] == ["Import", "Import"] + [
        "Call"
    ] * 4
    assert "# 输入" in found.text and "# states (of which there are none)" in found.text
    assert len(found.text.splitlines()) == len(dedent(text).splitlines())


def test_line_ends_and_encoding_stay() -> None:
    source = (
        "# -*- coding: latin-1 -*-\r\n"
        "import causal_conv1d_cuda\r\n"
        "NAME = 'caf\xe9'\r\n"
        "y = causal_conv1d_cuda.causal_conv1d_fwd(x, '\xe9', b,\r\n    True)\r\n"
    ).encode("latin-1")
    copy = copies.make("mamba_ssm.ops.selective_scan_interface", source)
    assert copy is not None
    assert copy.count(b"\r\n") == copy.count(b"\n")
    assert b"'caf\xe9'" in copy
    assert b"jetson_mamba.ops.causal_conv1d_fn(x, '\xe9', b,\r\n    activation=\"silu\")" in copy


def test_a_byte_order_mark_and_a_missing_last_line_end_are_no_matter() -> None:
    source = b"\xef\xbb\xbfimport selective_scan_cuda\nselective_scan_cuda.fwd(u)"
    copy = copies.make("mamba_ssm.ops.selective_scan_interface", source)
    assert copy is not None and copy.startswith(b"\xef\xbb\xbfimport jetson_mamba.ops\n")
    compile(copy, "copy", "exec")


def test_statements_over_several_lines_keep_their_lines() -> None:
    text = """
    from causal_conv1d.cpp_functions import (
        causal_conv1d_fwd_function,  # forward
        causal_conv1d_bwd_function,
    )
    after = 1
    """
    assert rewritten(text).splitlines()[5] == "after = 1"


def test_the_branch_for_a_failed_import_stays() -> None:
    text = """
    try:
        from causal_conv1d import causal_conv1d_fn
        import causal_conv1d_cuda
    except ImportError:
        causal_conv1d_fn, causal_conv1d_cuda = None, None
    def f(x):
        assert causal_conv1d_cuda is not None, "needed"
        if not causal_conv1d_fn:
            raise RuntimeError
        return causal_conv1d_fn(x, 1)
    """
    lines = rewritten(text).splitlines()
    assert lines[7] == '    assert jetson_mamba.ops is not None, "needed"'
    assert lines[8] == "    if not jetson_mamba.ops:"


def test_autocast_is_asked_of_the_device_where_the_input_is_known() -> None:
    text = """
    import selective_scan_cuda
    def forward(ctx, xz):
        if torch.is_autocast_enabled():
            xz = xz.to(dtype=torch.get_autocast_gpu_dtype())
    def other(x):
        return torch.is_autocast_enabled()
    """
    lines = rewritten(text).splitlines()
    assert lines[3] == "    if jetson_mamba.ops.autocast_dtype(xz.device) is not None:"
    assert lines[4] == "        xz = xz.to(dtype=jetson_mamba.ops.autocast_dtype(xz.device))"
    assert lines[6] == "    return torch.is_autocast_enabled()"


CUDA = "import causal_conv1d_cuda\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CUDA + "causal_conv1d_cuda.causal_conv1d_fwd(x, w)", "2 positional arguments"),
        (CUDA + "causal_conv1d_cuda.causal_conv1d_fwd(x, w, b, fast=1)", "fast="),
        (CUDA + "causal_conv1d_cuda.other(x)", "not a call in a known form"),
        ("from causal_conv1d import *", "causal_conv1d on line 1 stays: nothing .* stands for"),
        ("from causal_conv1d.elsewhere import f", "stays: it is none that is known"),
        (
            "from causal_conv1d import causal_conv1d_fn\ncausal_conv1d_fn(x, w, b, s)",
            "4 positional arguments",
        ),
        ("print('nothing here')", "nothing in it"),
        ("print 'Python 2'", "does not parse"),
        ("x = (", "does not parse"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        rewrite(text, OVERRIDE)


def test_the_events_that_time_a_generation_are_replaced_where_it_can_be_timed() -> None:
    text = """
    import torch
    def decode(input_ids, enable_timing=False):
        start = torch.cuda.Event(enable_timing=enable_timing)
        torch.cuda.synchronize()
    def capture_graph():
        return torch.cuda.Event()
    """
    assert rewritten(text, GENERATION).splitlines()[1:] == [
        "import torch, jetson_mamba.compat.cuda_events",
        "def decode(input_ids, enable_timing=False):",
        "    start = jetson_mamba.compat.cuda_events.event(enable_timing=enable_timing)",
        "    jetson_mamba.compat.cuda_events.synchronize()",
        "def capture_graph():",
        "    return torch.cuda.Event()",
    ]


def test_no_module_is_imported_beside_another_where_no_edit_names_it() -> None:
    text = "import torch\nfrom transformers.generation import SampleDecoderOnlyOutput\n"
    assert rewrite(text, GENERATION).text == text.replace(
        "transformers.generation", "jetson_mamba.compat.transformers_generation"
    )


# Any formatting of a call: spaces, line ends and comments between its tokens.
GAP = st.sampled_from(["", " ", "  ", "\n", "\n    ", "  # (a, comment\n", "\n\n# é,\n  ", "\\\n"])
ARGUMENT = st.sampled_from(
    [
        *("x", "None", "(x)", "f(a, b)", "[1, 2][0]", "x[1:2, ...]", "lambda q: (q, 1)", "模"),
        *("'a, (b'", "a if b else c", "{'k': (1, 2)}", "(yield_ or y)", "not x", "-1", "x . y"),
        '"""t,\n("""',
    ]
)
FLAG = st.sampled_from(
    ["True", "False", "flag", "a in ['silu', 'swish']", "(a\n or b)", "x == (1)"]
)


@st.composite
def calls(draw: st.DrawFn) -> str:
    """The source of a module with one to three extension calls in known forms."""
    lines = ["import causal_conv1d_cuda", "import selective_scan_cuda"]
    for _ in range(draw(st.integers(1, 3))):
        function, counts = draw(
            st.sampled_from([("causal_conv1d_fwd", (3, 4, 6)), ("causal_conv1d_bwd", (5, 6, 9))])
        )
        arguments = [draw(ARGUMENT) for _ in range(draw(st.sampled_from(counts)))] + [draw(FLAG)]
        inside = "".join(f"{draw(GAP)}{argument}{draw(GAP)}," for argument in arguments)
        if draw(st.booleans()):
            inside = inside.rstrip(",")
        dot, before = draw(st.sampled_from([".", " . ", "."])), draw(st.sampled_from(["", " "]))
        lines.append(f"r = [causal_conv1d_cuda{dot}{function}{before}({inside}), 'after']  # end")
    return "\n".join(lines) + draw(st.sampled_from(["", "\n"]))


@settings(max_examples=300, deadline=None)
@given(calls(), st.sampled_from(["\n", "\r\n"]))
def test_whatever_the_formatting_only_declared_nodes_change(text: str, line_end: str) -> None:
    text = text.replace("\n", line_end)
    try:
        source = ast.parse(text)
    except SyntaxError:
        return  # e.g. a continuation before a comment
    copy = rewrite(text, OVERRIDE)
    assert copy == rewrite(text, OVERRIDE)
    assert copy.text.count("\n") == text.count("\n")
    tree = ast.parse(copy.text)
    for before, after in zip(assigned(source), assigned(tree)):
        assert arguments_of(before) == arguments_of(after)
        assert before.lineno == after.lineno
    assert comments(copy.text) == comments(text)
    again = rewritten_again(copy)
    assert again is None


def assigned(tree: ast.Module) -> list[ast.Assign]:
    return [node for node in tree.body if isinstance(node, ast.Assign)]


def arguments_of(statement: ast.Assign) -> list[str]:
    """What a call is given, without names, with the flag as it was."""
    assert isinstance(statement.value, ast.List)
    call = statement.value.elts[0]
    if isinstance(call, ast.Subscript):
        assert isinstance(call.slice, ast.Slice)
        assert isinstance(call.slice.upper, ast.Constant) and call.slice.upper.value == 3
        call = call.value
    assert isinstance(call, ast.Call)
    given_ = [*map(ast.dump, call.args)]
    for keyword in call.keywords:
        value = keyword.value
        if keyword.arg == "activation":
            if isinstance(value, ast.IfExp):
                value = value.test
            else:
                assert isinstance(value, ast.Constant)
                value = ast.Constant(value=value.value == "silu", kind=None)
        given_.append(ast.dump(value))
    return given_


def comments(text: str) -> int:
    return text.count("# (a, comment") + text.count("# é,") + text.count("# end")


def rewritten_again(copy: Rewritten) -> str | None:
    """A copy has nothing left to replace."""
    try:
        return rewrite(copy.text, OVERRIDE).text
    except Refused as refusal:
        assert "nothing in it" in str(refusal)
        return None
