"""Released Tritons beside the latest mamba-ssm, where ``make tritons`` has put them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.without_triton.environment import Bare
from tests.without_triton.test_without import PLACEHOLDER, PROGRAM
from tools.releases import FOLDER

# What imports the first and the last of Triton's modules, and how many warnings there are.
EXPECTED = {
    "3.0.0": ["triton", PLACEHOLDER, "1"],
    "3.2.0": [PLACEHOLDER, PLACEHOLDER, "1"],
    "3.6.0": ["triton", "triton", "0"],
}


@pytest.mark.parametrize("is_early", [True, False], ids=["with torch", "after torch"])
@pytest.mark.parametrize("version", EXPECTED)
def test_mamba_2_trains_with_one_warning_at_most(
    version: str, is_early: bool, tmp_path: Path
) -> None:
    released = FOLDER / f"triton-{version}" / "triton"
    if not released.is_dir():
        pytest.skip("make tritons brings it")
    bare = Bare(tmp_path / "run")
    place = bare.site if is_early else bare.late
    place.mkdir(exist_ok=True)
    (place / "triton").symlink_to(released)
    names, *_ = bare.printed("-c", PROGRAM).splitlines()
    assert names.split() == EXPECTED[version]
