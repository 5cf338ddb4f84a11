"""How requests are waited for: what pyfuse3 takes from trio, with busy polling before the event loop is given a turn.

pyfuse3 waits twice for the loop at each request (for a lock, then for /dev/fuse), which costs more than most of its
answers. But a program that has its answer asks again within microseconds. So the next request is looked for during a
moment, and answered in the same turn; only then does the loop go to sleep.

Rules
  Fair: after `_TURN_S` everybody else has a turn: deadlines, fetches, uploads, and whoever was cancelled.
  Not in vain: where the last request did not come at once after an answer, where a handler waits for something, and on
  one processor, there is one look and no more.
  pyfuse3 takes its event loop from a module attribute; `pyfuse3.asyncio.enable` puts another one there, as we do.
"""

from __future__ import annotations

import os
import select
import time
from types import TracebackType
from typing import Any

import trio

_TURN_S = 0.001
"""For how long requests are answered in one turn: about as long as other steps of the loop hold it."""
_BUSY_S = 50e-6
"""How long the next request is looked for: what a sleep and a wake-up of the loop cost."""
_AT_ONCE_S = 100e-6
"""A request that came within this after an answer, though the loop slept, would have been seen, or nearly so."""


class Lock:
    """What pyfuse3 uses of trio.Lock. Who finds it free has it without a turn of the loop, whoever waits for it."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._is_held:
            await self._waiting.park()
        self._is_held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_held = False
        self._waiting.unpark()  # who is woken runs when we suspend: in a handler, or holding the lock again


class BusyPoll:
    """In the place of the module trio, for pyfuse3: all of it and of trio.lowlevel, but for two things. One for each mount."""

    Lock = Lock

    def __init__(self) -> None:
        self.lowlevel: Any = self
        self.under_way = 0
        """Handlers that have begun and not ended. The front end counts them."""
        self._poll = select.poll()
        self._watched = -1
        self._turn_began_s = 0.0
        self._comes_at_once = False
        self._is_alone = len(os.sched_getaffinity(0)) == 1

    def __getattr__(self, name: str) -> Any:
        return getattr(trio if hasattr(trio, name) else trio.lowlevel, name)

    async def wait_readable(self, descriptor: int) -> None:
        """Return when it is readable, or at its end. Suspends once in `_TURN_S` at the least."""
        if descriptor != self._watched:
            self._poll.register(descriptor, select.POLLIN)
            self._watched = descriptor
        answered_s = now_s = time.perf_counter()
        if answered_s - self._turn_began_s < _TURN_S:
            patience_s = _BUSY_S if self._comes_at_once and not self.under_way else 0.0
            while not self._poll.poll(0):
                if now_s - answered_s >= patience_s:
                    break
                now_s = time.perf_counter()
            else:
                return
        await trio.lowlevel.wait_readable(descriptor)
        self._turn_began_s = time.perf_counter()
        self._comes_at_once = not self._is_alone and self._turn_began_s - answered_s < _AT_ONCE_S
