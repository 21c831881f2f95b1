"""In a folder of a checkout, where what the commands are built on was never installed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from jetson_mamba import advice
from tests.cli.bare import Bare


@pytest.mark.parametrize("name", ["typer", "rich"])
@pytest.mark.parametrize("command", ["doctor", "install", "--help"])
def test_one_line_says_what_brings_it(name: str, command: str, tmp_path: Path) -> None:
    bare = Bare(tmp_path, "pip")
    (bare.site / name).unlink()
    done = bare.command(command)
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.splitlines()
    said, brings = line.split("; ")
    assert said == f"jetson-mamba: the commands need {name}, which is not installed"
    assert shlex.split(brings) == [str(bare.python), "-m", "pip", "install", *advice.COMMANDS]
