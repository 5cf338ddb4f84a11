"""How many bytes lie here that are not in B2 yet, and how many may.

Rules
  Every scratch and staged file of an inode is counted, by its folder and number; nothing else is.
  Who wants to write more asks `room` first. The limit is for content: names and attributes cost nothing here.

Units: bytes.
"""

from __future__ import annotations


class Budget:
    """INVARIANT: ``used`` is the sum of the sizes that were set and not dropped."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._sizes: dict[tuple[str, int], int] = {}

    def room(self, growth: int) -> bool:
        """Whether `growth` more bytes fit. A file may always shrink or keep its size."""
        return growth <= 0 or self.used + growth <= self.limit

    def set(self, name: tuple[str, int], size: int) -> None:
        """A file has this size now."""
        self.used += size - self._sizes.get(name, 0)
        self._sizes[name] = size

    def drop(self, name: tuple[str, int]) -> None:
        """A file is gone, or its content is in B2."""
        self.used -= self._sizes.pop(name, 0)
