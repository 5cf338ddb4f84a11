"""What was asked of the server: requests by call and price class, bytes, concurrency, and a short log.

Rules
  Admin requests are not counted. A request is counted when its head was read, so a client that has its
  answer finds it here. Listings cost one transaction per started thousand of rows *returned* (facts: b2.md 2).
  The log keeps the last `LOG_SIZE` requests: names of calls and keys, never a token.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from b2fs.devbucket.rules import PRICE_CLASS

LOG_SIZE = 2000


class Exchange:
    """One request that is being answered."""

    __slots__ = (
        "_counters",
        "call",
        "fault",
        "key",
        "number",
        "open",
        "received",
        "sent",
        "status",
    )

    def __init__(self, counters: Counters, number: int, call: str) -> None:
        self._counters = counters
        self.number = number
        self.call = call
        self.key = ""
        self.status = 0
        """0: no answer (yet)."""
        self.fault = ""
        self.received = 0
        self.sent = 0
        self.open = True

    def end(self) -> None:
        if self.open:
            self.open = False
            self._counters.running -= 1
            self._counters.received += self.received
            self._counters.sent += self.sent
            self._counters.sent_by_call[self.call] += self.sent


class Counters:
    def __init__(self) -> None:
        self.running = 0
        self.reset()

    def reset(self) -> None:
        self.calls: Counter[str] = Counter()
        self.classes: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.received = 0
        """Bytes of request bodies."""
        self.sent = 0
        """Bytes of answers' bodies (whole ones, also when a fault cut them)."""
        self.sent_by_call: Counter[str] = Counter()
        self.max_running = self.running
        self._next = 1
        self._log: deque[Exchange] = deque(maxlen=LOG_SIZE)

    def begin(self, call: str) -> Exchange:
        self.calls[call] += 1
        self.classes[PRICE_CLASS.get(call, "C")] += 1
        self.running += 1
        self.max_running = max(self.max_running, self.running)
        exchange = Exchange(self, self._next, call)
        self._next += 1
        self._log.append(exchange)
        return exchange

    def rows(self, count: int) -> None:
        """A listing returned so many rows; the first thousand is paid with the request."""
        if count > 1000:
            self.classes["C"] += (count - 1) // 1000

    def as_dict(self) -> dict[str, Any]:
        return {
            "calls": dict(self.calls),
            "classes": dict(self.classes),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "received": self.received,
            "sent": self.sent,
            "sent_by_call": dict(self.sent_by_call),
            "running": self.running,
            "max_running": self.max_running,
        }

    def log(self, last: int) -> list[dict[str, Any]]:
        names = ("number", "call", "key", "status", "fault", "received", "sent")
        return [{name: getattr(x, name) for name in names} for x in list(self._log)[-last:]]
