"""One bucket, any number of mounts of it, by paths: what the engine's tests are written in.

Rules
  A `World` has the bucket and a wall clock that only moves when told; each mount has a state directory of
  its own below `World.root`, which outlives the mount.
  When a mount ends in peace, its state directory is checked as `b2fs fsck --remote` does, and nothing may be left
  that a crash would explain.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import trio

from b2fs.adapters.disk import Disk
from b2fs.adapters.journal import Journal
from b2fs.core.inode import Defaults
from b2fs.core.tree import Node
from b2fs.engine.engine import Engine, own, running
from b2fs.engine.filesystem import NewAttributes
from b2fs.engine.seam import Seam
from b2fs.engine.volume import Settings
from b2fs.errors import BucketError, Fault, NotFound
from tests.engine.seams import InlineSeam
from tests.fakes.bucket import FakeBucket, Gate
from tests.fsck import REMOTE_NOTES, fsck

START_NS = 1_700_000_000_123_456_789
DOWN = BucketError(Fault.TRANSIENT, "B2 is down")
FULL_CONTENT = 1 << 40
MOST_STEPS = 100_000
"""Of all tasks together without a moment of time: several times what the largest test needs."""


class _Gate(Gate):
    """As its base, but calls that are held do not wake one another for ever."""

    async def pass_through(self, call: str) -> None:
        if not self._closed & {call, "*"}:
            return
        self._held[call] += 1
        self._notify()
        try:
            while self._closed & {call, "*"}:
                await self._changed.wait()
        finally:
            self._held[call] -= 1


class TappedBucket(FakeBucket):
    """A fake bucket that tells `tap` of every call, when it begins and when it has taken effect."""

    tap: Callable[[], None] | None = None
    down = False
    """While true, no call gets an answer."""
    breaks_after = ""
    """The next call of this name takes effect; its answer is lost, and B2 is down from then on."""

    async def _begin(self, call: str, key: str) -> None:
        await super()._begin(call, key)
        if self.down:
            raise BucketError(Fault.TRANSIENT, "B2 is down")
        if self.tap is not None:
            self.tap()

    def _end(self, call: str, key: str) -> None:
        if self.tap is not None:
            self.tap()
        if call == self.breaks_after:
            self.breaks_after, self.down = "", True
            raise BucketError(Fault.TRANSIENT, "the answer is lost")
        super()._end(call, key)

    def mend(self) -> None:
        """No faults any more, and nothing is held."""
        self.faults.clear()
        self.breaks_after, self.down = "", False
        self.gate.open()

    def calls(self, *names: str) -> list[tuple[str, str]]:
        """The log without directory markers and listings, or only the calls named."""
        return [
            (call, key)
            for call, key in self.log
            if (call in names if names else call not in ("connect", "list_page")) and not key.endswith(".bzEmpty")
        ]

    def history(self, key: str) -> set[bytes]:
        """The content of every version of a key, hidden ones too."""
        return {self._by_id[version.file_id].data for version in self.versions(key) if version is not None}

    def files(self) -> dict[str, bytes]:
        """What is visible, without directory markers."""
        return {key: self.content(key) for key in self.objects() if not key.endswith(".bzEmpty")}


class _Disk(Disk):
    """May be closed twice: by the engine, and by the world if the engine was killed."""

    open = True

    def close(self) -> None:
        if self.open:
            self.open = False
            super().close()


class _Journal(Journal):
    open = True

    def close(self) -> None:
        if self.open:
            self.open = False
            super().close()


class Entry(msgspec.Struct, frozen=True):
    """What a path shows."""

    mode: int
    mtime_ns: int
    content: bytes = b""
    """A file's bytes, a link's target."""
    xattrs: dict[str, bytes] = {}
    names: tuple[str, ...] = ()
    """All paths of the same file, if there are several."""


Tree = dict[str, Entry]


class _NoBusyLoop(trio.abc.Instrument):
    """Ends a mount in which tasks go on and on while no time passes: virtual time would stand still for ever."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.tripped = False
        self._scope = scope
        self._time = -1.0
        self._steps = 0

    def after_task_step(self, task: object) -> None:
        self._steps += 1
        if self._steps % 1000 == 0 and trio.current_time() != self._time:
            self._time, self._steps = trio.current_time(), 0
        elif self._steps > MOST_STEPS and not self.tripped:
            self.tripped = True
            self._scope.cancel()


