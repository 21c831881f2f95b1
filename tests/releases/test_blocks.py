"""Blocks of real releases of mamba-ssm agree with float64, with nothing compiled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import interpreters
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
VERSIONS = ("2.2.4", "2.3.2.post1")


def python(
    version: str,
    folder: Path,
    *arguments: str,
    modules: tuple[str, ...] = interpreters.TORCH,
    timeout: float = 300,
    **environment: str,
) -> str:
    """What an interpreter prints that has that release on its path, and nothing compiled."""
    done = interpreters.run(
        arguments,
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "PYTHONPATH": os.pathsep.join((str(release_path(version)), str(REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(interpreters.copies()),
            **environment,
        },
        cwd=folder,
        modules=modules,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(version: str, cache: Path, *checks: str, **environment: Any) -> dict[str, float]:
    """The error of each result of some checks in ``tests.releases.compare``."""
    printed = python(
        version,
        cache,
        "-c",
        f"import jetson_mamba, sys; sys.argv = ['', {str(list(checks))[1:-1]}]; "
        "from tests.releases import compare; compare.main()",
        **environment,
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert lines
    return {name: float(error) for name, error in lines}


@pytest.mark.parametrize("version", VERSIONS)
def test_mamba_ssm_cannot_be_imported_without_the_hook(version: str, tmp_path: Path) -> None:
    printed = python(
        version,
        tmp_path,
        "-c",
        "try: import mamba_ssm\nexcept ImportError as error: print(error)",
        JETSON_MAMBA="off",
    )
    assert "selective_scan_cuda" in printed or "GreedySearchDecoderOnlyOutput" in printed


@pytest.mark.parametrize("version", VERSIONS)
def test_blocks_agree_with_float64_forward_and_backward(version: str, tmp_path: Path) -> None:
    errors = compare(version, tmp_path, "mamba", "mamba2", "mamba_inner")
    assert {name.split()[0] for name in errors} == {"mamba", "mamba2", "mamba_inner"}
    assert {name: error for name, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_blocks_train_under_the_autocast_of_a_cpu(version: str, tmp_path: Path) -> None:
    errors = compare(version, tmp_path, "autocast")
    assert {name: error for name, error in errors.items() if not error <= 5e-2} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_pass_gradcheck(version: str, tmp_path: Path) -> None:
    errors = compare(version, tmp_path, "gradchecks")
    assert len(errors) == 4
    assert set(errors.values()) == {0.0}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_rewritten_mamba2_function_runs_on_upstreams_triton_kernels(
    version: str, tmp_path: Path
) -> None:
    checks = ("split_conv1d_scan", "split_conv1d_scan_without_gradients")
    errors = compare(version, tmp_path, *checks, TRITON_INTERPRET="1")
    assert {name: error for name, error in errors.items() if not error <= 1e-5} == {}


def test_the_op_of_mamba2_runs_on_upstreams_triton_kernels(tmp_path: Path) -> None:
    errors = compare(VERSIONS[-1], tmp_path, "ssd_on_triton", TRITON_INTERPRET="1")
    assert {name: error for name, error in errors.items() if not error <= 1e-5} == {}


def test_norms_are_those_of_upstreams_triton_kernels(tmp_path: Path) -> None:
    errors = compare(VERSIONS[-1], tmp_path, "norms_on_triton", TRITON_INTERPRET="1")
    assert {name: error for name, error in errors.items() if not error <= 1e-5} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_triton_reads_the_source_of_the_copy(version: str, tmp_path: Path) -> None:
    """Triton hashes a kernel's source, which ``inspect`` finds for it: it must be the copy's."""
    printed = python(
        version,
        tmp_path,
        "-c",
        "import jetson_mamba, inspect\n"
        "from mamba_ssm.ops.triton import ssd_combined as module\n"
        "kernel = module._chunk_scan_chunk_state_bwd_dx_kernel\n"
        "while not inspect.isfunction(kernel): kernel = kernel.fn\n"
        "print(inspect.getsourcefile(kernel) == module.__file__)\n"
        "print(inspect.getsource(kernel).strip().startswith('@triton.autotune'))\n",
    )
    assert printed.split() == ["True", "True"]
