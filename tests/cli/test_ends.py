"""Every command ends as other tools do: interrupted, or where its output cannot be written."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

from jetson_mamba import __main__ as entry
from jetson_mamba.cli import commands, main
from jetson_mamba.demo import training
from tests.cli.command import REPOSITORY, jetson_mamba
from tools.releases import release_path

NAMES = sorted(commands.program().commands)
# Something that each command calls, and what it is given.
WORK: dict[str, tuple[str, tuple[str, ...]]] = {
    "bench": ("jetson_mamba.cli.bench.torch_device", ()),
    "completion": ("jetson_mamba.cli.completion.Shell.__str__", ("bash",)),
    "copies": ("jetson_mamba.report.kept_copies.kept", ()),
    "demo": ("jetson_mamba.cli.demo.torch_here", ()),
    "diff": ("jetson_mamba.report.changes.changes", ()),
    "disable": ("jetson_mamba.startup.files.disable", ()),
    "doctor": ("jetson_mamba.cli.doctor.examine", ()),
    "enable": ("jetson_mamba.startup.files.enable", ()),
    "export": ("jetson_mamba.cli.export.mamba_ssm", ("module:name", "out.onnx")),
    "install": ("jetson_mamba.cli.install.situation", ()),
    "schema": ("jetson_mamba.report.schema.schema", ()),
    "status": ("jetson_mamba.report.status.status", ()),
    "verify": ("jetson_mamba.cli.verify.torch_device", ()),
}


def test_every_command_is_here() -> None:
    assert sorted([*WORK, "run"]) == NAMES


def put(monkeypatch: pytest.MonkeyPatch, path: str, error: BaseException) -> None:
    """Let what a command calls raise an error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    module, _, name = path.rpartition(".")
    try:
        holder: Any = importlib.import_module(module)
    except ModuleNotFoundError:  # a class
        module, _, kind = module.rpartition(".")
        holder = getattr(importlib.import_module(module), kind)
    # A command has the name of its module.
    module_of = sys.modules.get(module)
    monkeypatch.setattr(holder if module_of is None or "Shell" in path else module_of, name, fail)


@pytest.mark.parametrize("name", sorted(set(WORK) - {"completion"}))
def test_an_interrupt_is_one_word_on_stderr(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    path, arguments = WORK[name]
    put(monkeypatch, path, KeyboardInterrupt())
    assert main([name, *arguments]) == 130
    assert capsys.readouterr().err == "jetson-mamba: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(set(WORK) - {"completion"}))
def test_an_error_of_a_file_is_not_taken_for_one_of_the_output(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    path, arguments = WORK[name]
    put(monkeypatch, path, OSError(28, "No space left on device", "a file"))
    with pytest.raises(OSError, match="a file"):
        main([name, *arguments])


@pytest.mark.parametrize("during", ["training", "sampling"])
def test_a_demo_that_is_interrupted_leaves_no_folder(
    during: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    import torch

    from jetson_mamba.demo import models

    class Package:
        __version__ = "0"
        Mamba = object

    def train(*_: object) -> Iterator[float]:
        yield 3.0
        if during == "training":
            raise KeyboardInterrupt
        yield 2.0

    def test(*_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "mamba_ssm", Package)
    monkeypatch.setattr(models, "build", lambda _, __, size, ___: torch.nn.Linear(1, 1))
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(training, "test", test)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--steps", "3"]) == 130
    assert capsys.readouterr().err == "jetson-mamba: interrupted\n"
    assert list(tmp_path.iterdir()) == []


# Help is output of every command, also of those that compute for minutes first.
OUTPUTS = [(name, "-h") for name in NAMES] + [("--help",), ("schema",), ("completion", "zsh")]


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_a_closed_pipe_ends_a_command_without_a_word(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(arguments) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_a_full_disk_is_one_line(
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error == "jetson-mamba: standard output: No space left on device\n"


def process(*arguments: str, folder: Path, **streams: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jetson_mamba", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (release_path("2.3.2.post1"), REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(folder / "cache"),
        },
        cwd=folder,
        text=True,
        stderr=subprocess.PIPE,
        **streams,
    )


@pytest.mark.parametrize("arguments", [("copies", "--json"), ("--version",)], ids=" ".join)
def test_the_process_ends_by_the_signal_of_a_closed_pipe(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = process(*arguments, folder=tmp_path, stdout=writer)
    os.close(writer)
    _, error = done.communicate(timeout=60)
    assert (done.returncode, error) == (-signal.SIGPIPE, "")


def test_an_interrupt_while_the_commands_are_imported_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "jetson_mamba.cli":
                raise KeyboardInterrupt

    for name in [each for each in sys.modules if each.startswith("jetson_mamba.cli")]:
        monkeypatch.delitem(sys.modules, name)
    import jetson_mamba as package

    monkeypatch.delattr(package, "cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert entry.main() == 130
    assert capsys.readouterr().err == "jetson-mamba: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (("bench", "--opp", "x"), "jetson-mamba bench --help"),
        (("doctor", "everything"), "jetson-mamba doctor --help"),
        (("demo", "--steps", "1"), "jetson-mamba demo --help"),
        (("export",), "jetson-mamba export --help"),
        (("benhc",), "jetson-mamba --help"),
        (("--jsn",), "jetson-mamba --help"),
    ],
)
def test_a_wrong_argument_is_answered_with_the_help_of_that_command(
    arguments: tuple[str, ...], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.endswith(f"({where} lists what there is)")
    assert captured.out == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_every_command_has_help_and_version(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, option]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    expected = "jetson-mamba 0." if option == "--version" else f"jetson-mamba {name}"
    assert expected in captured.out


def test_a_picture_that_cannot_be_saved_after_all_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from jetson_mamba.report import bench_plot

    put(monkeypatch, "jetson_mamba.report.bench_plot.draw", OSError(28, "No space left on device"))
    assert bench_plot.draw is not None
    quick = ("--device", "cpu", "--op", "causal_conv1d", "--dtype", "fp32", "--rep", "1")
    assert main(["bench", *quick, "--plot", str(tmp_path / "times.png")]) == 2
    captured = capsys.readouterr()
    assert "causal_conv1d, forward" in captured.out
    assert captured.err.splitlines()[-1].startswith(f"jetson-mamba: --plot {tmp_path}")
    assert "No space left on device" in captured.err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
@pytest.mark.parametrize(
    "arguments", [("bench", "--plot", "/proc/times.png"), ("demo", "--output", "/proc/demo")]
)
def test_a_folder_in_which_nothing_can_be_made_is_refused_before_the_work(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert "expected a f" in capsys.readouterr().err


def test_an_error_is_a_document_where_documents_were_asked_for(tmp_path: Path) -> None:
    done = jetson_mamba("diff", "ssd", "--json", folder=tmp_path)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found["schema"] == "jetson-mamba/diff/1"
    assert done.stderr == f"jetson-mamba: {found['error']}\n"
    assert "ssd: expected one of" in found["error"]
