"""The matrix as a picture.

Before and after, side by side. ``python -m tests.matrix.picture [FOLDER]`` draws it again from the
``matrix.json`` that is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Mapping, Sequence

# Blue and orange of Okabe and Ito, told apart by every kind of colour vision and in grey; what
# raises has a cross besides.
WORKS, FAILS, NOT_RUN = "#0072B2", "#E69F00", "#dddddd"
NONE, BARE = "none", "none, no Triton"


def draw_again(folder: Path) -> None:
    """Write ``matrix.png`` in ``folder`` from the ``matrix.json`` beside it."""
    told = json.loads((folder / "matrix.json").read_text())
    panels: dict[bool, dict[tuple[str, str], bool]] = {False: {}, True: {}}
    for cell in told["cells"]:
        if cell["failure"] is None:
            beside = cell["causal_conv1d"] or NONE
            if not cell.get("triton", True):
                beside = f"{beside}, no Triton"
                if beside != BARE:  # of those without Triton this one is shown
                    continue
            panels[cell["hook"]][cell["mamba_ssm"], beside] = cell["works"]
    mamba_ssm, causal_conv1d = (
        sorted({key[place] for key in panels[True]}, key=_as_version) for place in (0, 1)
    )
    draw(
        folder / "matrix.png",
        mamba_ssm,
        causal_conv1d,
        panels[False],
        panels[True],
        f"{told['command']}, {told['date']}: compiled extensions emulated call by call, "
        "float32 on a CPU",
    )


def _as_version(name: str) -> tuple[int, list[int]]:
    numbers = name.replace("post", "").split(".")
    return (NONE, BARE).index(name) + 1 if name in (NONE, BARE) else 0, [
        int(each) for each in numbers if each.isdigit()
    ]


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
                if found is False:
                    panel.plot(column + 0.46, row + 0.46, "x", color="#5c3d00", markersize=5)
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
            Patch(color=FAILS, label="raises (x)"),
            Patch(color=NOT_RUN, label="not run without jetson_mamba"),
        ],
        loc="lower center",
        ncols=3,
        frameon=False,
        fontsize=12,
    )
    figure.text(0.5, 0.965, subtitle, ha="center", fontsize=11, color="#555555")
    figure.tight_layout(rect=(0, 0.04, 1, 0.96))
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    draw_again(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
