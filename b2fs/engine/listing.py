"""What the bucket has: listings, of a directory and of everything.

Rules
  A missing name is proven absent only in a *complete* directory. A directory becomes complete by a
  listing that succeeded to its end: of itself (with a delimiter, when somebody looks into it) or of the
  whole bucket (flat, in the background: one request per thousand names, whatever the directories).
  A directory's attributes are in its marker, so they too are only believed once it is complete.
  How a page comes into the namespace is in `engine.merging`.

Errors: a listing that fails changes nothing; whoever waits for it gets Unavailable, never NotFound.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio
from msgspec.structs import replace

from b2fs.core.bucket import Page
from b2fs.core.change import Change
from b2fs.core.tree import Node
from b2fs.engine import retry
from b2fs.engine.merging import TOMBSTONE_MS, Merging
from b2fs.engine.tasks import together
from b2fs.engine.volume import Volume
from b2fs.errors import B2fsError, BucketError

log = logging.getLogger(__name__)

_PAGE = 1000
"""Names per request: B2 bills a listing per thousand, and a longer answer takes long to parse."""
_DIRECTORIES = 500
"""Directories that become complete between two looks at other work: about 2 ms."""
_PAGES_PER_REFRESH_INTERVAL = 20
"""A bucket of more pages is listed less often, so that refreshing costs no more than 20 class C
transactions per interval (at the default of 10 minutes: what B2 gives for free)."""
_PATIENCE_S = 0.3
"""How long somebody who looks into a directory waits for the listing of the whole bucket to pass it, before that directory
is listed by itself: for small directories the one listing is there sooner, and costs less. One that has more than a page is
listed by itself at once: who walks through a large bucket needs its upper directories, and finds the one listing below them."""
_LATER_S = 2.0
"""On a later start everything is known, and whoever waited for the mount reads now: the first look for news comes after it."""


class Listing:
    def __init__(self, volume: Volume, merging: Merging) -> None:
        self._volume = volume
        self._merging = merging
        self._completing: dict[int, trio.Event] = {}
        self.running = False
        """A listing of the whole bucket is under way."""
        self.objects = 0
        """Objects seen by the last whole listing, or by the running one so far."""
        self.last_error = ""
        self._wanted = trio.Event()
        self._forgotten = 0
        """`Volume.forgotten` when the running listing began."""
        self._cursor: str | None = ""
        """Up to where the running listing has come; None: to the end."""
        self._came_from: str | None = None
        """Where its last merged page began; None: there was none yet."""
        self._progress = trio.Event()
        """Set when `_cursor` moved or the listing ended; replaced by who sets it."""

    @property
    def complete(self) -> bool:
        """The whole bucket was listed once, and no name was forgotten since."""
        return self._volume.journal.meta("listed") == "1"

    # ------------------------------------------------------------ one directory

    async def need(self, node: Node) -> None:
        """Have all names of a directory. Unavailable if B2 does not give them in time."""
        await self._volume.load(node)
        with trio.move_on_after(_PATIENCE_S):
            while self.running and not node.inode.complete and not self._is_inside(node):
                if self._has_passed(node):
                    self._volume.commit(Change(inodes=[replace(node.inode, complete=True)]))
                    return
                await self._progress.wait()
        while not node.inode.complete:
            waiting = self._completing.get(node.ino)
            if waiting is not None:
                await waiting.wait()
                continue
            done = self._completing[node.ino] = trio.Event()
            try:
                await self._list_directory(node)
            finally:
                del self._completing[node.ino]
                done.set()

    def _has_passed(self, node: Node) -> bool:
        """Whether the running listing has merged everything below a directory."""
        if self._forgotten != self._volume.forgotten:
            return False
        if self._cursor is None:
            return True
        prefix = self._prefix(node)
        return prefix != "" and self._cursor > prefix and not self._cursor.startswith(prefix)

    def _is_inside(self, node: Node) -> bool:
        """Whether the running listing went through a whole page and has not left a directory: it may take any number more."""
        if self._came_from is None or self._cursor is None:
            return False
        prefix = self._prefix(node)
        return self._came_from.startswith(prefix) and self._cursor.startswith(prefix)

    def _prefix(self, node: Node) -> str:
        path = self._volume.tree.path(node)
        return path + "/" if path else ""

    async def _list_directory(self, node: Node) -> None:
        volume = self._volume
        prefix = self._prefix(node)
        start: str | None = ""
        forgotten = volume.forgotten
        while start is not None and not node.inode.complete:
            began, at = volume.journal.next_number(), start
            page = await retry.until(
                volume.settings.read_deadline_s,
                lambda at=at: volume.bucket.list_page(prefix, at, "/", _PAGE),  # type: ignore[misc]
                f"the listing of {prefix or 'the bucket'!r}",
            )
            known = await volume.seam.thread(volume.journal.objects, prefix, start, page.next_key)
            direct = {key: row for key, row in known.items() if "/" not in key[len(prefix) :]}
            await self._merging.merge(page, direct, began)
            await self._merging.folders(page.folders)
            start = page.next_key
        if node.linked and not node.inode.complete and forgotten == volume.forgotten:
            volume.commit(Change(inodes=[replace(node.inode, complete=True)]))

    async def need_below(self, node: Node) -> None:
        """Have all names of a directory and of every directory below it."""
        await self.need(node)
        for ino in list((node.children or {}).values()):
            child = self._volume.tree.nodes.get(ino)
            if child is not None and child.inode.is_dir:
                await self.need_below(child)

    # ------------------------------------------------------------ the whole bucket

    async def run(self) -> None:
        """List the bucket now (soon, if it was listed by an earlier run) and then every `refresh_s`; never ends, never fails."""
        attempts = 0
        if self.complete:
            with trio.move_on_after(_LATER_S):
                await self._wanted.wait()
        while True:
            self._wanted = trio.Event()
            pause_s = self._volume.settings.refresh_s or float("inf")
            try:
                pages = await self.refresh()
                attempts = 0
                pause_s *= max(1.0, pages / _PAGES_PER_REFRESH_INTERVAL)
            except BucketError as error:
                attempts += 1
                pause_s = retry.backoff_s(attempts + 1, error)
                self.last_error = str(error)
                log.warning("cannot list the bucket, next attempt in %.0f s: %s", pause_s, error)
            except B2fsError as error:
                self.last_error = str(error)
                log.error("the listing of the bucket cannot be kept: %s", error)
            except Exception:
                log.exception("listing the bucket failed unexpectedly")
            with trio.move_on_after(pause_s):
                await self._wanted.wait()

    async def begun(self) -> None:
        """Wait until the first names of a new listing are here, or B2 did not give them."""
        await self._progress.wait()

    def wake(self) -> None:
        """List the bucket again now."""
        self._wanted.set()

    async def refresh(self) -> int:
        """Merge one listing of the whole bucket; how many pages it had. BucketError: tried, and not done."""
        volume = self._volume
        self.running, self.objects = True, 0
        self._cursor, self._came_from, self._forgotten = "", None, volume.forgotten
        pages, start = 0, ""
        try:
            self._merging.ignored_now.clear()
            coming = [await self._page(start)]
            while coming:
                began, page = coming.pop()
                pages += 1
                self.objects += len(page.versions)
                await together(
                    lambda: self._merge_page(start, page, began),  # noqa: B023  # ends in this round
                    lambda: self._next_page(page, coming),  # noqa: B023
                )
                start = page.next_key or ""
            await self._all_complete()
            volume.journal.keep_ignored(self._merging.ignored_now)
            volume.journal.forget_tombstones(volume.now_ns() // 10**6 - TOMBSTONE_MS)
            self.last_error = ""
            return pages
        finally:
            self.running = False
            self._progress.set()
            self._progress = trio.Event()

    async def _page(self, start: str) -> tuple[int, Page]:
        """A page of the whole listing, and the generation at which it was asked for."""
        began = self._volume.journal.next_number()
        return began, await self._volume.bucket.list_page("", start, "", _PAGE)

    async def _next_page(self, page: Page, coming: list[tuple[int, Page]]) -> None:
        if page.next_key is not None:
            coming.append(await self._page(page.next_key))

    async def _merge_page(self, start: str, page: Page, began: int) -> None:
        known = await self._volume.seam.thread(self._volume.journal.objects, "", start, page.next_key)
        await self._merging.merge(page, known, began)
        self._cursor, self._came_from = page.next_key, start
        self._progress.set()
        self._progress = trio.Event()

    async def _all_complete(self) -> None:
        """Every directory that is here now was listed to its end, unless a name was forgotten meanwhile: then list again."""
        volume, before = self._volume, self._volume.journal.next_number()
        while self._forgotten == volume.forgotten:
            found = volume.seam.inline(volume.journal.complete_some, before, _DIRECTORIES)
            for ino in found:
                if (node := volume.tree.nodes.get(ino)) is not None:
                    node.inode = replace(node.inode, complete=True)
            if not found:
                volume.journal.set_meta("listed", "1")
                return
            await trio.lowlevel.checkpoint()
        self.wake()

    def ignored(self) -> Iterable[tuple[str, str]]:
        return self._volume.journal.ignored()
