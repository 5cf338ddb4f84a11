"""Where b2fs differs from ext4 on purpose: what each of the two does. SEMANTICS.md has the reasons.

Rules
  `expect` says what a call comes to on the plain directory and on the mount, and so on the engine; a deviation that
  went away fails here.
  ext4 is what is deviated from: a plain directory on another file system is not looked at.
"""

from __future__ import annotations

import fcntl
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.support import (
    GROUP,
    KINDS,
    OLD_NS,
    OTHER,
    RENAME_WHITEOUT,
    fallocate,
    get,
    make_null,
    opened,
    outcome,
    put,
    renameat2,
    user,
)
from tests.posix.system import os

Expect = Callable[..., None]
_FS_IOC_GETFLAGS = 0x80086601
_FS_IOC_FIEMAP = 0xC020660B
_TRIES = 200


@pytest.fixture
def expect(root: Path, target: str) -> Expect:
    kind = ["stat", "-f", "-c", "%T", str(root)]
    is_ext4 = target == "plain" and subprocess.check_output(kind, text=True).strip() == "ext2/ext3"  # and ext4

    def check(found: Any, *, plain: Any, mount: Any) -> None:
        if target != "plain":
            assert found == mount
        elif is_ext4:
            assert found == plain

    return check


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x01", "\x7f", "tail\r"])
@pytest.mark.parametrize("make", [KINDS[kind] for kind in ("file", "dir", "fifo", "symlink")])
def test_control_characters(expect: Expect, name: str, make: Callable[[str], object]) -> None:
    """B2 takes no control characters in names: EINVAL; looking for such a name is ENOENT."""
    expect(outcome(lambda: make(name)), plain=None, mount="EINVAL")
    expect(os.path.lexists(name), plain=True, mount=False)
    put("f")
    expect(outcome(lambda: os.rename("f", "new\n")), plain=None, mount="EINVAL")


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"\xed\xa0\x80", b"\xc0\xaf"])
def test_names_that_are_not_utf8(expect: Expect, name: bytes) -> None:
    """Names at B2 are UTF-8: others are EINVAL, and so are such targets of symlinks."""
    expect(outcome(lambda: os.mkdir(name)), plain=None, mount="EINVAL")
    expect(os.path.exists(name), plain=True, mount=False)
    expect(outcome(lambda: os.symlink(name, b"link")), plain=None, mount="EINVAL")


def test_the_name_of_a_marker(expect: Expect) -> None:
    """`.bzEmpty` is the object that a directory is kept in: EINVAL."""
    expect(outcome(lambda: put(".bzEmpty")), plain=None, mount="EINVAL")
    put("f")
    expect(outcome(lambda: os.rename("f", ".bzEmpty")), plain=None, mount="EINVAL")


@pytest.mark.parametrize("length", [251, 255])
def test_longest_name(expect: Expect, length: int) -> None:
    """A new name has 250 bytes at most, not 255."""
    expect(outcome(lambda: put("n" * length)), plain=None, mount="ENAMETOOLONG")
    put("f")
    expect(outcome(lambda: os.rename("f", "n" * length)), plain=None, mount="ENAMETOOLONG")


def test_longest_path(expect: Expect) -> None:
    """An object's name, which is the path below the mount, has 1000 bytes at most: deeper is ENAMETOOLONG."""
    part = "d" * 240
    os.makedirs("/".join([part] * 3))
    expect(outcome(lambda: os.makedirs("/".join([part] * 5))), plain=None, mount="ENAMETOOLONG")
    expect(outcome(lambda: put("/".join([part] * 3 + ["n" * 250, "n" * 20]))), plain="ENOENT", mount="ENOENT")


def test_largest_file(expect: Expect) -> None:
    """A file has 10 TB at most at B2: more is EFBIG."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        expect(outcome(lambda: os.ftruncate(fd, 10**13 + 1)), plain=None, mount="EFBIG")
        expect(outcome(lambda: os.pwrite(fd, b"x", 10**13)), plain=1, mount="EFBIG")
        assert outcome(lambda: os.ftruncate(fd, 1 << 62)) == "EFBIG"
        expect(os.fstat(fd).st_size, plain=10**13 + 1, mount=0)
        os.ftruncate(fd, 0)


def test_reading_leaves_atime(expect: Expect) -> None:
    """A read changes no atime, as with the mount option noatime: it would cost an upload for each file read."""
    put("f")
    os.utime("f", ns=(OLD_NS, OLD_NS))
    get("f")
    expect(os.stat("f").st_atime_ns == OLD_NS, plain=False, mount=True)


@pytest.mark.kernel("devices")
def test_devices_are_not_opened(expect: Expect) -> None:
    """The mount is `nodev`: who can write into a bucket must not get at the machine's devices."""
    make_null("n")
    expect(outcome(lambda: os.close(os.open("n", os.O_RDWR))), plain=None, mount="EACCES")


@pytest.mark.kernel("programs")
def test_programs_do_not_become_another_user(expect: Expect) -> None:
    """The mount is `nosuid`: a set-id bit is kept, but no program runs with it."""
    with open("/usr/bin/id", "rb") as file:
        put("id", file.read())
    os.chown("id", OTHER, OTHER)
    os.chmod("id", 0o6755)
    ran = subprocess.run(["./id", "-u"], capture_output=True, check=True, text=True)
    expect(ran.stdout.strip(), plain=str(OTHER), mount="0")


