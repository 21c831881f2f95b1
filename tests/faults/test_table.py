"""The table of faults in the documentation is the one that the tests declare."""

from __future__ import annotations

from tests.faults.declared import SECTIONS, TABLE, table


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    text = table()
    assert TABLE.read_text(encoding="utf-8") == text, "python -m tests.faults writes it again"
    assert all(
        text.count(f"## {heading}\n\n| What goes wrong") == 1 for heading in SECTIONS.values()
    )
