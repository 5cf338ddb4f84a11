"""The FUSE front end: pyfuse3's requests to the engine and back. The only module that imports pyfuse3.

Rules
  One error boundary around every handler (`_guarded`): an error of `b2fs.errors` becomes its errno, anything
  else is logged and becomes EIO. An exception that got out would end the mount (facts fuse.md).
  The kernel may keep what it was told for an hour; whatever changes without the kernel asking is invalidated by
  `_notify`, never from inside a handler (that deadlocks). A notice about a name cuts off whoever has it as working
  directory, until somebody looks it up again: so there is none that the kernel does not need.
  There is no `flush`: what a close promises is true since the last write. The kernel hears so (ENOSYS) at the first close,
  writes what a shared map has changed, and asks no more.
  A missing name is answered with a negative entry, which the kernel keeps; plain ENOENT it would not.
  Attributes are built once per change, not per request.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import inspect
import itertools
import logging
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

import pyfuse3
import trio

from b2fs.core.inode import ROOT
from b2fs.core.names import FUSE_NAME_MAX
from b2fs.core.tree import Node
from b2fs.engine.engine import Engine
from b2fs.engine.filesystem import NewAttributes
from b2fs.engine.volume import Changed
from b2fs.errors import B2fsError, MountError, NotFound
from b2fs.frontends.busy_poll import BusyPoll
from b2fs.frontends.handshake import Handshake

log = logging.getLogger(__name__)

_TIMEOUT_S = 3600.0
"""How long the kernel may believe an entry or attributes without asking: it is told of every change."""
_BLOCK = 512
"""Unit of st_blocks, whatever st_blksize says (stat(2))."""
_IO_SIZE = 128 * 1024
"""What programs are told to ask for at a time (st_blksize)."""
_READ_AHEAD_KB = 512
"""What the kernel asks for at a time for a sequential reader, where we may say so (root). Its 128 KiB cost four times the
requests; 1 MiB reads no faster, and who asks meanwhile waits twice as long (ARCHITECTURE.md, Sequential reads)."""
_MOST_REQUESTS = 1000
"""Requests under way at a time. pyfuse3 would serve 99: behind as many that wait for B2 everything would wait."""
_NOTICES = 10_000
"""Changes that may wait to be told to the kernel."""
_TOGETHER = 20
"""Changes that are told between two looks at other work: about 1 ms, if they are names."""
_FILES = 1 << 62
"""Inodes that statfs claims: a bucket has no limit."""

_STATE = {b"user.b2fs." + field.encode(): field for field in ("state", "file_id", "sha1", "generation")}
"""Attributes that say where the bytes of a file are. They are not listed: a copy of the file is not to have them."""

P = ParamSpec("P")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def _guarded(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    by_handle = list(inspect.signature(handler).parameters)[1] == "fh"

    @functools.wraps(handler)
    async def boundary(*args: P.args, **kwargs: P.kwargs) -> T:
        requests: BusyPoll = args[0].requests  # type: ignore[attr-defined]
        requests.under_way += 1
        try:
            return await handler(*args, **kwargs)
        except B2fsError as error:
            if error.errno == errno.EIO:
                log.error("%s %s: %s", handler.__name__, _subject(by_handle, *args), error)
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            subject = _subject(by_handle, *args)
            log.exception("%s %s failed unexpectedly; the program gets EIO", handler.__name__, subject)
            raise pyfuse3.FUSEError(errno.EIO) from None
        finally:
            requests.under_way -= 1

    return boundary


def _subject(by_handle: bool, operations: Any, first: Any = None, name: Any = None, *_: Any) -> str:
    """What a request was about, for the log: key and generation where there are such. Never fails."""
    engine: Engine = operations.engine
    try:
        ino = engine.files.inode_of(first) if by_handle else first
        return engine.describe(ino, name) if isinstance(ino, int) else ""
    except Exception as error:  # the request itself is what matters
        return f"({first!r}, {name!r}: {error!r})"


class FuseOperations(pyfuse3.Operations):
    enable_writeback_cache = False  # the app writes many tiny pieces but must hear of a full disk at write()
    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.requests = BusyPoll()
        self._files = engine.files
        self._absent = pyfuse3.EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = _TIMEOUT_S

    # ------------------------------------------------------------ attributes

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        """The kernel's form of a node's attributes, rebuilt only if they changed."""
        inode = node.inode
        entry: pyfuse3.EntryAttributes | None = node.entry
        if entry is not None and node.entry_of is inode:
            return entry
        if entry is None:
            entry = node.entry = pyfuse3.EntryAttributes()
            entry.st_ino = inode.ino
            entry.generation = 0
            entry.st_blksize = _IO_SIZE
        is_known = inode.complete or not inode.is_dir  # a directory's attributes may still come with its listing
        entry.entry_timeout = entry.attr_timeout = _TIMEOUT_S if is_known else 0
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid
        entry.st_gid = inode.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blocks = -(-inode.size // _BLOCK)
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        node.entry_of = inode
        return entry

    def _known(self, node: Node) -> pyfuse3.EntryAttributes:
        """The same, where the kernel counts a reference."""
        node.lookups += 1
        return self._entry(node)

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        try:
            node = await self._files.lookup(parent_inode, name)
        except NotFound:
            if (directory := self.engine.volume.tree.nodes.get(parent_inode)) is not None:
                directory.denied = True
            return self._absent
        return self._known(node)

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._files.attributes(inode))

    @_guarded
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        new = NewAttributes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(await self._files.set_attributes(inode, new, ctx.uid))

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            for ino, count in inode_list:
                self._files.forget(ino, count)
        except Exception:  # forget has no answer; an exception would end the mount
            log.exception("forget failed unexpectedly")

    @_guarded
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # default_permissions: the kernel checks

    # ------------------------------------------------------------ names

    @_guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        mode = 0o040000 | (mode & 0o7777)
        return self._known(await self._files.make_node(parent_inode, name, mode, ctx.uid, ctx.gid))

    @_guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._known(await self._files.make_node(parent_inode, name, mode, ctx.uid, ctx.gid, rdev=rdev))

    @_guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        node = await self._files.make_link(parent_inode, name, target, ctx.uid, ctx.gid)
        return self._known(node)

    @_guarded
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return os.fsencode(await self._files.read_link(inode))

    @_guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._known(await self._files.link(inode, new_parent_inode, new_name))

    @_guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._files.unlink(parent_inode, name)

    @_guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._files.rmdir(parent_inode, name)

    @_guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._files.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    # ------------------------------------------------------------ directories

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return await self._files.open_directory(inode)

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for position, name, node in await self._files.entries(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._entry(node), position):
                break
            if position > 2:  # '.' and '..' give the kernel no reference
                node.lookups += 1

    @_guarded
    async def releasedir(self, fh: int) -> None:
        self._files.release(fh)

    @_guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._files.sync_directory(fh)

    # ------------------------------------------------------------ files

    @_guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        handle, node = await self._files.create(parent_inode, name, mode, ctx.uid, ctx.gid, flags)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True), self._known(node)

    @_guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        handle = await self._files.open(inode, flags, privileged=ctx.uid == 0)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> Any:
        return await self._files.read(fh, off, size)

    @_guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @_guarded
    async def release(self, fh: int) -> None:
        self._files.release(fh)

    @_guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.sync(fh)

    # ------------------------------------------------------------ the rest

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        block, blocks, free = self._files.space()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = block
        data.f_blocks, data.f_bfree, data.f_bavail = blocks, free, free
        data.f_files = data.f_ffree = data.f_favail = _FILES
        data.f_namemax = FUSE_NAME_MAX
        return data

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if (field := _STATE.get(name)) is not None:
            return str(self.engine.file_status(await self.engine.volume.node(inode))[field]).encode()
        return await self._files.xattr(inode, name)

    @_guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return await self._files.xattrs(inode)

    @_guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        # pyfuse3 has looked at XATTR_CREATE and XATTR_REPLACE already, by a getxattr with no suspension in between
        await self._files.set_xattr(inode, name, value)

    @_guarded
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._files.set_xattr(inode, name, None)


class FuseMount:
    """A mount in the kernel: made by `open`, served by `serve`, gone after `close`."""

    def __init__(self, engine: Engine, mountpoint: str) -> None:
        self._engine = engine
        self._mountpoint = mountpoint
        self._send, self._receive = trio.open_memory_channel[Changed](_NOTICES)
        self._is_open = False

    def open(self, source: str, allow_other: bool) -> None:
        """Mount. MountError if the kernel refuses."""
        options = set(pyfuse3.default_options)
        options |= {f"fsname={source.replace(',', '_')}", "subtype=b2fs", "default_permissions"}
        if allow_other:
            options.add("allow_other")
        operations = FuseOperations(self._engine)
        pyfuse3.trio = operations.requests  # type: ignore[attr-defined]  # as pyfuse3.asyncio.enable does
        operations.requests.lowlevel = Handshake(operations.requests)
        try:
            pyfuse3.init(operations, self._mountpoint, options)
        except RuntimeError as error:
            raise MountError(f"cannot mount at {self._mountpoint}: {error}") from error
        self._is_open = True
        self._engine.volume.on_change = self._changed

    async def serve(self) -> None:
        """Answer the kernel until somebody unmounts or `stop` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._notify)
            nursery.start_soon(self._widen_read_ahead)
            try:
                await pyfuse3.main(max_tasks=_MOST_REQUESTS)
            finally:
                nursery.cancel_scope.cancel()

    async def _widen_read_ahead(self) -> None:
        # neither pyfuse3 nor a mount option can ask for it (facts fuse.md); who is not root goes without
        await trio.to_thread.run_sync(_widen_read_ahead, self._mountpoint, abandon_on_cancel=True)

    def stop(self) -> None:
        """Make `serve` return; requests under way are answered first. Nothing, once it has returned."""
        if self._is_open:
            pyfuse3.terminate()

    async def flush(self) -> None:
        """Have the kernel write what it holds of shared memory maps."""
        if not self._is_open:
            return  # the kernel did so before it let go
        await trio.to_thread.run_sync(_syncfs, self._mountpoint, abandon_on_cancel=True)

    def close(self) -> None:
        """Unmount, even while programs hold files open. A second call does nothing."""
        if not self._is_open:
            return
        self._is_open = False
        self._engine.volume.on_change = lambda changed: None
        pyfuse3.close(unmount=True)

    def _changed(self, changed: Changed) -> None:
        tree = self._engine.volume.tree
        if not tree.lookups(changed.ino) and changed.ino != ROOT:
            return  # the kernel knows nothing of it
        node = tree.nodes.get(changed.ino)
        if changed.is_new and node is not None and not node.denied:
            return  # it asked for no name that is absent here
        try:
            self._send.send_nowait(changed)
        except trio.WouldBlock:
            log.warning("too many changes at once: the kernel may show old names for up to %d s", _TIMEOUT_S)

    async def _notify(self) -> None:
        """Tell the kernel what changed. Of inodes from a thread, some at a time: the call waits for requests that hold the
        inode, and a thread's round trip costs more than the call.
        """
        async for first in self._receive:
            inodes = list[int]()
            for changed in [first, *itertools.islice(self._waiting(), _TOGETHER)]:
                if changed.name is None:
                    inodes.append(changed.ino)
                else:
                    _tell(self._tell_of_name, changed.ino, changed.name)
            if inodes:
                await trio.to_thread.run_sync(_tell_of_inodes, inodes)

    def _waiting(self) -> Iterator[Changed]:
        """The changes that wait just now."""
        with suppress(trio.WouldBlock):
            while True:
                yield self._receive.receive_nowait()

    def _tell_of_name(self, parent: int, name: bytes) -> None:
        if not self._has_looked(parent, name):
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)

    def _has_looked(self, parent: int, name: bytes) -> bool:
        """Whether the kernel has looked up the directory that has this name now: then its entry is right, and in use."""
        volume = self._engine.volume
        child = volume.entry(parent, name)
        return child is not None and child.is_dir and volume.tree.lookups(child.ino) > 0


