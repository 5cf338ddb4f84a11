"""Prefetch: small files are fetched before somebody asks for them.

Rules
  What is predicted (`core.prefetch`) goes first, the nearest before the others, then what the patterns of the settings
  name. Both stand back behind reads: some of the fetch lanes are never used for them, and a read that finds its file in
  the queue fetches it itself, one that finds it on the way takes that fetch over.
  A fetch that nobody waits for is tried once. A version that is gone is dropped without a word; after any other fault
  all of them pause, after a refusal (a cap, the key) for long.
  It takes free room and that of blobs that nobody used since the start, never of others; what nobody has read yet fills
  at most a part of the cache. What the patterns name and has no room is looked for again when there is some.
  Every blob counts as useful when it is read, as wasted when it is evicted before.

Everything but `run` is called without a suspension, on a miss or a first use only: a read of what is here costs nothing.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import trio

from b2fs.core import chunks
from b2fs.core.bucket import Version
from b2fs.core.inode import ROOT, Inode
from b2fs.core.prefetch import Member, Predictor
from b2fs.engine import pins, retry
from b2fs.engine.cache import Cache
from b2fs.engine.volume import Volume
from b2fs.errors import BucketError, Fault

log = logging.getLogger(__name__)

_SMALL = 1024 * 1024
"""Largest file that is prefetched: what a round trip costs is not worth more bytes."""
_DEPTH = 3
"""How many directories of a path are looked at for the same name beside it."""
_BESIDE = 16
_BELOW = 128
"""Names of a directory, and of each below it, among which documents are looked for."""
_DOCUMENT = 64 * 1024
_FEW = 8
"""Documents, of at most so many bytes, that are guessed together: of more hardly all are wanted."""
_CACHE_PART = 4
"""What nobody has read yet fills at most 1/n of the cache."""
_ON_THE_WAY = 16 * 1024 * 1024
"""Bytes that are being fetched without anybody waiting for them."""
_LANES_LEFT = 4
"""1/n of the fetch lanes, one at least, is left to reads: where there is but one, nothing is prefetched."""
_AGAIN_S = 60.0
"""How often what had no room is thought of."""
_AGAIN_PART = 4 * _CACHE_PART
"""It is looked for again when there is room for 1/n of the cache: so each reading of the names is for something."""
_TOGETHER = 4
"""Fetches that begin in one turn of the loop. Tasks that start together run in any order, so of more the nearest might come
last; fewer cost more turns.
"""
_QUEUE = 100_000
"""Entries of what the patterns name, and of what is unread."""
_LOOKS = 64
"""Entries that are passed over between two looks at other work."""
_PAGE = 1000


class Wanted(msgspec.Struct, frozen=True):
    """A version to fetch."""

    file_id: str
    size: int
    sha1: str

    @property
    def blob(self) -> str:
        return chunks.whole(self.file_id)


class Counters(msgspec.Struct):
    """Requests, and bytes of what arrived."""

    requests: int = 0
    bytes: int = 0
    useful: int = 0
    useful_bytes: int = 0
    wasted: int = 0
    """Evicted before anybody read them."""
    wasted_bytes: int = 0
    failed: int = 0


class Prefetch:
    def __init__(self, volume: Volume, cache: Cache) -> None:
        self._volume = volume
        self._cache = cache
        self._patterns = volume.settings.prefetch
        self._predictor = Predictor(volume.journal.following, self._below)
        self._predicted: deque[Wanted] = deque()
        """At most as many as the predictor has open."""
        self._named: deque[Wanted] = deque()
        self._left_out = False
        """Something that the patterns name had no room, or none in the queue."""
        self._lanes = volume.settings.fetches - max(1, volume.settings.fetches // _LANES_LEFT)
        if volume.settings.pin.globs:
            self._lanes -= max(1, volume.settings.fetches // pins.LANES_PART)
        self._on_the_way: dict[str, int] = {}
        self._work = trio.Event()
        self._failures = 0
        self._pause_until_s = 0.0
        self.counters = Counters()
        if volume.settings.predict:
            cache.on_miss = self._missed
        cache.on_first_read = self._first_read
        cache.on_waste = self._wasted

    # ------------------------------------------------------------ what happens

    def listed(self, directory: int) -> None:
        """A program looks at all names of a directory."""
        self._predictor.listed(directory)

    def news(self, versions: Iterable[Version]) -> None:
        """A listing brought these."""
        if self._patterns.globs:
            self._take(Wanted(v.file_id, v.size, v.sha1) for v in versions if self._patterns.match(v.key))

    def _missed(self, file_id: str, size: int) -> None:
        if chunks.is_small(size):
            self._is_read(file_id, waited=True)

    def _first_read(self, blob: str, size: int) -> None:
        self.counters.useful += 1
        self.counters.useful_bytes += size
        if self._predictor.expects(blob):
            self._is_read(blob, waited=False)

    def _is_read(self, file_id: str, *, waited: bool) -> None:
        """A file is read that had to be fetched, now (`waited`) or before. Also by the blob's name: most are file ids."""
        blob = chunks.whole(file_id)
        if self._predictor.expects(blob):
            following = self._predictor.used(blob, waited)
            if following is not None:
                self._predicted.extend(self._expect(following))
                return
        for guess in self._predictor.missed(blob, self._members(file_id)):
            if found := self._expect(guess):
                self._predicted.extendleft(reversed(found))  # before what is left of other runs
                break

    def _wasted(self, blob: str, size: int) -> None:
        self.counters.wasted += 1
        self.counters.wasted_bytes += size
        self._predictor.lost(blob)

    # ------------------------------------------------------------ what to fetch

    def _members(self, file_id: str) -> list[Member]:
        """The series that a file is in: its directory's, and those of its name in directories beside its own."""
        journal, found = self._volume.journal, list[Member]()
        inode, tail = journal.lives_in(file_id), tuple[bytes, ...]()
        ino = inode.ino if inode is not None else ROOT
        while ino != ROOT and len(found) <= _DEPTH:
            parent, name = next(iter(journal.names_of(ino)), (ROOT, b""))
            found.append(Member((parent, tail), name))
            ino, tail = parent, (name, *tail)
        return found

    def _below(self, directory: int, name: bytes) -> tuple[list[Member], int | None]:
        """The small files of a suffix in the directories below one, none if they are many, or are not soon found; and
        the first of these directories.
        """
        journal, suffix, found = self._volume.journal, os.path.splitext(name)[1], list[Member]()
        first: int | None = None
        names = journal.following(directory, b"", _BESIDE + 1) if suffix else []
        for beside in names if len(names) <= _BESIDE else []:
            inode = journal.entry(directory, beside)
            if inode is None or not inode.is_dir:
                continue
            for file in journal.following(inode.ino, b"", _BELOW):
                if file.endswith(suffix) and (below := journal.entry(inode.ino, file)) and below.size <= _DOCUMENT:
                    found.append(Member((directory, (file,)), beside))
                    first = first or inode.ino
            if len(found) > _FEW:
                return [], None
        return found, first

    def _expect(self, members: Sequence[Member]) -> list[Wanted]:
        """Take a guess up: what is new in it."""
        found = list[Wanted]()
        for member in members:
            inode = self._find(member)
            if inode is not None and inode.is_dir and member.series[1]:
                self._predictor.cut(member)
                break
            wanted = self._wanted(inode)
            if wanted is not None and self._predictor.predict(member, wanted.blob):
                found.append(wanted)
        if found:
            self._work.set()
        return found

    def _find(self, member: Member) -> Inode | None:
        """The file that a member is, None if there is none; a directory, if that is not listed yet."""
        directory, tail = member.series
        inode = self._volume.entry(directory, member.name)
        for name in tail:
            if inode is None or not inode.is_dir:
                return None
            below = self._volume.entry(inode.ino, name)
            if below is None and not inode.complete:
                return inode
            inode = below
        return inode

    def _wanted(self, inode: Inode | None) -> Wanted | None:
        """What is to be fetched for a file; None if it is here, large, or not a clean file."""
        if inode is None or not inode.is_file or inode.scratch or inode.staged or not inode.file_id:
            return None
        if not 0 < inode.size <= _SMALL or self._cache.has(chunks.whole(inode.file_id)):
            return None
        return Wanted(inode.file_id, inode.size, inode.sha1)

    def _take(self, wanted: Iterable[Wanted]) -> None:
        for each in wanted:
            if len(self._named) >= _QUEUE:
                self._left_out = True
                break
            if 0 < each.size <= _SMALL:
                self._named.append(each)
        if self._named:
            self._work.set()

    async def _look_again(self) -> None:
        """Read the names again when there is room for what had none; never ends."""
        while True:
            await trio.sleep(_AGAIN_S)
            if self._left_out and not self._named and self._has_room(self._cache.index.limit // _AGAIN_PART):
                self._left_out = False
                await self._read_names()

    async def _read_names(self) -> None:
        """What the patterns name of what the journal knows."""
        journal, after = self._volume.journal, ""
        while rows := await self._volume.seam.thread(journal.objects_after, after, _PAGE):
            after = rows[-1].key
            self._take(Wanted(r.file_id, r.size, r.sha1) for r in rows if r.file_id and self._patterns.match(r.key))
            await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------ fetching

    async def run(self) -> None:
        """Fetch what is expected; never ends."""
        if self._patterns.globs:
            await self._read_names()
        try:
            async with trio.open_nursery() as nursery:
                if self._patterns.globs:
                    nursery.start_soon(self._look_again)
                while True:
                    await self._work.wait()
                    self._work = trio.Event()
                    await trio.sleep(max(0.0, self._pause_until_s - trio.current_time()))
                    started = 0
                    while (
                        trio.current_time() >= self._pause_until_s
                        and len(self._on_the_way) < self._lanes
                        and (wanted := self._next()) is not None
                    ):
                        self._on_the_way[wanted.blob] = wanted.size
                        nursery.start_soon(self._fetch, wanted)
                        started += 1
                        if started % _TOGETHER == 0:
                            await trio.lowlevel.checkpoint()
        finally:
            if self.counters.requests:
                log.info("prefetched until now: %s", self.statistics())

    def _next(self) -> Wanted | None:
        """The next of the queues that is worth a fetch still, and has room; None also where there is more to pass over."""
        for _ in range(_LOOKS):
            queue = self._predicted or self._named
            if not queue or sum(self._on_the_way.values()) + queue[0].size > _ON_THE_WAY:
                return None
            wanted = queue.popleft()
            if queue is self._predicted and not self._predictor.expects(wanted.blob):
                continue  # read, or too late; or this kind of prediction is off
            is_coming = wanted.blob in self._on_the_way or self._cache.is_coming(wanted.blob)
            if is_coming or self._cache.has(wanted.blob):
                continue
            if self._has_room(wanted.size):
                return wanted
            self._left_out |= queue is self._named
            self._predictor.dropped(wanted.blob)
        self._work.set()
        return None

    def _has_room(self, size: int) -> bool:
        index = self._cache.index
        coming = sum(each for blob, each in self._on_the_way.items() if blob not in self._cache.unread)
        unread = self._cache.unread_bytes + coming
        if unread + size > index.limit // _CACHE_PART or index.short(coming + size) > index.cold_bytes:
            return False
        if len(self._cache.unread) >= _QUEUE:
            return False
        return self._volume.disk_room(size)

    async def _fetch(self, wanted: Wanted) -> None:
        self.counters.requests += 1
        flight = self._cache.start(wanted.file_id, wanted.size, wanted.sha1, 0, ahead=True)
        await flight.done.wait()
        del self._on_the_way[wanted.blob]
        self._work.set()
        if flight.error is None:
            self._failures = 0
            self.counters.bytes += wanted.size
            if flight.wanted:  # somebody came for it on the way
                self.counters.useful += 1
                self.counters.useful_bytes += wanted.size
            return
        self.counters.failed += 1
        self._predictor.dropped(wanted.blob)
        fault = flight.error if isinstance(flight.error, BucketError) else None
        if fault is not None and fault.fault is Fault.MISSING:
            return
        self._failures += 1
        pause_s = retry.backoff_s(self._failures, fault)
        self._pause_until_s = max(self._pause_until_s, trio.current_time() + pause_s)
        for each in self._predicted:  # whoever needs them will have asked by then
            self._predictor.dropped(each.blob)
        self._predicted.clear()

    def statistics(self) -> dict[str, Any]:
        """For `b2fs stats`; `unread`: fetched, and neither read nor evicted so far."""
        return {
            **msgspec.structs.asdict(self.counters),
            "unread": len(self._cache.unread),
            "unread_bytes": self._cache.unread_bytes,
            "on": self._predictor.on,
        }
