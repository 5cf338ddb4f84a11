"""The operations of a file system, as a front end asks for them. The engine's upper face.

Rules
  Numbers of inodes and handles in, nodes and bytes out; errors are those of `b2fs.errors`, nothing else is
  raised on purpose. What is known is answered without a suspension.
  Every call that changes something is in the journal when it returns (survives SIGKILL).

Checklist of awaits between a check and its use: every ``plan_*`` and its commit stand behind the last
await of their method.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

import msgspec
import trio
from msgspec.structs import replace

from b2fs.core import names, xattrs
from b2fs.core.change import Change
from b2fs.core.inode import ROOT, Inode, largest_info, nearest_time, without_set_id
from b2fs.core.tree import Node
from b2fs.engine.cache import Cache
from b2fs.engine.content import Content
from b2fs.engine.drain import Drain
from b2fs.engine.listing import Listing
from b2fs.engine.prefetch import Prefetch
from b2fs.engine.readahead import ReadAhead
from b2fs.engine.volume import Volume
from b2fs.errors import (
    BadHandle,
    BadName,
    Invalid,
    IsDirectory,
    NameTooLong,
    NoAttribute,
    NotDirectory,
    NotFound,
    NotPermitted,
    Stale,
    Unavailable,
)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


class Handle(msgspec.Struct):
    """One open file."""

    node: Node
    readable: bool
    writable: bool
    sync: bool
    """O_SYNC or O_DSYNC: every write is an fsync too."""
    ahead: ReadAhead


class Entries(msgspec.Struct):
    """One open directory: the names as they were at opendir or the last rewind."""

    node: Node
    names: list[bytes] = []


class NewAttributes(msgspec.Struct, frozen=True):
    """What a setattr asks for; None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class FileSystem:
    def __init__(
        self,
        volume: Volume,
        cache: Cache,
        content: Content,
        listing: Listing,
        drain: Drain,
        prefetch: Prefetch,
    ) -> None:
        self._volume = volume
        self._tree = volume.tree
        self._cache = cache
        self._content = content
        self._listing = listing
        self._drain = drain
        self._prefetch = prefetch
        self._handles: dict[int, Handle | Entries] = {}
        self._next_handle = 1

    # ------------------------------------------------------------ names

    async def lookup(self, parent: int, name: bytes) -> Node:
        """NotFound only if the name is proven absent."""
        directory = self._tree.nodes.get(parent) or await self._volume.node(parent)
        if len(name) > names.FUSE_NAME_MAX:
            raise NameTooLong(f"a name has at most {names.FUSE_NAME_MAX} bytes")
        if name == b".":
            return directory
        if name == b"..":
            return self._tree.node(directory.parents[0][0]) if directory.parents else directory
        if directory.children is None:
            node = await self._volume.find(directory, name)
        else:
            directory.used = True
            node = self._tree.child(directory, name)
        if node is None and not directory.inode.complete:
            if not names.can_be(name):
                raise NotFound("no object can have this name")
            await self._listing.need(directory)
            node = await self._volume.find(directory, name)
        if node is None:
            raise NotFound(f"no {name!r} here")
        if node.inode.is_dir and not node.inode.complete:
            await self._listing.need(node)
        return node

    async def attributes(self, ino: int) -> Node:
        """The node of an inode, its attributes known. The root's are shown as they are, so that a mount answers."""
        node = self._tree.nodes.get(ino) or await self._volume.node(ino)
        if node.inode.is_dir and not node.inode.complete and ino != ROOT:
            await self._listing.need(node)
        return node

    def forget(self, ino: int, count: int) -> None:
        """The kernel dropped `count` references."""
        node = self._tree.nodes.get(ino)
        if node is None:
            self._tree.forget(ino, count)
        else:
            node.lookups -= count
            if not node.linked and not node.held:
                self._content.release(node)
            self._tree.discard(node)

    async def _complete(self, parent: int) -> Node:
        """A directory whose names are all known: only there can a name be given or taken."""
        directory = self._tree.nodes.get(parent) or await self._volume.node(parent)
        if not directory.inode.is_dir:
            raise NotDirectory("not a directory")
        directory.used = True
        if directory.children is None or not directory.inode.complete:
            await self._listing.need(directory)
        return directory

    async def _settled(self, directory: Node, name: bytes) -> None:
        """If a name is a directory's, have all that is in it; looks again, for it may be another one by then."""
        while (child := self._tree.child(directory, name)) is not None and child.inode.is_dir:
            if child.children is not None and child.inode.complete:
                return
            await self._complete(child.ino)

    async def create(self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int) -> tuple[int, Node]:
        """A new regular file, open. (handle, node) Exists if the name is taken, without O_EXCL Stale: who asked would
        have opened what is there, had he known of it, so he is to look again (the kernel does, and checks his rights).
        """
        directory = await self._complete(parent)
        if not flags & os.O_EXCL and self._tree.child(directory, name) is not None:
            raise Stale(f"{name!r} has just come from the bucket")
        ino = self._volume.journal.next_number()
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        change = self._tree.plan_create(directory, name, ino, mode, uid, gid, self._volume.now_ns())
        fd = self._volume.seam.inline(self._volume.disk.make_scratch, ino)
        try:
            self._volume.commit(change)
        except BaseException:
            os.close(fd)
            self._volume.disk.drop_scratch(ino)
            raise
        node = self._tree.node(ino)
        node.fd = fd
        return self._open(node, flags), node

    async def make_node(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, target: str = "", rdev: int = 0
    ) -> Node:
        """A new directory, symlink or special file (by the type in `mode`); a regular file too (mknod)."""
        if stat.S_ISREG(mode):
            handle, node = await self.create(parent, name, mode, uid, gid, os.O_WRONLY | os.O_EXCL)
            self.release(handle)
            return node
        directory = await self._complete(parent)
        ino = self._volume.journal.next_number()
        now = self._volume.now_ns()
        self._volume.commit(self._tree.plan_create(directory, name, ino, mode, uid, gid, now, target=target, rdev=rdev))
        return self._tree.node(ino)

    async def make_link(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Node:
        """A new symlink. BadName if its target is not UTF-8: it is the body of a plain object."""
        try:
            text = target.decode()
        except UnicodeDecodeError:
            raise BadName(f"a link's target is UTF-8, {target!r} is not") from None
        return await self.make_node(parent, name, stat.S_IFLNK | 0o777, uid, gid, target=text)

    async def link(self, ino: int, parent: int, name: bytes) -> Node:
        """One more name for a file: one more object, with the same content and link id."""
        directory = await self._complete(parent)
        volume = self._volume
        node = await volume.node(ino)
        link = f"{volume.mount_id}{volume.journal.next_number():x}"
        volume.commit(self._tree.plan_link(node, directory, name, link, volume.now_ns()))
        return node

    async def unlink(self, parent: int, name: bytes) -> None:
        directory = await self._complete(parent)
        change = self._tree.plan_unlink(directory, name, self._volume.now_ns())
        self._commit_removal(change)

    async def rmdir(self, parent: int, name: bytes) -> None:
        directory = await self._complete(parent)
        await self._settled(directory, name)
        self._commit_removal(self._tree.plan_rmdir(directory, name, self._volume.now_ns()))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise Invalid(f"rename flags {flags}")
        directory, target = await self._complete(parent), await self._complete(new_parent)
        moved = self._tree.child(directory, name)
        if moved is not None and moved.inode.is_dir and not self._listing.complete:
            await self._listing.need_below(moved)  # names that nobody has seen yet would be left behind
        await self._check_room_below(directory, name, target, new_name)
        if flags == RENAME_EXCHANGE:
            await self._check_room_below(target, new_name, directory, name)
        await self._settled(target, new_name)
        await self._secure_replacement(directory, name, target, new_name)
        change = self._tree.plan_rename(
            directory, name, target, new_name, self._volume.now_ns(),
            noreplace=flags == RENAME_NOREPLACE, exchange=flags == RENAME_EXCHANGE,
        )  # fmt: skip
        self._commit_removal(change)

    async def _check_room_below(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> None:
        """NameTooLong if a file below a directory would have no object of its new path: it could never be uploaded.

        Looks at all names below, but only where the directory's own path becomes longer.
        """
        moved = self._tree.child(parent, name)
        if moved is None or not moved.inode.is_dir or not new_parent.linked or not names.can_be(new_name):
            return
        journal, prefix = self._volume.journal, self._volume.settings.prefix
        path, before = names.join(self._tree.path(new_parent), new_name.decode()), self._tree.path(moved)
        if len(path.encode()) <= len(before.encode()) and names.header_size(path, {}) <= names.header_size(before, {}):
            return
        room = names.room_below(prefix, path)
        for below, inode in await self._volume.seam.thread(journal.longest_below, moved.ino, room):
            key = names.join(path, below)
            names.check_key(prefix, names.marker(key) if inode.is_dir else key, largest_info(inode))

    async def _secure_replacement(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> None:
        """Before a file takes the name of one that is safe from power loss and not in B2, it is made as safe: else
        such a loss could leave neither. (ext4 does the same for programs that forget the fsync.)
        """
        node, replaced = self._tree.child(parent, name), self._tree.child(new_parent, new_name)
        if node is None or replaced is None or node.inode.unsealed in (0, node.inode.synced):
            return
        if replaced.inode.synced or replaced.inode.staged:
            await self._content.sync(node)

    def _commit_removal(self, change: Change) -> None:
        """Commit, then drop the content of what lost its last name, unless somebody holds it.

        The kernel holds what it has looked up: an open that found the old name is answered with the old file.
        """
        gone = [node for ino in change.gone if (node := self._tree.nodes.get(ino)) is not None]
        self._volume.commit(change)
        for node in gone:
            if not node.held:
                self._content.release(node)

    # ------------------------------------------------------------ attributes

    async def set_attributes(self, ino: int, new: NewAttributes, uid: int = 0) -> Node:
        """chmod, chown, truncate, utimens, asked for by `uid`. One commit; a truncate comes first.

        A chown takes the set-id bits of a file away, and so does a truncate, if not by root. So does who asks for nothing: the
        kernel does, before somebody else than root writes, and for a chown that names nobody. NotPermitted if he does neither.
        """
        node = await self._volume.node(ino)
        if new.size is not None:
            if node.inode.is_dir:
                raise IsDirectory("a directory cannot be truncated")
            await self._content.truncate(node, new.size)
        old = node.inode
        mode = old.mode if new.mode is None else stat.S_IFMT(old.mode) | stat.S_IMODE(new.mode)
        is_nothing, is_chown = new == NewAttributes(), new.uid is not None or new.gid is not None
        if not old.is_dir and (is_nothing or is_chown or (new.size is not None and uid != 0)):
            mode = without_set_id(mode)
        if is_nothing and mode != old.mode and uid not in (0, old.uid) and not node.writers:
            raise NotPermitted("somebody else's file")
        inode = replace(
            old,
            mode=mode,
            uid=old.uid if new.uid is None else new.uid,
            gid=old.gid if new.gid is None else new.gid,
            atime_ns=old.atime_ns if new.atime_ns is None else nearest_time(new.atime_ns),
            mtime_ns=old.mtime_ns if new.mtime_ns is None else nearest_time(new.mtime_ns),
            ctime_ns=self._volume.now_ns(),
        )
        self._volume.commit(self._tree.plan_attributes(node, inode))
        self._content.stamp(node)
        return node

    async def xattrs(self, ino: int) -> list[bytes]:
        """The names of the extended attributes of an inode."""
        return list(xattrs.unpack((await self._with_xattrs(ino)).inode.xattrs))

    async def xattr(self, ino: int, name: bytes) -> bytes:
        """The value of an extended attribute. NoAttribute, NotSupported."""
        xattrs.check_get(name)
        found = xattrs.unpack((await self._with_xattrs(ino)).inode.xattrs)
        if name not in found:
            raise NoAttribute("not set")
        return found[name]

    async def set_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """Set an extended attribute, or remove it (`value` None). Goes to B2 as a new version, as chmod does.

        NotSupported, NotPermitted, NoAttribute; NoSpace if B2's header has no room for it: nothing changed.
        """
        xattrs.check_change(name, remove=value is None)
        node = await self._with_xattrs(ino)
        self._volume.commit(self._tree.plan_xattr(node, name, value, self._volume.now_ns()))

    async def _with_xattrs(self, ino: int) -> Node:
        """The node of an inode, its extended attributes known: a directory's come with its listing, the root's too."""
        node = await self._volume.node(ino)
        if node.inode.is_dir and node.linked and not node.inode.complete:
            await self._listing.need(node)
        return node

    async def read_link(self, ino: int) -> str:
        """A symlink's target. What another tool wrote and is no UTF-8 has surrogates, and stays in its version alone."""
        node = await self._volume.node(ino)
        inode = node.inode
        if not inode.is_link:
            raise Invalid("not a symbolic link")
        if not inode.target:
            data = bytes(await self._content.read(node, 0, inode.size))
            try:
                node.inode = replace(node.inode, target=data.decode())
            except UnicodeDecodeError:
                return data.decode("utf-8", "surrogateescape")
        return node.inode.target

    # ------------------------------------------------------------ files

    async def open(self, ino: int, flags: int, privileged: bool = True) -> int:
        """A handle. Fetches nothing; with O_TRUNC the content is dropped first, whatever the access mode (who may not
        write has been refused by then), and for who is not privileged the set-id bits with it.
        """
        node = self._tree.nodes.get(ino) or await self._volume.node(ino)
        if node.inode.is_dir:
            raise IsDirectory("a directory is not opened like this")
        if flags & os.O_TRUNC:
            await self._content.truncate(node, 0)
            mode = node.inode.mode if privileged else without_set_id(node.inode.mode)
            if mode != node.inode.mode:
                self._volume.commit(self._tree.plan_attributes(node, replace(node.inode, mode=mode)))
        return self._open(node, flags)

    def _open(self, node: Node, flags: int) -> int:
        mode = flags & os.O_ACCMODE
        writable = mode != os.O_RDONLY
        handle = Handle(
            node=node,
            readable=mode != os.O_WRONLY,
            writable=writable,
            sync=bool(flags & (os.O_SYNC | os.O_DSYNC)),
            ahead=ReadAhead(self._cache),
        )
        node.handles += 1
        node.writers += writable
        return self._register(handle)

    def _register(self, handle: Handle | Entries) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        return number

    async def read(self, number: int, offset: int, size: int) -> bytes | memoryview:
        handle = self._file(number)
        inode = handle.node.inode
        if inode.file_id and not inode.scratch and not inode.staged:
            handle.ahead.reading(inode, offset, size)
        return await self._content.read(handle.node, offset, size)

    async def write(self, number: int, offset: int, data: bytes) -> int:
        handle = self._file(number)
        if not handle.writable:
            raise BadHandle("the file is not open for writing")
        written = await self._content.write(handle.node, offset, data)
        if handle.sync:
            await self.sync(number)
        return written

    async def sync(self, number: int) -> None:
        """fsync: survives power loss on return; where `remote_fsync` says so, loss of the host too (else Unavailable)."""
        node = self._file(number).node
        await self._content.sync(node)
        await self._reach_b2(node)

    async def sync_directory(self, number: int) -> None:
        """fsync of a directory: its names, and the content of the files in it, survive power loss on return."""
        node = self._handles[number].node
        for ino in self._volume.journal.unsealed_in(node.ino):
            child = self._tree.nodes.get(ino)
            if child is not None and child.inode.unsealed not in (0, child.inode.synced):
                await self._content.sync(child)
        await self._volume.sync()
        await self._reach_b2(node)

    async def _reach_b2(self, node: Node) -> None:
        """Wait until B2 has what is at and below a path that `remote_fsync` names."""
        paths = [self._tree.path(node)] if node.inode.is_dir and node.linked else self._tree.keys(node)
        for path in paths:
            if path and self._volume.settings.remote_fsync.match(path):
                await self._reach_b2_at(path)

    async def _reach_b2_at(self, path: str) -> None:
        deadline_s, mark = self._volume.settings.read_deadline_s, self._drain.mark()
        with trio.move_on_after(deadline_s):
            await self._drain.run(path, mark)
        if left := self._drain.left(path, mark):
            why = f"B2 does not have {left[0]['path']} after {deadline_s:g} s: {left[0]['why']}"
            raise Unavailable(f"{why}; it is safe here, and goes on being tried")

    def release(self, number: int) -> None:
        """The last descriptor of a handle is gone. (What was written survived SIGKILL before, at each write.)"""
        handle = self._handles.pop(number)
        node = handle.node
        node.handles -= 1
        try:
            if isinstance(handle, Handle) and handle.writable:
                node.writers -= 1
                self._content.closed(node)
        finally:
            if isinstance(handle, Handle) and node.handles == 0:
                self._content.release(node)
            self._tree.discard(node)

    def inode_of(self, number: int) -> int:
        """The inode number of an open file or directory."""
        return self._handles[number].node.ino

    def _file(self, number: int) -> Handle:
        handle = self._handles[number]
        assert isinstance(handle, Handle)
        return handle

    # ------------------------------------------------------------ directories

    async def open_directory(self, ino: int) -> int:
        node = await self._complete(ino)
        node.handles += 1
        return self._register(Entries(node))

    async def entries(self, number: int, start: int) -> Iterator[tuple[int, bytes, Node]]:
        """(next position, name, node) from a position on; 0 rewinds and looks again.

        Positions stay valid while the handle lives: names that went are passed over, names that came
        are seen after a rewind.
        """
        handle = self._handles[number]
        assert isinstance(handle, Entries)
        if start == 0:
            directory = await self._complete(handle.node.ino) if handle.node.linked else handle.node
            handle.names = [b".", b"..", *(directory.children or {})]
            self._prefetch.listed(directory.ino)
        return self._entries(handle, start)

    def _entries(self, handle: Entries, start: int) -> Iterator[tuple[int, bytes, Node]]:
        directory = handle.node
        children = directory.children or {}
        for position in range(start, len(handle.names)):
            name = handle.names[position]
            if position == 0:
                yield 1, name, directory
            elif position == 1:
                parent = directory.parents[0][0] if directory.parents else directory.ino
                yield 2, name, self._tree.nodes[parent]
            elif (ino := children.get(name)) is not None:
                yield position + 1, name, self._tree.nodes[ino]

    # ------------------------------------------------------------ all of it

    def space(self) -> tuple[int, int, int]:
        """(block size, blocks, free blocks). A bucket has no end: what limits a writer is the local disk."""
        return self._volume.disk.space()

    def root(self) -> Inode:
        return self._tree.nodes[ROOT].inode
