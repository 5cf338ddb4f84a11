"""Open flags, and what a handle may do."""

from __future__ import annotations

import fcntl
import mmap
from pathlib import Path

import pytest

from tests.posix.support import OLD_NS, OTHER, fails, get, opened, outcome, put, user
from tests.posix.system import os

FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND])
def test_trunc_empties(root: Path, flags: int) -> None:
    """O_TRUNC leaves nothing of the old content, whatever the access mode, and the times say so."""
    put("f", b"old content")
    os.utime("f", ns=(OLD_NS, OLD_NS))
    with opened("f", flags | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
    assert get("f") == b""
    assert os.stat("f").st_mtime_ns > OLD_NS


def test_trunc_of_an_empty_file_changes_its_times(root: Path) -> None:
    """O_TRUNC marks the times of a file that is empty already."""
    put("f", b"")
    os.utime("f", ns=(OLD_NS, OLD_NS))
    with opened("f", os.O_WRONLY | os.O_TRUNC):
        assert os.stat("f").st_mtime_ns > OLD_NS


@pytest.mark.parametrize(("mode", "left"), [(0o6777, 0o777), (0o4755, 0o755), (0o2775, 0o775), (0o1777, 0o1777)])
@pytest.mark.parametrize("who", [0, OTHER])
def test_trunc_clears_set_id_bits(root: Path, mode: int, left: int, who: int) -> None:
    """O_TRUNC by somebody without privileges takes the set-id bits away; by root it does not."""
    put("f")
    os.chmod("f", mode | 0o002)
    if who == 0:
        os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    else:
        with user(who):
            os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
    assert os.stat("f").st_mode & 0o7777 == (left if who else mode) | 0o002


def test_truncated_under_other_handles(root: Path) -> None:
    """Handles that were open before see the file empty, and write at their own offsets over a hole."""
    put("f", b"0123456789")
    with opened("f") as early:
        assert os.read(early, 5) == b"01234"
        os.close(os.open("f", os.O_WRONLY | os.O_TRUNC))
        assert os.read(early, 5) == b""
        assert os.write(early, b"56") == 2
        assert get("f") == bytes(5) + b"56"


def test_append_goes_to_the_end_of_all_handles(root: Path) -> None:
    """O_APPEND writes at the end as it is then, through several handles, wherever they stand; pwrite appends too."""
    put("f", b"0")
    with (
        opened("f", os.O_RDWR | os.O_APPEND) as one,
        opened("f", os.O_WRONLY | os.O_APPEND) as two,
        opened("f") as plain,
    ):
        os.write(one, b"1")
        os.write(two, b"2")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"3")
        os.pwrite(plain, b"4", 10)
        os.write(two, b"5")
        os.ftruncate(plain, 3)
        os.write(one, b"6")
        assert os.pwrite(two, b"7", 0) == 1
        assert os.lseek(one, 0, os.SEEK_CUR) == 4
    assert get("f") == b"01267"


@pytest.mark.kernel("fcntl")
def test_append_can_be_switched(root: Path) -> None:
    """F_SETFL turns O_APPEND on and off on an open handle."""
    put("f", b"abc")
    with opened("f", os.O_WRONLY) as fd:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
        os.write(fd, b"d")
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"X")
    assert get("f") == b"Xbcd"


