"""FIFOs, sockets, device nodes; locks; programs; what the kernel does with all of them on a mount."""

from __future__ import annotations

import fcntl
import socket
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.support import KINDS, OTHER, fails, get, opened, outcome, put, user
from tests.posix.system import os

# ---------------------------------------------------------------- special files


@pytest.mark.kernel("pipes and sockets")
def test_fifo(root: Path) -> None:
    """A FIFO connects a writer and a reader, and keeps its mode."""
    os.mkfifo("p", 0o640)
    assert stat.filemode(os.stat("p").st_mode) == "prw-r-----"
    with fails("ENXIO"):
        os.open("p", os.O_WRONLY | os.O_NONBLOCK)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(get("p")))
    reader.start()
    with opened("p", os.O_WRONLY) as fd:
        os.write(fd, b"through the pipe")
    reader.join()
    assert got == [b"through the pipe"]
    assert os.stat("p").st_size == 0


@pytest.mark.kernel("pipes and sockets")
def test_socket(root: Path) -> None:
    """A socket is bound, connected to by its path, refused when nobody listens, and removed."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        assert stat.S_ISSOCK(os.stat("s").st_mode)
        client.connect("s")
        connection, _ = server.accept()
        client.sendall(b"hello")
        assert connection.recv(9) == b"hello"
        connection.close()
    with socket.socket(socket.AF_UNIX) as client, fails("ECONNREFUSED"):
        client.connect("s")
    with fails("ENXIO"):
        os.open("s", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server, fails("EADDRINUSE"):
        server.bind("s")
    os.rename("s", "t")
    os.unlink("t")
    assert os.listdir() == []


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK])
@pytest.mark.parametrize("number", [(1, 3), (8, 0), (250, 1000), (4095, 255)])
def test_device_node(root: Path, kind: int, number: tuple[int, int]) -> None:
    """A device node has its type, mode and number, also under another name."""
    os.mknod("n", kind | 0o640, os.makedev(*number))
    os.rename("n", "m")
    found = os.stat("m")
    assert stat.S_IFMT(found.st_mode) == kind and stat.S_IMODE(found.st_mode) == 0o640
    assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == number
    assert found.st_size == 0


def test_device_node_needs_root(root: Path) -> None:
    """Only root makes device nodes; everybody makes FIFOs and regular files with mknod."""
    os.chmod(".", 0o777)
    with user(OTHER):
        with fails("EPERM"):
            os.mknod("n", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with fails("EPERM"):
            os.mknod("d", stat.S_IFDIR | 0o777)
        os.mknod("p", stat.S_IFIFO | 0o600)
        os.mknod("f", stat.S_IFREG | 0o600)
        os.mknod("g", 0o600)
    assert [stat.filemode(os.stat(name).st_mode)[0] for name in ("p", "f", "g")] == ["p", "-", "-"]


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "dir", "symlink"])
def test_truncate_what_is_no_file(root: Path, kind: str) -> None:
    """truncate of anything but a file fails."""
    KINDS[kind]("x")
    with fails({"dir": "EISDIR", "symlink": "ENOENT"}.get(kind, "EINVAL")):
        os.truncate("x", 0)


# ---------------------------------------------------------------- locks


def _other_process(call: Callable[[], object]) -> str:
    """What a call in another process comes to: 'ok', or its errno."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = outcome(call)
            os.write(write, (result if isinstance(result, str) else "ok").encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read, "rb") as file:
        return file.read().decode()


def _try(lock: Callable[..., object], kind: int) -> Callable[[], object]:
    def attempt() -> None:
        with opened("f") as fd:
            lock(fd, kind | fcntl.LOCK_NB)

    return attempt


@pytest.mark.kernel("locks")
@pytest.mark.parametrize("lock", [fcntl.flock, fcntl.lockf])
def test_locks(root: Path, lock: Callable[..., object]) -> None:
    """A lock keeps others out: an exclusive one everybody, a shared one who wants it alone; a close ends it."""
    put("f")
    exclusive, shared = _try(lock, fcntl.LOCK_EX), _try(lock, fcntl.LOCK_SH)
    with opened("f") as fd:
        lock(fd, fcntl.LOCK_EX)
        assert [_other_process(exclusive), _other_process(shared)] == ["EAGAIN", "EAGAIN"]
        lock(fd, fcntl.LOCK_SH)
        assert [_other_process(exclusive), _other_process(shared)] == ["EAGAIN", "ok"]
        lock(fd, fcntl.LOCK_UN)
        assert _other_process(exclusive) == "ok"
        lock(fd, fcntl.LOCK_EX)
    assert _other_process(exclusive) == "ok"


