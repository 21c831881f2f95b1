"""Real releases of mamba-ssm where there is no Triton, or one that cannot serve them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.references.tolerance import relative_norm
from tests.without_triton.environment import (
    BROKEN,
    FAILING_ALLOCATOR,
    FAILING_TUNER,
    SMALL_TRITON,
    Bare,
)
from tools.releases import INCOMPLETE, MAMBA_SSM

TRITON_3_0 = SMALL_TRITON.format(version="3.0.0")
# Without a driver these fail in a decorator, before anything is launched.
TRITON_3_2 = SMALL_TRITON.format(version="3.2.0") + FAILING_TUNER
TRITON_3_3 = SMALL_TRITON.format(version="3.3.1") + FAILING_TUNER + FAILING_ALLOCATOR
OTHER_3_3 = SMALL_TRITON.format(version="3.3.1") + FAILING_ALLOCATOR
TRITON_3_6 = SMALL_TRITON.format(version="3.6.0") + "def set_allocator(allocator):\n    pass\n"
# Imports all of a release, takes a step of Mamba-2, and says how.
PROGRAM = """
import sys, warnings
import torch._inductor, transformers.generation.utils
sys.path.insert(0, "late")
warnings.simplefilter("error")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always", RuntimeWarning)
    import jetson_mamba, torch, mamba_ssm
    block = mamba_ssm.Mamba2(16, d_state=16, headdim=8, chunk_size=16)
    block(torch.randn(2, 9, 16)).sum().backward()
    assert all(each.grad is not None for each in block.parameters())
    from mamba_ssm.ops.triton import ssd_bmm
    from mamba_ssm.ops.triton.mamba3 import mamba3_siso_fwd
print(ssd_bmm.triton.__name__, mamba3_siso_fwd.triton.__name__, len(said))
print(*(each.message for each in said))
"""
PLACEHOLDER = "jetson_mamba.compat.without_triton"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Bare:
    """No Triton at all."""
    return Bare(tmp_path_factory.mktemp("bare") / "run")


def results(
    bare: Bare, *checks: str, options: tuple[str, ...] = ("-W", "ignore")
) -> dict[str, float]:
    printed = bare.printed(*options, "-m", "tests.without_triton.programs", *checks)
    lines = [line.rsplit(" ", 1) for line in printed.splitlines() if not line.startswith("Prompt")]
    assert {line[0].split()[0] for line in lines} == set(checks)
    return {name: float(number) for name, number in lines}


def test_every_release_is_imported(bare: Bare) -> None:
    found = results(bare, "releases", options=("-W", "error::RuntimeWarning"))
    expected = [f"releases {each}" for each in MAMBA_SSM if each not in INCOMPLETE]
    assert list(found) == expected
    assert min(found.values()) >= 2


def test_models_train_and_generate_and_compile(bare: Bare) -> None:
    trained = ("mamba", "mamba2", "mamba_inner", "mamba2_simple", "language_models")
    others = ("decoding1", "decoding2", "traced_model", "traced_model_of_mamba")
    found = results(bare, *trained, *others, "mamba3", "no_op", "nobody_sees_triton")
    assert sum(name.startswith("no_op") for name in found) == 3
    # A slope is that between two losses, whose A is rounded to float32.
    slopes = [found.pop(f"language_models {layer} slope") for layer in ("Mamba1", "Mamba2")]
    assert max(slopes) <= 1e-4
    assert {name: each for name, each in found.items() if not each <= 1e-5} == {}


def test_transformers_takes_its_fast_path(bare: Bare) -> None:
    computed = []
    for mode in ("on", "off"):
        printed = bare.printed(
            *("-W", "ignore", "-m", "tests.without_triton.programs", "transformers_models"),
            JETSON_MAMBA=mode,
        )
        calls = [float(line.split()[-1]) for line in printed.splitlines() if line]
        assert (min(calls) >= 1) if mode == "on" else (max(calls) == 0)
        computed.append(torch.load(bare.folder / "computed.pt"))
    fast, slow = computed
    assert len(fast) == 9 and fast.keys() == slow.keys()
    for model, expected in slow.items():
        assert fast[model].keys() == expected.keys()
        for name, right in expected.items():
            assert relative_norm(fast[model][name], right) <= 1e-4, (model, name)


@pytest.mark.parametrize(
    ("triton", "served", "reason"),
    [
        (TRITON_3_0, True, "Triton 3.0.0 has no set_allocator"),
        (TRITON_3_2, False, "Triton 3.2.0 cannot be used here (autotune: 0 active drivers"),
        (TRITON_3_3, False, "Triton 3.3.1 cannot be used here (autotune: 0 active drivers"),
        (OTHER_3_3, True, "Triton 3.3.1 cannot be used here (set_allocator: 0 active drivers"),
        (BROKEN, False, "Triton cannot be imported (ImportError: libtriton.so: undefined symbol"),
    ],
    ids=["3.0", "3.2", "3.3", "3.3 whose tuner works", "broken"],
)
def test_a_triton_that_cannot_serve_is_told_once(
    triton: str, served: bool, reason: str, bare: Bare, tmp_path: Path
) -> None:
    other = Bare(tmp_path / "run", triton, bare)
    names, message = other.printed("-c", PROGRAM).splitlines()
    # What it can serve, it does.
    assert names == f"{'triton' if served else PLACEHOLDER} {PLACEHOLDER} 1"
    assert reason in message and "What to do: " in message


def test_a_triton_that_serves_is_taken(bare: Bare, tmp_path: Path) -> None:
    other = Bare(tmp_path / "run", TRITON_3_6, bare)
    assert other.printed("-c", PROGRAM).split() == ["triton"] * 2 + ["0"]


def test_a_folder_called_triton_is_none(bare: Bare, tmp_path: Path) -> None:
    other = Bare(tmp_path / "run", beside=bare)
    (other.late / "triton").mkdir(parents=True)
    assert other.printed("-c", PROGRAM).split() == [PLACEHOLDER] * 2 + ["0"]


def test_without_the_hook_nothing_is_changed(bare: Bare) -> None:
    done = bare.run("-c", "import jetson_mamba, mamba_ssm.ops.triton.ssd_bmm", JETSON_MAMBA="off")
    assert "Error: No module named" in done.stderr.splitlines()[-1]
