"""Two directory trees, compared: what a mount shows against what a plain directory holds."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection, Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """What a program can see of one name."""

    kind: str
    """'file', 'dir', 'link' or 'other'."""
    mode: int
    """Permission bits."""
    size: int
    """Bytes of a file; 0 for everything else, where the file system is free to say what it likes."""
    sha1: str
    """Of a file's bytes; '' otherwise."""
    mtime_ns: int
    target: str
    """Of a symbolic link; '' otherwise."""


def tree(directory: str | os.PathLike[str], skip: Collection[str] = ()) -> dict[str, Entry]:
    """Every name below `directory`, by its path with '/'; `skip` names directories (or files) at the top to leave out."""
    found: dict[str, Entry] = {}

    def visit(folder: str, prefix: str) -> None:
        with os.scandir(folder) as names:
            for name in sorted(names, key=lambda each: each.name):
                path = prefix + name.name
                if path in skip:
                    continue
                found[path] = entry(name.path)
                if found[path].kind == "dir":
                    visit(name.path, path + "/")

    visit(os.fspath(directory), "")
    return found


def entry(path: str) -> Entry:
    """What `path` is; a symbolic link is not followed."""
    status = os.lstat(path)
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            sha1 = hashlib.file_digest(file, "sha1").hexdigest()
        return Entry("file", mode, status.st_size, sha1, status.st_mtime_ns, "")
    if stat.S_ISDIR(status.st_mode):
        return Entry("dir", mode, 0, "", status.st_mtime_ns, "")
    if stat.S_ISLNK(status.st_mode):
        return Entry("link", mode, 0, "", status.st_mtime_ns, os.readlink(path))
    return Entry("other", mode, 0, "", status.st_mtime_ns, "")


def show(name: str, value: object) -> str:
    return f"{value:04o}" if name == "mode" else str(value)


def compare(
    a: Mapping[str, Entry], b: Mapping[str, Entry], *, mtime: bool = True, clock_ns: int | None = None
) -> list[str]:
    """What differs, one line each; empty when the trees are equal.

    Times of directories are not compared. `mtime=False` leaves out those of files too. With `clock_ns`, two times that
    are both at or after that moment count as equal: both come from the clock, of different runs.
    """
    differences = [f"{path}: only in the first, a {a[path].kind}" for path in sorted(a.keys() - b.keys())]
    differences += [f"{path}: only in the second, a {b[path].kind}" for path in sorted(b.keys() - a.keys())]
    for path in sorted(a.keys() & b.keys()):
        for name, first, second in zip(Entry._fields, a[path], b[path], strict=True):
            if name == "mtime_ns":
                times = (a[path].mtime_ns, b[path].mtime_ns)
                by_clock = clock_ns is not None and min(times) >= clock_ns
                if not mtime or a[path].kind == "dir" or by_clock:
                    continue
            if first != second:
                differences.append(f"{path}: {name} {show(name, first)} and {show(name, second)}")
    return differences
