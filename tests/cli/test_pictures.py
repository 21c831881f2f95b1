"""Pictures have every number at its place, with its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from jetson_mamba.demo import plot
from jetson_mamba.demo.result import Trained
from jetson_mamba.report import bench_plot
from jetson_mamba.report.documents import TimedBackend, TimedRow, Timings
from tests.cli import drawn as drawn_by

BACKENDS = tuple(
    TimedBackend(op, name, "1.0", {})
    for op in ("causal_conv1d", "selective_scan")
    for name in ("cuda", "pytorch", "absent")
)


def row(op: str, direction: str, batch: int, **microseconds: float) -> TimedRow:
    return TimedRow(
        op=op,
        direction=direction,
        batch=batch,
        dim=64,
        seqlen=100,
        dtype="bfloat16",
        layout="BDL",
        floor_microseconds=2.0 * batch,
        microseconds=microseconds,
        failures={},
        of_floor=None,
    )


ROWS = (
    row("causal_conv1d", "forward", 1, cuda=3.0, pytorch=30.0),
    row("causal_conv1d", "forward", 2, cuda=5.0),
    row("causal_conv1d", "backward", 1, pytorch=70.0),
    row("causal_conv1d", "backward", 2, cuda=9.0, pytorch=80.0),
    row("selective_scan", "forward", 1, cuda=4.0),
    row("selective_scan", "backward", 1, cuda=6.0),
)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that were written, and where to."""
    found: list[Any] = []

    def written(self: Figure, path: Path, **options: Any) -> None:
        found.append((self, path))

    monkeypatch.setattr(Figure, "savefig", written)
    return found


def lines_of(legend: Any) -> list[Any]:
    return list(legend.legend_handles)


def drawn(figures: list[Any], driver: str | None = "580.1") -> Figure:
    result = Timings(
        *("cuda", "NVIDIA Orin", "0.1.0", "2.9.0", "12.6", driver, 1234e3, BACKENDS, ROWS)
    )
    bench_plot.draw(result, Path("times.png"))
    ((figure, path),) = figures
    assert path == Path("times.png")
    assert isinstance(figure, Figure)
    return figure


