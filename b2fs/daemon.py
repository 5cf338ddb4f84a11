"""The daemon: puts the layers together, serves one mount, and ends it with everything in B2.

Life: state directory opened and checked → bucket found (needed on the first start only) → recovered →
mounted, ``ready`` → SIGTERM, SIGINT, `b2fs umount` or an outside umount → drain → unmounted → drain of what
came meanwhile → exit code and, if something is left, a manifest. A second signal skips the waiting.

Nothing is deleted at the end: what is not in B2 stays in the state directory, and the next start goes on.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import trio

import b2fs
from b2fs.adapters.b2.process import TransferProcess
from b2fs.adapters.disk import Disk
from b2fs.adapters.journal import Journal
from b2fs.config import Config
from b2fs.core.bucket import Bucket
from b2fs.engine import retry
from b2fs.engine.engine import Engine, check_owner, open_state, own, running
from b2fs.errors import BucketError, ConfigError, Exit, Fault, NotDrained, Unavailable
from b2fs.frontends.fuse import FuseMount
from b2fs.ops import address, control, logs, manifest, setup

log = logging.getLogger(__name__)

_KNOCK_S = 0.5
"""On a later start: how long a wrong key has to show itself before we mount without B2's answer."""
_FIRST_NAMES_S = 1.0
"""On a first start: how long `ready` waits for names, so that who waited for it need not."""
_FULL_COLLECTION = 1000
"""Collections of young objects for one of all: that one looks at every node, and holds the loop for 0.8 ms per 1,000 of
them; hardly anything here is garbage that reference counts do not free.
"""
_LAST_DRAIN_S = 5.0
"""After a drain that brought everything to B2: for what was written between it and the unmount."""


