"""How many bytes lie here that are not in B2 yet, how many may, and how long until they fill their room.

Rules
  Every content file that is scratch or staged is counted, by its number; nothing else is.
  Who wants to write more asks `room` first. The limit is for content: names and attributes cost nothing here.

Units: bytes; ``*_s`` seconds on the caller's clock.
"""

from __future__ import annotations

from collections import deque

_MEMORY_S = 60.0
"""How far back a trend looks: longer than one large upload takes to free its bytes, short enough to follow a flood."""


class Budget:
    """INVARIANT: ``used`` is the sum of the sizes that were set and not dropped."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._sizes: dict[int, int] = {}

    def room(self, growth: int) -> bool:
        """Whether `growth` more bytes fit. A file may always shrink or keep its size."""
        return growth <= 0 or self.used + growth <= self.limit

    def set(self, number: int, size: int) -> None:
        """A content file has this size now."""
        self.used += size - self._sizes.get(number, 0)
        self._sizes[number] = size

    def drop(self, number: int) -> None:
        """A content file is gone."""
        self.used -= self._sizes.pop(number, 0)


class Trend:
    """How fast the bytes grew lately, from samples that somebody takes now and then."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def sample(self, now_s: float, used: int) -> None:
        self._samples.append((now_s, used))
        while self._samples[0][0] < now_s - _MEMORY_S:
            self._samples.popleft()

    def time_to_full_s(self, limit: int) -> float | None:
        """When the limit is reached if it goes on like this; 0 if it is, None if the bytes do not grow."""
        if not self._samples:
            return None
        (then_s, then), (now_s, now) = self._samples[0], self._samples[-1]
        if now >= limit:
            return 0.0
        if now <= then or now_s <= then_s:
            return None
        return (limit - now) * (now_s - then_s) / (now - then)
