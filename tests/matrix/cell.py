"""One cell: a release of mamba-ssm beside a causal-conv1d, with the hook or without it.

No compiled extension can run here, so each is emulated, in the form of its release: as strict
about its arguments as pybind11, with the same results and the same writes in place. The Python
files of both packages are those of the releases.
"""

from __future__ import annotations

import math
import sys
import warnings
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

from tests import emulated
from tools.releases import release_path

TOLERANCE = 1e-5
# Below this the Triton kernels need Triton 2 (2.0.x), or there are none (1.x).
FIRST_WITH_TRITON_3 = (2, 1)
FIRST_WITH_MAMBA_2 = (2, 0)


class Cell(NamedTuple):
    """What is run; ``causal_conv1d`` None means that there is none and nothing is compiled.

    ``failure`` is how the compiled extensions fail, one of ``emulated.FAILURES``. ``triton`` says
    whether one may be there: a cell without runs in a process that sees none; ``kernels`` whether
    the function of Mamba-2 runs on upstream's, which takes most of a cell's time.
    """

    mamba_ssm: str
    causal_conv1d: str | None
    hook: bool
    failure: str | None = None
    triton: bool = True
    kernels: bool = True


class Outcome(NamedTuple):
    """What came of it: the largest error, or what was raised, and the warnings of backends."""

    works: bool
    error: float | None
    raised: str | None
    warnings: tuple[str, ...]


def run(cell: Cell) -> Outcome:
    """Run the rewritten functions of the release, forward and backward, against float64.

    Must be called in a process of its own in which neither package has been imported.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            largest = _largest_error(cell)
            raised = None
        except Exception as error:
            largest = None
            raised = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    said = tuple(
        str(each.message) for each in caught if "backend" in type(each.message).__name__.lower()
    )
    works = largest is not None and largest <= TOLERANCE
    return Outcome(works, largest, raised, said)


def _largest_error(cell: Cell) -> float:
    import jetson_mamba

    assert cell.triton or find_spec("triton") is None, "expected no Triton here"
    if not cell.hook:
        jetson_mamba.deactivate()
        give_transformers_its_old_names()
    sys.path.insert(0, str(release_path(cell.mamba_ssm)))
    if cell.causal_conv1d is not None:
        sys.path.insert(0, str(release_path(cell.causal_conv1d, "causal-conv1d")))
        emulated.install(cell.causal_conv1d, selective_scan=True, failure=cell.failure)

    import mamba_ssm

    assert mamba_ssm.__version__ == cell.mamba_ssm
    from tests.releases import compare

    checks = [compare.mamba_inner]
    version = emulated.version(cell.mamba_ssm)
    if find_spec("triton") is None:
        checks += [compare.mamba2] * (version >= FIRST_WITH_MAMBA_2)
    elif version >= FIRST_WITH_TRITON_3 and cell.kernels:
        # One chunk: what a cell asks is how the convolution is called, and the interpreter is slow.
        checks.append(partial(compare.split_conv1d_scan, seqlen=9))
    errors = [error for check in checks for _, error in check()]
    # One that is not a number must not be lost among the others.
    return max(errors, key=lambda error: (math.isnan(error), error))


def give_transformers_its_old_names() -> None:
    """What is missing beside transformers 5 is no matter of the calls that are counted here."""
    from transformers import generation

    for name in ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"):
        if not hasattr(generation, name):
            setattr(generation, name, generation.GenerateDecoderOnlyOutput)
