"""Ways past a function are taken where it is known. They leave out nothing but themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import jetson_mamba.ops
from jetson_mamba.hook import copies
from jetson_mamba.rewrite import LeftOut, Override, rewrite
from tests.rewrite.known import rewrite_as_known

COMBINED = copies.override("mamba_ssm.ops.triton.ssd_combined")
INTERFACE = copies.override("mamba_ssm.ops.selective_scan_interface")
UPDATE = copies.override("mamba_ssm.ops.triton.selective_state_update")
NORM = copies.override("mamba_ssm.ops.triton.layernorm_gated")
BLOCKS = copies.override("mamba_ssm.modules.mamba_simple")

OPS = "jetson_mamba.ops"
SCAN = """
import selective_scan_cuda
class SelectiveScanFn: pass
def selective_scan_fn(u, delta, A, B, C, D=None):
    return SelectiveScanFn.apply(u, delta, A, B, C, D)
"""


def test_a_known_function_goes_past_its_autograd_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = rewrite_as_known(monkeypatch, SCAN, INTERFACE, "selective_scan_fn")
    op = f"{OPS}.selective_scan_fn"
    assert found.text.splitlines()[-1] == (
        f"    return ({OPS}.twice_differentiable(SelectiveScanFn, {op}).apply(u, delta, A, B, C, D)"
        f" if {OPS}.through_autograd(u) else {op}(u=u, delta=delta, A=A, B=B, C=C, D=D))"
    )
    assert found.left_out == ()


def test_an_unknown_function_stays_and_the_rest_is_served() -> None:
    found = rewrite(SCAN, INTERFACE)
    assert found.text == SCAN.replace("selective_scan_cuda", OPS)
    assert found.left_out == (
        LeftOut(
            "selective_scan_fn",
            "neither it nor all that it calls is the text of a release; its own code runs",
        ),
    )


NORMS = """
import math
import torch  # first
import torch.nn.functional as F
def rmsnorm_fn(x, weight, bias, z=None, eps=1e-6, group_size=None, norm_before_gate=True):
    return LayerNormFn.apply(x, weight, z, bias, eps, True)
"""


def test_what_the_autograd_function_is_given_keeps_its_meaning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the order of the op is another, it is told by names; a flag that is given as well."""
    copy = rewrite_as_known(monkeypatch, NORMS, NORM, "rmsnorm_fn").text
    assert f"import torch, {OPS}  # first\nimport torch.nn.functional as F\n" in copy
    names = "'x', 'weight', 'z', 'bias', 'eps', 'is_rms_norm'"
    taken = ("x", "weight", "bias", "z", "eps", "group_size", "norm_before_gate")
    given = ", ".join(f"{each}={each}" for each in taken)
    composed = f"{OPS}.by_name({OPS}.layernorm_fn, {names})"
    assert (
        f"return ({OPS}.twice_differentiable(LayerNormFn, {composed})"
        f".apply(x, weight, z, bias, eps, True) if {OPS}.through_norm_autograd({given}) else "
        f"{OPS}.rmsnorm_fn({given}))\n"
    ) in copy


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("def rmsnorm_fn(x, own): return LayerNormFn.apply(x, own)", "it takes own; "),
        ("def rmsnorm_fn(x, *rest): return LayerNormFn.apply(x)", "a variable number"),
        ("def rmsnorm_fn(x): return x", "it calls LayerNormFn.apply 0 times"),
        ("def rmsnorm_fn(x): return LayerNormFn.apply(x + 1)", "computes what it gives"),
        ("def rmsnorm_fn(x): return LayerNormFn.apply(x=x)", "by keywords"),
        ("def rmsnorm_fn(x): return LayerNormFn.apply(*x)", "by keywords"),
        ("if torch:\n    def rmsnorm_fn(x): return LayerNormFn.apply(x)", "not define it once"),
    ],
)
def test_a_known_function_that_does_not_fit_stays_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, body: str, reason: str
) -> None:
    text = f"import torch\n{body}\n"
    found = rewrite_as_known(monkeypatch, text, NORM, "rmsnorm_fn")
    assert (found.text, found.applied) == (text, ())
    ((what, why),) = found.left_out
    assert what == "rmsnorm_fn" and reason in why


