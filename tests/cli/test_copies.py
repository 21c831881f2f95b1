"""The command `copies` lists what is kept. It clears what was made here and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.cli.command import jetson_mamba
from tests.hook.sandbox import Sandbox

INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def copies(sandbox: Sandbox, *arguments: str) -> dict[str, Any]:
    done = jetson_mamba("copies", "--json", *arguments, folder=sandbox.folder, path=(sandbox.site,))
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    found["cached"] = [each for each in found["copies"] if each["origin"] == "cached"]
    return found


def test_a_copy_that_was_made_is_listed_and_told_to_be_in_use(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    assert copies(sandbox)["cached"] == []
    sandbox.output(f"import jetson_mamba, {INTERFACE}")
    (found,) = copies(sandbox)["cached"]
    assert found["target"] == INTERFACE
    assert found["size"] == Path(found["path"]).stat().st_size
    assert found["in_use"] is True
    with sandbox.interface.open("a") as file:
        file.write("\n# another release\n")
    (found,) = copies(sandbox)["cached"]
    assert found["in_use"] is False


def test_clearing_removes_the_copies_and_what_writing_left_and_nothing_else(
    tmp_path: Path,
) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.output(f"import jetson_mamba, {INTERFACE}")
    folder = sandbox.cache / "copies"
    (copy,) = folder.glob("*.py")
    (folder / f".{copy.name}.1234.abcdef").write_text("half of it")
    (folder / "notes.py").write_text("the user's own")
    found = copies(sandbox, "--clear")
    assert len(found["removed"]) == 2
    assert found["cached"] == []
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["notes.py"]
    assert copies(sandbox, "--clear")["removed"] == []
    # The next import makes it again.
    sandbox.output(f"import jetson_mamba, {INTERFACE}")
    assert len(copies(sandbox)["cached"]) == 1


def test_the_table_names_the_target_and_the_folder(tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    sandbox.output(f"import jetson_mamba, {INTERFACE}")
    done = jetson_mamba("copies", folder=tmp_path, path=(sandbox.site,))
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["ops.selective_scan_interface", "cached", "1", "KiB", "yes"] in rows
    assert f"cached in {sandbox.cache / 'copies'}" in done.stdout
