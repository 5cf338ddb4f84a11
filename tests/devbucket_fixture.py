"""The embedded bucket for tests: a `devbucket` fixture that runs it in a child process.

Use: in the folder's conftest ``from tests.devbucket_fixture import _shared_devbucket, devbucket, fresh_devbucket``
(pytest finds fixtures by the names in a conftest), then take `devbucket` or `fresh_devbucket` as an argument.
`fresh_devbucket` is for tests that stop, kill, or restart it; `devbucket` is one process for a whole module
with an empty bucket for each test.

Rules
  The child is ended by its pid, and its files are removed, however the test ends.
  A bucket with `DevBucket.start` on the same root sees everything that was acknowledged before.
"""

from __future__ import annotations

import itertools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from b2fs.devbucket.client import DevBucketAdmin

START_DEADLINE_S = 20.0


class DevBucket:
    """A devbucket in a child process. `start` it, `stop` it (SIGTERM) or `kill` it; `remove` ends all.

    `url` is the realm for b2sdk, the ``--environment`` of the b2 tool and rclone's endpoint.
    """

    def __init__(self, *options: str, bucket: str = "devbucket") -> None:
        self.root = Path(tempfile.mkdtemp(prefix="devbucket-"))
        self.key_id = "dev-key-id"
        self.key = "dev-key-secret"
        self.bucket = bucket
        """The name of the bucket that a test should use; it exists."""
        self.url = ""
        self.admin: DevBucketAdmin
        self._options = options
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "b2fs", "devbucket", "--root", str(self.root), "--port", str(port)]
        environ = dict(os.environ, B2_APPLICATION_KEY_ID=self.key_id, B2_APPLICATION_KEY=self.key)
        self._process = subprocess.Popen(
            [*command, "--bucket", self.bucket, "--quiet", *self._options],
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        line = self._first_line()
        assert line.startswith("ready: "), f"devbucket did not start: {line!r}"
        self.url = line.removeprefix("ready: ").strip()
        self.admin = DevBucketAdmin(self.url)

    def stop(self) -> int:
        """End it in order; its exit code."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would: SIGKILL."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same root and the same port, so that clients find it."""
        self.start(int(self.url.rpartition(":")[2]))

    def remove(self) -> None:
        if self._process is not None:
            self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        self.admin.close()
        self._process.send_signal(number)
        code = self._process.wait(timeout=20)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code

    def _first_line(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(START_DEADLINE_S):
                self._process.kill()
                self._process.wait()
                self._process.stdout.close()
                return "no answer"
        return self._process.stdout.readline()


@pytest.fixture(scope="module")
def _shared_devbucket() -> Iterator[DevBucket]:
    server = DevBucket()
    try:
        server.start()
        yield server
    finally:
        server.remove()


_numbers = itertools.count(1)


@pytest.fixture
def devbucket(_shared_devbucket: DevBucket) -> DevBucket:
    """A running devbucket with an empty bucket of its own for this test, nothing counted, no faults."""
    server = _shared_devbucket
    server.admin.disconnect()  # what an earlier test has left waiting
    server.admin.reset()
    server.bucket = f"bucket-{next(_numbers):04d}"
    server.admin.create_bucket(server.bucket)
    return server


@pytest.fixture
def fresh_devbucket() -> Iterator[DevBucket]:
    """A devbucket in a process and a root of its own, for tests that stop or kill it."""
    server = DevBucket()
    try:
        server.start()
        yield server
    finally:
        server.remove()
