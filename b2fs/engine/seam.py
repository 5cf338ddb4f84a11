"""The one seam between the engine and everything that blocks.

Rules
  `inline` is for calls that touch the page cache only (a commit without fsync, a small pwrite): they cost
  microseconds and a thread would cost more. `thread` is for whatever may wait for a disk.
  Nothing in the engine calls the journal's or the disk's changing methods around the seam, so a test can
  put a delay, a fault or a crash before or after each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_THREADS = 16
"""Blocking disk calls at a time; more would only queue in the kernel."""


class Seam:
    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(_THREADS)

    def inline(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        return call(*args)

    async def thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run in a worker thread. A cancelled caller waits for the call's end: it may own what is touched."""
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)
