"""Growth: the same operations with more and more objects in the bucket, and more and more bytes in the cache.

Rules
  The columns are sizes, not peers: what grows is b2fs alone. Objects have no bodies (nothing reads them) but for those of
  the cache's table; the cache is filled past the daemon, with sparse files that its journal knows.
  No latency: what is measured is this machine's work.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

from b2fs.adapters.disk import Disk
from b2fs.adapters.journal import Journal
from b2fs.core.change import Blob, Change
from b2fs.core.chunks import CHUNK
from b2fs.units import show_size
from bench.measure import Session, timed
from bench.peers import B2fs, quiet
from bench.report import Reach, Row, Table
from bench.seed import Seed, fill_bucket, flat

_FOLDER = 1000
_WIDE = 100_000
_MOVED = 10_000
_DIRTY = 10_000
_READS = 200
_STILL = "6h"
_LISTED_S = 4.0
"""So long without a request, and the listing has ended: it asks for the next page while it merges one."""
_MB = 1e6


def measure(session: Session) -> list[Table]:
    sizes = [2_000] if session.quick else [1_000, 100_000, 1_000_000]
    tables = [_names(session, sizes)]
    tables.append(_cache(session, [0, 1 << 28] if session.quick else [0, 1 << 30, 100 << 30]))
    return tables


def kind(sizes: list[int], values: list[float]) -> str:
    """How values grow with sizes, from the first to the last: constant, less than linear, or linear with its slope."""
    if len(values) < 2 or min(values) <= 0:
        return ""
    exponent = math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])
    if exponent < 0.1:
        return "constant"
    if exponent < 0.7:
        return f"less than linear (n^{exponent:.1f})"
    return f"linear, {(values[-1] - values[0]) / (sizes[-1] - sizes[0]) * 1000:.3g} for each 1,000"


# ---------------------------------------------------------------- names


def _names(session: Session, sizes: list[int]) -> Table:
    columns = {size: f"{size:,}" for size in sizes}
    rows = {
        "first": Row("mounted, first start", "s"),
        "listed": Row("everything listed", "s"),
        "memory": Row("memory with everything listed", "MB"),
        "second": Row("mounted, second start", "s", reach=tuple(Reach(1.0, peer=name) for name in columns.values())),
        "lookup": Row("lookup in a directory of 1,000, not in memory", "µs"),
        "wide": Row(f"names of a directory of {_WIDE:,} (or half of all)", "ms"),
        "walked": Row("memory after a walk over all names", "MB", reach=(Reach(300.0, peer=columns[sizes[-1]]),)),
        "rename": Row(f"rename of a directory of {_MOVED:,} (or a quarter)", "ms", reach=(Reach(50.0, peer=columns[sizes[-1]]),)),
        "dirty": Row(f"mounted with {_DIRTY:,} (or fewer) dirty files, after SIGKILL", "s", reach=(
            Reach(1.0, peer=columns[sizes[-1]]),
        )),
    }  # fmt: skip
    for size in sizes:
        session.say(f"{size:,} objects")
        with session.inner() as inner:
            for key, values in _with_names(inner, size).items():
                rows[key].samples[columns[size]] = values
    for row in rows.values():
        row.note = kind(sizes, [row.median(name) for name in columns.values()])
    return Table(
        "growth", "Growth with names", list(columns.values()), list(rows.values()),
        ratios=tuple((columns[b], columns[a]) for a, b in pairwise(sizes)),
        intro="Objects in the bucket; the times are of b2fs.",
    )  # fmt: skip


def _with_names(session: Session, size: int) -> dict[str, list[float]]:
    wide, moved = min(_WIDE, size // 2), min(_MOVED, size // 4)
    rest, dirty = size - wide - moved, session.sized(min(_DIRTY, size), 500)
    server = session.devbucket(lambda root: fill_bucket(root, "growth", _tree(rest, wide, moved), bodies=False))
    peer = session.peer(lambda base: B2fs(base, server, "growth", quiet_period=_STILL, max_dirty_age=_STILL))
    found: dict[str, list[float]] = {}
    for _ in range(session.slow_rounds):
        peer.stop()
        peer.forget_local()
        found.setdefault("first", []).append(timed(peer.start))
        found.setdefault("listed", []).append(found["first"][-1] + timed(lambda: quiet(server, _LISTED_S)) - _LISTED_S)
        found.setdefault("memory", []).append(peer.memory() / _MB)
        peer.stop()
        found.setdefault("second", []).append(timed(peer.start))
    folders = sorted(name for name in os.listdir(peer.path) if name.startswith("d"))
    for number in range(session.slow_rounds):
        peer.stop()
        peer.start()
        folder = peer.path / random.Random(number).choice(folders[:-1] or folders)
        paths = [folder / f"f{each:04}" for each in range(min(rest, _FOLDER))]
        found.setdefault("lookup", []).append(timed(partial(_stat, paths)) / len(paths) * 1e6)
        found.setdefault("wide", []).append(timed(lambda: os.listdir(peer.path / "wide")) * 1e3)
        found.setdefault("rename", []).append(timed(lambda: os.rename(peer.path / "moved", peer.path / "there")) * 1e3)
        os.rename(peer.path / "there", peer.path / "moved")
    for _ in os.walk(peer.path):
        pass
    found["walked"] = [peer.memory() / _MB]
    (peer.path / "dirty").mkdir()
    for number in range(dirty):
        (peer.path / "dirty" / f"f{number}").write_bytes(b"dirty")
    for _ in range(session.slow_rounds):
        peer.kill()
        found.setdefault("dirty", []).append(timed(peer.start))
    return found


def _stat(paths: list[Path]) -> None:
    for path in paths:
        os.stat(path)


def _tree(rest: int, wide: int, moved: int) -> Iterator[Seed]:
    """One wide directory, one to be moved, the rest in folders of a thousand."""
    yield from (Seed(f"d{number // _FOLDER:04}/f{number % _FOLDER:04}", 25_000) for number in range(rest))
    yield from (Seed(f"moved/f{number:05}", 25_000) for number in range(moved))
    yield from (Seed(f"wide/f{number:06}", 25_000) for number in range(wide))


# ---------------------------------------------------------------- the cache


def _cache(session: Session, sizes: list[int]) -> Table:
    columns = {size: show_size(size) for size in sizes}
    rows = {
        "start": Row("mounted", "s", reach=tuple(Reach(1.0, peer=name) for name in columns.values())),
        "memory": Row("memory", "MB"),
        "hit": Row("open+read+close of a cached file", "µs"),
        "miss": Row("the same of one that is fetched, the cache full", "µs"),
    }
    for size in sizes:
        session.say(f"{columns[size]} in the cache")
        with session.inner() as inner:
            for key, values in _with_cache(inner, size).items():
                rows[key].samples[columns[size]] = values
    for row in rows.values():
        row.note = kind(sizes[1:], [row.median(columns[size]) for size in sizes[1:]])
    return Table(
        "growth-cache", "Growth with the cache", list(columns.values()), list(rows.values()),
        ratios=((columns[sizes[-1]], columns[sizes[0]]),),
        intro=f"Bytes of other objects in the cache, in pieces of {show_size(CHUNK)}; its limit is just above.",
    )  # fmt: skip


def _with_cache(session: Session, size: int) -> dict[str, list[float]]:
    seeds = [*flat("hits", _READS, 4096)]
    for number in range(session.slow_rounds):
        seeds += flat(f"misses-{number}", _READS, 25_000)
    server = session.devbucket(lambda root: fill_bucket(root, "growth", seeds))
    limit = size + _READS * 4096 + (2 << 20)
    peer = session.peer(lambda base: B2fs(base, server, "growth", cache_size=str(limit)))
    peer.start()
    for number in range(_READS):
        (peer.path / "hits" / f"f{number:06}").read_bytes()
    peer.stop()
    _fill_cache(peer.state, size)
    found: dict[str, list[float]] = {}
    for number in range(session.slow_rounds):
        found.setdefault("start", []).append(timed(peer.start))
        found.setdefault("hit", []).append(_read(peer.path / "hits"))
        found.setdefault("miss", []).append(_read(peer.path / f"misses-{number}"))
        found.setdefault("memory", []).append(peer.memory() / _MB)
        peer.stop()
    return found


def _fill_cache(state: Path, size: int) -> None:
    """Sparse blobs of objects that the bucket does not have, older than all others."""
    disk, journal = Disk(str(state)), Journal(str(state / "journal.db"))
    try:
        blobs = [Blob(f"4_z{number:040x}", CHUNK, 1) for number in range(size // CHUNK)]
        for blob in blobs:
            path = Path(disk.blob_path(blob.name))
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.truncate(blob.size)
        journal.commit(Change(blobs=blobs))
    finally:
        journal.close()
        disk.close()


def _read(folder: Path) -> float:
    """µs for each of its files."""
    paths = [folder / f"f{number:06}" for number in range(_READS)]
    os.listdir(folder)
    return timed(lambda: [path.read_bytes() for path in paths]) / _READS * 1e6
