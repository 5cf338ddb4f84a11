"""One atomic change of the local truth: what a transaction of the journal writes and memory then shows.

Rules
  A `Change` is built by a pure ``plan_*`` function, committed by the journal in one transaction, and only
  then applied to memory; nobody sees a state that is not in the journal.
  Intents name keys whose object may differ from what the namespace says. What has to be done about a key
  is derived when its turn comes (`core.writeback`), so an intent can be late but never wrong.
"""

from __future__ import annotations

import msgspec

from b2fs.core.inode import Inode


class ObjectRow(msgspec.Struct, frozen=True):
    """What the bucket has at a key. ``file_id`` '' is a tombstone: hidden by us at ``uploaded_ms``."""

    key: str
    file_id: str
    size: int
    sha1: str
    uploaded_ms: int
    """B2's clock; a version of this key that is not newer than this is history."""
    attributes: str
    """The canonical attributes that the version carries (`core.inode.attributes`)."""
    generation: int
    """When this row was written; a listing that began earlier knows less than it."""


class Intent(msgspec.Struct, frozen=True):
    """The object at `key` may differ from the namespace since `since_ns` (wall clock, for people only).

    A key that ends with '/' stands for the whole subtree (a directory was moved).
    """

    key: str
    generation: int
    since_ns: int


KEPT_S = 1 << 40
"""`Blob.used_s` of what is pinned: so the list of the coldest blobs ends before it, in the next run too."""


class Blob(msgspec.Struct, frozen=True):
    """A file of the cache directory: clean bytes that may be deleted at any time."""

    name: str
    size: int
    used_s: int
    """When it was last used (or fetched), `KEPT_S` if it is pinned."""


class Damage(msgspec.Struct, frozen=True):
    """Content of `key` that was set aside, for people. `file` is its name in ``quarantine/``, '' if nothing was left."""

    key: str
    file: str
    why: str
    at_ns: int


class Change(msgspec.Struct):
    """Rows to write (``inodes``, ``links``, ``objects``, ``blobs`` replace what is there) and to delete."""

    inodes: list[Inode] = []
    gone: list[int] = []
    gone_ns: int = 0
    """When the names of `gone` went: the ctime of what somebody still has open; 0: not by an operation here."""
    links: list[tuple[int, bytes, int]] = []
    """(parent, name, ino)"""
    unlinks: list[tuple[int, bytes]] = []
    dirty: list[str] = []
    """Keys to reconcile; the engine turns them into intents with a generation."""
    intents: list[Intent] = []
    settled: list[tuple[str, int]] = []
    """(key, generation): the intent goes if it still has this generation."""
    objects: list[ObjectRow] = []
    lost_objects: list[str] = []
    blobs: list[Blob] = []
    lost_blobs: list[str] = []
    damaged: list[Damage] = []
