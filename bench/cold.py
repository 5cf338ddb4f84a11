"""Cold: nothing is on this machine, and each request takes 50 ms. How many of them a program waits for.

Rules
  Each sample is a new mount. "never": its state directory (its cache) is new. "seen": the same workload was done, the
  daemon ended, and started again. The clock runs from when the mount answers until the workload is done.
  What was asked of the bucket is counted from before the start until the bucket is left alone, so that
  what is fetched ahead, in vain or not, counts.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from b2fs.devbucket.sample import sample_site
from bench import workloads
from bench.measure import Session, in_turn, timed
from bench.peers import Absent, B2fs, Binding, Libfuse, Peer, Rclone, quiet
from bench.report import Reach, Row, Table
from bench.seed import fill_bucket, fill_directory, of_sample
from bench.workloads import Read, Workload
from tests.devbucket_fixture import DevBucket

LATENCY_S = 0.05
_ALONE_S = 0.3
"""So long without a request, and nothing more is fetched ahead."""
_DOWNLOADS = ("b2_download_file_by_id", "b2_download_file_by_name")
_TENTH = Reach(1 / 10, "rclone")
_PEERS = ["plain", "C", "pyfuse3", "b2fs", "rclone"]
_RATIOS = (("rclone", "b2fs"),)
_LATENCIES_S = (0.0, 0.02, LATENCY_S, 0.1)


@dataclass(frozen=True)
class Case:
    name: str
    dictations: int
    """How many are in the bucket."""
    run: Workload
    never: tuple[Reach, ...] = (_TENTH,)
    seen: tuple[Reach, ...] | None = None
    """None: not measured."""
    copies: bool = False
    """rclone's mount2: programs ask for extended attributes."""


def cases(quick: bool) -> list[Case]:
    index = [
        Case(f"index of {count} dictations", count, workloads.index, _index_reach(count), _index_reach(count, True))
        for count in ((15,) if quick else (15, 100, 400))
    ]
    walks = [
        Case("find in 60 dictations", 60, workloads.program("find")),
        Case("ls -lR of 60 dictations", 60, workloads.program("ls", "-lR")),
        Case("du of 60 dictations", 60, workloads.program("du")),
    ]
    return [
        *index,
        Case("open a dictation, 12 recordings", 15, workloads.open_dictation),
        Case("copy 52 files to temp", 15, workloads.copy_to_temp, copies=True),
        *([] if quick else [Case("zip of 60 files", 15, workloads.export), *walks]),
    ]


def _index_reach(count: int, seen: bool = False) -> tuple[Reach, ...]:
    if count == 400:
        return (Reach(0.3 if seen else 3.0),)
    return () if seen else (_TENTH,)


def measure(session: Session) -> list[Table]:
    times = Table(
        "cold", f"Cold, {LATENCY_S * 1000:.0f} ms a request", _PEERS, ratios=_RATIOS,
        intro="Seconds. `seen`: on a state directory (or cache) that did the same before, after a restart.",
    )  # fmt: skip
    asked = Table(
        "cold-asked", "Cold: what was asked of the bucket", _PEERS, ratios=_RATIOS,
        intro="From before the mount until the bucket is left alone. In vain: fetched, and not read by the workload. "
        "What is nothing for both is left out.",
    )  # fmt: skip
    for case in cases(session.quick):
        session.say(case.name)
        rows, counts = _measure(session, case, times, LATENCY_S)
        times.rows += rows
        asked.rows += counts
    return [times, asked]


