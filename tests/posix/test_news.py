"""What others put into the bucket, in the moment before the kernel knows of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket, devbucket
from tests.mount.hosts import NewHost, new_host
from tests.mount.support import until
from tests.posix.support import OTHER, fails, user

__all__ = ["devbucket", "new_host"]

pytestmark = [pytest.mark.fuse, pytest.mark.slow]


@pytest.fixture
def news(new_host: NewHost, devbucket: DevBucket) -> Path:
    """A mount whose kernel believes that `new` is not there, while the daemon knows that somebody has made it."""
    host = new_host(refresh_interval="300ms")
    host.program = (sys.executable, "-m", "tests.posix.deaf")
    host.start_listed()
    path = host.path / "new"
    assert not path.exists()
    devbucket.admin.put(devbucket.bucket, "new", b"theirs")
    listings = devbucket.admin.calls()["b2_list_file_names"]
    until(lambda: devbucket.admin.calls()["b2_list_file_names"] > listings + 2)  # whoever looks would tell the kernel
    return path


def _rewrite(path: Path) -> bytes:
    path.write_bytes(b"ours")
    return path.read_bytes()


def _append(path: Path) -> bytes:
    with path.open("ab") as file:
        file.write(b"+")
    return path.read_bytes()


@pytest.mark.parametrize(("write", "left"), [(_rewrite, b"ours"), (_append, b"theirs+")])
def test_create_of_what_has_just_come(news: Path, write: Callable[[Path], bytes], left: bytes) -> None:
    """O_CREAT opens the file that somebody else has made meanwhile; it is no EEXIST that nobody asked for."""
    assert write(news) == left


def test_exclusive_create_of_what_has_just_come(news: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_CREAT|O_EXCL is EEXIST, and who may not write is refused."""
    with fails("EEXIST"):
        os.open(news, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.chmod(news.parent, 0o777)
    with monkeypatch.context() as patch:
        patch.chdir(news.parent)
        with user(OTHER), fails("EACCES"):
            os.open("new", os.O_CREAT | os.O_WRONLY)
