"""The layer itself: it is a file system, and it forgets what it should, and nothing else."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.mount.hosts import failing
from tests.power.support import Layer, sync

SEEDS = range(60)
"""Enough that each thing that chance may do happens: the tests assert that it did."""


def write(path: Path, data: bytes, *, synced: bool = False) -> None:
    path.write_bytes(data)
    if synced:
        sync(path)


def content(image: Path) -> dict[str, bytes]:
    """The files of an image by their paths; the image is removed."""
    found = {str(path.relative_to(image)): path.read_bytes() for path in image.rglob("*") if path.is_file()}
    shutil.rmtree(image)
    return found


def images(layer: Layer, disk: Path) -> list[dict[str, bytes]]:
    return [content(layer.image(disk, seed)) for seed in SEEDS]


# ---------------------------------------------------------------- what is synced, and what is not


def test_what_was_not_synced_is_gone(layer: Layer, disk: Path) -> None:
    """A file that nobody synced has neither content nor name."""
    write(disk / "a", b"1")
    assert content(layer.image(disk)) == {}


def test_a_synced_file_without_a_synced_name_is_gone(layer: Layer, disk: Path) -> None:
    """fsync of a file alone does not make its name durable."""
    write(disk / "a", b"1", synced=True)
    assert content(layer.image(disk)) == {}


def test_a_synced_name_of_a_file_that_was_not_is_empty(layer: Layer, disk: Path) -> None:
    """fsync of a directory alone does not make its files' content durable."""
    write(disk / "a", b"1")
    sync(disk)
    assert content(layer.image(disk)) == {"a": b""}


def test_a_synced_file_with_a_synced_name_is_there(layer: Layer, disk: Path) -> None:
    """File and directory synced: content, mode and mtime (ns) survive, also in a directory of its own."""
    (disk / "d").mkdir()
    write(disk / "d/a", b"1")
    os.chmod(disk / "d/a", 0o640)
    os.utime(disk / "d/a", ns=(5, 1_600_000_000_123_456_789))
    for path in (disk / "d/a", disk / "d", disk):
        sync(path)
    image = layer.image(disk)
    found = (image / "d/a").stat()
    assert (found.st_mtime_ns, stat.S_IMODE(found.st_mode)) == (1_600_000_000_123_456_789, 0o640)
    assert content(image) == {"d/a": b"1"}


def test_fdatasync_saves_content_and_size_but_no_times(layer: Layer, disk: Path) -> None:
    """fdatasync is what SQLite uses: the content is durable, the mtime that was set after the last fsync is not."""
    write(disk / "a", b"1", synced=True)
    sync(disk)
    before = (disk / "a").stat().st_mtime_ns
    with open(disk / "a", "ab") as file:
        file.write(b"2")
        file.flush()
        os.utime(disk / "a", ns=(7, 7))
        os.fdatasync(file.fileno())
    image = layer.image(disk)
    assert (image / "a").stat().st_mtime_ns == before
    assert content(image) == {"a": b"12"}


def test_a_directory_whose_parent_was_not_synced_is_gone(layer: Layer, disk: Path) -> None:
    """Every directory on the way has to be synced."""
    (disk / "d").mkdir()
    write(disk / "d/a", b"1", synced=True)
    sync(disk / "d")
    assert content(layer.image(disk)) == {}


def test_a_rename_that_was_not_synced_did_not_happen(layer: Layer, disk: Path) -> None:
    """The old names and what they meant are back, also the file that was renamed over."""
    write(disk / "a", b"1", synced=True)
    write(disk / "b", b"2", synced=True)
    sync(disk)
    os.rename(disk / "a", disk / "b")
    assert content(layer.image(disk)) == {"a": b"1", "b": b"2"}
    sync(disk)
    assert content(layer.image(disk)) == {"b": b"1"}


def test_a_rename_between_directories_needs_both_synced(layer: Layer, disk: Path) -> None:
    """Only the new directory synced: both names; only the old one: none (POSIX does not forbid it)."""
    (disk / "d").mkdir()
    for name in ("a", "b"):
        write(disk / name, name.encode(), synced=True)
    sync(disk)
    os.rename(disk / "a", disk / "d/a")
    sync(disk / "d")
    assert content(layer.image(disk)) == {"a": b"a", "b": b"b", "d/a": b"a"}
    os.rename(disk / "b", disk / "d/b")
    sync(disk)
    assert content(layer.image(disk)) == {"d/a": b"a"}


