"""The command `enable` puts the startup files in place.

`disable` takes them away; `status` and `doctor` say what there is of them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.bare import Bare
from tests.cli.command import REPOSITORY
from tests.faults.environment import ORDINARY

NAMES = ("jetson_mamba.pth", "jetson_mamba.start", "_jetson_mamba_start.py")


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    return Bare(tmp_path)


def test_enable_writes_the_packaged_files_and_every_interpreter_is_served(bare: Bare) -> None:
    done = bare.command("enable", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["written"] == [str(bare.site / name) for name in NAMES]
    assert found["takes_effect"] is True
    for name in NAMES:
        packaged = REPOSITORY / "jetson_mamba" / "startup" / name
        assert (bare.site / name).read_bytes() == packaged.read_bytes()
    assert bare.run("-c", "import sys; print('jetson_mamba' in sys.modules)").stdout == "True\n"
    again = bare.command("enable")
    assert again.returncode == 0 and "nothing to change" in again.stdout

    removed = bare.command("disable", "--json")
    assert (removed.returncode, json.loads(removed.stdout)["takes_effect"]) == (0, False)
    assert not any((bare.site / name).exists() for name in NAMES)
    assert bare.run("-c", "import sys; print('jetson_mamba' in sys.modules)").stdout == "False\n"
    assert "nothing to change: none" in bare.command("disable").stdout


def test_a_file_that_was_changed_is_told_and_put_right(bare: Bare) -> None:
    (bare.site / NAMES[0]).write_text("import jetson_mamba\n")
    report = json.loads(bare.command("status", "--json").stdout)
    assert report["startup_files"] == [{"path": str(bare.site / NAMES[0]), "packaged": False}]
    assert report["activated_by"] == "import"
    assert f"{NAMES[0]}, not the packaged one" in bare.command("status").stdout
    assert json.loads(bare.command("enable", "--json").stdout)["written"] == [
        str(bare.site / name) for name in NAMES
    ]
    report = json.loads(bare.command("status", "--json").stdout)
    assert [file["packaged"] for file in report["startup_files"]] == [True] * len(NAMES)
    assert report["activated_by"] == "startup file"


def test_switched_off_the_files_are_there_and_the_exit_code_says_that_nothing_is_served(
    bare: Bare,
) -> None:
    done = bare.command("enable", JETSON_MAMBA="off")
    assert done.returncode == 1
    assert "is not served" in done.stdout


def test_the_command_that_the_doctor_gives_cures_what_it_found(bare: Bare) -> None:
    package = bare.site / "mamba_ssm" / "ops"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "selective_scan_interface.py").write_text(
        "import selective_scan_cuda\n\n\ndef f(*args):\n    return selective_scan_cuda.fwd(*args)\n"
    )
    before = bare.command("doctor", "--json")
    assert before.returncode == 1
    (finding,) = (
        each
        for each in json.loads(before.stdout)["findings"]
        if each["symptom"] == "no-selective-scan"
    )
    program, *arguments = finding["command"].split()
    assert program == "jetson-mamba"
    assert bare.command(*arguments).returncode == 0
    after = json.loads(bare.command("doctor", "--json").stdout)
    assert after["hook"]["active"]
    assert [
        each["cured"] for each in after["findings"] if each["symptom"] == "no-selective-scan"
    ] == [True]


def test_a_folder_that_cannot_be_written_is_named(bare: Bare) -> None:
    code = f"{ORDINARY}from jetson_mamba.cli import main; raise SystemExit(main(['enable']))"
    bare.site.chmod(0o500)
    done = bare.run("-c", code)
    bare.site.chmod(0o700)
    assert done.returncode == 2
    assert "Permission denied; expected a folder that can be written" in done.stderr


def test_a_file_that_cannot_be_replaced_is_named_and_nothing_is_left_behind(bare: Bare) -> None:
    (bare.site / NAMES[0]).mkdir()
    done = bare.command("enable")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"jetson-mamba: {bare.site / NAMES[0]}: ")
    assert [path.name for path in bare.site.glob("jetson_mamba*")] == [NAMES[0]]


def test_a_file_that_cannot_be_removed_is_named_and_stays(bare: Bare) -> None:
    assert bare.command("enable").returncode == 0
    code = f"{ORDINARY}from jetson_mamba.cli import main; raise SystemExit(main(['disable']))"
    bare.site.chmod(0o500)
    done = bare.run("-c", code)
    bare.site.chmod(0o700)
    assert done.returncode == 2
    expected = f"{bare.site / NAMES[0]}: Permission denied; expected a file that can be removed"
    assert done.stderr == f"jetson-mamba: {expected}\n"
    assert all((bare.site / name).exists() for name in NAMES)
