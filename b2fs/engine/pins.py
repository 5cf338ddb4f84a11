"""Pins: files that the setting names are fetched as soon as they are known, and stay in the cache.

Rules
  Which files those are follows from their names, and is stored nowhere: a start reads the names in the background, and
  then `Volume.on_commit` tells which inodes to look at again. So a name or version of whatever origin is as good as another.
  Only clean content is pinned; while a file is written its earlier version stays, and what becomes of it takes its place.
  They fill at most a part of the cache (`core.pin`). What of them has come is kept there (`CacheIndex.keep`), where no
  eviction meets it but that of a full disk; what that took is fetched again later.
  The journal marks their blobs (`KEPT_S`), so that no eviction takes them before the names are read.
  They are fetched chunk by chunk on a part of the lanes (`engine.prefetch` leaves it to them), also in place of what was
  read. A fetch is tried once; after a fault all of them pause.

Checklist of awaits between a check and its use
  `_fetch`: whether the version is pinned still is looked at before each chunk.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import trio

from b2fs.core import chunks, names
from b2fs.core.change import Change
from b2fs.core.inode import ROOT, Inode
from b2fs.core.pin import Pin, Pins
from b2fs.engine import retry
from b2fs.engine.cache import Cache
from b2fs.engine.volume import Volume
from b2fs.errors import BucketError, Fault

log = logging.getLogger(__name__)

CACHE_PART = 2
"""Pins fill at most 1/n of the cache."""
LANES_PART = 2
"""1/n of the fetch lanes, but one at least."""
_SLICE = 20
"""Files that are looked at between two looks at other work: about 1 ms."""
_PAGE = 1000
_FULL_S = 60.0
"""Pause when the disk is full."""


class PinKeeper:
    def __init__(self, volume: Volume, cache: Cache) -> None:
        self._volume = volume
        self._cache = cache
        self._patterns = volume.settings.pin
        self._pins = Pins(cache.index.limit // CACHE_PART)
        self._touched: dict[int, None] = {}
        """Inodes whose pin may be another now."""
        self._news = trio.Event()
        """Set when there are some."""
        self._wanted: dict[int, None] = {}
        """Inodes whose version may not be here in whole."""
        self._work = trio.Event()
        """Set when there are some."""
        self._lanes = trio.Semaphore(0)
        self._failures = 0
        self._pause_until_s = 0.0
        self._told = False
        """The log says that not all fits."""
        if self._patterns.globs:
            volume.on_commit = self._heard
            cache.is_pinned = lambda blob: self._pins.owner(blob) is not None
            cache.on_pin_lost = self._lost

    # ------------------------------------------------------------ who is pinned

    def _heard(self, change: Change) -> None:
        """Something changed: remember whose pin it may be about. Of most changes it reads nothing but the inode rows."""
        found = [ino for ino in change.gone if self._pins.get(ino) is not None]
        links = {ino: (parent, name) for parent, name, ino in change.links}
        paths: dict[int, str] = {}
        for inode in change.inodes:
            is_candidate = _is_clean(inode) and (inode.ino not in links or self._is_named(*links[inode.ino], paths))
            if is_candidate or self._pins.get(inode.ino) is not None:
                found.append(inode.ino)
        if found:
            self._touched.update(dict.fromkeys(found))
            self._news.set()

    def _is_named(self, parent: int, name: bytes, paths: dict[int, str]) -> bool:
        """`paths`: of directories, as far as they were looked for."""
        if parent not in paths:
            node = self._volume.tree.nodes.get(parent)
            paths[parent] = self._volume.tree.path(node) if node is not None else self._volume.journal.path_of(parent)
        return self._patterns.match(names.join(paths[parent], name.decode()))

    async def follow(self) -> None:
        """Keep what is pinned in line with the names; never ends, unless nothing is to be pinned."""
        if self._patterns.globs:
            await self._read_names()
        await self._free_marked()
        while self._patterns.globs:
            self._tell()
            await self._news.wait()
            self._news = trio.Event()
            while self._touched:
                for ino in list(itertools.islice(self._touched, _SLICE)):
                    del self._touched[ino]
                    self._review(ino)
                self._want(*self._pins.look_again())
                await trio.lowlevel.checkpoint()

    async def _read_names(self) -> None:
        """Look at everything that the journal knows from earlier runs."""
        journal, after = self._volume.journal, ""
        while rows := await self._volume.seam.thread(journal.objects_after, after, _PAGE):
            after = rows[-1].key
            keys = [row.key for row in rows if row.file_id and self._patterns.match(row.key)]
            for start in range(0, len(keys), _SLICE):
                self._named(keys[start : start + _SLICE])
                await trio.lowlevel.checkpoint()

    def _named(self, keys: list[str]) -> None:
        """These are to be pinned."""
        journal, directories = self._volume.journal, {"": ROOT}
        for key in keys:
            path, name = names.split(key)
            if path not in directories:
                directory = journal.path_inode(path)
                directories[path] = directory.ino if directory is not None else 0
            inode = journal.entry(directories[path], name.encode())
            if inode is not None:
                node = self._volume.tree.nodes.get(inode.ino)
                self._put(inode.ino, node.inode if node is not None else inode)

    async def _free_marked(self) -> None:
        """What the last run has pinned and this one does not is like any other; but for a file that B2 does not have under
        its name yet: it was not among the names.
        """
        journal, after = self._volume.journal, (-1, "")
        while blobs := await self._volume.seam.thread(journal.kept_blobs, after, _PAGE):
            after = (blobs[-1].size, blobs[-1].name)
            others = [blob for blob in blobs if self._pins.owner(blob.name) is None]
            for start in range(0, len(others), _SLICE):
                few = others[start : start + _SLICE]
                for blob in few:
                    if (inode := journal.lives_in(blob.name.partition(".")[0])) is not None:
                        self._review(inode.ino)
                self._cache.free_marked([blob for blob in few if self._pins.owner(blob.name) is None])
                await trio.lowlevel.checkpoint()

    def _review(self, ino: int) -> None:
        """See whether an inode is pinned, and which version of it."""
        inode = self._inode(ino)
        if inode is None or not inode.nlink or not any(map(self._patterns.match, self._volume.journal.keys_of(ino))):
            inode = None
        self._put(ino, inode)

    def _put(self, ino: int, inode: Inode | None) -> None:
        """An inode is to be pinned as it is now; None: no more."""
        before = self._pins.kept.get(ino)
        if inode is None:
            self._pins.drop(ino)
        elif _is_clean(inode) and self._pins.put(ino, Pin(inode.file_id, inode.size)):
            self._want(ino)
        if before is not None and self._pins.owner(before.stem) is None:
            self._cache.unkeep(before.stem)

    def _inode(self, ino: int) -> Inode | None:
        node = self._volume.tree.nodes.get(ino)
        return node.inode if node is not None else self._volume.journal.inode(ino)

    def _want(self, *inos: int) -> None:
        """These are to be kept: what is here of them, and what is not yet."""
        for ino in inos:
            pin = self._pins.kept[ino]
            self._cache.keep(pin.stem)
            if not all(self._cache.is_kept(pin.file_id, pin.size, index) for index in range(chunks.count(pin.size))):
                self._wanted[ino] = None
                self._work.set()

    def _lost(self, blob: str) -> None:
        """A full disk took a blob."""
        ino = self._pins.owner(blob)
        if ino is not None:
            self._later(ino, _FULL_S)

    def _tell(self) -> None:
        pins = self._pins
        if pins.left_out and not self._told:
            log.warning(
                "not all that `pin` names fits into half of the cache (%d bytes): %d files so far (%d bytes) are like any other",
                pins.limit, len(pins.left_out), pins.left_out_bytes,
            )  # fmt: skip
        self._told = bool(pins.left_out)

    # ------------------------------------------------------------ fetching

    async def fetch(self) -> None:
        """Fetch what is pinned and not here; never ends."""
        self._lanes = trio.Semaphore(max(1, self._volume.settings.fetches // LANES_PART))
        async with trio.open_nursery() as nursery:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while self._wanted:
                    ino = next(iter(self._wanted))
                    del self._wanted[ino]
                    await self._fetch(nursery, ino)
                    await trio.lowlevel.checkpoint()

    async def _fetch(self, nursery: trio.Nursery, ino: int) -> None:
        pin, index = self._pins.kept.get(ino), 0
        while pin is not None and index < chunks.count(pin.size) and ino not in self._wanted:
            if self._cache.is_kept(pin.file_id, pin.size, index):
                index += 1
                continue
            await self._lanes.acquire()
            await trio.sleep(max(0.0, self._pause_until_s - trio.current_time()))
            inode, size = self._inode(ino), chunks.span(pin.size, index)[1]
            is_current = self._pins.kept.get(ino) is pin and inode is not None and inode.file_id == pin.file_id
            if inode is None or not is_current or not _is_clean(inode) or not self._volume.disk_room(size):
                self._lanes.release()
                if is_current and inode is not None and _is_clean(inode):
                    self._later(ino, _FULL_S)
                return
            nursery.start_soon(self._fetch_chunk, ino, pin, inode.sha1, index)
            index += 1

    async def _fetch_chunk(self, ino: int, pin: Pin, sha1: str, index: int) -> None:
        flight = self._cache.start(pin.file_id, pin.size, sha1, index, ahead=True)
        await flight.done.wait()
        self._lanes.release()
        if flight.error is None:
            self._failures = 0
            return
        fault = flight.error if isinstance(flight.error, BucketError) else None
        if fault is None or fault.fault is not Fault.MISSING:  # that version is news for the next listing
            self._failures += 1
            self._later(ino, retry.backoff_s(self._failures, fault))

    def _later(self, ino: int, pause_s: float) -> None:
        """Try an inode again, after a pause that all of them make."""
        self._pause_until_s = max(self._pause_until_s, trio.current_time() + pause_s)
        self._wanted[ino] = None
        self._work.set()

    def statistics(self) -> dict[str, Any]:
        """For `b2fs stats`; sizes in bytes. `left_out`: what has no room, `here_bytes`: what is in the cache so far."""
        pins = self._pins
        return {
            "files": len(pins.kept),
            "bytes": pins.bytes,
            "here_bytes": self._cache.index.kept_bytes,
            "limit": pins.limit,
            "left_out": len(pins.left_out),
            "left_out_bytes": pins.left_out_bytes,
        }


def _is_clean(inode: Inode) -> bool:
    """Whether the content of a file is a version, and there is something in it."""
    return inode.is_file and bool(inode.file_id) and inode.size > 0 and not (inode.scratch or inode.staged)
