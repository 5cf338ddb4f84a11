"""System calls about names and attributes. They are called, and take what they take, as those of `os`."""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import Any

from b2fs.core.names import FUSE_NAME_MAX
from b2fs.core.tree import Node
from b2fs.engine.filesystem import NewAttributes
from b2fs.errors import B2fsError, NoAttribute
from tests.posix.vfs.rights import READ, SEARCH, WRITE, fail, without_privileges
from tests.posix.vfs.walk import PATH_MAX, AnyPath, Last, Walker

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_SECOND = 1_000_000_000
_BLOCK = 512
_COARSE_CLOCK = 5
"""CLOCK_REALTIME_COARSE, which Python has no name for."""
_KINDS_OF_MKNOD = (0, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
_LONGEST_XATTR_NAME = 255
_LARGEST_XATTR = 65536
_LONGEST_SOCKET = 107
_FILES = 1 << 62

Time = tuple[int, int]


class NameCalls(Walker):
    # ------------------------------------------------------------ looking

    async def stat(
        self, path: AnyPath | int, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> os.stat_result:
        if isinstance(path, int):
            return await self.fstat(path)
        return self.shown(await self._known(await self.node(path, follow=follow_symlinks, dir_fd=dir_fd)))

    async def lstat(self, path: AnyPath, *, dir_fd: int | None = None) -> os.stat_result:
        return await self.stat(path, dir_fd=dir_fd, follow_symlinks=False)

    async def fstat(self, fd: int) -> os.stat_result:
        return self.shown(await self._known(self.file(fd).node))

    async def _known(self, node: Node) -> Node:
        return await self.files.attributes(node.ino)

    @staticmethod
    def shown(node: Node) -> os.stat_result:
        inode = node.inode
        times = inode.atime_ns, inode.mtime_ns, inode.ctime_ns
        shown = (inode.mode, inode.ino, 1, inode.nlink, inode.uid, inode.gid, inode.size)
        seconds = [each // _SECOND for each in times]
        floats = [each / _SECOND for each in times]
        blocks = -(-inode.size // _BLOCK)
        return os.stat_result((*shown, *seconds, *floats, *times, 4096, blocks, inode.rdev))

    async def access(self, path: AnyPath, mode: int, *, effective_ids: bool = False) -> bool:
        assert effective_ids, "a process has no other ids here"
        try:
            self.process.need((await self._known(await self.node(path))).inode, mode)
        except (OSError, B2fsError):
            return False
        return True

    async def readlink(self, path: AnyPath, *, dir_fd: int | None = None) -> str | bytes:
        node = await self.node(path, follow=False, dir_fd=dir_fd)
        target = os.fsencode(await self.files.read_link(node.ino))
        return target if isinstance(path, bytes) else os.fsdecode(target)

    async def statvfs(self, path: AnyPath | int) -> os.statvfs_result:
        if not isinstance(path, int):
            await self.node(path)
        block, blocks, free = self.files.space()
        return os.statvfs_result((block, block, blocks, free, free, _FILES, _FILES, _FILES, 0, FUSE_NAME_MAX))

    async def fstatvfs(self, fd: int) -> os.statvfs_result:
        self.file(fd)
        return await self.statvfs(fd)

    # ------------------------------------------------------------ the working directory

    async def chdir(self, path: AnyPath) -> None:
        self._enter(await self.node(path))

    async def fchdir(self, fd: int) -> None:
        self._enter(self.file(fd).node)

    def _enter(self, node: Node) -> None:
        if not node.inode.is_dir:
            fail(errno.ENOTDIR)
        self.process.need(node.inode, SEARCH)
        node.lookups += 1
        before, self.cwd = self.cwd, node
        self.files.forget(before.ino, 1)

    async def getcwd(self) -> str:
        node, parts = self.cwd, []
        while node is not self.root:
            if not node.linked:
                fail(errno.ENOENT)
            (parent, name), *_ = node.parents
            parts.append(os.fsdecode(name))
            node = self.hold(await self.files.attributes(parent))
        return "/" + "/".join(parts[::-1])

    # ------------------------------------------------------------ making

    async def _new(self, path: AnyPath, dir_fd: int | None, *, is_dir: bool = False) -> Last:
        """filename_create and may_create: a name that is free, where this process may make it."""
        last = await self.last(path, dir_fd)
        if not last.is_name:
            fail(errno.EEXIST)
        child = await self.lookup(last.directory, last.name)
        if child is None and last.slash and not is_dir:
            fail(errno.ENOENT)
        self.process.check_create(last.directory, child)
        return last

    async def _make(self, last: Last, mode: int, rdev: int = 0) -> None:
        mode = self.process.mode_to_create(last.directory.inode, mode)
        process = self.process
        node = await self.files.make_node(last.directory.ino, last.name, mode, process.uid, process.gid, rdev=rdev)
        self.hold(node)

    async def mkdir(self, path: AnyPath, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        last = await self._new(path, dir_fd, is_dir=True)
        await self._make(last, stat.S_IFDIR | mode & 0o1777)

    async def mknod(self, path: AnyPath, mode: int = 0o600, device: int = 0, *, dir_fd: int | None = None) -> None:
        kind = stat.S_IFMT(mode)
        if kind not in _KINDS_OF_MKNOD:
            fail(errno.EPERM if kind == stat.S_IFDIR else errno.EINVAL)
        last = await self._new(path, dir_fd)
        is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        if is_device and not self.process.privileged:
            fail(errno.EPERM)
        await self._make(last, stat.S_IMODE(mode) | (kind or stat.S_IFREG), device if is_device else 0)

    async def mkfifo(self, path: AnyPath, mode: int = 0o666, *, dir_fd: int | None = None) -> None:
        await self.mknod(path, stat.S_IFIFO | mode, dir_fd=dir_fd)

    async def bind(self, path: str) -> None:
        """Bind a socket to a path."""
        if len(os.fsencode(path)) > _LONGEST_SOCKET:
            raise OSError("AF_UNIX path too long")
        if not path:
            return  # the kernel gives it a name outside of all file systems
        try:
            await self.mknod(path, stat.S_IFSOCK | 0o777)
        except FileExistsError:
            fail(errno.EADDRINUSE)

    async def symlink(self, target: AnyPath, path: AnyPath, *, dir_fd: int | None = None) -> None:
        raw = os.fsencode(target)
        if not raw:
            fail(errno.ENOENT)
        if len(raw) >= PATH_MAX:
            fail(errno.ENAMETOOLONG)
        last = await self._new(path, dir_fd)
        process = self.process
        self.hold(await self.files.make_link(last.directory.ino, last.name, raw, process.uid, process.gid))

    async def link(self, old: AnyPath, new: AnyPath, *, follow_symlinks: bool = True) -> None:
        """`os.link` follows no symlink, whatever it is told, as long as it is given no descriptors."""
        node = await self.node(old, follow=False)
        last = await self.last(new)
        if not last.is_name:
            fail(errno.EEXIST)
        child = await self.lookup(last.directory, last.name)
        if child is not None:
            fail(errno.EEXIST)
        if last.slash:
            fail(errno.ENOENT)
        self.process.check_link(node.inode)
        self.process.check_create(last.directory, child)
        if node.inode.is_dir:
            fail(errno.EPERM)
        self.hold(await self.files.link(node.ino, last.directory.ino, last.name))

    # ------------------------------------------------------------ removing and moving

    async def unlink(self, path: AnyPath, *, dir_fd: int | None = None) -> None:
        last = await self.last(path, dir_fd)
        if not last.is_name:
            fail(errno.EISDIR)
        child = await self.lookup(last.directory, last.name) or fail(errno.ENOENT)
        if last.slash:
            fail(errno.EISDIR if child.inode.is_dir else errno.ENOTDIR)
        self.process.check_delete(last.directory, child, want_dir=False)
        await self.files.unlink(last.directory.ino, last.name)

    async def rmdir(self, path: AnyPath, *, dir_fd: int | None = None) -> None:
        last = await self.last(path, dir_fd)
        if not last.is_name:
            fail({b"": errno.EBUSY, b".": errno.EINVAL, b"..": errno.ENOTEMPTY}[last.name])
        child = await self.lookup(last.directory, last.name) or fail(errno.ENOENT)
        self.process.check_delete(last.directory, child, want_dir=True)
        await self.files.rmdir(last.directory.ino, last.name)

    async def rename(
        self, old: AnyPath, new: AnyPath, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        await self._rename(await self.last(old, src_dir_fd), await self.last(new, dst_dir_fd), 0)

    replace = rename

    async def renameat2(self, old: AnyPath, new: AnyPath, flags: int) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            fail(errno.EINVAL)
        if flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
            fail(errno.EINVAL)
        await self._rename(await self.last(old), await self.last(new), flags)

    async def _rename(self, old: Last, new: Last, flags: int) -> None:
        """do_renameat2 and vfs_rename."""
        exchange = bool(flags & RENAME_EXCHANGE)
        if not old.is_name:
            fail(errno.EBUSY)
        if not new.is_name:
            fail(errno.EEXIST if flags & RENAME_NOREPLACE else errno.EBUSY)
        source = await self.lookup(old.directory, old.name) or fail(errno.ENOENT)
        target = await self.lookup(new.directory, new.name)
        if flags & RENAME_NOREPLACE and target is not None:
            fail(errno.EEXIST)
        if exchange:
            if target is None:
                fail(errno.ENOENT)
            if new.slash and not target.inode.is_dir:
                fail(errno.ENOTDIR)
        if not source.inode.is_dir and (old.slash or (new.slash and not exchange)):
            fail(errno.ENOTDIR)
        if old.directory is not new.directory:
            if await self._is_above(source, new.directory):
                fail(errno.EINVAL)
            if target is not None and await self._is_above(target, old.directory):
                fail(errno.EINVAL if exchange else errno.ENOTEMPTY)
        if source is target:
            return
        self._check_rename(old.directory, source, new.directory, target, exchange)
        await self.files.rename(old.directory.ino, old.name, new.directory.ino, new.name, flags)

    def _check_rename(
        self, old_directory: Node, source: Node, new_directory: Node, target: Node | None, exchange: bool
    ) -> None:
        process, is_dir = self.process, source.inode.is_dir
        process.check_delete(old_directory, source, want_dir=is_dir)
        if target is None:
            process.check_create(new_directory, None)
        else:
            process.check_delete(new_directory, target, want_dir=target.inode.is_dir if exchange else is_dir)
        if old_directory is not new_directory:  # their '..' changes
            if is_dir:
                process.need(source.inode, WRITE)
            if exchange and target is not None and target.inode.is_dir:
                process.need(target.inode, WRITE)

    async def _is_above(self, node: Node, below: Node) -> bool:
        while below is not node:
            if not below.parents:
                return False
            below = self.hold(await self.files.attributes(below.parents[0][0]))
        return True

    # ------------------------------------------------------------ attributes

    async def change(self, node: Node, **new: Any) -> None:
        await self.files.set_attributes(node.ino, NewAttributes(**new))

    async def chmod(self, path: AnyPath | int, mode: int) -> None:
        node = await self.node(path)
        self.process.check_owner(node.inode)
        await self.change(node, mode=self.process.mode_to_set(node.inode, stat.S_IMODE(mode)))

    async def chown(self, path: AnyPath | int, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        node = await self.node(path, follow=follow_symlinks)
        inode, new = node.inode, {"uid": None if uid == -1 else uid, "gid": None if gid == -1 else gid}
        self.process.check_chown(inode, **new)
        left = inode.mode if inode.is_dir else without_privileges(inode.mode)
        if left != inode.mode:
            self.process.check_owner(inode)
            new["mode"] = stat.S_IMODE(left)
        await self.change(node, **new)

    async def lchown(self, path: AnyPath, uid: int, gid: int) -> None:
        await self.chown(path, uid, gid, follow_symlinks=False)

    async def fchmod(self, fd: int, mode: int) -> None:
        await self.chmod(fd, mode)

    async def fchown(self, fd: int, uid: int, gid: int) -> None:
        await self.chown(fd, uid, gid)

    async def truncate(self, path: AnyPath, size: int) -> None:
        if size < 0:
            fail(errno.EINVAL)
        node = await self.node(path)
        if not stat.S_ISREG(node.inode.mode):
            fail(errno.EISDIR if node.inode.is_dir else errno.EINVAL)
        self.process.need(node.inode, WRITE)
        await self.cut(node, size)

    async def cut(self, node: Node, size: int) -> None:
        """do_truncate: the set-id bits go in the same step."""
        mode = node.inode.mode if self.process.privileged else without_privileges(node.inode.mode)
        await self.change(node, size=size, mode=None if mode == node.inode.mode else stat.S_IMODE(mode))

    async def utime(
        self,
        path: AnyPath | int,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        if times is not None:
            ns = int(times[0] * _SECOND), int(times[1] * _SECOND)
        pair = None if ns is None else (divmod(ns[0], _SECOND), divmod(ns[1], _SECOND))
        await self._utime(await self.node(path, follow=follow_symlinks), pair)

    async def utimes_now(self, path: AnyPath) -> None:
        await self._utime(await self.node(path), None)

    async def utimensat(self, path: AnyPath, atime: Time, mtime: Time, flags: int = 0) -> None:
        nanoseconds = atime[1], mtime[1]
        if nanoseconds == (UTIME_OMIT, UTIME_OMIT):
            return  # the kernel does not even look at the path
        node = await self.node(path, follow=not flags)
        if any(not 0 <= each < _SECOND and each not in (UTIME_NOW, UTIME_OMIT) for each in nanoseconds):
            fail(errno.EINVAL)
        await self._utime(node, None if nanoseconds == (UTIME_NOW, UTIME_NOW) else (atime, mtime))

    async def _utime(self, node: Node, times: tuple[Time, Time] | None) -> None:
        """vfs_utimes: to set both to now it is enough to be allowed to write."""
        if times is None:
            if not self.process.owns(node.inode):
                self.process.need(node.inode, WRITE)
        else:
            self.process.check_owner(node.inode)
        now = time.clock_gettime_ns(_COARSE_CLOCK)  # the kernel's own; pyfuse3 hands it through
        new = {}
        for name, (seconds, nanoseconds) in zip(
            ("atime_ns", "mtime_ns"), times or ((0, UTIME_NOW), (0, UTIME_NOW)), strict=True
        ):
            if nanoseconds != UTIME_OMIT:
                new[name] = now if nanoseconds == UTIME_NOW else seconds * _SECOND + nanoseconds
        await self.change(node, **new)

    # ------------------------------------------------------------ extended attributes

    async def _with_xattr(self, path: AnyPath | int, name: str | bytes, follow: bool, mask: int) -> tuple[Node, bytes]:
        raw = os.fsencode(name)
        if not 0 < len(raw) <= _LONGEST_XATTR_NAME:
            fail(errno.ERANGE)
        node = await self.node(path, follow=follow)
        self.process.check_xattr(node.inode, raw, mask)
        return node, raw

    async def getxattr(self, path: AnyPath | int, name: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        node, raw = await self._with_xattr(path, name, follow_symlinks, READ)
        return await self.files.xattr(node.ino, raw)

    async def setxattr(
        self, path: AnyPath | int, name: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        if len(value) > _LARGEST_XATTR:
            fail(errno.E2BIG)
        node, raw = await self._with_xattr(path, name, follow_symlinks, WRITE)
        if flags:  # pyfuse3 looks first
            try:
                await self.files.xattr(node.ino, raw)
            except NoAttribute:
                if flags & os.XATTR_REPLACE:
                    raise
            else:
                if flags & os.XATTR_CREATE:
                    fail(errno.EEXIST)
        await self.files.set_xattr(node.ino, raw, value)

    async def removexattr(self, path: AnyPath | int, name: str | bytes, *, follow_symlinks: bool = True) -> None:
        node, raw = await self._with_xattr(path, name, follow_symlinks, WRITE)
        await self.files.set_xattr(node.ino, raw, None)

    async def listxattr(self, path: AnyPath | int, *, follow_symlinks: bool = True) -> list[str]:
        node = await self.node(path, follow=follow_symlinks)
        return [os.fsdecode(name) for name in await self.files.xattrs(node.ino)]
