"""Read-ahead: fetch the next chunks of a large file before a sequential reader asks for them.

Rule: a handle that reads on where it stopped has its window grow `_GROWTH`-fold with each chunk, up to `_LARGEST` chunks
and a part of the cache; one that jumps has none. Small files are one chunk and need none.
"""

from __future__ import annotations

from b2fs.core import chunks
from b2fs.core.inode import Inode
from b2fs.engine.cache import Cache

_FIRST = 2
"""Chunks ahead for who has read on for the first time."""
_GROWTH = 4
"""A round trip for each step up to the largest window: two steps lose less of a fast line than five."""
_LARGEST = 16
"""Chunks ahead: 32 MiB in parallel ranges, what a fast line holds in a round trip and more."""
_CACHE_PART = 4
"""Read-ahead may fill this part (1/n) of the cache."""


class ReadAhead:
    """The state of one handle."""

    __slots__ = ("_cache", "_next", "_until", "_window")

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._next = -1
        """The chunk with which a sequential reader would go on."""
        self._window = 0
        self._until = 0
        """Chunks below this were asked for already."""

    def reading(self, inode: Inode, offset: int, size: int) -> None:
        """A read is coming; start what should follow it. Never waits."""
        if chunks.is_small(inode.size):
            return
        first = offset // chunks.CHUNK
        last = min(offset + size, inode.size) // chunks.CHUNK
        if first == self._next - 1 and last == first:
            return  # still inside the chunk that was looked at
        if first in (self._next, self._next - 1):
            largest = min(_LARGEST, self._cache.index.limit // _CACHE_PART // chunks.CHUNK)
            self._window = min(largest, max(_FIRST, self._window * _GROWTH))
        else:
            self._window, self._until = 0, 0
        self._next = last + 1
        end = min(self._next + self._window, chunks.count(inode.size))
        for index in range(max(self._next, self._until), end):
            if not self._cache.is_here(inode.file_id, inode.size, index):
                self._cache.start(inode.file_id, inode.size, inode.sha1, index)
        self._until = max(self._until, end)