class Mount:
    """A running engine, used by paths."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.files = engine.files
        self.volume = engine.volume

    # ------------------------------------------------------------ paths

    async def node(self, path: str) -> Node:
        node = self.volume.tree.node(1)
        for part in path.split("/") if path else ():
            node = await self.files.lookup(node.ino, part.encode())
        return node

    async def _parent(self, path: str) -> tuple[int, bytes]:
        directory, _, name = path.rpartition("/")
        return (await self.node(directory)).ino, name.encode()

    async def exists(self, path: str) -> bool:
        try:
            await self.node(path)
        except NotFound:
            return False
        return True

    async def names(self, path: str = "") -> list[str]:
        handle = await self.files.open_directory((await self.node(path)).ino)
        found = [name.decode() for _, name, _ in await self.files.entries(handle, 0)]
        self.files.release(handle)
        return sorted(found[2:])

    async def tree(self, path: str = "") -> Tree:
        """Everything below a directory, contents too."""
        found = await self._tree(path)
        names: dict[int, list[str]] = defaultdict(list)
        for each in sorted(found):
            names[(await self.node(each)).ino].append(each)
        for same in names.values():
            for each in same if len(same) > 1 else []:
                found[each] = msgspec.structs.replace(found[each], names=tuple(same))
        return found

    async def _tree(self, path: str) -> Tree:
        found: Tree = {}
        for name in await self.names(path):
            below = f"{path}/{name}" if path else name
            inode = (await self.node(below)).inode
            if inode.is_dir:
                found[below] = Entry(inode.mode, inode.mtime_ns, xattrs=await self.xattrs(below))
                found |= await self._tree(below)
            elif inode.is_link:
                found[below] = Entry(inode.mode, inode.mtime_ns, (await self.files.read_link(inode.ino)).encode())
            else:
                content = await self.read(below)
                found[below] = Entry(inode.mode, inode.mtime_ns, content, await self.xattrs(below))
        return found

    # ------------------------------------------------------------ files

    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        return await self.files.open((await self.node(path)).ino, flags)

    async def close(self, handle: int) -> None:
        self.files.release(handle)

    async def create(self, path: str, mode: int = 0o644) -> int:
        parent, name = await self._parent(path)
        handle, _ = await self.files.create(parent, name, mode, 1000, 1000, os.O_RDWR)
        return handle

    async def write(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """As `open(path, "wb")` does: made or emptied, written, closed."""
        if await self.exists(path):
            handle = await self.open(path, os.O_WRONLY | os.O_TRUNC)
        else:
            handle = await self.create(path, mode)
        if data:
            await self.files.write(handle, 0, data)
        await self.close(handle)

    async def patch(self, path: str, offset: int, data: bytes) -> None:
        handle = await self.open(path, os.O_RDWR)
        await self.files.write(handle, offset, data)
        await self.close(handle)

    async def read(self, path: str, offset: int = 0, size: int = FULL_CONTENT) -> bytes:
        handle = await self.open(path)
        try:
            return bytes(await self.files.read(handle, offset, size))
        finally:
            await self.close(handle)

    async def truncate(self, path: str, size: int) -> None:
        await self.files.set_attributes((await self.node(path)).ino, NewAttributes(size=size))

    async def chmod(self, path: str, mode: int) -> None:
        await self.files.set_attributes((await self.node(path)).ino, NewAttributes(mode=mode))

    async def utime(self, path: str, mtime_ns: int) -> None:
        await self.files.set_attributes(
            (await self.node(path)).ino, NewAttributes(atime_ns=mtime_ns, mtime_ns=mtime_ns)
        )

    async def setxattr(self, path: str, name: str, value: bytes | None) -> None:
        await self.files.set_xattr((await self.node(path)).ino, name.encode(), value)

    async def xattrs(self, path: str) -> dict[str, bytes]:
        ino = (await self.node(path)).ino
        return {name.decode(): await self.files.xattr(ino, name) for name in await self.files.xattrs(ino)}

    # ------------------------------------------------------------ names

    async def mkdir(self, path: str, mode: int = 0o755) -> None:
        parent, name = await self._parent(path)
        await self.files.make_node(parent, name, stat.S_IFDIR | mode, 1000, 1000)

    async def symlink(self, path: str, target: str) -> None:
        parent, name = await self._parent(path)
        await self.files.make_link(parent, name, target.encode(), 1000, 1000)

    async def link(self, path: str, new: str) -> None:
        node = await self.node(path)
        await self.files.link(node.ino, *await self._parent(new))

    async def unlink(self, path: str) -> None:
        await self.files.unlink(*await self._parent(path))

    async def rmdir(self, path: str) -> None:
        await self.files.rmdir(*await self._parent(path))

    async def rename(self, old: str, new: str, flags: int = 0) -> None:
        parent, name = await self._parent(old)
        await self.files.rename(parent, name, *await self._parent(new), flags)

    # ------------------------------------------------------------ time

    async def until(self, condition: Callable[[], object], within_s: float = 900.0) -> None:
        """Let (virtual) time pass until something is so."""
        with trio.fail_after(within_s):
            while not condition():
                await trio.sleep(0.05)

    async def idle(self, within_s: float = 900.0) -> None:
        """Let (virtual) time pass until nothing is dirty, without hurrying anybody."""
        await self.until(lambda: not self.volume.schedule.entries, within_s)

    async def drained(self) -> None:
        """Bring everything into the bucket, and nothing may be left."""
        left = await self.engine.drain("", 3600.0)
        assert left == [], left

    async def refresh(self) -> None:
        await self.engine.listing.refresh()

    def dirty(self) -> set[str]:
        return set(self.volume.schedule.entries)


class World:
    def __init__(self, root: Path, prefix: str = "") -> None:
        self.root = root
        self.bucket = TappedBucket(prefix, gate=_Gate())
        self.now_ns = START_NS

    def state(self, name: str = "state") -> Path:
        return self.root / name

    @asynccontextmanager
    async def mount(
        self,
        name: str = "state",
        *,
        seam: Seam | None = None,
        upload: bool = True,
        listing: bool = True,
        serve: bool = False,
        check: bool = True,
        crashed: bool = False,
        others: bool = False,
        boot: str | None = None,
        known: Collection[str] = (),
        **settings: Any,
    ) -> AsyncIterator[Mount]:
        """A mount with the state directory `name`. `upload`: write-back runs; `listing`: the bucket is listed once
        before the first use; `serve`: as in production instead, all background work; `crashed`: the last run of this
        directory was killed, so the cache's rows and files may differ until they are swept; `others`: somebody removes
        objects behind its back, so the bucket is not compared with it at the end; `boot`: what the kernel would
        call this boot of the machine (None: it is asked); `known`: what `b2fs fsck` is to find in the end, and may.
        """
        disk = _Disk(str(self.state(name)))
        journal = None
        peace = False
        try:
            journal = _Journal(disk.journal_path)
            if not journal.meta("mount_id"):  # as the daemon does on a first start
                own(journal, await self.bucket.connect())
            chosen = Settings(**{"defaults": Defaults(1000, 1000), "refresh_s": 0.0, **settings})
            async with running(disk, journal, self.bucket, chosen, seam or InlineSeam(), boot) as engine:
                engine.volume.now_ns = lambda: self.now_ns
                async with trio.open_nursery() as nursery:
                    watch = _NoBusyLoop(nursery.cancel_scope)
                    trio.lowlevel.add_instrument(watch)
                    if serve:
                        nursery.start_soon(engine.serve)
                    else:
                        if listing:
                            await engine.listing.refresh()
                        if upload:
                            nursery.start_soon(engine.uploader.run)
                    mount = Mount(engine)
                    yield mount
                    nursery.cancel_scope.cancel()
                trio.lowlevel.remove_instrument(watch)
                assert not watch.tripped, "a busy loop"
                if check:
                    await engine.volume.reaper.reap()
                used = engine.cache.index.used
                precious = engine.volume.budget.used
            peace = check
        finally:
            if journal is not None:
                journal.close()
            disk.close()
        if peace:
            report = fsck(self.state(name), None if others else self.bucket.objects(), known)
            sizes = {
                folder: [file.stat().st_size for file in (self.state(name) / folder).rglob("*") if file.is_file()]
                for folder in ("scratch", "staged", "cache")
            }
            assert precious == sum(sizes["scratch"] + sizes["staged"]), "the budget of bytes that are not in B2"
            notes = {each.rule for each in report.findings} - REMOTE_NOTES - set(known)
            if crashed:
                assert notes <= {"blob-unknown", "blob-gone"}
            else:
                assert notes == set(), report.findings
                assert used == sum(sizes["cache"]), "what the engine believes to be cached"

    def forget(self, name: str) -> None:
        shutil.rmtree(self.state(name))

    async def seen_by_another(self, **settings: Any) -> Tree:
        """The tree as a host with an empty state directory sees it."""
        async with self.mount("another", upload=False, **settings) as other:
            tree = await other.tree()
            assert other.dirty() == set(), "looking changes nothing"
        self.forget("another")
        return tree
