"""The server's clock: what the Date header and the upload timestamps say.

Rules
  An upload timestamp is taken when the upload *begins* (facts: b2.md 0.3).
  By default no two stamps are equal and later ones are greater, so that tests which write faster than
  the clock ticks see the order they wrote in. Real B2 promises less; `ties` and a negative `offset_s` bring
  that back: equal stamps (broken by file id), and a version that is older than one stored before it.
"""

from __future__ import annotations

import time


class Clock:
    def __init__(self) -> None:
        self.offset_s = 0.0
        """Added to the host's clock."""
        self.frozen_ms: int | None = None
        """When set, the clock stands still here."""
        self.ties = False
        """Whether two stamps may be equal."""
        self._last_ms = 0

    def set(self, offset_s: float = 0.0, frozen_ms: int | None = None, ties: bool = False) -> None:
        """Replace all settings; the next stamp follows the clock again, even backwards."""
        self.offset_s, self.frozen_ms, self.ties = offset_s, frozen_ms, ties
        self._last_ms = 0

    def now_ms(self) -> int:
        if self.frozen_ms is not None:
            return self.frozen_ms
        return int((time.time() + self.offset_s) * 1000)

    def stamp_ms(self) -> int:
        """The upload timestamp of something that begins now."""
        now_ms = self.now_ms()
        if not self.ties and now_ms <= self._last_ms:
            now_ms = self._last_ms + 1
        self._last_ms = now_ms
        return now_ms
