"""Interpreters that import a small `mamba_ssm` through the hook.

The ops are replaced by a recorder, so that no torch is needed and any Python can run it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

from tests import interpreters

REPOSITORY = Path(__file__).resolve().parent.parent.parent

INTERFACE = '''\
"""A module that calls the extensions as upstream does, for the tests of the hook."""
try:
    from causal_conv1d import causal_conv1d_fn
    import causal_conv1d_cuda
except ImportError:
    causal_conv1d_fn, causal_conv1d_cuda = None, None

import selective_scan_cuda


class MambaInnerFn:
    """Named as in upstream, so that pickle has something to find."""

    def __init__(self, value=0):
        self.value = value

    def forward(self, x, flag):
        assert causal_conv1d_cuda is not None, "the extension is needed"
        out = causal_conv1d_cuda.causal_conv1d_fwd(
            x, "w", "b",  # the weight and the bias
            None, None, None,
            flag,
        )
        return selective_scan_cuda.fwd(out, "delta")

    def fails(self):
        raise ValueError("on line 27")
'''

COMBINED = """\
import causal_conv1d_cuda


class MambaChunkScanCombinedFn:
    @staticmethod
    def apply(*args):
        return ("triton", args)


def mamba_chunk_scan_combined(x, dt, chunk_size=1):
    return MambaChunkScanCombinedFn.apply(x, dt, chunk_size)
"""

GENERATION = "VALUE = 1\n"

# Stands in for jetson_mamba.ops: every function returns its name and what it was called with.
RECORDER = """
import sys, types
import jetson_mamba


class Ops(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **keywords: (name, args, keywords)


jetson_mamba.ops = sys.modules["jetson_mamba.ops"] = Ops("jetson_mamba.ops")
"""


class Sandbox:
    """A package `mamba_ssm` in ``folder``, with the cache of the copies beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = folder / "site"
        self.cache = folder / "cache"
        package = self.site / "mamba_ssm"
        for each in (package, package / "ops", package / "ops" / "triton", package / "utils"):
            each.mkdir(parents=True)
            (each / "__init__.py").touch()
        self.interface = package / "ops" / "selective_scan_interface.py"
        self.combined = package / "ops" / "triton" / "ssd_combined.py"
        self.generation = package / "utils" / "generation.py"
        self.interface.write_text(INTERFACE)
        self.combined.write_text(COMBINED)
        self.generation.write_text(GENERATION)

    def run(
        self,
        code: str,
        *,
        python: str = sys.executable,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        recorder: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``code`` in an interpreter that sees the package, and return what it printed.

        Without the recorder the ops are there, and so torch is imported already, unless Python is
        started with other options than those of warnings.
        """
        variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith("JETSON_MAMBA")},
            "PYTHONPATH": os.pathsep.join((str(self.site), str(REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(self.cache),
            **(environment or {}),
        }
        arguments = [*options, "-c", (RECORDER if recorder else "") + dedent(code)]
        if not recorder and python == sys.executable and set(options[::2]) <= {"-W"}:
            return interpreters.run(arguments, env=variables, cwd=self.folder)
        return subprocess.run(
            [python, *arguments],
            env=variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def output(
        self,
        code: str,
        *,
        python: str = sys.executable,
        options: tuple[str, ...] = ("-W", "error"),
        environment: dict[str, str] | None = None,
        recorder: bool = True,
    ) -> str:
        """What ``code`` prints; it must end well and print nothing on its error stream."""
        done = self.run(
            code, python=python, options=options, environment=environment, recorder=recorder
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == "", done.stderr
        return done.stdout.strip()
