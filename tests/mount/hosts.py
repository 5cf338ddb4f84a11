"""Shared by the tests of whole mounts: any number of hosts on one bucket, and what the bucket holds in the end."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from b2fs.core.names import MARKER
from tests.devbucket_fixture import DevBucket
from tests.mount.support import Mount, until

LONG = "1h"
"""A quiet period whose end no test sees: only a drain uploads."""

FILES = {
    "a.txt": b"first",
    "dír/файл.json": b'{"n": 1}' * 500,
    "dir/deep/er/blob.bin": bytes(range(256)) * 2000,
    "dir/empty": b"",
}


class Host(Mount):
    """A mount that can be started more than once."""

    def launch(self, *arguments: str, catch_errors: bool = False) -> None:
        if self.process is not None:
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
        super().launch(*arguments, catch_errors=catch_errors)

    def start_listed(self) -> None:
        """Start, and wait until all names of the bucket are known: from then on B2 may go away."""
        self.start()
        until(lambda: self.status()["listing"]["complete"])

    def ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def transfer_process(self) -> int:
        """The pid of the daemon's only child."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        (child,) = [int(pid) for task in tasks for pid in task.read_text().split()]
        return child


NewHost = Callable[..., Host]


@pytest.fixture
def new_host(devbucket: DevBucket) -> Iterator[NewHost]:
    """Makes hosts for `devbucket` (or another bucket), with settings, not started yet; ends them all."""
    made: list[Host] = []

    def make(bucket: DevBucket = devbucket, **settings: str) -> Host:
        made.append(Host(bucket, **settings))
        return made[-1]

    yield make
    for each in made:
        each.remove()


def write(root: Path, files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def in_bucket(bucket: DevBucket) -> dict[str, bytes]:
    """The bytes of all visible objects but the markers of directories."""
    return {
        name: bucket.admin.content_by_id(row["fileId"])
        for name, row in bucket.admin.objects(bucket.bucket).items()
        if name.rpartition("/")[2] != MARKER
    }


@contextmanager
def failing(number: int) -> Iterator[None]:
    """What is done inside fails with this errno."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, caught.value


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
