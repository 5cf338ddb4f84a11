"""Limits hold: the cache, the bytes that are not in B2, memory; and what happens when they are reached."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from b2fs.core.chunks import CHUNK
from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import NewHost, failing, in_bucket, new_host, run
from tests.mount.stream import Watch, slack, stream
from tests.mount.support import until

__all__ = ["new_host"]

MIB = 1024 * 1024


@pytest.mark.slow
def test_stream_through_a_small_cache(new_host: NewHost) -> None:
    """384 MiB written and read through limits of 32 MiB: every byte is right, the limits and memory hold throughout."""
    limit = 32 * MIB
    host = new_host(cache_size=str(limit), dirty_size=str(limit), dirty_wait="5m")
    host.start()
    watch = stream(host, 384 * MIB, limit)
    assert watch.cache <= limit + slack(limit)
    assert watch.precious <= limit
    assert watch.growth < 48 * MIB
    host.stop()


@pytest.mark.slow
def test_cache_limit_under_open_files_and_parallel_readers(new_host: NewHost, devbucket: DevBucket) -> None:
    """Sixteen readers of sixteen open files of 6 MiB each, all larger than their part of a cache of 16 MiB."""
    files = {f"{number}.bin": os.urandom(6 * MIB) for number in range(16)}
    for name, data in files.items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host = new_host(cache_size=str(16 * MIB))
    host.start_listed()
    watch = Watch(host)
    opened = {name: os.open(host.path / name, os.O_RDONLY) for name in files}
    with watch.watching(), ThreadPoolExecutor(len(files)) as readers:

        def read(name: str) -> bytes:
            return b"".join(os.pread(opened[name], 128 * 1024, offset) for offset in range(0, 6 * MIB, 128 * 1024))

        for _ in range(2):
            assert dict(zip(files, readers.map(read, files), strict=True)) == files
    for descriptor in opened.values():
        os.close(descriptor)
    assert 8 * MIB < watch.cache <= 16 * MIB + CHUNK
    host.stop()


@pytest.mark.slow
def test_writers_wait_then_have_no_space(new_host: NewHost, devbucket: DevBucket) -> None:
    """Bytes that cannot get to B2 fill their limit: the writer waits `dirty_wait`, gets ENOSPC, and nothing of what was
    acknowledged changes; reads go on, also of what has to be fetched; `stats` showed the time to full; with B2 back a
    waiting writer goes on.
    """
    devbucket.admin.put(devbucket.bucket, "cold", b"from B2")
    host = new_host(dirty_size=str(4 * MIB), dirty_wait="2s", quiet_period="50ms")
    host.start_listed()
    away = devbucket.admin.fault("status", "b2_upload_file", count=None, status=503)
    written: dict[str, bytes] = {}
    with failing(errno.ENOSPC):
        for number in range(20):
            name = f"{number}.bin"
            with open(host.path / name, "wb", buffering=0) as file:
                written[name] = b""
                data = os.urandom(MIB // 2)
                written[name] += data[: file.write(data)]
    assert sum(map(len, written.values())) == 4 * MIB
    assert (host.path / "cold").read_bytes() == b"from B2"
    assert {name: (host.path / name).read_bytes() for name in written} == written
    until(lambda: host.stats()["dirty"]["time_to_full_s"] == 0.0)

    waiting = threading.Thread(target=(host.path / "more.bin").write_bytes, args=(bytes(MIB),))
    host.settings["dirty_wait"] = "2s"
    waiting.start()
    devbucket.admin.clear_faults(away)
    waiting.join(60)
    assert not waiting.is_alive()
    host.stop()
    assert in_bucket(devbucket) == {**written, "more.bin": bytes(MIB), "cold": b"from B2"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        run("umount", "-l", str(disk))


@pytest.mark.slow
def test_disk_that_is_full_is_waited_for(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """Limits larger than the disk: writers wait until uploads have made room on it, four times over, without an error."""
    host = new_host(state_dir=str(small_disk / "state"), dirty_wait="5m")
    host.state = small_disk / "state"
    host.start_listed()
    devbucket.admin.fault("latency", "b2_upload_file", count=None, seconds=0.2)
    files = {f"{number}.bin": os.urandom(4 * MIB) for number in range(24)}
    for name, data in files.items():
        (host.path / name).write_bytes(data)
    host.stop()
    assert in_bucket(devbucket) == files


@pytest.mark.slow
def test_disk_that_stays_full(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """With B2 away the writer gets ENOSPC after `dirty_wait`; what was acknowledged is read, kept, and gets there."""
    host = new_host(state_dir=str(small_disk / "state"), dirty_wait="1s", drain_timeout="1s")
    host.state = small_disk / "state"
    host.start_listed()
    away = devbucket.admin.fault("status", "b2_upload_file", count=None, status=503)
    written: dict[str, bytes] = {}
    began = time.monotonic()
    with failing(errno.ENOSPC):
        for number in range(40):
            data = os.urandom(MIB)
            descriptor = os.open(host.path / f"{number}.bin", os.O_WRONLY | os.O_CREAT)
            try:
                for offset in range(0, MIB, 65536):
                    os.pwrite(descriptor, data[offset : offset + 65536], offset)
                    written[f"{number}.bin"] = data[: offset + 65536]
            finally:
                os.close(descriptor)
    assert time.monotonic() - began > 1.0
    found = {name: (host.path / name).read_bytes() for name in written}
    assert found == written
    host.stop(Exit.NOT_DRAINED)
    devbucket.admin.clear_faults(away)
    host.settings["drain_timeout"] = "5m"
    host.start()
    host.stop()
    assert {name: data for name, data in in_bucket(devbucket).items() if data} == written
