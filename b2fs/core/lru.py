"""Which clean bytes are in the cache, and which go first.

Rules
  Hot blobs were used since this start and are kept in memory in the order of their use. Cold ones were
  not; they are only known to the journal, by the time of their last use, and go before any hot one. So a
  start costs nothing, however much is cached.
  Whoever adds a blob reserves its room first; ``used + reserved`` never passes `limit` once evictions
  that `short` asks for are done.

Units: bytes.
"""

from __future__ import annotations

import cachetools


class _Hot(cachetools.LRUCache[str, int]):
    """Sizes by name in the order of use; only counts, never evicts by itself."""

    def __init__(self) -> None:
        super().__init__(maxsize=1 << 63, getsizeof=lambda size: size)


class CacheIndex:
    """Accounting of the cache directory.

    INVARIANT: ``used`` is the sum of the sizes of all blobs on disk, hot and cold.
    """

    def __init__(self, limit: int, cold_bytes: int = 0, cold_count: int = 0) -> None:
        self.limit = limit
        self.cold_bytes = cold_bytes
        self.cold_count = cold_count
        self.reserved = 0
        self._hot = _Hot()

    @property
    def used(self) -> int:
        return int(self._hot.currsize) + self.cold_bytes

    def __len__(self) -> int:
        return len(self._hot) + self.cold_count

    def short(self, size: int) -> int:
        """How many bytes must be evicted before `size` more fit (0: they fit)."""
        return max(0, self.used + self.reserved + size - self.limit)

    def reserve(self, size: int) -> None:
        self.reserved += size

    def release(self, size: int) -> None:
        self.reserved -= size

    def add(self, name: str, size: int) -> None:
        """A new blob, not known as cold."""
        self._hot[name] = size

    def hit(self, name: str, size: int) -> None:
        """A blob was used; if it was cold, it is hot now."""
        if name in self._hot:
            self._hot[name]  # looking it up moves it to the end
            return
        self._hot[name] = size
        self.cold_bytes -= size
        self.cold_count -= 1

    def is_hot(self, name: str) -> bool:
        return name in self._hot

    def forget(self, name: str) -> None:
        """A hot blob is gone."""
        self._hot.pop(name, None)

    def forget_cold(self, size: int) -> None:
        """A cold blob is gone."""
        self.cold_bytes -= size
        self.cold_count -= 1

    def oldest_hot(self) -> tuple[str, int] | None:
        """The hot blob that was not used for the longest time; it is out of the index now."""
        if not self._hot:
            return None
        return self._hot.popitem()

    def hot_names(self) -> list[str]:
        """From the longest unused to the last used."""
        found = [self._hot.popitem() for _ in range(len(self._hot))]  # the only order that cachetools shows
        self._hot.update(found)
        return [name for name, _ in found]