@pytest.mark.parametrize(
    "body",
    [
        "def forward(self, x): return x",
        "forward = other",
        "forward: object = other",
        "if other:\n        def forward(self, x): return x",
        "from other import forward",
        "from other import call as forward",
    ],
)
def test_a_method_is_told_of_however_it_is_bound(body: str) -> None:
    found = rewrite(f"class Mamba:\n    {body}\n", BLOCKS)
    assert [each.what for each in found.left_out] == ["Mamba.forward"]


@pytest.mark.parametrize("body", ["pass", "def other(self, x): return x"])
def test_a_method_that_a_class_does_not_have_is_no_matter(body: str) -> None:
    assert rewrite(f"class Mamba:\n    {body}\n", BLOCKS).left_out == ()


TRITON = """import torch
import triton
@triton.jit
def kernel(x): pass
def selective_state_update(state, x, z=None):
    kernel[1](state)
    return state
"""


def test_an_unknown_function_on_triton_is_served_where_that_does_not_run() -> None:
    found = rewrite(TRITON, UPDATE)
    assert found.text.splitlines()[0] == f"import torch, {OPS}"
    assert found.text.splitlines()[-1] == (
        'if "selective_state_update" in globals(): selective_state_update = '
        f"{OPS}.unchecked(selective_state_update, {OPS}.selective_state_update, "
        "'selective_state_update', 'state', 'x', 'z')"
    )
    ((what, why),) = found.left_out
    assert what == "selective_state_update" and "where Triton has no kernels for the device" in why


def test_one_that_takes_any_number_is_served_without_names() -> None:
    found = rewrite(TRITON.replace("(state, x, z=None)", "(state, *rest)"), UPDATE)
    assert found.text.splitlines()[-1].endswith(
        f"{OPS}.unchecked(selective_state_update, {OPS}.selective_state_update, "
        "'selective_state_update')"
    )


@pytest.mark.parametrize(
    "text",
    [
        # It runs where Triton does not.
        "import torch\ndef selective_state_update(state, x):\n    return state\n",
        TRITON.replace("return state", "return state if state.is_cuda else x"),
        TRITON.replace("return state", "return state if state.device.type == 'xpu' else x"),
    ],
)
def test_what_may_run_on_any_device_is_left_to_itself(text: str) -> None:
    found = rewrite(text, UPDATE)
    assert (found.text, found.applied) == (text, ())
    assert [what for what, _ in found.left_out] == ["selective_state_update"]


