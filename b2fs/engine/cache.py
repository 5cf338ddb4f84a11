"""The cache of clean bytes: blobs on disk, fetched once whoever asks, evicted when room is needed.

Rules
  A blob appears by a rename after it arrived in whole, was checked and put on stable storage, so what is there is right.
  Small ones are read before that (`engine.settling`).
  Room is reserved before a fetch begins; blobs are evicted until it fits, the coldest first; what is pinned is passed over.
  One fetch per blob at a time (`_flights`); it runs in the engine's nursery, so that a reader that goes
  away takes nothing from the others.
  A descriptor handed out by `opened` is valid until the next suspension of the caller: then an eviction
  may have closed it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import cachetools
import msgspec
import trio

from b2fs.core import chunks
from b2fs.core.change import KEPT_S, Blob, Change
from b2fs.core.lru import CacheIndex
from b2fs.engine import retry
from b2fs.engine.settling import Settling
from b2fs.engine.volume import Volume
from b2fs.errors import B2fsError, BucketError, Fault, NoSpace, ReadOnly, Unavailable

log = logging.getLogger(__name__)

_OPEN_FILES = 512
"""Blobs whose descriptors are kept open between reads."""
_COLD_BATCH = 64
_SMALL = 256 * 1024
"""Blobs up to this size settle together; a larger one is worth a sync of its own, and is not left dirty for long."""
_GIVE_WAY = 16 * 1024 * 1024
"""Bytes that are evicted at least when the disk is full, so that it is not asked for again at once."""


class Counters(msgspec.Struct):
    hits: int = 0
    """Chunks that a read found here."""
    misses: int = 0
    """Chunks that a read had to wait for."""
    evictions: int = 0
    fetches: int = 0
    fetched_bytes: int = 0


class _Flight:
    """A fetch that is under way."""

    __slots__ = ("done", "error", "wanted")

    def __init__(self, wanted: bool) -> None:
        self.done = trio.Event()
        self.error: B2fsError | None = None
        self.wanted = wanted
        """Somebody waits for it; else a fault ends it at once."""


class _OpenFiles(cachetools.LRUCache[str, int]):
    """Descriptors by blob name; closes what it drops."""

    def popitem(self) -> tuple[str, int]:
        name, fd = super().popitem()
        os.close(fd)
        return name, fd


class Cache:
    def __init__(self, volume: Volume, nursery: trio.Nursery) -> None:
        self._volume = volume
        self._nursery = nursery
        size, count = volume.journal.blob_totals()
        self.index = CacheIndex(volume.settings.cache_size, size, count)
        self.counters = Counters()
        self._files = _OpenFiles(_OPEN_FILES)
        self._flights: dict[str, _Flight] = {}
        self._settling = Settling(volume, nursery)
        self._settling.on_settled = self._note_blobs
        self._settling.on_lost = self._not_kept
        self._room = trio.Event()
        self._part = 0
        self._coldest = (-1, 0, "")
        """(used_s, size, name) up to which the journal's blobs, by last use, are gone or hot: nothing cold comes before it."""
        self._giving_way = False
        self.unread: dict[str, int] = {}
        """Blobs (to sizes) that came before anybody asked for them, and that nobody has read yet."""
        self.unread_bytes = 0
        self.on_miss: Callable[[str, int], None] = lambda file_id, size: None
        """Hears of reads that found nothing here; called without suspension, as the next two."""
        self.on_first_read: Callable[[str, int], None] = lambda name, size: None
        self.on_waste: Callable[[str, int], None] = lambda name, size: None
        """Hears of blobs that went before anybody had read them."""
        self.is_pinned: Callable[[str], bool] = lambda name: False
        """Whether a blob is to be kept; asked without suspension when one comes."""
        self.on_pin_lost: Callable[[str], None] = lambda name: None
        """Hears of pinned blobs that a full disk has cost."""
        volume.give_way = self.give_way

    # ------------------------------------------------------------ reading

    def opened(self, file_id: str, size: int, index: int) -> tuple[int, int] | None:
        """(descriptor, offset of its first byte) for chunk `index` of a version, None if it is not here."""
        name = chunks.whole(file_id)
        if chunks.is_small(size):
            fd = self._open(name, size)
            return (fd, 0) if fd >= 0 else None
        part, (offset, length) = chunks.part(file_id, index), chunks.span(size, index)
        # It lies here whole if it was written here, in parts if it was fetched: the disk is not asked at each read.
        if part not in self._files and (fd := self._open(name, size)) >= 0:
            return fd, 0
        fd = self._open(part, length)
        return (fd, offset) if fd >= 0 else None

    async def need(self, file_id: str, size: int, sha1: str, index: int) -> tuple[int, int]:
        """The same, fetching the chunk if need be. Unavailable, or BucketError MISSING if the version is gone."""
        found = self.opened(file_id, size, index)
        if found is not None:
            self.counters.hits += 1
            if self.unread and (name := chunks.whole(file_id)) in self.unread:
                self.on_first_read(name, self._no_longer_unread(name))
            return found
        self.counters.misses += 1
        self.on_miss(file_id, size)
        while True:
            flight = self.start(file_id, size, sha1, index)
            await flight.done.wait()
            if flight.error is not None:
                raise flight.error
            found = self.opened(file_id, size, index)
            if found is not None:
                return found  # else it was evicted before we woke: once more

    def start(self, file_id: str, size: int, sha1: str, index: int, *, ahead: bool = False) -> _Flight:
        """Begin to fetch a chunk (or join who did), without waiting. Its error is kept in the flight.

        `ahead`: nobody waits for it, so it is tried once; until somebody joins.
        """
        if chunks.is_small(size):
            name, offset, length = chunks.whole(file_id), 0, size
        else:
            name, (offset, length), sha1 = chunks.part(file_id, index), chunks.span(size, index), ""
        flight = self._flights.get(name)
        if flight is None:
            flight = self._flights[name] = _Flight(wanted=not ahead)
            self._nursery.start_soon(self._fetch, flight, name, file_id, offset, length, sha1)
        flight.wanted |= not ahead
        return flight

    def is_coming(self, name: str) -> bool:
        """Whether a blob is being fetched."""
        return name in self._flights

    def is_here(self, file_id: str, size: int, index: int) -> bool:
        return self.opened(file_id, size, index) is not None

    def is_kept(self, file_id: str, size: int, index: int) -> bool:
        """Whether a chunk is here as part of what is pinned."""
        name = chunks.whole(file_id)
        return self.index.is_kept(name) or (
            not chunks.is_small(size) and self.index.is_kept(chunks.part(file_id, index))
        )

    def has(self, name: str) -> bool:
        """Whether a blob is here."""
        return name in self._settling.blobs or self._volume.disk.has_blob(name)

    def whole_path(self, file_id: str) -> str | None:
        """The path of a version that lies here as one blob."""
        name = chunks.whole(file_id)
        return self._volume.disk.blob_path(name) if file_id and self._volume.disk.has_blob(name) else None

    def _open(self, name: str, size: int) -> int:
        fd: int | None = self._files.get(name)
        if fd is None:
            disk, fresh = self._volume.disk, self._settling.blobs.get(name)
            fd = disk.open_part(fresh.number) if fresh is not None and fresh.number else disk.open_blob(name)
            if fd < 0:
                return -1
            self._files[name] = fd
        if not self.index.is_hot(name) and self._volume.journal.blob(name) is None:
            self.add(name, size)  # a crash came between its rename and its row
        else:
            self.index.hit(name, size)
        return fd

    async def _fetch(self, flight: _Flight, name: str, file_id: str, offset: int, length: int, sha1: str) -> None:
        volume = self._volume
        number = 0
        reserved = False
        try:
            await self.make_room(length)
            reserved = True
            deadline_s = trio.current_time() + volume.settings.read_deadline_s

            async def attempt() -> int:
                # a path of its own: an attempt that was given up may still be writing into its file
                self._part += 1
                mine = self._part
                try:
                    await volume.bucket.fetch(file_id, volume.disk.part_path(mine), offset, length, sha1)
                except NoSpace:
                    volume.seam.inline(volume.disk.drop_part, mine)
                    if not self.give_way(length):
                        await volume.wait_freed(deadline_s)
                    return await attempt()
                except BaseException:
                    volume.seam.inline(volume.disk.drop_part, mine)
                    raise
                return mine

            if not flight.wanted:
                try:
                    number = await attempt()
                except BucketError as error:
                    if not (flight.wanted and error.may_retry):
                        raise
            if not number:
                number = await retry.until(volume.settings.read_deadline_s, attempt, "the content")
            if length <= _SMALL:
                self._arrived(name, length, number)
            else:
                await volume.seam.thread(volume.disk.secure_part, number)
                volume.seam.inline(volume.disk.part_to_blob, number, name)
                self.add(name, length)
            number = 0
            if not flight.wanted and not self.index.is_kept(name):
                self.unread[name] = length
                self.unread_bytes += length
            self.counters.fetches += 1
            self.counters.fetched_bytes += length
        except BucketError as error:
            if error.fault is Fault.MISSING and flight.wanted:
                log.error("version %s is gone from the bucket, its content cannot be read", file_id)
            flight.error = error
        except NoSpace:
            flight.error = Unavailable("the disk of the state directory is full: nothing can be fetched to it")
        except B2fsError as error:
            flight.error = error
        except Exception:  # a bug must reach the reader as an error, not leave it waiting
            log.exception("fetching %s failed", name)
            flight.error = Unavailable("an unexpected error, see the log")
        finally:
            if reserved:
                self.index.release(length)
                self._room.set()
                self._room = trio.Event()
            del self._flights[name]
            if number:
                volume.seam.inline(volume.disk.drop_part, number)
            flight.done.set()

    # ------------------------------------------------------------ settling

    def _arrived(self, name: str, size: int, number: int) -> None:
        """A small blob can be read from now on, or one of any size that needs no more than its row (`number` 0)."""
        self._count(name, size)
        self._settling.add(name, size, number)

    async def settle(self) -> None:
        """Put what came until now on stable storage, then give it its place and its row."""
        await self._settling.settle()

    def _note_blobs(self, blobs: Sequence[tuple[str, int]]) -> None:
        self._note(Change(blobs=[self._row(name, size) for name, size in blobs]))

    def _not_kept(self, name: str) -> None:
        if self.index.is_kept(name):
            self.on_pin_lost(name)
        self.index.forget(name)
        self._drop(name)

    # ------------------------------------------------------------ room

    def add(self, name: str, size: int) -> None:
        """A blob came into the cache directory (by a fetch, or as confirmed staged content)."""
        self._count(name, size)
        self._note_blobs([(name, size)])

    def _row(self, name: str, size: int) -> Blob:
        """The row of a blob that came or was used just now."""
        return Blob(name, size, KEPT_S if self.index.is_kept(name) else int(time.time()))

    def keep(self, stem: str) -> None:
        """A version is pinned from now on: what lies here of it stays."""
        for name in self._settling.of_version(stem):
            self.index.keep(name, self._settling.blobs[name].size)
            self._no_longer_unread(name)
        change = Change()
        for blob in self._volume.journal.blobs_of(stem):
            self.index.keep(blob.name, blob.size)
            self._no_longer_unread(blob.name)
            if blob.used_s != KEPT_S:
                change.blobs.append(self._row(blob.name, blob.size))
        if change.blobs:
            self._note(change)

    def unkeep(self, stem: str) -> None:
        """A version is pinned no more: what lies here of it is like any other."""
        for name in self._settling.of_version(stem):
            self.index.unkeep(name)
        self.free_marked([blob for blob in self._volume.journal.blobs_of(stem) if blob.used_s == KEPT_S])

    def free_marked(self, blobs: list[Blob]) -> None:
        """What the journal calls pinned is so no more."""
        for blob in blobs:
            self.index.unkeep(blob.name)
        if blobs:
            self._note(Change(blobs=[self._row(blob.name, blob.size) for blob in blobs]))

    def _count(self, name: str, size: int) -> None:
        may_be_cold = self.index.cold_count > 0 and not self.index.is_hot(name)
        if may_be_cold and (old := self._volume.journal.blob(name)) is not None:
            self.index.forget_cold(old.size)
        self.index.add(name, size, kept=self.is_pinned(name))

    def _drop(self, name: str) -> None:
        """A blob goes; the index has forgotten it."""
        self._close(name)
        fresh = self._settling.take(name)
        if fresh is not None and fresh.number:
            self._volume.seam.inline(self._volume.disk.drop_part, fresh.number)
        else:
            self._volume.seam.inline(self._volume.disk.drop_blob, name)
        self._no_longer_unread(name)

    def adopt(self, name: str, size: int) -> None:
        """A staged file became a blob: room for it is made afterwards, and its row comes when it settles."""
        if name not in self._settling.blobs:
            self._arrived(name, size, 0)
        short = self.index.short(0)
        if short:
            self._evict(short)

    async def make_room(self, size: int) -> None:
        """Reserve `size` bytes, evicting what was not used for the longest time.

        Waits while all room is reserved by others; a single request larger than the whole cache passes.
        """
        while self.index.short(size) > 0 and not self._evict(self.index.short(size)):
            if self.index.reserved == 0:
                break
            await self._room.wait()
        self.index.reserve(size)

    def _evict(self, wanted: int, *, pinned_too: bool = False) -> bool:
        """Evict at least `wanted` bytes; whether that much could be found."""
        gone: list[str] = []
        while wanted > 0 and self.index.cold_bytes > 0:
            batch = self._volume.journal.coldest_blobs(_COLD_BATCH, self._coldest)
            if not batch:
                break
            for blob in batch:
                if wanted <= 0:
                    break
                self._coldest = (blob.used_s, blob.size, blob.name)
                if not self.index.is_hot(blob.name):
                    self.index.forget_cold(blob.size)
                    gone.append(blob.name)
                    wanted -= blob.size
        while wanted > 0 and (oldest := self.index.oldest_hot()) is not None:
            gone.append(oldest[0])
            wanted -= oldest[1]
        while pinned_too and wanted > 0 and (last := self.index.last_kept()) is not None:
            gone.append(last[0])
            wanted -= last[1]
            self.on_pin_lost(last[0])
        for name in gone:
            if name in self.unread:
                self.on_waste(name, self._no_longer_unread(name))
            self._drop(name)
        self.counters.evictions += len(gone)
        if gone:
            self._note(Change(lost_blobs=gone))
        return wanted <= 0

    def give_way(self, size: int) -> bool:
        """The disk is full: evict `size` bytes and some more, whatever the limit says, what is pinned at the very last;
        whether any were there.
        """
        if self._giving_way:
            return False
        self._giving_way = True
        try:
            before = self.index.used
            if not self._evict(max(size, _GIVE_WAY)) and self.index.used == before:
                self._evict(size, pinned_too=True)  # no more than needed
            return self.index.used < before
        finally:
            self._giving_way = False

    def _note(self, change: Change) -> None:
        """Keep the journal's list of blobs. Where it cannot be written, reads go on all the same: a row without
        a file is a miss, a file without a row is swept at the next start.
        """
        try:
            self._volume.commit(change)
        except (NoSpace, ReadOnly) as error:
            log.warning("the list of cached files cannot be kept: %s", error)

    def lose(self, file_id: str) -> None:
        """What lies here of a version is spoilt."""
        stem = chunks.whole(file_id)
        names = [blob.name for blob in self._volume.journal.blobs_of(stem)] + self._settling.of_version(stem)
        for name in names:
            if not self.index.is_hot(name) and (blob := self._volume.journal.blob(name)) is not None:
                self.index.forget_cold(blob.size)
            self.index.forget(name)
            self._drop(name)
        self._note(Change(lost_blobs=names))

    def rename(self, old_id: str, new_id: str) -> None:
        """The content of one version became that of another: keep what lies here under the new name."""
        old_stem, new_stem = chunks.whole(old_id), chunks.whole(new_id)
        change = Change()
        for name in self._settling.of_version(old_stem):
            new = new_stem + name.removeprefix(old_stem)
            fresh = self._settling.rename(name, new)
            if not fresh.number:
                self._volume.seam.inline(self._volume.disk.rename_blob, name, new)
            self._close(name)
            self._no_longer_unread(name)
            self.index.forget(name)
            self.index.add(new, fresh.size)
        for blob in self._volume.journal.blobs_of(old_stem):
            new = new_stem + blob.name.removeprefix(old_stem)
            self._close(blob.name)
            self._no_longer_unread(blob.name)
            if self._volume.seam.inline(self._volume.disk.rename_blob, blob.name, new):
                self.index.hit(blob.name, blob.size)
                self.index.forget(blob.name)
                self.index.add(new, blob.size)
                change.lost_blobs.append(blob.name)
                change.blobs.append(Blob(new, blob.size, int(time.time())))
        if change.blobs:
            self._note(change)

    def _no_longer_unread(self, name: str) -> int:
        """Its size, 0 if it was not."""
        size = self.unread.pop(name, 0)
        self.unread_bytes -= size
        return size

    def _close(self, name: str) -> None:
        fd = self._files.pop(name, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close the descriptors and remember the order of use for the next start."""
        while self._files:
            self._files.popitem()
        now = int(time.time())
        change = Change()
        for name in self.index.hot_names():
            if (blob := self._volume.journal.blob(name)) is not None:
                change.blobs.append(Blob(name, blob.size, now))
        self._note(change)

    def statistics(self) -> dict[str, Any]:
        return {
            "hits": self.counters.hits,
            "misses": self.counters.misses,
            "bytes": self.index.used,
            "limit": self.index.limit,
            "objects": len(self.index),
            "evictions": self.counters.evictions,
        }
