"""Large objects, and many small ones: how fast bytes go in and out, at 50 ms a request and a limit for each connection.

Rules
  "stream" is one HTTP download, or one upload after another, of the same server: what a program gets without a mount.
  Each sample of a read is a new mount with nothing on this machine; what is read is checked by the marks of the seed.
  Writing counts until the bucket has it. Both are told not to wait before they upload (`quiet_period`, `--vfs-write-back`),
  and rclone to transfer 32 files at once; "close to in the bucket" is with the settings as they are.
"""

from __future__ import annotations

import base64
import json
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from b2fs.units import show_size
from bench.measure import Session, in_turn, timed
from bench.peers import Absent, B2fs, Mounted, Peer, Rclone, wait_until
from bench.report import Reach, Row, Table
from bench.seed import Seed, expected, fill_bucket, fill_directory
from tests.devbucket_fixture import DevBucket

LATENCY_S = 0.05
BANDWIDTH = 100_000_000
_MIB = 1 << 20
_MB = 1e6
_SEEKS = 10
_SEEK_SIZE = 128 * 1024
_SMALL_SIZE = 25_000
_BEST = ("--buffer-size", "64M", "--vfs-read-ahead", "256M", "--vfs-read-chunk-size", "128M", "--transfers", "32")
"""rclone's settings for large files; its version has one stream a file."""
_NO_WAIT = "10ms"
_PACE_S = 0.05
"""Between two files that are written as programs do, one now and one then."""


