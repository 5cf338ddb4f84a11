"""Seams for tests: virtual time, a hook before a call, a kill at the n-th call.

Rules
  `InlineSeam` runs what belongs into a thread at once, between two schedule points, so that an autojump clock
  advances exactly when nobody can go on.
  A crash is SIGKILL as the disk sees it: the state directory is copied at that instant, and whatever the
  dying engine does afterwards happens to a directory that nobody looks at again.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import trio

from b2fs.engine.seam import Seam

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class InlineSeam(Seam):
    """Everything on the loop, in the order of a thread's round trip: suspend, call, suspend."""

    async def thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        result = call(*args)
        await trio.lowlevel.cancel_shielded_checkpoint()  # a thread's result is delivered, cancelled or not
        return result


class HookSeam(InlineSeam):
    """Does something right before a call of the named function (`before`) or while its result is on the way (`after`).

    Both only for `thread` calls. A hook is used once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.after: dict[str, Callable[[], Awaitable[Any]]] = {}

    async def thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        if (hook := self.before.pop(call.__name__, None)) is not None:
            await hook()
        result = await super().thread(call, *args)
        if (hook := self.after.pop(call.__name__, None)) is not None:
            await hook()
        return result


class Killed(BaseException):
    """The process is gone. No handler may survive it, so it is no Exception."""


class Dead(Exception):
    """What a call of a killed process gets, so that its remains can be cleared away."""


class CrashPoint:
    """Counts calls; kills at the one with the number `at` (0: never), after copying `state` to `snapshot`."""

    def __init__(self, state: Path, snapshot: Path, at: int = 0) -> None:
        self.at = at
        self.count = 0
        self.crashed = False
        self._state = state
        self._snapshot = snapshot

    def hit(self) -> None:
        if self.crashed:
            raise Dead
        self.count += 1
        if self.count == self.at:
            self.crashed = True
            shutil.copytree(self._state, self._snapshot)
            raise Killed


class CrashSeam(InlineSeam):
    """Passes a crash point before every call."""

    def __init__(self, point: CrashPoint) -> None:
        super().__init__()
        self.point = point

    def inline(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        self.point.hit()
        return super().inline(call, *args)

    async def thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        self.point.hit()
        return await super().thread(call, *args)
