"""The state of the embedded bucket: buckets, versions, parts, keys. One SQLite database and the bodies.

Rules
  Knows no HTTP. Refusals that depend on state (no such file, already hidden) are raised here, as B2 words
  them. Every method is synchronous and short; bodies are written elsewhere and handed in when complete.
  Names are stored as UTF-8 bytes, because B2 orders names by their bytes.
  Durability: a change survives SIGKILL of the server when its method returned (WAL, synchronous=NORMAL). After a
  power cut the newest changes may be missing, but the database is whole.

Units: ``*_ms`` milliseconds since the epoch on the server's clock; sizes in bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from b2fs.devbucket import rules
from b2fs.devbucket.bodies import Bodies
from b2fs.devbucket.clock import Clock
from b2fs.devbucket.rules import Refused
from b2fs.errors import StateError

SCHEMA_VERSION = 1

_SCHEMA = """
-- One row each: schema, account_id.
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- `number` is the bucket's short name inside this database; `id` is what clients see.
-- `settings` is a JSON object: everything of a bucket that this server only keeps and gives back.
CREATE TABLE bucket (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, name TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL, revision INTEGER NOT NULL, settings TEXT NOT NULL);

-- Every version of every name. The primary key is B2's order: names by bytes, newest version first.
-- `action`: 'upload' (has a body), 'hide' (a marker), 'start' (a large file that is not finished).
-- `sha1`: 40 hex digits, 'none' (large file), 'unverified:' + digits, or '' (no body).
-- `committed_ms`: when it became visible; an upload's `uploaded_ms` is when it began.
-- `gone_ms`: when it was deleted, kept only while listings are told to be stale; NULL for a live version.
CREATE TABLE version (
    bucket INTEGER NOT NULL REFERENCES bucket, name BLOB NOT NULL, uploaded_ms INTEGER NOT NULL,
    file_id TEXT NOT NULL, action TEXT NOT NULL, size INTEGER NOT NULL, sha1 TEXT NOT NULL,
    content_type TEXT NOT NULL, info TEXT NOT NULL, committed_ms INTEGER NOT NULL, gone_ms INTEGER,
    PRIMARY KEY (bucket, name, uploaded_ms DESC, file_id DESC)) WITHOUT ROWID;
CREATE UNIQUE INDEX version_by_file_id ON version (file_id);

-- The parts of unfinished large files; `body` names the part's bytes.
CREATE TABLE part (
    file_id TEXT NOT NULL, number INTEGER NOT NULL, size INTEGER NOT NULL, sha1 TEXT NOT NULL,
    uploaded_ms INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (file_id, number)) WITHOUT ROWID;

-- Application keys made by b2_create_key; only a digest of the secret is kept. `grants` is a JSON object.
CREATE TABLE key (id TEXT PRIMARY KEY, digest TEXT NOT NULL, grants TEXT NOT NULL) WITHOUT ROWID;
"""

_COLUMNS = "b.id, v.name, v.uploaded_ms, v.file_id, v.action, v.size, v.sha1, v.content_type, v.info"
_FROM = f"SELECT {_COLUMNS} FROM version v JOIN bucket b ON b.number = v.bucket WHERE "


class Version(msgspec.Struct, frozen=True):
    bucket_id: str
    name: str
    uploaded_ms: int
    file_id: str
    action: str
    size: int
    sha1: str
    content_type: str
    info: dict[str, str]


class BucketRow(msgspec.Struct, frozen=True):
    number: int
    id: str
    name: str
    type: str
    revision: int
    settings: dict[str, Any]


class Part(msgspec.Struct, frozen=True):
    file_id: str
    number: int
    size: int
    sha1: str
    uploaded_ms: int
    body: str


class Store:
    """Opens or creates the state below `root` (made 0700). `StateError` when another server has it."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.clock = clock
        self.keep_gone = False
        """Whether deleted versions stay in the table for stale listings."""
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(root, 0o700)
        self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StateError(f"another devbucket is using {root}: stop it, or give another --root") from None
        self.bodies = Bodies(root)
        self._db = sqlite3.connect(root / "meta.db", isolation_level=None, cached_statements=256)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name='setting'").fetchone():
            self._create()
        settings = dict(self._db.execute("SELECT name, value FROM setting"))
        if settings["schema"] != str(SCHEMA_VERSION):
            raise StateError(f"{root} was made by another version of devbucket; use an empty --root")
        self.account_id: str = settings["account_id"]
        self._db.execute("DELETE FROM version WHERE gone_ms IS NOT NULL")
        self._buckets = {
            bucket_id: BucketRow(number, bucket_id, name, kind, revision, json.loads(settings))
            for number, bucket_id, name, kind, revision, settings in self._db.execute(
                "SELECT number, id, name, type, revision, settings FROM bucket"
            )
        }
        self.bodies.recover(self._wants_body)

    def close(self) -> None:
        """Give the root free for another server. May be called twice."""
        self._db.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # ------------------------------------------------------------ buckets

    def buckets(self) -> list[BucketRow]:
        return sorted(self._buckets.values(), key=lambda bucket: bucket.name)

    def bucket(self, bucket_id: str) -> BucketRow:
        try:
            return self._buckets[bucket_id]
        except KeyError:
            raise Refused(400, "bad_bucket_id", f"Bucket {bucket_id[:80]} does not exist") from None

    def bucket_by_name(self, name: str) -> BucketRow | None:
        """Bucket names are unique without regard to case."""
        lower = name.lower()
        return next((b for b in self._buckets.values() if b.name.lower() == lower), None)

    def create_bucket(self, name: str, kind: str, settings: dict[str, Any]) -> BucketRow:
        if self.bucket_by_name(name):
            raise Refused(400, "duplicate_bucket_name", "Bucket name is already in use.")
        bucket_id = secrets.token_hex(12)
        number = self._db.execute(
            "INSERT INTO bucket (id, name, type, revision, settings) VALUES (?, ?, ?, 1, ?)",
            (bucket_id, name, kind, json.dumps(settings)),
        ).lastrowid
        assert number is not None
        self._buckets[bucket_id] = bucket = BucketRow(number, bucket_id, name, kind, 1, settings)
        return bucket

    def update_bucket(self, bucket: BucketRow, kind: str, settings: dict[str, Any]) -> BucketRow:
        """Replace type and settings and count the revision up."""
        revision = bucket.revision + 1
        self._db.execute(
            "UPDATE bucket SET type=?, revision=?, settings=? WHERE number=?",
            (kind, revision, json.dumps(settings), bucket.number),
        )
        changed = BucketRow(bucket.number, bucket.id, bucket.name, kind, revision, settings)
        self._buckets[bucket.id] = changed
        return changed

    def delete_bucket(self, bucket: BucketRow) -> None:
        if self._db.execute(
            "SELECT 1 FROM version WHERE bucket=? AND gone_ms IS NULL LIMIT 1", (bucket.number,)
        ).fetchone():
            raise Refused(400, "cannot_delete_non_empty_bucket", "A bucket must be empty to be deleted")
        with self.transaction():
            self._db.execute("DELETE FROM version WHERE bucket=?", (bucket.number,))
            self._db.execute("DELETE FROM bucket WHERE number=?", (bucket.number,))
        del self._buckets[bucket.id]

    # ------------------------------------------------------------ versions

    def begin(self, bucket_id: str, uploaded_ms: int | None = None) -> tuple[str, int]:
        """File id and upload timestamp of a version that begins now (or at a given time). Stores nothing."""
        stamp_ms = self.clock.stamp_ms() if uploaded_ms is None else uploaded_ms
        return rules.make_file_id(bucket_id, secrets.token_hex(8), stamp_ms), stamp_ms

    def add(self, version: Version) -> Version:
        """Make a version visible. Its body, if it has one, is complete and in ``incoming/``; on failure it is removed."""
        try:
            self.insert(version)
        except BaseException:
            if version.action == "upload":
                self.bodies.discard(version.file_id)
            raise
        if version.action == "upload":
            self.bodies.settle(version.file_id)
        return version

    def insert(self, version: Version) -> None:
        """Make a version visible that has no body, or whose body is settled already (or is never read)."""
        self._db.execute(
            "INSERT INTO version VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
            (
                self.bucket(version.bucket_id).number,
                version.name.encode(),
                version.uploaded_ms,
                version.file_id,
                version.action,
                version.size,
                version.sha1,
                version.content_type,
                json.dumps(version.info),
                self.clock.now_ms(),
            ),
        )

    def version(self, file_id: str) -> Version | None:
        row = self._db.execute(_FROM + "v.file_id=? AND v.gone_ms IS NULL", (file_id,)).fetchone()
        return _version(row) if row else None

    def current(self, bucket: BucketRow, name: str) -> Version | None:
        """The newest version of a name, which may be a hide marker; unfinished large files do not count."""
        row = self._db.execute(
            _FROM + "v.bucket=? AND v.name=? AND v.action != 'start' AND v.gone_ms IS NULL"
            " ORDER BY v.uploaded_ms DESC, v.file_id DESC LIMIT 1",
            (bucket.number, name.encode()),
        ).fetchone()
        return _version(row) if row else None

    def hide(self, bucket: BucketRow, name: str) -> Version:
        current = self.current(bucket, name)
        if current is None:
            raise Refused(400, "no_such_file", f"File not present: {name}")
        if current.action == "hide":
            raise Refused(400, "already_hidden", f"File already hidden: {name}")
        file_id, stamp_ms = self.begin(bucket.id)
        return self.add(
            Version(
                bucket.id,
                name,
                stamp_ms,
                file_id,
                "hide",
                0,
                "",
                "application/x-bz-hide-marker",
                {},
            )
        )

    def delete(self, file_id: str, name: str) -> Version:
        """Remove one version for good. On an unfinished large file this cancels it."""
        version = self.version(file_id)
        if version is None or version.name != name:
            raise Refused(400, "file_not_present", f"File not present: {name} {file_id}")
        doomed = [part.body for part in self.parts(file_id)] if version.action == "start" else []
        if version.action == "upload":
            doomed.append(file_id)
        for body in doomed:
            self.bodies.unsettle(body)
        with self.transaction():
            if self.keep_gone:
                self._db.execute("UPDATE version SET gone_ms=? WHERE file_id=?", (self.clock.now_ms(), file_id))
            else:
                self._db.execute("DELETE FROM version WHERE file_id=?", (file_id,))
            self._db.execute("DELETE FROM part WHERE file_id=?", (file_id,))
        for body in doomed:
            self.bodies.discard(body)
        return version

    def scan(
        self,
        bucket: BucketRow,
        start: tuple[bytes, int, str],
        end: bytes,
        as_of_ms: int | None = None,
    ) -> Iterator[Version]:
        """Versions in B2's order from position `start` on (name, upload time, file id), up to name `end`.

        With `as_of_ms` the versions that were visible then. Iterate at once: later changes may show.
        """
        name, uploaded_ms, file_id = start
        live = "v.gone_ms IS NULL"
        if as_of_ms is not None:
            live = f"v.committed_ms <= {as_of_ms:d} AND (v.gone_ms IS NULL OR v.gone_ms > {as_of_ms:d})"
        rest = f"v.name < ? AND {live} ORDER BY v.name, v.uploaded_ms DESC, v.file_id DESC"
        if uploaded_ms:
            at = _FROM + "v.bucket=? AND v.name = ? AND (v.uploaded_ms, v.file_id) <= (?, ?) AND " + rest
            for row in self._db.execute(at, (bucket.number, name, uploaded_ms, file_id, end)):
                yield _version(row)
            name += b"\0"  # the next possible name
        for row in self._db.execute(_FROM + "v.bucket=? AND v.name >= ? AND " + rest, (bucket.number, name, end)):
            yield _version(row)

    # ------------------------------------------------------------ large files

    def started(self, file_id: str) -> Version:
        """An unfinished large file."""
        version = self.version(file_id)
        if version is None or version.action != "start":
            raise rules.bad_request(f"No active upload for: {file_id}")
        return version

    def parts(self, file_id: str, first: int = 1, limit: int = rules.MAX_PARTS) -> list[Part]:
        return [
            Part(*row)
            for row in self._db.execute(
                "SELECT file_id, number, size, sha1, uploaded_ms, body FROM part"
                " WHERE file_id=? AND number>=? ORDER BY number LIMIT ?",
                (file_id, first, limit),
            )
        ]

    def unfinished(self, bucket: BucketRow, first: bytes, end: bytes) -> list[Version]:
        """The unfinished large files with names in [first, end), by file id."""
        rows = self._db.execute(
            _FROM + "v.bucket=? AND v.name >= ? AND v.name < ? AND v.action='start' AND v.gone_ms IS NULL"
            " ORDER BY v.file_id",
            (bucket.number, first, end),
        )
        return [_version(row) for row in rows]

    def add_part(self, file_id: str, number: int, body: str, size: int, sha1: str) -> Part:
        """Store a part, complete and closed in ``incoming/``; it replaces an earlier one with its number.

        When the large file is gone or finished meanwhile it is refused and the body removed.
        """
        try:
            self.started(file_id)
        except Refused:
            self.bodies.discard(body)
            raise
        old = self._db.execute("SELECT body FROM part WHERE file_id=? AND number=?", (file_id, number)).fetchone()
        part = Part(file_id, number, size, sha1, self.clock.now_ms(), body)
        if old:
            self.bodies.unsettle(old[0])
        self._db.execute("INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?, ?, ?)", msgspec.structs.astuple(part))
        self.bodies.settle(body)
        if old:
            self.bodies.discard(old[0])
        return part

    def finish(self, version: Version, parts: list[Part]) -> Version:
        """Turn an unfinished large file into a version. Its body is complete and in ``incoming/``."""
        for part in self.parts(version.file_id):
            self.bodies.unsettle(part.body)
        size = sum(part.size for part in parts)
        with self.transaction():
            self._db.execute(
                "UPDATE version SET action='upload', size=?, sha1='none', committed_ms=? WHERE file_id=?",
                (size, self.clock.now_ms(), version.file_id),
            )
            doomed = self._db.execute("SELECT body FROM part WHERE file_id=?", (version.file_id,)).fetchall()
            self._db.execute("DELETE FROM part WHERE file_id=?", (version.file_id,))
        self.bodies.settle(version.file_id)
        for (body,) in doomed:
            self.bodies.discard(body)
        return msgspec.structs.replace(version, action="upload", size=size, sha1="none")

    # ------------------------------------------------------------ application keys

    def add_key(self, key_id: str, digest: str, grants: dict[str, Any]) -> None:
        self._db.execute("INSERT INTO key VALUES (?, ?, ?)", (key_id, digest, json.dumps(grants)))

    def key(self, key_id: str) -> tuple[str, dict[str, Any]] | None:
        """(digest of the secret, grants) of a key."""
        row = self._db.execute("SELECT digest, grants FROM key WHERE id=?", (key_id,)).fetchone()
        return (row[0], json.loads(row[1])) if row else None

    def keys(self, first: str, limit: int) -> list[tuple[str, dict[str, Any]]]:
        rows = self._db.execute("SELECT id, grants FROM key WHERE id >= ? ORDER BY id LIMIT ?", (first, limit))
        return [(key_id, json.loads(grants)) for key_id, grants in rows]

    def delete_key(self, key_id: str) -> None:
        self._db.execute("DELETE FROM key WHERE id=?", (key_id,))

    # ------------------------------------------------------------ inside

    def _create(self) -> None:
        with self.transaction():
            for statement in _SCHEMA.split(";\n"):
                self._db.execute(statement)
            self._db.executemany(
                "INSERT INTO setting VALUES (?, ?)",
                [("schema", str(SCHEMA_VERSION)), ("account_id", secrets.token_hex(6))],
            )

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is changed inside is one commit: all of it, or, after an error, nothing. Not to be nested."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _wants_body(self, name: str) -> bool:
        """Whether the metadata names this body (see `bodies`)."""
        if ".p" in name:
            return bool(self._db.execute("SELECT 1 FROM part WHERE body=?", (name,)).fetchone())
        return bool(self._db.execute("SELECT 1 FROM version WHERE file_id=? AND action='upload'", (name,)).fetchone())


def _version(row: tuple[Any, ...]) -> Version:
    bucket_id, name, uploaded_ms, file_id, action, size, sha1, content_type, info = row
    return Version(
        bucket_id,
        name.decode(),
        uploaded_ms,
        file_id,
        action,
        size,
        sha1,
        content_type,
        json.loads(info) if info != "{}" else {},
    )