@pytest.mark.parametrize("target", ["nowhere", "file", "directory", "link"])
def test_exclusive_create_on_a_link(root: Path, target: str) -> None:
    """O_CREAT|O_EXCL never follows a symlink, not even a dangling one."""
    put("file")
    os.mkdir("directory")
    os.symlink(target, "link")
    with fails("EEXIST"):
        os.open("link", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    assert not os.path.exists("nowhere")


def test_create_through_a_dangling_link(root: Path) -> None:
    """O_CREAT without O_EXCL makes the file that the link points to."""
    os.symlink("made", "link")
    with opened("link", os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"x")
    assert get("made") == b"x" and os.readlink("link") == "made"


@pytest.mark.parametrize("mode", [0, 0o200, 0o400, 0o444])
@pytest.mark.parametrize("access", FLAGS)
def test_creator_may_do_what_he_asked_for(root: Path, mode: int, access: str) -> None:
    """The mode of a new file does not limit the handle that made it; the next open it does."""
    os.chmod(".", 0o777)
    with user(OTHER):
        with opened("f", os.O_CREAT | os.O_EXCL | FLAGS[access], mode) as fd:
            read, written = outcome(lambda: os.read(fd, 1)), outcome(lambda: os.write(fd, b"x"))
        assert (read, written) == (b"" if "r" in access else "EBADF", 1 if "w" in access else "EBADF")
        allowed = {"r": mode & 0o400, "w": mode & 0o200, "rw": False}[access]
        again = outcome(lambda: os.close(os.open("f", FLAGS[access])))
    assert again is None if allowed else again == "EACCES"


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o777, 0o666, 0o600, 0o7777])
def test_umask(root: Path, mask: int, mode: int) -> None:
    """A new object's mode is what was asked for without the umask."""
    os.umask(mask)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, mode))
    os.mkdir("d", mode)
    os.mkfifo("p", mode)
    assert os.stat("f").st_mode & 0o7777 == mode & ~mask
    assert os.stat("d").st_mode & 0o7777 == mode & ~mask & 0o1777
    assert os.stat("p").st_mode & 0o7777 == mode & ~mask & 0o7777


@pytest.mark.parametrize(
    ("name", "call", "error"),
    [
        ("r", lambda fd: os.write(fd, b"x"), "EBADF"),
        ("r", lambda fd: os.ftruncate(fd, 0), "EINVAL"),
        ("r", lambda fd: os.pwrite(fd, b"x", 0), "EBADF"),
        pytest.param("r", lambda fd: os.posix_fallocate(fd, 0, 10), "EBADF", marks=pytest.mark.kernel("fallocate")),
        ("w", lambda fd: os.read(fd, 1), "EBADF"),
        ("w", lambda fd: os.pread(fd, 1, 0), "EBADF"),
        ("rw", lambda fd: os.pread(fd, 1, -1), "EINVAL"),
        ("rw", lambda fd: os.pwrite(fd, b"x", -1), "EINVAL"),
        ("rw", lambda fd: os.ftruncate(fd, -1), "EINVAL"),
        ("rw", lambda fd: os.lseek(fd, -1, os.SEEK_SET), "EINVAL"),
        ("rw", lambda fd: os.lseek(fd, -100, os.SEEK_END), "EINVAL"),
        ("rw", lambda fd: os.lseek(fd, 0, 99), "EINVAL"),
        ("rw", lambda fd: os.lseek(fd, 7, os.SEEK_DATA), "ENXIO"),
        ("rw", lambda fd: os.lseek(fd, 7, os.SEEK_HOLE), "ENXIO"),
        ("rw", lambda fd: os.listdir(fd), "ENOTDIR"),
        ("rw", lambda fd: os.fchdir(fd), "ENOTDIR"),
    ],
)
def test_handle_that_may_not(root: Path, name: str, call: object, error: str) -> None:
    """What a handle was not opened for, or makes no sense, has the errno of the manual, and changes nothing."""
    put("f")
    with opened("f", FLAGS[name]) as fd, fails(error):
        call(fd)  # type: ignore[operator]
    assert get("f") == b"content"


@pytest.mark.parametrize(
    "call",
    [os.fsync, os.fdatasync, os.fstat, os.fstatvfs, lambda fd: os.fchmod(fd, 0o600), lambda fd: os.fchown(fd, 1, 1)],
)
@pytest.mark.parametrize("access", FLAGS)
def test_every_handle_may(root: Path, call: object, access: str) -> None:
    """fsync, fstat, fchmod and the like work on each handle, a read-only one too."""
    put("f")
    with opened("f", FLAGS[access]) as fd:
        call(fd)  # type: ignore[operator]


