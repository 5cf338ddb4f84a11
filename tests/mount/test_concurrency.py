"""Many programs at once: nothing is torn, lost or seen twice, nothing hangs, and nothing is kept that is over."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls import EXCHANGE, renameat2
from tests.devbucket_fixture import DevBucket
from tests.mount.crew import Beat, Crew, WatchedHost, Worker
from tests.mount.footprint import Footprint, footprint
from tests.mount.support import until

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
_CACHES = Path("/proc/sys/vm/drop_caches")


@pytest.fixture
def host(devbucket: DevBucket, request: pytest.FixtureRequest) -> Iterator[WatchedHost]:
    """A mount that can be watched, serving; with the settings of the test's `settings` mark."""
    settings: dict[str, str] = getattr(request, "param", {})
    made = WatchedHost(devbucket, **settings)
    try:
        made.start()
        yield made
    finally:
        made.remove()


def _ended(host: WatchedHost) -> None:
    """It stops in order, and had nothing to complain of."""
    host.stop()
    assert "ERROR" not in host.log_text() and "WARNING" not in host.log_text(), host.log_text()


# ---------------------------------------------------------------- one file


def test_appended_lines_are_whole(host: WatchedHost) -> None:
    """Four writers append lines to one log: each line is there once, whole, in its writer's order, for readers too."""
    log = host.path / "log"
    log.touch()
    lines = {
        writer: [f"{writer}:{number}:".encode().ljust(length, b".") + b"\n" for number, length in enumerate(lengths)]
        for writer in range(4)
        for lengths in [random.Random(writer).choices((20, 120, 5000, 70_000), (50, 50, 5, 1), k=300)]
    }
    known = {line for each in lines.values() for line in each}

    def writer(number: int) -> Worker:
        def work(beat: Beat) -> None:
            fd = os.open(log, os.O_WRONLY | os.O_APPEND)
            try:
                for line in lines[number]:
                    assert os.write(fd, line) == len(line)
                    beat()
            finally:
                os.close(fd)

        return work

    def reader(beat: Beat) -> None:
        found = log.read_bytes()
        beat()
        assert set(found.splitlines(keepends=True)) <= known
        size = os.stat(log).st_size
        assert size >= len(found)

    Crew(host).run([writer(number) for number in lines], [reader, reader])
    found = log.read_bytes().splitlines(keepends=True)
    assert len(found) == sum(map(len, lines.values()))
    for number, wanted in lines.items():
        assert [line for line in found if line.startswith(f"{number}:".encode())] == wanted
    _ended(host)


def test_writers_at_disjoint_offsets(host: WatchedHost) -> None:
    """Records that four writers put side by side are each what was written, as soon as the write has returned."""
    path = host.path / "records"
    size, records = 100, 400
    shared = os.open(path, os.O_RDWR | os.O_CREAT)
    is_there: list[tuple[int, bytes]] = []

    def writer(number: int) -> Worker:
        def work(beat: Beat) -> None:
            order = list(range(number, 4 * records, 4))
            random.Random(number).shuffle(order)
            fd = os.open(path, os.O_RDWR)
            try:
                for index in order:
                    record = f"<{index}>".encode().ljust(size, b"%d" % number)
                    assert os.pwrite(fd, record, index * size) == size
                    is_there.append((index, record))
                    beat()
            finally:
                os.close(fd)

        return work

    def reader(beat: Beat) -> None:
        for index, record in random.sample(is_there, min(50, len(is_there))):
            assert os.pread(shared, size, index * size) == record
            beat()

    Crew(host).run([writer(number) for number in range(4)], [reader, reader])
    assert path.read_bytes() == b"".join(record for _, record in sorted(is_there))
    assert len(is_there) == 4 * records
    os.close(shared)
    _ended(host)


# ---------------------------------------------------------------- one directory


def test_listings_while_entries_come_and_go(host: WatchedHost) -> None:
    """Who lists a directory in a storm of creations and deletions sees each name that stays exactly once."""
    turns, long = 150, "-" * 200  # so that a listing takes many requests
    stable = {f"stable{number:03}{long}" for number in range(turns)}
    for number in range(turns):  # in between are names that go: what is listed after them moves up
        for writer in range(4):
            (host.path / f"early{writer}.{number}{long}").touch()
        (host.path / f"stable{number:03}{long}").touch()

    def writer(number: int) -> Worker:
        def work(beat: Beat) -> None:
            for turn in range(turns):
                path = host.path / f"passing{number}.{turn % 7}"
                path.write_bytes(b"x")
                beat()
                path.unlink()
                (host.path / f"early{number}.{turn}{long}").unlink()
                beat()

        return work

    def reader(beat: Beat) -> None:
        seen = Counter(os.listdir(host.path))
        beat()
        assert {name: seen[name] for name in stable} == dict.fromkeys(stable, 1)
        assert all(name.startswith(("passing", "early")) for name in seen.keys() - stable)

    Crew(host).run([writer(number) for number in range(4)], [reader, reader])
    assert set(os.listdir(host.path)) == stable
    _ended(host)


