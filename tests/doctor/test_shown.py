"""What doctor shows of a machine, a line for each fact.

Of each finding it says what was seen, why that is so and what to do.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from rich.console import Console

from jetson_mamba.cli import doctor as command
from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings import findings
from jetson_mamba.report.machine import Gpu
from jetson_mamba.report.packages import Package
from jetson_mamba.report.status import LeftOut, Target
from jetson_mamba.startup.files import StartupFile
from tests.doctor.facts import CUDA, FAILS, NOT_THERE, changed, served

GIB = 1 << 30


@pytest.fixture(autouse=True)
def found_by_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of this package go by their names."""
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable), prepend=os.pathsep)


GONE = Package("triton", None, None, ())


def told(facts: Facts) -> dict[str, list[str]]:
    """The lines by their labels, in their order."""
    found: dict[str, list[str]] = {}
    for label, text in command._lines(facts):
        found.setdefault(label, []).append(text)
    return found


def test_each_fact_of_a_healthy_board_has_its_line(healthy: Facts) -> None:
    found = told(healthy)
    assert found == {
        "machine": ["Jetson AGX Orin, aarch64"],
        "JetPack": ["6.2 (L4T 36.4.3)"],
        "power mode": ["unknown"],
        "memory": ["unknown, unknown available; no swap"],
        "GPU": ["Orin, compute capability 8.7 (torch)"],
        "CUDA": ["12.6 (/cuda/bin/nvcc)"],
        "Python": ["3.10.12 (/usr/bin/python3)"],
        "torch": ["2.8.0, built for CUDA 12.6, sm_87, sees a GPU"],
        "mamba-ssm": ["2.3.2.post1 (/site/mamba_ssm)"],
        "causal-conv1d": ["1.6.1"],
        "Triton": ["3.6.0"],
        "transformers": [found["transformers"][0]],
        "selective_scan_cuda": ["loads"],
        "causal_conv1d_cuda": ["loads"],
        "a block": ["runs, forward and backward"],
        "hook": ["not active at interpreter start (JETSON_MAMBA=on)"],
        "finders": [""],
    }
    assert list(found)[:3] == ["machine", "JetPack", "power mode"]


COMPILER = SimpleNamespace(nvrtc="13.0", cuda_core="1.0.3", error=None)
FILES = (StartupFile("/site/a.pth", True), StartupFile("/site/b.pth", False))
TARGETS = (
    Target("mamba_ssm.ops.one", "not imported", "cached", "/copy.py", 2, None),
    Target(
        *("mamba_ssm.ops.two", "not imported", None, None, 0, "it needs no change"),
        left_out=(LeftOut("a way past", "its text is not known"),),
    ),
)