@pytest.mark.parametrize("call", [os.fsync, os.fdatasync, os.fstat, os.fstatvfs, os.fchdir, os.listdir])
def test_every_directory_handle_may(root: Path, call: object) -> None:
    """fsync and the like work on a directory."""
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        call(fd)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda fd: os.read(fd, 1), "EISDIR"),
        (lambda fd: os.write(fd, b"x"), "EBADF"),
        (lambda fd: os.ftruncate(fd, 0), "EINVAL"),
    ],
)
def test_directory_handle_may_not(root: Path, call: object, error: str) -> None:
    """A directory is not read, written or truncated."""
    with opened(".", os.O_RDONLY) as fd, fails(error):
        call(fd)  # type: ignore[operator]


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_sync_writes(root: Path, flag: int) -> None:
    """Writes with O_SYNC and O_DSYNC arrive as all others do."""
    with opened("f", os.O_CREAT | os.O_RDWR | flag) as fd:
        assert [os.write(fd, b"abc") for _ in range(3)] == [3, 3, 3]
    assert get("f") == b"abcabcabc"


@pytest.mark.kernel("fcntl")
@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_APPEND, os.O_NONBLOCK])
def test_flags_of_a_handle(root: Path, flag: int) -> None:
    """F_GETFL gives back what a handle was opened with."""
    put("f")
    with opened("f", os.O_RDWR | flag) as fd:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & flag == flag


def test_direct_io(root: Path) -> None:
    """O_DIRECT reads and writes aligned blocks."""
    with opened("f", os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
        block = mmap.mmap(-1, 8192)
        block.write(b"a" * 4096 + b"b" * 4096)
        assert os.pwritev(fd, [block], 4096) == 8192
        back = mmap.mmap(-1, 16384)
        assert os.preadv(fd, [back], 0) == 12288
        assert back[:12288] == bytes(4096) + b"a" * 4096 + b"b" * 4096
    assert get("f") == bytes(4096) + b"a" * 4096 + b"b" * 4096


def test_path_handle(root: Path) -> None:
    """O_PATH names an object without opening it: fstat and *at calls work, reading does not; it outlives the name."""
    put("f")
    with opened("f", os.O_PATH) as fd:
        with fails("EBADF"):
            os.read(fd, 1)
        with fails("EBADF"):
            os.fchmod(fd, 0o600)
        os.rename("f", "g")
        assert os.fstat(fd).st_ino == os.stat("g").st_ino
        assert get(f"/proc/self/fd/{fd}") == b"content"
    os.mkdir("d")
    with opened("d", os.O_PATH | os.O_DIRECTORY) as fd:
        os.mkdir("in", dir_fd=fd)
        os.rename("d", "e")
        os.mkdir("in2", dir_fd=fd)
    assert sorted(os.listdir("e")) == ["in", "in2"]


def test_two_handles_see_each_other(root: Path) -> None:
    """What one handle wrote the other reads at once; positions are their own, but shared after dup."""
    with opened("f", os.O_CREAT | os.O_RDWR) as one, opened("f") as two:
        os.write(one, b"abc")
        assert os.read(two, 2) == b"ab"
        os.pwrite(two, b"X", 2)
        assert os.pread(one, 9, 0) == b"abX"
        other = os.dup(two)
        assert os.read(other, 9) == b"X" and os.read(two, 9) == b""
        os.close(other)
        os.write(two, b"end")
    assert get("f") == b"abXend"


def test_mode_changed_under_a_handle(root: Path) -> None:
    """A handle keeps the rights that it was opened with."""
    put("f", mode=0o666)
    with user(OTHER), opened("f") as fd:
        os.seteuid(0)
        os.chmod("f", 0)
        os.seteuid(OTHER)
        assert os.read(fd, 3) == b"con"
        assert os.write(fd, b"X") == 1
        with fails("EACCES"):
            os.open("f", os.O_RDONLY)
    assert get("f") == b"conXent"
