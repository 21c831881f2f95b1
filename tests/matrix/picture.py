"""The matrix as a picture: before and after, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping, Sequence

WORKS, FAILS, NOT_RUN = "#2e7d4f", "#c8483c", "#e4e4e4"


def draw(
    path: Path,
    mamba_ssm: Sequence[str],
    causal_conv1d: Sequence[str],
    before: Mapping[tuple[str, str], bool],
    after: Mapping[tuple[str, str], bool],
    subtitle: str,
) -> None:
    """Write a PNG; the keys of the two panels are (mamba_ssm, causal_conv1d)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    figure, panels = plt.subplots(1, 2, figsize=(16, 9.2), sharey=True)
    for panel, works, title in zip(
        panels, (before, after), ("mamba-ssm alone", "with jetson_mamba")
    ):
        for row, release in enumerate(mamba_ssm):
            for column, other in enumerate(causal_conv1d):
                found = works.get((release, other))
                colour = NOT_RUN if found is None else WORKS if found else FAILS
                panel.add_patch(Rectangle((column, row), 0.92, 0.92, color=colour))
        count = sum(works.values())
        panel.set_title(f"{title}: {count} of {len(works)}", fontsize=15, pad=12)
        panel.set_xlim(-0.1, len(causal_conv1d))
        panel.set_ylim(len(mamba_ssm), -0.1)
        panel.set_xticks(
            [each + 0.46 for each in range(len(causal_conv1d))], causal_conv1d, rotation=90
        )
        panel.set_yticks([each + 0.46 for each in range(len(mamba_ssm))], mamba_ssm)
        panel.tick_params(length=0, labelsize=10)
        panel.set_xlabel("causal-conv1d", fontsize=12)
        for side in panel.spines.values():
            side.set_visible(False)
    panels[0].set_ylabel("mamba-ssm", fontsize=12)
    figure.legend(
        handles=[
            Patch(color=WORKS, label="forward and backward agree with float64"),
            Patch(color=FAILS, label="raises"),
        ],
        loc="lower center",
        ncols=2,
        frameon=False,
        fontsize=12,
    )
    figure.text(0.5, 0.965, subtitle, ha="center", fontsize=11, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 0.96))
    figure.savefig(path, dpi=90)
    plt.close(figure)
