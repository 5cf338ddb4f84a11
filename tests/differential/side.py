"""One of the two directories, with what a program holds open in it; and what is there, as far as it must be the same.

Rules
  A result is a plain value, or the errno: two sides that agree give equal ones.
  Sizes, block counts and positions of directories are the file system's own affair; so are times from the clock.
  Both sides see the same calls, so what a call has changed is the same: `changes` tells by inode, not by path.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Looks(NamedTuple):
    """What stat says of one inode, without times from the clock."""

    kind: str
    mode: str
    size: int
    nlink: int
    uid: int
    gid: int
    target: str
    set_mtime: int | None
    """The modification time, if it is one that somebody has set; None: it came from the clock."""


_TICK_NS = 20_000_000
"""The kernel gives files the time of its last tick, up to 10 ms ago (100 Hz)."""

Snapshot = Mapping[str, os.stat_result]
"""Every path of a side (the directory itself is ''), and every handle as '#number'."""


@dataclass
class Reading:
    """An open directory that is being read, and what a reader may and must see of it."""

    fd: int
    inode: int
    seen: Counter[str] = field(default_factory=Counter)
    always: set[str] = field(default_factory=set)
    """Names that have been there ever since the last rewind."""
    ever: set[str] = field(default_factory=set)
    """Names that have been there at some time since the last rewind."""

    def rewind(self, names: set[str]) -> None:
        self.seen, self.always, self.ever = Counter(), set(names), set(names)

    def problems(self) -> list[str]:
        """Asked at the end of the directory."""
        lines = [f"{name!r}: {self.seen[name]} times" for name in sorted(self.always) if self.seen[name] != 1]
        return lines + [f"{name!r}: was never there" for name in sorted(self.seen.keys() - self.ever - {".", ".."})]


class Side:
    def __init__(self, name: str, root: Path, clock_ns: int) -> None:
        self.name = name
        self.root = root
        self.handles: dict[int, int] = {}
        self.maps: dict[int, mmap.mmap] = {}
        self.readings: dict[int, Reading] = {}
        self._clock_ns = clock_ns - _TICK_NS
        """No time before this came from the clock."""
        root.mkdir()

    def at(self, path: str) -> str:
        return os.path.join(self.root, path) if path else str(self.root)

    def outcome(self, call: Callable[[Side], Any]) -> Any:
        """The call's value, or the name of its errno."""
        try:
            return call(self)
        except OSError as error:
            return errno.errorcode.get(error.errno or 0, type(error).__name__)

    # ------------------------------------------------------------ looking

    def look(self) -> Snapshot:
        found = {"": os.lstat(self.root)}
        self._visit("", found)
        for number, fd in self.handles.items():
            found[f"#{number}"] = os.fstat(fd)
        return found

    def _visit(self, folder: str, found: dict[str, os.stat_result]) -> None:
        for name in sorted(os.listdir(self.at(folder))):
            path = os.path.join(folder, name)
            found[path] = status = os.lstat(self.at(path))
            if stat.S_ISDIR(status.st_mode):
                self._visit(path, found)

    def looks(self, path: str, status: os.stat_result) -> Looks:
        is_dir, is_link = stat.S_ISDIR(status.st_mode), stat.S_ISLNK(status.st_mode)
        return Looks(
            kind="dir" if is_dir else "link" if is_link else "file" if stat.S_ISREG(status.st_mode) else "other",
            mode=f"{stat.S_IMODE(status.st_mode):04o}",
            size=0 if is_dir else status.st_size,
            nlink=status.st_nlink,
            uid=status.st_uid,
            gid=status.st_gid,
            target=os.readlink(self.at(path)) if is_link and not path.startswith("#") else "",
            set_mtime=status.st_mtime_ns if self.was_set(status.st_mtime_ns) else None,
        )

    def was_set(self, time_ns: int) -> bool:
        """Whether a time was set by somebody: the clock gives none of these."""
        return not self._clock_ns <= time_ns <= self._clock_ns + (1 << 55)

    def content(self) -> dict[str, bytes]:
        """The bytes of every file."""
        paths = [path for path, status in self.look().items() if path[:1] != "#" and stat.S_ISREG(status.st_mode)]
        return {path: Path(self.at(path)).read_bytes() for path in paths}

    # ------------------------------------------------------------ directories being read

    def follow(self, now: Snapshot) -> None:
        """A step was done: what every directory that is being read holds now."""
        paths = {status.st_ino: path for path, status in now.items() if path[:1] != "#"}
        for reading in self.readings.values():
            names = names_in(now, paths[reading.inode]) if reading.inode in paths else set()
            reading.always &= names
            reading.ever |= names

    def close(self) -> None:
        for each in self.maps.values():
            each.close()
        for fd in (*self.handles.values(), *(reading.fd for reading in self.readings.values())):
            os.close(fd)
        self.maps, self.handles, self.readings = {}, {}, {}


def names_in(now: Snapshot, folder: str) -> set[str]:
    return {os.path.basename(path) for path in now if path and path[0] != "#" and os.path.dirname(path) == folder}


def changes(before: Snapshot, after: Snapshot) -> dict[str, tuple[list[str], str]]:
    """For every path: under which paths its inode was known before, and which of its times the step has moved."""
    known: dict[int, list[str]] = {}
    for path, status in before.items():
        known.setdefault(status.st_ino, []).append(path)
    return {
        path: (sorted(known.get(status.st_ino, [])), _moved(before, known.get(status.st_ino, []), status))
        for path, status in after.items()
    }


def _moved(before: Snapshot, known: list[str], status: os.stat_result) -> str:
    if not known:
        return "new"
    old = before[known[0]]
    moved = {"mtime": old.st_mtime_ns != status.st_mtime_ns, "ctime": old.st_ctime_ns != status.st_ctime_ns}
    return " and ".join(name for name, is_so in moved.items() if is_so)
