"""The volume: the state that the parts of the engine share, and the one way to change it.

Rules
  What the journal named as the content of a file is deleted by the reaper alone.
  `commit` is the only way into the journal for anything about the namespace: it gives intents their
  generation, writes one transaction, then shows it in memory, then tells the schedule. It never suspends,
  so two changes never mix.
  What a plan looked at is still true at its commit, if nothing was awaited in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import msgspec
import trio

from b2fs.adapters.disk import Disk
from b2fs.adapters.journal import Journal
from b2fs.core import names
from b2fs.core.bucket import Bucket
from b2fs.core.budget import Budget, Trend
from b2fs.core.change import Change, Intent, ObjectRow
from b2fs.core.inode import ROOT, Defaults, Inode, link_of
from b2fs.core.policy import Patterns
from b2fs.core.tree import Entries, Node, Tree
from b2fs.core.unload import shrink
from b2fs.core.writeback import Schedule
from b2fs.engine.reaper import Reaper
from b2fs.engine.seam import Seam
from b2fs.errors import NoSpace, NotDirectory, ReadOnly, Stale

log = logging.getLogger(__name__)

_DIRECTORY_QUIET = 5
"""Times the quiet period: how long a directory's marker waits. Its mtime changes with every entry; the
version for it is free, but it need not be written for each of the files of one save."""


_GIVE_WAY = 1024 * 1024
"""Bytes that a commit wants free when the disk is full."""
_RESERVE = 64 * 1024 * 1024
_RESERVE_PART = 4
"""What writers leave free on the disk, bytes, but at most this part (1/n) of it: room for the journal. On a disk without
a byte left nothing could be sealed, so nothing uploaded, so nothing would ever be freed."""
_INLINE_ENTRIES = 128
"""A directory of at most so many is loaded on the loop: that takes less than a thread's round trip and 1 ms."""
_LOAD_SLICE = 500
"""Entries of a directory that come into memory between two looks at other work: about 1 ms."""
_LOOK_S = 1.0
"""How long a look at the disk's free space is believed: others write to it too."""


class Settings(msgspec.Struct, frozen=True):
    """What the engine can be told. Sizes in bytes."""

    defaults: Defaults
    prefix: str = ""
    cache_size: int = 10 << 30
    dirty_size: int = 5 << 30
    """Limit of content that is not in B2 yet."""
    dirty_wait_s: float = 30.0
    """How long a writer waits for room in it before it gets NoSpace."""
    quiet_s: float = 2.0
    max_dirty_age_s: float = 60.0
    remote_fsync: Patterns = Patterns()
    """Paths whose fsync returns when B2 has the content."""
    read_deadline_s: float = 60.0
    refresh_s: float = 600.0
    uploads: int = 16
    fetches: int = 32
    names_in_memory: int = 50_000
    """Inodes that stay in memory though nobody uses them: about 1.2 kB each."""
    predict: bool = True
    """Small files that will probably be read next are fetched before."""
    prefetch: Patterns = Patterns()
    """Small files that are fetched as soon as they are known."""
    pin: Patterns = Patterns()
    """Files that are fetched as soon as they are known, and stay in the cache."""


class Changed(msgspec.Struct, frozen=True):
    """Tells a front end that something changed that no program asked it for. `name` None: the inode itself."""

    ino: int
    name: bytes | None
    is_new: bool = False
    """Nothing had that name before: it only matters to who was told so."""


