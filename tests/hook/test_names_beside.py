"""What lies beside a user's script under a name that this package uses is the user's own.

It is neither run in place of what is meant nor hidden by it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hook.pythons import oldest_own_newest
from tests.hook.sandbox import RECORDER, REPOSITORY, Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
# As a file and as a folder. What runs by mistake ends the program.
NAMES = (
    *("vendored_overrides", "vendored_overrides/"),
    *("copies", "cache", "rewrite", "finder", "overrides", "advice", "stand_in", "unserved"),
    *("typer", "rich", "importlib_resources", "norms", "extensions", "blocks", "ops/"),
)


def put(name: str, folder: Path) -> str:
    """A module of the user's of that name, as a file or (with a slash) as a package."""
    module = name.split("/", maxsplit=1)[0]
    path = folder / (f"{name}__init__.py" if "/" in name else f"{name}.py")
    path.parent.mkdir(parents=True)
    text = "import sys\nVALUE = 'mine'\nassert 'expected' in vars(sys), __name__\n"
    path.write_text(text)
    return module


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize("name", NAMES)
def test_ours_is_used_and_theirs_is_imported(tmp_path: Path, name: str, python: str) -> None:
    sandbox = Sandbox(tmp_path)
    beside = tmp_path / "beside"
    module = put(name, beside)
    (beside / "script.py").write_text(
        f"""{RECORDER}
import {TARGET} as module
print(module.MambaInnerFn().forward("x", True)[0])
sys.expected = True
import {module} as theirs
print(theirs.VALUE, {str(beside)!r} in theirs.__file__)
"""
    )
    done = subprocess.run(
        [python, "-W", "error", str(beside / "script.py")],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("JETSON_MAMBA")},
            "PYTHONPATH": os.pathsep.join((str(sandbox.site), str(REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(sandbox.cache),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["selective_scan_fwd", "mine True"]


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
def test_it_runs_from_a_zip_archive(sandbox: Sandbox, python: str) -> None:
    """The overrides and what the copies' keys are made of are read from it as well."""
    packed = sandbox.folder / "packed"
    for package in ("jetson_mamba", "vendored_overrides"):
        ignored = shutil.ignore_patterns("__pycache__", "copies")
        shutil.copytree(REPOSITORY / package, packed / package, ignore=ignored)
    archive = shutil.make_archive(str(sandbox.folder / "packed"), "zip", packed)
    printed = sandbox.output(
        f"""
        import {TARGET} as module
        print(module.MambaInnerFn().forward("x", True)[0])
        print(jetson_mamba.__file__, module.__file__, sep="\\n")
        """,
        python=python,
        options=("-S", "-W", "error"),
        environment={"PYTHONPATH": os.pathsep.join((str(sandbox.site), archive))},
    )
    result, package, copy = printed.splitlines()
    assert result == "selective_scan_fwd"
    assert package.startswith(archive)
    assert copy.startswith(str(sandbox.cache))
