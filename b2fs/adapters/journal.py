"""The journal: one SQLite database per mount (tables: `schema`), the local truth. Only this and `journal_check` import sqlite3.

Rules
  Every change is one transaction (`Journal.commit`). It survives SIGKILL when `commit` returned (the
  write-ahead log is in the page cache), and power loss when `sync` returned after it.
  The connection belongs to the event loop's thread; commits are short (they write to the page cache and
  never wait for the disk). What takes long or waits for the disk (`load_directory`, `checkpoint`, `sync`) uses
  a second connection or none, and is called from other threads.
  Nothing here decides: rows in, rows out.

The version of the schema is in ``meta``; a journal of another version is refused, not guessed at.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from msgspec.structs import astuple

from b2fs.adapters import schema
from b2fs.core import names
from b2fs.core.change import KEPT_S, Blob, Change, Damage, Intent, ObjectRow
from b2fs.core.inode import Inode
from b2fs.errors import NoSpace, ReadOnly, StateError

_INODE = (
    "ino, mode, uid, gid, nlink, size, mtime_ns, ctime_ns, atime_ns, rdev, target, file_id, sha1, staged, scratch, "
    "synced, xattrs, link, complete"
)
"""The fields of `Inode`, in their order."""
_INODE_I = ", ".join(f"i.{column.strip()}" for column in _INODE.split(","))
_DIRECTORY = f"SELECT d.name, {_INODE_I} FROM dentry d JOIN inode i USING (ino) WHERE d.parent = ?"
_ROW = "(" + ", ".join("?" * 19) + ")"
_PAGE_SIZE = 2048
"""Each commit writes the pages that it touched, whole: a create touches seven, most of them for one row of a hundred bytes.
But in a page of 1024 bytes no key with its row may have more than 230, and with B2's file ids most objects have a few more:
each got a second page, and the journal of a bucket was two and a half times as large.
"""
_FULL = 1024 * 1024
"""Fewer free bytes than this explain an I/O error."""
_PATIENCE_MS = 30_000
"""How long a connection waits for another one's lock."""
_FEW = 256
"""Modes, users and groups that the rows in memory share: SQLite gives each row numbers of its own, of 32 bytes, and times
of 48, which are mostly equal.
"""
_ID_BLOCK = 4096
"""Numbers that the counter takes from the database at once; a crash skips what is left of them."""


@lru_cache(_FEW)
def _shared(number: int) -> int:
    return number


def _inode(row: Sequence[Any]) -> Inode:
    (
        ino, mode, uid, gid, nlink, size, mtime_ns, ctime_ns, atime_ns, rdev, target, file_id, sha1, staged, scratch,
        synced, xattrs, link, complete,
    ) = row  # fmt: skip
    return Inode(
        ino, _shared(mode), _shared(uid), _shared(gid), nlink, size, mtime_ns,
        mtime_ns if ctime_ns == mtime_ns else ctime_ns, mtime_ns if atime_ns == mtime_ns else atime_ns,
        rdev, target, file_id, sha1, staged, scratch, synced, xattrs, link,
        complete != 0,  # SQLite has no booleans
    )  # fmt: skip


def every_inode(db: sqlite3.Connection) -> Iterator[Inode]:
    """The whole namespace, on any connection to a journal of this version."""
    for row in db.execute(f"SELECT {_INODE} FROM inode"):
        yield _inode(row)


def _starting(prefix: str) -> tuple[str, str | bytes]:
    """The half-open range of all texts that start with `prefix`; to SQLite every blob is greater than any text."""
    return prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else b""


