"""What the bucket's owner pays: transactions of each class, and dollars.

Rules
  Prices are B2's list prices beyond the free tier (facts of the account: class A is free). A page view is an answer of the
  application. Counted from before the mount until the bucket is left alone, so write-back and listings count.
  The day is the story of the tests: a person registers, records, saves, edits, saves again, plays, exports, imports, deletes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from b2fs.devbucket.sample import dictation_id, sample_site
from bench.measure import Session, in_turn, timed
from bench.peers import Absent, B2fs, Mounted, Rclone
from bench.report import Reach, Row, Table
from bench.seed import fill_bucket, of_sample
from tests.app.server import serve
from tests.app.story import run_story
from tests.devbucket_fixture import DevBucket

PRICE = {"A": 0.0, "B": 0.004 / 10_000, "C": 0.004 / 1_000}
"""Dollars for a transaction of each class."""
_LATENCY_S = 0.02
_DELAY_S = 2
"""Of write-back: b2fs's default; rclone's is 5."""
_SAVED, _CHANGED = 60, 6
_UPLOADS = ("b2_upload_file", "b2_upload_part")


def dollars(classes: dict[str, int]) -> float:
    return sum(PRICE[name] * count for name, count in classes.items())


def measure(session: Session) -> list[Table]:
    """Nothing in a quick run: a day takes a minute, and both peers wait for their delays of write-back."""
    if session.quick:
        return []
    table = Table(
        "cost", "Requests and money", ["b2fs", "rclone"], ratios=(("rclone", "b2fs"),),
        intro="Class A is free, B $0.004 for 10,000, C $0.004 for 1,000; what the free tier gives is not counted.",
    )  # fmt: skip
    for delay_s in (_DELAY_S, 5):
        with session.inner() as inner:
            _day(inner, table, delay_s)
    with session.inner() as inner:
        _save_again(inner, table)
    return [table]


def _peers(
    session: Session, server: DevBucket, buckets: dict[str, str], table: Table, delay_s: int = _DELAY_S
) -> list[Mounted]:
    makers: list[Callable[[Path], Mounted]] = [
        lambda base: B2fs(base, server, buckets["b2fs"], quiet_period=str(delay_s)),
        lambda base: Rclone(base, server, buckets["rclone"], "mount2", "--vfs-write-back", f"{delay_s}s"),
    ]
    found: list[Mounted] = []
    for make in makers:
        try:
            found.append(session.peer(make))
        except Absent as absent:
            table.notes.append(f"absent: {absent}")
    return found


def _day(session: Session, table: Table, delay_s: int) -> None:
    """Each sample on a fresh bucket with the sample site; both write back after the same delay, as it decides how much of what
    a program makes and soon deletes is uploaded.
    """
    day = f"a day, write-back after {delay_s} s"
    session.say(day)
    less = (Reach(1.0, "rclone"),)
    rows = [
        Row(f"{day}: class A", "requests", reach=less),
        Row(f"{day}: class B", "requests", reach=less),
        Row(f"{day}: class C", "requests", reach=less),
        Row(f"{day}: uploaded", "MB"),
        Row(f"{day}: fetched", "MB"),
        Row(f"{day}: a million page views", "$", reach=less),
    ]
    numbers = range(session.slow_rounds)
    site = [*of_sample(sample_site())]

    def fill(root: Path) -> None:
        for number in numbers:
            for name in ("b2fs", "rclone"):
                fill_bucket(root, f"day-{name}-{number}", site)

    server = session.devbucket(fill, "--latency", str(_LATENCY_S))

    def sample(peer: Mounted, number: int) -> list[float]:
        assert isinstance(peer, B2fs | Rclone)
        peer.bucket = f"day-{peer.name}-{number}"
        peer.forget_local()
        server.admin.reset_counters()
        peer.start()
        try:
            with serve(peer.path) as url:
                report = run_story(url)
            peer.settle()
        finally:
            peer.stop()
        wrong = [
            failure for failure in report.failures if ": ETag of " not in failure
        ]  # B2's clients keep milliseconds
        for failure in wrong[:3]:
            note = f"{peer.name}: the story fails: {failure}"
            if note not in table.notes:
                table.notes.append(note)
        counters = server.admin.counters()
        classes = counters["classes"]
        views = dollars(classes) / report.calls * 1e6
        traffic = counters["received"] / 1e6, counters["sent"] / 1e6
        return [*(classes.get(name, 0) for name in "ABC"), *traffic, views]

    in_turn(_peers(session, server, {"b2fs": "", "rclone": ""}, table, delay_s), session.slow_rounds, sample, *rows)
    table.rows += rows


def _save_again(session: Session, table: Table) -> None:
    session.say("a dictation is saved again")
    seconds = Row(f"{_SAVED} files saved again: the program waits", "ms")
    uploads = Row(f"{_SAVED} files saved again, {_CHANGED} changed", "uploads", reach=(Reach(float(_CHANGED)),))
    site = [*of_sample(sample_site(3))]

    def fill(root: Path) -> None:
        for name in ("b2fs", "rclone"):
            fill_bucket(root, f"save-{name}", site)

    server = session.devbucket(fill, "--latency", str(_LATENCY_S))
    peers = _peers(session, server, {"b2fs": "save-b2fs", "rclone": "save-rclone"}, table)
    for peer in peers:
        peer.start()

    def sample(peer: Mounted, number: int) -> list[float]:
        folder = peer.path / "dictations" / dictation_id(2)
        files = sorted(path for path in folder.rglob("*.mp3"))[:_SAVED]
        working = peer.base / "working"
        for place, path in enumerate(files):
            copy = working / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            if place < _CHANGED:
                copy.write_bytes(bytes([number]) + copy.read_bytes()[1:])
        peer.settle()
        server.admin.reset_counters()
        took = timed(lambda: [shutil.copy2(working / path.relative_to(folder), path) for path in files])
        peer.settle()
        calls = server.admin.calls()
        return [took * 1000, sum(calls.get(call, 0) for call in _UPLOADS)]

    in_turn(peers, session.slow_rounds, sample, seconds, uploads)
    table.rows += [seconds, uploads]
