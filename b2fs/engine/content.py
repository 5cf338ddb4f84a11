"""The bytes of files: reading, writing, sealing.

Rules
  A file's content is its scratch file, else its staged file, else the version ``file_id``, in that order.
  Scratch is written with plain pwrite on the event loop (the page cache takes it) and belongs to this
  module alone; its size and mtime on disk are those of the inode, so a write needs no journal entry.
  Sealing never needs a lock: content and name go to stable storage, then a link and a commit without suspension;
  a later write makes a new scratch file from the sealed one.
  So a row that names staged content with a SHA-1 is true after a power loss too; scratch is, where ``synced`` says so.

Checklist of awaits between a check and its use
  `_prepare`: looks at descriptor and room again after every wait.
  `_make_scratch`: other writers wait on ``node.opening``; attributes that changed meanwhile are read again.
  `_secure_unsealed`: looks after the fsync whether that content is still the file's; `sync` asks again if not.
  `_clone_at_once`: what it copied must not have been set aside meanwhile.
  `seal`: ``node.writes`` tells whether the hashed bytes are still the content.
"""

from __future__ import annotations

import errno
import logging
import os

import trio
from msgspec.structs import replace

from b2fs.adapters import disk as disk_module
from b2fs.core import chunks
from b2fs.core.change import Change
from b2fs.core.inode import Inode
from b2fs.core.tree import Node
from b2fs.engine.cache import Cache
from b2fs.engine.volume import Volume
from b2fs.errors import Damaged, NoSpace, TooLarge

log = logging.getLogger(__name__)

_INLINE_COPY = 128 * 1024
"""Content up to this size is copied and hashed on the loop: that takes less than a thread's round trip."""
_MAX_FILE = 10_000_000_000_000
"""B2's largest file, bytes (facts b2.md 1.6)."""
_HASH_TRIES = 2
"""After so many overtaken hashes a file is sealed first and hashed then."""


