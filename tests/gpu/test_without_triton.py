"""On a GPU without Triton, models train to float64's gradients.

Blocks do as well, and models generate.
"""

from __future__ import annotations

import pytest
import torch

from tests.references.tolerance import relative_norm
from tests.without_triton.environment import Bare
from tools.releases import INCOMPLETE, MAMBA_SSM

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
# Products of float32 matrices, and sums in another order than on a CPU.
TOLERANCE = 1e-4
COMPILED = ("nobody_sees_triton", "traced_model", "traced_model_of_mamba")
CHECKS = ("mamba", "mamba2", "mamba2_simple", "language_models", "decoding1", "decoding2")


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    return Bare(tmp_path_factory.mktemp("bare") / "run")


def test_every_release_is_imported(bare: Bare) -> None:
    printed = bare.printed(
        *("-W", "error::RuntimeWarning", "-m", "tests.without_triton.programs", "releases"),
        CHECKS_ON_GPU="1",
    )
    found = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    assert list(found) == [f"releases {each}" for each in MAMBA_SSM if each not in INCOMPLETE]
    # Of each, some modules found the place of Triton taken.
    assert min(map(float, found.values())) >= 2


def test_models_compile_where_nobody_sees_a_triton(bare: Bare) -> None:
    """Forward and backward, beside eager calls."""
    printed = bare.printed(
        *("-W", "ignore", "-m", "tests.without_triton.programs", *COMPILED), CHECKS_ON_GPU="1"
    )
    found = dict(line.rsplit(" ", 1) for line in printed.splitlines())
    assert {name.split()[0] for name in found} == set(COMPILED)
    assert {name: number for name, number in found.items() if not float(number) <= TOLERANCE} == {}


@pytest.mark.parametrize("backend", ["", "ssd=pytorch"], ids=["as it comes", "PyTorch's"])
def test_blocks_and_models_train_and_generate(backend: str, bare: Bare) -> None:
    printed = bare.printed(
        *("-W", "ignore", "-m", "tests.without_triton.programs", *CHECKS),
        CHECKS_ON_GPU="1",
        JETSON_MAMBA_BACKEND=backend,
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines() if not line.startswith("Prompt")]
    assert {line[0].split()[0] for line in lines} == set(CHECKS)
    assert {name: number for name, number in lines if not float(number) <= TOLERANCE} == {}


def test_transformers_models_take_their_fast_path_and_agree_with_the_slow_one(
    bare: Bare,
) -> None:
    computed = []
    for mode in ("on", "off"):
        printed = bare.printed(
            *("-W", "ignore", "-m", "tests.without_triton.programs", "transformers_models"),
            CHECKS_ON_GPU="1",
            JETSON_MAMBA=mode,
        )
        calls = [float(line.split()[-1]) for line in printed.splitlines() if line]
        assert (min(calls) >= 1) if mode == "on" else (max(calls) == 0)
        computed.append(torch.load(bare.folder / "computed.pt"))
    fast, slow = computed
    assert len(fast) == 9 and fast.keys() == slow.keys()
    for model, expected in slow.items():
        for name, right in expected.items():
            assert relative_norm(fast[model][name], right) <= TOLERANCE, (model, name)
