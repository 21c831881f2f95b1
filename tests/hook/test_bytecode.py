"""The bytecode of a copy is kept as that of any module.

It runs in place of compiling the copy again.
"""

from __future__ import annotations

import os
import shutil
from importlib.machinery import SourceFileLoader
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.hook import copies
from tests.hook.pythons import oldest_own_newest
from tests.hook.sandbox import Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
# Prints which of the two targets an interpreter compiles, and where their copies are from.
COMPILED = f"""
from importlib.machinery import SourceFileLoader
compiled, compile_ = [], SourceFileLoader.source_to_code
def noted(self, data, path, *name, **options):  # a name from Python 3.15 on
    compiled.append(path)
    return compile_(self, data, path, *name, **options)
SourceFileLoader.source_to_code = noted
import {TARGET} as module
from mamba_ssm.ops.triton import ssd_combined
copies = [module.__file__, ssd_combined.__file__]
print([copy in compiled for copy in copies], module.MambaInnerFn().forward("x", True)[0])
print(copies[0])
"""
WRITES = {"PYTHONDONTWRITEBYTECODE": ""}


@pytest.mark.parametrize("python", oldest_own_newest(), ids=os.path.basename)
@pytest.mark.parametrize("prefix", ["", "bytecode"])
def test_a_copy_is_compiled_once(sandbox: Sandbox, python: str, prefix: str) -> None:
    folder = str(sandbox.folder / prefix) if prefix else ""
    environment = {**WRITES, "PYTHONPYCACHEPREFIX": folder}
    found = [
        sandbox.output(COMPILED, python=python, environment=environment).splitlines()[0]
        for _ in range(3)
    ]
    # The first makes the copies, which are there before they are compiled.
    assert found == [
        "[True, True] selective_scan_fwd",
        "[False, False] selective_scan_fwd",
        "[False, False] selective_scan_fwd",
    ]


def test_bytecode_that_others_may_write_is_not_run(sandbox: Sandbox) -> None:
    first = sandbox.output(COMPILED, environment=WRITES).splitlines()[1]
    os.chmod(cache_from_source(first), 0o666)
    assert sandbox.output(COMPILED, environment=WRITES).startswith("[True, False]")


def test_a_bundled_copy_runs_from_the_bytecode_that_an_installer_wrote(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It compiles the file as it lies there, with the line that vouches for it."""
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(sandbox.cache))
    original = SourceFileLoader(TARGET, str(sandbox.interface))
    made = copies.find(TARGET, original)
    assert made is not None
    bundled = tmp_path / Path(made.path).name
    shutil.copy(made.path, bundled)
    installer = SourceFileLoader(TARGET, str(bundled))
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    installer.get_code(TARGET)

    def compiled(*_: Any, **__: Any) -> None:
        raise AssertionError(f"{bundled} is compiled again")

    loader = copies.loader_for(made._replace(path=str(bundled), origin="bundled"), original)
    monkeypatch.setattr(loader, "source_to_code", compiled)
    assert loader.get_code(TARGET) is not None