def _tell(notice: Callable[[*Ts], None], *args: *Ts) -> None:
    try:
        notice(*args)
    except OSError as error:
        if error.errno != errno.ENOENT:  # ENOENT: the kernel does not know it, so it is told nothing wrong
            log.warning("the kernel could not be told of a change: %s", error)
    except Exception:  # a bug here must not end the mount
        log.exception("the kernel could not be told of a change: %r", args)


def _tell_of_inodes(inodes: list[int]) -> None:
    """Waits for requests: never on the loop's thread."""
    for ino in inodes:
        _tell(pyfuse3.invalidate_inode, ino, True)


def _widen_read_ahead(mountpoint: str) -> None:
    """Waits for the daemon's first answer, which sets it: never on the loop's thread."""
    try:
        if os.path.ismount(mountpoint):
            device = os.stat(mountpoint).st_dev
            path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
            with open(path, "w", encoding="ascii") as file:
                file.write(str(_READ_AHEAD_KB))
    except OSError as error:
        log.debug("the kernel reads ahead as it is used to: %s", error)


def _syncfs(path: str) -> None:
    """syncfs(2), which Python does not have. Waits for the daemon: never on the loop's thread."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        log.warning("the kernel could not be asked for its last pages: %s", error)
        return
    try:
        ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
    finally:
        os.close(descriptor)
