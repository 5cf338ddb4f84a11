"""Every test here runs a program on a real mount: a bucket of its own, a started host, a plain directory beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket, _shared_devbucket, devbucket
from tests.mount.hosts import Host

__all__ = ["_shared_devbucket", "devbucket"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/programs" in str(item.path):
            item.add_marker(pytest.mark.fuse)
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def host(devbucket: DevBucket) -> Iterator[Host]:
    """A mount of an empty bucket, serving; when the test has passed, it ends in order."""
    made = Host(devbucket)
    before = os.umask(0o022)
    try:
        made.start()
        yield made
        if not made.ended():
            made.stop()
    finally:
        os.umask(before)
        made.remove()


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs find no settings of the one who runs the tests, and leave nothing with them."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An empty directory without b2fs."""
    (tmp_path / "plain").mkdir()
    return tmp_path / "plain"
