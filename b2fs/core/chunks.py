"""How a version's bytes are cut into blobs of the cache. Pure arithmetic.

Rules
  A version of at most one chunk is one blob, fetched whole and checked against its SHA-1. A larger one is
  cached in chunks, each a blob of its own: being there is being complete, so no map can disagree
  with the data, and eviction frees single chunks of a large file.
  A large file that was written here may lie in the cache as one whole blob all the same.
"""

from __future__ import annotations

import hashlib
import re

CHUNK = 2 * 1024 * 1024
"""Bytes. Small enough that the first byte of a seek comes soon, large enough that the round trip is not the cost."""

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,200}")


def whole(file_id: str) -> str:
    """The blob name of a whole version. An id that is no safe file name is replaced by its hash."""
    if _PLAIN.fullmatch(file_id):
        return file_id
    return "x" + hashlib.sha1(file_id.encode(), usedforsecurity=False).hexdigest()


def part(file_id: str, index: int) -> str:
    """The blob name of chunk `index` of a larger version."""
    return f"{whole(file_id)}.{index}"


def span(size: int, index: int) -> tuple[int, int]:
    """(offset, length) of chunk `index` in a version of `size` bytes."""
    offset = index * CHUNK
    return offset, min(CHUNK, size - offset)


def is_small(size: int) -> bool:
    return size <= CHUNK


def count(size: int) -> int:
    return max(1, -(-size // CHUNK))
