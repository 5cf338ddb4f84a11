"""The daemon's side of the control socket: a question in JSON, progress, one answer.

    → {"command": "flush", "path": "a/b"}
    ← {"progress": {"files": 3, "bytes": 12288}}        any number of these; {} only says "still here"
    ← {"result": {…}}   or   {"error": "…", "exit": 8}

Rules
  One question for each connection. A client that vanishes cancels its handler.
  Progress never waits for the client: if it does not read, only the newest is kept. A stopped `b2fs umount`
  must not stop the drain.
  A bug in a handler is logged and answered; nothing here ends the daemon.
  Whoever can connect may command, so the socket is 0600 in a directory that is 0700 (`b2fs.ops.address`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from b2fs.errors import B2fsError, Exit, StateError
from b2fs.secret import redact

Answer = dict[str, Any]
Progress = Callable[[Answer], Awaitable[None]]
Handler = Callable[[str, Answer, Progress], Awaitable[Answer]]

# A question carries a path at most; 64 KiB is sixteen times the longest.
MAX_LINE = 64 * 1024
# Far below the client's patience (client.SILENCE_S).
KEEPALIVE_S = 5.0
# For a client that asks nothing, and for one that does not read its answer.
PATIENCE_S = 10.0
FAREWELL_S = 5.0

_log = logging.getLogger(__name__)


async def serve(path: str, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Answer on the socket `path` until cancelled, then remove it. Started once clients can connect.

    A file that a dead daemon left there is replaced; raises `StateError` if a living one listens on it.
    """
    listener = await _listen(path)
    inode = os.lstat(path).st_ino
    try:
        task_status.started()
        await trio.serve_listeners(partial(_serve_client, handler=handler), [listener])
    finally:
        _remove(path, inode)


async def _listen(path: str) -> trio.SocketListener:
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ECONNREFUSED):
                raise StateError(f"control socket {path}: {error.strerror}") from None
        else:
            raise StateError(f"another daemon already serves this mountpoint (control socket {path})")
    listening = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Bound beside and moved into place: `path` is never there and dead, nor open to others.
        fresh = f"{path}.{os.getpid()}"
        await listening.bind(fresh)
        os.chmod(fresh, 0o600)
        listening.listen(16)
        os.rename(fresh, path)
    except OSError as error:
        listening.close()
        raise StateError(f"control socket {path}: {error.strerror}") from None
    return trio.SocketListener(listening)


def _remove(path: str, inode: int) -> None:
    """Remove the socket, unless another daemon has put its own there meanwhile."""
    try:
        if os.lstat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass


async def _serve_client(stream: trio.SocketStream, handler: Handler) -> None:
    async with stream:
        try:
            await _answer(stream, handler)
        except Exception:
            _log.exception("control connection failed")


async def _answer(stream: trio.SocketStream, handler: Handler) -> None:
    try:
        command, args = _parse(await _read_line(stream))
    except (ValueError, RecursionError, trio.BrokenResourceError) as error:
        await _send(stream, _line({"error": f"bad request: {error}", "exit": Exit.USAGE}))
        return
    news, latest = trio.open_memory_channel[bytes](1)
    turn = trio.Lock()

    async def progress(report: Answer) -> None:
        line = _line({"progress": report})
        try:
            news.send_nowait(line)
        except trio.WouldBlock:
            latest.receive_nowait()
            news.send_nowait(line)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, stream, nursery.cancel_scope)
        nursery.start_soon(_report, stream, latest, turn)
        final = await _run(handler, command, args, progress)
        # Shielded: the answer to `drain` is on its way while the daemon, because of it, shuts down.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL_S):
            async with turn:
                await _send(stream, final)
        nursery.cancel_scope.cancel()


async def _run(handler: Handler, command: str, args: Answer, progress: Progress) -> bytes:
    try:
        return _line({"result": await handler(command, args, progress)})
    except B2fsError as error:
        return _line({"error": redact(str(error)), "exit": error.exit_code})
    except Exception:
        _log.exception("control command failed: %s", command)
        return _line({"error": f"the daemon failed on {command!r}; its log says why", "exit": Exit.BUG})


async def _watch(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """End `scope` when the client hangs up, or talks out of turn."""
    with contextlib.suppress(trio.BrokenResourceError):
        await stream.receive_some(1)
    scope.cancel()


async def _report(stream: trio.SocketStream, latest: trio.MemoryReceiveChannel[bytes], turn: trio.Lock) -> None:
    """Send each progress that comes, and a sign of life where none comes."""
    while True:
        line = _line({"progress": {}})
        with trio.move_on_after(KEEPALIVE_S):
            line = await latest.receive()
        async with turn:
            await _send(stream, line)


async def _send(stream: trio.SocketStream, line: bytes) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # the client has gone: `_watch` sees it too
        await stream.send_all(line)


async def _read_line(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    with trio.move_on_after(PATIENCE_S):
        while b"\n" not in received:
            if len(received) > MAX_LINE:
                raise ValueError(f"longer than {MAX_LINE} bytes")
            chunk = await stream.receive_some(4096)
            if not chunk:
                raise ValueError("no line")
            received += chunk
        return bytes(received.partition(b"\n")[0])
    raise ValueError("too slow")


def _parse(line: bytes) -> tuple[str, Answer]:
    question = json.loads(line)
    if not isinstance(question, dict) or not isinstance(question.get("command"), str):
        raise ValueError("not an object with a command")
    return question.pop("command"), question


def _line(answer: Answer) -> bytes:
    return json.dumps(answer).encode() + b"\n"
