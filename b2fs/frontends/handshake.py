"""What the kernel is asked for beyond what pyfuse3 asks: added to the answer to its first message.

Before each write(2) the kernel asks for `security.capability` (a GETXATTR), unless the file system has promised to take
set-id bits away itself: FUSE_HANDLE_KILLPRIV_V2, which neither pyfuse3 3.5 nor libfuse 3.14 can say. We keep that promise
(`engine.filesystem`), so we say it: a socket pair stands in the place of /dev/fuse for this one message, INIT, and
for its answer.

Rules
  Only what the kernel has offered is asked for. Whatever is not as expected goes on as pyfuse3 has it, one request more a write.
  Layouts and numbers are those of linux/fuse.h, which does not change them.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from typing import Any

import trio

from b2fs.frontends.busy_poll import BusyPoll

log = logging.getLogger(__name__)

_INIT = 26
"""FUSE_INIT, the opcode of the first message."""
_HANDLE_KILLPRIV_V2 = 1 << 28
"""Since Linux 5.12."""
_MOST = 65536
"""Bytes of a message here; the kernel wants room for 8 KiB at the least, whatever it has to say."""
_ASKED = struct.Struct("<4xI32x12xI")
"""Of INIT: fuse_in_header (opcode at 4), then fuse_init_in (flags at 12)."""
_ANSWERED = struct.Struct("<4xi8x12xI")
"""Of its answer: fuse_out_header (error at 4), then fuse_init_out (flags at 12)."""
_FLAGS_AT = _ANSWERED.size - 4


class Handshake:
    """In the place of trio.lowlevel for pyfuse3, until the kernel's first message is answered; then `requests` is."""

    def __init__(self, requests: BusyPoll) -> None:
        self._requests = requests
        self._kernel = -1
        """/dev/fuse, while a socket has its number."""
        self._asked = b""
        self._library: socket.socket | None = None
        """What libfuse is told and says, meanwhile."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._requests, name)

    async def wait_readable(self, descriptor: int) -> None:
        """The first time: have the first message read from a socket. The second time: its answer is there."""
        if self._library is None:
            await trio.lowlevel.wait_readable(descriptor)
            self._step_between(descriptor)
            return
        self._step_aside(descriptor, self._library)
        self._requests.lowlevel = self._requests
        await self._requests.wait_readable(descriptor)

    def _step_between(self, descriptor: int) -> None:
        try:
            self._asked = os.read(descriptor, _MOST)
        except OSError:
            return  # unmounted already: libfuse will find the same
        self._kernel = os.dup(descriptor)
        self._library, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            os.dup2(theirs.fileno(), descriptor, inheritable=False)
        self._library.send(self._asked)

    def _step_aside(self, descriptor: int, library: socket.socket) -> None:
        os.dup2(self._kernel, descriptor, inheritable=False)
        os.close(self._kernel)
        with library:
            answer = library.recv(_MOST)  # its other end is closed by now: this does not wait
        if not answer:
            log.debug("no answer to the kernel's first message")
            return
        try:
            os.write(descriptor, asking_for_more(self._asked, answer))
        except OSError as error:
            log.debug("the kernel did not take the answer to its first message: %s", error)


def asking_for_more(asked: bytes, answer: bytes) -> bytes:
    """The answer to a message of the kernel, with what we want besides, if it is INIT and offers that."""
    if len(asked) < _ASKED.size or len(answer) < _ANSWERED.size:
        return answer
    opcode, offered = _ASKED.unpack_from(asked)
    error, flags = _ANSWERED.unpack_from(answer)
    if opcode != _INIT or error:
        return answer
    flags |= offered & _HANDLE_KILLPRIV_V2
    return answer[:_FLAGS_AT] + struct.pack("<I", flags) + answer[_ANSWERED.size :]
