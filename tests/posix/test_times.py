"""The times of objects: which call changes which, and that what was set stays to the nanosecond."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.support import (
    KINDS,
    OLD_NS,
    OTHER,
    OWNER,
    UTIME_NOW,
    UTIME_OMIT,
    fails,
    get,
    opened,
    put,
    renameat2,
    user,
    utimensat,
    utimes_now,
)
from tests.posix.system import os


def _put_in_place(path: str) -> None:
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"X")


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    # what is done, and which times of `f` (or `d`) it changes
    "read": (lambda: get("f"), ""),
    "stat": (lambda: os.stat("f"), ""),
    "open": (lambda: os.close(os.open("f", os.O_RDWR)), ""),
    "write": (lambda: _put_in_place("f"), "mc"),
    "truncate": (lambda: os.truncate("f", 3), "mc"),
    "grow": (lambda: os.truncate("f", 30), "mc"),
    "truncate to the same size": (lambda: os.truncate("f", 7), "mc"),
    "chmod": (lambda: os.chmod("f", 0o600), "c"),
    "chmod to the same": (lambda: os.chmod("f", 0o644), "c"),
    "chown": (lambda: os.chown("f", 1, 1), "c"),
    "chown to the same": (lambda: os.chown("f", 0, 0), "c"),
    "rename": (lambda: (os.rename("f", "f2"), os.rename("f2", "f")), "c"),
    "rename onto itself": (lambda: os.rename("f", "f"), ""),
    "failed mkdir": (lambda: _failing(lambda: os.mkdir("f")), ""),
    "failed truncate": (lambda: _failing(lambda: os.truncate("f", -1)), ""),
    "fsync": (lambda: _fsync("f"), ""),
    "dir: list": (lambda: os.listdir("d"), ""),
    "dir: create": (lambda: put("d/new"), "mc"),
    "dir: mkdir": (lambda: os.mkdir("d/new"), "mc"),
    "dir: symlink": (lambda: os.symlink("x", "d/new"), "mc"),
    "dir: mkfifo": (lambda: os.mkfifo("d/new"), "mc"),
    "dir: unlink": (lambda: os.unlink("d/in"), "mc"),
    "dir: rmdir": (lambda: os.rmdir("d/sub"), "mc"),
    "dir: rename within": (lambda: os.rename("d/in", "d/in2"), "mc"),
    "dir: rename out": (lambda: os.rename("d/in", "out"), "mc"),
    "dir: rename in": (lambda: os.rename("f", "d/new"), "mc"),
    "dir: rename over": (lambda: os.rename("f", "d/in"), "mc"),
    "dir: exchange": (lambda: renameat2("f", "d/in", 2), "mc"),
    "dir: write to a file": (lambda: _put_in_place("d/in"), ""),
    "dir: chmod of a file": (lambda: os.chmod("d/in", 0o600), ""),
    "dir: create below": (lambda: put("d/sub/new"), ""),
    "dir: failed create": (lambda: _failing(lambda: os.mkdir("d/in")), ""),
    "dir: open with O_CREAT of what is there": (lambda: os.close(os.open("d/in", os.O_CREAT | os.O_RDWR)), ""),
    "dir: rename itself": (lambda: (os.rename("d", "d2"), os.rename("d2", "d")), "c"),
    "dir: chmod": (lambda: os.chmod("d", 0o700), "c"),
}  # fmt: skip


def _failing(call: Callable[[], object]) -> None:
    with fails("EEXIST", "EINVAL"):
        call()


def _fsync(path: str) -> None:
    with opened(path) as fd:
        os.fsync(fd)


@pytest.mark.parametrize("change", CHANGES)
def test_which_times_change(root: Path, change: str) -> None:
    """A call changes the mtime and ctime that POSIX says, and no other."""
    call, expected = CHANGES[change]
    put("f")
    os.makedirs("d/sub")
    put("d/in")
    subject = "d" if change.startswith("dir") else "f"
    os.utime(subject, ns=(OLD_NS, OLD_NS))
    ino, before = os.stat(subject).st_ino, os.stat(subject)
    call()
    after = os.stat(subject) if os.path.exists(subject) else os.stat("d/new")
    assert after.st_ino == ino
    changed = ("m" if after.st_mtime_ns != before.st_mtime_ns else "") + (
        "c" if after.st_ctime_ns != before.st_ctime_ns else ""
    )
    assert changed == expected
    assert after.st_ctime_ns >= before.st_ctime_ns
    if "m" in expected:
        assert abs(after.st_mtime_ns - after.st_ctime_ns) < 10**9


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_new_object_has_the_time_of_its_making(root: Path, make: Callable[[str], object]) -> None:
    """All times of a new object are now, and its directory's mtime is too."""
    os.utime(".", ns=(OLD_NS, OLD_NS))
    make("new")
    found, directory = os.lstat("new"), os.stat(".")
    for each in (found.st_atime_ns, found.st_ctime_ns, directory.st_mtime_ns, directory.st_ctime_ns):
        assert abs(each - found.st_mtime_ns) < 10**9


