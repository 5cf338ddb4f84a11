"""A program that writes to an SQLite database: ``python -m tests.programs.database FILE MODE WHO COUNT [hang]``.

Each row is a transaction of its own, printed as soon as it is committed. With `hang` one more is begun, which fills
SQLite's cache and so reaches the files; then it prints "open" and waits to be killed.
"""

from __future__ import annotations

import signal
import sqlite3
import sys
from pathlib import Path

PAGES = 10
"""SQLite's cache, pages: a large transaction has to write to the file before its commit."""
BUSY_S = 60.0


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open with a journal mode; the mode that SQLite says is in force must be that one."""
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    (found,) = database.execute(f"pragma journal_mode={mode}").fetchone()
    if found != mode:
        raise SystemExit(f"journal mode {found}")
    database.execute(f"pragma cache_size={PAGES}")
    database.execute("pragma synchronous=full")
    database.execute("create table if not exists row (who text, number integer, unique (who, number))")
    database.execute("create table if not exists noise (who text, number integer, data blob)")
    return database


def add(database: sqlite3.Connection, who: str, number: int, noise: int) -> None:
    """Begin a transaction that adds a row, and noise of so many kilobytes in place of the last."""
    database.execute("begin immediate")
    database.execute("insert into row values (?, ?)", (who, number))
    database.execute("delete from noise where who = ?", (who,))
    database.executemany("insert into noise values (?, ?, randomblob(1024))", [(who, number)] * noise)


def main(path: str, mode: str, who: str, count: str, hang: str = "") -> None:
    database = connect(Path(path), mode)
    for number in range(int(count)):
        add(database, who, number, noise=3 if number % 10 else 100)
        database.execute("commit")
        print(number, flush=True)
    if hang:
        add(database, who, int(count), noise=300)
        print("open", flush=True)
        signal.pause()
    database.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
