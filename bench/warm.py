"""Warm: everything is on this machine, nothing is asked of the bucket. What one operation costs.

Rules
  The files to read are in the bucket (or the backing directory) before the start, and each was read once. Uploads
  are put off, by b2fs's `quiet_period` and rclone's `--vfs-write-back`: journal and bookkeeping are in force, transfers not.
  "first": the kernel has forgotten the mount's names, attributes and pages; the daemon has not. A plain directory
  keeps the page cache: its row is the limit, not a peer.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.measure import Session, in_turn, timed
from bench.peers import Absent, B2fs, Binding, Libfuse, Peer, Rclone
from bench.report import Reach, Row, Table
from bench.seed import Seed, fill_bucket, fill_directory, flat

_BLOCK = 4096
_MB = 1e6
_PUT_OFF = "6h"
_RATIOS = (("b2fs", "pyfuse3"), ("rclone", "b2fs"))
_CPU_UNITS = {"µs": "µs", "ms": "ms", "MB/s": "ms/MB"}
_PER = {"µs": 1e6, "ms": 1e3, "MB/s": 1e3}

T = TypeVar("T")


@dataclass(frozen=True)
class Case:
    """A row: `run` does the work of a round in a directory and one below it that is the peer's own; the row's value."""

    name: str
    unit: str
    run: Callable[[Path, str, int], float]
    count: float = 1
    """Operations in a sample, or megabytes: by what the daemon's CPU time is divided."""
    reach: tuple[Reach, ...] = ()
    more_is_better: bool = False
    first: bool = False
    """The kernel forgets the mount before each sample."""
    copies: bool = False
    """Programs that copy attributes: rclone's mount2, because its mount answers them EIO."""


