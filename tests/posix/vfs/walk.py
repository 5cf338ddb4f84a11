"""From paths to nodes, as the kernel walks them, one component at a time.

Rules
  What was looked up is referred to until the call ends, then forgotten, as by a kernel without a cache: what only an
  open file or the working directory refers to is held by them.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from typing import NamedTuple

from b2fs.core.inode import ROOT
from b2fs.core.tree import Node
from b2fs.engine.filesystem import FileSystem
from b2fs.errors import NotFound
from tests.posix.vfs.rights import SEARCH, Process, fail

PATH_MAX = 4096
_MOST_LINKS = 40
_PROC = b"/proc/self/fd/"

AnyPath = str | bytes | os.PathLike[str]


class Last(NamedTuple):
    """What is left of a path when only its last component is to be looked up."""

    directory: Node
    name: bytes
    """'' if the path is nothing but slashes."""
    slash: bool
    """Whether a slash follows: the object is to be a directory."""

    @property
    def is_name(self) -> bool:
        """Whether it is neither the root, nor '.', nor '..'."""
        return self.name not in (b"", b".", b"..")


class OpenFile:
    """An open file description; several descriptors may share it."""

    def __init__(self, node: Node, handle: int, flags: int) -> None:
        self.node = node
        self.handle = handle
        """The engine's; 0: there is none (O_PATH, FIFO)."""
        self.flags = flags
        self.position = 0
        self.descriptors = 1

    @property
    def is_path(self) -> bool:
        return bool(self.flags & os.O_PATH)

    @property
    def readable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY and not self.is_path

    @property
    def writable(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY and not self.is_path


class Walker:
    """The part of the kernel that knows paths and descriptors."""

    def __init__(self, files: FileSystem, root: Node) -> None:
        self.files = files
        self.process = Process()
        self.table: dict[int, OpenFile] = {}
        self.root = root
        self.cwd = root
        self._held: Counter[int] = Counter()
        """References of the call that runs."""
        self._links = 0

    def hold(self, node: Node) -> Node:
        node.lookups += 1
        self._held[node.ino] += 1
        return node

    def forget(self) -> None:
        """The call is over."""
        for ino, count in self._held.items():
            self.files.forget(ino, count)
        self._held.clear()
        self._links = 0

    # ------------------------------------------------------------ descriptors

    def file(self, fd: int) -> OpenFile:
        """EBADF."""
        return self.table.get(fd) or fail(errno.EBADF)

    def opened(self, fd: int) -> OpenFile:
        """The same, and not one of O_PATH."""
        found = self.file(fd)
        return fail(errno.EBADF) if found.is_path else found

    # ------------------------------------------------------------ paths

    async def node(self, path: AnyPath | int, *, follow: bool = True, dir_fd: int | None = None) -> Node:
        """What a path leads to, or an open descriptor."""
        if isinstance(path, int):
            return self.opened(path).node
        return await self._end(await self.last(path, dir_fd), follow)

    async def last(self, path: AnyPath, dir_fd: int | None = None) -> Last:
        """Walk all of a path but its last component."""
        raw = os.fsencode(path)
        if raw.startswith(_PROC):
            return Last(self.file(int(raw[len(_PROC) :])).node, b"", False)
        if not raw:
            fail(errno.ENOENT)
        if len(raw) >= PATH_MAX:
            fail(errno.ENAMETOOLONG)
        start = self.cwd if dir_fd is None else self.file(dir_fd).node
        if not start.inode.is_dir and not raw.startswith(b"/"):
            fail(errno.ENOTDIR)
        return await self._walk(start, raw)

    async def lookup(self, directory: Node, name: bytes) -> Node | None:
        """What has a name in a directory, links not followed; None: nothing has."""
        if name == b".":
            return directory
        if name == b".." and directory.ino == ROOT:
            return directory
        try:
            return self.hold(await self.files.lookup(directory.ino, name))
        except NotFound:
            return None

    async def follow(self, directory: Node, link: Node) -> Last:
        """Walk a symlink's target but its last component."""
        self._links += 1
        if self._links > _MOST_LINKS:
            fail(errno.ELOOP)
        target = os.fsencode(await self.files.read_link(link.ino))
        return await self._walk(directory, target) if target else fail(errno.ENOENT)

    async def _walk(self, start: Node, path: bytes) -> Last:
        at = self.root if path.startswith(b"/") else start
        names = [name for name in path.split(b"/") if name]
        if not names:
            return Last(at, b"", True)
        for name in names[:-1]:
            self.process.need(at.inode, SEARCH)
            at = await self._end(Last(at, name, True), follow=True)
        self.process.need(at.inode, SEARCH)
        return Last(at, names[-1], path.endswith(b"/"))

    async def _end(self, last: Last, follow: bool) -> Node:
        """What the last component leads to."""
        if not last.name:
            return last.directory
        found = await self.lookup(last.directory, last.name)
        if found is None:
            fail(errno.ENOENT)
        if found.inode.is_link and (follow or last.slash):
            found = await self._end(await self.follow(last.directory, found), follow=True)
        if last.slash and not found.inode.is_dir:
            fail(errno.ENOTDIR)
        return found
