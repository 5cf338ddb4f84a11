"""Reading a whole journal that no daemon has open, without changing it.

Rules
  The caller holds the lock of the state directory, so nobody writes meanwhile.
  Nothing is written: no schema, no checkpoint, no log; what SQLite makes for itself to read the log goes again.
  What is wrong with the database is an answer (`Rows.corruption`), not an error.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote

from b2fs.adapters import schema
from b2fs.adapters.journal import every_inode
from b2fs.core.change import Intent, ObjectRow
from b2fs.core.invariants import Rows
from b2fs.errors import StateError


def read_all(path: str) -> Rows:
    """Every row, after SQLite's own check. StateError: not a journal, or of another version."""
    rows = Rows()
    with _opened(path) as db:
        try:
            rows.meta = dict(db.execute("SELECT name, value FROM meta"))
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CORRUPT:
                rows.corruption = [str(error)]
                return rows
            raise StateError(f"{path} is not a b2fs journal ({error})") from error
        if rows.meta.get("schema") != str(schema.VERSION):
            raise StateError(
                f"{path} has schema {rows.meta.get('schema')}, this b2fs checks {schema.VERSION}: "
                "use the b2fs that wrote it, or mount it once with this one"
            )
        try:
            rows.corruption = [line for (line,) in db.execute("PRAGMA integrity_check") if line != "ok"]
            _read(db, rows)
        except (sqlite3.DatabaseError, TypeError, ValueError) as error:
            rows.corruption.append(f"it cannot be read: {error}")
    return rows


def _read(db: sqlite3.Connection, rows: Rows) -> None:
    rows.inodes = {inode.ino: inode for inode in every_inode(db)}
    rows.dentries = list(db.execute("SELECT parent, name, ino FROM dentry ORDER BY parent, name"))
    rows.objects = {row[0]: ObjectRow(*row) for row in db.execute("SELECT * FROM object ORDER BY key")}
    rows.intents = {row[0]: Intent(*row) for row in db.execute("SELECT key, generation, since_ns FROM intent")}
    rows.blobs = dict(db.execute("SELECT name, size FROM blob"))
    rows.ignored = dict(db.execute("SELECT key, why FROM ignored"))
    rows.damaged = list(db.execute("SELECT key, file, why FROM damaged ORDER BY rowid"))


@contextmanager
def _opened(path: str) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write. A log that a crash left is read where it is, and stays."""
    log, index = path + "-wal", path + "-shm"
    has_log = os.path.exists(log) and os.path.getsize(log) > 0
    had_index = os.path.exists(index)
    uri = f"file:{quote(os.path.abspath(path))}?" + ("mode=ro" if has_log else "immutable=1")
    try:
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
            yield db
    except sqlite3.OperationalError as error:
        raise StateError(f"cannot open {path}: {error}") from error
    finally:
        if not had_index:
            with suppress(FileNotFoundError):
                os.unlink(index)
