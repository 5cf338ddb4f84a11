"""What the daemon and its transfer process say to each other, and how it is framed.

Rules
  A frame is four bytes of length, big-endian, then one msgpack message. Daemon to transfer process: first
  `Settings`, then `Ask`. The other way: `Tell`, in the order in which calls end, and one per heartbeat.
  Messages name files; the bytes of files never pass here.
  An `Ask` is answered by one `Tell` with its id. `Moving` may come before it, any number of times.

Units as in `core.bucket`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from b2fs.core.bucket import Base, Identity, Page, Requests, Version
from b2fs.errors import B2fsError, BucketError, Damaged, Fault, NoSpace

MAX_FRAME = 64 * 1024 * 1024
"""A listing of 1000 rows with full headers has 10 MB; anything longer is a broken stream."""

_LENGTH = 4


# ------------------------------------------------------------------------------------------ requests


class Connect(msgspec.Struct, frozen=True, tag=True):
    pass


class ListPage(msgspec.Struct, frozen=True, tag=True):
    prefix: str
    start: str
    delimiter: str
    limit: int


class Fetch(msgspec.Struct, frozen=True, tag=True):
    file_id: str
    path: str
    offset: int
    length: int
    sha1: str


class Upload(msgspec.Struct, frozen=True, tag=True):
    key: str
    path: str
    size: int
    sha1: str
    info: dict[str, str]
    content_type: str
    resume: bool
    base: Base | None = None


class Copy(msgspec.Struct, frozen=True, tag=True):
    file_id: str
    key: str
    size: int
    info: dict[str, str]
    content_type: str


class Hide(msgspec.Struct, frozen=True, tag=True):
    key: str


class Head(msgspec.Struct, frozen=True, tag=True):
    key: str


Request = Connect | ListPage | Fetch | Upload | Copy | Hide | Head


class Ask(msgspec.Struct, frozen=True):
    """One call. `id` is above 0 and never used again."""

    id: int
    request: Request


# ------------------------------------------------------------------------------------------- answers


class Done(msgspec.Struct, frozen=True, tag=True):
    """The call succeeded. At most one field is set, which one follows from the request."""

    identity: Identity | None = None
    page: Page | None = None
    version: Version | None = None
    """None answers a `Head` of a name that has no visible version."""
    hidden_ms: int = 0


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The call raised. `fault` is a `Fault`, or one of the two names of local failures."""

    fault: str
    message: str
    retry_after_s: float = 0.0

    NO_SPACE = "no-space"
    DAMAGED = "damaged"

    @classmethod
    def of(cls, error: B2fsError) -> Failed:
        if isinstance(error, BucketError):
            return cls(error.fault.value, str(error), error.retry_after_s)
        return cls(cls.NO_SPACE if isinstance(error, NoSpace) else cls.DAMAGED, str(error))

    def error(self) -> B2fsError:
        """The error to raise at the other end: same type, same message."""
        if self.fault == self.NO_SPACE:
            return NoSpace(self.message)
        if self.fault == self.DAMAGED:
            return Damaged(self.message)
        return BucketError(Fault(self.fault), self.message, self.retry_after_s)


class Moving(msgspec.Struct, frozen=True, tag=True):
    """The call goes on and has just made progress (one more part of a large file)."""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Nothing happened; sent every `Settings.heartbeat_s`, with id 0."""


Answer = Done | Failed | Moving | Alive


class Tell(msgspec.Struct, frozen=True):
    id: int
    answer: Answer
    requests: Requests
    """Everything that this process has sent to B2 so far."""


# ------------------------------------------------------------------------------------------- framing

M = TypeVar("M")

_encoder = msgspec.msgpack.Encoder()


def frame(message: msgspec.Struct) -> bytes:
    """The frame of one message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH, "big") + body


class Deframer:
    """Cuts a byte stream into the bodies of its frames. Does no I/O.

    Raises ValueError for a frame that is longer than `MAX_FRAME`; the stream is then useless.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that are complete with `data`, in order."""
        self._buffer += data
        bodies = []
        start = 0
        while len(self._buffer) - start >= _LENGTH:
            length = int.from_bytes(self._buffer[start : start + _LENGTH], "big")
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            end = start + _LENGTH + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH : end]))
            start = end
        del self._buffer[:start]
        return bodies
