"""A process has one finder, whatever becomes of the modules that put it there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hook.pythons import oldest_own_newest
from tests.hook.sandbox import RECORDER, Sandbox
from tests.hook.test_import import UNKNOWN_FORM, stub_extensions

TARGET = "mamba_ssm.ops.selective_scan_interface"
PURGE = """
for name in [each for each in sys.modules if each.split(".")[0] == "jetson_mamba"]:
    del sys.modules[name]
"""
OTHERS = "import importlib\n"
WAYS = {
    "reload": OTHERS + "importlib.reload(jetson_mamba)",
    "reload of the finder": OTHERS
    + "importlib.reload(jetson_mamba.finder); importlib.reload(jetson_mamba)",
    "purge": PURGE + "import jetson_mamba",
    "purge and startup": PURGE + "import jetson_mamba.startup; jetson_mamba.startup.main()",
    "second activation": "jetson_mamba.activate()",
    "purge twice": (PURGE + "import jetson_mamba\n") * 2,
    "reload and purge": OTHERS + "importlib.reload(jetson_mamba)" + PURGE + "import jetson_mamba",
}
COUNT = """
ours = [each for each in sys.meta_path if type(each).__module__ == "jetson_mamba.finder"]
print(len(ours), ours[0] is first, jetson_mamba._finder is first, jetson_mamba.is_active())
"""


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize("way", WAYS)
def test_there_is_one_finder_whatever_is_imported_again(
    sandbox: Sandbox, way: str, python: str
) -> None:
    again = f"first = jetson_mamba._finder\n{WAYS[way]}\n{COUNT}\n{RECORDER}"
    printed = sandbox.output(
        again + f"import {TARGET} as module\nprint(module.MambaInnerFn().forward('x', 1)[0])",
        python=python,
    )
    assert printed.splitlines() == ["1 True True True", "selective_scan_fwd"]


@pytest.mark.parametrize("way", ["reload", "purge", "reload of the finder"])
def test_what_it_knows_stays(sandbox: Sandbox, way: str) -> None:
    """The mode that held at first, who activated it, and what became of the targets."""
    printed = sandbox.output(
        f"""
import os, {TARGET}
jetson_mamba._finder.activated_by = "startup file"
os.environ.update(JETSON_MAMBA="on", JETSON_MAMBA_STAND_IN="on")
{WAYS[way]}
{RECORDER}
found = jetson_mamba._finder
print(found.strict, found.stand_in, jetson_mamba.activated_by, found.outcomes["{TARGET}"].origin)
status = jetson_mamba.status()
print(status.mode, status.activated_by, status.targets[0].state, status.targets[0].copy)
""",
        environment={"JETSON_MAMBA": "strict", "JETSON_MAMBA_STAND_IN": "off"},
    )
    assert printed.splitlines() == [
        "True False startup file made",
        "strict startup file modified made",
    ]


def test_a_reload_does_not_activate_what_was_deactivated(sandbox: Sandbox) -> None:
    code = "jetson_mamba.deactivate()\n" + WAYS["reload"] + "\nprint(jetson_mamba.is_active())"
    assert sandbox.output(code) == "False"


def test_switched_off_it_stays_off(sandbox: Sandbox) -> None:
    for way in WAYS.values():
        if "activate()" in way:
            continue
        printed = sandbox.output(
            way + "\nprint(jetson_mamba.is_active())", environment={"JETSON_MAMBA": "off"}
        )
        assert printed == "False"


def test_a_finder_that_is_pickled_or_copied_is_that_of_the_process(sandbox: Sandbox) -> None:
    assert (
        sandbox.output(
            """
            import copy, pickle
            mine = jetson_mamba._finder
            print(pickle.loads(pickle.dumps(mine)) is mine, copy.deepcopy(mine) is mine)
            """
        )
        == "True True"
    )


def test_a_refusal_is_said_once_however_often_it_is_met(sandbox: Sandbox) -> None:
    sandbox.interface.write_text(UNKNOWN_FORM)
    stub_extensions(sandbox)
    done = sandbox.run(
        f"""
        import importlib, warnings
        warnings.simplefilter("always")
        import {TARGET} as module
        importlib.reload(module)
        importlib.reload(jetson_mamba)
        del sys.modules["{TARGET}"]
        importlib.import_module("{TARGET}")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stays as it is installed") == 1


STATUS = (
    "target = jetson_mamba.status().targets[0]\nprint(target.state, target.copy, target.reason)"
)
PURGE_UPSTREAM = """
for name in [each for each in sys.modules if each.split(".")[0] == "mamba_ssm"]:
    del sys.modules[name]
"""


