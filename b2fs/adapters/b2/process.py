"""`TransferProcess`: the bucket, as seen from the daemon; all traffic runs in a child process.

Why a process: threads that talk to B2 hold the GIL and slow every file operation tenfold, and a blocked
request cannot be interrupted, a process can (DESIGN.md §4; facts: fuse.md).

Rules
  The child holds nothing precious. When it dies or falls silent it is killed and started again; the calls
  in flight fail with TRANSIENT, and calls made meanwhile wait for the new child within their deadline.
  A call that is cancelled, or whose deadline passes, is forgotten here and goes on in the child: a write
  may still be committed, and a fetch may still be writing into its target file. So the target of a fetch
  must be a file in which late bytes do no harm: a path that is used for one fetch only. It may be unlinked
  at any time.
  A call waits for a free lane before its deadline starts: as many calls run as the child has threads.

Units: ``*_s`` seconds.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path

import msgspec
import trio

import b2fs
from b2fs.adapters.b2 import wire
from b2fs.adapters.b2.settings import Settings
from b2fs.core.bucket import Base, Identity, Page, Requests, Version
from b2fs.errors import B2fsError, BucketError, Fault

log = logging.getLogger(__name__)

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""All that the child inherits: the daemon's own environment may hold the key."""

_RESTART_MIN_S = 0.1
_STEADY_S = 60.0
"""A child that lived this long was well: the next restart is at once."""


class _Call:
    """One call in flight."""

    def __init__(self, scope: trio.CancelScope, allowance_s: float) -> None:
        self.scope = scope
        self.allowance_s = allowance_s
        self.ended = trio.Event()
        self.outcome: wire.Done | B2fsError | None = None

    def end(self, outcome: wire.Done | B2fsError) -> None:
        self.outcome = outcome
        self.ended.set()


