"""Programs that write like the app does, and remember what they were told: for power cuts under a real daemon.

Every content names its path and number, so that one look tells whether it is whole, and which it is.
"""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

_GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EIO)
"""What a program hears whose file system has gone."""
_LINE = 64


class Writer(threading.Thread):
    """Writes below its own directory of a mount until the mount goes away.

    `attempts` has, for each path, every content that it began to write, None for a removal, in order;
    `acknowledged` the index of the last one that an fsync had covered when the mount went.
    """

    def __init__(self, root: Path, number: int) -> None:
        super().__init__(daemon=True)
        self._root = root / f"{number}"
        self._rng = random.Random(number)
        self._number = 0
        self.log = b""
        """What was begun to be appended to ``log``."""
        self.log_acknowledged = 0
        """How much of it fsync has covered."""
        self.attempts: dict[str, list[bytes | None]] = {}
        self.acknowledged: dict[str, int] = {}
        self.synced = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._root.mkdir()
            with open(self._root / "log", "wb", buffering=0) as log:
                while True:
                    path = f"{self._rng.randrange(8)}"
                    self._rng.choice((self._plain, self._synced, self._synced, self._replaced, self._removed))(path)
                    if self._rng.random() < 0.3:
                        self._append(log.fileno())
        except OSError as error:
            if error.errno not in _GONE:
                self.failure = error
        except BaseException as error:
            self.failure = error

    def _begin(self, path: str) -> bytes:
        self._number += 1
        data = b"%s/%s %d;" % (self._root.name.encode(), path.encode(), self._number)
        data *= self._rng.choice((1, 50, 3000))
        self.attempts.setdefault(path, []).append(data)
        return data

    def _acknowledge(self, path: str) -> None:
        self.acknowledged[path] = len(self.attempts[path]) - 1
        self.synced += 1

    def _write(self, name: str, data: bytes, synced: bool) -> None:
        descriptor = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            os.write(descriptor, data)
            if synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _plain(self, path: str) -> None:
        self._write(path, self._begin(path), synced=False)

    def _synced(self, path: str) -> None:
        self._write(path, self._begin(path), synced=True)
        self._acknowledge(path)

    def _replaced(self, path: str) -> None:
        self._write(f"{path}.tmp", self._begin(path), synced=True)
        os.rename(self._root / f"{path}.tmp", self._root / path)
        self._sync_directory()
        self._acknowledge(path)

    def _removed(self, path: str) -> None:
        if self._rng.random() < 0.5 or not (self._root / path).exists():
            return
        self.attempts[path].append(None)
        os.unlink(self._root / path)
        self._sync_directory()
        self._acknowledge(path)

    def _sync_directory(self) -> None:
        descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _append(self, descriptor: int) -> None:
        """As a recorder: a line, now and then an fsync, never closed."""
        line = b"%d " % len(self.log)
        line += b"x" * (_LINE - len(line))
        self.log += line
        os.write(descriptor, line)
        if self._rng.random() < 0.5:
            os.fsync(descriptor)
            self.log_acknowledged = len(self.log)

    # ------------------------------------------------------------ afterwards

    def check(self, files: dict[str, bytes]) -> None:
        """Check the files that are left, by their paths below the mount."""
        prefix = f"{self._root.name}/"
        mine = {path.removeprefix(prefix): data for path, data in files.items() if path.startswith(prefix)}
        self._check_log(mine.pop("log", b""))
        for name, data in mine.items():
            path = name.removesuffix(".tmp")
            allowed = self.attempts[path][self.acknowledged.get(path, 0) if name == path else 0 :]
            assert data in allowed, f"{prefix}{name}: {data[:60]!r}… ({len(data)} bytes)"
        for path, index in self.acknowledged.items():
            assert path in mine or None in self.attempts[path][index:], f"{prefix}{path} is gone"

    def _check_log(self, found: bytes) -> None:
        assert found[: self.log_acknowledged] == self.log[: self.log_acknowledged], f"{self._root.name}/log"
        assert len(found) <= len(self.log)
        later = zip(found[self.log_acknowledged :], self.log[self.log_acknowledged :], strict=False)
        assert all(byte in (0, wrote) for byte, wrote in later), f"{self._root.name}/log"
