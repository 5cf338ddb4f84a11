"""Rescue: brings what a state directory still holds to B2, without a mount.

Life: state directory opened and locked as it is → the bucket that the journal names → recovered → everything
uploaded by the engine itself, as a stop of the daemon does → exit code and, if something is left, a manifest.
SIGTERM and Ctrl-C end it in order: what is not uploaded stays, and a later rescue or mount goes on with it.

On another machine nobody can tell a killed daemon from a power loss. Unless told that there was one, this takes what it
finds as it is: it was acknowledged, and B2 keeps the version below. Staged content is checked against its SHA-1 anyway.

Needs no mountpoint, no /dev/fuse and no root; only the key comes from the settings.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from b2fs.adapters.b2.process import TransferProcess
from b2fs.adapters.disk import Disk
from b2fs.adapters.journal import Journal
from b2fs.adapters.journal_check import read_all
from b2fs.config import Config
from b2fs.core.bucket import Bucket
from b2fs.core.change import Change
from b2fs.core.invariants import Names, places
from b2fs.engine import retry
from b2fs.engine.engine import Engine, open_state, own, running
from b2fs.errors import BucketError
from b2fs.ops import logs, manifest, setup

log = logging.getLogger(__name__)

_NO_ANSWER = "B2 did not answer"
_ANOTHER_BOOT = "before the power loss"
"""Names no boot, so that the last run counts as one that lost power."""


class Outcome(msgspec.Struct, frozen=True):
    """How a rescue ended. `left`: the number of changes that are not in B2, which the manifest names."""

    bucket: str
    uploads: int
    left: int
    manifest: str


def run(config: Config, progress: Callable[[dict[str, Any]], None], *, power_lost: bool = False) -> Outcome:
    """Upload what ``config.state_dir`` holds; `progress` is told of ``{files, bytes}`` that are left.

    StateError: in use, no state directory, or none that a mount ever used. AccessDenied, NoBucket: B2 refuses;
    nothing is uploaded then. `config` brings the key and the deadline, the journal says which bucket. `power_lost`: what
    no fsync put on the disk is not to be trusted; it is set aside instead.
    """
    logs.set_up(config.log_level, config.log_format)
    os.umask(0o077)
    disk, journal = open_state(config.state_dir, existing=True)
    try:
        config = _of_journal(config, journal)
        config.require_account()
    except BaseException:
        journal.close()
        disk.close()
        raise
    try:
        return trio.run(Rescue(config, progress, power_lost).run, disk, journal, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        setup.raise_named(group)
        raise


def _of_journal(config: Config, journal: Journal) -> Config:
    """The configuration for the bucket that a journal belongs to."""
    return setup.of_bucket(config, {name: journal.meta(name) for name in ("endpoint", "bucket_name", "prefix")})


class Rescue:
    def __init__(self, config: Config, progress: Callable[[dict[str, Any]], None], power_lost: bool) -> None:
        self._config = config
        self._power_lost = power_lost
        self._progress = progress
        self._end = trio.CancelScope()
        """Around all that waits for B2."""

    async def run(self, disk: Disk, journal: Journal) -> Outcome:
        last_boot = journal.meta("boot")
        boot = _ANOTHER_BOOT if self._power_lost and last_boot else last_boot or None
        async with (
            TransferProcess.open(setup.bucket_settings(self._config)) as bucket,
            running(disk, journal, bucket, setup.engine_settings(self._config), boot=boot) as engine,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(self._watch_signals)
            nowhere = _take_up_lost(engine)
            with self._end, trio.move_on_after(self._config.drain_timeout or float("inf")):
                if engine.volume.schedule.entries:
                    await self._connect(engine, bucket)
                    nursery.start_soon(engine.uploader.run)
                    await engine.drain(report=lambda: self._report(engine))
            left = await engine.drain("", 0.0)
            if not engine.online:
                left = [{**entry, "why": _NO_ANSWER} for entry in left]
            left += nowhere
            left += [_entry(each.key, 0, "", each.why) for each in engine.recovery.set_aside]
            outcome = Outcome(
                self._config.bucket, engine.uploader.counters.uploads, len(left), manifest.write(self._config, left)
            )
            nursery.cancel_scope.cancel()
        return outcome

    async def _connect(self, engine: Engine, bucket: Bucket) -> None:
        """Return once B2 has answered; cancel it to give up. StateError, AccessDenied, NoBucket."""
        try:
            own(engine.volume.journal, await retry.until(float("inf"), bucket.connect, "the bucket"))
        except BucketError as error:
            setup.explain(error, self._config)
        engine.online = True

    async def _report(self, engine: Engine) -> None:
        self._progress(engine.dirty())

    async def _watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                log.warning("%s: not waiting for B2 any longer", signal.Signals(number).name)
                self._end.cancel()


def _take_up_lost(engine: Engine) -> list[dict[str, Any]]:
    """Content of a damaged journal that nothing would upload is taken up; what no path leads to is returned, as `left`."""
    volume = engine.volume
    rows = read_all(volume.journal.path)
    tree, nowhere = Names(rows), []
    for ino, inode in rows.inodes.items():
        if not any(places(inode)):
            continue
        path = tree.paths.get(ino)
        if path is None:
            why = "no path leads to it any more; its content is in the state directory, run `b2fs fsck`"
            nowhere.append(_entry(tree.where(ino), inode.size, inode.sha1, why))
        elif not volume.schedule.covers(path):
            log.warning("%r has content that nothing would have uploaded; taking it up", path)
            volume.commit(Change(dirty=[path]))
    return nowhere


def _entry(path: str, size: int, sha1: str, why: str) -> dict[str, Any]:
    """As `Uploader.left` has them."""
    return {"path": path, "size": size, "sha1": sha1, "why": why}
