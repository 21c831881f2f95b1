"""The package that takes the place of causal-conv1d where none can be imported."""

from __future__ import annotations

import torch

from jetson_mamba.hook.stand_in.causal_conv1d.causal_conv1d_varlen import (
    causal_conv1d_varlen_states,
)
from tests.hook.sandbox import Sandbox

CODE = """
import jetson_mamba, torch, causal_conv1d
from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
print(causal_conv1d.__version__)
x, weight = torch.ones(1, 1, 3), torch.ones(1, 2)
print(causal_conv1d.causal_conv1d_fn(x, weight).flatten().tolist())
"""


def test_it_is_there_where_no_package_is(sandbox: Sandbox) -> None:
    assert sandbox.output(CODE, recorder=False).splitlines() == [
        "1.7.0+jetson.mamba",
        "[1.0, 2.0, 2.0]",
    ]


def test_a_package_that_works_wins(sandbox: Sandbox) -> None:
    package = sandbox.site / "causal_conv1d"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '1.4.0'\n")
    code = "import jetson_mamba, causal_conv1d; print(causal_conv1d.__version__)"
    assert sandbox.output(code) == "1.4.0"


def test_it_replaces_a_package_whose_extension_is_missing(sandbox: Sandbox) -> None:
    """As after an installation without compiling, or beside another torch."""
    package = sandbox.site / "causal_conv1d"
    package.mkdir()
    (package / "__init__.py").write_text(
        "__version__ = '1.4.0'\nfrom causal_conv1d.causal_conv1d_interface import everything\n"
    )
    (package / "causal_conv1d_interface.py").write_text("import torch, causal_conv1d_cuda\n")
    printed = sandbox.output(
        CODE + "print(causal_conv1d.__jetson_mamba_reason__)", recorder=False
    ).splitlines()
    assert printed[0] == "1.7.0+jetson.mamba"
    assert printed[2] == "ModuleNotFoundError: No module named 'causal_conv1d_cuda'"


def test_nothing_is_left_of_a_package_that_ran_halfway(sandbox: Sandbox) -> None:
    """Neither names nor modules: what is imported later is the stand-in's."""
    package = sandbox.site / "causal_conv1d"
    package.mkdir()
    (package / "__init__.py").write_text(
        "left = 1\nfrom causal_conv1d import causal_conv1d_interface\nimport causal_conv1d_cuda\n"
    )
    (package / "causal_conv1d_interface.py").write_text("left = 1\n")
    (package / "own.py").write_text("")
    (sandbox.site / "causal_conv1d_beside.py").write_text("")
    (sandbox.site / "causal_conv1d_cuda.py").write_text("raise ImportError('undefined symbol')\n")
    code = """
    import sys
    import jetson_mamba, causal_conv1d_beside, causal_conv1d
    import causal_conv1d.causal_conv1d_interface as interface
    print(hasattr(causal_conv1d, "left"), hasattr(interface, "left"))
    print("causal_conv1d_beside" in sys.modules, interface.causal_conv1d_fn.__name__)
    try:
        import causal_conv1d.own
    except ImportError as error:
        print(error)
    print(causal_conv1d.__jetson_mamba_reason__)
    """
    assert sandbox.output(code, recorder=False).splitlines() == [
        "False False",
        "True causal_conv1d_fn",
        "No module named 'causal_conv1d.own'",
        "ImportError: undefined symbol",
    ]


def test_another_error_of_the_installed_package_is_passed_on(sandbox: Sandbox) -> None:
    package = sandbox.site / "causal_conv1d"
    package.mkdir()
    (package / "__init__.py").write_text("raise ValueError('its own')\n")
    done = sandbox.run("import jetson_mamba, causal_conv1d")
    assert "ValueError: its own" in done.stderr


def test_it_can_be_switched_off(sandbox: Sandbox) -> None:
    for switch in ({"JETSON_MAMBA_STAND_IN": "off"}, {"JETSON_MAMBA": "off"}):
        done = sandbox.run("import jetson_mamba, causal_conv1d", environment=switch)
        assert "No module named 'causal_conv1d'" in done.stderr


def test_varlen_states_are_the_last_inputs_of_each_sequence() -> None:
    x = torch.arange(1.0, 8.0)[:, None]
    states = causal_conv1d_varlen_states(x, torch.tensor([0, 4, 5, 7]), 3)
    assert states.squeeze(1).tolist() == [[2, 3, 4], [0, 0, 5], [0, 6, 7]]