def test_what_was_written_after_the_sync_is_gone(layer: Layer, disk: Path) -> None:
    """Overwritten, appended, truncated: the content is the one of the last fsync."""
    for change in (
        lambda fd: os.pwrite(fd, b"X", 1),
        lambda fd: os.pwrite(fd, b"more", 3),
        lambda fd: os.ftruncate(fd, 0),
    ):
        write(disk / "a", b"abc", synced=True)
        sync(disk)
        descriptor = os.open(disk / "a", os.O_RDWR)
        change(descriptor)
        os.close(descriptor)
        assert content(layer.image(disk)) == {"a": b"abc"}


def test_an_unlink_that_was_not_synced_did_not_happen(layer: Layer, disk: Path) -> None:
    """A removed file is back with its synced content, even though it was open and written on."""
    write(disk / "a", b"1", synced=True)
    sync(disk)
    descriptor = os.open(disk / "a", os.O_RDWR)
    os.unlink(disk / "a")
    os.write(descriptor, b"22")
    os.close(descriptor)
    assert content(layer.image(disk)) == {"a": b"1"}
    sync(disk)
    assert content(layer.image(disk)) == {}


def test_two_names_are_one_file(layer: Layer, disk: Path) -> None:
    """A link has the content that was synced under the other name, and is one file with it in the image."""
    (disk / "d").mkdir()
    write(disk / "a", b"1", synced=True)
    os.link(disk / "a", disk / "d/b")
    sync(disk)
    assert content(layer.image(disk)) == {"a": b"1"}
    sync(disk / "d")
    image = layer.image(disk)
    assert (image / "a").samefile(image / "d/b")
    assert content(image) == {"a": b"1", "d/b": b"1"}


def test_shared_memory_is_saved_by_fsync_of_the_file(layer: Layer, disk: Path) -> None:
    """What was written through a shared map counts as written once the file is synced."""
    write(disk / "a", b"abc", synced=True)
    sync(disk)
    with open(disk / "a", "r+b") as file, mmap.mmap(file.fileno(), 3) as shared:
        shared[1:2] = b"X"
        assert content(layer.image(disk)) == {"a": b"abc"}
        os.fsync(file.fileno())
        assert content(layer.image(disk)) == {"a": b"aXc"}


# ---------------------------------------------------------------- chance


def test_chance_may_save_any_change_of_names(layer: Layer, disk: Path) -> None:
    """Of two new files and a removed one each is there or not, whatever the others are."""
    write(disk / "old", b"0", synced=True)
    sync(disk)
    for name in ("a", "b"):
        write(disk / name, b"", synced=True)
    os.unlink(disk / "old")
    found = {tuple(sorted(image)) for image in images(layer, disk)}
    assert found == {("a",), ("b",), ("a", "b"), ("a", "old"), ("b", "old"), ("a", "b", "old"), ("old",), ()}


def test_a_rename_in_a_directory_is_atomic(layer: Layer, disk: Path) -> None:
    """With any luck there is the old name or the new one, with whole content; never both, never none."""
    write(disk / "a", b"1", synced=True)
    write(disk / "b", b"2", synced=True)
    sync(disk)
    os.rename(disk / "a", disk / "b")
    found = images(layer, disk)
    assert all(image in ({"a": b"1", "b": b"2"}, {"b": b"1"}) for image in found)
    assert {len(image) for image in found} == {1, 2}


def test_chance_mixes_old_new_and_zeros(layer: Layer, disk: Path) -> None:
    """A file that was overwritten and grew: whole old, whole new, the beginning of the new, a mix by pages; nothing else,
    and each of them for some seed.
    """
    page = 4096
    old, new = b"o" * page * 2, b"n" * page * 4
    write(disk / "a", old, synced=True)
    sync(disk)
    with open(disk / "a", "r+b") as file:
        file.write(new)
    kinds = set()
    for image in images(layer, disk):
        data = image["a"]
        pages = [data[at : at + page] for at in range(0, len(data), page)]
        if data in (old, new):
            kinds.add("old" if data == old else "new")
        elif data == new[: len(data)]:
            assert len(old) <= len(data) and len(data) % 512 == 0
            kinds.add("beginning")
        else:
            assert len(data) == len(new)
            allowed = [(old, new)] * 2 + [(b"\0" * page, new)] * 2
            assert all(
                each in (possible[0][:page], possible[1][:page]) for each, possible in zip(pages, allowed, strict=True)
            )
            kinds.add("mix")
    assert kinds == {"old", "new", "beginning", "mix"}


def test_old_content_is_not_behind_a_truncation(layer: Layer, disk: Path) -> None:
    """A file that was emptied and written anew: the whole old content, or only new and zeros."""
    old, new = b"o" * 9000, b"n" * 9000
    write(disk / "a", old, synced=True)
    sync(disk)
    write(disk / "a", new)
    for image in images(layer, disk):
        assert image["a"] == old or b"o" not in image["a"]


