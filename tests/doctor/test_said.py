"""What the doctor says, in full, is what is written down."""

from __future__ import annotations

from jetson_mamba.report.findings import SYMPTOMS
from tests.doctor import said


def test_every_finding_says_what_is_written_down() -> None:
    """``python -m tests.doctor.said`` writes it anew."""
    assert said.everything() == said.SAID.read_text(encoding="utf-8")


def test_every_symptom_is_in_it() -> None:
    lines = set(said.SAID.read_text(encoding="utf-8").splitlines())
    # The others are of files in the folder of a program.
    assert set(SYMPTOMS) - {each.strip() for each in lines} <= {
        *("transformers-names", "transformers-torch", "name-moved"),
    }
