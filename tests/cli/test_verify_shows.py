"""What the commands `verify`, `status` show of what was found."""

from __future__ import annotations

import dataclasses
import io
import json
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from rich.console import Console

from jetson_mamba.cli import output
from jetson_mamba.report.documents import Verification, VerifiedRow
from jetson_mamba.report.status import Backend, LeftOut, Status, Target
from jetson_mamba.startup.files import StartupFile

VERIFY: Any = import_module("jetson_mamba.cli.verify")
STATUS: Any = import_module("jetson_mamba.cli.status")
REPORT: Any = import_module("jetson_mamba.report.verify")


def row(function: str = "one", **others: Any) -> VerifiedRow:
    given: dict[str, Any] = {
        "size": "batch 2, dim 32, seqlen 35",
        "dtype": "float32",
        "forward": 1.2e-6,
        "backward": 2.5e-6,
        "worst": "dA",
        "tolerance": 1e-5,
        "passed": True,
        "failure": None,
        "unsupported": False,
    }
    return VerifiedRow(function=function, **{**given, **others})


FAILED = row("two", passed=False, forward=0.5, failure="RuntimeError: no kernel", backward=None)
MISSING = row(
    "two", passed=False, forward=None, backward=None, worst=None, unsupported=True, failure="x"
)
TARGETS = (
    Target("mamba_ssm.ops.one", "modified", "cached", "/copy/one.py", 2, None),
    Target(
        *("mamba_ssm.ops.two", "original", None, None, 0, "its text is not known"),
        left_out=(LeftOut("a way past", "it is another"),),
    ),
)
BACKENDS = (Backend("ssd", {"device": "cpu"}, "pytorch", ()),)


def found(*rows: VerifiedRow, passed: bool) -> Verification:
    return Verification(
        *("cpu", "2.9.0", "2.3.1", passed, rows), targets=TARGETS, selections=(), backends=BACKENDS
    )


def shown(of: Verification) -> str:
    to = io.StringIO()
    VERIFY._show(Console(file=to, width=200), of)
    return " ".join(to.getvalue().split())


def test_every_row_has_its_errors_by_function() -> None:
    said = shown(found(row(), row("two", dtype="bfloat16", tolerance=2e-2), passed=True))
    assert said.index("one, relative errors") < said.index("two, relative errors")
    assert "2, 32, 35 float32 1.2e-06 2.5e-06 dA 1e-05 pass" in said
    assert "2, 32, 35 bfloat16 1.2e-06 2.5e-06 dA 2e-02 pass" in said
    assert said.endswith("All 2 rows pass on cpu, mamba-ssm 2.3.1, torch 2.9.0.")


def test_what_fails_is_counted_and_its_error_told_once() -> None:
    said = shown(found(row(), FAILED, FAILED, passed=False))
    assert said.count("RuntimeError: no kernel") == 1
    assert "2, 32, 35 float32 5.0e-01 none dA 1e-05 fail" in said
    assert said.endswith("2 of 3 rows fail.")


def test_what_torch_has_no_operation_for_is_none_of_them() -> None:
    said = shown(found(row(), MISSING, passed=True))
    assert "2, 32, 35 float32 none none 1e-05 not supported" in said
    assert "All 1 rows pass on cpu" in said and " x " not in said
    assert said.endswith("1 more are not supported: this torch has no such operations on cpu.")


def test_targets_and_backends_are_shown_with_them() -> None:
    said = shown(found(row(), passed=True))
    assert "ops.one" in said and "its text is not known" in said
    assert "ssd" in said and "pytorch" in said


