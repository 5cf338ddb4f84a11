"""Processes for the tests of the commands: the `b2fs` command itself, and a stub of the daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from b2fs.ops import mounts
from tests.devbucket_fixture import _shared_devbucket, devbucket, fresh_devbucket

__all__ = ["_shared_devbucket", "devbucket", "fresh_devbucket"]

B2fs = Callable[..., "subprocess.CompletedProcess[str]"]
Stub = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def b2fs() -> B2fs:
    """Run `b2fs ARGS` to its end, in an environment that holds no settings but `environ`."""

    def run(
        *args: str, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "b2fs", *args]
        whole = {**os.environ, **(environ or {})}
        return subprocess.run(command, env=whole, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[str]:
    """An empty directory; whatever a test leaves mounted there is taken away."""
    path = tmp_path / "data"
    path.mkdir()
    yield str(path)
    while any(mount.mountpoint == str(path) for mount in mounts.all_mounts()):
        mounts.detach(str(path))


@pytest.fixture
def stub(mountpoint: str) -> Iterator[Stub]:
    """Start `stub_daemon.py` on the mountpoint, and wait until it serves; it is killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(manner: str = "serve") -> subprocess.Popen[str]:
        command = [sys.executable, str(Path(__file__).with_name("stub_daemon.py")), mountpoint, manner]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout and process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
