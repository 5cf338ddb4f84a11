"""What the bucket has: listings, and how they come into the namespace.

Rules
  A missing name is proven absent only in a *complete* directory. A directory becomes complete by a
  listing that succeeded to its end: of itself (with a delimiter, when somebody looks into it) or of the
  whole bucket (flat, in the background: one request per thousand names, whatever the directories).
  What changed here and is not in B2 yet wins over the listing; the other's version stays in the bucket's
  history and is reported.
  A directory's attributes are in its marker, so they too are only believed once it is complete.
  A changed object is a new inode: who has the old one open goes on reading the old version.
  Merging works in slices, so that file operations pass in between.

Errors: a listing that fails changes nothing; whoever waits for it gets Unavailable, never NotFound.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio
from msgspec.structs import replace

from b2fs.core import names
from b2fs.core.bucket import Page, Version
from b2fs.core.change import Change, ObjectRow
from b2fs.core.inode import ROOT, Inode, attributes, from_version, operation_of
from b2fs.core.merge import compare, is_news
from b2fs.core.tree import Node
from b2fs.engine import retry
from b2fs.engine.tasks import together
from b2fs.engine.volume import Changed, Volume
from b2fs.errors import B2fsError, BucketError, NotDirectory

log = logging.getLogger(__name__)

_PAGE = 1000
"""Names per request: B2 bills a listing per thousand, and a longer answer takes long to parse."""
_SLICE = 50
"""Objects merged between two looks at other work: about 2 ms."""
_DIRECTORIES = 500
"""Directories that become complete between two looks at other work: about 2 ms."""
_PAGES_PER_REFRESH_INTERVAL = 20
"""A bucket of more pages is listed less often, so that refreshing costs no more than 20 class C
transactions per interval (at the default of 10 minutes: what B2 gives for free)."""
_PATIENCE_S = 0.3
"""How long somebody who looks into a directory waits for the listing of the whole bucket to pass it, before
that directory is listed by itself: for small buckets the one listing is there sooner, and costs less; who walks through
a larger one needs its upper directories by themselves, and finds the one listing below them."""
_TOMBSTONE_MS = 24 * 3600 * 1000
"""How long we remember that we hid a key; no listing is staler than that. So a younger object that it lacks may
be one that it does not show yet, made by us before the last restart: it is asked for by name."""
_LATE_MS = 3600 * 1000
"""How much later than what followed it an upload that was given up may reach B2."""


class Listing:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._completing: dict[int, trio.Event] = {}
        self.running = False
        """A listing of the whole bucket is under way."""
        self.objects = 0
        """Objects seen by the last whole listing, or by the running one so far."""
        self.last_error = ""
        self.on_news: Callable[[list[Version]], None] = lambda versions: None
        """Hears what a page of a listing brought; called without suspension."""
        self._wanted = trio.Event()
        self._ignored_now: set[str] = set()
        """Objects that the running (or last) listing could not show."""
        self._forgotten = 0
        """`Volume.forgotten` when the running listing began."""
        self._cursor: str | None = ""
        """Up to where the running listing has come; None: to the end."""
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
            while self.running and not node.inode.complete:
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
        prefix = self._volume.tree.path(node) + "/"
        return prefix != "/" and self._cursor > prefix and not self._cursor.startswith(prefix)

    async def _list_directory(self, node: Node) -> None:
        volume = self._volume
        path = volume.tree.path(node)
        prefix = path + "/" if path else ""
        start: str | None = ""
        forgotten = volume.forgotten
        while start is not None and not node.inode.complete:
            began, at = volume.journal.next_number(), start
            page = await retry.until(
                volume.settings.read_deadline_s,
                lambda at=at: volume.bucket.list_page(prefix, at, "/", _PAGE),  # type: ignore[misc]
                f"the listing of {path or 'the bucket'!r}",
            )
            known = await volume.seam.thread(volume.journal.objects, prefix, start, page.next_key)
            direct = {key: row for key, row in known.items() if "/" not in key[len(prefix) :]}
            await self._merge(page, direct, began)
            await self._folders(page.folders)
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

    async def _folders(self, folders: list[str]) -> None:
        """Common prefixes of a listing. One below which we know objects is no news: the directory is here, or it was
        removed here and the bucket has not followed yet.
        """
        volume = self._volume
        for number in range(0, len(folders), _SLICE):
            few = folders[number : number + _SLICE]
            known = await volume.seam.thread(lambda few=few: [volume.journal.knows_below(each) for each in few])  # type: ignore[misc]
            for folder in (folder for folder, is_known in zip(few, known, strict=True) if not is_known):
                if names.unusable(folder) is not None:
                    self._ignore(folder, "its name cannot be a directory's; rename its objects with another B2 tool")
                    continue
                try:
                    await self._directory(folder.removesuffix("/"))
                except NotDirectory:
                    self._ignore(folder, "a file has the name of this directory; rename one of the two")

    # ------------------------------------------------------------ the whole bucket

    async def run(self) -> None:
        """List the bucket now and then every `refresh_s`; never ends, never fails."""
        attempts = 0
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

    def wake(self) -> None:
        """List the bucket again now."""
        self._wanted.set()

    async def refresh(self) -> int:
        """Merge one listing of the whole bucket; how many pages it had. BucketError: tried, and not done."""
        volume = self._volume
        self.running, self.objects = True, 0
        self._cursor, self._forgotten = "", volume.forgotten
        pages, start = 0, ""
        try:
            self._ignored_now.clear()
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
            volume.journal.keep_ignored(self._ignored_now)
            volume.journal.forget_tombstones(volume.now_ns() // 10**6 - _TOMBSTONE_MS)
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
        await self._merge(page, known, began)
        self._cursor = page.next_key
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

    # ------------------------------------------------------------ merging

    async def _merge(self, page: Page, known: dict[str, ObjectRow], began: int) -> None:
        news = compare(known, page.versions, began)
        rest = news.changed
        while rest:
            taken = await self._newcomers(rest[:_SLICE])
            if not taken:
                if is_news(rest[0], self._volume.journal.object(rest[0].key), began):  # else another listing was faster
                    await self._changed(rest[0])
                taken = 1
            rest = rest[taken:]
            await trio.lowlevel.checkpoint()
        self.on_news(news.changed)
        for row in news.missing:
            await self._missing(row)
        await trio.lowlevel.checkpoint()

    async def _newcomers(self, versions: list[Version]) -> int:
        """Put files of one directory that nobody here knows anything of, from the front of `versions`, into it by one
        commit; how many. Whatever is not as simple as that is left to `_changed`.
        """
        volume, directory = self._volume, names.split(versions[0].key)[0]
        if self._newcomer(versions[0]) is None:
            return 0
        try:
            parent = await self._directory(directory)
            await self._settled(parent)
        except NotDirectory:
            return 0
        change, is_empty = Change(), not volume.journal.has_entries(parent)
        known = volume.journal.keys_between(versions[0].key, versions[-1].key)
        for version in versions:
            place, text = names.split(version.key)
            name = text.encode()
            if place != directory or version.key in known or (described := self._newcomer(version)) is None:
                break
            if not is_empty and self._volume.entry(parent, name) is not None:
                break
            change.inodes.append(described)
            change.links.append((parent, name, described.ino))
            change.objects.append(_row(version, described, volume.journal.next_number()))
        if change.inodes:
            volume.commit(change)
        for _, name, _ in change.links:
            volume.on_change(Changed(parent, name, is_new=True))
        return len(change.inodes)

    def _newcomer(self, version: Version) -> Inode | None:
        """The inode of a file that is simply new: not ours, one name."""
        volume, key = self._volume, version.key
        if names.unusable(key) is not None or names.marked_directory(key) is not None:
            return None
        if operation_of(version.info).startswith(volume.mount_id + ".") or volume.schedule.covers(key):
            return None
        described = from_version(version, volume.journal.next_number(), volume.settings.defaults)
        return None if described.link else described

    async def _changed(self, version: Version) -> None:
        """An object is new to us, or newer than what we know."""
        volume, key = self._volume, version.key
        why = names.unusable(key)
        if why is not None:
            self._ignore(key, f"its name {why}; rename it with another B2 tool to see it here")
            return
        marked = names.marked_directory(key)
        described = from_version(version, volume.journal.next_number(), volume.settings.defaults)
        row = _row(version, described, volume.journal.next_number())
        is_own = operation_of(version.info).startswith(volume.mount_id + ".")
        if self._is_ours(row, is_own) or self._came_late(version, row):
            return
        if marked is not None:
            await self._marker(marked, described, row)
            return
        directory, name = names.split(key)
        try:
            parent = await self._directory(directory)
            await self._settled(parent)
        except NotDirectory:
            self._ignore(key, "a file has the name of one of its directories; rename one of the two")
            return
        if not self._is_ours(row):
            self._entry(parent, name.encode(), described, row)

    def _is_ours(self, row: ObjectRow, is_own: bool = False) -> bool:
        """Whether what is here has yet to go to that key: then it stays, and what the bucket has is only noted.

        `is_own`: this mount wrote that version, and a listing was faster than the answer; nobody else's work is below.
        """
        if not self._volume.schedule.covers(row.key):
            return False
        if not is_own:
            log.warning("%r was changed in the bucket and here; ours goes on top, theirs is the version below", row.key)
        self._volume.commit(Change(objects=[row]))
        return True

    def _came_late(self, version: Version, row: ObjectRow) -> bool:
        """Whether it is an attempt of ours that was given up, and that B2 took after what followed it: what is here
        goes on top again. Bytes of a dead connection may arrive minutes later, when the network is back.
        """
        volume, key = self._volume, version.key
        mount, _, generation = operation_of(version.info).partition(".")
        known = volume.journal.object(key)
        if mount != volume.mount_id or not volume.schedule.may_come_late(key, generation):
            return False
        if known is not None and version.uploaded_ms - known.uploaded_ms > _LATE_MS:
            return False  # so late, it is rather somebody who restored an old version by a copy
        log.warning("an upload of %r that had been given up reached B2; what is here goes on top again", key)
        volume.commit(Change(objects=[row], dirty=[key]))
        return True

    def _entry(self, parent_ino: int, name: bytes, described: Inode, row: ObjectRow) -> None:
        """Put a file of the bucket under its name, in place of what was there."""
        volume = self._volume
        old = self._volume.entry(parent_ino, name)
        if old is not None and old.is_dir:
            self._ignore(row.key, "a directory has the same name; rename one of the two to see this file")
            return
        if old is not None and self._is_written(old.ino):
            return  # what a program is about to write must keep its name; the next listing finds this again
        change = Change(objects=[row])
        twin = self._twin(described)
        same = old is not None and old.sha1 == described.sha1 != "" and attributes(old) == row.attributes
        same = same or (old is not None and twin is not None and twin.ino == old.ino)
        if old is not None and same and not old.scratch and not old.staged:
            change.inodes.append(replace(old, file_id=described.file_id))
        else:
            change.inodes.append(described if twin is None else replace(twin, nlink=twin.nlink + 1))
            change.links.append((parent_ino, name, change.inodes[0].ino))
            if old is not None:
                change.unlinks.append((parent_ino, name))
                self._lose(change, old, row.key)
        volume.commit(change)
        if not same:
            volume.on_change(Changed(parent_ino, name, is_new=old is None))
            self._tell_links(change)

    def _twin(self, described: Inode) -> Inode | None:
        """The file that an object is one more name of: it carries the same link id, content and attributes."""
        for found in self._volume.journal.linked(described.link):
            inode = self._row(found.ino)
            if inode.scratch or inode.staged or attributes(inode) != attributes(described):
                continue
            has_body = inode.is_file or inode.is_link
            if not has_body or (inode.size, inode.sha1) == (described.size, described.sha1 or "unknown"):
                return inode
        return None

    def _tell_links(self, change: Change) -> None:
        """The front end shows how many names a file has."""
        for inode in change.inodes:
            if inode.link:
                self._volume.on_change(Changed(inode.ino, None))

    async def _marker(self, path: str, described: Inode, row: ObjectRow) -> None:
        volume = self._volume
        try:
            ino = await self._directory(path)
        except NotDirectory:
            self._ignore(row.key, "a file has the name of this directory; rename one of the two")
            return
        if self._is_ours(row):
            return
        old = self._row(ino)
        inode = replace(
            old, mode=described.mode, uid=described.uid, gid=described.gid, mtime_ns=described.mtime_ns,
            ctime_ns=described.ctime_ns, xattrs=described.xattrs,
        )  # fmt: skip
        volume.commit(Change(inodes=[inode], objects=[row]))
        if attributes(inode) != attributes(old):
            volume.on_change(Changed(ino, None))

    async def _missing(self, row: ObjectRow) -> None:
        """An object that we know is not listed: believe it only if it is not one of our own recent ones."""
        volume, key = self._volume, row.key
        if volume.schedule.covers(key):
            return
        young = row.uploaded_ms > volume.now_ns() // 10**6 - _TOMBSTONE_MS
        if young or row.generation >= volume.start_generation:
            version = await volume.bucket.head(key)
            if version is not None:
                return
            current = volume.journal.object(key)
            if current != row or volume.schedule.covers(key):
                return
        change = Change(lost_objects=[key])
        directory, name = names.split(key)
        parent = self._find_directory(directory)
        if parent is not None and names.marked_directory(key) is None:
            await self._settled(parent)
            old = self._volume.entry(parent, name.encode())
            if volume.schedule.covers(key) or (old is not None and self._is_written(old.ino)):
                return
            if old is not None and _is_at(old, row):
                change.unlinks.append((parent, name.encode()))
                self._lose(change, old, key)
        volume.commit(change)
        if change.unlinks and parent is not None:
            volume.on_change(Changed(parent, name.encode()))
            self._tell_links(change)
        await self._prune(directory)

    async def _prune(self, path: str) -> None:
        """A directory that the bucket says nothing of any more, and that is empty, is gone."""
        volume = self._volume
        while path:
            node = await volume.resolve(names.marker(path))
            key = names.marker(path)
            if node is None or volume.schedule.covers(key) or not node.inode.complete:
                return
            await volume.load(node)
            row = volume.journal.object(key)
            if node.children or (row is not None and row.file_id):
                return
            parent_ino, name = node.parents[0]
            parent = self._row(parent_ino)
            change = Change(unlinks=[(parent_ino, name)], gone=[node.ino])
            change.inodes.append(replace(parent, nlink=parent.nlink - 1))
            volume.commit(change)
            volume.on_change(Changed(parent_ino, name))
            path = names.split(path)[0]

    # ------------------------------------------------------------ pieces

    async def _directory(self, path: str) -> int:
        """The inode number of a directory, made if the namespace does not have it yet.

        NotDirectory if a file has its name or that of one above it.
        """
        ino = ROOT
        for part in path.split("/") if path else ():
            name = part.encode()
            await self._settled(ino)
            found = self._volume.entry(ino, name)
            if found is not None and not found.is_dir:
                if not self._give_way(ino, name, found):
                    raise NotDirectory(path)
                found = None
            ino = found.ino if found is not None else self._make_directory(ino, name)
        return ino

    def _give_way(self, parent: int, name: bytes, file: Inode) -> bool:
        """A clean file whose name is also a directory of the bucket steps aside: directories win."""
        key = self._path(parent, name)
        if file.scratch or file.staged or not file.file_id or self._volume.schedule.covers(key):
            return False
        # without its row the object is none of ours, so nobody hides it
        change = Change(unlinks=[(parent, name)], lost_objects=[key])
        self._lose(change, file, key)
        self._volume.commit(change)
        self._volume.on_change(Changed(parent, name))
        self._ignore(key, "a directory has the same name; rename one of the two to see this file")
        return True

    def _make_directory(self, parent: int, name: bytes) -> int:
        volume, now = self._volume, self._volume.now_ns()
        defaults, above = volume.settings.defaults, self._row(parent)
        ino = volume.journal.next_number()
        inode = Inode(
            ino=ino, mode=0o040000 | defaults.dir_mode, uid=defaults.uid, gid=defaults.gid, nlink=2, size=0,
            mtime_ns=now, ctime_ns=now, atime_ns=now,
        )  # fmt: skip
        volume.commit(Change(inodes=[inode, replace(above, nlink=above.nlink + 1)], links=[(parent, name, ino)]))
        volume.on_change(Changed(parent, name, is_new=True))
        volume.on_change(Changed(parent, None))
        return ino

    async def _settled(self, ino: int) -> None:
        """A directory that is just being loaded must not change under the load."""
        node = self._volume.tree.nodes.get(ino)
        if node is not None and self._volume.is_loading(ino):
            await self._volume.load(node)

    def _find_directory(self, path: str) -> int | None:
        ino = ROOT
        for part in path.split("/") if path else ():
            found = self._volume.entry(ino, part.encode())
            if found is None or not found.is_dir:
                return None
            ino = found.ino
        return ino

    def _row(self, ino: int) -> Inode:
        node = self._volume.tree.nodes.get(ino)
        row = node.inode if node is not None else self._volume.journal.inode(ino)
        assert row is not None, f"inode {ino} has a name but no row"
        return row

    def _path(self, parent: int, name: bytes) -> str:
        return names.join(self._volume.journal.path_of(parent), name.decode())

    def _is_written(self, ino: int) -> bool:
        """Whether a program has the file open for writing."""
        node = self._volume.tree.nodes.get(ino)
        return node is not None and node.writers > 0

    def _lose(self, change: Change, old: Inode, key: str) -> None:
        """The name `key` of `old` goes; what has other names lives in the version of one of them from now on."""
        if old.nlink > 1:
            home = self._volume.other_home(old, key) or old.file_id
            change.inodes.append(replace(old, nlink=old.nlink - 1, file_id=home))
        else:
            change.gone.append(old.ino)

    def _ignore(self, key: str, why: str) -> None:
        self._ignored_now.add(key)
        if (key, why) not in self._volume.journal.ignored(-1):
            log.warning("the object %r is not shown: %s", key, why)
            self._volume.journal.set_ignored(key, why)

    def ignored(self) -> Iterable[tuple[str, str]]:
        return self._volume.journal.ignored()


def _is_at(inode: Inode, row: ObjectRow) -> bool:
    """Whether a name that is in line with the bucket is there for the object of `row`: of a file with several names another
    version may be the home.
    """
    return inode.file_id == row.file_id or inode.link != ""


def _row(version: Version, described: Inode, generation: int) -> ObjectRow:
    return ObjectRow(
        version.key, version.file_id, version.size, version.sha1, version.uploaded_ms, attributes(described), generation
    )
