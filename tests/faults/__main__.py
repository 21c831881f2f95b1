"""Writes the table of faults, ``docs/faults.md``, from the tests that declare them."""

from tests.faults.declared import TABLE, table

TABLE.write_text(table(), encoding="utf-8")
print(TABLE)
