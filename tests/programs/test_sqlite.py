"""SQLite on the mount, with a rollback journal and with WAL: two processes, a kill in the middle, another host."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount.hosts import Host
from tests.programs import database
from tests.programs.support import PROGRAM_S, environment, move

MODES = ("delete", "truncate", "persist", "wal")
ROWS = 15
"""Of each writer, each a transaction."""


@contextmanager
def writer(path: Path, mode: str, who: str, count: int, *hang: str) -> Iterator[subprocess.Popen[str]]:
    """It runs; when that is over, it has ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.programs.database", path, mode, who, str(count), *hang],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def rows(path: Path, mode: str) -> dict[str, int]:
    """How many rows of each writer there are, in order and without a gap; SQLite finds the file whole."""
    connection = database.connect(path, mode)
    try:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        found: dict[str, list[int]] = {}
        for who, number in connection.execute("select who, number from row order by who, number"):
            found.setdefault(who, []).append(number)
    finally:
        connection.close()
    assert all(numbers == list(range(len(numbers))) for numbers in found.values()), found
    return {who: len(numbers) for who, numbers in found.items()}


@pytest.mark.parametrize("mode", MODES)
def test_sqlite(host: Host, mode: str) -> None:
    """Two processes write; a third is killed in a transaction that has reached the files. Another host, which gets them
    with the hot journal, finds all that was committed and nothing else.
    """
    path = host.path / "site.db"
    rows(path, mode)
    with writer(path, mode, "one", ROWS) as one, writer(path, mode, "two", ROWS) as two:
        for each in (one, two):
            said, _ = each.communicate(timeout=PROGRAM_S)
            assert (each.returncode, said.count("\n")) == (0, ROWS)
    assert rows(path, mode) == {"one": ROWS, "two": ROWS}
    with writer(path, mode, "killed", ROWS, "hang") as killed:
        assert killed.stdout is not None
        assert [killed.stdout.readline() for _ in range(ROWS + 1)][-1] == "open\n"
        killed.kill()
    assert path.with_name("site.db-wal" if mode == "wal" else "site.db-journal").stat().st_size > 0
    move(host)
    assert rows(path, mode) == {"one": ROWS, "two": ROWS, "killed": ROWS}
    with writer(path, mode, "later", ROWS) as later:
        later.communicate(timeout=PROGRAM_S)
        assert later.returncode == 0
    move(host)
    assert rows(path, mode)["later"] == ROWS
