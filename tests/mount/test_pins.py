"""Pins on a real mount: they stay, whatever is read, over a kill and without B2."""

from __future__ import annotations

import os

import pytest

from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import NewHost, new_host
from tests.mount.support import until

__all__ = ["new_host"]


@pytest.mark.slow
def test_pinned_files_outlive_a_flood_a_kill_and_an_outage(new_host: NewHost, devbucket: DevBucket) -> None:
    """What `pin` names, from the bucket, of another host, large, and written here, is read without B2 in the end."""
    files = {f"site/{number}/info.json": os.urandom(2000) for number in range(10)}
    files["site/large.json"] = os.urandom(5_000_000)
    others = {f"audio/{number}.mp3": os.urandom(1_000_000) for number in range(20)}
    for name, data in (files | others).items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host = new_host(pin="*.json", cache_size="12MiB", refresh_interval="1s", quiet_period="100ms")

    def all_pinned() -> bool:
        pins = host.stats()["pins"]
        return bool(
            pins["files"] == len(files) and pins["bytes"] == pins["here_bytes"] == sum(map(len, files.values()))
        )

    host.start_listed()
    until(all_pinned)
    files["site/3/info.json"] = b"of another host"
    devbucket.admin.put(devbucket.bucket, "site/3/info.json", files["site/3/info.json"])
    files["site/4/info.json"] = b"written here"
    (host.path / "site/4/info.json").write_bytes(files["site/4/info.json"])
    files["site/moved.json"] = others.pop("audio/7.mp3")
    (host.path / "audio/7.mp3").rename(host.path / "site/moved.json")
    until(all_pinned)
    for name, data in others.items():
        assert (host.path / name).read_bytes() == data
    host.kill()
    host.start()
    for name in list(others)[:10]:
        (host.path / name).read_bytes()
    until(all_pinned)
    assert host.stats()["cache"]["bytes"] <= 12 << 20
    devbucket.admin.down()
    for name, data in files.items():
        assert (host.path / name).read_bytes() == data
    devbucket.admin.up()
    host.stop()
