"""The reaper: deletes content files once the journal on stable storage does not name them any more.

Why: a row may say for a while what the disk has forgotten. Were a file deleted right after the commit that no
longer names it, a power loss could bring back the row before that commit, and its content would be gone.

Rules
  What may be needed after a power loss (staged content, and scratch that an fsync covered) goes through here; other
  scratch has no promise to keep and is deleted at once by who owns it.
  A pass takes all that waits, puts names and journal on stable storage, then deletes. Passes gather work for
  `_PAUSE_S`, so a storm of deletions costs a few syncs a second.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from b2fs.adapters.disk import Disk
from b2fs.engine.seam import Seam
from b2fs.errors import B2fsError, ReadOnly

log = logging.getLogger(__name__)

_PAUSE_S = 0.2
_FAILED_S = 10.0
"""Pause after a pass that the disk cut short."""


class Reaper:
    """`sync` puts the journal on stable storage; `free` hears which content numbers are gone."""

    def __init__(
        self, disk: Disk, seam: Seam, sync: Callable[[], Awaitable[None]], free: Callable[[int], None]
    ) -> None:
        self._disk = disk
        self._seam = seam
        self._sync = sync
        self._free = free
        self._sealed: list[int] = []
        self._dropped: list[int] = []
        self._work = trio.Event()
        self._hurry = trio.Event()
        self._passing = trio.Lock()
        """One pass at a time: who ends one in order (a stop) waits for what a cancelled one gives back."""

    def unlink_scratch(self, number: int) -> None:
        """Content was sealed: its scratch name goes, the content stays."""
        self._sealed.append(number)
        self._work.set()

    def drop(self, number: int) -> None:
        """Content that no row names any more goes."""
        self._dropped.append(number)
        self._work.set()

    def hurry(self) -> None:
        """Somebody waits for the room."""
        self._hurry.set()

    async def run(self) -> None:
        """Serve until cancelled, or until nothing can be deleted any more (ReadOnly). What was not deleted by then is
        deleted by the next start.
        """
        while True:
            await self._work.wait()
            with trio.move_on_after(_PAUSE_S):
                await self._hurry.wait()
            self._work, self._hurry = trio.Event(), trio.Event()
            try:
                await self.reap()
            except ReadOnly as error:
                log.error("content that is not needed any more stays until the next start: %s", error)
                return
            except B2fsError as error:
                log.error("content that is not needed any more cannot be deleted yet: %s", error)
                await trio.sleep(_FAILED_S)

    async def reap(self) -> None:
        """One pass, after the one that is under way. ReadOnly or Damaged: the disk fails, and what is left stays for
        the next one.
        """
        async with self._passing:
            await self._pass()

    async def _pass(self) -> None:
        sealed, self._sealed = self._sealed, []
        dropped, self._dropped = self._dropped, []
        if not sealed and not dropped:
            return
        try:
            await self._seam.thread(self._disk.sync_names)
            await self._sync()
            while sealed:
                self._seam.inline(self._disk.drop_scratch, sealed[-1])
                sealed.pop()
            while dropped:
                self._seam.inline(self._disk.drop_scratch, dropped[-1])
                self._seam.inline(self._disk.drop_staged, dropped[-1])
                self._free(dropped.pop())
        except BaseException:
            self._sealed[:0], self._dropped[:0] = sealed, dropped  # for the next pass
            self._work.set()
            raise
