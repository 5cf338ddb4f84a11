"""A disk's files, and what of them would still be there if the power went now. No FUSE, no loop.

The model: what POSIX promises, and what ext4, XFS and btrfs keep to at least
  fsync or fdatasync of a file puts the whole content that it has at that moment on stable storage (fsync its times
  and mode too). fsync of a directory puts its entries there: which names it has, and which files they mean. Neither
  does the other's work: a file that was synced, but whose directory was not, has no name; a name that was synced
  leads to an empty file, if the file never was.
  What was not synced may have reached the disk nevertheless, each thing for itself, since disks and kernels write
  back when they like. A name: each change of an entry is there or not, also without those before it; a rename
  within one directory is one change, one between two directories is two. A content: as of the last sync, as it
  is now, or its beginning (down to the smallest size that it had meanwhile), or a mix by pages of old (up to that
  size), new, and zeros.
  This is harsher than ext4 and XFS are, which keep the order of changes of names and write the name of a new file
  when the file is synced; a program that stands this stands those. Gentler in one thing: of a content that was
  changed several times since its last sync only the last state takes part.

Rules
  Sectors do not tear (`_SECTOR`), pages do mix (`_PAGE`).
  A directory remembers no more than `_REMEMBERED` changes that were not synced: what is older was written back.
  What an image holds depends on the operations and its seed alone, not on the clock or on inode numbers.

Units: sizes in bytes, times in ns since the epoch.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

_SECTOR = 512
_PAGE = 4096
_REMEMBERED = 1000


@dataclass(frozen=True)
class Saved:
    """A file's content and attributes at one moment."""

    content: bytes
    mode: int
    mtime_ns: int


class Node:
    """What files and directories have in common."""

    def __init__(self, number: int, mode: int, uid: int, gid: int, now_ns: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.atime_ns = self.mtime_ns = self.ctime_ns = now_ns
        self.lookups = 0
        """References of the kernel."""
        self.names: dict[tuple[Directory, bytes], None] = {}
        """Where it is now; none: it lives until the kernel forgets it."""

    @property
    def path(self) -> str:
        """Of its first name, from the root; '' for the root and for what has no name."""
        for parent, name in self.names:
            above = parent.path
            return f"{above}/{name.decode()}" if above else name.decode()
        return ""


class File(Node):
    """A regular file. Its live content is in memory, behind a descriptor, as long as anything refers to it."""

    def __init__(self, number: int, mode: int, uid: int, gid: int, now_ns: int) -> None:
        super().__init__(number, mode, uid, gid, now_ns)
        self.fd = os.memfd_create("power", os.MFD_CLOEXEC)
        self.durable = Saved(b"", mode, now_ns)
        self.low = 0
        """The smallest size since the last sync."""

    def __del__(self) -> None:
        os.close(self.fd)

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def write(self, offset: int, data: bytes) -> None:
        done = os.pwrite(self.fd, data, offset)
        assert done == len(data), "memory takes it all"

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)
        self.low = min(self.low, size)

    def live(self) -> Saved:
        return Saved(os.pread(self.fd, self.size, 0), self.mode, self.mtime_ns)

    def sync(self, data_only: bool) -> None:
        live = self.live()
        if data_only:
            live = Saved(live.content, self.durable.mode, self.durable.mtime_ns)
        self.durable = live
        self.low = len(live.content)


Entries = dict[bytes, "File | Directory"]
Operation = list[tuple[bytes, "File | Directory | None"]]
"""Entries that change together; None: the name goes."""


class Directory(Node):
    def __init__(self, number: int, mode: int, uid: int, gid: int, now_ns: int) -> None:
        super().__init__(number, mode, uid, gid, now_ns)
        self.live: Entries = {}
        self.durable: Entries = {}
        self.pending: list[Operation] = []
        """What happened since the last sync, in order."""

    def change(self, operation: Operation) -> None:
        """Do it, not synced."""
        _apply(self.live, operation)
        self.pending.append(operation)
        if len(self.pending) > _REMEMBERED:
            _apply(self.durable, self.pending.pop(0))
        for name, node in operation:
            if node is not None:
                node.names[self, name] = None

    def sync(self) -> None:
        self.durable = dict(self.live)
        self.pending = []


def _apply(entries: Entries, operation: Operation) -> None:
    for name, node in operation:
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


# ---------------------------------------------------------------- the image


def write_image(directory: Directory, target: str, seed: int | None) -> None:
    """Write what is on stable storage of a directory, and everything below it, to a new directory `target`.

    Without a seed nothing survives that was not synced; with one, chance decides as the model above says. The
    directory itself counts as synced into its parent; its entries do not.
    """
    partial = f"{target}.partial"
    _write(directory, partial, "", _Chance(seed), {})
    os.rename(partial, target)


class _Chance:
    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._share = 0.0 if seed is None else random.Random(f"{seed}").choice((0.1, 0.5, 0.9))
        """How much of it the disk has written back."""

    def entries(self, directory: Directory, path: str) -> Entries:
        found = dict(directory.durable)
        if self._seed is not None:
            rng = random.Random(f"{self._seed} names {path}")
            for operation in directory.pending:
                if rng.random() < self._share:
                    _apply(found, operation)
        return found

    def saved(self, file: File, path: str) -> Saved:
        old = file.durable
        if self._seed is None:
            return old
        new = file.live()
        rng = random.Random(f"{self._seed} content {path}")
        times = new if rng.random() < self._share else old
        return Saved(self._content(rng, old.content, new.content, file.low), times.mode, times.mtime_ns)

    def _content(self, rng: random.Random, old: bytes, new: bytes, low: int) -> bytes:
        if old == new or rng.random() > self._share:
            return old
        kind = rng.choice(("new", "new", "beginning", "pages"))
        if kind == "new":
            return new
        if kind == "beginning":
            end = -(-rng.randint(low, max(low, len(new))) // _SECTOR) * _SECTOR
            return new[:end]
        old = old[:low].ljust(len(new), b"\0")
        starts = range(0, len(new), _PAGE)
        return b"".join(rng.choice((old, new))[at : at + _PAGE] for at in starts)[: len(new)]


def _write(directory: Directory, target: str, path: str, chance: _Chance, written: dict[File, str]) -> None:
    os.mkdir(target, 0o700)
    for name, node in chance.entries(directory, path).items():
        place, below = os.path.join(target, name.decode()), f"{path}/{name.decode()}"
        if isinstance(node, Directory):
            _write(node, place, below, chance, written)
        elif node in written:
            os.link(written[node], place)
        else:
            written[node] = place
            saved = chance.saved(node, below)
            with open(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(saved.content)
            os.chmod(place, saved.mode & 0o7777)
            os.utime(place, ns=(saved.mtime_ns, saved.mtime_ns))