@pytest.mark.parametrize(
    ("rows", "code"),
    [((row(), row()), 0), ((row(), FAILED), 1), ((row(), MISSING), 0), ((MISSING,), 1), ((), 1)],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_exit_code_says_whether_all_that_counts_has_passed(
    rows: tuple[VerifiedRow, ...],
    code: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[Any] = []
    status = SimpleNamespace(targets=TARGETS, selections=(), backends=BACKENDS)

    def given(device: Any, functions: Any) -> Any:
        asked.append((device, functions))
        return iter(rows)

    monkeypatch.setattr(VERIFY, "torch_device", torch.device)
    monkeypatch.setattr(VERIFY, "mamba_ssm", lambda: SimpleNamespace(__version__="2.3.1"))
    monkeypatch.setattr(VERIFY.jetson_mamba, "status", lambda: status)
    monkeypatch.setattr(REPORT, "functions", lambda: ("some",))
    monkeypatch.setattr(REPORT, "row_count", lambda functions: len(rows))
    monkeypatch.setattr(REPORT, "rows", given)
    ended = 0
    try:
        VERIFY.verify(device="cpu", as_json=as_json)
    except typer.Exit as exit_:
        ended = exit_.exit_code
    assert ended == code
    assert asked == [(torch.device("cpu"), ("some",))]
    printed = capsys.readouterr().out
    if as_json:
        document = json.loads(printed)
        assert document["passed"] is (code == 0) and len(document["rows"]) == len(rows)
        assert document["mamba_ssm"] == "2.3.1" and document["torch"] == torch.__version__
        assert document["device"] == "cpu" and len(document["targets"]) == 2
        assert len(document["backends"]) == 1


@pytest.mark.parametrize(("lasting", "terminal"), [(True, True), (False, True), (False, False)])
def test_a_bar_is_on_a_terminal_alone_and_stays_where_it_is_to_last(
    lasting: bool, terminal: bool
) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    bar = output.progress(console, lasting=lasting, loss=True)
    assert bar.live.transient is not lasting
    assert bar.disable is not terminal
    with bar:
        bar.update(bar.add_task("Mamba", total=2, loss="1.25"), advance=1)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("loss 1.25" in text) is terminal


FILES = (StartupFile("/site/a.pth", True), StartupFile("/site/b.pth", False))


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The lines that `status` prints of a status with these, by who activates it."""

    def printed(by: str | None, width: int = 200, **others: Any) -> list[str]:
        given: dict[str, Any] = {
            **{"version": "0.1.0", "active": True, "activated_by": "import", "mode": "on"},
            **{"strict": False, "startup_files": FILES, "targets": TARGETS, "backends": ()},
            **{"selections": (), "backend_variable": None, "unserved": (), **others},
        }
        names = [field.name for field in dataclasses.fields(Status)]
        fields: dict[str, Any] = {name: given.get(name) for name in names}
        made = Status(**fields)
        asked: list[Any] = []

        def status(**options: Any) -> Status:
            asked.append(options)
            return made

        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(STATUS.report, "status", status)
        monkeypatch.setattr(STATUS.files, "activates", lambda: by)
        STATUS.status(as_json=False)
        assert asked == [{"look_ahead": True}]
        return str(capsys.readouterr().out).splitlines()

    return printed


def test_programs_that_are_patched_are_told_with_who_does_it(lines: Any) -> None:
    first, second, *rest = lines("startup file")
    assert first == "jetson-mamba 0.1.0: active, by startup file (JETSON_MAMBA=on)"
    assert second == "Programs that start here are patched."
    assert rest[:2] == [
        "startup file: /site/a.pth, as packaged",
        "startup file: /site/b.pth, not the packaged one",
    ]
    assert "mamba_ssm.ops.one: /copy/one.py" in rest
    assert not any(line.startswith("mamba_ssm.ops.two: /") for line in rest)
    assert "mamba_ssm.ops.two: without a way past: it is another" in rest
    assert not any("pytorch" in line for line in rest)
    assert any("pytorch" in line for line in lines("startup file", backends=BACKENDS))


def test_a_way_that_is_left_out_is_indented_where_it_is_broken(lines: Any) -> None:
    long = LeftOut("a way past", " ".join(["words"] * 30))
    target = dataclasses.replace(TARGETS[1], left_out=(long,))
    found = lines("startup file", width=60, targets=(target,))
    at = next(i for i, line in enumerate(found) if line.startswith("mamba_ssm.ops.two: without"))
    assert found[at + 1].startswith("  words") and all(len(line) <= 60 for line in found[at:])


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        (
            "on",
            "Programs that start here are not patched, except those that import jetson_mamba. "
            "To change that: jetson-mamba enable",
        ),
        ("off", "Programs that start here are not patched. To change that: unset JETSON_MAMBA"),
    ],
)
def test_programs_that_are_not_are_told_with_what_changes_that(
    mode: str, said: str, lines: Any
) -> None:
    first, second, *_ = lines(None, mode=mode, active=mode != "off")
    assert first == f"jetson-mamba 0.1.0: not active (JETSON_MAMBA={mode})"
    assert second == said


def test_a_backend_that_is_named_for_the_process_stands_in_the_heading(lines: Any) -> None:
    first, *_ = lines("startup file", backend_variable="ssd=pytorch")
    assert first.endswith("(JETSON_MAMBA=on, JETSON_MAMBA_BACKEND=ssd=pytorch)")
