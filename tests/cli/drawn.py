"""By which calls each picture is drawn: ``python -m tests.cli.drawn`` writes them down.

In ``drawn.txt`` a change of how a picture looks is read as a change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from jetson_mamba.demo import plot
from jetson_mamba.demo.result import Trained
from jetson_mamba.report import bench_plot
from jetson_mamba.report.documents import TimedBackend, TimedRow, Timings

DRAWN = Path(__file__).with_name("drawn.txt")
NAMES = ("cuda", "pytorch", "triton", "extension", "package", "sixth", "absent")
BACKENDS = tuple(TimedBackend("scan", name, "1", {}) for name in NAMES)
TIMES = dict(zip(NAMES[:-1], (3.0, 30.0, 4.0, 5.0, 6.0, 8.0)))
ROWS = tuple(
    TimedRow("scan", way, 1, 64, 100, "bfloat16", "BDL", 2.0, times, {}, None)
    for way, times in (("forward", TIMES), ("backward", {"cuda": 7.0}))
)
TIMINGS = Timings("cuda", "Orin", "0.1", "2.9", "12.6", "580", 1234e3, BACKENDS, ROWS)
MODELS = tuple(Trained(kind, 9, [3.0, 2.0, 1.0], 1.5, 1.0, "") for kind in ("Mamba", "Mamba2"))


class Notes:
    """Something of matplotlib's that notes what is called, of it and of what that gives."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self._name, self._lines = name, lines

    def __getattr__(self, name: str) -> Notes:
        return Notes(f"{self._name}.{name}", self._lines)

    def __getitem__(self, key: object) -> Notes:
        return Notes(f"{self._name}[{key!r}]", self._lines)

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Note the call; what it gives has its name."""
        words = [*map(repr, given), *(f"{name}={value!r}" for name, value in named.items())]
        self._lines.append(f"{self._name}({', '.join(words)})")
        if self._name.endswith("subplots") and given:
            return [
                [Notes(f"panel {row} {column}", self._lines) for column in range(given[1])]
                for row in range(given[0])
            ]
        return Notes(self._name.rpartition(".")[2], self._lines)

    def __repr__(self) -> str:
        return f"<{self._name}>"


def calls() -> str:
    """Those of the times of a bench, and of the losses of a demo."""
    lines: list[str] = []
    with patch.object(bench_plot, "Figure", Notes("Figure", lines)), patch.object(
        bench_plot, "Line2D", Notes("Line2D", lines)
    ), patch.object(plot, "Figure", Notes("Figure", lines)):
        bench_plot.draw(TIMINGS, Path("times.png"))
        lines.append("")
        plot.loss_curves(MODELS, 2.75, "A title", Path("curves.png"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    DRAWN.write_text(calls(), encoding="utf-8")
