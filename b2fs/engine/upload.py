"""Write-back: bring the bucket in line with the namespace, one dirty key at a time.

Rules
  A worker takes a due key, derives what is to be done (`core.writeback.plan`), does it, and commits what
  the bucket has now together with the end of the intent, if the key was not changed meanwhile.
  One worker a key. Nothing precious is in its memory: after a crash the intent is still there.
  A write that failed may have been committed, its answer lost, or have left parts: the next attempt first
  looks whether the newest version carries our operation, and adopts it; else it says that it is not the first
  (`resume`), so that the parts of a large file that arrived are not sent twice.
  A resumed version is as old as the start of that attempt. If another one came in between, ours lies below it
  and is written again (a copy on the server), under a new operation: nothing old is resumed.

States of a key and who moves it on: dirty → (quiet period) → due → running → in line, or again later
with the error that `b2fs status` shows.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

import msgspec
import trio
from msgspec.structs import replace

from b2fs.core import chunks, names
from b2fs.core.bucket import Version
from b2fs.core.change import Change, ObjectRow
from b2fs.core.inode import Inode, attributes, content_type, from_version, operation_of, to_info
from b2fs.core.tree import Node
from b2fs.core.writeback import Entry, Step, plan
from b2fs.engine import base, retry
from b2fs.engine.cache import Cache
from b2fs.engine.content import Content
from b2fs.engine.recovery import Recovery
from b2fs.engine.volume import Volume
from b2fs.errors import B2fsError, BadName, BucketError, Damaged, Fault, NameTooLong, TooLarge

log = logging.getLogger(__name__)

_EMPTY_SHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"
_BATCH = 200
"""Keys of an expanded subtree that are committed at once, between two looks at other work."""
_WAIT_S = 0.5
"""Pause before a key that must wait for another one is looked at again."""
_ORDER_S = 2.0
"""Pause after B2 ordered our version below an older one (facts b2.md 1.1)."""

_COPIES_TRIED = 4
"""Failures in a row after which nothing is copied on the server that is here too: B2 may fail to copy, and store."""


class Counters(msgspec.Struct):
    uploads: int = 0
    uploaded_bytes: int = 0
    copies: int = 0
    hides: int = 0
    skipped: int = 0
    """Keys that were dirty and turned out to be in line."""
    adopted: int = 0
    """Versions whose confirmation was lost and found again."""


class Uploader:
    def __init__(self, volume: Volume, cache: Cache, content: Content, recovery: Recovery) -> None:
        self._volume = volume
        self._cache = cache
        self._content = content
        self._recovery = recovery
        self._slots = trio.Semaphore(volume.settings.uploads)
        self.finished = trio.Event()
        """Set when some attempt has ended, and replaced at once."""
        self._failing = False
        """Some key waits for its next attempt after a failure."""
        self.counters = Counters()
        self.hurrying = 0
        """While above 0 (a `Drain` runs), files are sealed even if a program holds them open."""

    # ------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Serve the schedule until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._slots.acquire()
                entry = await self._next()
                nursery.start_soon(self._work, entry)

    async def _next(self) -> Entry:
        volume = self._volume
        while True:
            volume.idle_until_s = 0.0
            volume.work = trio.Event()
            entry = volume.schedule.pop_due(trio.current_time())
            if entry is not None:
                return entry
            due_s = volume.schedule.next_due_s()
            volume.idle_until_s = float("inf") if due_s is None else due_s
            with trio.move_on_at(volume.idle_until_s):
                await volume.work.wait()

    async def _work(self, entry: Entry) -> None:
        """One attempt at one key. Whatever fails in it, the key gets its next turn, and the others theirs."""
        try:
            await self._attempt(entry)
        except B2fsError as error:
            self._again(entry, retry.backoff_s(entry.attempts + 1), str(error))
        except Exception as error:  # a bug in the handling of one key must not stop the others
            log.exception("write-back of %r failed unexpectedly", entry.key)
            self._again(entry, retry.SLOWEST_S, f"unexpected: {error!r}", lasting=True)
        finally:
            self._slots.release()
            self._volume.wake()
            self.finished.set()
            self.finished = trio.Event()

    async def _attempt(self, entry: Entry) -> None:
        generation, began = entry.generation, self._volume.journal.next_number()
        try:
            entry.waits_for = 0
            pause_s = await self._reconcile(entry, generation)
            if pause_s is None:
                self._volume.schedule.done(entry, generation, began)
                self._recovered()
            else:
                self._again(entry, pause_s)
        except BucketError as error:
            entry.doubtful = entry.doubtful or error.may_pass
            pause_s = retry.backoff_s(entry.attempts + 1, error)
            self._again(entry, pause_s, str(error), lasting=not error.may_retry)
        except (NameTooLong, BadName, TooLarge) as error:
            self._again(entry, retry.REFUSED_S, str(error), lasting=True)
        except Damaged as error:
            await self._damaged(entry, error)

    async def _damaged(self, entry: Entry, error: Damaged) -> None:
        """The file that was being uploaded is not what was sealed: set it aside, unless it was only hard to read."""
        node = await self._volume.resolve(entry.key)
        inode = node.inode if node is not None else None
        if inode is None or not inode.staged or not inode.sha1:
            set_aside = False
        else:
            set_aside = await self._recovery.examine(inode.ino, inode.staged, inode.sha1)
        if set_aside:
            self._again(entry, 0.0)  # in vain, if nobody knows of an older version: then the bucket decides
        else:
            self._again(entry, retry.backoff_s(entry.attempts + 1), str(error))

    def _recovered(self) -> None:
        """B2 works: what failed while it did not need not wait out its pause."""
        if self._failing:
            self._failing = False
            for entry in self._volume.schedule.entries.values():
                if entry.error and not entry.lasting:
                    self._volume.schedule.hurry(entry, trio.current_time())

    def _again(self, entry: Entry, pause_s: float, error: str = "", lasting: bool = False) -> None:
        if error and (lasting or entry.attempts == 0):
            level = logging.WARNING if lasting else logging.INFO
            log.log(level, "%r (generation %d) is not in B2 yet: %s", entry.key, entry.generation, error)
        entry.lasting = lasting
        self._failing = self._failing or bool(error)
        self._volume.schedule.again(entry, trio.current_time() + pause_s, error)

    # ------------------------------------------------------------ one key

    async def _reconcile(self, entry: Entry, generation: int) -> float | None:
        """Bring one key in line; None when it is, else the pause in seconds before the next look."""
        key = entry.key
        self._volume.check_writable()  # what is uploaded but cannot be noted would be uploaded again and again
        if key.endswith("/"):
            await self._expand(entry, generation)
            return None
        node = await self._volume.resolve(key)
        age_left_s = entry.since_s + self._volume.schedule.max_age_s - trio.current_time()
        patient = not self.hurrying and not self._volume.waiting_writers and age_left_s > 0
        later_s = min(age_left_s, max(self._volume.schedule.quiet_s, 0.1))
        if patient and node is not None and node.inode.scratch and node.writers > 0:
            return later_s
        live = None
        if node is not None:
            live = await self._content.seal(node, patient)
            if live is None:
                return later_s
            if await self._volume.resolve(key) is not node:
                return 0.0  # it was renamed or removed while it was sealed: look again
        row = self._volume.journal.object(key)
        cached = live is not None and self._cache.whole_path(live.file_id) is not None
        needed_by = self._needed_by(key, row, node)
        step = plan(live, row, cached=cached, needed=needed_by is not None, doubtful=entry.doubtful)
        if step is Step.NOTHING and entry.doubtful and live is not None and not await self._is_newest(row):
            step = plan(live, None, cached=cached, needed=False)
        if step is Step.WAIT and needed_by is not None:
            entry.waits_for = needed_by.ino
            return _WAIT_S
        if step is Step.HIDE and ((row is not None and row.file_id) or await self._is_our_work(key)):
            await self._hide(key, generation, row)
        elif live is None or node is None:
            self._volume.commit(Change(settled=[(key, generation)]))
        elif step is Step.NOTHING:
            self.counters.skipped += 1
            self._confirm(key, generation, node, live, row)
        else:
            newest = await self._volume.bucket.head(key) if entry.doubtful else None
            version = self._lost_answer(newest, generation, live)
            if version is None:
                make = self._copy if step is Step.COPY else self._upload
                version = await make(entry, generation, live, row)
            overtaken = any(other is not None and version.uploaded_ms < other.uploaded_ms for other in (row, newest))
            self._confirm(key, generation, node, live, _row(version, live, self._volume.journal.next_number()))
            if overtaken:
                log.warning("B2 ordered the new version of %r below an older one; it is written again", key)
                self._volume.commit(Change(lost_objects=[key], dirty=[key]))
                entry.doubtful = False  # this write has ended, the next one is another
                return _ORDER_S
        return None

    def _needed_by(self, key: str, row: ObjectRow | None, node: Node | None) -> Inode | None:
        """A file that lives in the version at `key`, or whose new name may be what became of this one. A file that has lost
        this name, and that B2 has at another of its names too, moves there: what it lost is going to be hidden or overwritten.
        """
        volume = self._volume
        if row is None or not row.file_id:
            return None
        found = volume.journal.lives_in(row.file_id)
        if found is not None and (node is None or node.ino != found.ino):
            known = volume.tree.nodes.get(found.ino)
            inode = known.inode if known is not None else found
            home = volume.other_home(inode, key)
            if home:
                volume.commit(Change(inodes=[replace(inode, file_id=home)]))
                self._cache.rename(row.file_id, home)
                found = None
        return volume.renamed(row) if found is None and node is None else found

    async def _is_newest(self, row: ObjectRow | None) -> bool:
        """Whether a key that seems to be in line is: an attempt of ours that was given up (to hide it, to write something
        else there) may have been done unheard before the namespace came back to what it was.
        """
        version = await self._volume.bucket.head(row.key) if row is not None else None
        return version is not None and row is not None and version.file_id == row.file_id

    async def _is_our_work(self, key: str) -> bool:
        """Whether the visible version of a key that we know nothing of was made by an attempt of ours."""
        version = await self._volume.bucket.head(key)
        return version is not None and operation_of(version.info).startswith(self._volume.mount_id + ".")

    async def _hide(self, key: str, generation: int, row: ObjectRow | None) -> None:
        hidden_ms = await self._volume.bucket.hide(key)
        if not hidden_ms and row is not None:
            hidden_ms = row.uploaded_ms  # it was hidden before, perhaps by us: what we knew of it is history
        self.counters.hides += 1
        change = Change(settled=[(key, generation)])
        if hidden_ms:
            number = self._volume.journal.next_number()
            change.objects.append(ObjectRow(key, "", 0, "", hidden_ms, "", number))
        else:
            change.lost_objects.append(key)
        self._volume.commit(change)

    async def _upload(self, entry: Entry, generation: int, live: Inode, row: ObjectRow | None) -> Version:
        """Store the inode's content and attributes under the entry's key; the body is a file that cannot change."""
        volume, key = self._volume, entry.key
        info, kind = to_info(live, self._operation(generation), key), content_type(live)
        names.check_key(volume.settings.prefix, key, info)
        own, is_clean = 0, False
        if live.size and live.staged:
            path, size, sha1 = volume.disk.staged_path(live.staged), live.size, live.sha1
        elif live.size and not live.target:
            is_clean = True
            own, size = volume.journal.next_number(), live.size
            try:
                path = volume.seam.inline(volume.disk.stage_blob, chunks.whole(live.file_id), own)
            except FileNotFoundError:
                # it was evicted since the plan, or is a symlink whose target nobody has read
                return await self._copy(entry, generation, live, row)
            volume.budget.set(own, size)  # held until B2 has it, whatever the eviction does
            sha1 = live.sha1
        else:
            data = live.target.encode()
            own, size, sha1 = volume.journal.next_number(), len(data), _sha1(data)
            try:
                path = volume.seam.inline(volume.disk.make_staged, own, data)
            except BaseException:
                volume.seam.inline(volume.disk.drop_staged, own)
                raise
        try:
            sha1 = sha1 or await self._content.sha1(path, size)
            known = await base.find(volume, live, row) if entry.attempts < _COPIES_TRIED else None
            version = await volume.bucket.upload(key, path, size, sha1, info, kind, entry.doubtful, known)
        except Damaged:
            if not is_clean:
                raise
            self._cache.lose(live.file_id)  # clean content that the disk has spoilt: B2 has it
            return await self._copy(entry, generation, live, row)
        finally:
            if own:
                volume.seam.inline(volume.disk.drop_staged, own)
                volume.free(own)
        self.counters.uploads += 1
        self.counters.uploaded_bytes += size
        return version

    async def _copy(self, entry: Entry, generation: int, live: Inode, row: ObjectRow | None) -> Version:
        key = entry.key
        if entry.attempts >= _COPIES_TRIED and self._cache.whole_path(live.file_id) is not None:
            return await self._upload(entry, generation, live, row)
        info, kind = to_info(live, self._operation(generation), key), content_type(live)
        names.check_key(self._volume.settings.prefix, key, info)
        try:
            version = await self._volume.bucket.copy(live.file_id, key, live.size, info, kind)
        except BucketError as error:
            if error.fault is not Fault.MISSING or self._cache.whole_path(live.file_id) is None:
                raise
            # the version is gone from the bucket, not from here
            return await self._upload(entry, generation, live, row)
        self.counters.copies += 1
        return version

    def _lost_answer(self, version: Version | None, generation: int, live: Inode) -> Version | None:
        """The newest version, if an earlier attempt made it without our hearing of it."""
        if version is None or operation_of(version.info) != self._operation(generation):
            return None
        described = from_version(version, live.ino, self._volume.settings.defaults)
        same_content = not live.is_file or (version.size, version.sha1) == (live.size, live.sha1 or _EMPTY_SHA1)
        if attributes(described) != attributes(live) or not same_content:
            return None
        self.counters.adopted += 1
        log.info("%r was in B2 already, only the answer had been lost", version.key)
        return version

    def _operation(self, generation: int) -> str:
        return f"{self._volume.mount_id}.{generation:x}"

    def _confirm(self, key: str, generation: int, node: Node, live: Inode, row: ObjectRow | None) -> None:
        """The bucket has `live` at `key` as `row` says: end the intent, and let the content become clean."""
        volume, change = self._volume, Change(settled=[(key, generation)])
        if row is not None:
            change.objects.append(row)
        named = key in volume.tree.keys(node)
        if not named:
            change.dirty.append(key)  # a directory above it was moved meanwhile: what came here must go again
        now = node.inode
        if row is None or live.is_dir or not _holds(now, live, row, named):
            volume.commit(change)
            return
        synced = now.synced if now.synced == now.scratch else 0
        change.inodes.append(replace(now, file_id=row.file_id, staged=0, synced=synced, sha1=now.sha1 or row.sha1))
        kept = live.staged == now.staged and live.staged > 0 and 0 < live.size <= volume.settings.cache_size
        volume.commit(change)
        if now.staged:
            volume.reaper.drop(now.staged)  # in its next pass: it gets its name in the cache before that
        if kept:
            volume.seam.inline(volume.disk.staged_to_blob, live.staged, chunks.whole(row.file_id))
            self._cache.adopt(chunks.whole(row.file_id), live.size)
        elif not now.staged and now.file_id and now.file_id != row.file_id:
            self._cache.rename(now.file_id, row.file_id)

    # ------------------------------------------------------------ subtrees

    async def _expand(self, entry: Entry, generation: int) -> None:
        """A directory came to or left a key: find the objects and files below it that are out of line."""
        volume, key = self._volume, entry.key
        dirty: set[str] = set()
        rows = await volume.seam.thread(volume.journal.objects, key, "", None)
        dirty.update(name for name, row in rows.items() if row.file_id)
        node = await volume.resolve(names.marker(key[:-1]))
        if node is not None:
            dirty.add(names.marker(key[:-1]))
            for path, is_dir in await volume.seam.thread(volume.journal.subtree, node.ino):
                dirty.add(names.marker(key + path) if is_dir else key + path)
        for batch in _batches(sorted(dirty), _BATCH):
            volume.commit(Change(dirty=batch))
            for each in map(volume.schedule.entries.__getitem__, batch):
                each.born = min(each.born, entry.born)
            await trio.lowlevel.checkpoint()
        volume.commit(Change(settled=[(key, generation)]))


def _holds(now: Inode, live: Inode, row: ObjectRow, named: bool) -> bool:
    """Whether the version of `row`, made from `live`, is (the base of) the content that the inode has `now`.

    The two differ when the file was renamed meanwhile, and the other name was faster: then only the version at a
    name that the file has (`named`) may be its home, for the other one is going to be hidden.
    """
    if now.staged == live.staged and now.file_id == live.file_id:
        return True
    return named and not now.staged and not now.scratch and now.size == row.size and now.sha1 == row.sha1 != ""


def _row(version: Version, live: Inode, generation: int) -> ObjectRow:
    return ObjectRow(
        version.key, version.file_id, version.size, version.sha1 or live.sha1, version.uploaded_ms,
        attributes(live), generation,
    )  # fmt: skip


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest() if data else _EMPTY_SHA1


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
