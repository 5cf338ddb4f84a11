"""A file system that forgets: a disk for a state directory whose power can be cut. A process of its own.

Run as ``python -m tests.power.layer MOUNTPOINT SOCKET``; prints ``ready`` once it serves. `support.Layer` is its
other side. What survives a cut is `platter`'s matter; this module is FUSE and the control socket.

Rules
  No handler suspends, so a command sees the disk between two operations, never within one.
  Operations that change something are counted. A cut that was armed writes its image right before the n-th of
  them; the disk serves on, so that whoever uses it can be ended in peace: nothing after it is in the image.
  Shared memory (``*-shm``) is written back when the kernel likes, so it is not counted.

Commands, one JSON object a connection: `image`, `arm`, `counted`, `fail`, `stop` (see `_Control`).
"""

from __future__ import annotations

import errno
import fnmatch
import functools
import json
import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from tests.power.platter import Directory, File, write_image

_TIMEOUT_S = 3600.0
"""Nothing changes but by the kernel's own requests."""

P = ParamSpec("P")
T = TypeVar("T")


class Cut:
    """A cut that was armed: image `to`, of the directory `path`, before the `at`-th change from now."""

    def __init__(self, path: str, to: str, seed: int | None, at: int) -> None:
        self.path, self.to, self.seed, self.left = path, to, seed, at


