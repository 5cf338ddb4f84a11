"""The engine as a whole: one mount without its front end.

Start: open the state directory, check whom it belongs to, adopt what the last run left; then `run`
serves until it is cancelled. Stop: `drain`, then leave the context: everything is closed, nothing deleted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio

from b2fs.adapters.disk import Disk, boot_id
from b2fs.adapters.journal import Journal
from b2fs.core import names
from b2fs.core.bucket import Bucket, Identity
from b2fs.core.inode import ROOT
from b2fs.core.tree import Node
from b2fs.engine import retry
from b2fs.engine.cache import Cache
from b2fs.engine.content import Content
from b2fs.engine.drain import Drain
from b2fs.engine.filesystem import FileSystem
from b2fs.engine.listing import Listing
from b2fs.engine.merging import Merging
from b2fs.engine.pins import PinKeeper
from b2fs.engine.prefetch import Prefetch
from b2fs.engine.recovery import Recovery
from b2fs.engine.seam import Seam
from b2fs.engine.upload import Uploader
from b2fs.engine.volume import Settings, Volume
from b2fs.errors import B2fsError, BucketError, NotFound, StateError

log = logging.getLogger(__name__)

_SWEEP_S = 5.0
"""How long after the start the cache is swept, where the last run ended in order: then there is hardly anything to find, and
who waited for the mount has what he came for first.
"""
_HOUSEKEEPING_S = 1.0
"""A storm of small files fills the log by 10 MB in that time."""
_REST_S = 10.0
"""Pause of a background task that failed by a bug."""
_MAX_LINKS = 40
"""Symbolic links in one path, as in the kernel."""
_LOG_LIMIT = 4 * 1024 * 1024
"""Bytes of the journal's log after which it is moved into the database."""
_LOG_MOST = 64 * 1024 * 1024
"""Bytes after which it is emptied too, though everybody waits a sync for that: what a storm of small files makes in
some seconds."""


def open_state(directory: str, *, existing: bool = False) -> tuple[Disk, Journal]:
    """Lock and open a state directory, made if it is not there and need not be `existing`.

    StateError: in use, damaged, of another version, or no state directory.
    """
    if existing:
        Disk(directory, existing=True).close()  # before anything is made in it
    disk = Disk(directory)
    try:
        return disk, Journal(disk.journal_path, existing=existing)
    except BaseException:
        disk.close()
        raise


def check_owner(journal: Journal, endpoint: str, bucket: str, prefix: str) -> bool:
    """Whether this state directory knows its bucket already. StateError: it belongs to another one."""
    known = {name: journal.meta(name) for name in ("endpoint", "bucket_name", "prefix")}
    if not known["bucket_name"]:
        return False
    wanted = {"endpoint": endpoint, "bucket_name": bucket, "prefix": prefix}
    for name, value in wanted.items():
        if known[name] != value:
            raise StateError(
                f"the state directory belongs to {name} {known[name]!r}, not {value!r}: "
                "give this mount a state directory of its own (B2FS_STATE_DIR)"
            )
    return True


def check_bucket(known: str, identity: Identity) -> None:
    """`known`: the bucket id that the journal has, '' if none yet. StateError: this is another bucket."""
    if known and known != identity.bucket_id:
        raise StateError(
            f"the bucket {identity.bucket_name!r} is not the one this state directory belongs to (it was deleted and "
            "made anew, or the account is another): give this mount a state directory of its own (B2FS_STATE_DIR)"
        )


def own(journal: Journal, identity: Identity) -> None:
    """Tie the state directory to a bucket, or check that it is the one. StateError: it is another one."""
    check_bucket(journal.meta("bucket_id"), identity)
    for name in ("endpoint", "bucket_id", "bucket_name", "prefix"):
        journal.set_meta(name, getattr(identity, name))
    if not journal.meta("mount_id"):
        journal.set_meta("mount_id", secrets.token_hex(4))


