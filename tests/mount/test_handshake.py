"""The kernel's first message and its answer: what is asked for besides, and that the rest goes on as it was."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from b2fs.frontends.busy_poll import BusyPoll
from b2fs.frontends.handshake import Handshake, asking_for_more
from tests.devbucket_fixture import DevBucket
from tests.mount.support import Mount

INIT, LOOKUP = 26, 1
KILLPRIV_V2, OTHER_FLAG, WANTED_BY_LIBFUSE = 1 << 28, 1 << 3, 1 << 5


def message(opcode: int, flags: int) -> bytes:
    """fuse_in_header and the beginning of fuse_init_in, field by field as in linux/fuse.h."""
    header = struct.pack("<IIQQIIIHH", 0, opcode, 2, 0, 0, 0, 0, 0, 0)
    return header + struct.pack("<IIIII", 7, 45, 131072, flags, 0)


def answer(flags: int, error: int = 0) -> bytes:
    """fuse_out_header and fuse_init_out."""
    return (
        struct.pack("<IiQ", 80, error, 2) + struct.pack("<IIIIHHII", 7, 31, 131072, flags, 0, 0, 1 << 20, 1) + bytes(32)
    )


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end, and what stands for /dev/fuse."""
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        kernel.setblocking(False)
        yield kernel, device


def test_what_the_kernel_offers_is_asked_for() -> None:
    """And nothing else of the answer changes."""
    changed = asking_for_more(message(INIT, KILLPRIV_V2 | OTHER_FLAG), answer(WANTED_BY_LIBFUSE))
    assert changed == answer(WANTED_BY_LIBFUSE | KILLPRIV_V2)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        pytest.param(message(INIT, OTHER_FLAG), answer(0), id="not offered"),
        pytest.param(message(LOOKUP, KILLPRIV_V2), answer(0), id="another message"),
        pytest.param(message(INIT, KILLPRIV_V2), answer(0, -errno.EPROTO), id="refused"),
        pytest.param(message(INIT, KILLPRIV_V2), answer(0)[:24], id="a short answer"),
        pytest.param(message(INIT, KILLPRIV_V2)[:48], answer(0), id="a short message"),
    ],
)
def test_anything_else_stays_as_it_is(asked: bytes, answered: bytes) -> None:
    assert asking_for_more(asked, answered) == answered


async def test_the_first_message_and_its_answer_pass_by(device: tuple[socket.socket, socket.socket]) -> None:
    """Then the device is itself again, and nobody stands in between; no descriptor is left."""
    kernel, fuse = device
    requests = BusyPoll()
    requests.lowlevel = Handshake(requests)
    before = os.listdir("/proc/self/fd")
    kernel.send(message(INIT, KILLPRIV_V2))
    await requests.lowlevel.wait_readable(fuse.fileno())
    assert os.read(fuse.fileno(), 65536) == message(INIT, KILLPRIV_V2)
    os.write(fuse.fileno(), answer(WANTED_BY_LIBFUSE))
    kernel.send(b"a request")
    await requests.lowlevel.wait_readable(fuse.fileno())
    assert kernel.recv(65536) == answer(WANTED_BY_LIBFUSE | KILLPRIV_V2)
    assert os.read(fuse.fileno(), 65536) == b"a request"
    assert requests.lowlevel is requests
    os.write(fuse.fileno(), b"as it is")
    assert kernel.recv(65536) == b"as it is"
    assert os.listdir("/proc/self/fd") == before


async def test_no_answer_to_the_first_message(device: tuple[socket.socket, socket.socket]) -> None:
    """The mount goes on with what comes next; the kernel is told nothing in anybody's name."""
    kernel, fuse = device
    requests = BusyPoll()
    requests.lowlevel = Handshake(requests)
    kernel.send(message(INIT, KILLPRIV_V2))
    await requests.lowlevel.wait_readable(fuse.fileno())
    os.read(fuse.fileno(), 65536)
    kernel.send(b"a request")
    await requests.lowlevel.wait_readable(fuse.fileno())
    assert os.read(fuse.fileno(), 65536) == b"a request"
    with pytest.raises(BlockingIOError):
        kernel.recv(1)


async def test_unmounted_before_the_first_message(
    device: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyfuse3 meets the same error at the same descriptor, and ends as it does without us."""
    kernel, fuse = device
    requests = BusyPoll()
    requests.lowlevel = Handshake(requests)
    kernel.send(b"x")

    def gone(*_: int) -> bytes:
        raise OSError(errno.ENODEV, "gone")

    inode, before = os.fstat(fuse.fileno()).st_ino, os.listdir("/proc/self/fd")
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", gone)
        await requests.lowlevel.wait_readable(fuse.fileno())
    assert os.fstat(fuse.fileno()).st_ino == inode
    assert os.listdir("/proc/self/fd") == before


def test_the_kernel_asks_for_capabilities_once(devbucket: DevBucket, tmp_path: Path) -> None:
    """Not before each write: that would be two requests for one."""
    log = tmp_path / "asked"
    log.touch()
    mount = Mount(devbucket)
    mount.program = (sys.executable, "-m", "tests.mount.asked", str(log))
    try:
        mount.start()
        with open(mount.path / "f", "wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"x" * 100)
        assert log.read_text().split() == ["security.capability"]
        mount.stop()
    finally:
        mount.remove()