def test_what_was_synced_survives_any_chance(layer: Layer, disk: Path) -> None:
    """Chance has nothing to do with what fsync acknowledged."""
    (disk / "d").mkdir()
    write(disk / "d/a", b"1" * 9000, synced=True)
    for path in (disk / "d", disk):
        sync(path)
    assert all(image == {"d/a": b"1" * 9000} for image in images(layer, disk))


def test_a_seed_gives_one_image(layer: Layer, disk: Path) -> None:
    """The same operations and the same seed give the same image, whenever and wherever they are done."""
    seen = []
    for name in ("one", "two"):
        root = disk / name
        root.mkdir()
        for index in range(8):
            write(root / f"{index}", bytes([index]) * 10_000, synced=index % 3 == 0)
            if index == 4:
                sync(root)
        seen.append([content(layer.image(root, seed)) for seed in range(10)])
    assert seen[0] == seen[1]
    assert len({str(image) for image in seen[0]}) > 5


# ---------------------------------------------------------------- the moment


def test_an_armed_cut_is_before_the_nth_change(layer: Layer, disk: Path) -> None:
    """The image is that of the moment before the n-th change, and the disk serves on."""
    for at in range(1, 7):
        image = layer.arm(disk, at)
        write(disk / "a", b"1", synced=True)  # create, write, sync (an empty file is not truncated on opening)
        sync(disk)  # the fourth
        assert image.exists() == (at <= 4)
        write(disk / "b", b"2", synced=True)
        sync(disk)
        assert content(image) == ({} if at <= 4 else {"a": b"1"})
        assert (disk / "b").read_bytes() == b"2"
        for name in ("a", "b"):
            os.unlink(disk / name)
        sync(disk)


def test_a_cut_that_is_disarmed_does_not_happen(layer: Layer, disk: Path) -> None:
    """`disarm` takes the armed cut back."""
    image = layer.arm(disk, 1)
    layer.disarm()
    write(disk / "a", b"1")
    assert not image.exists()


def test_only_changes_are_counted(layer: Layer, disk: Path) -> None:
    """Reading moves no armed cut: histories are repeatable whatever the kernel has cached."""
    write(disk / "a", b"1")
    before = layer.counted()
    (disk / "a").read_bytes()
    os.listdir(disk)
    (disk / "a").stat()
    os.statvfs(disk)
    assert layer.counted() == before
    write(disk / "b", b"1", synced=True)
    assert layer.counted() == before + 3


# ---------------------------------------------------------------- a file system like others


def _positions(root: Path) -> object:
    descriptor = os.open(root / "a", os.O_RDWR | os.O_CREAT, 0o600)
    os.pwrite(descriptor, b"behind a hole", 10)
    os.ftruncate(descriptor, 20)
    found = [os.pread(descriptor, 100, 3), os.fstat(descriptor).st_size]
    os.ftruncate(descriptor, 30)
    found.append(os.pread(descriptor, 100, 0))
    os.utime(descriptor, ns=(1, 2))
    found.append(os.fstat(descriptor).st_mtime_ns)
    os.close(descriptor)
    return found


def _copying(root: Path) -> object:
    write(root / "a", bytes(range(256)) * 100)
    with open(root / "a", "rb") as source, open(root / "b", "w+b") as target:
        done = os.copy_file_range(source.fileno(), target.fileno(), 10_000, 500, 100)
        return done, target.read()


def _links(root: Path) -> object:
    (root / "d").mkdir()
    write(root / "a", b"1")
    os.link(root / "a", root / "d/b")
    found: list[object] = [os.stat(root / "a").st_nlink]
    write(root / "d/b", b"22")
    found.append((root / "a").read_bytes())
    os.unlink(root / "a")
    found += [os.stat(root / "d/b").st_nlink, os.listdir(root), (root / "d/b").read_bytes()]
    with failing(errno.ENOTEMPTY):
        os.rmdir(root / "d")
    return found


def _removed_while_open(root: Path) -> object:
    descriptor = os.open(root / "a", os.O_RDWR | os.O_CREAT)
    os.unlink(root / "a")
    os.pwrite(descriptor, b"still here", 0)
    found = [os.pread(descriptor, 100, 0), os.fstat(descriptor).st_nlink, os.listdir(root)]
    os.close(descriptor)
    return found


def _renames(root: Path) -> object:
    (root / "d").mkdir()
    (root / "e").mkdir()
    for name in ("a", "d/b", "e/c"):
        write(root / name, name.encode())
    os.rename(root / "a", root / "d/b")
    with failing(errno.ENOTEMPTY):
        os.rename(root / "d", root / "e")
    os.rename(root / "d", root / "e/d")
    return sorted((str(path.relative_to(root)), path.is_file() and path.read_bytes()) for path in root.rglob("*"))