class Warm:
    def __init__(self, small: int, many: int, large: int, written: int) -> None:
        self.small = small
        """Files of one block, in one directory; also how often an operation is done in a sample."""
        self.many = many
        self.large = large
        self.written = written
        """Bytes that a sample writes."""

    def read(self) -> list[Seed]:
        return [*flat("small", self.small, _BLOCK), Seed("large", self.large)]

    def listed(self) -> list[Seed]:
        return [*flat("many", self.many, 100)]

    def touch(self, directory: Path, own: str) -> None:
        """Read everything once."""
        for folder in ("small", "many"):
            for entry in os.scandir(directory / folder):
                entry.stat()
        for number in range(self.small):
            _read_file(f"{directory}/small/f{number:06}")
        self.read_large(directory, own, 0)
        (directory / own).mkdir()

    def cases(self) -> list[Case]:
        near = Reach(1.5, "pyfuse3")

        def than_rclone(times: float) -> tuple[Reach, ...]:
            return near, Reach(1 / times, "rclone")

        return [
            Case("stat, first", "µs", self.stat, self.small, (near,), first=True),
            Case("stat, again", "µs", self.stat, self.small, (near,)),
            Case("ENOENT, first", "µs", self.missing, self.small, (near,)),
            Case("ENOENT, again", "µs", self.missing_again, 2 * self.small, (near,)),
            Case(f"ls -l of {self.many:,}, first", "ms", self.list_long, 1, (near,), first=True),
            Case(f"ls -l of {self.many:,}, again", "ms", self.list_long, 1, (near,)),
            Case("open+read+close 4 KiB, first", "µs", self.read_small, self.small, than_rclone(4), first=True),
            Case("open+read+close 4 KiB, again", "µs", self.read_small, self.small, than_rclone(4)),
            Case("create+write+close 4 KiB", "µs", self.create, self.small, than_rclone(3)),
            Case("rewrite (O_TRUNC) 4 KiB", "µs", self.rewrite, self.small, (near,)),
            Case("rename", "µs", self.rename, self.small, (near,)),
            Case("unlink", "µs", self.unlink, self.small, (near,)),
            Case("copy2 of 25 kB", "µs", self.copy, self.small // 10, (near,), copies=True),
            Case(
                "sequential read, first",
                "MB/s",
                self.read_large,
                self.large / _MB,
                than_rclone(5),
                more_is_better=True,
                first=True,
            ),
            Case(
                "sequential read, again", "MB/s", self.read_large, self.large / _MB, than_rclone(5), more_is_better=True
            ),
            Case("random read of 4 KiB", "µs", self.read_random, self.small, (near,), first=True),
            Case(
                "write in 4 KiB", "MB/s", self.write_in(_BLOCK), self.written / _MB, than_rclone(3), more_is_better=True
            ),
            Case(
                "write in 128 KiB", "MB/s", self.write_in(128 * 1024), self.written / _MB, (near,), more_is_better=True
            ),
            Case("write in 1 MiB", "MB/s", self.write_in(1 << 20), self.written / _MB, (near,), more_is_better=True),
        ]

    # ------------------------------------------------------------ reading

    def stat(self, directory: Path, own: str, number: int) -> float:
        paths = [f"{directory}/small/f{each:06}" for each in range(self.small)]
        return _each(os.stat, paths)

    def missing(self, directory: Path, own: str, number: int) -> float:
        paths = [f"{directory}/small/none-{number}-{each}" for each in range(self.small)]
        return _each(os.path.exists, paths)

    def missing_again(self, directory: Path, own: str, number: int) -> float:
        self.missing(directory, own, -1)
        return self.missing(directory, own, -1)

    def list_long(self, directory: Path, own: str, number: int) -> float:
        folder = f"{directory}/many"

        def work() -> None:
            with os.scandir(folder) as entries:
                for entry in entries:
                    entry.stat()

        return timed(work) * 1e3

    def read_small(self, directory: Path, own: str, number: int) -> float:
        paths = [f"{directory}/small/f{each:06}" for each in range(self.small)]
        return _each(_read_file, paths)

    def read_large(self, directory: Path, own: str, number: int) -> float:
        def work() -> None:
            with open(directory / "large", "rb", buffering=0) as file:
                buffer = bytearray(1 << 20)
                while file.readinto(buffer):
                    pass

        return self.large / timed(work) / _MB

    def read_random(self, directory: Path, own: str, number: int) -> float:
        places = random.Random(number).choices(range(self.large // _BLOCK), k=self.small)
        with open(directory / "large", "rb", buffering=0) as file:
            fd = file.fileno()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            return _each(lambda place: os.pread(fd, _BLOCK, place * _BLOCK), places)

    # ------------------------------------------------------------ writing

    def create(self, directory: Path, own: str, number: int) -> float:
        folder, data = _made(directory / own / f"create-{number}"), os.urandom(_BLOCK)
        paths = [f"{folder}/f{each:06}" for each in range(self.small)]
        return _each(lambda path: _write_file(path, data), paths)

    def rewrite(self, directory: Path, own: str, number: int) -> float:
        data = os.urandom(_BLOCK)
        paths = [f"{directory}/{own}/create-{number}/f{each:06}" for each in range(self.small)]
        return _each(lambda path: _write_file(path, data), paths)

    def rename(self, directory: Path, own: str, number: int) -> float:
        pairs = [
            (f"{directory}/{own}/create-{number}/f{each:06}", f"{directory}/{own}/create-{number}/r{each:06}")
            for each in range(self.small)
        ]
        return _each(lambda pair: os.rename(*pair), pairs)

    def unlink(self, directory: Path, own: str, number: int) -> float:
        paths = [f"{directory}/{own}/create-{number}/r{each:06}" for each in range(self.small)]
        return _each(os.unlink, paths)

    def copy(self, directory: Path, own: str, number: int) -> float:
        folder, count = _made(directory / own / f"copy-{number}"), max(1, self.small // 10)
        for each in range(count):
            _write_file(f"{folder}/s{each}", os.urandom(25_000))
        return _each(lambda each: shutil.copy2(f"{folder}/s{each}", f"{folder}/t{each}"), range(count))

    def write_in(self, block: int) -> Callable[[Path, str, int], float]:
        def run(directory: Path, own: str, number: int) -> float:
            path = f"{directory}/{own}/write-{block}-{number}"
            data = os.urandom(block)

            def work() -> None:
                with open(path, "wb", buffering=0) as file:
                    for _ in range(self.written // block):
                        file.write(data)

            seconds = timed(work)
            os.unlink(path)
            return self.written / seconds / _MB

        return run


def measure(session: Session) -> list[Table]:
    warm = Warm(
        small=session.sized(1000, 200),
        many=session.sized(10_000, 2_000),
        large=session.sized(256 << 20, 32 << 20),
        written=session.sized(32 << 20, 4 << 20),
    )
    table = Table(
        "warm", "Warm, nothing remote", ["plain", "C", "pyfuse3", "b2fs", "rclone"], ratios=_RATIOS,
        intro="Times in µs or ms an operation (less is better), speeds in MB/s; `first`: not in the kernel's caches.",
    )  # fmt: skip
    cpu = Table(
        "warm-cpu", "Warm: CPU time of the daemon", ["C", "pyfuse3", "b2fs", "rclone"], ratios=_RATIOS,
        intro="An operation, a listing, or a MB; the noise of a shared machine hardly moves it.",
    )  # fmt: skip

    def fill(root: Path) -> None:
        for bucket in ("warm-b2fs", "warm-rclone"):
            fill_bucket(root, bucket, warm.read())
            fill_bucket(root, bucket, warm.listed(), bodies=False)

    server = session.devbucket(fill)
    plain = session.peer(Peer)
    fill_directory(plain.path, [*warm.read(), *warm.listed()])
    makers: list[Callable[[Path], Peer]] = [
        lambda base: Libfuse(base, plain.path),
        lambda base: Binding(base, plain.path),
        lambda base: B2fs(base, server, "warm-b2fs", quiet_period=_PUT_OFF, max_dirty_age=_PUT_OFF),
        lambda base: Rclone(base, server, "warm-rclone", "mount", "--vfs-write-back", _PUT_OFF),
        lambda base: Rclone(base, server, "warm-rclone", "mount2", "--vfs-write-back", _PUT_OFF),
    ]
    peers: list[Peer] = [plain]
    warm.touch(plain.path, _own(plain))
    for make in makers:
        try:
            peer = session.peer(make)
            peer.start()
        except Absent as absent:
            table.notes.append(f"absent: {absent}")
            continue
        warm.touch(peer.path, _own(peer))
        peers.append(peer)
        session.say(f"{peer.title} is warm")
    for case in warm.cases():
        session.say(case.name)
        row, used = _rows(case, _those(peers, case), session.rounds)
        table.rows.append(row)
        cpu.rows.append(used)
    return [table, cpu]


def _own(peer: Peer) -> str:
    """The directory of a peer alone: those of this machine share one."""
    return f"made-{peer.name}-{peer.program}" if isinstance(peer, Rclone) else f"made-{peer.name}"


def _those(peers: list[Peer], case: Case) -> list[Peer]:
    """The peers of a row: one of the two rclones."""
    program = "mount2" if case.copies else "mount"
    return [peer for peer in peers if not isinstance(peer, Rclone) or peer.program == program]


def _rows(case: Case, peers: list[Peer], rounds: int) -> tuple[Row, Row]:
    """Time, and the daemon's CPU time."""

    cpu = Row(case.name, _CPU_UNITS[case.unit], reach=case.reach[:1])

    def sample(peer: Peer, number: int) -> list[float]:
        if case.first:
            peer.forget_kernel()
            os.stat(peer.path / "small" / "f000000")  # the way to the files is known, the files are not
        cpu_s = peer.cpu_s()
        value = case.run(peer.path, _own(peer), number)
        return [value, (peer.cpu_s() - cpu_s) / case.count * _PER[case.unit]]

    row = Row(case.name, case.unit, more_is_better=case.more_is_better, reach=case.reach)
    in_turn(peers, rounds, sample, row, cpu)
    cpu.samples.pop("plain", None)
    return row, cpu


def _each(operation: Callable[[T], object], things: Sequence[T]) -> float:
    """µs that the operation takes for one of them."""

    def work() -> None:
        for thing in things:
            operation(thing)

    return timed(work) / len(things) * 1e6


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    data = os.read(fd, _BLOCK)
    os.close(fd)
    return data


def _write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.close(fd)
