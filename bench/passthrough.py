"""A bare pass-through of a directory: what pyfuse3 costs when the file system behind it costs nothing.

    python -m bench.passthrough BACKING MOUNTPOINT

Rules
  No cache, no journal, no error boundary: each handler is the fewest statements that answer right. Attributes stay in
  memory as pyfuse3 wants them, the kernel may believe them for an hour and keeps pages over a reopen; a missing
  name is a negative entry. There is no flush and no getxattr, so the kernel stops asking.
  Nobody else may change BACKING. Hard links are not told apart. SIGTERM ends it and unmounts.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import stat
import sys
from collections.abc import Sequence
from typing import Any

import pyfuse3
import trio

_TIMEOUT_S = 3600.0
_GC_THRESHOLD = 100_000


class Node:
    __slots__ = ("children", "entry", "lookups", "path")

    def __init__(self, path: bytes, entry: pyfuse3.EntryAttributes) -> None:
        self.path = path
        self.entry = entry
        self.lookups = 0
        self.children: dict[bytes, Node] = {}
        """Those that the kernel knows, or knew."""


class Passthrough(pyfuse3.Operations):
    enable_writeback_cache = False

    def __init__(self, backing: str) -> None:
        super().__init__()
        root = self._node(os.fsencode(backing))
        root.entry.st_ino = pyfuse3.ROOT_INODE
        self.nodes: dict[int, Node] = {pyfuse3.ROOT_INODE: root}
        self.files: dict[int, Node] = {}
        self.directories: dict[int, tuple[Node, list[bytes]]] = {}
        self.next_number = 2
        self.absent = pyfuse3.EntryAttributes()
        self.absent.st_ino = 0
        self.absent.entry_timeout = _TIMEOUT_S

    def _node(self, path: bytes) -> Node:
        entry = pyfuse3.EntryAttributes()
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT_S
        node = Node(path, entry)
        _fill(entry, os.lstat(path))
        return node

    def _child(self, parent: Node, name: bytes) -> Node:
        """The node of a name; OSError if there is none."""
        node = parent.children.get(name)
        if node is None:
            node = self._node(parent.path + b"/" + name)
            node.entry.st_ino = number = self.next_number
            self.next_number = number + 1
            self.nodes[number] = parent.children[name] = node
        return node

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        try:
            node = self._child(self.nodes[parent_inode], name)
        except OSError:
            return self.absent
        node.lookups += 1
        return node.entry

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            self.nodes[number].lookups -= count

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self.nodes[inode].entry

    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        node = self.nodes[inode]
        if fields.update_size:
            os.truncate(node.path, attr.st_size)
        if fields.update_mode:
            os.chmod(node.path, attr.st_mode & 0o7777)
        if fields.update_uid or fields.update_gid:
            os.chown(node.path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            atime_ns = attr.st_atime_ns if fields.update_atime else node.entry.st_atime_ns
            os.utime(node.path, ns=(atime_ns, attr.st_mtime_ns if fields.update_mtime else node.entry.st_mtime_ns))
        _fill(node.entry, os.lstat(node.path))
        return node.entry

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        parent = self.nodes[parent_inode]
        os.mkdir(parent.path + b"/" + name, mode)
        node = self._child(parent, name)
        node.lookups += 1
        return node.entry

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        parent = self.nodes[parent_inode]
        os.unlink(parent.path + b"/" + name)
        parent.children.pop(name, None)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        parent = self.nodes[parent_inode]
        os.rmdir(parent.path + b"/" + name)
        parent.children.pop(name, None)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        """Of files only: the paths below a directory would be wrong."""
        parent, target = self.nodes[parent_inode_old], self.nodes[parent_inode_new]
        node = self._child(parent, name_old)
        if flags or stat.S_ISDIR(node.entry.st_mode):
            raise pyfuse3.FUSEError(errno.EINVAL)
        path = target.path + b"/" + name_new
        os.rename(node.path, path)
        node.path = path
        target.children[name_new] = parent.children.pop(name_old)

    async def opendir(self, inode: int, ctx: Any) -> int:
        node = self.nodes[inode]
        number = self.next_number
        self.next_number = number + 1
        self.directories[number] = node, os.listdir(node.path)
        return number

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory, names = self.directories[fh]
        for position in range(start_id, len(names)):
            node = self._child(directory, names[position])
            if not pyfuse3.readdir_reply(token, names[position], node.entry, position + 1):
                return
            node.lookups += 1

    async def releasedir(self, fh: int) -> None:
        del self.directories[fh]

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        node = self.nodes[inode]
        fd = os.open(node.path, flags & ~os.O_NOFOLLOW)
        if flags & os.O_TRUNC:
            node.entry.st_size = 0
        self.files[fd] = node
        return pyfuse3.FileInfo(fh=fd, keep_cache=True)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self.nodes[parent_inode]
        fd = os.open(parent.path + b"/" + name, flags | os.O_CREAT, mode)
        node = self._child(parent, name)
        node.lookups += 1
        self.files[fd] = node
        return pyfuse3.FileInfo(fh=fd, keep_cache=True), node.entry

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        done = os.pwrite(fh, buf, off)
        entry = self.files[fh].entry
        if off + done > entry.st_size:
            entry.st_size = off + done
        return done

    async def release(self, fh: int) -> None:
        del self.files[fh]
        os.close(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        os.fsync(fh)


def _fill(entry: pyfuse3.EntryAttributes, status: os.stat_result) -> None:
    entry.st_mode = status.st_mode
    entry.st_nlink = status.st_nlink
    entry.st_uid = status.st_uid
    entry.st_gid = status.st_gid
    entry.st_rdev = status.st_rdev
    entry.st_size = status.st_size
    entry.st_blksize = status.st_blksize
    entry.st_blocks = status.st_blocks
    entry.st_atime_ns = status.st_atime_ns
    entry.st_mtime_ns = status.st_mtime_ns
    entry.st_ctime_ns = status.st_ctime_ns


async def _serve() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_at_signal)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _stop_at_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()


def main(backing: str, mountpoint: str) -> None:
    options = set(pyfuse3.default_options) | {"fsname=passthrough", "default_permissions"}
    pyfuse3.init(Passthrough(backing), mountpoint, options)
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    try:
        trio.run(_serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
