"""What commands print keeps to a terminal's width. Nothing of it is cut on any."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Callable

import pytest
from rich.console import Console

from jetson_mamba.cli import bench, doctor, output, tables, verify
from jetson_mamba.report.doctor import Report, examine
from jetson_mamba.report.documents import (
    TimedBackend,
    TimedRow,
    Timings,
    Verification,
    VerifiedRow,
)
from jetson_mamba.report.status import Backend, PassedOver, Selected, Target
from tests.cli.command import jetson_mamba
from tests.hook.sandbox import Sandbox

WIDTHS = (40, 60, 80, 120)
REASON = (
    "libtorch_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi, as in an extension that was "
    "built for another torch"
)
TARGETS = (
    Target(
        "mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step", "modified", "made", "/x", 12, None
    ),
    Target("mamba_ssm.ops.triton.ssd_combined", "original", None, "/y", 0, REASON),
)
BACKENDS = (
    Backend(
        "selective_scan",
        {"device": "cuda:0"},
        "pytorch",
        (PassedOver("extension", REASON), PassedOver("cuda", "no device")),
    ),
)
SELECTED = (Selected("causal_conv1d", "extension", "JETSON_MAMBA_BACKEND"),)


def printed(width: int, show: Callable[[Console], None]) -> str:
    """What is shown on a console, each line of which is no wider, but for one of a single word."""
    console = Console(width=width, file=io.StringIO(), highlight=False)
    show(console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    held(text, width)
    return text


def held(text: str, width: int) -> None:
    for line in text.splitlines():
        words = line.split()
        assert len(line.rstrip()) <= width or len(words) <= 3, line


def whole(text: str, *values: Any) -> None:
    """Every word of the values is in a text in one piece."""
    assert "…" not in text and "..." not in text
    for value in values:
        for word in str(value).split():
            assert word in text, word


def verification() -> Verification:
    rows = tuple(
        VerifiedRow(
            "mamba_split_conv1d_scan_combined",
            f"batch 2, dim 32, seqlen {1000 + index}",
            dtype,
            1.23e-05 * (index + 1),
            4.56e-12 * (index + 1),
            "conv1d_weight",
            1e-05,
            index > 0,
            REASON if index == 2 else None,
            index == 1,
        )
        for index, dtype in enumerate(("float32", "bfloat16", "float16"))
    )
    return Verification(
        "cuda", "2.13.0+cu130", "2.3.2.post1", False, rows, TARGETS, SELECTED, BACKENDS
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_verify(width: int) -> None:
    found = verification()
    text = printed(width, lambda console: verify._show(console, found))
    numbers = re.findall(r"\d\.\de-\d\d", text)
    assert numbers == [f"{each:.1e}" for row in found.rows for each in (row.forward, row.backward)]
    whole(text, REASON, *TARGETS[0].name.split(".", 1)[1:], "batch, dim, seqlen", "result", "fail")
    for row in found.rows:
        assert re.search(rf"2, 32, {row.size[-4:]}", text)


def timings() -> Timings:
    names = ("package", "extension", "cuda", "pytorch")
    rows = tuple(
        TimedRow(
            "causal_conv1d",
            direction,
            *(8, 15360, 204800),
            "bfloat16",
            "BLD",
            123456.7,
            {name: 1234567.0 + place for place, name in enumerate(names)},
            {"cuda": REASON},
            0.123,
        )
        for direction in ("forward", "backward")
    )
    backends = tuple(TimedBackend("causal_conv1d", name, REASON, {}) for name in names)
    return Timings(
        *("cuda", "NVIDIA Jetson AGX Orin Developer Kit", "0", "2.13.0", "13.0", "L4T 38.2.0"),
        *(204800.0, backends, rows),
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_bench(width: int) -> None:
    text = printed(width, lambda console: bench._show(console, timings()))
    assert re.findall(r"1234\d{3}", text) == [str(1234567 + place) for place in range(4)] * 2
    assert " ".join(text.split()).count("8, 15360, 204800") == 4
    whole(text, REASON, "bfloat16", "BLD", "123457", "12.3%", "batch, dim, seqlen")


@pytest.mark.parametrize("width", WIDTHS)
def test_targets_and_backends(width: int) -> None:
    text = printed(width, tables.targets(TARGETS).show)
    whole(text, REASON, *(each.name.partition(".")[2] for each in TARGETS), "modified", "12")
    text = printed(width, tables.backends(BACKENDS, SELECTED).show)
    whole(text, REASON, "selective_scan", "cuda:0", "pytorch", "extension: no device")


@pytest.fixture(scope="module")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("root")
    (root / "proc" / "device-tree").mkdir(parents=True)
    (root / "proc" / "device-tree" / "model").write_text("NVIDIA Jetson AGX Orin Developer Kit\0")
    return examine(str(root))


@pytest.mark.parametrize("width", WIDTHS)
def test_doctor(width: int, examined: Report) -> None:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    doctor._show(console, examined)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    # A command stands on one line, whatever its length, so that it can be copied.
    held("\n".join(line for line in text.splitlines() if not line.startswith("do ")), width)
    facts = examined.facts
    whole(text, facts.python.executable, *(each.path for each in facts.hook.startup_files))
    for target in facts.hook.targets:
        whole(text, target.name.partition(".")[2])
    for finding in examined.findings:
        whole(text, finding.what, finding.why, finding.message.replace("…", ""))
        assert finding.command in text
    # What a list is of stands beside it.
    for name, _ in doctor._lines(facts):
        assert re.search(rf"^{re.escape(name)}\b", text, re.MULTILINE), name


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", ["status", "copies"])
def test_commands_that_list_files(command: str, width: int, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    jetson_mamba("status", folder=tmp_path, path=(sandbox.site,))
    done = jetson_mamba(command, folder=tmp_path, path=(sandbox.site,), COLUMNS=str(width))
    assert (done.returncode, done.stderr) == (0, "")
    # Paths stay on their line, whole.
    held("\n".join(line for line in done.stdout.splitlines() if "/" not in line), width)
    whole(done.stdout, "ops.selective_scan_interface", "ops.triton.ssd_combined", "cached")
    paths = re.findall(r"\S*/\S+", done.stdout)
    assert paths and all(Path(each.rstrip(",")).exists() for each in paths)


@pytest.mark.parametrize("width", WIDTHS)
def test_diff_is_the_same_on_every_width(width: int, tmp_path: Path) -> None:
    sandbox = Sandbox(tmp_path)
    done = jetson_mamba("diff", folder=tmp_path, path=(sandbox.site,), COLUMNS=str(width))
    at_80 = jetson_mamba("diff", folder=tmp_path, path=(sandbox.site,), COLUMNS="80")
    assert (done.stdout, done.stderr) == (at_80.stdout, at_80.stderr)


@pytest.mark.parametrize("width", range(24, 130, 7))
def test_records_of_any_words_are_whole(width: int) -> None:
    """A long word, several lines, an empty cell, a style, a label of two words."""
    records = tables.Records("name", "the label", "why", wraps=("why",), right=("the label",))
    rows = [("a" * 30, "1.0e-05", REASON), ("b", "", "first\nsecond"), ("c", "3", "")]
    for row in rows:
        records.add(*row)
    text = printed(width, records.show)
    whole(text, *(cell for row in rows for cell in row))
    narrow = width < output.NARROW
    assert (text.count("name:") == len(rows)) is narrow
    assert "the label: 3" in text or not narrow
