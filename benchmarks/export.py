"""Times of exported models in ONNX Runtime beside their eager calls, on one core.

``python -m benchmarks.export`` with a release of mamba_ssm on the path, of which it needs the
blocks; ``--width 768`` is the width of both. For each form a line: milliseconds of a call at
batch 1 and the length, for the runtime and eager, and the largest error; then the same for a step.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

# One core for both, also where a library starts threads of its own.
os.environ["OMP_NUM_THREADS"] = "1"


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--seqlen", type=int, default=1024)
    given = parser.parse_args()

    import torch
    from mamba_ssm import Mamba, Mamba2

    import jetson_mamba
    from jetson_mamba.errors import CannotRun

    torch.set_num_threads(1)
    import onnxruntime

    print(
        f"Width {given.width}, batch 1, one core of {processor()}; torch {torch.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}.\n"
    )
    print("| block | form | length | nodes | error | runtime, ms | eager, ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    forms = {
        Mamba: ("selective_scan", ("scan", "blocks")),
        Mamba2: ("ssd_scan", ("chunks", "attention")),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        for block, (recurrence, names) in forms.items():
            torch.manual_seed(0)
            model = block(given.width).eval()
            for form in names:
                x = torch.randn(1, given.seqlen, given.width)
                try:
                    found = jetson_mamba.export.onnx(
                        model,
                        [x],
                        file,
                        dynamic=[{0: "batch", 1: "seqlen"}],
                        forms={recurrence: form},
                    )
                except CannotRun as error:
                    print(f"| {block.__name__} | {form} | {error} |")
                    continue
                print(row(block.__name__, form, given.seqlen, found), flush=True)
            (found,) = jetson_mamba.export.step(model, file)
            print(row(block.__name__, "step", 1, found), flush=True)


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
