"""A finding names the startup file that imports a target before the hook is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import the_hook
from tests.doctor.facts import advised, changed, the


def test_the_startup_file_that_imports_too_early_is_named(
    healthy: Facts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [str(tmp_path / "nowhere"), str(tmp_path / "site")]
    monkeypatch.setattr(the_hook, "startup_folders", lambda: folders)
    (tmp_path / "site").mkdir()
    for name, text in (
        *(("a.txt", "import mamba_ssm"), ("b.pth", "import os")),
        ("jetson_mamba.pth", "import mamba_ssm"),
    ):
        (tmp_path / "site" / name).write_text(text)
    facts = changed(healthy, hook__={"too_late": ("mamba_ssm.x",)})
    found = the("bypassed", facts)
    assert advised(found) == "python -X importtime -c pass"
    assert found.why == "another startup file imports it" and "mamba_ssm.x is" in found.what
    starter = tmp_path / "site" / "c.pth"
    starter.write_bytes(b"# \xff\nimport mamba_ssm\n")
    found = the("bypassed", facts)
    assert advised(found) == f"mv {starter} {starter}.aside"
    assert found.why == f"{starter} imports it"
    taken = the("bypassed", changed(healthy, hook__={"taken_by": "other.Finder"}))
    assert taken.command == "jetson-mamba run SCRIPT" and "other.Finder" in taken.what
