"""What a program takes of a target by name is there, as it is where the extensions work."""

from __future__ import annotations

import pytest

from tests.hook.sandbox import RECORDER, Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
TAKEN = {
    "from": "from {0} import selective_scan_cuda as taken",
    "attribute": "import {0} as module; taken = module.selective_scan_cuda",
    "string": "import {0} as module; taken = getattr(module, 'selective_scan_cuda')",
}


@pytest.mark.parametrize("way", TAKEN)
def test_an_extension_s_name_is_taken_from_a_target(sandbox: Sandbox, way: str) -> None:
    code = f"{TAKEN[way].format(TARGET)}\nimport selective_scan_cuda\n"
    printed = sandbox.output(RECORDER + code + "print(taken is selective_scan_cuda)")
    assert printed == "True"


def test_a_name_that_the_text_does_not_have_is_no_attribute(sandbox: Sandbox) -> None:
    printed = sandbox.output(
        RECORDER
        + f"""
import {TARGET} as module
for name in ("causal_conv1d_bwd", "numpy", "__path__", "selective_scan"):
    try:
        getattr(module, name)
    except AttributeError as error:
        print(error)
"""
    )
    assert printed.splitlines() == [
        f"module '{TARGET}' has no attribute '{name}'"
        for name in ("causal_conv1d_bwd", "numpy", "__path__", "selective_scan")
    ]
