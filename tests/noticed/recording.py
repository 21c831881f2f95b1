"""A plugin of pytest that writes down which test executes which lines of the package.

A line is known by its text, so that a change elsewhere in its file makes no record stale.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Generator

import pytest

Reports = Any
TREE = Path(os.environ["NOTICED_TREE"])
RECORDED = Path(os.environ["NOTICED_RECORDED"])


class _Plugin:
    def __init__(self) -> None:
        # noticed_recorder is what the copy of the package imports.
        recorder: Any = sys.modules["noticed_recorder"]
        self.recorder, self.current = recorder.recorder, recorder.CURRENT
        self.records: Path = recorder.RECORDS
        self.file = ""
        self.tests: list[str] = []
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        # By the module's path and the line's text: the tests that execute it, as bits.
        self.executed: dict[str, dict[str, int]] = {}
        # What fixtures of the whole file execute is every test's.
        self.shared: dict[str, set[str]] = {}
        self.texts: dict[str, list[str]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        file = item.nodeid.partition("::")[0]
        if file != self.file:
            self.write()
            self.file, self.tests, self.seconds = file, [], {}
            self.executed, self.shared = defaultdict(lambda: defaultdict(int)), defaultdict(set)
        self.current.write_text(item.nodeid, "utf-8")
        self.tests.append(item.nodeid)
        self.recorder.take()
        result = yield
        self.note(self.recorder.take(), len(self.tests) - 1)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Generator[None, object, object]:
        if fixturedef.scope == "function" or not self.tests:
            return (yield)
        self.note(self.recorder.take(), len(self.tests) - 1)
        result = yield
        for path, numbers in self.recorder.take().items():
            self.shared[path].update(self.lines(path, numbers))
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        before = self.seconds.get(report.nodeid, 0.0)
        self.seconds[report.nodeid] = before + report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.write()

    def note(self, found: dict[str, list[int]], test: int) -> None:
        for path, numbers in found.items():
            for line in self.lines(path, numbers):
                self.executed[path][line] |= 1 << test

    def lines(self, path: str, numbers: list[int]) -> Generator[str, None, None]:
        if path not in self.texts:
            file = TREE / path
            text = file.read_text("utf-8") if file.exists() else ""
            self.texts[path] = [each.strip() for each in text.splitlines()]
        text_of = self.texts[path]
        return (text_of[each - 1] for each in numbers if each <= len(text_of))

    def write(self) -> None:
        """Write what is known of the file whose tests have run."""
        numbers = {test: number for number, test in enumerate(self.tests)}
        for record in sorted(self.records.glob("*.json")):
            test, found = json.loads(record.read_text("utf-8"))
            if test in numbers:
                self.note(found, numbers[test])
            record.unlink()
        if not self.tests:
            return
        everyone = (1 << len(self.tests)) - 1
        for path, texts in self.shared.items():
            for line in texts:
                self.executed[path][line] = everyone
        file = RECORDED / f"{self.file.replace('/', '+')}.json"
        content = {
            "tests": self.tests,
            "failed": [each for each in self.tests if each in self.failed],
            "seconds": [round(self.seconds.get(each, 0.0), 2) for each in self.tests],
            "executed": {
                path: {line: f"{bits:x}" for line, bits in each.items()}
                for path, each in self.executed.items()
            },
        }
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(content), "utf-8")
        partial.replace(file)


def pytest_configure(config: pytest.Config) -> None:
    """Take part in the run."""
    import jetson_mamba  # noqa: F401

    config.pluginmanager.register(_Plugin())
    # Where the time is over, what is known is written.
    signal.signal(signal.SIGALRM, lambda *_: pytest.exit("the time is over"))
