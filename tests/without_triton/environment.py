"""Interpreters that see the packages that the tests run with, but no Triton, or another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import interpreters
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
LATEST = "2.3.2.post1"

# What a text takes of Triton while it is imported, and a version.
SMALL_TRITON = '''
"""A small Triton, for tests: kernels can be decorated, and not be launched."""
from . import language
__version__ = "{version}"
class Config:
    def __init__(self, kwargs, **options):
        self.kwargs = kwargs
        vars(self).update(options)
class Kernel:
    def __init__(self, fn, configs=()):
        self.fn, self.configs = fn, configs
    def __getitem__(self, grid):
        raise RuntimeError("0 active drivers ([]). There should only be one.")
def jit(fn=None, **options):
    return Kernel if fn is None else Kernel(fn)
def autotune(configs, key, **options):
    return lambda fn: Kernel(fn, configs)
def heuristics(values):
    return Kernel
def cdiv(x, y):
    return (x + y - 1) // y
def next_power_of_2(n):
    return 1 << (n - 1).bit_length()
'''
NAMES = "def __getattr__(name):\n    return name\n"
FAILING_ALLOCATOR = """
def set_allocator(allocator):
    raise RuntimeError("0 active drivers ([]). There should only be one.")
"""
FAILING_TUNER = """
def autotune(configs, key, **options):
    def decorator(fn):
        raise RuntimeError("0 active drivers ([]). There should only be one.")
    return decorator
"""
BROKEN = "raise ImportError('libtriton.so: undefined symbol: Py_of_another')\n"


# Neither these nor what they import looks for a Triton later.
HEAVY = (
    *("torch", "numpy", "einops", "torch._dynamo", "torch._inductor"),
    "transformers.generation.utils",
)


class Bare:
    """A folder of links to every package but Triton, and interpreters that see that folder.

    ``triton`` is the text of one in ``late``, a folder that is to be put on the path when torch is
    there: torch asks more of a Triton than mamba_ssm does. The links may be those of another,
    ``beside``: interpreters of both have the same server.
    """

    # It reads no file of site-packages that would bring them back.
    OPTIONS = ("-S",)

    def __init__(self, folder: Path, triton: str | None = None, beside: Bare | None = None) -> None:
        self.folder = folder
        self.site, self.late = folder / "site", folder / "late"
        folder.mkdir(parents=True, exist_ok=True)
        if beside is None:
            self.site.mkdir()
            self._link()
        else:
            self.site = beside.site
        if triton is not None:
            (self.late / "triton").mkdir(parents=True)
            (self.late / "triton" / "__init__.py").write_text(triton)
            for name in ("language.py", "testing.py"):
                (self.late / "triton" / name).write_text(NAMES)

    def _link(self) -> None:
        for packages in (each for each in sys.path if each.endswith("-packages")):
            for path in Path(packages).iterdir():
                other = path.name.startswith("triton") or path.suffix == ".pth"
                if not other and not (self.site / path.name).exists():
                    (self.site / path.name).symlink_to(path)

    def run(
        self, *arguments: str, release: str | None = LATEST, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run an interpreter to its end."""
        return interpreters.run(
            arguments,
            env={
                **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
                **self.environment(release),
                "JETSON_MAMBA_CACHE": str(interpreters.copies()),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            cwd=self.folder,
            modules=HEAVY,
            bare=self.site,
        )

    def environment(self, release: str | None = None) -> dict[str, str]:
        """What such an interpreter finds its packages by."""
        own = [release_path(release)] if release else []
        return {"PYTHONPATH": os.pathsep.join(map(str, (*own, REPOSITORY, self.site)))}

    def printed(self, *arguments: str, release: str | None = LATEST, **environment: str) -> str:
        """What an interpreter prints, which must end well."""
        done = self.run(*arguments, release=release, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout
