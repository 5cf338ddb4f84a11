"""The tables of the journal, and how those of an earlier version become today's.

A change of the schema: a new number, a step in `MIGRATIONS`, the same in `WHOLE`. The test that compares a migrated journal
with a new one holds them together.
"""

from __future__ import annotations

VERSION = 6

_FIRST = """
-- Who this journal belongs to (endpoint, bucket, prefix, mount id), the schema, and the counter.
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- The namespace: one row an inode (columns: see core.inode.Inode). An inode without a name has no row.
CREATE TABLE inode (
    ino INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
    nlink INTEGER NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, atime_ns INTEGER NOT NULL,
    rdev INTEGER NOT NULL, target TEXT NOT NULL, file_id TEXT NOT NULL, sha1 TEXT NOT NULL,
    staged INTEGER NOT NULL, scratch INTEGER NOT NULL, complete INTEGER NOT NULL,
    synced INTEGER NOT NULL DEFAULT 0, xattrs TEXT NOT NULL DEFAULT '',
    link TEXT NOT NULL DEFAULT ''
);
-- Finds the files with content that is not in B2 without reading the others.
CREATE INDEX inode_dirty ON inode (ino) WHERE scratch OR staged;

-- The names. Moving a directory of any size is one row.
CREATE TABLE dentry (
    parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, PRIMARY KEY (parent, name)
) WITHOUT ROWID;
CREATE INDEX dentry_ino ON dentry (ino);

-- What the bucket has (columns: see core.change.ObjectRow).
CREATE TABLE object (
    key TEXT PRIMARY KEY, file_id TEXT NOT NULL, size INTEGER NOT NULL, sha1 TEXT NOT NULL,
    uploaded_ms INTEGER NOT NULL, attributes TEXT NOT NULL, generation INTEGER NOT NULL
) WITHOUT ROWID;

-- Keys whose object may differ from the namespace (core.change.Intent).
CREATE TABLE intent (key TEXT PRIMARY KEY, generation INTEGER NOT NULL, since_ns INTEGER NOT NULL) WITHOUT ROWID;

-- The files of the cache directory; a row without a file is a miss, a file without a row is swept.
CREATE TABLE blob (name TEXT PRIMARY KEY, size INTEGER NOT NULL, used_s INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX blob_used ON blob (used_s, size);

-- Objects that no path can show, for people (`b2fs status`).
CREATE TABLE ignored (key TEXT PRIMARY KEY, why TEXT NOT NULL) WITHOUT ROWID;
"""

_DAMAGED = """
-- Content that was set aside, for people (columns: core.change.Damage).
CREATE TABLE damaged (key TEXT NOT NULL, file TEXT NOT NULL, why TEXT NOT NULL, at_ns INTEGER NOT NULL);
"""

_LINKED = """
-- Finds the file that other names of the bucket belong to.
CREATE INDEX inode_link ON inode (link) WHERE link <> '';
"""

_GROWN = """
-- The directories that a listing of the whole bucket completes, and the tombstones, without reading the other rows.
CREATE INDEX inode_incomplete ON inode (ino) WHERE (mode & 61440) = 16384 AND NOT complete;
CREATE INDEX object_hidden ON object (uploaded_ms) WHERE file_id = '';

-- What all rows of blob sum up to, kept by the database itself: a start counts nothing.
CREATE TABLE cached (size INTEGER NOT NULL, count INTEGER NOT NULL);
INSERT INTO cached SELECT coalesce(sum(size), 0), count(*) FROM blob;
CREATE TRIGGER blob_came AFTER INSERT ON blob BEGIN UPDATE cached SET size = size + NEW.size, count = count + 1; END;
CREATE TRIGGER blob_grew AFTER UPDATE OF size ON blob BEGIN UPDATE cached SET size = size + NEW.size - OLD.size; END;
CREATE TRIGGER blob_went AFTER DELETE ON blob BEGIN UPDATE cached SET size = size - OLD.size, count = count - 1; END;
"""

_VERSIONED = """
-- Answers: does a live file still live in this version? By the end of the id alone: B2 puts the time of the upload there, so
-- what was uploaded together lies together, and a listing writes a few pages of the index, not one for each row.
CREATE INDEX inode_version ON inode (substr(file_id, -14)) WHERE file_id <> '';
"""

WHOLE = f"{_FIRST} {_DAMAGED} {_LINKED} {_GROWN} {_VERSIONED}"
"""What a new journal begins with."""

MIGRATIONS = {
    # scratch was a flag, and the file had the number of its inode
    1: f"ALTER TABLE inode ADD COLUMN synced INTEGER NOT NULL DEFAULT 0; UPDATE inode SET scratch = ino WHERE scratch;"
    f" {_DAMAGED}",
    2: "ALTER TABLE inode ADD COLUMN xattrs TEXT NOT NULL DEFAULT '';",
    3: f"ALTER TABLE inode ADD COLUMN link TEXT NOT NULL DEFAULT ''; {_LINKED}",
    4: _GROWN,
    5: f"DROP INDEX inode_file; {_VERSIONED}",
}
"""How a journal of an earlier version becomes one of the next."""
