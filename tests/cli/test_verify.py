"""The command `verify` holds real releases to float64 here. It fails where something is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from jetson_mamba.report import recurrences, verify
from tests.cli.command import jetson_mamba, kept, shadow
from tests.references.selective_scan import selective_scan_reference
from tests.references.ssd import ssd_mixer
from tools.releases import release_path


@pytest.fixture
def transformers(tmp_path: Path) -> Path:
    """What mamba_ssm imports of transformers, which takes seconds to import."""
    folder = shadow(tmp_path, "transformers", "")
    names = "TextStreamer = GenerateDecoderOnlyOutput = object\n"
    (folder / "transformers" / "generation.py").write_text(names)
    (folder / "transformers" / "utils").mkdir()
    (folder / "transformers" / "utils" / "__init__.py").write_text(
        "WEIGHTS_NAME, CONFIG_NAME = 'weights', 'config'\n"
    )
    (folder / "transformers" / "utils" / "hub.py").write_text("cached_file = None\n")
    return folder


def test_a_release_with_both_models_passes_in_every_row(tmp_path: Path, transformers: Path) -> None:
    path = (transformers, release_path("2.3.2.post1"))
    done = jetson_mamba(
        "verify", "--device", "cpu", "--json", folder=tmp_path, path=path, JETSON_MAMBA_CACHE=kept()
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] and found["device"] == "cpu"
    assert found["mamba_ssm"] == "2.3.2.post1"
    assert len(found["rows"]) == 4 * 3 * 3
    assert {row["function"] for row in found["rows"]} == {
        "selective_scan_fn",
        "mamba_inner_fn",
        "mamba_chunk_scan_combined",
        "mamba_split_conv1d_scan_combined",
    }
    for row in found["rows"]:
        # The numbers are measured: none is zero, and each dtype has its own size of error.
        assert 0 < row["forward"] <= row["tolerance"]
        assert 0 < row["backward"] <= row["tolerance"]
    states = {target["name"]: target["state"] for target in found["targets"]}
    assert states["mamba_ssm.ops.triton.ssd_combined"] == "modified"


def test_a_backend_that_is_wrong_fails_the_rows_that_use_it(
    tmp_path: Path, transformers: Path
) -> None:
    """A convolution that forgets its bias, in a release of Mamba-1."""
    (tmp_path / "sitecustomize.py").write_text(
        "import jetson_mamba.ops as ops\n"
        "right = ops.causal_conv1d_fn\n"
        "ops.causal_conv1d_fn = lambda x, weight, bias=None, **rest: right(x, weight, **rest)\n"
    )
    path = (tmp_path, transformers, release_path("1.2.0"))
    done = jetson_mamba(
        "verify", "--device", "cpu", folder=tmp_path, path=path, JETSON_MAMBA_CACHE=kept()
    )
    assert done.returncode == 1, done.stderr
    assert "9 of 18 rows fail." in done.stdout
    assert done.stdout.count("fail") == 9 + 1


@pytest.mark.parametrize(
    ("out", "passed"),
    [(1.0, True), (1.001, False), (math.nan, False), (RuntimeError("first\nsecond"), False)],
)
def test_a_row_passes_within_its_tolerance_only(
    out: Any, passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "import_module", lambda name: None)
    monkeypatch.setattr(verify, "DTYPES", (torch.float32,))

    def call(_: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(out, Exception):
            raise out
        doubles = {name: each.double() for name, each in given.items()}
        value: torch.Tensor = recurrences.selective_scan(**doubles) * out
        return value.float()

    function = verify.FUNCTIONS[0]._replace(call=call)
    for row in verify.rows(torch.device("cpu"), [function]):
        assert row.passed is passed
        if isinstance(out, Exception):
            assert row.failure == "RuntimeError: first"
        if isinstance(out, float) and math.isnan(out):
            assert row.forward is None


@pytest.mark.parametrize(
    ("message", "unsupported"),
    [
        ("\"addmm_impl_cpu_\" not implemented for 'Half'", True),
        ("\"softplus_cpu\" not implemented for 'BFloat16'", True),
        ("could not create a primitive descriptor for a matmul primitive", True),
        ("not implemented for 'Float'", False),
        ("out of order", False),
    ],
)
def test_what_torch_has_no_operation_for_is_not_supported(
    message: str, unsupported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch 2.0 has none in half precision on a CPU."""
    monkeypatch.setattr(verify, "import_module", lambda name: None)
    monkeypatch.setattr(verify, "DTYPES", (torch.float16,))

    def call(*_: Any) -> torch.Tensor:
        raise RuntimeError(message)

    function = verify.FUNCTIONS[0]._replace(call=call)
    rows = list(verify.rows(torch.device("cpu"), [function]))
    assert rows and all((row.passed, row.unsupported) == (False, unsupported) for row in rows)


def test_the_recurrences_are_those_of_the_tests() -> None:
    """Two texts of the same equations, written independently."""
    source = torch.Generator().manual_seed(1)

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64) * scale

    size = verify.Size(2, 32, 7)
    scan = verify.FUNCTIONS[0].arguments(size, drawn)
    _, gated, _, _ = selective_scan_reference(**scan, delta_softplus=True)
    torch.testing.assert_close(recurrences.selective_scan(**scan), gated)
    mixer = verify.FUNCTIONS[3].arguments(size, drawn)
    out, _ = ssd_mixer(**mixer, headdim=16, rmsnorm_eps=1e-5, norm_before_gate=False)  # type: ignore[arg-type]
    torch.testing.assert_close(recurrences.split_conv1d_scan(**mixer), out)


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = shadow(tmp_path, "torch", "class cuda:\n    is_available = staticmethod(bool)\n")
    done = jetson_mamba("verify", "--device", "cuda", folder=tmp_path, path=(path,))
    assert done.returncode == 2
    assert "--device cuda: torch sees no GPU" in done.stderr


def test_a_device_of_another_name_is_refused(tmp_path: Path) -> None:
    done = jetson_mamba("verify", "--device", "tpu", folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--device tpu: expected cpu or cuda" in line
