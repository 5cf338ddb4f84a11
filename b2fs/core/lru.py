"""Which clean bytes are in the cache, and which go first.

Rules
  Hot blobs were used since this start and are kept in memory in the order of their use. Cold ones were
  not; they are only known to the journal, by the time of their last use, and go before any hot one. So a
  start costs nothing, however much is cached.
  Kept blobs (`core.pin`) are in neither order: no eviction meets them, but that of a full disk, at the very last.
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

    INVARIANT: ``used`` is the sum of the sizes of all blobs on disk, hot, kept and cold.
    """

    def __init__(self, limit: int, cold_bytes: int = 0, cold_count: int = 0) -> None:
        self.limit = limit
        self.cold_bytes = cold_bytes
        self.cold_count = cold_count
        self.reserved = 0
        self._hot = _Hot()
        self._kept: dict[str, int] = {}
        self.kept_bytes = 0

    @property
    def used(self) -> int:
        return int(self._hot.currsize) + self.kept_bytes + self.cold_bytes

    def __len__(self) -> int:
        return len(self._hot) + len(self._kept) + self.cold_count

    def short(self, size: int) -> int:
        """How many bytes must be evicted before `size` more fit (0: they fit)."""
        return max(0, self.used + self.reserved + size - self.limit)

    def reserve(self, size: int) -> None:
        self.reserved += size

    def release(self, size: int) -> None:
        self.reserved -= size

    def add(self, name: str, size: int, *, kept: bool = False) -> None:
        """A new blob, not known as cold."""
        self.forget(name)
        if kept:
            self._kept[name] = size
            self.kept_bytes += size
        else:
            self._hot[name] = size

    def keep(self, name: str, size: int) -> None:
        """A blob that is here, hot or cold, is not to go."""
        if name in self._kept:
            return
        if name not in self._hot:
            self.forget_cold(size)
        self.add(name, size, kept=True)

    def unkeep(self, name: str) -> None:
        """A blob may go again: as one that was just used. Does nothing if it was not kept."""
        if name in self._kept:
            self.add(name, self._kept[name])

    def hit(self, name: str, size: int) -> None:
        """A blob was used; if it was cold, it is hot now."""
        if name in self._kept:
            return
        if name in self._hot:
            self._hot[name]  # looking it up moves it to the end
            return
        self._hot[name] = size
        self.cold_bytes -= size
        self.cold_count -= 1

    def is_hot(self, name: str) -> bool:
        """Whether it is no cold one: it is hot, or kept."""
        return name in self._hot or name in self._kept

    def is_kept(self, name: str) -> bool:
        return name in self._kept

    def forget(self, name: str) -> None:
        """A blob that was not cold is gone."""
        self._hot.pop(name, None)
        self.kept_bytes -= self._kept.pop(name, 0)

    def forget_cold(self, size: int) -> None:
        """A cold blob is gone."""
        self.cold_bytes -= size
        self.cold_count -= 1

    def oldest_hot(self) -> tuple[str, int] | None:
        """The hot blob that was not used for the longest time; it is out of the index now."""
        if not self._hot:
            return None
        return self._hot.popitem()

    def last_kept(self) -> tuple[str, int] | None:
        """The kept blob that came last; it is out of the index now."""
        if not self._kept:
            return None
        name, size = self._kept.popitem()
        self.kept_bytes -= size
        return name, size

    def hot_names(self) -> list[str]:
        """From the longest unused to the last used."""
        found = [self._hot.popitem() for _ in range(len(self._hot))]  # the only order that cachetools shows
        self._hot.update(found)
        return [name for name, _ in found]
