"""An engine in this process, on a bucket in memory, and `os` for it: the target "engine" of the suite.

Rules
  The engine runs as in production (`serve`: uploads, listings, housekeeping) and by the real clock, in the test's own thread:
  while a call is answered everything goes on that can, between two calls nothing does. So whoever the test is at the
  moment (`seteuid`, `umask`) is nothing to the engine.
  At the end it drains, and is checked as the engine's tests do it (`tests.engine.world`): `b2fs fsck --remote`, bytes that
  count against limits, and no bug in its log.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import outcome
import trio

from b2fs.core.inode import ROOT, Defaults
from tests.engine.world import Mount, World
from tests.posix.vfs.kernel import DirEntry, Kernel

_START_S = 60.0
_QUIET_S = 1.0
"""Uploads go on while the tests run, as on the mount."""


class EngineHost:
    """Like `tests.mount.hosts.Host`, without a mount: started and ended any number of times."""

    def __init__(self, directory: Path) -> None:
        self.system = System(self)
        self.kernel: Kernel
        self._mount: Mount
        self._world = World(directory)
        self._steps: SimpleQueue[Callable[[], object]] = SimpleQueue()
        """Of the loop: it goes on as long as somebody takes them."""
        self._request: tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]] | None = None
        self._result: outcome.Outcome[Any] | None = None
        self._ended: outcome.Outcome[None] | None = None
        self._ready = self._stopping = False
        self._bugs = _Bugs()

    def start_listed(self) -> None:
        """Start, and wait until all names of the bucket are known."""
        logging.getLogger("b2fs").addHandler(self._bugs)
        self._ready, self._stopping, self._ended = False, False, None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._steps.put,
            done_callback=self._done,
            host_uses_signal_set_wakeup_fd=True,
        )
        self._go_on_until(lambda: self._ready)

    start = start_listed

    def flush(self) -> None:
        """Everything is in the bucket."""
        self.run(self._mount.drained)

    def stop(self) -> None:
        """End in order. What is wrong in what the engine has left is raised here."""
        if self._ended is not None or not self._ready:
            return  # not running
        self._stopping = True
        self._go_on_until(lambda: False)
        assert not self._bugs.found, f"logged with a traceback: {self._bugs.found}"

    def _done(self, ended: outcome.Outcome[None]) -> None:
        self._ended = ended
        logging.getLogger("b2fs").removeHandler(self._bugs)

    def forget_state(self) -> None:
        self._world.forget("state")

    def run(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """What `call` comes to on the engine's loop."""
        self._request, self._result = (call, args), None
        self._go_on_until(lambda: self._result)
        assert self._result is not None
        return self._result.unwrap()

    def _go_on_until(self, condition: Callable[[], object]) -> None:
        """Let the engine go on until something is so, or it has ended: with an error, that is raised."""
        while not condition() and self._ended is None:
            self._steps.get()()
        if self._ended is not None:
            self._ended.unwrap()

    async def _main(self) -> None:
        async with self._world.mount(serve=True, quiet_s=_QUIET_S, defaults=Defaults(0, 0)) as self._mount:
            self._mount.volume.now_ns = time.time_ns
            await self._mount.until(lambda: self._mount.engine.listing.complete, _START_S)
            self.kernel = Kernel(self._mount.files, self._mount.volume.tree.node(ROOT))
            self._ready = True
            while not self._stopping:
                if self._request is not None:
                    (call, args), self._request = self._request, None
                    self._result = await outcome.acapture(call, *args)
                await trio.lowlevel.checkpoint()  # between two calls nobody takes the steps, so this is no busy loop
            await self.kernel.exit()
            await self._mount.drained()


class _Bugs(logging.Handler):
    """What the engine survived by logging it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(self.format(record))


class System:
    """System calls with the names and arguments of those in `os`, answered by the kernel of an `EngineHost`."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self.path = _Path(self)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A call of the kernel. AttributeError: it has none of that name, the test is one of the kernel's own part."""
        if not hasattr(Kernel, name):
            raise AttributeError(f"os.{name} is not there on the engine: mark the test `kernel`")

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._host.run(self._host.kernel.call, name, args, kwargs)

        self.__dict__[name] = call
        return call

    def exit(self) -> None:
        self._host.run(self._host.kernel.exit)

    # ------------------------------------------------------------ the process

    def seteuid(self, uid: int) -> None:
        self._host.kernel.process.uid = uid

    def setegid(self, gid: int) -> None:
        self._host.kernel.process.gid = gid

    def setgroups(self, groups: list[int]) -> None:
        self._host.kernel.process.groups = tuple(groups)

    def getgroups(self) -> list[int]:
        return list(self._host.kernel.process.groups)

    def umask(self, mask: int) -> int:
        process = self._host.kernel.process
        before, process.mask = process.mask, mask & 0o777
        return before

    # ------------------------------------------------------------ what `os` makes of calls

    def makedirs(self, path: str, mode: int = 0o777) -> None:
        above = os.path.dirname(path)
        if above and not self.path.exists(above):
            self.makedirs(above, mode)
        self.mkdir(path, mode)

    def walk(self, top: str, topdown: bool = True) -> Iterator[tuple[str, list[str], list[str]]]:
        directories: list[str] = []
        files: list[str] = []
        links: set[str] = set()
        try:
            with self.stream(top) as stream:
                entries = list(iter(stream.read, None))
        except OSError:
            return  # as `os.walk` has it
        for name, _, kind in entries:
            if name not in (".", ".."):
                is_link = kind == stat.S_IFLNK >> 12
                is_dir = kind == stat.S_IFDIR >> 12 or (is_link and self.path.isdir(os.path.join(top, name)))
                (directories if is_dir else files).append(name)
                if is_link:
                    links.add(name)
        if topdown:
            yield top, directories, files
        for name in directories:
            if name not in links:
                yield from self.walk(os.path.join(top, name), topdown)
        if not topdown:
            yield top, directories, files

    def stream(self, path: str) -> Stream:
        return Stream(self, path)


class _Path:
    """What `os.path` asks the kernel."""

    def __init__(self, system: System) -> None:
        self._system = system

    def _mode(self, path: str, follow: bool) -> int:
        try:
            return int(self._system.stat(path, follow_symlinks=follow).st_mode)
        except OSError:
            return 0

    def exists(self, path: str) -> bool:
        return self._mode(path, True) != 0

    def lexists(self, path: str) -> bool:
        return self._mode(path, False) != 0

    def isdir(self, path: str) -> bool:
        return stat.S_ISDIR(self._mode(path, True))

    def isfile(self, path: str) -> bool:
        return stat.S_ISREG(self._mode(path, True))

    def islink(self, path: str) -> bool:
        return stat.S_ISLNK(self._mode(path, False))


class Stream:
    """A directory stream: opendir, readdir, telldir, seekdir, rewinddir; as the C library's, with a buffer."""

    def __init__(self, system: System, path: str) -> None:
        self._system = system
        self._fd = system.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._buffer: list[DirEntry] = []
        self._position = 0

    def read(self) -> tuple[str, int, int] | None:
        if not self._buffer:
            self._buffer = self._system.getdents(self._fd)[::-1]
        if not self._buffer:
            return None
        entry = self._buffer.pop()
        self._position = entry.next_position
        return entry.name, entry.ino, entry.kind

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        self._buffer, self._position = [], position
        self._system.lseek(self._fd, position, os.SEEK_SET)

    def rewind(self) -> None:
        self.seek(0)

    def close(self) -> None:
        self._system.close(self._fd)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