UPDATING = """
    @triton.jit
    def kernel(x): pass
    def selective_state_update(state, x, z=None):
        kernel[1](state)
        return state
"""
PLACES = (
    "if True:{0}",
    "if off:\n    pass\nelse:{0}",
    "if off:{0}",
    "try:{0}\nexcept ImportError:\n    selective_state_update = None",
    "try:{0}\nfinally:\n    pass",
    "try:\n    import math\nexcept ImportError:\n    pass\nelse:{0}",
    "try:\n    import not_there\nexcept ImportError:{0}",
    "with open(__file__):{0}",
    "for _ in (1,):{0}",
    "while True:{0}\n    break",
    "if True:\n  try:{0}\n  finally:\n    pass",
    "if True:{0}\nselective_state_update = (lambda f: lambda *a, **k: f(*a, **k))("
    "selective_state_update)",
    "if True:{0}\ndel selective_state_update",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_function_is_served_wherever_the_module_defines_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the branch is not run there is no name, as in the text itself."""
    text = f"import torch, triton\noff = False\n{place.format(UPDATING.rstrip())}\n"
    found = rewrite(text, UPDATE)
    ((what, why),) = found.left_out
    assert what == "selective_state_update" and "where Triton has no kernels for the device" in why
    path = tmp_path / "copy.py"
    path.write_text(found.text)
    made: dict[str, Any] = {"__name__": "fork", "__file__": str(path)}
    given: list[Any] = []

    class Ops:
        selective_state_update = None

        @staticmethod
        def unchecked(own: Any, op: Any, name: str, *order: str) -> Any:
            given.append((name, order))
            return "served"

    triton = SimpleNamespace(jit=lambda function: function)
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setattr(jetson_mamba, "ops", Ops, raising=False)
    exec(compile(found.text, str(path), "exec"), made)
    is_there = place != "if off:{0}" and "del" not in place
    assert made.get("selective_state_update") == ("served" if is_there else None)
    assert given == [("selective_state_update", ("state", "x", "z"))] * is_there


@pytest.mark.parametrize(
    "text", ["def f():\n    selective_state_update = triton.f\n", "selective = triton.f\n"]
)
def test_nothing_is_said_of_a_name_that_the_module_does_not_bind(text: str) -> None:
    found = rewrite(f"import torch, triton\n{text}", UPDATE)
    assert (found.left_out, found.applied) == ((), ())


STEP = "import torch\ndef selective_state_update(state, x, z=None):\n    return state"
ENDS = ("", "\n", "\n    # a comment", "\n\n\n", '\nif x:\n    y = """\n"""', "; z = 1")


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ENDS)
def test_a_function_is_bound_anew_after_the_last_line(
    monkeypatch: pytest.MonkeyPatch, last: str, line_end: str
) -> None:
    text = (STEP + last).replace("\n", line_end)
    found = rewrite_as_known(monkeypatch, text, UPDATE, "selective_state_update")
    before = text.replace("import torch", f"import torch, {OPS}", 1)
    if not before.endswith(line_end):
        before += line_end
    assert found.text == (
        f"{before}selective_state_update = {OPS}.where_triton_runs("
        f"selective_state_update, {OPS}.selective_state_update){line_end}"
    )
    assert [each.line for each in found.applied] == [1, len(before.splitlines()) + 1]


def test_what_is_written_is_imported_last_where_nothing_else_imports_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = STEP.replace("import torch\n", "from torch import nn\n")
    found = rewrite_as_known(monkeypatch, text, UPDATE, "selective_state_update")
    assert found.text.splitlines()[len(text.splitlines())] == f"import {OPS}"


BLOCK = """import torch
class Mamba(torch.nn.Module):
    def forward(self, hidden_states, inference_params=None): return hidden_states
    def step(self, hidden_states, conv_state, ssm_state): return hidden_states
"""


@pytest.mark.parametrize("last", ["", "\n# a comment without an end of line"])
def test_the_methods_of_a_block_are_bound_anew_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    found = rewrite_as_known(monkeypatch, BLOCK + last, BLOCKS, "Mamba")
    assert found.text.splitlines()[-2:] == [
        f"Mamba.forward = {OPS}.calling_modules(Mamba.forward, "
        f"{OPS}.forward_by_graph(Mamba.forward), 'in_proj', 'dt_proj')",
        f"Mamba.step = {OPS}.by_launches({OPS}.several_tokens({OPS}.calling_modules(Mamba.step, "
        f"{OPS}.step_by_graph({OPS}.in_few_kernels(Mamba.step)), 'dt_proj')))",
    ]
    count = len((BLOCK + last).splitlines())
    assert [each.line for each in found.applied] == [1, count + 1, count + 2]


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (BLOCK.replace("inference_params=None", "mask=None"), ["Mamba.step"]),
        (BLOCK.replace("ssm_state)", "ssm_state, *rest)"), ["Mamba.forward"]),
        (BLOCK.replace("def step", "def one_step"), ["Mamba.forward"]),
        (BLOCK.replace("class Mamba", "class Bimamba"), []),
        (BLOCK + BLOCK.replace("import torch\n", ""), []),
        ("import torch\ndef forward(self, hidden_states): pass\n", []),
    ],
)
def test_a_method_of_a_fork_is_not_bound_anew(
    monkeypatch: pytest.MonkeyPatch, text: str, bound: list[str]
) -> None:
    found = rewrite_as_known(monkeypatch, text, BLOCKS, "Mamba")
    added = found.text.splitlines()[len(text.splitlines()) :]
    assert [line.partition(" = ")[0] for line in added] == bound
    # Nothing that stands there is left out without a word.
    methods = [f"Mamba.{name}" for name in ("forward", "step") if f"def {name}(" in text]
    stands = methods if "class Mamba(" in text else []
    assert [what for what, _ in found.left_out] == [each for each in stands if each not in bound]


def test_a_block_that_no_release_has_is_left_alone_with_the_reason() -> None:
    found = rewrite(BLOCK, BLOCKS)
    assert (found.text, found.applied) == (BLOCK, ())
    assert [what for what, _ in found.left_out] == ["Mamba.forward", "Mamba.step"]


def test_the_notice_of_a_copy_tells_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    override = Override("mamba_ssm.ops.selective_scan_interface", INTERFACE.edits)
    monkeypatch.setattr(copies, "override", lambda target: override)
    copy = copies.make("mamba_ssm.ops.selective_scan_interface", SCAN.encode())
    assert copy is not None
    assert b"\n# Left as it is: selective_scan_fn: neither it nor all that it calls is " in copy
