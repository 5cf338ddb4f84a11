"""The bodies of versions and parts, as files below the root. Knows no metadata and no HTTP.

Rules
  A body is written once, in ``incoming/``, and never changes afterwards. Its name is the file id of its
  version, or ``<file id>.p<number>.<nonce>`` for a part.
  A file in ``incoming/`` is wanted if and only if the metadata names it. The order of steps follows:
  write in ``incoming/``, commit the row, `settle`; and to delete: `unsettle`, commit, `discard`. So a crash at
  any point is repaired by `recover`, which looks at ``incoming/`` only and is quick whatever the bucket holds.
  Everything here blocks; what handles a megabyte or more is called in a thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

HELD_SIZE = 1 << 20
"""Bytes that an incoming body keeps in memory before they are hashed and written."""
_COPY_SIZE = 1 << 20


class Incoming:
    """A body on its way in. Owns its file until `Bodies.settle`; `close` and forget it, or `drop` it.

    `hold` only remembers; `flush` hashes and writes what is held. When `held` passes `HELD_SIZE` flush it.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.size = 0
        self.held = 0
        self._path = path
        self._fd = -1
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._chunks: list[bytes | bytearray] = []

    def hold(self, data: bytes | bytearray) -> None:
        self._chunks.append(data)
        self.held += len(data)

    def flush(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self.held = 0
        self._sha1.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def copy_from(self, fd: int, offset: int, length: int) -> None:
        """Append a range of another body and hash it."""
        while length:
            data = os.pread(fd, min(_COPY_SIZE, length), offset)
            if not data:
                raise OSError(f"body of {self.name} is shorter than its metadata says")
            self.hold(data)
            self.flush()
            offset, length = offset + len(data), length - len(data)

    def append(self, fd: int, length: int) -> None:
        """Append another body from its start, without hashing: the kernel copies (or shares) the bytes."""
        self.flush()
        offset = 0
        while offset < length:
            copied = os.copy_file_range(fd, self._fd, length - offset, offset)
            if not copied:
                raise OSError(f"a part of {self.name} is shorter than its metadata says")
            offset += copied
        self.size += length

    def close(self) -> str:
        """Flush and close the file; the SHA-1 of all bytes."""
        self.flush()
        os.close(self._fd)
        self._fd = -1
        return self._sha1.hexdigest()

    def drop(self) -> None:
        """Forget the body: close and remove its file, if there is one."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)


class Bodies:
    def __init__(self, root: Path) -> None:
        self._incoming = os.path.join(root, "incoming")
        self._bodies = os.path.join(root, "bodies")
        self._shards: set[str] = set()
        for path in (self._incoming, self._bodies):
            os.makedirs(path, mode=0o700, exist_ok=True)

    def recover(self, wanted: Callable[[str], bool]) -> None:
        """Settle or remove whatever a crash left in ``incoming/``."""
        for name in os.listdir(self._incoming):
            if wanted(name):
                self.settle(name)
            else:
                self.discard(name)

    def new(self, name: str) -> Incoming:
        return Incoming(name, os.path.join(self._incoming, name))

    def link(self, source: str, name: str) -> None:
        """Make `name` in ``incoming/`` the same bytes as the settled `source`, without copying them."""
        os.link(self._path(source), os.path.join(self._incoming, name))

    def settle(self, name: str) -> None:
        os.rename(os.path.join(self._incoming, name), self._path(name))

    def unsettle(self, name: str) -> None:
        os.rename(self._path(name), os.path.join(self._incoming, name))

    def discard(self, name: str) -> None:
        os.unlink(os.path.join(self._incoming, name))

    def open(self, name: str) -> int:
        """A file descriptor to read a settled body; the caller closes it. It survives a delete."""
        return os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)

    def _path(self, name: str) -> str:
        # "4_z" + 24 digits of the bucket + "_f" + 16 random digits: the last two of these spread the files
        # over 256 folders.
        shard = name[43:45]
        if shard not in self._shards:
            os.makedirs(os.path.join(self._bodies, shard), mode=0o700, exist_ok=True)
            self._shards.add(shard)
        return os.path.join(self._bodies, shard, name)


def part_name(file_id: str, number: int) -> str:
    """A new body name for a part; never one that was used before, so that a part can be replaced."""
    return f"{file_id}.p{number}.{secrets.token_hex(4)}"
