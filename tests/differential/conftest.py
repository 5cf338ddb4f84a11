"""Every test here mounts for real; one mount serves all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket
from tests.differential.rig import Rig
from tests.mount.hosts import Host


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/differential" in str(item.path):
            item.add_marker(pytest.mark.fuse)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """A mount of an empty bucket and an empty plain directory."""
    bucket = DevBucket()
    host = Host(bucket, cache_size="4MiB")
    try:
        with tempfile.TemporaryDirectory(prefix="plain-") as plain:
            bucket.start()
            host.start()
            yield Rig(host, Path(plain), lambda: Host(bucket))
            host.stop()
    finally:
        host.remove()
        bucket.remove()
