"""HTTP/1.1 for one connection: h11 on a trio stream, with streamed bodies and misbehaviour on request.

Rules
  Knows requests and replies, nothing of B2. A handler gets a `Request` and returns a `Reply`; it may read
  the request's body before, or raise `Reset` or `Stall`.
  What a handler leaves unread of a small body is read and dropped, so that the client sees the reply and
  the connection lives on; after a large one the connection is closed.
  A `Mishap` is carried out on the real connection: a reset is a TCP RST, a truncation an early FIN.
  Memory per connection is bounded by `CHUNK_SIZE`, whatever the size of a body.
  The reply's `on_end` is called before its last byte is sent: whoever has the reply sees its effects.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import socket
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

import h11
import trio

CHUNK_SIZE = 256 * 1024
"""Largest piece of a body that is read or sent at once."""
_DROP_SIZE = 16 << 20
"""An unread request body up to this size is read and dropped to keep the connection."""
_LINGER_S = 2.0
"""How long the server reads on after an early reply, so that the client can see it."""
_MAX_STALL_S = 600.0
_MAX_HEAD = 64 * 1024


class Cut(StrEnum):
    """How a body ends before its time."""

    RESET = "reset"  # TCP RST: the other side gets ECONNRESET
    CLOSE = "close"  # an orderly FIN: the other side sees a short body
    STALL = "stall"  # silence, until the other side gives up


@dataclass(frozen=True)
class Mishap:
    """What goes wrong with a body. `after` is in bytes; None means half of it."""

    cut: Cut | None = None
    after: int | None = None
    corrupt: bool = False
    """Flip the bits of one byte (at `after`); length and headers stay as they are."""

    def offset(self, length: int) -> int:
        return length // 2 if self.after is None else min(self.after, length)


class Reset(Exception):
    """Answer nothing: reset the connection."""


class Stall(Exception):
    """Answer nothing: keep the connection open and silent until the client gives up."""


class Disconnected(Exception):
    """The client went away or broke the protocol; there is nobody to answer."""


@dataclass
class Shape:
    """Speed of the connections; shared by all of them and changed while they run."""

    down_bps: float | None = None
    """Bytes per second to the client, for each connection; None: as fast as it goes."""
    up_bps: float | None = None


def host_date() -> str:
    return formatdate(usegmt=True)


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    fd: int = -1
    """When not -1, the body is [offset, offset+length) of this file; the connection closes it."""
    offset: int = 0
    length: int = -1
    """Content-Length; -1: that of `body`. (A HEAD reply has a length and no body.)"""
    mishap: Mishap | None = None
    close: bool = False
    on_end: Callable[[], None] | None = None

    def end(self) -> None:
        if self.on_end is not None:
            done, self.on_end = self.on_end, None
            done()


class Request:
    """One request's head, and its body to be read at most once."""

    __slots__ = ("connection", "headers", "method", "mishap", "path", "query", "received")

    def __init__(self, connection: Connection, event: h11.Request) -> None:
        self.connection = connection
        self.method = event.method.decode("ascii")
        path, _, query = event.target.decode("latin-1").partition("?")
        self.path = path
        """Still percent-encoded."""
        self.query = query
        self.headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in event.headers}
        """Names in lower case."""
        self.received = 0
        """Bytes of the body read so far."""
        self.mishap: Mishap | None = None
        """What goes wrong while the body is read."""

    @property
    def peer(self) -> str:
        return self.connection.peer

    @property
    def length(self) -> int | None:
        """Content-Length, None if the request has none."""
        value = self.headers.get("content-length")
        return None if value is None else int(value)

    async def chunks(self) -> AsyncIterator[bytes | bytearray]:
        """The body. Raises `Disconnected`, and what its mishap asks for."""
        mishap = self.mishap
        limit = mishap.offset(self.length or 0) if mishap else -1
        while True:
            event = await self.connection.next_body_event()
            if type(event) is h11.Data:
                self.received += len(event.data)
                if mishap is not None and self.received >= limit:
                    raise Stall if mishap.cut is Cut.STALL else Reset
                yield event.data
            elif type(event) is h11.EndOfMessage:
                if mishap is not None:
                    raise Stall if mishap.cut is Cut.STALL else Reset
                return
            else:
                raise Disconnected

    async def read(self, limit: int) -> bytes | None:
        """The whole body, None if it is longer than `limit`."""
        event = await self.connection.next_body_event()
        if type(event) is h11.EndOfMessage:
            return b""
        body = bytearray()
        while type(event) is h11.Data:
            body += event.data
            self.received += len(event.data)
            if len(body) > limit:
                return None
            event = await self.connection.next_body_event()
        if type(event) is not h11.EndOfMessage:
            raise Disconnected
        return bytes(body)