class Volume:
    """Everything that is one mount, without the flows. Owned by the engine; the journal and disk are open."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        disk: Disk,
        bucket: Bucket,
        seam: Seam,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.disk = disk
        self.bucket = bucket
        self.seam = seam
        self.now_ns = now_ns
        self.mount_id = journal.meta("mount_id")
        self.start_generation = journal.next_number()
        self.tree = Tree(journal.inode(ROOT) or self._make_root(), settings.prefix)
        self.tree.all_keys = journal.keys_of
        self.schedule = Schedule(settings.quiet_s, settings.max_dirty_age_s)
        self.work = trio.Event()
        """Set when something is due before `idle_until_s`; whoever waits on it replaces it."""
        self.idle_until_s = 0.0
        """Until when the uploader sleeps; 0 while it is looking at the schedule anyway."""
        self.budget = Budget(settings.dirty_size)
        self.trend = Trend()
        self.waiting_writers = 0
        """Writers that wait for room: while there are any, neither uploads nor the reaper wait for quiet."""
        self.freed = trio.Event()
        """Set when content left the budget, and replaced at once: it may have many waiters."""
        self._disk_room = 0
        """Bytes that may still be written before the disk is looked at again, at `_look_again_s` at the latest."""
        self._look_again_s = 0.0
        self.reaper = Reaper(disk, seam, self.sync, self.free)
        self.forgotten = 0
        """How many names were forgotten because their content was set aside: a listing that began before does not know
        that they are to be looked for.
        """
        self.read_only = ""
        """Why nothing can be changed any more, '' while all is well."""
        self.on_change: Callable[[Changed], None] = lambda changed: None
        """The front end's ear; called without suspension."""
        self.on_commit: Callable[[Change], None] = lambda change: None
        """Hears of every change once it is true; called without suspension, and must not fail."""
        self.give_way: Callable[[int], bool] = lambda size: False
        """Frees so many bytes of a full disk, if it can; set by the cache."""
        self._loading: dict[int, trio.Event] = {}
        self._overtaken: set[int] = set()
        """While directories are being loaded: inodes that were changed without being in memory, and directories whose names
        were. What was read of them may be older.
        """

    def _make_root(self) -> Inode:
        now, defaults = self.now_ns(), self.settings.defaults
        root = Inode(
            ino=ROOT, mode=0o040000 | defaults.dir_mode, uid=defaults.uid, gid=defaults.gid, nlink=2, size=0,
            mtime_ns=now, ctime_ns=now, atime_ns=now,
        )  # fmt: skip
        self.journal.commit(Change(inodes=[root]))
        return root

    # ------------------------------------------------------------ changing

    def commit(self, change: Change) -> None:
        """Make a change true: journal, memory, schedule. Survives SIGKILL on return.

        NoSpace: nothing changed. ReadOnly: nothing changed, and nothing will from now on.
        """
        self.check_writable()
        for key in dict.fromkeys(change.dirty):
            if self.schedule.idle(key):
                self.schedule.touch(key, trio.current_time())
            else:
                change.intents.append(Intent(key, self.journal.next_number(), self.now_ns()))
        rows = change
        if any(inode.nlink == 0 for inode in change.inodes):  # an unlinked file lives in memory only
            rows = msgspec.structs.replace(change, inodes=[inode for inode in change.inodes if inode.nlink])
        try:
            try:
                self.seam.inline(self.journal.commit, rows)
            except NoSpace:
                if not self.give_way(_GIVE_WAY):
                    raise
                self.seam.inline(self.journal.commit, rows)
        except ReadOnly as error:
            self._give_up(error)
            raise
        self.tree.apply(change)
        if self._loading:
            self._overtaken.update(inode.ino for inode in change.inodes if inode.ino not in self.tree.nodes)
            self._overtaken.update([link[0] for link in change.links] + [name[0] for name in change.unlinks])
        for intent in change.intents:
            self._schedule(intent)
        self.on_commit(change)

    def _schedule(self, intent: Intent) -> None:
        self._put_off(intent)
        self.wake()

    def _put_off(self, intent: Intent) -> None:
        """Give the schedule a key, with its quiet period."""
        now_s = trio.current_time()
        self.schedule.add(intent, now_s)
        if names.marked_directory(intent.key) is not None and not intent.key.endswith("/"):
            self.schedule.delay(intent.key, now_s + self.settings.quiet_s * _DIRECTORY_QUIET)

    def check_writable(self) -> None:
        """ReadOnly if nothing may be acknowledged any more."""
        if self.read_only:
            raise ReadOnly(self.read_only)

    def _give_up(self, error: ReadOnly) -> None:
        if not self.read_only:
            self.read_only = str(error)
            log.critical("the journal cannot be written, the mount is read-only from now on: %s", error)

    async def sync(self) -> None:
        """Every commit so far survives power loss on return. ReadOnly if the disk fails, or did: the kernel reports a
        failed sync once, so one that succeeds later says nothing.
        """
        self.check_writable()
        try:
            await self.seam.thread(self.journal.sync)
        except ReadOnly as error:
            self._give_up(error)
            raise
        self.check_writable()  # another one failed meanwhile, and may have taken the report of this one's failure

    # ------------------------------------------------------------ room

    def free(self, number: int) -> None:
        """A scratch or staged file is gone."""
        self.budget.drop(number)
        self.freed.set()
        self.freed = trio.Event()

    def wait_deadline(self) -> float:
        """Until when a writer that comes now may wait for room."""
        return trio.current_time() + self.settings.dirty_wait_s

    def disk_room(self, size: int) -> bool:
        """Whether the disk has room for `size` bytes of content beside the journal's reserve; counts them as written."""
        now_s = trio.current_time()
        if size > self._disk_room or now_s >= self._look_again_s:
            block, blocks, free = self.disk.space()
            self._disk_room = block * (free - min(_RESERVE // block, blocks // _RESERVE_PART))
            self._look_again_s = now_s + _LOOK_S
        if size > self._disk_room:
            return False
        self._disk_room -= size
        return True

    def check_fits(self, size: int) -> None:
        """NoSpace if a file of `size` bytes has no room however much is uploaded: nobody waits for that."""
        if size > self.budget.limit:
            raise NoSpace(f"a file of {size} bytes is larger than dirty_size ({self.budget.limit})")

    async def room(self, growth: int, deadline_s: float) -> None:
        """Wait until `growth` more bytes fit into the budget. NoSpace at the deadline: nothing was written.

        There is room on return; whoever suspends before using it must set it aside, or ask again.
        """
        self.check_fits(growth)
        while not self.budget.room(growth):
            await self.wait_freed(deadline_s)

    async def wait_freed(self, deadline_s: float) -> None:
        """Wait until some content has left the disk, and hurry what is in its way. NoSpace at the deadline."""
        if trio.current_time() >= deadline_s:
            raise NoSpace(
                f"{self.budget.used} bytes wait for B2, the limit (dirty_size) is {self.budget.limit}; "
                f"not enough were uploaded within {self.settings.dirty_wait_s:g} s"
            )
        self.waiting_writers += 1
        try:
            self.hurry_all()
            self.reaper.hurry()
            with trio.move_on_at(deadline_s):
                await self.freed.wait()
        finally:
            self.waiting_writers -= 1

    def wake(self) -> None:
        """The schedule changed: whoever sleeps until its next due time looks again, if that is earlier now."""
        due_s = self.schedule.next_due_s()
        if due_s is not None and due_s < self.idle_until_s:
            self.work.set()

    def hurry_all(self) -> None:
        """Make every dirty key due now, but for those that wait for another attempt."""
        for entry in self.schedule.entries.values():
            if not entry.error:
                self.schedule.hurry(entry, trio.current_time())
        self.wake()

    def restore_intents(self) -> int:
        """Put the journal's intents into the schedule, at start; how many there were."""
        found = self.journal.intents()
        for intent in found:
            self._put_off(intent)
            entry = self.schedule.entries[intent.key]
            entry.doubtful, entry.tried = True, intent.generation
        self.wake()
        return len(found)

    # ------------------------------------------------------------ finding

    async def node(self, ino: int) -> Node:
        """The node of an inode by its number, from the journal if it is not in memory. Stale if it is gone: the kernel
        then looks the name up again, which may be another inode's by now.
        """
        node = self.tree.nodes.get(ino)
        if node is not None:
            return node
        inode = self.journal.inode(ino)
        if inode is None:
            raise Stale(f"inode {ino} is gone")
        if not inode.is_dir:
            return self._adopt(inode)
        (parent, _), *_ = self.journal.names_of(ino)
        await self.load(await self.node(parent))
        return self.tree.node(ino)

    def entry(self, parent: int, name: bytes) -> Inode | None:
        """The inode that a name of a directory leads to, whether it is in memory or not."""
        node = self.tree.nodes.get(parent)
        if node is not None and node.children is not None:
            child = self.tree.child(node, name)
            return child.inode if child is not None else None
        return self.journal.entry(parent, name)

    def row(self, ino: int) -> Inode:
        """The row of an inode that has a name, whether it is in memory or not."""
        node = self.tree.nodes.get(ino)
        row = node.inode if node is not None else self.journal.inode(ino)
        assert row is not None, f"inode {ino} has a name but no row"
        return row

    def shrink(self) -> None:
        """Drop from memory what nobody uses, if there is too much of it."""
        if len(self.tree.nodes) > self.settings.names_in_memory:
            linked = shrink(self.tree, self.settings.names_in_memory)
            if self._loading:  # the row that was read for the other name may be older
                self._overtaken.update(linked)

    async def find(self, directory: Node, name: bytes) -> Node | None:
        """The node that a name of a directory leads to, None if nothing is known to have it.

        A directory that is not in memory is asked for this one name; the second time a small one is loaded, a large one
        never for a file. Suspends only for what has to be loaded. NotDirectory.
        """
        if directory.children is None:
            if not directory.inode.is_dir:
                raise NotDirectory("not a directory")
            if not directory.used or self.journal.has_more(directory.ino, _INLINE_ENTRIES):
                directory.used = True
                inode = self.journal.entry(directory.ino, name)
                if inode is None:
                    return None
                if not inode.is_dir:
                    return self.tree.nodes.get(inode.ino) or self._adopt(inode)
            await self.load(directory)
        return self.tree.child(directory, name)

    def _adopt(self, inode: Inode) -> Node:
        self.shrink()
        return self.tree.adopt(inode)

    async def load(self, node: Node) -> None:
        """Have a directory's known entries in memory. Suspends only the first time, and for a large one."""
        node.used = True
        while node.children is None:
            if not node.inode.is_dir:
                raise NotDirectory("not a directory")
            waiting = self._loading.get(node.ino)
            if waiting is not None:
                await waiting.wait()
                continue
            if (few := self.seam.inline(self.journal.load_small_directory, node.ino, _INLINE_ENTRIES)) is not None:
                entries = Entries(node.ino)
                entries.add(few)
                self.tree.load(node, entries)
                self.shrink()
                return
            done = self._loading[node.ino] = trio.Event()
            try:
                entries = await self._read(node.ino)
                while node.ino in self._overtaken:
                    self._overtaken.discard(node.ino)
                    entries = await self._read(node.ino)
                for ino in entries.nodes.keys() & self._overtaken:
                    fresh = entries.nodes[ino]  # it has a name here, so a row: its other name may have gone
                    fresh.inode = self.journal.inode(ino) or fresh.inode
                self.tree.load(node, entries)
                self.shrink()
            finally:
                del self._loading[node.ino]
                if not self._loading:
                    self._overtaken.clear()
                done.set()

    async def _read(self, ino: int) -> Entries:
        """The entries of a large directory."""
        entries = Entries(ino)
        rows = await self.seam.thread(self.journal.load_directory, ino)
        for start in range(0, len(rows), _LOAD_SLICE):
            entries.add(rows[start : start + _LOAD_SLICE])
            await trio.lowlevel.checkpoint()
        return entries

    def is_loading(self, ino: int) -> bool:
        return ino in self._loading

    def other_home(self, inode: Inode, key: str) -> str:
        """A version with the clean content of `inode` at a name of it other than `key`, '' if B2 has none."""
        if inode.nlink < 2 and key in self.journal.keys_of(inode.ino):
            return ""
        if not inode.sha1 or inode.scratch or inode.staged:
            return ""
        for other in self.journal.keys_of(inode.ino):
            row = self.journal.object(other) if other != key else None
            if row is not None and row.file_id and (row.size, row.sha1) == (inode.size, inode.sha1):
                return row.file_id
        return ""

    def renamed(self, row: ObjectRow) -> Inode | None:
        """A file of several names that had the one of `row`, and has one that B2 does not know for a name of it yet."""
        for inode in self.journal.linked(link_of(row.attributes)):
            for key in self.journal.keys_of(inode.ino):
                other = self.journal.object(key)
                is_there = other is not None and link_of(other.attributes) == inode.link
                if not is_there and self.schedule.covers(key):
                    return inode
        return None

    async def resolve(self, key: str) -> Node | None:
        """The node whose content or marker the object `key` is, None if the namespace has none."""
        directory = names.marked_directory(key)
        path = key if directory is None else directory
        node = self.tree.nodes[ROOT]
        for part in path.split("/") if path else ():
            if not node.inode.is_dir:
                return None
            await self.load(node)
            child = self.tree.child(node, part.encode())
            if child is None:
                return None
            node = child
        return node if node.inode.is_dir == (directory is not None) else None