class Large:
    def __init__(self, session: Session) -> None:
        self.rounds = session.slow_rounds
        self.big = Seed("big", session.sized(1 << 30, 32 << 20))
        self.huge = Seed("huge", session.sized(5 << 30, 256 << 20))
        self.small = session.sized(1000, 100)
        self.paced = session.sized(100, 8)

    def table(self) -> Table:
        size = show_size(self.big.size)
        self.first = Row(f"first byte of {size}", "ms")
        self.whole = Row(
            f"sequential read of {size}",
            "MB/s",
            more_is_better=True,
            reach=(Reach(1 / 3, "stream"), Reach(1.0, "rclone")),
        )
        self.read_cpu = Row("CPU of the daemon a GiB read", "s")
        self.memory = Row("memory of the daemon after it", "MB")
        self.seeks = Row(f"seek in {show_size(self.huge.size)} and read 128 KiB", "ms")
        self.two = Row("two readers at different places, together", "MB/s", more_is_better=True)
        self.up = Row(f"upload of {size}", "MB/s", more_is_better=True)
        self.up_cpu = Row("CPU of the daemon a GiB uploaded", "s")
        self.many = Row(f"{self.small} files of 25 kB, until all are in the bucket", "files/s", more_is_better=True)
        self.many_cpu = Row("CPU of the daemon a 1,000 such files", "s")
        self.p50 = Row("close to in the bucket, p50", "s")
        self.p95 = Row("close to in the bucket, p95", "s")
        self.change = Row(f"4 KiB changed in {size}: until it is in the bucket", "s")
        self.change_sent = Row(f"4 KiB changed in {size}: bytes sent", "MB")
        self.change_asked = Row(f"4 KiB changed in {size}: requests", "requests")
        return Table(
            "large", "Large objects and many small ones", ["plain", "stream", "b2fs", "rclone"],
            ratios=(("stream", "b2fs"), ("rclone", "b2fs")),
            intro=f"{LATENCY_S * 1000:.0f} ms a request, {BANDWIDTH / _MB:.0f} MB/s a connection.",
            rows=[
                self.first, self.whole, self.read_cpu, self.memory, self.seeks, self.two, self.up, self.up_cpu,
                self.many, self.many_cpu, self.p50, self.p95, self.change, self.change_sent, self.change_asked,
            ],
        )  # fmt: skip

    # ------------------------------------------------------------ reading

    def read(self, peer: Peer, number: int) -> list[float]:
        """First byte, whole object, CPU and memory of it, seeks, two readers."""
        if isinstance(peer, Mounted):
            peer.forget_local()
        peer.start()
        try:
            os.listdir(peer.path)
            with open(peer.path / "big", "rb", buffering=0) as file:
                first_s = timed(lambda: file.read(4096))
            peer = _again(peer)
            cpu_s = peer.cpu_s()
            whole_s = timed(lambda: _read(peer.path / "big", self.big, 0, self.big.size))
            cpu_s, memory = peer.cpu_s() - cpu_s, peer.memory()
            seek_s = self._seek(peer.path / "huge", number)
            peer = _again(peer)
            two_s = timed(lambda: self._two_readers(peer.path / "big"))
        finally:
            peer.stop()
            peer.forget_local()
        gib = self.big.size / 2**30
        return [
            first_s * 1000, self.big.size / whole_s / _MB, cpu_s / gib, memory / _MB, seek_s * 1000, self.big.size / two_s / _MB,
        ]  # fmt: skip

    def _seek(self, path: Path, number: int) -> float:
        """Seconds for one of several places."""
        chooser = random.Random(number)
        places = [chooser.randrange(self.huge.size // _MIB - 1) * _MIB for _ in range(_SEEKS)]
        with open(path, "rb", buffering=0) as file:

            def work() -> None:
                for place in places:
                    data = os.pread(file.fileno(), _SEEK_SIZE, place)
                    _check(data, self.huge, place)

            return timed(work) / _SEEKS

    def _two_readers(self, path: Path) -> None:
        half = self.big.size // 2
        failed: list[OSError] = []

        def run(start: int) -> None:
            try:
                _read(path, self.big, start, half)
            except OSError as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(start,)) for start in (0, half)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    # ------------------------------------------------------------ writing

    def write_large(self, peer: Peer, number: int, server: DevBucket) -> list[float]:
        """Upload, its CPU; then a small change of it: seconds, bytes, requests."""
        name = f"written-{number}"
        cpu_s = peer.cpu_s()

        def upload() -> None:
            self._write(peer.path / name)
            _arrive(peer, server, {name: self.big.size})

        up_s = timed(upload)
        cpu_s = peer.cpu_s() - cpu_s
        peer.settle()
        server.admin.reset_counters()
        before = _file_id(peer, server, name)

        def change() -> None:
            with open(peer.path / name, "r+b", buffering=0) as file:
                file.seek(self.big.size // 2 // _MIB * _MIB + 5000)
                file.write(os.urandom(4096))
            wait_until(lambda: _file_id(peer, server, name) != before, 600, lambda: "the change does not arrive")

        change_s = timed(change)
        counters = server.admin.counters()
        os.unlink(peer.path / name)
        return [
            self.big.size / up_s / _MB, cpu_s / (self.big.size / 2**30), change_s,
            counters["received"] / _MB, sum(counters["calls"].values()),
        ]  # fmt: skip

    def _write(self, path: Path) -> None:
        block = os.urandom(_MIB)
        with open(path, "wb", buffering=0) as file:
            for _ in range(self.big.size // _MIB):
                file.write(block)

    def write_small(self, peer: Peer, number: int, server: DevBucket) -> list[float]:
        """Many at once: files per second, CPU for a thousand."""
        folder = f"many-{number}"
        names = {f"{folder}/f{each:04}": _SMALL_SIZE for each in range(self.small)}
        contents = [os.urandom(_SMALL_SIZE) for _ in names]
        (peer.path / folder).mkdir()
        cpu_s = peer.cpu_s()

        def work() -> None:
            for name, data in zip(names, contents, strict=True):
                (peer.path / name).write_bytes(data)
            _arrive(peer, server, names)

        seconds = timed(work)
        return [self.small / seconds, (peer.cpu_s() - cpu_s) * 1000 / self.small]

    def write_paced(self, peer: Peer, number: int, server: DevBucket) -> list[float]:
        """One now and one then, with the settings as they are: p50 and p95 of the time until each is in the bucket."""
        closed_s: dict[str, float] = {}
        for each in range(self.paced):
            name = f"paced-{number}-{each}"
            (peer.path / name).write_bytes(os.urandom(_SMALL_SIZE))
            closed_s[name] = time.monotonic()
            time.sleep(_PACE_S)
        arrived_s: dict[str, float] = {}
        deadline_s = time.monotonic() + 120

        def look() -> bool:
            now_s = time.monotonic()
            for name in server.admin.objects(_bucket(peer)):
                arrived_s.setdefault(name, now_s)
            return closed_s.keys() <= arrived_s.keys() or now_s > deadline_s

        wait_until(look, 120, lambda: "not all files arrive")
        waits = sorted(arrived_s[name] - closed_s[name] for name in closed_s)
        return [waits[len(waits) // 2], waits[len(waits) * 95 // 100]]


def measure(session: Session) -> list[Table]:
    large = Large(session)
    table = large.table()
    with session.inner() as inner:
        session.say("reading")
        seeds = [large.big, large.huge]
        server = inner.devbucket(
            lambda root: fill_bucket(root, "large-read", seeds),
            *("--latency", str(LATENCY_S), "--bandwidth", str(BANDWIDTH)),
        )
        plain = inner.peer(Peer)
        fill_directory(plain.path, seeds)
        peers = [plain, *_remote(inner, server, dict.fromkeys(("b2fs", "rclone"), "large-read"), table, *_BEST)]
        reads = (large.first, large.whole, large.read_cpu, large.memory, large.seeks, large.two)
        in_turn(peers, large.rounds, large.read, *reads)
        for row in (large.read_cpu, large.memory):
            row.samples.pop("plain", None)
        large.whole.samples["stream"] = [_stream_down(server, "large-read", large.big) for _ in range(large.rounds)]
    with session.inner() as inner:
        session.say("writing")
        buckets = {name: f"large-{name}" for name in ("b2fs", "rclone")}

        def fill(root: Path) -> None:
            for bucket in buckets.values():
                fill_bucket(root, bucket, [])

        server = inner.devbucket(fill, "--latency", str(LATENCY_S), "--bandwidth", str(BANDWIDTH))
        hurried = _remote(inner, server, buckets, table, *_BEST, "--vfs-write-back", _NO_WAIT, quiet_period=_NO_WAIT)
        for peer in hurried:
            peer.start()
        in_turn(
            hurried, large.rounds, lambda peer, number: large.write_large(peer, number, server),
            large.up, large.up_cpu, large.change, large.change_sent, large.change_asked,
        )  # fmt: skip
        in_turn(
            hurried,
            large.rounds,
            lambda peer, number: large.write_small(peer, number, server),
            large.many,
            large.many_cpu,
        )
        for peer in hurried:
            peer.stop()
        usual = _remote(inner, server, buckets, table)
        for peer in usual:
            peer.start()
        in_turn(
            usual, large.rounds, lambda peer, number: large.write_paced(peer, number, server),
            large.p50, large.p95,
        )  # fmt: skip
    return [table]


def _remote(
    session: Session, server: DevBucket, buckets: dict[str, str], table: Table, *options: str, **settings: str
) -> list[Peer]:
    makers: list[Callable[[Path], Peer]] = [
        lambda base: B2fs(base, server, buckets["b2fs"], **settings),
        lambda base: Rclone(base, server, buckets["rclone"], "mount", *options),
    ]
    found: list[Peer] = []
    for make in makers:
        try:
            found.append(session.peer(make))
        except Absent as absent:
            if (note := f"absent: {absent}") not in table.notes:
                table.notes.append(note)
    return found


def _again(peer: Peer) -> Peer:
    """A new mount with nothing on this machine."""
    peer.stop()
    if isinstance(peer, Mounted):
        peer.forget_local()
    peer.start()
    os.listdir(peer.path)
    return peer


def _read(path: Path, seed: Seed, start: int, length: int) -> None:
    """Read a range in MiB, and compare its marks."""
    buffer = bytearray(_MIB)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        for offset in range(start, start + length, _MIB):
            filled = 0
            while filled < _MIB:
                got = file.readinto(memoryview(buffer)[filled:])
                if not got:
                    raise OSError(f"{path} ends at {offset + filled}")
                filled += got
            _check(buffer, seed, offset)


def _check(data: bytes | bytearray, seed: Seed, offset: int) -> None:
    mark = expected(seed, offset)
    if data[: len(mark)] != mark:
        raise OSError(f"wrong bytes at {offset} of {seed.path}")


def _bucket(peer: Peer) -> str:
    assert isinstance(peer, B2fs | Rclone)
    return peer.bucket


def _arrive(peer: Peer, server: DevBucket, sizes: dict[str, int]) -> None:
    """Return when the bucket has these files."""

    def there() -> bool:
        objects = server.admin.objects(_bucket(peer))
        return all(name in objects and objects[name]["contentLength"] == size for name, size in sizes.items())

    wait_until(there, 600, lambda: "not everything arrives in the bucket")


def _file_id(peer: Peer, server: DevBucket, name: str) -> str:
    return str(server.admin.objects(_bucket(peer))[name]["fileId"])


def _stream_down(server: DevBucket, bucket: str, seed: Seed) -> float:
    """MB/s of one plain download."""
    credentials = base64.b64encode(f"{server.key_id}:{server.key}".encode()).decode()
    asked = urllib.request.Request(
        f"{server.url}/b2api/v2/b2_authorize_account", headers={"Authorization": f"Basic {credentials}"}
    )
    with urllib.request.urlopen(asked) as answer:
        token = json.load(answer)["authorizationToken"]
    download = urllib.request.Request(f"{server.url}/file/{bucket}/{seed.path}", headers={"Authorization": token})

    def work() -> None:
        buffer = bytearray(_MIB)
        with urllib.request.urlopen(download) as answer:
            while answer.readinto(buffer):
                pass

    return seed.size / timed(work) / _MB
