"""A shell completes what is typed, from a script that the command prints.

It knows commands, options and values.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from jetson_mamba.cli import commands, main
from jetson_mamba.cli.device import DEVICES
from jetson_mamba.cli.schema import DOCUMENTS
from jetson_mamba.finder import TARGETS
from tests.cli.command import REPOSITORY


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_this_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_JETSON_MAMBA_COMPLETE=complete_{shell}" in script
    # The first line says where it goes.
    assert script.startswith("# ") and f"jetson-mamba completion {shell}" in script.splitlines()[0]


def test_another_shell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "tcsh" in line and "bash" in line


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ver"], ["verify"]),
        (["bench", "--dtype", ""], ["bfloat16", "float32"]),
        (["verify", "--device", "cu"], ["cuda"]),
        (["doctor", "--re"], ["--report"]),
        (["schema", "inst"], ["install"]),
        (["completion", "z"], ["zsh"]),
        ([""], sorted(commands.program().commands)),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    program = tmp_path / "jetson-mamba"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m jetson_mamba "$@"\n')
    program.chmod(0o755)
    line = ["jetson-mamba", *words]
    quoted = " ".join(f"'{word}'" for word in line)
    script = (
        'eval "$(jetson-mamba completion bash)"\n'
        f"COMP_WORDS=({quoted}) COMP_CWORD={len(words)}\n"
        "_jetson_mamba_completion jetson-mamba\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == expected


def completed() -> dict[tuple[str, str], list[str]]:
    """What is offered for each option and argument that has something to offer."""
    found = {}
    for name, command in commands.program().commands.items():
        context = click.Context(command, info_name=name)
        for parameter in command.params:
            offered = [each.value for each in parameter.shell_complete(context, "")]
            if offered and parameter.name is not None:
                found[name, parameter.name] = offered
    return found


def test_every_option_that_takes_one_of_a_few_values_offers_them() -> None:
    assert completed() == {
        ("verify", "device"): list(DEVICES),
        ("bench", "op"): ["causal_conv1d", "selective_scan"],
        ("bench", "dtype"): ["bfloat16", "float32"],
        ("bench", "device"): list(DEVICES),
        ("export", "target"): ["onnxruntime", "tensorrt"],
        ("diff", "target"): list(TARGETS),
        ("schema", "command"): list(DOCUMENTS),
        ("completion", "shell"): ["bash", "zsh", "fish"],
    }


def test_every_option_and_argument_says_what_it_is_for() -> None:
    for name, command in commands.program().commands.items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", ""), (name, parameter.name)