def test_renames_while_files_are_read(host: WatchedHost) -> None:
    """In a storm of renames a file is always whole under its old or its new name; a replaced name is never absent;
    two directories that are exchanged are always both there, and full.
    """
    folders = [host.path / name for name in ("left", "right", "now", "next")]
    for folder in folders:
        folder.mkdir()
    content = {f"file{number:02}": f"{number} ".encode() * 2000 for number in range(12)}
    for name, data in content.items():
        (host.path / "left" / name).write_bytes(data)
        (host.path / "now" / name).touch()
        (host.path / "next" / name).touch()
    saved = host.path / "saved"
    saved.write_bytes(b"0" * 5000)

    def mover(names: list[str]) -> Worker:
        def work(beat: Beat) -> None:
            for turn in range(60):
                one, other = ("left", "right") if turn % 2 == 0 else ("right", "left")
                for name in names:
                    os.rename(host.path / one / name, host.path / other / name)
                    beat()

        return work

    def saver(beat: Beat) -> None:
        for turn in range(200):
            new = host.path / "saved.new"
            new.write_bytes(b"%d" % (turn % 10) * (5000 + turn))
            os.replace(new, saved)
            beat()

    def exchanger(beat: Beat) -> None:
        for _ in range(200):
            renameat2(str(host.path / "now"), str(host.path / "next"), EXCHANGE)
            beat()

    def reader(beat: Beat) -> None:
        for name, data in content.items():
            assert _found(host.path, name) == data
            beat()
        version = saved.read_bytes()
        assert len(version) >= 5000 and version == version[:1] * len(version)
        assert sorted(os.listdir(host.path / "now")) == sorted(content)
        beat()

    names = sorted(content)
    Crew(host).run([mover(names[:6]), mover(names[6:]), saver, exchanger], [reader, reader])
    assert {name: (host.path / "left" / name).read_bytes() for name in names} == content
    _ended(host)


def _found(root: Path, name: str) -> bytes:
    """The file where it is now. It can move away while one looks, but not for ever."""
    for _ in range(1000):
        for folder in ("left", "right"):
            try:
                return (root / folder / name).read_bytes()
            except FileNotFoundError:
                continue
    raise AssertionError(f"{name} is nowhere")


# ---------------------------------------------------------------- what goes on behind the programs