@pytest.mark.kernel("locks")
def test_flock_belongs_to_the_open(root: Path) -> None:
    """Two opens of one process keep each other out by flock, a dup does not; an fcntl lock is the process's."""
    put("f")
    with opened("f") as one, opened("f") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with fails("EAGAIN"):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        copy = os.dup(one)
        fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(copy)
        fcntl.lockf(one, fcntl.LOCK_EX)
        fcntl.lockf(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert _other_process(_try(fcntl.lockf, fcntl.LOCK_EX)) == "EAGAIN"


@pytest.mark.kernel("locks")
def test_range_locks(root: Path) -> None:
    """fcntl locks hold for their bytes only, behind the end of the file too."""
    put("f")

    def attempt(start: int) -> Callable[[], object]:
        def lock() -> None:
            with opened("f") as fd:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)

        return lock

    with opened("f") as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 100)
        assert [_other_process(attempt(start)) for start in (0, 90, 91, 109, 110)] == [
            "ok",
            "ok",
            "EAGAIN",
            "EAGAIN",
            "ok",
        ]
        fcntl.lockf(fd, fcntl.LOCK_UN, 5, 100)
        assert _other_process(attempt(91)) == "ok"


@pytest.mark.kernel("locks")
def test_lock_needs_the_right_handle(root: Path) -> None:
    """An exclusive fcntl lock needs a writable handle, a shared one a readable."""
    put("f")
    with opened("f", os.O_RDONLY) as fd, fails("EBADF"):
        fcntl.lockf(fd, fcntl.LOCK_EX)
    with opened("f", os.O_WRONLY) as fd, fails("EBADF"):
        fcntl.lockf(fd, fcntl.LOCK_SH)


# ---------------------------------------------------------------- programs


@pytest.mark.kernel("programs")
def test_program_in_the_directory(root: Path) -> None:
    """A script is run from there; while a program's own file is busy it is ETXTBSY to write it; without x it is EACCES."""
    put("script", b"#!/bin/sh\necho run $1\n", mode=0o755)
    assert subprocess.run(["./script", "me"], capture_output=True, check=True).stdout == b"run me\n"
    os.chmod("script", 0o644)
    with fails("EACCES"):
        subprocess.run(["./script"], check=True)
    with open("/bin/sleep", "rb") as file:
        put("program", file.read(), mode=0o755)
    with subprocess.Popen(["./program", "60"]) as process:
        try:
            with fails("ETXTBSY"):
                os.open("program", os.O_WRONLY)
            os.unlink("program")
        finally:
            process.kill()


def test_statfs(root: Path) -> None:
    """statfs has room, names a block size and the longest name; the same for every path and handle."""
    put("f")
    found = os.statvfs(".")
    assert found.f_bsize > 0 and found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert found.f_namemax == 255
    assert found.f_files >= found.f_ffree > 0
    with opened("f") as fd:
        for other in (os.statvfs("f"), os.fstatvfs(fd)):
            assert (other.f_bsize, other.f_blocks, other.f_namemax) == (found.f_bsize, found.f_blocks, found.f_namemax)


def test_numbers(root: Path) -> None:
    """All objects are on one device, each with its own number, kept by changes of any kind."""
    for name, make in KINDS.items():
        make(name)
    found = {name: os.lstat(name) for name in KINDS}
    assert len({each.st_ino for each in found.values()}) == len(KINDS)
    assert {each.st_dev for each in found.values()} == {os.stat(".").st_dev}
    os.chmod("file", 0o600)
    put("file", b"other")
    os.rename("file", "moved")
    assert os.stat("moved").st_ino == found["file"].st_ino


def test_blocks(root: Path) -> None:
    """A file of n bytes has blocks enough for them, once it is on the disk."""
    put("f", b"x" * 10_000)
    with opened("f") as fd:
        os.fsync(fd)
    found = os.stat("f")
    assert 20 <= found.st_blocks <= 24 and found.st_blksize >= 512
