"""Times of exported models in ONNX Runtime beside their eager calls, on one core.

``python -m benchmarks.export`` with a release of mamba_ssm on the path, of which it needs the
blocks; ``--width 768`` is the width of both. For each form a line: milliseconds of a call at
batch 1 and the length, for the runtime and eager, and the largest error; then the same for a step.
``--write`` puts the table in the place of that of ``docs/onnx.md``. The exit code is 1 where the
fastest form is slower than eager, or a step takes more than half of eager's time.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any, Iterator

# One core for both, also where a library starts threads of its own.
os.environ["OMP_NUM_THREADS"] = "1"

PAGE = Path(__file__).resolve().parent.parent / "docs" / "onnx.md"
TABLE = re.compile(r"^Width \d+, batch 1, one core of .*?(?=\n\n[^|\n])", re.DOTALL | re.MULTILINE)
STEP_AT_MOST = 0.5


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--write", action="store_true", help="into docs/onnx.md")
    given = parser.parse_args()

    import onnxruntime
    import torch

    torch.set_num_threads(1)
    lines = [
        f"Width {given.width}, batch 1, one core of {processor()}, torch {torch.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}, {date.today()}:",
        "",
        "| block | form | length | nodes | error | runtime, ms | eager, ms |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print(*lines, sep="\n", flush=True)
    ratios: dict[tuple[str, bool], float] = {}
    for block, form, length, found in measured(given.width, given.seqlen):
        lines.append(row(block, form, length, found))
        print(lines[-1], flush=True)
        ratio = found.times.runtime / found.times.eager
        name = (block, form == "step")
        ratios[name] = min(ratio, ratios.get(name, ratio))
    if given.write:
        write("\n".join(lines))
    slow = [
        f"{block}{' step' if is_step else ''}: {ratio:.2f} of eager's time"
        for (block, is_step), ratio in ratios.items()
        if ratio > (STEP_AT_MOST if is_step else 1.0)
    ]
    sys.exit("; ".join(slow) or None)


def measured(width: int, seqlen: int) -> Iterator[tuple[str, str, int, Any]]:
    """Block, form and length, and what was found out, for each form that this runtime takes."""
    import torch
    from mamba_ssm import Mamba, Mamba2

    import jetson_mamba
    from jetson_mamba.errors import CannotRun

    forms = {
        Mamba: ("selective_scan", ("scan", "blocks")),
        Mamba2: ("ssd_scan", ("chunks", "attention")),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        for block, (recurrence, names) in forms.items():
            torch.manual_seed(0)
            model = block(width).eval()
            for form in names:
                try:
                    found = jetson_mamba.export.onnx(
                        model,
                        [torch.randn(1, seqlen, width)],
                        file,
                        dynamic=[{0: "batch", 1: "seqlen"}],
                        forms={recurrence: form},
                    )
                except CannotRun as error:
                    print(f"{block.__name__}, {form}: {error}", file=sys.stderr)
                    continue
                yield block.__name__, form, seqlen, found
            (found,) = jetson_mamba.export.step(model, file)
            yield block.__name__, "step", 1, found


def write(table: str) -> None:
    """Put a table in the place of the page's."""
    page, count = TABLE.subn(lambda _: table, PAGE.read_text("utf-8"))
    if count != 1:
        sys.exit(f"{PAGE}: expected one table of this benchmark, found {count}")
    PAGE.write_text(page, "utf-8")


def row(block: str, form: str, length: int, found: Any) -> str:
    """A line of the table."""
    runtime, eager = (seconds * 1e3 for seconds in found.times)
    return (
        f"| {block} | {form} | {length} | {found.nodes} | {found.error:.1e} | {runtime:.2f} | "
        f"{eager:.2f} |"
    )


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