def latencies(session: Session) -> list[Table]:
    """Two of them with a bucket that is nearer, or farther. Nothing of it in a quick run."""
    if session.quick:
        return []
    table = Table(
        "latency", "Cold, with a bucket near and far", _PEERS, ratios=_RATIOS,
        intro="Seconds, on a state directory (or cache) that never saw the bucket.",
    )  # fmt: skip
    chosen = [
        Case("index of 15 dictations", 15, workloads.index),
        Case("open a dictation, 12 recordings", 15, workloads.open_dictation),
    ]
    for latency_s in _LATENCIES_S:
        for case in chosen:
            reach = case.never if latency_s == LATENCY_S else ()  # the goal is one at 50 ms
            named = replace(case, name=f"{case.name}, at {latency_s * 1000:.0f} ms", never=reach)
            session.say(named.name)
            table.rows += _measure(session, named, table, latency_s)[0]
    return [table]


def _measure(session: Session, case: Case, table: Table, latency_s: float) -> tuple[list[Row], list[Row]]:
    """The rows of a case; its bucket, its directory and its peers are gone afterwards."""
    seeds = [*of_sample(sample_site(case.dictations))]
    with session.inner() as inner:
        server = inner.devbucket(lambda root: fill_bucket(root, "cold-bucket", seeds), "--latency", str(latency_s))
        plain = inner.peer(Peer)
        fill_directory(plain.path, seeds)
        makers: list[Callable[[Path], Peer]] = [
            lambda base: Libfuse(base, plain.path),
            lambda base: Binding(base, plain.path),
            lambda base: B2fs(base, server, "cold-bucket"),
            lambda base: Rclone(base, server, "cold-bucket", "mount2" if case.copies else "mount"),
        ]
        found: list[Peer] = [plain]
        for make in makers:
            try:
                peer = inner.peer(make)
                if isinstance(peer, Libfuse | Binding):
                    peer.start()
                found.append(peer)
            except Absent as absent:
                if (note := f"absent: {absent}") not in table.notes:
                    table.notes.append(note)
        never = Row(f"{case.name}, never" if case.seen is not None else case.name, "s", reach=case.never)
        seen = Row(f"{case.name}, seen", "s", reach=case.seen or ())
        counts = [
            Row(f"{case.name}: requests of class B", "requests"),
            Row(f"{case.name}: requests of class C", "requests"),
            Row(f"{case.name}: bytes fetched", "kB"),
            Row(f"{case.name}: fetches in vain", "requests"),
            Row(f"{case.name}: bytes in vain", "kB"),
        ]
        rows = [never] if case.seen is None else [never, seen]

        def sample(peer: Peer, number: int) -> Iterable[float]:
            return _sample(peer, case, server)

        in_turn(found, session.slow_rounds, sample, *rows, *counts)
    for row in counts:
        for local in ("plain", "C", "pyfuse3"):
            row.samples.pop(local, None)
    return rows, [row for row in counts if any(map(any, row.samples.values()))]


def _sample(peer: Peer, case: Case, server: DevBucket) -> list[float]:
    """Seconds of the first time, if it is measured of the second, and what was asked of the bucket by the first."""
    remote = isinstance(peer, B2fs | Rclone)
    server.admin.reset_counters()
    read: Read = {}
    values = []
    for _ in range(1 if case.seen is None else 2):
        if remote:
            peer.start()
        try:
            values.append(timed(lambda: read.update(case.run(peer.path))))
            if remote and len(values) == 1:
                quiet(server, _ALONE_S)
                counters = server.admin.counters()
        finally:
            if case.copies:
                shutil.rmtree(peer.path / "temp" / workloads.BIG, ignore_errors=True)
            if remote:
                peer.stop()
    if not remote:
        return [*values, *[0.0] * 5]
    peer.forget_local()
    fetches = sum(counters["calls"].get(call, 0) for call in _DOWNLOADS)
    fetched = sum(counters["sent_by_call"].get(call, 0) for call in _DOWNLOADS)
    in_vain = max(0, fetches - len(read)), max(0, fetched - sum(read.values()))
    classes = counters["classes"]
    return [
        *values, classes.get("B", 0), classes.get("C", 0), fetched / 1000, in_vain[0], in_vain[1] / 1000,
    ]  # fmt: skip
