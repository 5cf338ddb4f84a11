"""Listings of a bucket: by name or by version, with prefix, delimiter and pages. Pure over `Store.scan`.

Rules (apidocs/b2-list-file-names, b2-list-file-versions)
  Names come in the order of their bytes, the versions of a name newest first.
  By name: the newest version of each name, if it is an upload; hidden names and unfinished large files are
  left out. By version: every row.
  With a delimiter, names that have it behind the prefix are folded into one folder row, once, and only if
  something that would be listed is in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from b2fs.devbucket.store import BucketRow, Store, Version

_LAST = b"\xff"
"""Sorts behind every UTF-8 name."""


def list_rows(
    store: Store,
    bucket: BucketRow,
    *,
    versions: bool,
    start: tuple[str, int, str],
    prefix: str,
    delimiter: str,
    limit: int,
    as_of_ms: int | None = None,
) -> tuple[list[Version], Version | None]:
    """(at most `limit` rows, the row that the next page begins with). `start` is (name, upload time, file id)."""
    rows: list[Version] = []
    for row in _rows(store, bucket, versions, start, prefix.encode(), delimiter, as_of_ms):
        if len(rows) == limit:
            return rows, row
        rows.append(row)
    return rows, None


def _rows(
    store: Store,
    bucket: BucketRow,
    versions: bool,
    start: tuple[str, int, str],
    prefix: bytes,
    delimiter: str,
    as_of_ms: int | None,
) -> Iterator[Version]:
    position = max((start[0].encode(), start[1], start[2]), (prefix, 0, ""))
    end = after_prefix(prefix)
    prefix_length = len(prefix.decode())
    while position[0] < end:
        decided = None  # the name whose newest version was seen already
        for row in store.scan(bucket, position, end, as_of_ms):
            if not versions:
                if row.name == decided or row.action == "start":
                    continue
                decided = row.name
                if row.action == "hide":
                    continue
            cut = row.name.find(delimiter, prefix_length) if delimiter else -1
            if cut < 0:
                yield row
                continue
            folder = row.name[: cut + len(delimiter)]
            yield Version(bucket.id, folder, 0, "", "folder", 0, "", "", {})
            position = (after_prefix(folder.encode()), 0, "")  # skip what is inside
            break
        else:
            return


def after_prefix(prefix: bytes) -> bytes:
    """The smallest byte string behind all that begin with `prefix` (UTF-8 never contains 0xff)."""
    return prefix[:-1] + bytes([prefix[-1] + 1]) if prefix else _LAST