TIMES = (
    0,
    1,
    999_999_999,
    10**9,
    1_600_000_000_123_456_789,
    -1,
    -86_400_000_000_001,
    4_102_444_800_999_999_999,
    (1 << 31) * 10**9,
)


@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "fifo"])
@pytest.mark.parametrize("time_ns", TIMES)
def test_set_times_stay(root: Path, time_ns: int, kind: str) -> None:
    """atime and mtime that were set are shown to the nanosecond, before and after the epoch, and after a rename."""
    KINDS[kind]("x")
    os.utime("x", ns=(time_ns, time_ns + 7), follow_symlinks=False)
    for name in ("x", "y"):
        found = os.lstat(name)
        assert (found.st_atime_ns, found.st_mtime_ns) == (time_ns, time_ns + 7)
        if name == "x":
            os.rename("x", "y")


@pytest.mark.parametrize("atime", [(5, 6), (0, UTIME_NOW), (0, UTIME_OMIT)], ids=["set", "now", "omit"])
@pytest.mark.parametrize("mtime", [(7, 8), (0, UTIME_NOW), (0, UTIME_OMIT)], ids=["set", "now", "omit"])
def test_utimensat(root: Path, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Each of the two times is set, set to now, or left, on its own."""
    put("f")
    os.utime("f", ns=(OLD_NS, OLD_NS))
    before = os.stat("f")
    utimensat("f", atime, mtime)
    after = os.stat("f")
    for given, was, found in (
        (atime, before.st_atime_ns, after.st_atime_ns),
        (mtime, before.st_mtime_ns, after.st_mtime_ns),
    ):
        if given[1] == UTIME_OMIT:
            assert found == was
        elif given[1] == UTIME_NOW:
            assert abs(found - after.st_ctime_ns) < 10**9
        else:
            assert found == given[0] * 10**9 + given[1]
    both_omitted = atime[1] == mtime[1] == UTIME_OMIT
    assert (after.st_ctime_ns > before.st_ctime_ns) is not both_omitted


@pytest.mark.parametrize("nanoseconds", [-1, 10**9, 1 << 40])
def test_utimensat_refuses(root: Path, nanoseconds: int) -> None:
    """Nanoseconds that are none are EINVAL."""
    put("f")
    with fails("EINVAL"):
        utimensat("f", (0, nanoseconds), (0, 0))


RIGHTS = {
    # user and mode of the file of OWNER: errno of setting times, errno of setting them to now
    (OWNER, 0o000): ("", ""),
    (OTHER, 0o666): ("EPERM", ""),
    (OTHER, 0o444): ("EPERM", "EACCES"),
}


@pytest.mark.parametrize(("who", "mode"), RIGHTS)
def test_who_may_set_times(root: Path, who: int, mode: int) -> None:
    """The owner sets any time; who may write sets both to now; others nothing."""
    put("f")
    os.chown("f", OWNER, OWNER)
    os.chmod("f", mode)
    to_set, to_now = RIGHTS[who, mode]
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: utimensat("f", (1, 1), (1, 1)), to_set),
        (lambda: utimensat("f", (0, UTIME_NOW), (0, UTIME_OMIT)), to_set),
        (lambda: utimensat("f", (0, UTIME_NOW), (0, UTIME_NOW)), to_now),
        (lambda: utimes_now("f"), to_now),
        (lambda: utimensat("f", (0, UTIME_OMIT), (0, UTIME_OMIT)), ""),
    ]
    with user(who):
        for call, error in calls:
            if error:
                with fails(error):
                    call()
            else:
                call()


def test_mtime_of_an_open_file(root: Path) -> None:
    """A time that is set on an open file is not overtaken by its close, nor by a read."""
    with opened("f", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"x")
        os.utime(fd, ns=(OLD_NS, OLD_NS))
        os.pread(fd, 1, 0)
    assert os.stat("f").st_mtime_ns == OLD_NS
    get("f")
    assert os.stat("f").st_mtime_ns == OLD_NS