@pytest.mark.kernel("files without a name")
def test_temporary_files_without_a_name(expect: Expect) -> None:
    """O_TMPFILE is not known to FUSE's library: ENOTSUP; programs fall back to a name."""

    def attempt() -> None:
        os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600))

    expect(outcome(attempt), plain=None, mount="ENOTSUP")


@pytest.mark.kernel("fallocate")
@pytest.mark.parametrize("mode", [0, 1, 2 | 1, 0x10, 8], ids=["", "keep size", "punch hole", "zero range", "collapse"])
def test_fallocate(expect: Expect, mode: int) -> None:
    """fallocate is ENOTSUP; posix_fallocate works all the same, by writing."""
    put("f", b"x" * 8192)
    with opened("f") as fd:
        expect(outcome(lambda: fallocate(fd, mode, 0, 4096)), plain=None, mount="ENOTSUP")


@pytest.mark.kernel("holes")
def test_holes_are_not_seen(expect: Expect) -> None:
    """All of a file is data for SEEK_DATA and SEEK_HOLE, and counts in its blocks."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 1 << 20)
        expect(outcome(lambda: os.lseek(fd, 0, os.SEEK_DATA)), plain="ENXIO", mount=0)
        expect(os.lseek(fd, 0, os.SEEK_HOLE), plain=0, mount=1 << 20)
        expect(os.fstat(fd).st_blocks, plain=0, mount=2048)


def test_size_of_directories(expect: Expect) -> None:
    """A directory has the size 0 and no blocks."""
    os.mkdir("d")
    expect((os.stat("d").st_size > 0), plain=True, mount=False)


@pytest.mark.parametrize("how", ["write", "truncate", "open"])
def test_setgid_without_group_execution(expect: Expect, how: str) -> None:
    """A change by a stranger leaves a setgid bit without group execution: FUSE does not say that it should go."""
    put("f")
    os.chown("f", 0, GROUP)
    os.chmod("f", 0o2666)
    with user(OTHER):
        if how == "truncate":
            os.truncate("f", 1)
        else:
            with opened("f", os.O_WRONLY | (os.O_TRUNC if how == "open" else 0)) as fd:
                os.write(fd, b"x")
    expect(bool(os.stat("f").st_mode & stat.S_ISGID), plain=False, mount=True)


def test_whiteouts(expect: Expect) -> None:
    """RENAME_WHITEOUT, which only overlay file systems use, is EINVAL."""
    put("f")
    expect(outcome(lambda: renameat2("f", "g", RENAME_WHITEOUT)), plain=None, mount="EINVAL")


@pytest.mark.parametrize(
    ("second", "limit", "ours"), [(1 << 40, 15_032_385_535, 9_223_372_036), (-(1 << 40), -(1 << 31), -9_223_372_036)]
)
def test_farthest_times(expect: Expect, second: int, limit: int, ours: int) -> None:
    """A time that cannot be kept becomes the farthest that can: of the years 1901 and 2446, on the mount 1677 and 2262."""
    put("f")
    os.utime("f", (second, second))
    found = os.stat("f")
    expect(int(found.st_mtime), plain=limit, mount=ours)
    expect(int(found.st_atime), plain=limit, mount=ours)


def test_touch_after_a_write(expect: Expect) -> None:
    """UTIME_NOW is the kernel's clock, which ticks; a write has the time to the nanosecond. So the later may be the earlier."""
    steps = []
    for _ in range(_TRIES):
        put("f")
        written = os.stat("f").st_mtime_ns
        os.utime("f")
        steps.append(os.stat("f").st_mtime_ns - written)
    expect(min(steps) < 0, plain=False, mount=True)
    assert min(steps) > -(10**9)


@pytest.mark.kernel("statx")
def test_birth_time(expect: Expect) -> None:
    """statx knows no time of birth."""
    put("f")
    shown = subprocess.run(["stat", "-c", "%W", "f"], capture_output=True, check=True, text=True).stdout
    expect(int(shown) > 0, plain=True, mount=False)


@pytest.mark.kernel("reads that do not wait")
def test_reads_that_do_not_wait(expect: Expect) -> None:
    """RWF_NOWAIT is ENOTSUP: the kernel has it for its own file systems only."""
    put("f")
    with opened("f") as fd:
        os.pread(fd, 7, 0)
        expect(outcome(lambda: os.preadv(fd, [bytearray(7)], 0, os.RWF_NOWAIT)), plain=7, mount="ENOTSUP")


@pytest.mark.kernel("ioctl")
def test_ioctl(expect: Expect) -> None:
    """There are no attributes of chattr: ENOTTY."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        found = outcome(lambda: fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    expect(found if isinstance(found, str) else "known", plain="known", mount="ENOTTY")


@pytest.mark.kernel("ioctl")
def test_extents(expect: Expect) -> None:
    """Nobody can ask in which blocks of a disk a file lies: FIEMAP is ENOTSUP."""
    put("f")
    with opened("f", os.O_RDONLY) as fd:
        whole_file = struct.pack("=QQLLLL", 0, 1 << 62, 0, 0, 0, 0)
        found = outcome(lambda: fcntl.ioctl(fd, _FS_IOC_FIEMAP, whole_file))
    expect(found if isinstance(found, str) else "known", plain="known", mount="ENOTSUP")
