"""Every test here mounts for real."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.devbucket_fixture import DevBucket, _shared_devbucket, devbucket, fresh_devbucket
from tests.mount.support import Mount

__all__ = ["_shared_devbucket", "devbucket", "fresh_devbucket"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/mount" in str(item.path):
            item.add_marker(pytest.mark.fuse)


@pytest.fixture
def mount(devbucket: DevBucket) -> Iterator[Mount]:
    """A mount of an empty bucket, serving."""
    mounted = Mount(devbucket)
    try:
        mounted.start()
        yield mounted
    finally:
        mounted.remove()
