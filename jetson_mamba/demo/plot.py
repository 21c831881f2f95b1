"""The loss curves of a demo, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from matplotlib.figure import Figure

from jetson_mamba.demo.result import Trained

# Blue and orange of Okabe and Ito, told apart by every kind of colour vision.
# Where curves lie on each other, dashes leave the one below visible.
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", (0, (4, 3))))
MARKS_APART = 0.02  # of the axes' width: losses on unseen text are nearly equal
WINDOW_SHARE = 30


def loss_curves(trained: Sequence[Trained], unigram_entropy: float, title: str, path: Path) -> None:
    """Draw the loss of each model over its steps, and write it to ``path``.

    Each step's loss is faint, the mean of the steps around it is strong, and a point at the
    right is the loss on text that was held out.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    beside = axes.get_yaxis_transform()
    for place, (each, (colour, marker, line)) in enumerate(zip(trained, STYLES), 1):
        values = each.losses
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=1)
        axes.plot(
            steps, _smooth(values), color=colour, linestyle=line, linewidth=2, label=each.kind
        )
        axes.plot(
            [1 + place * MARKS_APART],
            [each.held_out],
            transform=beside,
            marker=marker,
            linestyle="none",
            color=colour,
            markeredgecolor="white",
            markersize=8,
            clip_on=False,
            zorder=3,
            label=f"{each.kind}, on unseen text: {each.held_out:.2f}",
        )
    axes.axhline(unigram_entropy, color="#666666", linestyle="--", linewidth=1)
    axes.annotate(
        f"knowing only how often each character occurs: {unigram_entropy:.2f}",
        xy=(1.0, unigram_entropy),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        color="#444444",
        fontsize=9,
    )
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss, nats per character")
    axes.set_xlim(0, len(trained[0].losses))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and its neighbours on both sides."""
    reach = len(values) // WINDOW_SHARE
    windows = [values[max(0, i - reach) : i + reach + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
