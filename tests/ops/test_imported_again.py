"""Ops that are imported a second time serve as before.

Notebooks and test runners do that, and reload them.
"""

from __future__ import annotations

import textwrap

import pytest

from tests import interpreters

AGAIN = {
    "forgotten and collected": """
        for name in [each for each in sys.modules if each.partition(".")[0] == "jetson_mamba"]:
            del sys.modules[name]
        del jetson_mamba
        gc.collect()
        """,
    "the ops forgotten": """
        for name in [each for each in sys.modules if each.startswith("jetson_mamba.ops")]:
            del sys.modules[name]
        """,
    "every module reloaded": """
        for name in [each for each in sys.modules if each.startswith("jetson_mamba.ops")]:
            importlib.reload(sys.modules[name])
        """,
}
CALLS = """
    import jetson_mamba.ops
    x, weight = torch.randn(2, 8, 6), torch.randn(8, 4)
    out = jetson_mamba.ops.causal_conv1d_fn(x, weight)
    traced = make_fx(lambda x: jetson_mamba.ops.causal_conv1d_fn(x, weight))(x)
    torch.testing.assert_close(traced(x), out)
    operators = torch.ops.jetson_mamba
    results, _ = operators.causal_conv1d(x, weight, None, None, None, False, False)
    torch.testing.assert_close(results, out)
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
HEAD = """
    import gc, importlib, os, sys, warnings
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx
    import jetson_mamba.ops
    """


@pytest.mark.parametrize("how", AGAIN)
def test_what_is_imported_again_serves_as_before(how: str) -> None:
    code = "".join(map(textwrap.dedent, (HEAD, CALLS, AGAIN[how], CALLS, AGAIN[how], CALLS)))
    command = ["-W", "error::UserWarning", "-c", code]
    ended = interpreters.run(command, modules=interpreters.COMPILER)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