class Content:
    def __init__(self, volume: Volume, cache: Cache) -> None:
        self._volume = volume
        self._cache = cache

    # ------------------------------------------------------------ reading

    async def read(self, node: Node, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes from `offset`; fewer only at the end of the file. Unavailable, Damaged."""
        inode = node.inode
        size = min(size, inode.size - offset)
        if size <= 0:
            return b""
        if inode.scratch:
            return await self._pread(self._scratch_fd(node), offset, size)
        if inode.staged:
            return await self._read_staged(node, offset, size)
        first, last = offset // chunks.CHUNK, (offset + size - 1) // chunks.CHUNK
        if first == last or chunks.is_small(inode.size):
            fd, base = await self._cache.need(inode.file_id, inode.size, inode.sha1, first)
            return await self._pread(fd, offset - base, size)
        parts = []
        for index in range(first, last + 1):
            start = max(offset, index * chunks.CHUNK)
            end = min(offset + size, (index + 1) * chunks.CHUNK)
            fd, base = await self._cache.need(inode.file_id, inode.size, inode.sha1, index)
            parts.append(await self._pread(fd, start - base, end - start))
        return b"".join(parts)

    async def _read_staged(self, node: Node, offset: int, size: int) -> bytes | memoryview:
        fd = self._volume.seam.inline(self._volume.disk.open_staged, node.inode.staged)
        try:
            return await self._pread(fd, offset, size)
        finally:
            os.close(fd)

    async def _pread(self, fd: int, offset: int, size: int) -> bytes | memoryview:
        """Exactly `size` bytes: from the page cache at once, else from the disk in a thread.

        The descriptor may be closed by others while the thread reads, so it gets one of its own.
        """
        buffer = bytearray(size)
        try:
            done = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise Damaged(f"the disk of the state directory fails: {error}") from error
            done = 0
        if done < size:
            own = os.dup(fd)
            try:
                await self._volume.seam.thread(_read_rest, own, memoryview(buffer)[done:], offset + done)
            finally:
                os.close(own)
        return memoryview(buffer)

    # ------------------------------------------------------------ writing

    async def write(self, node: Node, offset: int, data: bytes) -> int:
        """Write all of `data` at `offset`, a hole before it if need be. Survives SIGKILL on return.

        NoSpace: the file has the size that it had. Never a short count: the kernel would drop the rest of a shared
        map's page without telling anybody. Suspends only when the scratch file has to be made, or while the budget or
        the disk is full: then until uploads have made room, or `dirty_wait_s` has passed.
        """
        end = offset + len(data)
        if end > _MAX_FILE:
            raise TooLarge("B2 keeps files of up to 10 TB")
        volume = self._volume
        deadline_s = volume.wait_deadline()
        while True:
            await self._prepare(node, None, end, deadline_s)
            try:
                if not volume.disk_room(len(data)):
                    raise NoSpace("the disk of the state directory is full")
                volume.seam.inline(_pwrite_all, node.fd, data, offset, node.inode.size)
                break
            except NoSpace as full:
                await self._make_way(len(data), deadline_s, full)
        self._changed(node, max(node.inode.size, end))
        return len(data)

    async def truncate(self, node: Node, size: int) -> None:
        """Cut or extend (with zeros) to `size`. Only what is kept is fetched."""
        if size > _MAX_FILE:
            raise TooLarge("B2 keeps files of up to 10 TB")
        self._volume.check_writable()
        if size == 0 and node.inode.scratch and node.inode.synced == node.inode.scratch:
            self._freeze(node, "")  # what an fsync acknowledged stays whole until what replaces it is as safe
        await self._prepare(node, size, size, self._volume.wait_deadline())
        self._volume.seam.inline(_truncate, node.fd, size)
        self._changed(node, size)

    async def _prepare(self, node: Node, keep: int | None, size: int, deadline_s: float) -> None:
        """Have a scratch file that starts with (the first `keep` bytes of) the content, and room for it to grow to
        `size`. Nothing suspends between the last look and the return. ReadOnly, NoSpace.
        """
        volume = self._volume
        volume.check_writable()
        while True:
            if node.fd < 0:
                whole = node.inode.size
                await self._make_scratch(node, whole if keep is None else min(keep, whole), deadline_s)
            if volume.budget.room(size - node.inode.size):
                return
            volume.check_fits(size)
            await volume.wait_freed(deadline_s)

    async def _make_way(self, size: int, deadline_s: float, full: NoSpace) -> None:
        """The disk itself is full: clean bytes give way, then uploads make room. `full` if nothing of ours fills it."""
        if self._cache.give_way(size):
            return
        if not self._volume.budget.used:
            raise full
        await self._volume.wait_freed(deadline_s)

    def _changed(self, node: Node, size: int) -> None:
        """The scratch file was written: its inode says so, in memory (on disk the file's own stat does)."""
        now = self._volume.now_ns()
        node.inode = replace(node.inode, size=size, mtime_ns=now, ctime_ns=now)
        node.writes += 1
        self._volume.budget.set(node.inode.scratch, size)

    async def _make_scratch(self, node: Node, keep: int, deadline_s: float) -> None:
        """Have an open scratch file that starts with the first `keep` bytes of the content."""
        while node.fd < 0:
            if node.opening is not None:
                await node.opening.wait()
                continue
            if node.inode.scratch:
                node.fd = self._scratch_fd(node)
                return
            node.opening = trio.Event()
            try:
                await self._clone_to_scratch(node, keep, deadline_s)
            finally:
                node.opening, done = None, node.opening
                done.set()

    async def _clone_to_scratch(self, node: Node, keep: int, deadline_s: float) -> None:
        volume = self._volume
        while True:
            await volume.room(keep, deadline_s)
            try:
                if keep and not volume.disk_room(keep):
                    raise NoSpace("the disk of the state directory is full")
                return await self._clone_at_once(node, keep)
            except NoSpace as full:
                await self._make_way(keep, deadline_s, full)

    async def _clone_at_once(self, node: Node, keep: int) -> None:
        """The same, where there is room. NoSpace: there was none on the disk, and nothing changed."""
        volume = self._volume
        number = volume.journal.next_number()
        volume.budget.set(number, keep)  # set aside before a byte is written
        try:
            fd = volume.seam.inline(volume.disk.make_scratch, number)
            try:
                if keep:
                    before = node.inode
                    await self._copy_content(node, fd, keep)
                    if before.sha1 and (node.inode.sha1, node.inode.size) != (before.sha1, before.size):
                        raise Damaged("the content was set aside while it was copied")
                inode = replace(node.inode, scratch=number, size=keep)
                volume.commit(volume.tree.plan_attributes(node, inode))
            except BaseException:
                os.close(fd)
                volume.disk.drop_scratch(number)
                raise
        except BaseException:
            volume.free(number)
            raise
        node.fd = fd

    async def _copy_content(self, node: Node, fd: int, keep: int) -> None:
        volume, inode = self._volume, node.inode
        if inode.staged:
            own = volume.seam.inline(volume.disk.open_staged, inode.staged)
            try:  # through a descriptor: the upload may be confirmed meanwhile, and the name gone
                if keep <= _INLINE_COPY:
                    volume.seam.inline(volume.disk.clone, own, fd, keep)
                else:
                    await volume.seam.thread(volume.disk.clone, own, fd, keep)
            finally:
                os.close(own)
            return
        for index in range(chunks.count(keep)):
            source, base = await self._cache.need(inode.file_id, inode.size, inode.sha1, index)
            offset, length = index * chunks.CHUNK, min(chunks.CHUNK, keep - index * chunks.CHUNK)
            own = os.dup(source)  # an eviction may close the cache's own while the thread copies
            try:
                await volume.seam.thread(disk_module.copy_range, own, offset - base, fd, offset, length)
            finally:
                os.close(own)

    def _scratch_fd(self, node: Node) -> int:
        if node.fd < 0:
            node.fd = self._volume.seam.inline(self._volume.disk.open_scratch, node.inode.scratch)
        return node.fd

    # ------------------------------------------------------------ promises

    def stamp(self, node: Node) -> None:
        """Write the inode's times onto its scratch file, where a restart after SIGKILL finds them."""
        if node.inode.scratch:
            os.utime(self._scratch_fd(node), ns=(node.inode.atime_ns, node.inode.mtime_ns))

    def closed(self, node: Node) -> None:
        """A program closed the file: its times are on disk, and its quiet period begins."""
        self.stamp(node)
        if node.linked:
            for key in self._volume.tree.keys(node):
                self._volume.schedule.touch(key, trio.current_time())

    async def sync(self, node: Node) -> None:
        """Content and journal survive power loss on return. No network.

        The first fsync of a content file also puts its name on stable storage, and a mark into the journal: only
        with it is content that has no SHA-1 yet trusted after a power loss.
        """
        volume = self._volume
        volume.check_writable()
        while not await self._secure_unsealed(node):
            pass
        await volume.sync()

    async def _secure_unsealed(self, node: Node) -> bool:
        """Put content without a SHA-1 on stable storage, and mark it; whether that, or what is sealed, is the content
        still. (Else it was replaced meanwhile by what is not on stable storage either.)
        """
        volume, inode = self._volume, node.inode
        number = inode.unsealed  # what is sealed is safe already
        if not number:
            return True
        if inode.scratch:
            self.stamp(node)
            own = os.dup(node.fd)
        else:
            own = volume.seam.inline(volume.disk.open_staged, number)
        try:
            await volume.seam.thread(disk_module.fsync, own)
        finally:
            os.close(own)
        if inode.synced != number:
            await volume.seam.thread(volume.disk.sync_names)
            now = node.inode
            if number not in (now.scratch, now.staged):
                return not now.staged or now.sha1 != ""
            if number == now.scratch or not now.sha1:
                volume.commit(Change(inodes=[replace(now, synced=number)]))
                self._drop(now.synced, unless=(now.scratch, now.staged))
        return True

    def release(self, node: Node) -> None:
        """The last handle is gone: close the descriptor, and drop what neither a path nor the kernel leads to any more."""
        if node.fd >= 0:
            os.close(node.fd)
            node.fd = -1
        if not node.linked and not node.held:
            self.discard(node)

    def discard(self, node: Node) -> None:
        """The content of an unlinked file that nobody holds."""
        volume, inode = self._volume, node.inode
        node.inode = replace(inode, scratch=0, staged=0, synced=0)
        self._drop(inode.staged)
        self._drop(inode.synced, unless=(inode.staged,))
        if inode.scratch not in (0, inode.synced):
            volume.seam.inline(volume.disk.drop_scratch, inode.scratch)
            volume.free(inode.scratch)

    def _drop(self, number: int, unless: tuple[int, ...] = ()) -> None:
        """Content that no row names any more, if it is not one of `unless`; 0 is none."""
        if number and number not in unless:
            self._volume.reaper.drop(number)

    # ------------------------------------------------------------ sealing

    async def seal(self, node: Node, patient: bool = False) -> Inode | None:
        """Turn scratch into staged: immutable, on stable storage, with its SHA-1 in the journal.

        Returns the inode as it was sealed. A write that comes meanwhile is either in the sealed content or in
        a new scratch file, which shadows it. None if it is `patient` and a program began to write meanwhile: what the
        file is now is perhaps half of what it is to be (after O_TRUNC nothing).
        """
        volume = self._volume
        for _ in range(_HASH_TRIES):
            if not node.inode.scratch:
                break
            number, writes = node.inode.scratch, node.writes
            self.stamp(node)
            try:
                sha1 = await volume.seam.thread(volume.disk.secure, volume.disk.scratch_path(number))
            except FileNotFoundError:
                continue  # it was unlinked, or sealed under another name, meanwhile
            if node.writes == writes and node.inode.scratch == number:
                return self._freeze(node, sha1)
            if patient and node.writers > 0:
                return None
        # somebody writes all the time, or the last run ended here: hash what is frozen
        sealed = self._freeze(node, "") if node.inode.scratch else node.inode
        if sealed.staged and not sealed.sha1:
            try:
                sha1 = await volume.seam.thread(volume.disk.secure, volume.disk.staged_path(sealed.staged))
            except FileNotFoundError:
                return node.inode
            sealed = replace(sealed, sha1=sha1)
            if node.inode.staged == sealed.staged:
                now = node.inode
                synced = now.synced if now.synced == now.scratch else 0
                volume.commit(Change(inodes=[replace(now, sha1=sha1, synced=synced)]))
                self._drop(now.synced, unless=(now.scratch, now.staged))
        return sealed

    def _freeze(self, node: Node, sha1: str) -> Inode:
        """The step that makes scratch immutable; no suspension in it. With `sha1` it is on stable storage already;
        without, the newest content that is stays until it is too.
        """
        volume, inode = self._volume, node.inode
        self.stamp(node)
        number, before = inode.scratch, inode.staged
        synced = 0
        if not sha1:
            synced = before if before and inode.sha1 and inode.synced != number else inode.synced
        volume.seam.inline(volume.disk.stage, number)
        volume.commit(Change(inodes=[replace(inode, scratch=0, staged=number, sha1=sha1, synced=synced)]))
        os.close(node.fd)
        node.fd = -1
        volume.reaper.unlink_scratch(number)
        self._drop(before, unless=(synced,))
        self._drop(inode.synced, unless=(synced, number, before))
        return node.inode

    async def sha1(self, path: str, size: int) -> str:
        """Hex SHA-1 of a file of `size` bytes."""
        if size <= _INLINE_COPY:
            return self._volume.seam.inline(disk_module.sha1_of, path)
        return await self._volume.seam.thread(disk_module.sha1_of, path)


def _read_rest(fd: int, buffer: memoryview, offset: int) -> None:
    while buffer:
        done = os.preadv(fd, [buffer], offset)
        if done == 0:
            raise Damaged("a file of the state directory is shorter than the journal says")
        buffer, offset = buffer[done:], offset + done


def _pwrite_all(fd: int, data: bytes, offset: int, size: int) -> None:
    """All of it; NoSpace: nothing, the file is as it was, `size` bytes long.

    What lies behind the end is written first, since only that needs room: what is overwritten has it.
    """
    if offset < size < offset + len(data):
        _pwrite_all(fd, data[size - offset :], size, size)
        data = data[: size - offset]
    done = 0
    try:
        with disk_module.disk_errors():
            while done < len(data):
                done += os.pwrite(fd, data[done:] if done else data, offset + done)
    except NoSpace:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
        raise


def _truncate(fd: int, size: int) -> None:
    with disk_module.disk_errors():
        os.ftruncate(fd, size)
