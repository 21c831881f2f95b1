"""Which cells the matrix has. The whole of it, and the part that meets each text and form once."""

from __future__ import annotations

import hashlib
from typing import Sequence

from jetson_mamba.finder import TARGETS
from tests import emulated
from tests.matrix.cell import Cell
from tools.releases import CAUSAL_CONV1D, INCOMPLETE, MAMBA_SSM, release_path

IMPORTABLE = tuple(version for version in MAMBA_SSM if version not in INCOMPLETE)
# One release of causal-conv1d for each generation of its signatures.
GENERATIONS = ("1.0.2", "1.1.3.post1", "1.2.1", "1.5.0.post8", "1.7.0")


def before_cells() -> list[Cell]:
    """Every pair, without the hook."""
    return [Cell(ours, theirs, False) for ours in IMPORTABLE for theirs in CAUSAL_CONV1D]


def after_cells() -> list[Cell]:
    """Every pair, with the hook."""
    return [Cell(ours, theirs, True) for ours in IMPORTABLE for theirs in CAUSAL_CONV1D]


def without_cells() -> list[Cell]:
    """No causal-conv1d, and nothing compiled."""
    return [Cell(ours, None, True) for ours in IMPORTABLE]


def failing_cells() -> list[Cell]:
    """Extensions that are there and fail, for each text and generation."""
    return [
        Cell(ours, theirs, True, failure)
        for ours in distinct_texts()
        for theirs in GENERATIONS
        for failure in (emulated.UNDEFINED_SYMBOL, emulated.NO_KERNEL_IMAGE)
    ]


def bare_cells() -> list[Cell]:
    """No Triton: every release with each generation of causal-conv1d and with none."""
    return _each_generation(IMPORTABLE, triton=False)


def reduced_cells(triton: bool = True) -> list[Cell]:
    """Each text with each generation and with none; on kernels every third, others for the next."""
    cells = _each_generation(distinct_texts(), triton)
    beside = len(GENERATIONS) + 1
    return [
        cell._replace(kernels=(number // beside + number) % 3 == 0)
        for number, cell in enumerate(cells)
    ]


def _each_generation(releases: Sequence[str], triton: bool) -> list[Cell]:
    return [
        Cell(ours, theirs, True, triton=triton)
        for ours in releases
        for theirs in (*GENERATIONS, None)
    ]


def distinct_texts() -> tuple[str, ...]:
    """The last release with each pair of texts of the two targets."""
    last: dict[str, str] = {}
    for version in IMPORTABLE:
        paths = [release_path(version) / f"{each.replace('.', '/')}.py" for each in TARGETS[:2]]
        texts = [path.read_bytes() for path in paths if path.exists()]
        last[hashlib.sha256(b"".join(texts)).hexdigest()] = version
    return tuple(last.values())