class Journal:
    """The open journal of one state directory. One process at a time (the caller holds the lock)."""

    def __init__(self, path: str, *, existing: bool = False) -> None:
        """Open, or create unless `existing`. StateError: not a journal, or of another version."""
        self.path = path
        try:
            make = 0 if existing else os.O_CREAT
            os.close(os.open(path, os.O_RDWR | make | os.O_CLOEXEC, 0o600))  # the log gets the same mode
            self._db = self._connect()
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                if existing:
                    self._db.close()
                    raise StateError(f"{path} is not a b2fs journal (it is empty)")
                version = f"INSERT INTO meta VALUES ('schema', '{schema.VERSION}');"
                self._db.executescript(f"BEGIN; {schema.WHOLE} {version} COMMIT;")
            self._migrate()
            self._reader = self._connect()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
                raise StateError(f"{path} is not a b2fs journal ({error})") from error
            with self._errors():
                raise
        except OSError as error:
            raise StateError(f"cannot open {path}: {error.strerror}") from error
        if self.meta("schema") != str(schema.VERSION):
            raise StateError(
                f"{path} has schema {self.meta('schema')}, this b2fs reads {schema.VERSION}: use the b2fs that wrote it"
            )
        self._reading = threading.Lock()
        self._moved = -1
        """`total_changes` of the connection that commits, when the last checkpoint had ended."""
        self._wal = os.open(path + "-wal", os.O_RDONLY)
        self._next = self._end = int(self.meta("counter") or "2")

    def _migrate(self) -> None:
        while (steps := schema.MIGRATIONS.get(int(self.meta("schema") or 0))) is not None:
            following = int(self.meta("schema")) + 1
            update = f"UPDATE meta SET value = '{following}' WHERE name = 'schema';"
            self._db.executescript(f"BEGIN; {steps} {update} COMMIT;")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, isolation_level=None, check_same_thread=False, cached_statements=256, timeout=_PATIENCE_MS / 1000
        )
        db.execute(f"PRAGMA page_size = {_PAGE_SIZE}")  # of a new journal; one that there is keeps its own
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # `sync` does what FULL would do on every commit
        db.execute("PRAGMA wal_autocheckpoint = 0")  # checkpoints wait for the disk: see `checkpoint`
        db.execute("PRAGMA temp_store = MEMORY")
        return db

    def close(self) -> None:
        """Checkpoint and close; blocks for the disk. A second call does nothing."""
        if self._wal < 0:
            return
        os.close(self._wal)
        self._wal = -1
        self._reader.close()
        with suppress(sqlite3.DatabaseError):  # a full disk: then the log stays, and the next start reads it
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db.close()

    # ------------------------------------------------------------ durability

    def commit(self, change: Change) -> None:
        """Write the change in one transaction. NoSpace or ReadOnly (nothing was written then)."""
        db = self._db
        with self._errors():
            db.execute("BEGIN IMMEDIATE")
            try:
                self._write(db, change)
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite ends it itself after some errors
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours. A full disk shows as SQLITE_FULL, or as an I/O error of the shared memory."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            is_full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
            is_io = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_IOERR
            space = os.statvfs(os.path.dirname(self.path))
            if is_full or (is_io and space.f_bavail * space.f_frsize < _FULL):
                raise NoSpace("the disk of the state directory is full") from error
            raise ReadOnly(f"the journal cannot be written: {error}") from error

    def _write(self, db: sqlite3.Connection, change: Change) -> None:
        db.executemany(
            f"INSERT OR REPLACE INTO inode ({_INODE}) VALUES {_ROW}", [astuple(inode) for inode in change.inodes]
        )
        for ino in change.gone:
            db.execute("DELETE FROM inode WHERE ino = ?", (ino,))
        for parent, name in change.unlinks:
            db.execute("DELETE FROM dentry WHERE parent = ? AND name = ?", (parent, name))
        db.executemany("INSERT OR REPLACE INTO dentry VALUES (?, ?, ?)", change.links)
        for intent in change.intents:
            db.execute(
                "INSERT INTO intent VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET generation = excluded.generation",
                (intent.key, intent.generation, intent.since_ns),
            )
        for settled in change.settled:
            db.execute("DELETE FROM intent WHERE key = ? AND generation = ?", settled)
        db.executemany(
            "INSERT OR REPLACE INTO object VALUES (?, ?, ?, ?, ?, ?, ?)", [astuple(row) for row in change.objects]
        )
        for key in change.lost_objects:
            db.execute("DELETE FROM object WHERE key = ?", (key,))
        db.executemany("DELETE FROM blob WHERE name = ?", [(lost,) for lost in change.lost_blobs])
        db.executemany(
            "INSERT INTO blob VALUES (?, ?, ?) "  # REPLACE would not tell the triggers what it replaced
            "ON CONFLICT (name) DO UPDATE SET size = excluded.size, used_s = excluded.used_s",
            [(blob.name, blob.size, blob.used_s) for blob in change.blobs],
        )
        for damage in change.damaged:
            db.execute("INSERT INTO damaged VALUES (?, ?, ?, ?)", (damage.key, damage.file, damage.why, damage.at_ns))

    def sync(self) -> None:
        """Put all commits on stable storage. Waits for the disk; any thread.

        ReadOnly: the disk failed. What of the last commits is on it nobody knows, and a second try would not tell.
        """
        try:
            os.fdatasync(self._wal)
        except OSError as error:
            raise ReadOnly(f"the journal's log cannot be put on stable storage: {error}") from error

    def checkpoint(self) -> None:
        """Move the log into the database, as far as nobody reads it. Waits for the disk; any thread.

        While somebody always writes, the log grows on all the same: see `empty_log`. Does nothing if nothing was written
        since the last one: SQLite before 3.51.3 could lose commits when one that finds the log moved already meets the
        commit that begins it anew (sqlite.org/wal.html, "The WAL-reset bug").

        NoSpace, ReadOnly: the log stays, nothing is lost.
        """
        with self._reading, self._errors():
            if self._db.total_changes == self._moved:
                return
            self._reader.execute("PRAGMA wal_checkpoint(PASSIVE)")
            self._moved = self._db.total_changes

    def empty_log(self) -> None:
        """Cut the log to nothing, right after a checkpoint: then a few rows are left to move. The thread that commits,
        so that the log is never cut under a commit; it waits for the disk once, and for nobody: if somebody reads just
        now, the log is emptied another time.

        NoSpace, ReadOnly: the log stays, nothing is lost.
        """
        with self._errors():
            self._db.execute("PRAGMA busy_timeout = 0")
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")

    def log_size(self) -> int:
        return os.fstat(self._wal).st_size

    # ------------------------------------------------------------ numbers and identity

    def next_number(self) -> int:
        """The next of a series that never repeats and only grows: inode numbers and generations."""
        if self._next >= self._end:
            end = self._next + _ID_BLOCK
            self.set_meta("counter", str(end))
            self._end = end
        self._next += 1
        return self._next - 1

    def meta(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else ""

    def set_meta(self, name: str, value: str) -> None:
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    # ------------------------------------------------------------ reading: namespace

    def inode(self, ino: int) -> Inode | None:
        row = self._db.execute(f"SELECT {_INODE} FROM inode WHERE ino = ?", (ino,)).fetchone()
        return _inode(row) if row else None

    def entry(self, parent: int, name: bytes) -> Inode | None:
        """The inode that a name of a directory leads to."""
        query = f"SELECT {_INODE_I} FROM dentry d JOIN inode i USING (ino) WHERE d.parent = ? AND d.name = ?"
        row = self._db.execute(query, (parent, name)).fetchone()
        return _inode(row) if row else None

    def path_of(self, ino: int) -> str:
        """The path of a directory."""
        parts: list[str] = []
        while row := self._db.execute("SELECT parent, name FROM dentry WHERE ino = ?", (ino,)).fetchone():
            ino = row[0]
            parts.append(row[1].decode())
        return "/".join(reversed(parts))

    def names_of(self, ino: int) -> list[tuple[int, bytes]]:
        """(parent, name) of every name of an inode."""
        return list(self._db.execute("SELECT parent, name FROM dentry WHERE ino = ?", (ino,)))

    def keys_of(self, ino: int) -> list[str]:
        """The keys of all names of a file."""
        return [names.join(self.path_of(parent), name.decode()) for parent, name in self.names_of(ino)]

    def linked(self, link: str) -> list[Inode]:
        """The files with this link id."""
        query = f"SELECT {_INODE} FROM inode WHERE link = ? AND link <> ''"
        return [_inode(row) for row in self._db.execute(query, (link,))]

    def path_inode(self, path: str) -> Inode | None:
        """The inode that a path leads to."""
        inode = self.inode(1)
        for part in path.split("/"):
            inode = self.entry(inode.ino, part.encode()) if inode is not None else None
        return inode

    def has_more(self, ino: int, count: int) -> bool:
        """Whether a directory has more than so many entries."""
        query = "SELECT 1 FROM dentry WHERE parent = ? LIMIT 1 OFFSET ?"
        return self._db.execute(query, (ino, count)).fetchone() is not None

    def load_small_directory(self, ino: int, most: int) -> list[tuple[bytes, Inode]] | None:
        """All entries of a directory, None if it has more than `most`."""
        rows = self._db.execute(f"{_DIRECTORY} LIMIT ?", (ino, most + 1)).fetchall()
        return [(row[0], _inode(row[1:])) for row in rows] if len(rows) <= most else None

    def load_directory(self, ino: int) -> list[tuple[bytes, Inode]]:
        """All entries of a directory. Any thread; the directory must not change meanwhile."""
        with self._reading:
            return [(row[0], _inode(row[1:])) for row in self._reader.execute(_DIRECTORY, (ino,))]

    def following(self, parent: int, name: bytes, limit: int, backwards: bool = False) -> list[bytes]:
        """The names behind a name (that need not be there) in a directory, or before it, the nearest first."""
        order = "< ? ORDER BY name DESC" if backwards else "> ? ORDER BY name"
        query = f"SELECT name FROM dentry WHERE parent = ? AND name {order} LIMIT ?"
        return [row[0] for row in self._db.execute(query, (parent, name, limit))]

    def dirty_inodes(self) -> list[Inode]:
        """Files whose content is not in B2."""
        return [_inode(row) for row in self._db.execute(f"SELECT {_INODE} FROM inode WHERE scratch OR staged")]

    def unsealed_in(self, directory: int) -> list[int]:
        """Files with a name in a directory whose content has no SHA-1 yet. Looks at what is not in B2, whatever else the
        directory has.
        """
        query = """
            SELECT i.ino FROM inode i INDEXED BY inode_dirty CROSS JOIN dentry d ON d.ino = i.ino
            WHERE (i.scratch OR i.staged) AND (i.scratch OR i.sha1 = '') AND d.parent = ?"""
        return [row[0] for row in self._db.execute(query, (directory,))]

    def has_unsealed(self) -> bool:
        """Whether some file's content has no SHA-1 yet: then it need not be on stable storage."""
        query = "SELECT 1 FROM inode WHERE (scratch OR staged) AND (scratch OR sha1 = '') LIMIT 1"
        return self._db.execute(query).fetchone() is not None

    def object_of(self, file_id: str) -> ObjectRow | None:
        """What the bucket has as the version `file_id`. Reads the whole table: for repairs."""
        row = self._db.execute("SELECT * FROM object WHERE file_id = ?", (file_id,)).fetchone()
        return ObjectRow(*row) if row else None

    def lives_in(self, file_id: str) -> Inode | None:
        """A file whose clean content is this version."""
        end = "substr(file_id, -14) = substr(?, -14)"  # as the index has it; a plain file_id = ? would be put into it
        query = f"SELECT {_INODE} FROM inode WHERE {end} AND +file_id = ? AND file_id <> '' LIMIT 1"
        row = self._db.execute(query, (file_id, file_id)).fetchone()
        return _inode(row) if row else None

    def subtree(self, ino: int) -> list[tuple[str, bool]]:
        """All names below a directory as (path relative to it, whether it is a directory). Any thread."""
        query = """
            WITH RECURSIVE below (ino, path) AS (
                SELECT ino, CAST(name AS TEXT) FROM dentry WHERE parent = ?
                UNION ALL
                SELECT d.ino, below.path || '/' || CAST(d.name AS TEXT) FROM dentry d JOIN below ON d.parent = below.ino
            )
            SELECT path, (mode & 61440) = 16384 FROM below JOIN inode USING (ino)"""  # S_IFMT, S_IFDIR
        with self._reading:
            return [(path, bool(is_dir)) for path, is_dir in self._reader.execute(query, (ino,))]

    def longest_below(self, ino: int, size: int) -> list[tuple[str, Inode]]:
        """Names below a directory (path relative to it) that need more than `size` bytes of a header: thrice the path, for
        percent-encoding, and the extended attributes. Any thread.
        """
        query = f"""
            WITH RECURSIVE below (ino, path) AS (
                SELECT ino, CAST(name AS TEXT) FROM dentry WHERE parent = ?
                UNION ALL
                SELECT d.ino, below.path || '/' || CAST(d.name AS TEXT) FROM dentry d JOIN below ON d.parent = below.ino
            )
            SELECT below.path, {_INODE_I} FROM below JOIN inode i USING (ino)
            WHERE 3 * length(CAST(below.path AS BLOB)) + length(i.xattrs) > ?"""
        with self._reading:
            return [(row[0], _inode(row[1:])) for row in self._reader.execute(query, (ino, size))]

    def complete_some(self, before: int, limit: int) -> list[int]:
        """The listings of at most so many directories, of those numbered below `before`, are known from now on; which ones
        that were. Empty: there are no others.
        """
        incomplete = "(mode & 61440) = 16384 AND NOT complete"  # as the index has it
        query = f"SELECT ino FROM inode WHERE {incomplete} AND ino < ? ORDER BY ino LIMIT ?"
        found = [row[0] for row in self._db.execute(query, (before, limit))]
        if found:
            with self._errors():
                self._db.execute(
                    f"UPDATE inode SET complete = 1 WHERE {incomplete} AND ino BETWEEN ? AND ?", (found[0], found[-1])
                )
        return found

    # ------------------------------------------------------------ reading: bucket and work

    def object(self, key: str) -> ObjectRow | None:
        row = self._db.execute("SELECT * FROM object WHERE key = ?", (key,)).fetchone()
        return ObjectRow(*row) if row else None

    def objects(self, prefix: str, start: str, end: str | None) -> dict[str, ObjectRow]:
        """Rows with start <= key < end (None: no end) below `prefix`. Any thread."""
        low, high = _starting(prefix)
        query = "SELECT * FROM object WHERE key >= ? AND key < ? ORDER BY key"
        bounds = (max(low, start), end if end is not None and (isinstance(high, bytes) or end < high) else high)
        with self._reading:
            return {row[0]: ObjectRow(*row) for row in self._reader.execute(query, bounds)}

    def keys_between(self, first: str, last: str) -> set[str]:
        """The keys of the rows, tombstones too, with first <= key <= last."""
        return {row[0] for row in self._db.execute("SELECT key FROM object WHERE key BETWEEN ? AND ?", (first, last))}

    def objects_after(self, key: str, limit: int) -> list[ObjectRow]:
        """Rows behind a key, in the order of keys, at most so many. Any thread."""
        query = "SELECT * FROM object WHERE key > ? ORDER BY key LIMIT ?"
        with self._reading:
            return [ObjectRow(*row) for row in self._reader.execute(query, (key, limit))]

    def knows_below(self, prefix: str) -> bool:
        """Whether any row, tombstones too, has a key that starts with `prefix`. Any thread."""
        query = "SELECT 1 FROM object WHERE key >= ? AND key < ? LIMIT 1"
        with self._reading:
            return self._reader.execute(query, _starting(prefix)).fetchone() is not None

    def forget_tombstones(self, before_ms: int) -> None:
        """Drop tombstones that no listing can contradict any more."""
        with self._errors():
            self._db.execute("DELETE FROM object WHERE file_id = '' AND uploaded_ms < ?", (before_ms,))

    def intents(self) -> list[Intent]:
        return [Intent(*row) for row in self._db.execute("SELECT key, generation, since_ns FROM intent")]

    def damaged(self) -> list[Damage]:
        """Content that was set aside, the oldest first."""
        return [Damage(*row) for row in self._db.execute("SELECT key, file, why, at_ns FROM damaged ORDER BY rowid")]

    def forget_damage(self, damage: Damage) -> None:
        with self._errors():
            self._db.execute("DELETE FROM damaged WHERE key = ? AND at_ns = ?", (damage.key, damage.at_ns))

    def set_ignored(self, key: str, why: str) -> None:
        with self._errors():
            self._db.execute("INSERT OR REPLACE INTO ignored VALUES (?, ?)", (key, why))

    def keep_ignored(self, keys: Collection[str]) -> None:
        """Only these are still there."""
        with self._errors():
            for key in [key for key, _ in self.ignored(-1) if key not in keys]:
                self._db.execute("DELETE FROM ignored WHERE key = ?", (key,))

    def ignored(self, limit: int = 100) -> Iterator[tuple[str, str]]:
        yield from self._db.execute("SELECT key, why FROM ignored LIMIT ?", (limit,))

    # ------------------------------------------------------------ reading: cache

    def blob_totals(self) -> tuple[int, int]:
        """(bytes, number) of the blobs in the cache."""
        row = self._db.execute("SELECT size, count FROM cached").fetchone()
        return row[0], row[1]

    def coldest_blobs(self, limit: int, after: tuple[int, int, str]) -> list[Blob]:
        """Blobs by the time of their last use, as the index has them: those behind (used_s, size, name) `after`; not what is
        pinned.
        """
        query = (
            "SELECT name, size, used_s FROM blob WHERE (used_s, size, name) > (?, ?, ?) AND used_s < ? "
            "ORDER BY used_s, size, name LIMIT ?"
        )
        return [Blob(*row) for row in self._db.execute(query, (*after, KEPT_S, limit))]

    def kept_blobs(self, after: tuple[int, str], limit: int) -> list[Blob]:
        """What is called pinned, those behind (size, name) `after`. Any thread."""
        query = (
            "SELECT name, size, used_s FROM blob WHERE used_s = ? AND (size, name) > (?, ?) ORDER BY size, name LIMIT ?"
        )
        with self._reading:
            return [Blob(*row) for row in self._reader.execute(query, (KEPT_S, *after, limit))]

    def unknown_blobs(self, found: Collection[str]) -> list[str]:
        """Which of these names are no blob's. Any thread: one statement, for each row of one takes the interpreter from the
        loop and back.
        """
        query = "SELECT value FROM json_each(?) WHERE NOT EXISTS (SELECT 1 FROM blob WHERE name = value)"
        with self._reading:
            return [row[0] for row in self._reader.execute(query, (json.dumps(list(found)),))]

    def blob(self, name: str) -> Blob | None:
        row = self._db.execute("SELECT name, size, used_s FROM blob WHERE name = ?", (name,)).fetchone()
        return Blob(*row) if row else None

    def blobs_of(self, file_id: str) -> list[Blob]:
        """The blobs that hold (parts of) a version."""
        low, high = _starting(file_id + ".")
        query = "SELECT name, size, used_s FROM blob WHERE name = ? OR (name >= ? AND name < ?)"
        return [Blob(*row) for row in self._db.execute(query, (file_id, low, high))]