class _Outbox:
    """Frames on their way to the child, whole and in order whoever is cancelled."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` does not block, and stays the caller's."""
        self._sock = sock
        self._left = bytearray()
        self._more = trio.Event()

    def put(self, data: bytes) -> None:
        """Send at once what the socket takes (all of it, but for a child that does not keep up), the rest in `run`."""
        if not self._left:
            data = data[self._send(data) :]
        if data:
            self._left += data
            self._more.set()

    async def run(self) -> None:
        """Send what was left; never ends."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._left:
                await trio.lowlevel.wait_writable(self._sock)
                del self._left[: self._send(self._left)]

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the child is dead: who receives sees it too
            return len(data)


class TransferProcess:
    """Implements `core.bucket.Bucket`. Needs `run` in some nursery, or use `open`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ids = count(1)
        self._calls: dict[int, _Call] = {}
        self._outbox: _Outbox | None = None
        self._up = trio.Event()
        """Set while a child is there to take calls; replaced when it goes."""
        self._begun = trio.Event()
        """Set when the first child has been started, or could not be."""
        self._earlier = Requests()
        """What children that are gone have sent."""
        self._current = Requests()
        self._process: trio.Process | None = None
        self.restarts = 0
        others = trio.CapacityLimiter(settings.list_lanes)
        self._lanes = {
            wire.Fetch: trio.CapacityLimiter(settings.fetch_lanes),
            wire.Upload: trio.CapacityLimiter(settings.upload_lanes),
            wire.Copy: trio.CapacityLimiter(settings.copy_lanes),
            wire.Connect: others,
            wire.ListPage: others,
            wire.Head: others,
            wire.Hide: others,
        }

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: Settings) -> AsyncIterator[TransferProcess]:
        """A transfer process whose first child has been started (or could not be); on exit the child is killed and calls in
        flight are cancelled.
        """
        self = cls(settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.run)
            await self._begun.wait()  # it comes up by itself while the caller's thread is busy
            yield self
            nursery.cancel_scope.cancel()

    @property
    def pid(self) -> int | None:
        """The child's process id, None between two children."""
        return self._process.pid if self._process else None

    # -------------------------------------------------------------------------------- the child's life

    async def run(self) -> None:
        """Keep a child running until cancelled; then kill it. Never raises, save for a bug."""
        pause_s = 0.0
        while True:
            born = trio.current_time()
            reason = await self._one_life()
            lived_s = trio.current_time() - born
            pause_s = next_pause(pause_s, lived_s, self._settings.restart_max_s)
            self.restarts += 1
            log.warning("transfer process %s after %.0f s, starting it again in %.1f s", reason, lived_s, pause_s)
            await trio.sleep(pause_s)

    async def _one_life(self) -> str:
        """Start a child, serve it until it dies or falls silent; returns why it ended."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            self._begun.set()
            return f"did not start ({exc.strerror})"
        async with trio.SocketStream(trio.socket.from_stdlib_socket(ours)) as stream:
            try:
                with theirs:
                    self._process = process = await _start(theirs)
            except OSError as exc:
                return f"did not start ({exc.strerror})"
            finally:
                self._begun.set()
            try:
                reason = await self._serve(stream, _Outbox(ours))
            finally:
                self._process = None
                process.kill()
                with trio.CancelScope(shield=True):
                    status = await process.wait()
                self._lost()
        return f"{reason} ({_how(status)})"

    async def _serve(self, stream: trio.SocketStream, outbox: _Outbox) -> str:
        async with trio.open_nursery() as nursery:
            outbox.put(wire.frame(self._settings))
            nursery.start_soon(outbox.run)
            self._outbox = outbox
            self._up.set()
            reason = await self._receive(stream)
            nursery.cancel_scope.cancel()
        return reason

    async def _receive(self, stream: trio.SocketStream) -> str:
        """Take answers until the child is dead, silent, or talks nonsense; returns which."""
        deframer = wire.Deframer()
        decoder = msgspec.msgpack.Decoder(wire.Tell)
        patience_s = self._settings.start_timeout_s
        while True:
            # Data that waits is read before the deadline is looked at: a daemon that was itself stopped
            # for a while does not take its child for dead.
            data = b""
            with trio.move_on_after(patience_s) as silence:
                with suppress(trio.BrokenResourceError):
                    data = await stream.receive_some()
            if silence.cancelled_caught:
                return f"was silent for {patience_s:.0f} s"
            if not data:
                return "ended"
            patience_s = self._settings.silence_timeout_s
            try:
                for body in deframer.feed(data):
                    self._told(decoder.decode(body))
            except (ValueError, msgspec.MsgspecError) as exc:
                return f"sent a malformed frame ({exc})"

    def _told(self, tell: wire.Tell) -> None:
        self._current = tell.requests
        call = self._calls.get(tell.id)
        if call is None:
            return  # a heartbeat, or the late answer to a call that nobody waits for any more
        match tell.answer:
            case wire.Done() as done:
                call.end(done)
            case wire.Failed() as failed:
                call.end(failed.error())
            case _:
                call.scope.deadline = trio.current_time() + call.allowance_s

    def _lost(self) -> None:
        """The child is gone: fail what was in flight, keep its counts."""
        self._up = trio.Event()
        self._outbox = None
        for call in self._calls.values():
            call.end(BucketError(Fault.TRANSIENT, "the transfer process ended, it is being started again"))
        self._earlier, self._current = _sum(self._earlier, self._current), Requests()

    # --------------------------------------------------------------------------------------- the calls

    async def _call(self, request: wire.Request, size: int = 0, least_s: float = 0.0) -> wire.Done:
        allowance_s = max(self._settings.allowance_s(size), least_s)
        lane = self._lanes[type(request)]
        await trio.lowlevel.checkpoint_if_cancelled()  # who is cancelled asks for nothing more
        try:
            lane.acquire_nowait()
        except trio.WouldBlock:
            await lane.acquire()
        try:
            with trio.move_on_after(allowance_s) as scope:
                while self._outbox is None:  # the child may die again before we get on
                    await self._up.wait()
                id, call = next(self._ids), _Call(scope, allowance_s)
                self._outbox.put(wire.frame(wire.Ask(id, request)))
                self._calls[id] = call
                try:
                    await call.ended.wait()
                finally:
                    del self._calls[id]
        finally:
            lane.release()
        if scope.cancelled_caught:
            raise BucketError(Fault.TRANSIENT, f"B2 did not answer within {allowance_s:.0f} s")
        if isinstance(call.outcome, B2fsError):
            raise call.outcome
        assert call.outcome is not None
        return call.outcome

    async def connect(self) -> Identity:
        done = await self._call(wire.Connect())
        assert done.identity is not None
        # A child that is started later must not attach to another bucket of the same name.
        self._settings = msgspec.structs.replace(self._settings, bucket_id=done.identity.bucket_id)
        return done.identity

    async def list_page(self, prefix: str, start: str, delimiter: str, limit: int) -> Page:
        done = await self._call(wire.ListPage(prefix, start, delimiter, limit))
        assert done.page is not None
        return done.page

    async def fetch(self, file_id: str, path: str, offset: int, length: int, sha1: str) -> None:
        await self._call(wire.Fetch(file_id, path, offset, length, sha1), length)

    async def upload(
        self,
        key: str,
        path: str,
        size: int,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        resume: bool = False,
        base: Base | None = None,
    ) -> Version:
        request = wire.Upload(key, path, size, sha1, dict(info), content_type, resume, base)
        least_s = self._settings.copy_timeout_s if base is not None else 0.0
        done = await self._call(request, size, least_s)
        assert done.version is not None
        return done.version

    async def copy(self, file_id: str, key: str, size: int, info: Mapping[str, str], content_type: str) -> Version:
        request = wire.Copy(file_id, key, size, dict(info), content_type)
        done = await self._call(request, least_s=self._settings.copy_timeout_s)
        assert done.version is not None
        return done.version

    async def hide(self, key: str) -> int:
        return (await self._call(wire.Hide(key))).hidden_ms

    async def head(self, key: str) -> Version | None:
        return (await self._call(wire.Head(key))).version

    def requests(self) -> Requests:
        return _sum(self._earlier, self._current)


async def _start(theirs: socket.socket) -> trio.Process:
    return await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "b2fs.adapters.b2.worker", str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        env=_environment(),
        pass_fds=[theirs.fileno()],
    )


def next_pause(last_s: float, lived_s: float, max_s: float) -> float:
    """Seconds to wait before the next start: none after a long life, then ever more, up to `max_s`."""
    return 0.0 if lived_s >= _STEADY_S else min(max(_RESTART_MIN_S, last_s * 2), max_s)


def _environment() -> dict[str, str]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # The child runs the same code as we do, installed or not.
    environment["PYTHONPATH"] = str(Path(b2fs.__file__).parents[1])
    return environment


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"


def _sum(a: Requests, b: Requests) -> Requests:
    def merged(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
        return {name: one.get(name, 0) + two.get(name, 0) for name in {**one, **two}}

    return Requests(
        merged(a.calls, b.calls),
        merged(a.classes, b.classes),
        a.sent + b.sent,
        a.received + b.received,
        a.copied + b.copied,
    )
