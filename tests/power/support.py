"""The tests' side of `layer`: a disk whose power can be cut, mounted by a child process.

Rules
  The child is ended by its pid and its mount taken away, however a test ends.
  A test works in a directory of its own (`Layer.directory`), which is gone afterwards.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import trio

from b2fs.ops import mounts
from tests.engine.seams import Dead, InlineSeam, Killed
from tests.engine.world import Mount, World

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

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
            [sys.executable, "-m", "tests.power.layer", str(self.disk), self._socket],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
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

    @contextmanager
    def revived(self, image: Path) -> Iterator[Path]:
        """A directory on the disk that holds what an image holds, all of it on stable storage; the image is gone."""
        with self.directory() as place:
            try:
                shutil.copytree(image, place, dirs_exist_ok=True)
            finally:
                shutil.rmtree(image)
            for folder, _, files in os.walk(place):
                for name in (*files, "."):
                    sync(Path(folder, name))
            yield place

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

    def kill(self) -> None:
        """From now on nothing changes: a program that ends in order ends as by SIGKILL, to the disk. Until `fail`."""
        self.fail(("create link rename unlink write truncate attributes sync", "*", errno.EIO))


def sync(path: Path) -> None:
    """fsync a file or a directory by its path."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- engines on it


class PowerPoint:
    """The moment at which the power goes, for an engine in this process whose state directory is on the layer."""

    def __init__(self, layer: Layer, disk: Path) -> None:
        self._layer = layer
        self._disk = disk
        self.image = layer.new_image()
        self.gone = False
        """No call of the engine goes on any more."""
        self.killed = False
        """Because it was killed; the power is there still."""

    def arm(self, at: int, seed: int | None) -> None:
        """Cut before the `at`-th change of the disk from now."""
        self.image = self._layer.arm(self._disk, at, seed)

    def now(self, seed: int | None) -> None:
        """Cut now, if it has not come to it yet."""
        self._layer.disarm()
        if not self.image.exists():
            self.image = self._layer.image(self._disk, seed)

    def kill(self) -> None:
        """SIGKILL: the disk sees nothing of how the engine ends."""
        self._layer.kill()
        self.gone = self.killed = True
        raise Killed

    def revive(self) -> None:
        """After a kill, before the next start."""
        self._layer.fail()
        self.gone = self.killed = False

    def hit(self) -> None:
        """Passed before and after whatever the engine does: nobody hears of what happened after the cut."""
        if self.gone:
            raise Dead
        if self.image.exists():
            self.gone = True
            raise Killed


class PowerSeam(InlineSeam):
    """Passes the point before and after every call."""

    def __init__(self, point: PowerPoint) -> None:
        super().__init__()
        self._point = point

    def inline(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        self._point.hit()
        result = super().inline(call, *args)
        self._point.hit()
        return result

    async def thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        self._point.hit()
        result = call(*args)
        self._point.hit()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result


async def until_the_cut(world: World, point: PowerPoint, main: Callable[[], Awaitable[None]], seed: int | None) -> bool:
    """Run until the power goes, or to the end and cut then; whether it came before the end."""
    world.bucket.tap = point.hit
    try:
        await main()
    except BaseException as error:
        if not point.gone or not is_the_cut(error):
            raise
    world.bucket.tap = None
    world.bucket.mend()
    came = point.image.exists()
    point.now(seed)
    return came


def is_the_cut(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_the_cut, error.exceptions))
    return isinstance(error, Killed | Dead | trio.Cancelled)


@asynccontextmanager
async def restart(world: World, **settings: Any) -> AsyncIterator[Mount]:
    """The next start, in another boot, where `world.root` is what the power left; B2 has not been listed yet."""
    async with world.mount(listing=False, crashed=True, boot="another", known=("damaged",), **settings) as m:
        yield m