@pytest.mark.parametrize("host", [{"cache_size": "4MiB"}], indirect=True)
def test_readers_during_eviction(host: WatchedHost, devbucket: DevBucket) -> None:
    """Readers of three times what the cache holds get every byte while it is evicted under their hands."""
    files = {f"{number}.bin": random.Random(number).randbytes(MIB + number) for number in range(12)}
    for name, data in files.items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host.stop()
    host.forget_state()
    host.start_listed()

    def reader(number: int) -> Worker:
        def work(beat: Beat) -> None:
            for name in random.Random(number).choices(sorted(files), k=25):
                fd = os.open(host.path / name, os.O_RDONLY)
                try:
                    assert b"".join(iter(lambda fd=fd: os.read(fd, 256 * 1024), b"")) == files[name]
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # the next one asks the daemon again
                finally:
                    os.close(fd)
                beat()

        return work

    def dropper(beat: Beat) -> None:
        """The daemon has to read its cache from the disk, which takes time."""
        for blob in (host.state / "cache").glob("*/*"):
            with contextlib.suppress(FileNotFoundError), open(blob, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        beat()

    Crew(host).run([reader(number) for number in range(4)], [dropper])
    cache = host.stats()["cache"]
    assert cache["evictions"] > 12
    assert cache["bytes"] <= cache["limit"]
    _ended(host)


@pytest.mark.parametrize("host", [{"refresh_interval": "100ms"}], indirect=True)
def test_readers_during_refresh(host: WatchedHost, devbucket: DevBucket) -> None:
    """While another writer changes the bucket, a reader gets one whole version, never an older one than before, and
    what is written here stays.
    """
    size, versions = 40_000, 12

    def version(number: int) -> bytes:
        return b"%04d" % number * (size // 4 + number)

    devbucket.admin.put(devbucket.bucket, "theirs", version(0))
    until(lambda: (host.path / "theirs").exists())

    def changer(beat: Beat) -> None:
        for number in range(1, versions):
            devbucket.admin.put(devbucket.bucket, "theirs", version(number))
            until(lambda number=number: _number(host.path / "theirs") == number, 60.0)
            beat()

    def writer(beat: Beat) -> None:
        for turn in range(150):
            (host.path / f"ours{turn % 9}").write_bytes(b"%d" % turn)
            assert (host.path / f"ours{turn % 9}").read_bytes() == b"%d" % turn
            beat()

    latest = [0, 0]

    def reader(which: int) -> Worker:
        def work(beat: Beat) -> None:
            found = (host.path / "theirs").read_bytes()
            number = int(found[:4])
            assert found == version(number)
            assert number >= latest[which]
            latest[which] = number
            beat()

        return work

    Crew(host).run([changer, writer], [reader(0), reader(1)])
    assert latest == [versions - 1] * 2
    assert sorted(os.listdir(host.path)) == [*(f"ours{number}" for number in range(9)), "theirs"]
    _ended(host)


def _number(path: Path) -> int:
    with open(path, "rb") as file:
        return int(file.read(4))


def test_lookups_while_the_kernel_forgets(host: WatchedHost) -> None:
    """Names that the kernel drops and looks up again, open files among them, are the files that they were."""
    names = [f"dir{number % 10}/file{number}" for number in range(600)]
    for number in range(10):
        (host.path / f"dir{number}").mkdir()
    for name in names:
        (host.path / name).write_bytes(name.encode())
    inodes = {name: os.stat(host.path / name).st_ino for name in names}
    kept = {name: os.open(host.path / name, os.O_RDWR) for name in names[::60]}

    def dropper(beat: Beat) -> None:
        for turn in range(15):
            _forget(host.path, turn)
            beat()

    def reader(number: int) -> Worker:
        def work(beat: Beat) -> None:
            for name in random.Random(f"{number} {time.monotonic_ns()}").sample(names, 100):
                assert os.stat(host.path / name).st_ino == inodes[name]
                assert (host.path / name).read_bytes() == name.encode()
                beat()

        return work

    def unlinker(beat: Beat) -> None:
        for turn in range(300):
            path = host.path / f"passing{turn}"
            path.write_bytes(b"passing")
            with open(path, "rb") as file:
                path.unlink()
                assert file.read() == b"passing"
            beat()

    Crew(host).run([dropper, unlinker], [reader(number) for number in range(3)])
    for name, fd in kept.items():
        assert os.pread(fd, 100, 0) == name.encode()
        os.close(fd)
    _forget(host.path, 0)
    until(lambda: host.stats()["names"]["inodes"] == 1 + 10 + len(names))
    _ended(host)


def _forget(root: Path, turn: int) -> None:
    """Have the kernel forget what it can: all of it where we may say so, else what is below a directory that moves."""
    try:
        _CACHES.write_text("2")
    except OSError:
        folder = root / f"dir{turn % 10}"
        folder.rename(root / "moved")
        (root / "moved").rename(folder)


# ---------------------------------------------------------------- no deadlock, no leak


def test_watch_ends_a_mount_that_hangs(host: WatchedHost) -> None:
    """A daemon that answers nobody is ended with its stacks in the report, and whoever waited gets an error."""
    (host.path / "file").touch()

    def worker(beat: Beat) -> None:
        beat()
        os.kill(host.pid, signal.SIGSTOP)
        os.mkdir(host.path / "never")

    with pytest.raises(AssertionError, match=r"nothing moved for 0.5 s\n(.|\n)*most recent call first"):
        Crew(host, silence_s=0.5).run([worker])


def test_nothing_is_kept_of_what_is_over(host: WatchedHost) -> None:
    """After 10,000 files and 2,000 directories, renames and links that came and went the daemon holds what it held."""
    (host.path / "stays").write_bytes(b"stays")
    _cycles(host, 2000, 400)
    before = _at_rest(host)
    _cycles(host, 10_000, 2_000)
    with contextlib.suppress(AssertionError):  # the next line says what it was
        until(lambda: _grown(before, footprint(host)) == {}, 40.0)
    assert _grown(before, footprint(host)) == {}
    assert os.listdir(host.path) == ["stays"]
    _ended(host)


def _cycles(host: WatchedHost, files: int, others: int) -> None:
    def of_files(beat: Beat) -> None:
        for number in range(files):
            path = host.path / f"file{number}"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.write(fd, b"content")
            assert os.pread(fd, 100, 0) == b"content"
            os.close(fd)
            os.unlink(path)
            beat()

    def of_others(beat: Beat) -> None:
        for number in range(others):
            path, new = host.path / f"other{number}", host.path / f"new{number}"
            os.mkdir(path)
            os.symlink("target", path / "link")
            os.rename(path, new)
            assert os.readlink(new / "link") == "target"
            shutil.rmtree(new)
            beat()

    Crew(host).run([of_files, of_others])


def _at_rest(host: WatchedHost) -> Footprint:
    """What it takes when all is done, and its idle threads have gone."""
    host.flush()
    until(lambda: host.stats()["queue"]["waiting"] == 0)
    return footprint(host)


def _grown(before: Footprint, after: Footprint) -> dict[str, int]:
    """What grew beyond what noise explains."""
    noise = Footprint(descriptors=0, threads=0, tasks=1, inodes=0, memory=4 * MIB, state=MIB)
    growth = {name: getattr(after, name) - getattr(before, name) for name in Footprint._fields}
    return {name: size for name, size in growth.items() if size > getattr(noise, name)}