def _many_names(root: Path) -> object:
    for index in range(500):
        write(root / f"{index}", b"")
    listed = os.scandir(root)
    first = next(listed).name
    for index in range(0, 500, 2):
        os.unlink(root / f"{index}")
    rest = {entry.name for entry in listed}
    assert len(rest | {first}) >= 250
    return sorted(os.listdir(root))


def _exclusive(root: Path) -> object:
    os.close(os.open(root / "a", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    with failing(errno.EEXIST):
        os.open(root / "a", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with failing(errno.ENOENT):
        os.open(root / "b", os.O_RDONLY)
    with failing(errno.EEXIST):
        os.link(root / "a", root / "a")
    write(root / "a", b"abc")
    os.close(os.open(root / "a", os.O_WRONLY | os.O_TRUNC))
    return (root / "a").read_bytes()


@pytest.mark.parametrize("use", [_positions, _copying, _links, _removed_while_open, _renames, _many_names, _exclusive])
def test_it_behaves_as_an_ordinary_directory(disk: Path, tmp_path: Path, use: Callable[[Path], object]) -> None:
    """Everything that b2fs does with a state directory has the same outcome on the layer and on the machine's own disk."""
    assert use(disk) == use(tmp_path)


# ---------------------------------------------------------------- faults


def test_faults_hit_what_they_name_until_they_are_taken_back(layer: Layer, disk: Path) -> None:
    """A write, a sync or a new name fails with the errno asked for, only for the paths asked for, only until the next order."""
    write(disk / "a", b"1")
    write(disk / "b", b"1")
    layer.fail(("write sync", f"{disk.name}/a", errno.EIO), ("create", "*", errno.ENOSPC))
    with failing(errno.EIO):
        write(disk / "a", b"2")
    with failing(errno.EIO):
        sync(disk / "a")
    with failing(errno.ENOSPC):
        write(disk / "c", b"")
    write(disk / "b", b"2", synced=True)
    layer.fail()
    write(disk / "a", b"3", synced=True)
    assert (disk / "a").read_bytes() == b"3"
    assert sorted(os.listdir(disk)) == ["a", "b"]


def test_a_failed_sync_saves_nothing(layer: Layer, disk: Path) -> None:
    """A content whose fsync failed is not on stable storage."""
    write(disk / "a", b"1", synced=True)
    sync(disk)
    write(disk / "a", b"2")
    layer.fail(("sync", "*", errno.EIO))
    with failing(errno.EIO):
        sync(disk / "a")
    assert content(layer.image(disk)) == {"a": b"1"}


# ---------------------------------------------------------------- SQLite on it


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA wal_autocheckpoint = 0")
    return db


def _rows(image: Path) -> list[int]:
    """What the database of an image says, after SQLite's own check; the image is removed."""
    with closing(sqlite3.connect(image / "x.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = [row[0] for row in db.execute("SELECT number FROM t ORDER BY number")]
    shutil.rmtree(image)
    return found


@pytest.mark.slow
def test_a_database_keeps_what_was_synced_and_is_whole(layer: Layer) -> None:
    """A WAL database under random cuts: rows whose log was fdatasynced are there, later ones are there from the first on or
    not at all, and the database is intact; also across checkpoints, and some cuts do lose rows.
    """
    lost = 0
    for at in range(1, 400, 9):
        with layer.directory() as disk, closing(_open(disk / "x.db")) as db:
            db.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
            log = os.open(disk / "x.db-wal", os.O_RDONLY)
            os.fdatasync(log)
            image = layer.arm(disk, at, seed=at if at % 2 else None)
            synced = written = 0
            for number in range(1, 121):
                db.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * number * 10))
                if image.exists():
                    break
                written = number
                if number % 7 == 0:
                    os.fdatasync(log)
                    if image.exists():
                        break
                    synced = number
                if number % 20 == 0:
                    db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    if image.exists():
                        break
            assert image.exists()
            os.close(log)
        rows = _rows(image)
        assert rows == list(range(1, len(rows) + 1))
        assert synced <= len(rows) <= written + 1
        lost += len(rows) < written
    assert lost > 5


def test_a_database_without_a_sync_may_be_gone_but_not_broken(layer: Layer, disk: Path) -> None:
    """Rows that nobody fdatasynced may be missing; what is there is a prefix, and the database is intact."""
    with closing(_open(disk / "x.db")) as db:
        db.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, text TEXT)")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for number in range(1, 31):
            db.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 500))
        assert _rows(layer.image(disk)) == []
        counts = []
        for seed in SEEDS:
            rows = _rows(layer.image(disk, seed))
            assert rows == list(range(1, len(rows) + 1))
            counts.append(len(rows))
    assert min(counts) == 0 and max(counts) == 30 and len(set(counts)) > 3
