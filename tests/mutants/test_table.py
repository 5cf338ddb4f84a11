"""The table of protections is true: its texts are in the code, its tests exist."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.table import ROWS, Row

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row) -> None:
    """What a row takes away stands exactly once in its file, and it names tests that are there."""
    assert (ROOT / row.file).read_text().count(row.old) == 1
    assert row.old != row.new and row.tests
    for test in row.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test


def test_names_are_unique() -> None:
    """A row can be asked for by its name."""
    assert max(Counter(row.name for row in ROWS).values()) == 1
