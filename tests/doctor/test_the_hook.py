"""What the hook would do with each target of an installed mamba_ssm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.report import hook
from jetson_mamba.rewrite import Refused


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused("its text is not known"), "its text is not known"),
        (ImportError("no edits.py"), f"{hook.NOT_WHOLE} (no edits.py)"),
        (OSError("cannot be read"), f"{hook.NOT_WHOLE} (cannot be read)"),
    ],
)
def test_a_target_that_stays_upstreams_own_is_told_with_the_reason(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, loader: Any) -> Any:
        if name == TARGETS[0]:
            raise error

    monkeypatch.setattr(copies, "find", find)
    for name in TARGETS[:2]:
        path = tmp_path / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = hook.hook(str(tmp_path / "mamba_ssm"))
    assert found.refused == {TARGETS[0]: reason}
    of = {target.name: target for target in found.targets}
    assert list(of) == list(TARGETS)
    assert of[TARGETS[0]].reason == reason
    assert of[TARGETS[1]].reason == "it needs no change"
    assert of[TARGETS[2]].reason == "this mamba_ssm does not have it"
    assert {target.state for target in found.targets} == {"not imported"}


def test_without_a_mamba_ssm_there_are_no_targets() -> None:
    found = hook.hook(None)
    assert (found.targets, found.refused, found.taken_by) == ((), {}, None)
