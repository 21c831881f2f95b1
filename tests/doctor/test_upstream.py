"""The faults of mamba-ssm's own texts that ``doctor`` lists."""

from __future__ import annotations

import shutil
from pathlib import Path

from jetson_mamba.report import upstream
from tools.releases import release_path

LATEST = release_path("2.3.2.post1") / "mamba_ssm"


def names(package: Path) -> list[str]:
    return [each.name for each in upstream.faults(str(package))]


def test_the_latest_release_has_each_and_earlier_ones_what_they_had() -> None:
    every = ["projection-bias", "d-has-hdim", "cuda-graph", "attention-convolution"]
    every += [f"mamba3-{each}" for each in ("decoding", "groups", "dtype", "blackwell")]
    every.append("mamba3-packed-states")
    assert names(LATEST) == every == [each.fault.name for each in upstream.KNOWN]
    earlier = ["projection-bias", "d-has-hdim", "cuda-graph", "attention-convolution"]
    assert names(release_path("2.2.4") / "mamba_ssm") == earlier
    assert names(release_path("1.0.1") / "mamba_ssm") == ["projection-bias", "cuda-graph"]


def test_a_text_that_has_mended_one_does_not_show_it(tmp_path: Path) -> None:
    package = tmp_path / "mamba_ssm"
    shutil.copytree(LATEST, package)
    for known in upstream.KNOWN:
        path = package.joinpath(*known.fault.module.split(".")[1:]).with_suffix(".py")
        before = path.read_text()
        path.write_text("# early_config_prune self.fuse_pregate_headwise_norm\n")
        assert known.fault.name not in names(package)
        path.write_text(before)


def test_each_says_what_to_do_in_a_line() -> None:
    for known in upstream.KNOWN:
        for text in (known.fault.what, known.fault.seen, known.fault.instead):
            assert text and "\n" not in text


def test_a_folder_without_files_has_none(tmp_path: Path) -> None:
    assert names(tmp_path) == []
