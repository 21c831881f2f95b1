"""Brings a row to its verdict. It runs with the hook and without, both at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tests.joints.declared import Joint
from tests.joints.verdicts import Judged, judge
from tests.joints.workers import Outcome, Row, Workers

PLAIN = "forward and backward"


class Judge:
    """Called with a joint and a subject; a context that ends its processes."""

    def __init__(self, cache: Path) -> None:
        self._workers = Workers(cache)
        self._pool = ThreadPoolExecutor(1)
        self._plain: dict[str, Outcome] = {}
        self.seconds = 0.0

    def __call__(self, joint: Joint, subject: str) -> Judged:
        """The verdict of the row."""
        row = Row(joint.name, subject)
        with_it = self._pool.submit(self._workers.run, row, True)
        without = self._workers.run(row, False)
        exact = None
        if joint.rounded:
            exact = self._workers.run(row._replace(exact=True), False)
        if subject not in self._plain:
            self._plain[subject] = self._workers.run(Row(PLAIN, subject), False)
        hooked = with_it.result()
        self.seconds += hooked.seconds + without.seconds
        return judge(joint, subject, hooked, without, exact, self._plain[subject])

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
        self._workers.close()