Handler = Callable[[Request], Awaitable[Reply]]


class Connection:
    """One client's connection. `date` gives the text of the Date header."""

    def __init__(self, stream: trio.SocketStream, shape: Shape, date: Callable[[], str] = host_date) -> None:
        self._stream = stream
        self._shape = shape
        self._date = date
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        self._up_free_at = 0.0  # when the paced line is free for the next bytes, trio's clock
        self._down_free_at = 0.0
        self._scope = trio.CancelScope()
        self.peer: str = ""
        with contextlib.suppress(OSError):
            self.peer = stream.socket.getpeername()[0]

    async def serve(self, handler: Handler) -> None:
        """Answer requests until the client leaves. Never raises for what a client does."""
        with self._scope:
            await self._serve(handler)

    async def _serve(self, handler: Handler) -> None:
        try:
            while await self._serve_one(handler):
                pass
        except (Disconnected, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
        except Reset:
            self.reset()
        except Stall:
            with trio.move_on_after(_MAX_STALL_S):
                await self._read_until_closed()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._stream.aclose()

    def reset(self) -> None:
        """Close with a TCP RST and end what is under way. What was sent and not yet received may be lost."""
        with contextlib.suppress(OSError):
            self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()
        self._scope.cancel()

    async def next_body_event(self) -> Any:
        """The next h11 event of a request's body; `Disconnected` when the client left in the middle of it."""
        try:
            return await self.next_event()
        except h11.RemoteProtocolError:
            raise Disconnected from None

    async def next_event(self) -> Any:
        """The next h11 event of the client's side."""
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self._h11.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            bps = self._shape.up_bps
            data = await self._stream.receive_some(CHUNK_SIZE if bps is None else _slice(bps))
            if (bps := self._shape.up_bps) is not None:  # it may have been set while we waited
                self._up_free_at = max(self._up_free_at, trio.current_time()) + len(data) / bps
                await trio.sleep_until(self._up_free_at)
            self._h11.receive_data(data)

    # ------------------------------------------------------------ inside

    async def _serve_one(self, handler: Handler) -> bool:
        """Answer one request; whether the connection can take another."""
        event = await self.next_event()
        if type(event) is not h11.Request:
            return False
        request = Request(self, event)
        reply = await handler(request)
        try:
            await self._finish_body(request, reply)
            await self._send_reply(reply, head_only=request.method == "HEAD")
        finally:
            reply.end()
            if reply.fd >= 0:
                os.close(reply.fd)
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            return True
        if self._h11.their_state is h11.SEND_BODY:
            await self._stream.send_eof()
            with trio.move_on_after(_LINGER_S):
                await self._read_until_closed()
        return False

    async def _finish_body(self, request: Request, reply: Reply) -> None:
        """Read and drop the rest of a small body; mark the reply as the last one before a large one."""
        if self._h11.their_state is not h11.SEND_BODY:
            return
        if self._h11.they_are_waiting_for_100_continue:
            reply.close = True  # the client has not sent its body, and now it need not
            return
        dropped = 0
        while dropped <= _DROP_SIZE and (request.length or 0) - request.received <= _DROP_SIZE:
            event = await self.next_body_event()
            if type(event) is h11.EndOfMessage:
                return
            if type(event) is not h11.Data:
                raise Disconnected
            dropped += len(event.data)
        reply.close = True

    async def _send_reply(self, reply: Reply, head_only: bool) -> None:
        length = reply.length if reply.length >= 0 else len(reply.body)
        headers = [("date", self._date()), *reply.headers, ("content-length", str(length))]
        if reply.close:
            headers.append(("connection", "close"))
        head = self._h11.send(h11.Response(status_code=reply.status, headers=headers)) or b""
        if head_only:
            length = 0
        if reply.fd < 0 and reply.mishap is None and self._shape.down_bps is None:
            if length:
                head += self._h11.send(h11.Data(data=reply.body)) or b""
            head += self._h11.send(h11.EndOfMessage()) or b""
            reply.end()
            await self._stream.send_all(head)
            return
        await self._send_body(reply, head, length)

    async def _send_body(self, reply: Reply, head: bytes, length: int) -> None:
        """Send head and body in pieces, with pacing and mishaps."""
        mishap = reply.mishap or Mishap()
        stop = mishap.offset(length) if mishap.cut else length
        flip = min(mishap.offset(length), length - 1) if mishap.corrupt else -1
        sent = 0
        pending = head
        while sent < stop:
            bps = self._shape.down_bps
            size = min(stop - sent, CHUNK_SIZE if bps is None else _slice(bps))
            data = await self._read(reply, sent, size)
            if sent <= flip < sent + size:
                at = flip - sent
                data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
            sent += size
            pending += self._h11.send(h11.Data(data=data)) or b""
            if sent == length:
                reply.end()
            if bps is not None:
                await trio.sleep_until(self._down_free_at)
                self._down_free_at = max(self._down_free_at, trio.current_time()) + len(pending) / bps
            await self._stream.send_all(pending)
            pending = b""
        reply.end()
        if pending:
            await self._stream.send_all(pending)
        if mishap.cut is None:
            self._h11.send(h11.EndOfMessage())
            return
        if mishap.cut is Cut.STALL:
            raise Stall
        if mishap.cut is Cut.RESET:
            await self._wait_acknowledged()
            raise Reset
        raise Disconnected

    async def _read(self, reply: Reply, position: int, size: int) -> bytes:
        if reply.fd < 0:
            return reply.body[position : position + size]
        offset = reply.offset + position
        buffer = bytearray(size)
        try:
            done = os.preadv(reply.fd, [buffer], offset, os.RWF_NOWAIT)  # what is in the page cache needs no thread
        except OSError:
            done = 0
        data = bytes(buffer) if done == size else await trio.to_thread.run_sync(os.pread, reply.fd, size, offset)
        if len(data) != size:
            raise Disconnected  # the file on disk was cut by somebody: a short body is all that can be said
        return data

    async def _send(self, event: Any) -> None:
        data = self._h11.send(event)
        if data:
            await self._stream.send_all(data)

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        """Answer what is not HTTP, as far as h11 still allows it."""
        with contextlib.suppress(h11.LocalProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            await self._send(
                h11.Response(
                    status_code=error.error_status_hint,
                    headers=[("content-length", "0"), ("connection", "close")],
                )
            )
            await self._send(h11.EndOfMessage())

    async def _read_until_closed(self) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self._stream.receive_some(CHUNK_SIZE):
                pass

    async def _wait_acknowledged(self) -> None:
        """Let the client receive what was sent before a reset would throw it away; at most a second."""
        sock = self._stream.socket
        with trio.move_on_after(1.0):
            while _unsent(sock):  # noqa: ASYNC110  (the kernel has no event for it)
                await trio.sleep(0.001)


def _slice(bps: float) -> int:
    """How many bytes to move at once on a paced line: about 20 pieces a second."""
    return max(1024, min(CHUNK_SIZE, int(bps / 20)))


def _unsent(sock: trio.socket.SocketType) -> int:
    """Bytes that the peer has not acknowledged (Linux: SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def matches(text: str, pattern: str) -> bool:
    """Whether a glob (``*``, ``?``, ``[]``; case matters) matches the whole text."""
    return fnmatchcase(text, pattern)