def run(config: Config, mountpoint: str, *, ready: Callable[[], None]) -> Exit:
    """Mount and serve until told to stop; calls `ready` once the mount answers.

    OK: everything is in B2. NOT_DRAINED: the manifest says what is not. Raises `B2fsError` if it cannot
    start, or must stop, for a reason that has a name; then nothing is mounted any more.
    """
    logs.set_up(config.log_level, config.log_format)
    os.umask(0o077)
    _raise_file_limit()
    disk, journal = open_state(config.state_dir)
    try:
        known = check_owner(journal, config.endpoint, config.bucket, config.prefix)
    except BaseException:
        journal.close()
        disk.close()
        raise
    try:
        return trio.run(Daemon(config, mountpoint, ready).run, disk, journal, known, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        setup.raise_named(group)
        raise


class Daemon:
    def __init__(self, config: Config, mountpoint: str, ready: Callable[[], None]) -> None:
        self._config = config
        self._mountpoint = mountpoint
        self._ready = ready
        self._started_s = time.time()
        self._stop = trio.Event()
        """Somebody wants the mount to end."""
        self._hurry = trio.CancelScope()
        """Around the drain: cancelled by a second signal."""
        self._last_hurry = trio.CancelScope()
        """The same for what came between the drain and the unmount."""
        self._drained = trio.Event()
        self._left: list[dict[str, Any]] = []
        """What is not in B2; valid once `_drained` is set."""
        self._manifest = ""
        """The file that says it; '' if nothing is left."""

    async def run(self, disk: Disk, journal: Journal, known: bool) -> Exit:
        async with TransferProcess.open(setup.bucket_settings(self._config)) as bucket:
            if not known:
                try:
                    await self._find_bucket(bucket, journal)
                except BaseException:
                    journal.close()
                    disk.close()
                    raise
            async with running(disk, journal, bucket, setup.engine_settings(self._config)) as engine:
                engine.online = not known or await self._knock(bucket, journal)
                await self._serve(engine, is_first=not known)
        return self._finish()

    async def _find_bucket(self, bucket: Bucket, journal: Journal) -> None:
        """On a first start: B2 must answer, there is nothing to serve without it."""
        log.info("first start with this state directory: asking B2 for the bucket")
        try:
            own(journal, await retry.until(self._config.read_deadline, bucket.connect, "the bucket"))
        except (BucketError, Unavailable) as error:
            setup.explain(error, self._config)

    async def _knock(self, bucket: Bucket, journal: Journal) -> bool:
        """On a later start: whether B2 answered. It need not, but if it refuses the key there is no use in serving. The
        transfer process came up while the engine recovered.
        """
        try:
            with trio.move_on_after(_KNOCK_S):
                own(journal, await bucket.connect())
                return True
        except BucketError as error:
            if error.fault in (Fault.DENIED, Fault.MISSING, Fault.REFUSED):
                setup.explain(error, self._config)
        except Unavailable as error:
            setup.explain(error, self._config)
        return False

    # ------------------------------------------------------------ serving

    async def _serve(self, engine: Engine, *, is_first: bool) -> None:
        mount = FuseMount(engine, self._mountpoint)
        socket = os.path.join(address.runtime_dir(), address.socket_name(self._mountpoint))
        mount.open(f"b2fs:{self._config.bucket}/{self._config.prefix}", self._config.allow_other)
        unmounted = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.serve)
                nursery.start_soon(self._watch_signals)
                nursery.start_soon(self._serve_mount, mount, unmounted)
                await nursery.start(control.serve, socket, self._handler(engine))
                gc.freeze()
                gc.set_threshold(*gc.get_threshold()[:2], _FULL_COLLECTION)
                if is_first:
                    with trio.move_on_after(_FIRST_NAMES_S):
                        await engine.listing.begun()
                log.info("serving %s from bucket %s", self._mountpoint, self._config.bucket)
                self._ready()
                await self._stop.wait()
                await self._drain(engine, mount, unmounted)
                nursery.cancel_scope.cancel()
        finally:
            mount.close()

    async def _serve_mount(self, mount: FuseMount, unmounted: trio.Event) -> None:
        await mount.serve()
        mount.close()
        unmounted.set()
        if not self._stop.is_set():
            log.info("%s was unmounted from outside", self._mountpoint)
            self._stop.set()

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            signalled = False
            async for number in signals:
                if signalled:
                    log.warning("second signal: not waiting for B2 any longer")
                    self._hurry.cancel()
                    self._last_hurry.cancel()
                else:
                    log.info("%s: uploading what is left, then leaving", signal.Signals(number).name)
                    signalled = True
                    self._stop.set()

    # ------------------------------------------------------------ stopping

    async def _drain(self, engine: Engine, mount: FuseMount, unmounted: trio.Event) -> None:
        deadline_s = trio.current_time() + (self._config.drain_timeout or float("inf"))
        is_done = False
        with self._hurry, trio.move_on_at(deadline_s):
            await mount.flush()
            is_done = not await engine.drain()
        mount.stop()
        await unmounted.wait()
        # what was written meanwhile: nobody can any more, so this ends
        rest_s = max(_LAST_DRAIN_S, deadline_s - trio.current_time()) if is_done else 0.0
        with self._last_hurry, trio.move_on_after(rest_s):
            await engine.drain()
        self._left = await engine.drain("", 0.0)
        self._manifest = manifest.write(self._config, self._left)
        self._drained.set()

    def _finish(self) -> Exit:
        if self._left:
            log.error("%d changes are not in B2; they are safe in %s", len(self._left), self._config.state_dir)
            return Exit.NOT_DRAINED
        log.info("everything is in B2")
        return Exit.OK

    # ------------------------------------------------------------ the control socket

    def _handler(self, engine: Engine) -> control.Handler:
        async def handle(command: str, args: control.Answer, progress: control.Progress) -> control.Answer:
            async def report() -> None:
                dirty = engine.dirty()
                await progress({"files": dirty["files"], "bytes": dirty["bytes"]})

            if command == "status":
                path = args.get("path")
                return await engine.path_status(path) if path else self._status(engine)
            if command == "stats":
                return engine.statistics()
            if command == "flush":
                return await self._flush(engine, await engine.real_path(args.get("path") or ""), report)
            if command == "drain":
                self._stop.set()
                while not self._drained.is_set():
                    await report()
                    with trio.move_on_after(0.25):
                        await self._drained.wait()
                return {"manifest": self._manifest} if self._left else {}
            raise ConfigError(f"the daemon does not know the command {command!r}")

        return handle

    async def _flush(self, engine: Engine, path: str, report: Callable[[], Any]) -> control.Answer:
        before = engine.uploader.counters.uploads
        left = await engine.drain(path, self._config.drain_timeout or float("inf"), report)
        if left:
            raise NotDrained(f"{len(left)} changes are not in B2, for instance {left[0]['path']}: {left[0]['why']}")
        return {"flushed": engine.uploader.counters.uploads - before}

    def _status(self, engine: Engine) -> control.Answer:
        status = engine.status()
        if self._stop.is_set():
            status["state"] = "draining"
        return {
            "mountpoint": self._mountpoint,
            "bucket": self._config.bucket,
            "prefix": self._config.prefix,
            "endpoint": self._config.endpoint,
            "state_dir": self._config.state_dir,
            "version": b2fs.__version__,
            "pid": os.getpid(),
            "started_s": self._started_s,
            **status,
        }


def _raise_file_limit() -> None:
    """Every file that is being written has a descriptor, and 512 cached ones: the usual 1024 is too few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
