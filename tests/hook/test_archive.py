"""This package inside a zip, as some deployments have it: copies are made as elsewhere."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.hook.sandbox import REPOSITORY, Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
CODE = f"""
import {TARGET} as module
outcome = jetson_mamba._finder.outcomes["{TARGET}"]
print(module.MambaInnerFn().forward("x", True)[0], outcome.origin)
print(module.__file__, jetson_mamba.__file__, sep="\\n")
"""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "packages.zip"
    with zipfile.ZipFile(path, "w") as file:
        for package in ("jetson_mamba", "vendored_overrides"):
            for each in sorted((REPOSITORY / package).rglob("*")):
                inside = each.relative_to(REPOSITORY)
                if each.is_file() and not {"__pycache__", "copies"} & set(inside.parts):
                    file.write(each, inside)
    return path


def test_copies_are_made_and_kept_whether_some_are_bundled_or_not(
    sandbox: Sandbox, archive: Path
) -> None:
    """One that is bundled in an archive is no file that could be run."""
    settings = {"PYTHONPATH": os.pathsep.join((str(sandbox.site), str(archive)))}

    def run() -> tuple[str, Path]:
        # Without the startup file, which is that of the checkout.
        printed = sandbox.output(CODE, options=("-S", "-W", "error"), environment=settings)
        said, copy, own = printed.splitlines()
        result, origin = said.split()
        assert result == "selective_scan_fwd"
        assert own.startswith(str(archive))
        return origin, Path(copy)

    origin, copy = run()
    assert origin == "made" and sandbox.cache in copy.parents
    assert run() == ("cached", copy)
    with zipfile.ZipFile(archive, "a") as file:
        file.write(copy, f"vendored_overrides/copies/{copy.name}")
    shutil.rmtree(sandbox.cache)
    assert run() == ("made", copy)
