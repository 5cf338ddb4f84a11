"""The foreground while the background works: stat, and open+read+close of cached files, quiet and under transfers.

Rules
  Background: 16 files that are being uploaded and one large object that is being read, each at `_BANDWIDTH`, so that
  they last while the foreground is measured. The machine's own share of the slowness is seen at the bare pass-through, which is
  measured at the same time and does nothing else.
  The bucket stands for a machine that is far away, and takes no CPU from this one: it runs at the lowest priority. At the same
  as the rest it, not the transfers, decided on the p99 (of the bare pass-through too).
  The kernel forgets names before each batch: every stat reaches the daemon.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Session
from bench.peers import Absent, B2fs, Binding, Mounted, Rclone
from bench.report import Reach, Row, Table
from bench.seed import Seed, fill_bucket, fill_directory, flat
from tests.devbucket_fixture import DevBucket

_BANDWIDTH = 4_000_000
_LATENCY_S = 0.05
_UPLOADS = 16
_READERS = 16
"""Of those that bring the small files here first."""
_BLOCK = 4096
_LEAST_RUNNING = 8
"""Requests that the bucket answers at the same time, for the background to count as working."""
_Sample = dict[str, list[float]]


def measure(session: Session) -> list[Table]:
    table = Table(
        "foreground", "Foreground while the background works", ["pyfuse3", "b2fs", "rclone"], ratios=(("rclone", "b2fs"),),
        intro=f"Cached files of 4 KiB, µs an operation. Busy: {_UPLOADS} uploads and a large download on the peer's mount, "
        f"{_BANDWIDTH / 1e6:g} MB/s each; the pass-through beside b2fs's. The bucket runs at the lowest priority: it stands for "
        "another machine.",
    )  # fmt: skip
    files = session.sized(1000, 300)
    seeds = [*flat("small", files, _BLOCK), Seed("large", session.sized(1 << 30, 256 << 20))]
    size = session.sized(64 << 20, 16 << 20)

    def fill(root: Path) -> None:
        for name in ("b2fs", "rclone"):
            fill_bucket(root, f"front-{name}", seeds)

    server = session.devbucket(fill, "--latency", str(_LATENCY_S), "--bandwidth", str(_BANDWIDTH))
    os.setpriority(os.PRIO_PROCESS, server.pid, 19)
    makers: list[Callable[[Path], Mounted]] = [
        Binding,
        lambda base: B2fs(base, server, "front-b2fs", quiet_period="10ms"),
        lambda base: Rclone(
            base, server, "front-rclone", "mount", "--vfs-write-back", "10ms", "--transfers", str(_UPLOADS)
        ),
    ]
    peers: dict[str, Mounted] = {}
    for make in makers:
        try:
            peer = session.peer(make)
            if isinstance(peer, Binding):
                fill_directory(peer.backing, seeds[:-1])
            peer.start()
        except Absent as absent:
            table.notes.append(f"absent: {absent}")
            continue
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(_read_file, _paths(peer, files)))
        peers[peer.name] = peer
    quiet: dict[str, _Sample] = {name: {} for name in peers}
    busy: dict[str, _Sample] = {name: {} for name in peers}
    for _ in range(session.rounds):
        for name, peer in peers.items():
            _batch(peer, files, quiet[name])
    floor = peers.pop("pyfuse3", None)
    for name, peer in peers.items():
        for number in range(session.rounds):
            session.say(f"{name} under transfers, {number + 1}")
            with _background(peer, server, size, number) as works:
                until_s = time.monotonic() + session.sized(10, 2)
                while works() and time.monotonic() < until_s:
                    _batch(peer, files, busy[name])
                    if floor is not None and name == "b2fs":
                        _batch(floor, files, busy["pyfuse3"])
        if not busy[name]:
            table.notes.append(f"{name}: the background was never at work")
    for what in ("stat", "open+read+close"):
        for share in (50, 99):
            calm, loaded = Row(f"{what}, quiet, p{share}", "µs"), Row(f"{what}, busy, p{share}", "µs")
            times = Row(f"{what}, p{share}: busy / quiet", "times", reach=(Reach(3.0),) if share == 99 else ())
            for name in quiet:
                for row, found in ((calm, quiet), (loaded, busy)):
                    if values := found[name].get(what):
                        row.samples[name] = [_share(values, share)]
                if name in loaded.samples:
                    times.samples[name] = [loaded.samples[name][0] / calm.samples[name][0]]
            table.rows += [calm, loaded, times]
    return [table]


def _batch(peer: Mounted, files: int, found: _Sample) -> None:
    """Each file once: its stat, which the kernel does not know, then open, read, close."""
    peer.forget_kernel()
    stats, reads = found.setdefault("stat", []), found.setdefault("open+read+close", [])
    for path in _paths(peer, files):
        start = time.perf_counter()
        os.stat(path)
        middle = time.perf_counter()
        _read_file(path)
        end = time.perf_counter()
        stats.append((middle - start) * 1e6)
        reads.append((end - middle) * 1e6)


def _paths(peer: Mounted, files: int) -> list[str]:
    return [f"{peer.path}/small/f{number:06}" for number in range(files)]


@contextmanager
def _background(peer: Mounted, server: DevBucket, size: int, number: int) -> Iterator[Callable[[], bool]]:
    """Uploads and a download that have begun; gives whether they are still at work."""
    if not isinstance(peer, Binding):
        peer.stop()  # nothing of the large object is here, everything of the small ones
        peer.start()
        (peer.path / "small").stat()
    names = [peer.path / f"up-{number}-{each}" for each in range(_UPLOADS)]
    for path in names:
        path.write_bytes(os.urandom(size // 4))
    reader = subprocess.Popen([sys.executable, "-c", _READ, str(peer.path / "large")])

    def running() -> bool:
        return int(server.admin.counters()["running"]) >= _LEAST_RUNNING

    try:
        deadline_s = time.monotonic() + 20
        while not running() and time.monotonic() < deadline_s:
            time.sleep(0.02)
        yield running
    finally:
        reader.kill()
        reader.wait()
        for path in names:
            path.unlink()


_READ = "import sys\nwith open(sys.argv[1], 'rb', buffering=0) as f:\n while f.read(1 << 20): pass"


def _share(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _read_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    data = os.read(fd, _BLOCK)
    os.close(fd)
    return data
