"""How a row is measured: peers in turn, round after round, so that the machine's noise hits all the same."""

from __future__ import annotations

import array
import fcntl
import gc
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError
from typing import TypeVar

from bench.peers import Absent, Peer
from bench.report import Row
from tests.devbucket_fixture import DevBucket

P = TypeVar("P", bound=Peer)

_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602
"""FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of linux/fs.h."""
_TOPDIR = 0x00020000
"""FS_TOPDIR_FL: the directories in it belong to different things (chattr +T)."""


@dataclass
class Session:
    """One run of the benchmark: where it works, how much it does, and what it has to take away again."""

    base: Path
    quick: bool
    rounds: int
    slow_rounds: int
    """For rows of many seconds."""
    open: ExitStack
    number: int = field(default=0)

    def sized(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def folder(self, name: str) -> Path:
        self.number += 1
        return self.base / f"{self.number}-{name}-{secrets.token_hex(3)}"

    def peer(self, make: Callable[[Path], P]) -> P:
        """A peer that is closed when the table is done. Absent, as `make` says."""
        made = make(self.folder(getattr(make, "name", "peer")))
        self.open.callback(made.close)
        return made

    def devbucket(self, fill: Callable[[Path], None] = lambda root: None, *options: str) -> DevBucket:
        """An embedded bucket in its own process, filled before it starts."""
        server = DevBucket(*options)
        self.open.callback(server.remove)
        fill(server.root)
        server.start()
        return server

    @contextmanager
    def inner(self) -> Iterator[Session]:
        """A part of the run, whose peers and buckets are gone at its end."""
        with ExitStack() as stack:
            base = self.folder("part")
            stack.callback(shutil.rmtree, base, ignore_errors=True)
            yield Session(base, self.quick, self.rounds, self.slow_rounds, stack)

    def say(self, text: str) -> None:
        print(f"  {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


@contextmanager
def session(quick: bool, rounds: int, slow_rounds: int) -> Iterator[Session]:
    """Everything that was made in it is gone at its end."""
    base = Path(tempfile.mkdtemp(prefix="b2fs-bench-"))
    _spread(base)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        yield Session(base, quick, rounds, slow_rounds, stack)


def _spread(directory: Path) -> None:
    """Have ext4 give each directory in it a block group of its own; nothing on another file system.

    A new file is put beside its directory, and ext4 does not use an inode again for five minutes: where many files were
    deleted just now (the last benchmark, the peer before) making one takes a millisecond instead of 30 µs.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flags = array.array("i", [0])
        fcntl.ioctl(descriptor, _GETFLAGS, flags)
        flags[0] |= _TOPDIR
        fcntl.ioctl(descriptor, _SETFLAGS, flags)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def in_turn(peers: Sequence[P], rounds: int, sample: Callable[[P, int], Iterable[float]], *rows: Row) -> None:
    """Give each row its value of a sample, for each peer in each round; the order rotates.

    A peer that fails is left out of these rows, and noted.
    """
    failed: dict[str, str] = {}
    for number in range(rounds):
        first = number % len(peers)
        for peer in [*peers[first:], *peers[:first]]:
            if peer.name in failed:
                continue
            try:
                for row, value in zip(rows, sample(peer, number), strict=True):
                    row.samples.setdefault(peer.name, []).append(value)
            except (OSError, Absent, CalledProcessError) as error:
                failed[peer.name] = str(error)
    for row in rows:
        for name, why in failed.items():
            row.samples.pop(name, None)
            row.note = "; ".join(filter(None, [row.note, f"{name} fails ({why})"]))


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes, the garbage collector at rest."""
    gc.disable()
    try:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        gc.enable()


def is_root() -> bool:
    return os.geteuid() == 0
