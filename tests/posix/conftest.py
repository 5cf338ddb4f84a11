"""Each test runs twice: in a directory of the host's disk ("plain") and in one of a real mount ("mount").

Rules
  What differs is a defect, or stands in `test_deviations.py` and in SEMANTICS.md.
  One daemon serves a module, with uploads going on meanwhile; at the end it drains, and its state is checked.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket, _shared_devbucket
from tests.mount.hosts import Host

__all__ = ["_shared_devbucket"]


@pytest.fixture(scope="module")
def mounted(_shared_devbucket: DevBucket) -> Iterator[Host]:
    """A mount of an empty bucket for the module."""
    host = Host(_shared_devbucket, quiet_period="1s")
    try:
        host.start_listed()
        yield host
        host.stop()
    finally:
        host.remove()


@pytest.fixture
def plain() -> Iterator[Path]:
    """A directory of the host's disk."""
    path = Path(tempfile.mkdtemp(prefix="plain-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["plain", pytest.param("mount", marks=pytest.mark.fuse)])
def target(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    return str(request.param)


@pytest.fixture
def root(request: pytest.FixtureRequest, target: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory, mode 0755, of that kind; the working directory of the test."""
    if target == "plain":
        path = request.getfixturevalue("plain")
    else:
        host: Host = request.getfixturevalue("mounted")
        path = Path(tempfile.mkdtemp(dir=host.path))
    path.chmod(0o755)
    mask = os.umask(0o022)
    with monkeypatch.context() as patch:
        patch.chdir(path)
        yield path
    os.umask(mask)
    if target == "mount":
        shutil.rmtree(path)
