"""A stream of files through a small cache: ``python -m tests.mount.stream SIZE CACHE`` (make stream: 10 GiB, 256 MiB).

Writes files of an eighth of the limits one after another, without waiting for B2, then reads them all with several
readers that start cold, and watches from outside what the daemon takes: bytes of its directories, and its memory.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from b2fs.core.chunks import CHUNK
from b2fs.units import parse_size, show_size
from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import Host

_READERS = 4
_BLOCK = 1024 * 1024


class Watch:
    """Maxima of what a daemon takes, looked at all the time."""

    def __init__(self, host: Host) -> None:
        self.cache = 0
        """Bytes below ``cache/`` and ``part/``."""
        self.precious = 0
        """Bytes of scratch and staged content, each content once."""
        self.memory: list[int] = []
        """Resident bytes of the daemon."""
        self._host = host

    def look(self) -> None:
        clean = {**_sizes(self._host.state / "part"), **_sizes(self._host.state / "cache", "*/*")}
        held = {**_sizes(self._host.state / "scratch"), **_sizes(self._host.state / "staged")}
        self.cache = max(self.cache, sum(size for inode, size in clean.items() if inode not in held))
        self.precious = max(self.precious, sum(held.values()))
        fields = Path(f"/proc/{self._host.pid}/statm").read_text().split()
        self.memory.append(int(fields[1]) * os.sysconf("SC_PAGE_SIZE"))

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        ended = threading.Event()

        def run() -> None:
            while not ended.wait(0.02):
                self.look()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield self
        finally:
            ended.set()
            thread.join()

    @property
    def growth(self) -> int:
        """Bytes of memory from a tenth of the way to the highest point after it."""
        start = len(self.memory) // 10
        return max(self.memory[start:]) - self.memory[start]


def _sizes(folder: Path, pattern: str = "*") -> dict[int, int]:
    """Inode number to size of the files; they come and go while we look."""
    found = {}
    for path in folder.glob(pattern):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        found[stat.st_ino] = stat.st_blocks * 512  # a part of a large object lies in a sparse file
    return found


def content(number: int, size: int) -> Iterator[bytes]:
    """The blocks of one file: cheap to make, and another one in each place of each file."""
    base = bytes((number * 7 + index) % 251 for index in range(256)) * (_BLOCK // 256)
    for offset in range(0, size, _BLOCK):
        yield (b"%020d %020d " % (number, offset) + base)[: min(_BLOCK, size - offset)]


def stream(host: Host, total: int, limit: int) -> Watch:
    """Write and read `total` bytes on a started host whose limits are `limit` each; AssertionError for a wrong byte."""
    size = limit // 8
    count = -(-total // size)
    watch = Watch(host)
    with watch.watching():
        for number in range(count):
            with open(host.path / f"{number}.bin", "wb", buffering=0) as file:
                for block in content(number, size):
                    file.write(block)
        host.flush()

        def read(number: int) -> None:
            with open(host.path / f"{number}.bin", "rb", buffering=0) as file:
                for block in content(number, size):
                    got = file.read(len(block))
                    assert got == block, f"{number}.bin"

        with ThreadPoolExecutor(_READERS) as readers:
            list(readers.map(read, range(count)))
    return watch


def slack(limit: int) -> int:
    """What one request in flight holds: a chunk, or one file of the stream while it changes hands."""
    return max(CHUNK, limit // 8)


def main(total: int, limit: int) -> int:
    bucket = DevBucket()
    bucket.start()
    host = Host(bucket, cache_size=str(limit), dirty_size=str(limit), dirty_wait="10m", drain_timeout="30m")
    try:
        host.start()
        began = time.monotonic()
        watch = stream(host, total, limit)
        host.stop()
        print(f"{show_size(total)} in and out through {show_size(limit)} in {time.monotonic() - began:.0f} s")
        print(f"cache at most {watch.cache:,} of {limit:,} bytes, not in B2 at most {watch.precious:,}")
        print(f"memory {min(watch.memory):,} to {max(watch.memory):,} bytes, growth {watch.growth:,}")
        return 0 if watch.cache <= limit + slack(limit) and watch.precious <= limit else 1
    finally:
        host.remove()
        bucket.remove()


if __name__ == "__main__":
    sys.exit(main(parse_size(sys.argv[1]), parse_size(sys.argv[2])))