class Engine:
    """The parts of a running mount. Made by `running`."""

    def __init__(self, volume: Volume, nursery: trio.Nursery) -> None:
        self.volume = volume
        self.cache = Cache(volume, nursery)
        self.content = Content(volume, self.cache)
        merging = Merging(volume)
        self.listing = Listing(volume, merging)
        self.recovery = Recovery(volume)
        self.uploader = Uploader(volume, self.cache, self.content, self.recovery)
        self.draining = Drain(volume, self.content, self.uploader)
        self.pins = PinKeeper(volume, self.cache)
        self.prefetch = Prefetch(volume, self.cache)
        merging.on_news = self.prefetch.news
        self.files = FileSystem(volume, self.cache, self.content, self.listing, self.draining, self.prefetch)
        self._ended_in_order = volume.journal.meta("boot") == ""
        """The last run did, and nothing is left of it that needs a look; or there was none."""
        self.online = False
        self.connect_error = ""
        self._hasten = trio.Event()
        """Ends the pause before the next attempt to connect."""

    # ------------------------------------------------------------ background

    async def connect(self) -> None:
        """Find the bucket, however long it takes, and check that it is ours. StateError if it is not."""
        attempts = 0
        while not self.online:
            try:
                own(self.volume.journal, await self.volume.bucket.connect())
                self.online, self.connect_error = True, ""
            except BucketError as error:
                attempts += 1
                pause_s = min(retry.backoff_s(attempts, error), 60.0)
                self.connect_error = str(error)
                log.warning("B2 cannot be used yet, next attempt in %.1f s: %s", pause_s, error)
                self._hasten = trio.Event()
                with trio.move_on_after(pause_s):
                    await self._hasten.wait()

    async def serve(self) -> None:
        """All background work; returns only by cancellation. StateError: this is another bucket."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watched, self._keep_house)
            nursery.start_soon(watched, self._sweep)
            nursery.start_soon(watched, self.recovery.verify)
            nursery.start_soon(watched, self.pins.follow)
            await self.connect()
            nursery.start_soon(watched, self.uploader.run)
            nursery.start_soon(watched, self.listing.run)
            nursery.start_soon(watched, self.prefetch.run)
            nursery.start_soon(watched, self.pins.fetch)

    async def _keep_house(self) -> None:
        volume = self.volume
        while True:
            volume.trend.sample(trio.current_time(), volume.budget.used)
            await trio.sleep(_HOUSEKEEPING_S)
            volume.shrink()
            size = volume.seam.inline(volume.journal.log_size)
            if size > _LOG_LIMIT:
                try:
                    await volume.seam.thread(volume.journal.checkpoint)
                    if size > _LOG_MOST:
                        volume.seam.inline(volume.journal.empty_log)
                except B2fsError as error:
                    log.warning("the journal's log cannot be shortened: %s", error)

    async def _sweep(self) -> None:
        """Delete files of the cache that a crash, or a full disk, left without a row."""
        volume = self.volume
        if self._ended_in_order:
            await trio.sleep(_SWEEP_S)

        def unknown(folder: str) -> list[str]:
            return volume.journal.unknown_blobs(volume.disk.blob_names(folder))

        for folder in volume.disk.blob_folders():
            for name in await volume.seam.thread(unknown, folder):
                if volume.journal.blob(name) is None and not self.cache.index.is_hot(name):
                    volume.seam.inline(volume.disk.drop_blob, name)
                await trio.lowlevel.checkpoint()

    # ------------------------------------------------------------ the end

    async def drain(
        self, path: str = "", deadline_s: float = float("inf"), report: Callable[[], Awaitable[None]] | None = None
    ) -> list[dict[str, Any]]:
        """Bring everything at or below `path` that was written so far into B2; what is left of it after `deadline_s`
        (empty: nothing).
        """
        self._hasten.set()
        mark = self.draining.mark()
        with trio.move_on_after(deadline_s):
            await self.draining.run(path, mark, report)
        await self.draining.seal(path, mark)
        return self.draining.left(path, mark)

    # ------------------------------------------------------------ looking at it

    def statistics(self) -> dict[str, Any]:
        """Counters for `b2fs stats`; sizes in bytes, ages in seconds."""
        volume, requests = self.volume, self.volume.bucket.requests()
        entries = volume.schedule.entries.values()
        up, down = self.uploader.counters, self.cache.counters
        return {
            "cache": self.cache.statistics(),
            "prefetch": self.prefetch.statistics(),
            "pins": self.pins.statistics(),
            "dirty": self.dirty(),
            "queue": {
                "waiting": sum(not e.running and not e.error for e in entries),
                "in_flight": sum(e.running for e in entries),
                "failed": sum(bool(e.error) and not e.running for e in entries),
            },
            "transfers": {
                "uploads": up.uploads, "uploaded_bytes": up.uploaded_bytes, "copies": up.copies, "hides": up.hides,
                "skipped": up.skipped, "adopted": up.adopted,
                "fetches": down.fetches, "fetched_bytes": down.fetched_bytes,
            },
            "requests": {
                "calls": requests.calls, "classes": requests.classes,
                "sent": requests.sent, "received": requests.received, "copied": requests.copied,
            },
            "names": {
                "inodes": len(volume.tree.nodes),
                "directories_loaded": sum(1 for _ in volume.tree.loaded()),
            },
            "loop": {"tasks": trio.lowlevel.current_statistics().tasks_living},
        }  # fmt: skip

    def dirty(self) -> dict[str, Any]:
        """What is not in B2: number of keys, bytes of content, age of the oldest change; `time_to_full_s`: when the
        bytes reach their limit if they grow on as in the last minute, None if they do not grow.
        """
        volume = self.volume
        since = min((e.since_ns for e in volume.schedule.entries.values()), default=volume.now_ns())
        return {
            "files": len(volume.schedule),
            "bytes": volume.budget.used,
            "limit": volume.budget.limit,
            "oldest_age_s": max(0.0, (volume.now_ns() - since) / 1e9),
            "time_to_full_s": volume.trend.time_to_full_s(volume.budget.limit),
        }

    def status(self) -> dict[str, Any]:
        volume = self.volume
        problems = [{"key": e.key, "why": e.error} for e in volume.schedule.entries.values() if e.error and e.lasting]
        for damage in volume.journal.damaged():
            path = volume.disk.quarantine_path(damage.file)
            if not damage.file or os.path.exists(path):  # who has dealt with it deletes the file
                problems.append(
                    {"key": damage.key, "why": f"set aside: {damage.why}; kept: {path if damage.file else '-'}"}
                )
        return {
            "state": "read-only" if volume.read_only else "serving",
            "online": self.online and not self.listing.last_error,
            "last_error": volume.read_only or self.connect_error or self.listing.last_error,
            "listing": {
                "running": self.listing.running,
                "complete": self.listing.complete,
                "objects": self.listing.objects,
            },
            "dirty": self.dirty(),
            "pins": self.pins.statistics(),
            "problems": problems,
            "ignored": [{"key": key, "why": why} for key, why in self.listing.ignored()],
        }

    def describe(self, ino: int, name: bytes | None = None) -> str:
        """An inode, or a name in a directory, for the log: its key and, if that is dirty, its generation."""
        tree = self.volume.tree
        node = tree.node(ino)
        if isinstance(name, bytes) and node.inode.is_dir:
            child = tree.child(node, name) if node.children else None
            key = names.join(tree.path(node), name.decode(errors="replace"))
            node = child or node
        else:
            key = tree.path(node) if node.linked else f"inode {ino} (unlinked)"
        entry = self.volume.schedule.entries.get(key)
        return f"{key!r}" + (f" (generation {entry.generation})" if entry is not None else "")

    async def real_path(self, path: str) -> str:
        """The path that a path of a command leads to, links followed; its last part may have been removed. NotFound."""
        try:
            return (await self._walk(path))[1]
        except NotFound:
            directory, name = names.split(path)
            return names.join((await self._walk(directory))[1], name)

    async def _walk(self, path: str) -> tuple[Node, str]:
        """The node that a path leads to, and by which of its names."""
        node, real, links = self.volume.tree.node(ROOT), "", 0
        parts = path.split("/")[::-1] if path else []
        while parts:
            name = parts.pop()
            child = await self.files.lookup(node.ino, name.encode())
            if not child.inode.is_link:
                real = self.volume.tree.path(child) if child.inode.is_dir else names.join(real, name)
                node = child
                continue
            target = await self.files.read_link(child.ino)
            links += 1
            if target.startswith("/") or links > _MAX_LINKS:
                raise NotFound(f"{path}: the link {self.volume.tree.path(child)} leads out of the mount, or nowhere")
            parts += [part for part in target.split("/")[::-1] if part]
        return node, real

    async def path_status(self, path: str) -> dict[str, Any]:
        """Where the content of a path is. NotFound."""
        node, real = await self._walk(path)
        return {"path": real, **self.file_status(node)}

    def file_status(self, node: Node) -> dict[str, Any]:
        """Where the content of a node is: `state` is scratch, staged, uploading or in-b2 (DESIGN.md §3)."""
        volume, inode = self.volume, node.inode
        entry = next((e for k in volume.tree.keys(node) if (e := volume.schedule.entries.get(k))), None)
        if inode.scratch:
            state = "scratch"
        elif entry is not None and entry.running:
            state = "uploading"
        elif inode.staged or entry is not None:
            state = "staged"
        else:
            state = "in-b2"
        return {
            "kind": "directory" if inode.is_dir else "symlink" if inode.is_link else "file",
            "state": state,
            "size": inode.size,
            "generation": entry.generation if entry is not None else 0,
            "file_id": inode.file_id,
            "sha1": inode.sha1,
            "why": entry.error if entry is not None else "",
        }


async def watched(task: Callable[[], Awaitable[None]]) -> None:
    """Run a background task to its end, however often it fails: a bug in one must not take the mount away."""
    while True:
        try:
            return await task()
        except Exception:
            log.exception("%s failed unexpectedly; it begins anew in %.0f s", task.__qualname__, _REST_S)
            await trio.sleep(_REST_S)


@contextlib.asynccontextmanager
async def running(
    disk: Disk,
    journal: Journal,
    bucket: Bucket,
    settings: Settings,
    seam: Seam | None = None,
    boot: str | None = None,
) -> AsyncIterator[Engine]:
    """An engine on an opened state directory, recovered; owns disk and journal and closes them at the end.

    `boot` names this boot of the machine (None: ask the kernel): if the last run began in another one and did not
    end in order, the power may have gone. An error ends it as a crash would: the next start tidies up.
    """
    boot = boot_id() if boot is None else boot
    volume = Volume(settings, journal, disk, bucket, seam or Seam())
    try:
        async with trio.open_nursery() as nursery:
            engine = Engine(volume, nursery)
            engine.recovery.start(lost_power=journal.meta("boot") not in ("", boot))
            journal.set_meta("boot", boot)
            await volume.seam.thread(disk.sync_root)
            await volume.sync()
            nursery.start_soon(watched, volume.reaper.run)
            count = volume.restore_intents()
            if count:
                log.info("recovery: %d changes of the last run are still to be brought to B2", count)
            try:
                yield engine
            finally:
                nursery.cancel_scope.cancel()
        # Nobody else is left: whoever waited for a thread has ended what he began with its answer.
        with trio.CancelScope(shield=True):
            try:
                await engine.cache.settle()
                engine.cache.close()
            except (B2fsError, OSError) as error:  # the cache owes nobody durability
                log.warning("what was fetched last cannot be kept: %s", error)
            with contextlib.suppress(B2fsError):  # a disk that fails: the next start does it
                await volume.reaper.reap()
                if not volume.read_only and not journal.has_unsealed():
                    journal.set_meta("boot", "")  # all that is here is on stable storage
    finally:
        for node in volume.tree.nodes.values():
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(journal.close)
        disk.close()
