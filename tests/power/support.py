"""The tests' side of `layer`: a disk whose power can be cut, mounted by a child process.

Rules
  The child is ended by its pid and its mount taken away, however a test ends.
  A test works in a directory of its own (`Layer.directory`), which is gone afterwards.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from b2fs.ops import mounts

_START_S = 30.0
_STOP_S = 60.0


class Layer:
    """A running layer. `disk` is its mountpoint; images lie beside it, on a disk that is not its own."""

    def __init__(self) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="power-"))
        self.disk = self._base / "disk"
        self.disk.mkdir()
        self._socket = str(self._base / "control")
        self._images = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.power.layer", str(self.disk), self._socket], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_START_S) or self._process.stdout.readline() != b"ready\n":
                self.remove()
                raise AssertionError("the layer did not start")

    def remove(self) -> None:
        if self._process.poll() is None:
            try:
                self._ask("stop")
                self._process.wait(_STOP_S)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait(_STOP_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        for mount in mounts.all_mounts():
            if mount.mountpoint == str(self.disk):
                mounts.detach(str(self.disk))
        shutil.rmtree(self._base)

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """An empty directory on the disk, known to stable storage; no fault is left behind either."""
        place = Path(tempfile.mkdtemp(dir=self.disk))
        sync(self.disk)
        try:
            yield place
        finally:
            self.fail()
            self.disarm()
            shutil.rmtree(place)
            sync(self.disk)

    # ------------------------------------------------------------ commands

    def _ask(self, do: str, **arguments: Any) -> Any:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._socket)
            connection.sendall(json.dumps({"do": do} | arguments).encode() + b"\n")
            answer = b""
            while part := connection.recv(65536):
                answer += part
        value = json.loads(answer)
        assert not (isinstance(value, dict) and "error" in value), value
        return value

    def _inside(self, path: Path) -> str:
        inside = str(path.relative_to(self.disk))
        return "" if inside == "." else inside

    def new_image(self) -> Path:
        """Where the next image can lie."""
        self._images += 1
        return self._base / f"image-{self._images}"

    def image(self, path: Path, seed: int | None = None) -> Path:
        """What would be left of the directory `path` if the power went now; without a seed, only what was synced."""
        to = self.new_image()
        self._ask("image", path=self._inside(path), to=str(to), seed=seed)
        return to

    def arm(self, path: Path, at: int, seed: int | None = None) -> Path:
        """The same right before the `at`-th change from now; the image is not there before. One at a time."""
        to = self.new_image()
        self._ask("arm", path=self._inside(path), to=str(to), seed=seed, at=at)
        return to

    def disarm(self) -> None:
        self._ask("arm", path="", to="", seed=None, at=0)

    def counted(self) -> int:
        """Changes so far."""
        count: int = self._ask("counted")
        return count

    def fail(self, *faults: tuple[str, str, int]) -> None:
        """Only these (operations by space, pattern of paths from the mountpoint, errno) fail from now on."""
        self._ask("fail", faults=faults)


def sync(path: Path) -> None:
    """fsync a file or a directory by its path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
