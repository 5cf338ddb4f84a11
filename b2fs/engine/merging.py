"""How what a listing says comes into the namespace.

Rules
  What changed here and is not in B2 yet wins over the listing; the other's version stays in the bucket's
  history and is reported.
  A changed object is a new inode: who has the old one open goes on reading the old version.
  What nobody here knows anything of comes in by one commit a slice (`_Batch`); everything else by itself.
  Between two slices file operations pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Set

import trio
from msgspec.structs import replace

from b2fs.core import names
from b2fs.core.bucket import Page, Version
from b2fs.core.change import Change, ObjectRow
from b2fs.core.inode import INFO_B2FS, ROOT, Inode, attributes, from_version, operation_of
from b2fs.core.merge import compare, is_news
from b2fs.engine.volume import Changed, Volume
from b2fs.errors import NotDirectory

log = logging.getLogger(__name__)

_SLICE = 64
"""Objects merged between two looks at other work: about 2 ms."""
_AHEAD = 2 * _SLICE
"""Names of a directory that are read at once, to see that what is new has none of them."""
TOMBSTONE_MS = 24 * 3600 * 1000
"""How long we remember that we hid a key; no listing is staler than that. So a younger object that it lacks may
be one that it does not show yet, made by us before the last restart: it is asked for by name."""
_LATE_MS = 3600 * 1000
"""How much later than what followed it an upload that was given up may reach B2."""


class Merging:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.on_news: Callable[[list[Version]], None] = lambda versions: None
        """Hears what a page of a listing brought; called without suspension."""
        self.ignored_now: set[str] = set()
        """Objects that the running (or last) listing of the whole bucket could not show."""

    async def merge(self, page: Page, known: dict[str, ObjectRow], began: int) -> None:
        """Have what a page says; `known`: our rows of the keys that it covers, `began`: the generation before its request."""
        volume = self._volume
        news = compare(known, page.versions, began)
        rest = news.changed
        while rest:
            taken = self._newcomers(rest[:_SLICE])
            if not taken:
                if is_news(rest[0], volume.journal.object(rest[0].key), began):  # else another listing was faster
                    await self._changed(rest[0])
                taken = 1
            rest = rest[taken:]
            await trio.lowlevel.checkpoint()
        self.on_news(news.changed)
        for row in news.missing:
            await self._missing(row)
        await trio.lowlevel.checkpoint()

    def _newcomers(self, versions: list[Version]) -> int:
        """Take in what is simply new from the front of `versions` by one commit; how many."""
        batch = _Batch(self._volume, self._volume.journal.keys_between(versions[0].key, versions[-1].key))
        count = 0
        while count < len(versions) and batch.take(versions[count]):
            count += 1
        batch.commit()
        return count

    async def folders(self, folders: list[str]) -> None:
        """Have the common prefixes of a listing. One below which we know objects is no news: the directory is here, or it
        was removed here and the bucket has not followed yet.
        """
        journal = self._volume.journal
        for number in range(0, len(folders), _SLICE):
            few = folders[number : number + _SLICE]
            known = await self._volume.seam.thread(lambda few=few: {each for each in few if journal.knows_below(each)})  # type: ignore[misc]
            batch = _Batch(self._volume)
            rest = [folder for folder in few if folder not in known and not batch.folder(folder)]
            batch.commit()
            for folder in rest:
                await self._folder(folder)

    async def _folder(self, folder: str) -> None:
        if names.unusable(folder) is not None:
            self.ignore(folder, "its name cannot be a directory's; rename its objects with another B2 tool")
            return
        try:
            await self.directory(folder.removesuffix("/"))
        except NotDirectory:
            self.ignore(folder, "a file has the name of this directory; rename one of the two")

    async def _changed(self, version: Version) -> None:
        """An object is new to us, or newer than what we know."""
        volume, key = self._volume, version.key
        why = names.unusable(key)
        if why is not None:
            self.ignore(key, f"its name {why}; rename it with another B2 tool to see it here")
            return
        marked = names.marked_directory(key)
        described = from_version(version, volume.journal.next_number(), volume.settings.defaults)
        row = _object_row(version, described, volume.journal.next_number())
        is_own = operation_of(version.info).startswith(volume.mount_id + ".")
        if self._is_ours(row, is_own) or self._came_late(version, row):
            return
        if marked is not None:
            await self._marker(marked, described, row)
            return
        directory, name = names.split(key)
        try:
            parent = await self.directory(directory)
            await self._settled(parent)
        except NotDirectory:
            self.ignore(key, "a file has the name of one of its directories; rename one of the two")
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
            self.ignore(row.key, "a directory has the same name; rename one of the two to see this file")
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
            inode = self._volume.row(found.ino)
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
            ino = await self.directory(path)
        except NotDirectory:
            self.ignore(row.key, "a file has the name of this directory; rename one of the two")
            return
        if self._is_ours(row):
            return
        old = self._volume.row(ino)
        inode = _marked(old, described)
        volume.commit(Change(inodes=[inode], objects=[row]))
        if attributes(inode) != attributes(old):
            volume.on_change(Changed(ino, None))

    async def _missing(self, row: ObjectRow) -> None:
        """An object that we know is not listed: believe it only if it is not one of our own recent ones."""
        volume, key = self._volume, row.key
        if volume.schedule.covers(key):
            return
        young = row.uploaded_ms > volume.now_ns() // 10**6 - TOMBSTONE_MS
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
            parent = self._volume.row(parent_ino)
            change = Change(unlinks=[(parent_ino, name)], gone=[node.ino])
            change.inodes.append(replace(parent, nlink=parent.nlink - 1))
            volume.commit(change)
            volume.on_change(Changed(parent_ino, name))
            path = names.split(path)[0]

    # ------------------------------------------------------------ pieces

    async def directory(self, path: str) -> int:
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
        self.ignore(key, "a directory has the same name; rename one of the two to see this file")
        return True

    def _make_directory(self, parent: int, name: bytes) -> int:
        volume, made, above = self._volume, _new_directory(self._volume), self._volume.row(parent)
        volume.commit(Change(inodes=[made, replace(above, nlink=above.nlink + 1)], links=[(parent, name, made.ino)]))
        volume.on_change(Changed(parent, name, is_new=True))
        volume.on_change(Changed(parent, None))
        return made.ino

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

    def ignore(self, key: str, why: str) -> None:
        self.ignored_now.add(key)
        if (key, why) not in self._volume.journal.ignored(-1):
            log.warning("the object %r is not shown: %s", key, why)
            self._volume.journal.set_ignored(key, why)


class _Batch:
    """What one slice of a listing brings, planned as one change: files whose names nobody has, the directories above them,
    their markers. Whatever is not as simple as that is not taken. Nothing suspends between its making and `commit`.

    `known`: keys of which we have a row.
    """

    def __init__(self, volume: Volume, known: Set[str] = frozenset()) -> None:
        self._volume = volume
        self._mine = f"o={volume.mount_id}."
        """What this mount's objects, and hardly any other, have in their fileInfo."""
        self._known = known
        self._files: list[Inode] = []
        self._links: list[tuple[int, bytes, int]] = []
        self._objects: list[ObjectRow] = []
        self._rows: dict[int, Inode] = {}
        """Directories that are made or changed, as they will be."""
        self._made: set[int] = set()
        """Directories that are made: nobody knows them, so nobody hears of a change of them."""
        self._paths: dict[str, int | None] = {}
        """Directories that were looked for; None: not to be had here."""
        self._ahead: dict[int, tuple[bytes, frozenset[bytes], bytes | None]] = {}
        """Names that directories had before: all behind the first given up to the last (None: to the end)."""
        self._names: set[tuple[int, bytes]] = set()
        self._told: dict[Changed, None] = {}
        """What the front end is to hear after the commit, each once: a notice costs more than a row."""

    def commit(self) -> None:
        if self._objects or self._links:
            inodes = [*self._rows.values(), *self._files]
            self._volume.commit(Change(inodes=inodes, links=self._links, objects=self._objects))
        for changed in self._told:
            self._volume.on_change(changed)

    def take(self, version: Version) -> bool:
        """False: it is not simply new, and nothing of it is in the change."""
        volume, key = self._volume, version.key
        if key in self._known or names.unusable(key) is not None or volume.schedule.covers(key):
            return False
        if self._mine in version.info.get(INFO_B2FS, ""):
            return False
        described = from_version(version, volume.journal.next_number(), volume.settings.defaults)
        if described.link:
            return False
        marked = names.marked_directory(key) if described.is_dir else None
        is_taken = self._file(key, described) if marked is None else self._marker(marked, described)
        if is_taken:
            self._objects.append(_object_row(version, described, volume.journal.next_number()))
        return is_taken

    def folder(self, folder: str) -> bool:
        """Have a common prefix. False: something is in its way."""
        return names.unusable(folder) is None and self._directory(folder.removesuffix("/")) is not None

    def _file(self, key: str, described: Inode) -> bool:
        directory, text = names.split(key)
        parent, name = self._directory(directory), text.encode()
        if parent is None or (parent, name) in self._names or self._entry(parent, name) is not None:
            return False
        self._files.append(described)
        self._link(parent, name, described.ino)
        return True

    def _marker(self, path: str, described: Inode) -> bool:
        ino = self._directory(path)
        if ino is None:
            return False
        old = self._row(ino)
        self._rows[ino] = _marked(old, described)
        if attributes(self._rows[ino]) != attributes(old):
            self._tell(Changed(ino, None))
        return True

    def _directory(self, path: str) -> int | None:
        """The inode number of a directory, made if it is not there. None: a file has its name or that of one above it, or
        it is just being loaded, and must not change under the load.
        """
        if path not in self._paths:
            ino = ROOT if path == "" else self._below(*names.split(path))
            self._paths[path] = None if ino is None or self._volume.is_loading(ino) else ino
        return self._paths[path]

    def _below(self, path: str, text: str) -> int | None:
        parent, name = self._directory(path), text.encode()
        if parent is None or (parent, name) in self._names:
            return None
        found = self._entry(parent, name)
        if found is not None:
            return found.ino if found.is_dir else None
        made, above = _new_directory(self._volume), self._row(parent)
        self._rows[parent] = replace(above, nlink=above.nlink + 1)
        self._rows[made.ino] = made
        self._made.add(made.ino)
        self._ahead[made.ino] = (b"", frozenset(), None)
        self._link(parent, name, made.ino)
        self._tell(Changed(parent, None))
        return made.ino

    def _link(self, parent: int, name: bytes, ino: int) -> None:
        self._names.add((parent, name))
        self._links.append((parent, name, ino))
        self._tell(Changed(parent, name, is_new=True))

    def _tell(self, changed: Changed) -> None:
        if changed.ino not in self._made:
            self._told[changed] = None

    def _entry(self, parent: int, name: bytes) -> Inode | None:
        """What had the name before. Of a directory that is not in memory the names are read some at a time: mostly they are
        others, and keys come in their order.
        """
        node = self._volume.tree.nodes.get(parent)
        if node is None or node.children is None:
            after, some, end = self._ahead.get(parent, (name, frozenset(), None))
            if name <= after or (end is not None and name > end):
                found = self._volume.journal.following(parent, name, _AHEAD)
                self._ahead[parent] = name, frozenset(found), found[-1] if len(found) == _AHEAD else None
            elif name not in some:
                return None
        return self._volume.entry(parent, name)

    def _row(self, ino: int) -> Inode:
        return self._rows[ino] if ino in self._rows else self._volume.row(ino)


def _is_at(inode: Inode, row: ObjectRow) -> bool:
    """Whether a name that is in line with the bucket is there for the object of `row`: of a file with several names another
    version may be the home.
    """
    return inode.file_id == row.file_id or inode.link != ""


def _object_row(version: Version, described: Inode, generation: int) -> ObjectRow:
    return ObjectRow(
        version.key, version.file_id, version.size, version.sha1, version.uploaded_ms, attributes(described), generation
    )


def _marked(directory: Inode, described: Inode) -> Inode:
    """A directory with the attributes of its marker."""
    return replace(
        directory, mode=described.mode, uid=described.uid, gid=described.gid, mtime_ns=described.mtime_ns,
        ctime_ns=described.ctime_ns, xattrs=described.xattrs,
    )  # fmt: skip


def _new_directory(volume: Volume) -> Inode:
    """One that only the keys below it tell of."""
    now, defaults = volume.now_ns(), volume.settings.defaults
    return Inode(
        ino=volume.journal.next_number(), mode=0o040000 | defaults.dir_mode, uid=defaults.uid, gid=defaults.gid,
        nlink=2, size=0, mtime_ns=now, ctime_ns=now, atime_ns=now,
    )  # fmt: skip
