"""What is in the bucket, and in the backing directories, before anything is measured.

Rules
  The bucket is filled past its API, before its process starts, so it takes seconds and is not measured.
  The same bytes on both sides; a file larger than `_WHOLE` is sparse, with a mark in each MiB, on both sides too.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from b2fs.devbucket.clock import Clock
from b2fs.devbucket.sample import SampleFile
from b2fs.devbucket.store import Store, Version

_WHOLE = 8 << 20
_MIB = 1 << 20
_MTIME = "src_last_modified_millis"


@dataclass(frozen=True)
class Seed:
    """One file: `data`, or when that is None `size` bytes that are made as they are needed."""

    path: str
    size: int
    data: bytes | None = None
    mtime_ns: int = 1_700_000_000 * 10**9


def of_sample(files: Iterable[SampleFile]) -> Iterator[Seed]:
    for file in files:
        yield Seed(file.path, len(file.data), file.data, file.mtime_ns)


def flat(folder: str, count: int, size: int) -> Iterator[Seed]:
    """Files of one directory, all of the same size and different content."""
    block = secrets.token_bytes(size)
    for number in range(count):
        name = f"{folder}/f{number:06}"
        yield Seed(name, size, (name.encode() + block)[:size])


def fill_directory(directory: Path, files: Iterable[Seed]) -> None:
    for file in files:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as opened:
            _write(opened.fileno(), file)
        os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


def fill_bucket(root: Path, bucket: str, files: Iterable[Seed], *, bodies: bool = True) -> None:
    """Objects for a devbucket that does not run. Without `bodies` they can be listed and nothing else."""
    store = Store(root, Clock())
    try:
        with store.transaction():
            row = store.bucket_by_name(bucket) or store.create_bucket(bucket, "allPrivate", {})
            for file in files:
                info = {_MTIME: str(file.mtime_ns // 10**6)}
                file_id, stamp_ms = store.begin(row.id)
                sha1 = "none"
                if bodies and file.data is not None and file.size <= _WHOLE:
                    incoming = store.bodies.new(file_id)
                    incoming.hold(file.data)
                    sha1 = incoming.close()
                    store.bodies.settle(file_id)
                elif bodies:
                    incoming = store.bodies.new(file_id)
                    incoming.close()
                    store.bodies.settle(file_id)
                    fd = store.bodies.open(file_id)
                    try:
                        with open(f"/proc/self/fd/{fd}", "wb") as body:
                            _write(body.fileno(), file)
                    finally:
                        os.close(fd)
                store.insert(
                    Version(
                        row.id, file.path, stamp_ms, file_id, "upload", file.size, sha1,
                        "application/octet-stream", info,
                    )
                )  # fmt: skip
    finally:
        store.close()


def expected(file: Seed, offset: int) -> bytes:
    """The mark of a sparse file at `offset`, a multiple of a MiB."""
    return b"%016x" % (offset ^ file.size)


def _write(fd: int, file: Seed) -> None:
    if file.data is not None:
        os.write(fd, file.data)
        return
    os.ftruncate(fd, file.size)
    for offset in range(0, file.size - 16, _MIB):
        os.pwrite(fd, expected(file, offset), offset)
