"""Settling: small blobs on their way from having arrived to being kept.

A small blob is read as soon as it was checked. To sync, place and note each by itself would cost more CPU than to
fetch it, so they are gathered for `_SETTLE_S` and settle many at a time: put on stable storage, given their places, given
their rows by one commit. A crash loses those of the last moment, as it does those on the way.

Rules
  Until it has its place a blob is read from its file in ``part/``, and whoever drops or renames it does so here too.
  What the disk does not keep is no blob: its next reader fetches it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from b2fs.engine.volume import Volume
from b2fs.errors import Damaged, NoSpace

log = logging.getLogger(__name__)

_SETTLE_S = 0.1
"""How long small blobs are gathered before they settle."""
_PLACED = 16
"""Blobs that get their place between two looks at other work: about 1 ms."""


class Fresh(NamedTuple):
    """A blob that has not settled."""

    number: int
    """Of its file in ``part/``; 0: it has its place and is safe, only its row is missing."""
    size: int


class Settling:
    """The blobs that have not settled, by name. Nobody else changes `blobs`, but by `add`, `take` and `rename`."""

    def __init__(self, volume: Volume, nursery: trio.Nursery) -> None:
        self._volume = volume
        self._nursery = nursery
        self.blobs: dict[str, Fresh] = {}
        self._is_waiting = False
        self.on_settled: Callable[[Sequence[tuple[str, int]]], None] = lambda blobs: None
        """Hears of blobs (name, size) that have their places now, and want their rows; called without suspension."""
        self.on_lost: Callable[[str], None] = lambda name: None
        """Hears of a blob that the disk did not keep; called without suspension, while `blobs` still has it."""

    def add(self, name: str, size: int, number: int) -> None:
        """A blob came, see `Fresh`; it settles soon."""
        self.blobs[name] = Fresh(number, size)
        if not self._is_waiting:
            self._is_waiting = True
            self._nursery.start_soon(self._settle_soon)

    def take(self, name: str) -> Fresh | None:
        """A blob is none of these any more: what is under way for it has no effect."""
        return self.blobs.pop(name, None)

    def rename(self, old: str, new: str) -> Fresh:
        """One of these has another name from now on."""
        fresh = self.blobs[new] = self.blobs.pop(old)
        return fresh

    def of_version(self, stem: str) -> list[str]:
        """The blobs of a version that have not settled."""
        return [name for name in self.blobs if name == stem or name.startswith(stem + ".")]

    async def _settle_soon(self) -> None:
        try:
            while self.blobs:
                await trio.sleep(_SETTLE_S)
                await self.settle()
        except Exception:  # a bug here must not take the mount away; who fetches next begins anew
            log.exception("what was fetched could not settle")
        finally:
            self._is_waiting = False

    async def settle(self) -> None:
        """Settle what came until now."""
        volume, fresh = self._volume, list(self.blobs.items())
        if not fresh:
            return
        kept = {0}
        if parts := {blob.number: name for name, blob in fresh if blob.number}:
            kept |= await volume.seam.thread(volume.disk.secure_parts, parts)
        for start in range(0, len(fresh), _PLACED):
            batch = fresh[start : start + _PLACED]
            placed = [(name, blob.size) for name, blob in batch if self._place(name, blob, blob.number in kept)]
            if placed:
                self.on_settled(placed)
            await trio.lowlevel.cancel_shielded_checkpoint()

    def _place(self, name: str, blob: Fresh, secure: bool) -> bool:
        """Give a blob its place; whether it has it now."""
        if self.blobs.get(name) is not blob:
            return False  # it was evicted or renamed meanwhile
        try:
            if secure:
                if blob.number:
                    self._volume.seam.inline(self._volume.disk.part_to_blob, blob.number, name)
                del self.blobs[name]
                return True
            log.warning("the disk did not keep what was fetched as %s", name)
        except (NoSpace, Damaged, OSError) as error:
            log.warning("what was fetched as %s cannot be kept: %s", name, error)
        self.on_lost(name)
        return False
