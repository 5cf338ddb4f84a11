"""The application itself: its pages under gunicorn on each peer, for one user and for four, and its story.

Rules
  One sync worker, as in its Dockerfile: with four users requests wait for each other, on every peer alike.
  Pages are measured when each was served once: everything is on this machine. The story begins on a fresh bucket.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from b2fs.devbucket.sample import dictation_id, sample_site
from bench.measure import Session, in_turn
from bench.peers import Absent, B2fs, Binding, Libfuse, Peer, Rclone
from bench.report import Row, Table
from bench.seed import Seed, fill_bucket, fill_directory, of_sample
from tests.app.client import Client, Report
from tests.app.server import serve
from tests.app.story import run_story
from tests.devbucket_fixture import DevBucket

_LATENCY_S = 0.02
_USERS = 4
_DICTATION = dictation_id(2)
PAGES = {
    "index page": "/",
    "list of dictations": "/dictations-list",
    "dictation": f"/dictation/{_DICTATION}",
    "editor": f"/dictation_editor/{_DICTATION}",
    "recording": f"/static/data/dictations/{_DICTATION}/en/003_en_avto.mp3",
    "cover": f"/static/data/dictations/{_DICTATION}/cover.webp",
    "export": f"/api/export/{_DICTATION}",
}


def measure(session: Session) -> list[Table]:
    names = ["plain", "C", "pyfuse3", "b2fs", "rclone"]
    pages = Table(
        "app", "Pages of the application", names, ratios=(("b2fs", "plain"), ("b2fs", "pyfuse3"), ("rclone", "b2fs")),
        intro="ms of HTTP time a page, warm; rclone's mount2.",
    )  # fmt: skip
    story = Table(
        "app-story", "The application's story, flow by flow", names, ratios=pages.ratios,
        intro=f"ms of HTTP time a flow, from a fresh bucket at {_LATENCY_S * 1000:.0f} ms a request on.",
    )  # fmt: skip
    site = [*of_sample(sample_site())]
    with session.inner() as inner:
        session.say("pages")
        pages.rows = _pages(inner, site, pages)
    if session.quick:  # minutes
        return [pages]
    with session.inner() as inner:
        session.say("the story")
        story.rows = _story(inner, site, story)
    return [pages, story]


def _peers(session: Session, server: DevBucket, site: list[Seed], table: Table) -> list[Peer]:
    makers: list[Callable[[Path], Peer]] = [
        Peer,
        Libfuse,
        Binding,
        lambda base: B2fs(base, server, "app-b2fs-0"),
        lambda base: Rclone(base, server, "app-rclone-0", "mount2"),
    ]
    found = []
    for make in makers:
        try:
            peer = session.peer(make)
            if not isinstance(peer, B2fs | Rclone):
                fill_directory(peer.backing, site)
            peer.start()
            found.append(peer)
        except Absent as absent:
            table.notes.append(f"absent: {absent}")
    return found


def _server(session: Session, site: list[Seed], count: int) -> DevBucket:
    def fill(root: Path) -> None:
        for number in range(count):
            for name in ("b2fs", "rclone"):
                fill_bucket(root, f"app-{name}-{number}", site)

    return session.devbucket(fill, "--latency", str(_LATENCY_S))


def _pages(session: Session, site: list[Seed], table: Table) -> list[Row]:
    peers = _peers(session, _server(session, site, 1), site, table)
    rows = {
        (page, users, share): Row(f"{page}, {users} user{'s' * (users > 1)}, p{share}", "ms")
        for page in PAGES
        for users in (1, _USERS)
        for share in (50, 95)
    }
    views = session.sized(12, 2)

    def sample(peer: Peer, number: int) -> list[float]:
        with serve(peer.path) as url:
            _view(url, 1)
            found = {1: _view(url, views), _USERS: _load(url, views // 2)}
        return [_share(found[users][page], share) * 1000 for page, users, share in rows]

    in_turn(peers, session.slow_rounds, sample, *rows.values())
    return list(rows.values())


def _view(url: str, times: int) -> dict[str, list[float]]:
    """Seconds of each view of each page. OSError for a wrong answer."""
    report = Report()
    client = Client(url, report)
    for _ in range(times):
        for name, path in PAGES.items():
            client.flow = name
            client.call("GET", path)
    client.close()
    if report.failures:
        raise OSError(report.failures[0])
    return {name: stats.took_s for name, stats in report.flows.items()}


def _load(url: str, times: int) -> dict[str, list[float]]:
    """The same, of four users at once."""
    found: dict[str, list[float]] = {name: [] for name in PAGES}
    failed: list[OSError] = []

    def run() -> None:
        try:
            for name, took_s in _view(url, times).items():
                found[name] += took_s
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(_USERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def _story(session: Session, site: list[Seed], table: Table) -> list[Row]:
    peers = _peers(session, _server(session, site, session.slow_rounds), site, table)
    flows: dict[str, dict[str, list[float]]] = {}

    def sample(peer: Peer, number: int) -> list[float]:
        if number:
            peer.stop()
            if isinstance(peer, B2fs | Rclone):
                peer.forget_local()
                peer.bucket = f"app-{peer.name}-{number}"
            else:
                for path in peer.backing.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                fill_directory(peer.backing, site)
            peer.start()
        with serve(peer.path) as url:
            report = run_story(url)
        wrong = [
            failure for failure in report.failures if ": ETag of " not in failure
        ]  # B2's clients keep milliseconds
        if wrong:
            raise OSError(wrong[0])
        for name, stats in report.flows.items():
            flows.setdefault(name, {}).setdefault(peer.name, []).append(stats.elapsed_s * 1000)
        return [report.elapsed_s * 1000]

    total = Row("all of it", "ms")
    in_turn(peers, session.slow_rounds, sample, total)
    return [*(Row(name, "ms", samples) for name, samples in flows.items()), total]


def _share(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]
