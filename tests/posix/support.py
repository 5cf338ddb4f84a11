"""System calls as programs make them, other users, and what an object looks like afterwards.

Rules
  Paths are relative: the `root` fixture has made its directory the working directory.
  Everything goes through the `os` of `tests.posix.system`, so that it works on each target.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from tests.posix.system import os

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
AT_SYMLINK_NOFOLLOW = 0x100
OLD_NS = 1_000_000_000_123_456_789
"""A time long ago, for objects whose changes are to be seen."""

OWNER, GROUP, OTHER = 1001, 1002, 1003
"""Users (and groups of the same numbers): who owns an object, who is in its group, who is neither."""


renameat2, utimensat, utimes_now, fallocate = os.renameat2, os.utimensat, os.utimes_now, os.fallocate


class Directory:
    """An open directory stream: opendir, readdir, telldir, seekdir, rewinddir."""

    def __init__(self, path: str) -> None:
        self._stream = os.stream(path)
        self.tell, self.seek, self.rewind = self._stream.tell, self._stream.seek, self._stream.rewind

    def read(self) -> tuple[str, int, int] | None:
        """The next entry (name, inode number, type), None at the end."""
        return self._stream.read()

    def names(self) -> list[str]:
        """What is left to read."""
        found = []
        while (entry := self.read()) is not None:
            found.append(entry[0])
        return found

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


# ---------------------------------------------------------------- users


@contextmanager
def user(uid: int, gid: int | None = None, groups: Sequence[int] = ()) -> Iterator[None]:
    """Be an unprivileged user: effective ids, groups and with them the capabilities."""
    before = os.getgroups()
    os.setgroups(list(groups))
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


# ---------------------------------------------------------------- errors


@contextmanager
def fails(*names: str) -> Iterator[None]:
    """What is done inside fails with (one of) these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    assert errno.errorcode[caught.value.errno or 0] in names, caught.value


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno] if error.errno else str(error)


# ---------------------------------------------------------------- objects


_PIECE = 1 << 22
"""What `get` reads at a time."""


def put(path: str, data: bytes = b"content", mode: int = 0o644) -> None:
    """A file with this content and mode, whatever the umask."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(fd, data)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def get(path: str) -> bytes:
    with opened(path, os.O_RDONLY) as fd:
        parts = [os.read(fd, _PIECE)]
        while len(parts[-1]) == _PIECE:
            parts.append(os.read(fd, _PIECE))
        return b"".join(parts)


@contextmanager
def opened(path: str, flags: int = os.O_RDWR, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def touch_all(path: str = ".") -> None:
    """Give everything at and below a path the old time."""
    for each in stats(path):
        os.utime(each, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


def make_fifo(path: str) -> None:
    os.mkfifo(path, 0o644)


def make_socket(path: str) -> None:
    os.bind(path)


def rmtree(path: str) -> None:
    """Remove a directory and all that is in it."""
    for directory, directories, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in directories:
            below = os.path.join(directory, name)
            (os.unlink if os.path.islink(below) else os.rmdir)(below)
    os.rmdir(path)


def make_null(path: str) -> None:
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


KINDS: dict[str, Callable[[str], object]] = {
    "file": put,
    "dir": os.mkdir,
    "symlink": lambda path: os.symlink("nowhere", path),
    "fifo": make_fifo,
    "socket": make_socket,
    "device": make_null,
}


class Look(NamedTuple):
    """What an object shows, but for numbers that every file system chooses itself."""

    kind: str
    mode: str
    uid: int
    gid: int
    nlink: int
    size: int
    content: bytes
    mtime: str
    """'old' (as `touch_all` set it), another time that a test set, or 'new'."""
    ctime: str
    """'same' as in the look before, or 'new'."""


Looks = dict[str, Look]


def look(path: str = ".", before: dict[str, os.stat_result] | None = None) -> Looks:
    """Everything at and below a path."""
    found = {}
    ctimes = {each.st_ino: each.st_ctime_ns for each in (before or {}).values()}
    for name, each in stats(path).items():
        is_link = stat.S_ISLNK(each.st_mode)
        is_file = stat.S_ISREG(each.st_mode)
        content = (
            os.fsencode(os.readlink(name)) if is_link else get(name) if is_file and each.st_size < 1 << 20 else b""
        )
        found[name] = Look(
            kind=stat.filemode(each.st_mode)[0],
            mode=f"{stat.S_IMODE(each.st_mode):o}",
            uid=each.st_uid,
            gid=each.st_gid,
            nlink=each.st_nlink,
            size=0 if stat.S_ISDIR(each.st_mode) else each.st_size,
            content=content,
            mtime="old"
            if each.st_mtime_ns == OLD_NS
            else "new"
            if each.st_mtime > 1_700_000_000
            else f"{each.st_mtime_ns}",
            ctime="same" if ctimes.get(each.st_ino) == each.st_ctime_ns else "new",
        )
    return found


def stats(path: str = ".") -> dict[str, os.stat_result]:
    """The stat of everything at and below a path."""
    found = {path: os.lstat(path)}
    for directory, directories, files in os.walk(path) if stat.S_ISDIR(found[path].st_mode) else ():
        for name in sorted(directories + files):
            below = os.path.join(directory, name)
            found[below] = os.lstat(below)
    return found
