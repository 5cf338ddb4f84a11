"""The kernel's part of a mount, in this process: system calls on `FileSystem`, without FUSE.

What the kernel does before it asks a file system, or after, is done here as Linux does it for a FUSE file system with
`default_permissions`: path walk, permissions, flags, descriptors with their positions, set-id bits. What it does
without asking one (maps, locks, pipes, programs) is not here.

Rules
  All coroutines run on the engine's loop, one call at a time.
  Calls have the names and arguments of `os`; descriptors are numbers that no real one has.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from b2fs.core.tree import Node
from b2fs.errors import B2fsError
from tests.posix.vfs.names import NameCalls
from tests.posix.vfs.rights import READ, WRITE, fail, without_privileges
from tests.posix.vfs.walk import AnyPath, Last, OpenFile

_FIRST_FD = 1_000_000
_ENTRIES = 100
"""What one getdents returns at most: a listing takes several."""
_LARGEST = (1 << 63) - 1


class DirEntry(NamedTuple):
    next_position: int
    name: str
    ino: int
    kind: int
    """As in d_type."""


class Kernel(NameCalls):
    _fds = itertools.count(_FIRST_FD)

    async def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One system call. OSError; whatever else comes out is a bug, and not made an EIO of."""
        try:
            return await getattr(self, name)(*args, **kwargs)
        except B2fsError as error:
            raise OSError(error.errno, str(error)) from error
        finally:
            self.forget()

    async def exit(self) -> None:
        """The process ends: everything is closed."""
        for fd in list(self.table):
            await self.close(fd)
        if self.cwd is not self.root:
            self._enter(self.root)

    # ------------------------------------------------------------ opening

    async def open(self, path: AnyPath, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_PATH:
            node = await self._end(await self.last(path, dir_fd), follow=not flags & os.O_NOFOLLOW)
            if flags & os.O_DIRECTORY and not node.inode.is_dir:
                fail(errno.ENOTDIR)
            return self._descriptor(node, 0, flags & (os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW))
        if flags & os.O_CREAT and flags & os.O_DIRECTORY:
            fail(errno.EINVAL)
        last = await self.last(path, dir_fd)
        while True:
            if not last.is_name:
                return await self._open(last, await self._end(last, follow=True), flags)
            if flags & os.O_CREAT and last.slash:
                fail(errno.EISDIR)
            node = await self.lookup(last.directory, last.name)
            if node is None:
                return await self._create(last, flags, mode) if flags & os.O_CREAT else fail(errno.ENOENT)
            follows = (last.slash or not flags & os.O_NOFOLLOW) and not _is_exclusive(flags)
            if not node.inode.is_link or not follows:
                return await self._open(last, node, flags)
            beyond = await self.follow(last.directory, node)
            last = beyond._replace(slash=beyond.slash or last.slash)

    async def _create(self, last: Last, flags: int, mode: int) -> int:
        self.process.check_create(last.directory, None)
        process = self.process
        mode = process.mode_to_create(last.directory.inode, stat.S_IMODE(mode))
        handle, node = await self.files.create(last.directory.ino, last.name, mode, process.uid, process.gid, flags)
        return self._descriptor(self.hold(node), handle, flags)

    async def _open(self, last: Last, node: Node, flags: int) -> int:
        """do_open, may_open, and the open of the file system."""
        inode, process = node.inode, self.process
        if flags & os.O_CREAT:
            if flags & os.O_EXCL:
                fail(errno.EEXIST)
            if inode.is_dir:
                fail(errno.EISDIR)
            process.check_open_in_sticky(last.directory.inode, inode)
        if (flags & os.O_DIRECTORY or last.slash) and not inode.is_dir:
            fail(errno.ENOTDIR)
        if inode.is_link:
            fail(errno.ELOOP)
        access = flags & os.O_ACCMODE
        mask = (READ if access != os.O_WRONLY else 0) | (WRITE if access != os.O_RDONLY else 0)
        if flags & os.O_TRUNC:
            mask |= WRITE
        if inode.is_dir and mask & WRITE:
            fail(errno.EISDIR)
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            fail(errno.EACCES)  # nodev
        process.need(inode, mask)
        if flags & os.O_NOATIME:
            process.check_owner(inode)
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            fail(errno.ENOTSUP)
        if stat.S_ISSOCK(inode.mode):
            fail(errno.ENXIO)
        if stat.S_ISFIFO(inode.mode):
            if access != os.O_RDWR and not flags & os.O_NONBLOCK:
                raise NotImplementedError("a FIFO would block")
            return fail(errno.ENXIO) if access == os.O_WRONLY else self._descriptor(node, 0, flags)
        if inode.is_dir:
            return self._descriptor(node, await self.files.open_directory(node.ino), flags)
        return self._descriptor(node, await self.files.open(node.ino, flags, process.privileged), flags)

    def _descriptor(self, node: Node, handle: int, flags: int) -> int:
        node.lookups += 1
        fd = next(self._fds)
        self.table[fd] = OpenFile(node, handle, flags)
        return fd

    async def dup(self, fd: int) -> int:
        file, copy = self.file(fd), next(self._fds)
        file.descriptors += 1
        self.table[copy] = file
        return copy

    async def close(self, fd: int) -> None:
        file = self.file(fd)
        del self.table[fd]
        file.descriptors -= 1
        if not file.descriptors:
            if file.handle:
                self.files.release(file.handle)
            self.files.forget(file.node.ino, 1)

    # ------------------------------------------------------------ bytes

    def _reading(self, fd: int) -> OpenFile:
        file = self.file(fd)
        if not file.readable:
            fail(errno.EBADF)
        return fail(errno.EISDIR) if file.node.inode.is_dir else file

    def _writing(self, fd: int) -> OpenFile:
        file = self.file(fd)
        return file if file.writable else fail(errno.EBADF)

    async def pread(self, fd: int, size: int, offset: int) -> bytes:
        if offset < 0:
            fail(errno.EINVAL)
        return bytes(await self.files.read(self._reading(fd).handle, offset, size))

    async def read(self, fd: int, size: int) -> bytes:
        file = self._reading(fd)
        data = await self.pread(fd, size, file.position)
        file.position += len(data)
        return data

    async def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if offset < 0:
            fail(errno.EINVAL)
        file = self._writing(fd)
        if not data:
            return 0
        node = file.node
        left = node.inode.mode if self.process.privileged else without_privileges(node.inode.mode)
        if left != node.inode.mode:
            await self.change(node, mode=stat.S_IMODE(left))
        return await self.files.write(file.handle, node.inode.size if file.flags & os.O_APPEND else offset, bytes(data))

    async def write(self, fd: int, data: bytes) -> int:
        file = self._writing(fd)
        start = file.node.inode.size if file.flags & os.O_APPEND else file.position
        written = await self.pwrite(fd, data, start)
        if written:
            file.position = start + written
        return written

    async def readv(self, fd: int, buffers: Sequence[bytearray]) -> int:
        return _scatter(await self.read(fd, sum(map(len, buffers))), buffers)

    async def preadv(self, fd: int, buffers: Sequence[bytearray], offset: int) -> int:
        return _scatter(await self.pread(fd, sum(map(len, buffers)), offset), buffers)

    async def writev(self, fd: int, buffers: Sequence[bytes]) -> int:
        return await self.write(fd, b"".join(buffers))

    async def pwritev(self, fd: int, buffers: Sequence[bytes], offset: int) -> int:
        return await self.pwrite(fd, b"".join(buffers), offset)

    async def lseek(self, fd: int, offset: int, whence: int) -> int:
        """All of a file is data."""
        file = self.opened(fd)
        size = file.node.inode.size
        if whence in (os.SEEK_DATA, os.SEEK_HOLE):
            if not 0 <= offset < size:
                fail(errno.ENXIO)
            position = offset if whence == os.SEEK_DATA else size
        elif whence in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: file.position, os.SEEK_END: size}[whence]
        else:
            fail(errno.EINVAL)
        if not 0 <= position <= _LARGEST:
            fail(errno.EINVAL)
        file.position = position
        return position

    async def ftruncate(self, fd: int, size: int) -> None:
        file = self.opened(fd)
        if size < 0 or not file.writable or not stat.S_ISREG(file.node.inode.mode):
            fail(errno.EINVAL)
        await self.cut(file.node, size)

    async def fsync(self, fd: int) -> None:
        file = self.opened(fd)
        if file.node.inode.is_dir:
            await self.files.sync_directory(file.handle)
        else:
            await self.files.sync(file.handle)

    fdatasync = fsync

    # ------------------------------------------------------------ directories

    async def getdents(self, fd: int) -> list[DirEntry]:
        """The next entries, `.` and `..` too; none at the end, and none in a directory that was removed."""
        file = self.opened(fd)
        if not file.node.inode.is_dir:
            fail(errno.ENOTDIR)
        if not file.node.linked:
            return []
        entries = await self.files.entries(file.handle, file.position)
        found = [
            DirEntry(position, os.fsdecode(name), node.ino, stat.S_IFMT(node.inode.mode) >> 12)
            for position, name, node in itertools.islice(entries, _ENTRIES)
        ]
        if found:
            file.position = found[-1].next_position
        return found

    async def listdir(self, path: AnyPath | int = ".") -> list[Any]:
        if isinstance(path, int):
            fd = await self.dup(path)
            self.table[fd].position = 0
        else:
            fd = await self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names: list[Any] = []
            while found := await self.getdents(fd):
                names += [entry.name for entry in found if entry.name not in (".", "..")]
        finally:
            await self.close(fd)
        return [os.fsencode(name) for name in names] if isinstance(path, bytes) else names


def _is_exclusive(flags: int) -> bool:
    return flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL


def _scatter(data: bytes, buffers: Sequence[Any]) -> int:
    done = 0
    for buffer in buffers:
        part = data[done : done + len(buffer)]
        buffer[: len(part)] = part
        done += len(part)
    return done
