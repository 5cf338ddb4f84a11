"""What a power cut may leave of a history, and whether it did.

The promise, checked by `Ledger`
  Names: the namespace is one that the history had, not older than the last fsync (of any file or directory: each puts the
  whole journal on stable storage). Only a file whose content was never acknowledged may be missing from it.
  Content: of a file that fsync or flush acknowledged, the acknowledged content or a later whole one; of any other
  file, a whole one. Whole is what the file had between two steps of the history.
  One exception, which POSIX has too: a file that was fsynced and then written on in place, without an fsync or a seal
  since, may show some of those writes and not others; what was not overwritten is what was acknowledged.

Rules
  A file is its inode number: names come and go. Contents are told apart by the stamps that `Player` writes.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field, replace

from b2fs.core import xattrs
from tests.engine.model import Model
from tests.engine.world import Entry, Mount


@dataclass(frozen=True)
class Name:
    """What a path leads to. `ino` 0: a new inode whose number nobody has seen."""

    ino: int
    mode: int
    target: str = ""
    xattrs: str = ""


Names = dict[str, Name]


@dataclass
class Contents:
    """What a file contained, in the order of the history."""

    versions: list[tuple[bytes, int]] = field(default_factory=list)
    """(content, mtime in ns)"""
    acknowledged: int = -1
    """Index of what fsync or flush acknowledged last, -1: nothing."""
    mixed_from: int = -1
    """From which index on the content was made by writing in place onto what fsync acknowledged, -1: it was not."""


class Ledger:
    def __init__(self) -> None:
        self._names: list[Names] = [{}]
        self._durable = 0
        """Index of the oldest namespace that may be left."""
        self._files: dict[int, Contents] = {}
        self._made: dict[str, bytes] = {}
        """Content by path that the step during which the power went was to give a new file."""
        self._flushed: dict[str, bytes] = {}
        """What a flush brought to B2 and nobody touched since, by path."""

    # ------------------------------------------------------------ the history

    def observe(self, m: Mount, model: Model) -> None:
        """A step was done: remember names and contents."""
        names = self._of(m, model)
        if names != self._names[-1]:
            self._names.append(names)
        for path, name in names.items():
            if stat.S_ISREG(name.mode):
                entry, versions = model.tree[path], self._contents(name.ino).versions
                if not versions or versions[-1] != (entry.content, entry.mtime_ns):
                    versions.append((entry.content, entry.mtime_ns))

    def _of(self, m: Mount, model: Model) -> Names:
        names = {}
        for path, entry in model.tree.items():
            row = m.volume.journal.path_inode(path)
            assert row is not None, f"{path} is not in the journal"
            names[path] = _name(row.ino, entry)
        return names

    def _contents(self, ino: int) -> Contents:
        return self._files.setdefault(ino, Contents())

    def unsure(self, model: Model) -> None:
        """The power went during a step that would have led to `model`."""
        before, names = self._names[-1], {}
        for path, entry in model.tree.items():
            old = before.get(path)
            same = old is not None and stat.S_IFMT(old.mode) == stat.S_IFMT(entry.mode)
            names[path] = _name(old.ino if old is not None and same else 0, entry)
            if not names[path].ino:
                self._made[path] = entry.content
            if old is not None and same and stat.S_ISREG(entry.mode):
                contents = self._contents(old.ino)
                if contents.versions[-1][0] != entry.content:
                    contents.versions.append((entry.content, entry.mtime_ns))
                    contents.mixed_from = max(contents.mixed_from, 0)
        self._names.append(names)

    def written_in_place(self, path: str) -> None:
        """The content of a path was changed, not replaced, by the last step."""
        contents = self._at(path)
        if contents.acknowledged >= 0 and contents.mixed_from < 0:
            contents.mixed_from = contents.acknowledged

    def acknowledged(self, path: str) -> None:
        """fsync of a file returned."""
        contents = self._at(path)
        contents.acknowledged, contents.mixed_from = len(contents.versions) - 1, -1
        self.journal_synced()

    def journal_synced(self) -> None:
        """fsync of a directory returned."""
        self._durable = len(self._names) - 1

    def names_acknowledged(self, paths: list[str]) -> None:
        """It was the directory of these: a name that is durable is no use without content."""
        for path in paths:
            if stat.S_ISREG(self._names[-1][path].mode) and self._at(path).acknowledged < 0:
                self.acknowledged(path)

    def flushed(self, model: Model) -> None:
        """A flush of everything returned."""
        for path, entry in model.tree.items():
            if stat.S_ISREG(entry.mode):
                self._flushed[path] = entry.content
                contents = self._at(path)
                contents.acknowledged, contents.mixed_from = len(contents.versions) - 1, -1

    def touched(self, *paths: str) -> None:
        """A step that came after the flush is about these paths and what is below them."""
        for path in paths:
            for other in [other for other in self._flushed if f"{other}/".startswith(f"{path}/")]:
                del self._flushed[other]

    def _at(self, path: str) -> Contents:
        return self._contents(self._names[-1][path].ino)

    # ------------------------------------------------------------ what is left of it

    async def check(self, m: Mount) -> dict[str, bytes]:
        """Check a mount that was just started after the cut, before it has heard of the bucket; its files."""
        journal = m.volume.journal
        rows = {path: journal.path_inode(path) for path, _ in journal.subtree(1)}
        found = {path: Name(row.ino, row.mode, row.target, row.xattrs) for path, row in rows.items() if row is not None}
        possible = self._names[self._durable :]
        assert any(self._fits(found, names) for names in possible), (found, possible)
        contents = {}
        for path, name in found.items():
            if stat.S_ISREG(name.mode):
                contents[path], mtime_ns = await _content(m, path)
                self._check_content(path, name.ino, contents[path], mtime_ns)
        return contents

    def _fits(self, found: Names, names: Names) -> bool:
        if found.keys() - names.keys():
            return False
        for path, name in names.items():
            there = found.get(path)
            if there is None:
                if not stat.S_ISREG(name.mode) or self._contents(name.ino).acknowledged >= 0:
                    return False
            elif name.ino not in (0, there.ino) or there != replace(name, ino=there.ino):
                return False
        return True

    def _check_content(self, path: str, ino: int, found: bytes, mtime_ns: int) -> None:
        contents = self._contents(ino)
        versions = contents.versions[max(contents.acknowledged, 0) :]
        if not versions:  # made by the step during which the power went: `unsure` has no number for it
            assert found == self._made.get(path), f"{path} is a file that the history never had"
            return
        whole = [content for content, _ in versions]
        if found not in whole:
            assert contents.acknowledged >= 0 and contents.mixed_from >= 0, (path, found, whole)
            assert _is_mix(found, whole), (path, found, whole)
        elif len(versions) == 1:
            assert mtime_ns == versions[0][1], f"the mtime of {path}"

    def check_end(self, contents: dict[str, bytes]) -> None:
        """Check the files after the bucket was listed and everything was brought there."""
        for path, content in self._flushed.items():
            assert contents.get(path) == content, f"{path} was in B2 and nobody touched it"


def _name(ino: int, entry: Entry) -> Name:
    target = entry.content.decode() if stat.S_ISLNK(entry.mode) else ""
    return Name(ino, entry.mode, target, xattrs.pack({name.encode(): value for name, value in entry.xattrs.items()}))


def _is_mix(found: bytes, versions: list[bytes]) -> bool:
    """Each byte is one of some version at that place; or zero, beyond what was acknowledged (the first version)."""
    if len(found) > max(map(len, versions)) or len(found) < min(map(len, versions)):
        return False
    for at, byte in enumerate(found):
        allowed = {version[at] for version in versions if at < len(version)}
        if byte not in allowed and (byte or at < len(versions[0])):
            return False
    return True


async def _content(m: Mount, path: str) -> tuple[bytes, int]:
    """Content and mtime of a file, without asking B2 about its name."""
    node = await m.volume.resolve(path)
    assert node is not None
    handle = await m.files.open(node.ino, 0)
    try:
        return bytes(await m.files.read(handle, 0, 1 << 40)), node.inode.mtime_ns
    finally:
        m.files.release(handle)