class Platter(pyfuse3.Operations):
    enable_writeback_cache = False  # a write is here when it has returned, as it is in the page cache of a disk
    supports_dot_lookup = False
    enable_acl = False

    def __init__(self) -> None:
        super().__init__()
        self.root = Directory(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, os.geteuid(), os.getegid(), time.time_ns())
        self.nodes: dict[int, File | Directory] = {pyfuse3.ROOT_INODE: self.root}
        """Everything that has a name or that the kernel knows."""
        self.counted = 0
        self.cut: Cut | None = None
        self.faults: list[tuple[str, str, int]] = []
        """(operations' names, pattern of paths, errno)"""
        self._next = pyfuse3.ROOT_INODE + 1

    # ------------------------------------------------------------ around every change

    def _changing(self, operation: str, *paths: str) -> None:
        """Before anything is changed: the armed cut, and the faults that were asked for."""
        if not paths[0].endswith("-shm"):
            self.counted += 1
            if self.cut is not None:
                self.cut.left -= 1
                if self.cut.left == 0:
                    cut, self.cut = self.cut, None
                    write_image(self.find(cut.path), cut.to, cut.seed)
        for operations, pattern, number in self.faults:
            if operation in operations.split() and any(fnmatch.fnmatchcase(path, pattern) for path in paths):
                raise pyfuse3.FUSEError(number)

    def find(self, path: str) -> Directory:
        node = self.root
        for part in path.split("/") if path else ():
            below = node.live[part.encode()]
            assert isinstance(below, Directory)
            node = below
        return node

    def _directory(self, number: int) -> Directory:
        node = self.nodes[number]
        assert isinstance(node, Directory)
        return node

    def _file(self, number: int) -> File:
        node = self.nodes[number]
        assert isinstance(node, File)
        return node

    def _child(self, parent: int, name: bytes) -> File | Directory:
        try:
            return self._directory(parent).live[name]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def _add(self, parent: int, name: bytes, kind: type[File] | type[Directory], mode: int, context: Any) -> Any:
        directory = self._directory(parent)
        self._changing("create", _join(directory, name))
        if name in directory.live:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = kind(self._next, mode, context.uid, context.gid, time.time_ns())
        self._next += 1
        self.nodes[node.number] = node
        directory.change([(name, node)])
        return node

    def _unnamed(self, node: File | Directory, parent: Directory, name: bytes) -> None:
        node.names.pop((parent, name), None)
        self._collect(node)

    def _collect(self, node: File | Directory) -> None:
        if not node.names and node.lookups <= 0 and node is not self.root:
            self.nodes.pop(node.number, None)

    # ------------------------------------------------------------ attributes

    def _entry(self, node: File | Directory) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.number
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT_S
        entry.st_mode, entry.st_uid, entry.st_gid = node.mode, node.uid, node.gid
        entry.st_nlink = len(node.names) if isinstance(node, File) else 2
        entry.st_size = node.size if isinstance(node, File) else 0
        entry.st_blksize, entry.st_blocks, entry.st_rdev = 4096, -(-entry.st_size // 512), 0
        entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = node.atime_ns, node.mtime_ns, node.ctime_ns
        return entry

    def _known(self, node: File | Directory) -> pyfuse3.EntryAttributes:
        node.lookups += 1
        return self._entry(node)

    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._known(self._child(parent_inode, name))

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(self.nodes[inode])

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> pyfuse3.EntryAttributes:
        node, now = self.nodes[inode], time.time_ns()
        self._changing("truncate" if fields.update_size else "attributes", node.path)
        if fields.update_size:
            self._file(inode).truncate(attr.st_size)
            node.mtime_ns = now
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        node.ctime_ns = now
        return self._entry(node)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            node = self.nodes.get(number)
            if node is not None:
                node.lookups -= count
                self._collect(node)

    # ------------------------------------------------------------ names

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._known(self._add(parent_inode, name, Directory, stat.S_IFDIR | stat.S_IMODE(mode), ctx))

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        node = self._add(parent_inode, name, File, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return pyfuse3.FileInfo(fh=node.number, keep_cache=True), self._known(node)

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        node, directory = self.nodes[inode], self._directory(new_parent_inode)
        self._changing("link", _join(directory, new_name), node.path)
        if new_name in directory.live:
            raise pyfuse3.FUSEError(errno.EEXIST)
        directory.change([(new_name, node)])
        return self._known(node)

    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        node, directory = self._child(parent_inode, name), self._directory(parent_inode)
        self._changing("unlink", _join(directory, name))
        directory.change([(name, None)])
        self._unnamed(node, directory, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        node = self._child(parent_inode, name)
        if isinstance(node, Directory) and node.live:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        await self.unlink(parent_inode, name, ctx)

    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        node = self._child(parent_inode_old, name_old)
        old, new = self._directory(parent_inode_old), self._directory(parent_inode_new)
        self._changing("rename", _join(old, name_old), _join(new, name_new))
        target = new.live.get(name_new)
        if target is node:
            return  # two names of one file: rename(2) does nothing
        if isinstance(target, Directory) and target.live:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        if old is new:
            old.change([(name_old, None), (name_new, node)])
        else:
            new.change([(name_new, node)])
            old.change([(name_old, None)])
        self._unnamed(node, old, name_old)
        if target is not None:
            self._unnamed(target, new, name_new)

    # ------------------------------------------------------------ directories

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Positions are inode numbers: they stay valid whatever comes and goes meanwhile."""
        below = sorted((node.number, name, node) for name, node in self._directory(fh).live.items())
        for number, name, node in below:
            if number > start_id:
                if not pyfuse3.readdir_reply(token, name, self._entry(node), number):
                    break
                node.lookups += 1

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        directory = self._directory(fh)
        self._changing("sync", directory.path)
        directory.sync()

    # ------------------------------------------------------------ files

    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        if flags & os.O_TRUNC:
            file = self._file(inode)
            self._changing("truncate", file.path)
            file.truncate(0)
            file.mtime_ns = time.time_ns()
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)  # two maps of one file are one memory

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(self._file(fh).fd, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        file = self._file(fh)
        self._changing("write", file.path)
        file.mtime_ns = file.ctime_ns = time.time_ns()
        file.write(off, buf)
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        file = self._file(fh)
        self._changing("sync", file.path)
        file.sync(data_only=datasync)

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 28
        data.f_files = data.f_ffree = data.f_favail = 1 << 30
        data.f_namemax = 255
        return data


def _join(directory: Directory, name: bytes) -> str:
    return f"{directory.path}/{name.decode()}".removeprefix("/")


def _guarded(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A bug is EIO and a traceback on stderr: an exception that gets out would end the mount."""

    @functools.wraps(handler)
    async def boundary(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception:
            sys.excepthook(*sys.exc_info())
            raise pyfuse3.FUSEError(errno.EIO) from None

    return boundary


for _name, _handler in list(vars(Platter).items()):
    if not _name.startswith("_") and hasattr(pyfuse3.Operations, _name) and callable(_handler):
        setattr(Platter, _name, _guarded(_handler))


class _Control:
    """The commands; each answers with a JSON value, `{"error": …}` if it failed."""

    def __init__(self, platter: Platter) -> None:
        self._platter = platter

    def image(self, path: str, to: str, seed: int | None) -> None:
        """Write what a power cut at this moment would leave of the directory `path` to the new directory `to`."""
        write_image(self._platter.find(path), to, seed)

    def arm(self, path: str, to: str, seed: int | None, at: int) -> None:
        """The same before the `at`-th change from now; 0: never."""
        self._platter.cut = Cut(path, to, seed, at) if at else None

    def counted(self) -> int:
        """Changes so far."""
        return self._platter.counted

    def fail(self, faults: list[tuple[str, str, int]]) -> None:
        """From now on (operations, pattern of paths, errno) fail, and nothing else does. Operations, by space: create
        link rename unlink write truncate attributes sync.
        """
        self._platter.faults = faults

    def stop(self) -> None:
        """Unmount and end."""
        pyfuse3.terminate()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            asked = b""
            while not asked.endswith(b"\n"):
                asked += await stream.receive_some()
            request = json.loads(asked)
            try:
                answer = getattr(self, request.pop("do"))(**request)
            except Exception as error:
                sys.excepthook(*sys.exc_info())
                answer = {"error": repr(error)}
            await stream.send_all(json.dumps(answer).encode())


async def _end_with_parent() -> None:
    """Unmount when the other side is gone, however it ended: it holds the other end of our stdin."""
    async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stdin:
        await stdin.receive_some(1)
    pyfuse3.terminate()


async def _main(mountpoint: str, socket_path: str) -> None:
    platter = Platter()
    options = set(pyfuse3.default_options) | {"fsname=power", "subtype=power", "default_permissions"}
    pyfuse3.init(platter, mountpoint, options)
    try:
        with trio.socket.socket(trio.socket.AF_UNIX) as listening:
            await listening.bind(socket_path)
            listening.listen()
            async with trio.open_nursery() as nursery:
                serve = _Control(platter).serve
                nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listening)])
                nursery.start_soon(_end_with_parent)
                print("ready", flush=True)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    _, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (_hard, _hard))  # a descriptor a file
    trio.run(_main, *sys.argv[1:])