def test_status_tells_what_is_imported_and_not_what_was(sandbox: Sandbox) -> None:
    stub_extensions(sandbox)
    inactive = "original None it was imported while jetson_mamba was not active"
    printed = sandbox.output(
        f"""
import importlib, {TARGET} as module
{STATUS}
jetson_mamba.deactivate()
{STATUS}
{PURGE_UPSTREAM}
{STATUS}
import {TARGET} as module
{STATUS}
importlib.reload(jetson_mamba)
{STATUS}
importlib.reload(module)
{STATUS}
"""
    ).splitlines()
    assert printed == [
        "modified made None",
        "modified made None",
        "not imported None None",
        inactive,
        inactive,
        inactive,
    ]


def test_status_follows_a_reload_in_either_direction(sandbox: Sandbox) -> None:
    stub_extensions(sandbox)
    printed = sandbox.output(
        f"""
import importlib, warnings, {TARGET} as module
jetson_mamba.deactivate()
importlib.reload(module)
{STATUS}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jetson_mamba.activate()
print(len(caught), "imported before jetson_mamba was activated" in str(caught[0].message))
{STATUS}
importlib.reload(module)
{STATUS}
"""
    ).splitlines()
    assert printed == [
        "original None it was imported while jetson_mamba was not active",
        "1 True",
        "original None it was imported before jetson_mamba was activated",
        "modified cached None",
    ]


def test_what_stands_under_a_targets_name_and_is_no_module_of_a_file_is_nobodys_target(
    sandbox: Sandbox,
) -> None:
    """As tests and builders of documentation put it there; other imports do not mind it."""
    (sandbox.site / "causal_conv1d.py").write_text("VALUE = 1\n")
    stubs = {
        "a module": "types.ModuleType(name)",
        "a mock": "MagicMock()",
        "an object": "object()",
        "a module with a spec": "module_from_spec(ModuleSpec(name, None))",
    }
    for stub in stubs.values():
        for mode in ("strict", "on"):
            printed = sandbox.output(
                f"""
                import types
                from importlib.machinery import ModuleSpec
                from importlib.util import module_from_spec
                from unittest.mock import MagicMock
                for name in ("mamba_ssm", "mamba_ssm.ops", "{TARGET}"):
                    sys.modules[name] = {stub}
                import causal_conv1d
                print(causal_conv1d.VALUE, jetson_mamba.status().targets[0].state)
                """,
                environment={"JETSON_MAMBA": mode},
            )
            assert printed == "1 original"


def test_a_copy_that_does_without_something_says_so(sandbox: Sandbox) -> None:
    printed = sandbox.output(
        f"""
        import dataclasses
        from jetson_mamba.hook import copies
        find = copies.find
        class Copy(copies.ModifiedCopy):
            left_out = (("rmsnorm_fn", "its text is none that was checked"),)
        copies.find = lambda *arguments: Copy(*find(*arguments)[:6])
        import {TARGET}
        print(dataclasses.asdict(jetson_mamba.status())["targets"][0]["left_out"])
        """
    )
    assert printed == str(({"what": "rmsnorm_fn", "reason": "its text is none that was checked"},))


def test_the_sandbox_is_not_what_makes_these_pass(sandbox: Sandbox) -> None:
    """A second finder, put in by hand, is seen by the count that the tests rely on."""
    code = "first = jetson_mamba._finder\nsys.meta_path.insert(1, type(first)('on', True))\n"
    assert sandbox.output(code + COUNT).startswith("2 ")
    assert Path(sandbox.interface).exists()


def test_the_operators_of_torch_are_registered_again(tmp_path: Path) -> None:
    """After a purge the ops are imported anew, and a graph that was compiled before still runs."""
    pytest.importorskip("torch")
    code = f"""
import sys, torch, jetson_mamba
from jetson_mamba.ops import causal_conv1d_fn
x, weight = torch.randn(1, 4, 8), torch.randn(4, 3)
compiled = torch.compile(lambda x: causal_conv1d_fn(x, weight), backend="aot_eager", fullgraph=True)
expected = causal_conv1d_fn(x, weight)
assert torch.allclose(compiled(x), expected)
{PURGE}
import jetson_mamba
from jetson_mamba.ops import causal_conv1d_fn as again
assert again is not causal_conv1d_fn
print(torch.allclose(again(x, weight), expected), torch.allclose(compiled(x), expected))
compiled = torch.compile(lambda x: again(x, weight), backend="aot_eager", fullgraph=True)
print(torch.allclose(compiled(x), expected))
"""
    printed = Sandbox(tmp_path).output(code, recorder=False, options=("-W", "ignore"))
    assert printed.split() == ["True"] * 3
