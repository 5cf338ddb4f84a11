"""What a listing of the bucket says that the journal does not know yet. Pure.

Rules
  A row of ours that was written after the listing began is newer than the listing.
  A version that is not newer than our own last write of that key (B2's clock, on both sides) is history,
  however late a listing shows it: so a stale listing cannot bring back what we hid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from b2fs.core.bucket import Version
from b2fs.core.change import ObjectRow


class News(msgspec.Struct):
    """Differences of one page of a listing."""

    changed: list[Version] = []
    """New, or newer than what we know."""
    missing: list[ObjectRow] = []
    """Known to us and not listed: hidden by somebody else, or the listing is stale."""


def compare(known: Mapping[str, ObjectRow], listed: Iterable[Version], began: int) -> News:
    """`known`: our rows (tombstones too) of the keys that the listing covers; `began`: the generation at
    which the listing was asked for.
    """
    news = News()
    seen = set()
    for version in listed:
        seen.add(version.key)
        row = known.get(version.key)
        if is_news(version, row, began):
            news.changed.append(version)
    for key, row in known.items():
        if row.file_id and key not in seen and row.generation < began:
            news.missing.append(row)
    return news


def is_news(version: Version, row: ObjectRow | None, began: int) -> bool:
    """Whether a listed version is newer than our row of its key."""
    if row is None:
        return True
    if version.file_id == row.file_id:
        return False
    if row.generation >= began:
        return False
    if row.file_id == "":  # a tie with our own hide marker: B2 orders by file id then, so we cannot know; hidden it is
        return version.uploaded_ms > row.uploaded_ms
    return version.uploaded_ms >= row.uploaded_ms