@pytest.mark.parametrize(
    ("changes", "label", "lines"),
    [
        ({"machine__": {"board": None}}, "machine", ["no Jetson board, aarch64"]),
        ({"machine__": {"board": None, "l4t": None}}, "power mode", None),
        ({"machine__": {"board": None}}, "power mode", ["unknown"]),
        ({"machine__": {"power_mode": "15W (2)"}}, "power mode", ["15W (2)"]),
        ({"machine__": {"l4t": None}}, "JetPack", None),
        ({"machine__": {"jetpack": None}}, "JetPack", ["unknown (L4T 36.4.3)"]),
        (
            {"machine__": {"memory_bytes": 8 * GIB, "available_bytes": 3 * GIB // 2}},
            "memory",
            ["8.0 GiB, 1.5 GiB available; no swap"],
        ),
        (
            {"machine__": {"swap_bytes": 4 * GIB, "swap_free_bytes": GIB}},
            "memory",
            ["unknown, unknown available; swap 4.0 GiB, 1.0 GiB free"],
        ),
        ({"machine__": {"gpus": ()}}, "GPU", ["none"]),
        (
            {"machine__": {"gpus": (Gpu("A", None, None, "x"), Gpu("B", "9.0", 1, "y"))}},
            "GPU",
            ["A, compute capability unknown (x)", "B, compute capability 9.0 (y)"],
        ),
        ({"machine__": {"nvcc": None}}, "CUDA", ["no nvcc"]),
        ({"compiler": COMPILER}, "NVRTC", ["13.0"]),
        ({"compiler": COMPILER}, "cuda-core", ["1.0.3"]),
        ({"compiler": COMPILER}, "kernels", None),
        (
            {"compiler": SimpleNamespace(nvrtc="13.0", cuda_core="1.0.3", error="no driver")},
            "kernels",
            ["cannot be compiled: no driver"],
        ),
        (
            {"compiler": SimpleNamespace(nvrtc=None, cuda_core=None, error="no driver")},
            "NVRTC",
            ["not installed"],
        ),
        (
            {"compiler": SimpleNamespace(nvrtc=None, cuda_core="1.0.3", error="no driver")},
            "kernels",
            None,
        ),
        (
            {"compiler": SimpleNamespace(nvrtc=None, cuda_core=None, error=None)},
            "cuda-core",
            ["not installed"],
        ),
        (
            {"compiler": COMPILER, "machine__": {"board": None}, "torch__": {"cuda": None}},
            "NVRTC",
            None,
        ),
        ({"compiler": COMPILER, "machine__": {"board": None}}, "NVRTC", ["13.0"]),
        ({"torch": None}, "torch", ["not installed"]),
        ({"torch": None}, "a block", None),
        ({"torch__": {"error": "OSError: no"}}, "torch", ["2.8.0: OSError: no"]),
        ({"torch__": {"error": "OSError: no"}}, "a block", None),
        (
            {"torch__": {"cuda": None, "architectures": (), "cuda_available": False}},
            "torch",
            ["2.8.0, built without CUDA, sees no GPU"],
        ),
        (
            {"mamba_ssm": ()},
            "mamba-ssm",
            ["not installed; `jetson-mamba install` does that"],
        ),
        ({"mamba_ssm": ()}, "a block", None),
        ({"trial_error": "RuntimeError: no"}, "a block", ["RuntimeError: no"]),
        ({"triton": GONE, "triton_error": None}, "Triton", ["not installed"]),
        ({"triton_error": "no driver"}, "Triton", ["3.6.0: no driver"]),
        (
            {"causal_conv1d": Package("causal_conv1d", "1.6.1", None, ())},
            "causal-conv1d",
            ["1.6.1, its files are gone"],
        ),
        (
            {"causal_conv1d": Package("causal_conv1d", None, "/x", ())},
            "causal-conv1d",
            ["unknown version (/x)"],
        ),
        ({"scan": FAILS}, "selective_scan_cuda", [FAILS["error"]]),
        ({"scan": NOT_THERE}, "selective_scan_cuda", ["not installed"]),
        (
            {"scan": {**NOT_THERE, "misfits": ("for Python 3.8", "for x86_64")}},
            "selective_scan_cuda",
            ["for Python 3.8; for x86_64"],
        ),
        (
            {"hook__": {"active": True, "mode": "strict"}},
            "hook",
            ["active from interpreter start (JETSON_MAMBA=strict)"],
        ),
        (
            {"hook__": {"startup_files": FILES}},
            "startup file",
            ["/site/a.pth", "/site/b.pth, not the packaged one"],
        ),
        ({"hook__": {"finders": ("a.b.Finder", "Other")}}, "finders", ["Finder, Other"]),
        (
            {"hook__": {"targets": TARGETS}},
            "targets",
            [
                "ops.one: cached",
                "ops.two: it needs no change",
                "ops.two: without a way past: its text is not known",
            ],
        ),
    ],
)
def test_what_differs_is_told_in_its_line(
    changes: dict[str, Any], label: str, lines: list[str] | None, healthy: Facts
) -> None:
    assert told(changed(healthy, **changes)).get(label) == lines


def test_forks_and_hidden_copies_of_mamba_ssm_are_told_apart(healthy: Facts) -> None:
    (first,) = healthy.mamba_ssm
    fork = replace(first, version=None, fork_parameters=("a", "b"))
    hidden = replace(first, path="/other", wins=False)
    assert told(changed(healthy, mamba_ssm=(fork, hidden)))["mamba-ssm"] == [
        "no version fork, with a, b (/site/mamba_ssm)",
        "2.3.2.post1 (/other), hidden by the one before",
    ]


FAULT = SimpleNamespace(what="It is wrong", module="mamba_ssm.x", seen="numbers", instead="do y")


@pytest.fixture
def run(healthy: Facts, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command on given facts; its exit code."""

    def running(facts: Facts, faults: tuple[Any, ...] = (), **options: bool) -> int:
        report = SimpleNamespace(
            facts=facts,
            findings=findings(facts),
            upstream_faults=faults,
            as_json=lambda: {"folder": "/home/anna/x", "findings": []},
        )
        monkeypatch.setattr(command, "examine", lambda: report)
        given = {"as_json": False, "as_report": False, **options}
        try:
            command.doctor(**given)
        except typer.Exit as ended:
            return ended.exit_code
        return 0

    return running


def plain(text: str) -> str:
    return " ".join(text.split())


def test_where_nothing_is_wrong_it_says_so(
    run: Any, healthy: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(served(healthy)) == 0
    said = plain(capsys.readouterr().out)
    assert "Nothing is wrong." in said
    assert said.endswith("To paste into a report: jetson-mamba doctor --report")


def test_a_finding_says_what_was_seen_why_and_what_to_do(
    run: Any, healthy: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = changed(healthy, scan=FAILS, machine__={"nvcc": None})
    found = findings(facts)
    assert run(facts) == int(any(not each.cured for each in found))
    said = plain(capsys.readouterr().out)
    for each in found:
        kind = "cured" if each.cured else "wrong"
        assert plain(f"{kind} {each.what}") in said
        assert plain(f"seen {each.message}") in said and plain(f"why {each.why}") in said
    # What is wrong comes before what is cured.
    kinds = [each.cured for each in sorted(found, key=lambda each: each.cured)]
    places = [said.index(plain(each.what)) for each in sorted(found, key=lambda each: each.cured)]
    assert kinds == sorted(kinds) and places == sorted(places)
    assert "Nothing is wrong." not in said


def test_faults_of_upstream_are_told_apart(
    run: Any, healthy: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(served(healthy), (FAULT,)) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("What this mamba-ssm has wrong itself, and is left as it is:")
    assert lines[at + 2 : at + 5] == [
        "It is wrong (mamba_ssm.x)",
        "seen   numbers",
        "do     do y",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"command": "pip install x", "option": "y", "compiles": False}, "pip install x"),
        ({"command": "", "option": "", "compiles": False}, "nothing"),
        (
            {"command": "", "option": "pip y", "compiles": True},
            "nothing; if you like, this compiles CUDA, for minutes to hours: pip y",
        ),
        (
            {"command": "", "option": "pip y", "compiles": False},
            "nothing; if you like, this removes the cause: pip y",
        ),
    ],
)
def test_what_to_do_is_a_command_or_what_may_be_done(given: dict[str, Any], said: str) -> None:
    assert command._what_to_do(SimpleNamespace(**given)) == said  # type: ignore[arg-type]


def test_a_command_is_whole_on_a_line_of_its_own_however_long() -> None:
    to = io.StringIO()
    long = " ".join(["[word]"] * 40)
    command._do(Console(file=to, width=40), long)
    assert to.getvalue() == f"do     {long}\n\n"


@pytest.mark.parametrize("as_report", [False, True])
def test_a_document_tells_no_home_where_it_is_for_others(
    as_report: bool,
    run: Any,
    healthy: Facts,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/anna")
    run(served(healthy), as_json=True, as_report=as_report)
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == ("~/x" if as_report else "/home/anna/x")


def test_a_report_is_a_block_of_text_without_the_home(
    run: Any,
    healthy: Facts,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/site")
    run(served(healthy), as_report=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "```text" and lines[-1] == "```"
    assert lines[1].startswith("jetson-mamba ") and lines[1].endswith(" doctor")
    assert any("(~/mamba_ssm)" in line for line in lines)
    assert "To paste into a report" not in "\n".join(lines)
    assert all(line == line.rstrip() and len(line) <= command.REPORT_COLUMNS for line in lines)


def test_backends_are_shown_where_there_are_some(
    run: Any, healthy: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    run(served(healthy))
    assert "backend" not in capsys.readouterr().out
    run(changed(served(healthy), backends=CUDA))
    said = plain(capsys.readouterr().out)
    assert "backend" in said and "pytorch" in said
