"""Prefetch on a real mount: what was fetched ahead is what the kernel's reads find."""

from __future__ import annotations

import os

import pytest

from b2fs.core.prefetch import START
from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import NewHost, new_host
from tests.mount.support import until

__all__ = ["new_host"]


@pytest.mark.slow
def test_reads_in_order_find_what_was_fetched_ahead(new_host: NewHost, devbucket: DevBucket) -> None:
    """A read of the first file brings the next ones; they are read without a request, and each is fetched once."""
    files = {f"d/{number:03}.mp3": os.urandom(25_000) for number in range(40)}
    for name, data in files.items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host = new_host()
    host.start_listed()
    names = list(files)
    assert (host.path / names[0]).read_bytes() == files[names[0]]
    until(lambda: host.stats()["prefetch"]["unread"] == START)
    before = host.stats()["cache"]
    assert (host.path / names[1]).read_bytes() == files[names[1]]
    after = host.stats()["cache"]
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (1, 0)
    for name in names[2:]:
        assert (host.path / name).read_bytes() == files[name]
    prefetch = host.stats()["prefetch"]
    assert prefetch["on"]
    assert prefetch["useful"] == prefetch["requests"] <= len(files) - 1
    assert prefetch["requests"] >= 2 * START
    assert devbucket.admin.calls()["b2_download_file_by_id"] == len(files)
    host.stop()


@pytest.mark.slow
def test_patterns_are_here_before_anybody_asks(new_host: NewHost, devbucket: DevBucket) -> None:
    """What `prefetch` names is fetched without a read; the rest is not."""
    for number in range(10):
        for name in ("info.json", "audio.mp3"):
            devbucket.admin.put(devbucket.bucket, f"d{number}/{name}", b"content")
    host = new_host(prefetch="*.json")
    host.start_listed()
    until(lambda: host.stats()["prefetch"]["unread"] == 10)
    assert devbucket.admin.calls()["b2_download_file_by_id"] == 10
    assert (host.path / "d3" / "info.json").read_bytes() == b"content"
    assert host.stats()["cache"]["misses"] == 0
    host.stop()