def points(axes: Any) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Of each kind of mark and colour, where it stands; without the lines between."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in axes.lines:
        if line.get_marker() != "None":
            place = (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
            found.setdefault((line.get_marker(), line.get_color()), []).append(place)
    return found


@pytest.mark.parametrize("driver", ["580.1", None])
def test_a_picture_says_what_was_measured_on_what(driver: str | None, figures: list[Any]) -> None:
    figure = drawn(figures, driver)
    assert figure.get_suptitle() == (
        f"NVIDIA Orin{', driver 580.1' if driver else ''}, torch 2.9.0, jetson-mamba 0.1.0; "
        "a copy runs at 1234 GB/s"
    )
    panels = figure.axes
    assert [each.get_title() for each in panels] == [
        f"{op}, {direction}"
        for op in ("causal_conv1d", "selective_scan")
        for direction in ("forward", "backward")
    ]
    assert [each.get_xlabel() for each in panels] == ["", "", "microseconds", "microseconds"]
    said = "batch, dim, seqlen; dtype; layout"
    assert [each.get_ylabel() for each in panels] == [said, "", said, ""]
    assert [each.get_text() for each in panels[0].get_yticklabels()] == [
        "1, 64, 100; bfloat16; BDL",
        "2, 64, 100; bfloat16; BDL",
    ]
    (legend,) = figure.legends
    names = [each.get_text() for each in legend.get_texts()]
    assert names == ["floor: fewest bytes over the rate of a copy", "cuda", "pytorch"]
    handles = [(line.get_marker(), line.get_color()) for line in lines_of(legend)]
    assert handles == [
        ("|", "black"),
        *((marker, colour) for colour, marker in bench_plot.STYLES[:2]),
    ]


def test_every_time_stands_in_its_row_and_the_floor_beside_it(figures: list[Any]) -> None:
    panels: list[Any] = drawn(figures).axes
    forward, backward, *_ = panels
    (cuda, first), (pytorch, second) = bench_plot.STYLES[:2]
    apart = bench_plot.APART / 2
    assert points(forward) == {
        ("|", "black"): [(2.0, 0.0), (4.0, 1.0)],
        (first, cuda): [(3.0, -apart), (5.0, 1 - apart)],
        (second, pytorch): [(30.0, apart)],
    }
    assert points(backward)[second, pytorch] == [(70.0, apart), (80.0, 1 + apart)]
    between = [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in forward.lines
        if line.get_marker() == "None"
    ]
    assert between == [([2.0, 30.0], [0, 0]), ([4.0, 5.0], [1, 1])]


def test_times_are_on_a_log_scale_from_the_first_row_down(figures: list[Any]) -> None:
    figure = drawn(figures)
    for axes, rows in zip(figure.axes, (2, 2, 1, 1)):
        assert axes.get_xscale() == "log"
        assert axes.get_ylim() == (rows - 0.5, -0.5)
        assert axes.xaxis.get_major_formatter()(12345.0) == "12,345"
    width, height = figure.get_size_inches()
    assert width == bench_plot.WIDTH_INCHES
    of_rows = bench_plot.ROW_INCHES * 3
    assert height == pytest.approx(of_rows + bench_plot.FRAME_INCHES * 2)


def trained(kind: str, held_out: float, losses: list[float]) -> Trained:
    return Trained(kind, 1000, losses, held_out, 1.5, "written")


FALLING = [4.0 - step / 20 for step in range(60)]


def test_the_curves_of_a_demo_are_its_losses_and_what_is_unseen(figures: list[Any]) -> None:
    models = (trained("Mamba", 1.25, FALLING), trained("Mamba2", 1.5, [2.0] * 60))
    plot.loss_curves(models, 2.75, "A title", Path("curves.png"))
    ((figure, path),) = figures
    assert path == Path("curves.png")
    (axes,) = figure.axes
    *curves, level = axes.lines
    assert list(level.get_ydata()) == [2.75, 2.75]
    for place, (each, (colour, marker, _)) in enumerate(zip(models, plot.STYLES)):
        faint, strong, point = curves[3 * place : 3 * place + 3]
        assert {line.get_color() for line in (faint, strong, point)} == {colour}
        assert list(faint.get_xdata()) == list(strong.get_xdata()) == [*range(1, 61)]
        assert list(faint.get_ydata()) == each.losses
        # The mean of two on each side, of those that there are.
        assert list(strong.get_ydata()) == pytest.approx(
            [
                sum(each.losses[max(0, i - 2) : i + 3]) / len(each.losses[max(0, i - 2) : i + 3])
                for i in range(60)
            ]
        )
        assert faint.get_alpha() < 1 and strong.get_alpha() is None
        assert point.get_marker() == marker and list(point.get_ydata()) == [each.held_out]
        # Beside the axes, each apart from the other.
        assert list(point.get_xdata()) == [1 + plot.MARKS_APART * (place + 1)]
    assert [each.get_text() for each in axes.get_legend().get_texts()] == [
        *("Mamba", "Mamba, on unseen text: 1.25", "Mamba2", "Mamba2, on unseen text: 1.50"),
    ]
    (note,) = axes.texts
    assert note.get_text() == "knowing only how often each character occurs: 2.75"
    assert note.xy == (1.0, 2.75)
    assert (axes.get_title(), axes.get_xlabel()) == ("A title", "training step")
    assert axes.get_ylabel() == "loss, nats per character"
    assert axes.get_xlim() == (0, 60) and axes.get_ylim()[0] == 0
    assert curves[1].get_linestyle() != curves[4].get_linestyle()


def test_a_picture_looks_as_it_is_written_down() -> None:
    """``python -m tests.cli.drawn`` writes it anew."""
    assert drawn_by.calls() == drawn_by.DRAWN.read_text(encoding="utf-8")


@pytest.mark.parametrize(("steps", "tenth"), [(1, 1), (10, 1), (11, 2), (100, 10)])
def test_the_first_and_the_last_loss_are_means_of_a_tenth(steps: int, tenth: int) -> None:
    losses = [float(step) for step in range(steps)]
    found = trained("Mamba", 1.0, losses)
    assert found.first() == sum(losses[:tenth]) / tenth
    assert found.last() == sum(losses[-tenth:]) / tenth
