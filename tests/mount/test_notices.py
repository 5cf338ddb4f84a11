"""What the kernel is told of changes that no program asked for: enough, and no more."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from b2fs.core.inode import ROOT
from b2fs.engine.volume import Changed
from b2fs.frontends.fuse import FuseMount, FuseOperations
from tests.devbucket_fixture import DevBucket
from tests.engine.world import World
from tests.mount import hosts
from tests.mount.hosts import NewHost
from tests.mount.support import until

new_host = hosts.new_host


FOLDERS = [f"{number:03}" for number in range(200)]
"""Names of directories that come with one listing."""


@contextmanager
def opened(paths: list[Path]) -> Iterator[Callable[[], list[str]]]:
    """Open all, files and directories; gives a function that says what the kernel calls them now."""
    numbers = [os.open(path, os.O_RDONLY) for path in paths]
    try:
        yield lambda: [os.readlink(f"/proc/self/fd/{number}") for number in numbers]
    finally:
        for number in numbers:
            os.close(number)


@pytest.mark.slow
def test_names_in_use_while_the_bucket_is_listed(new_host: NewHost, devbucket: DevBucket) -> None:
    """What was opened (or is a working directory, or runs) before the first listing was through keeps its path: a late
    notice about its name would cut it off, and getcwd(2) say ENOENT until somebody looks it up again.
    """
    for name in FOLDERS:
        devbucket.admin.put(devbucket.bucket, f"{name}/below/file", b"1")
    host = new_host()
    host.start()
    paths = [host.path / name / each for name in reversed(FOLDERS) for each in ("below", "below/file")]
    with opened(paths) as called:
        until(lambda: host.status()["listing"]["complete"])
        assert called() == [str(path) for path in paths]


async def test_new_names_that_nobody_asked_for(tmp_path: Path, autojump_clock: object) -> None:
    """A new name is told only where the kernel was told that some name is absent. Without a kernel: the listing is too
    quick for a program to come between it and a notice.
    """
    world = World(tmp_path)
    async with world.mount() as m:
        mount = FuseMount(m.engine, "nowhere")
        m.volume.on_change = mount._changed
        told = mount._receive.statistics
        world.bucket.put("first", b"1")
        await m.refresh()
        assert await m.exists("first")
        assert told().current_buffer_used == 0
        absent = await FuseOperations(m.engine).lookup(ROOT, b"second", None)
        assert absent.st_ino == 0
        world.bucket.put("second", b"2")
        await m.refresh()
        assert told().current_buffer_used == 1


async def test_directory_that_gets_many(tmp_path: Path, autojump_clock: object) -> None:
    """Of a directory that gets many others by one commit there is one notice: each costs a thread's round trip, and makes
    the kernel ask for its attributes again. Of what is in the new ones there is none.
    """
    world = World(tmp_path)
    async with world.mount() as m:
        told: list[Changed] = []
        m.volume.on_change = told.append
        for name in FOLDERS[:20]:
            world.bucket.put(f"{name}/file", b"1")
        await m.refresh()
        names = [Changed(ROOT, name.encode(), is_new=True) for name in FOLDERS[:20]]
        assert sorted(told, key=repr) == sorted([Changed(ROOT, None), *names], key=repr)


async def test_directory_that_was_looked_up(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No notice about the name of a directory that the kernel has looked up: it is right, and in use. (Before a kernel the
    notices are mostly quicker than a program, see `test_directories_in_use_as_soon_as_they_appear`.)
    """
    told: list[bytes] = []
    monkeypatch.setattr("pyfuse3.invalidate_entry_async", lambda parent, name, ignore_enoent: told.append(name))
    world = World(tmp_path)
    world.bucket.put("used/file", b"1")
    world.bucket.put("other/file", b"1")
    async with world.mount() as m:
        await FuseOperations(m.engine).lookup(ROOT, b"used", None)
        mount = FuseMount(m.engine, "nowhere")
        for name in (b"used", b"other"):
            mount._changed(Changed(ROOT, name))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount._notify)
            while not told:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert told == [b"other"]


async def test_notices_that_wait(tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is told by one thread, and a notice that fails takes no other with it."""
    told: list[int | bytes] = []
    threads: list[object] = []
    to_thread = trio.to_thread.run_sync

    async def counted(call: Callable[..., object], *args: object) -> None:
        threads.append(args)
        await to_thread(call, *args)

    def inode(ino: int, attr_only: bool) -> None:
        told.append(ino)
        raise OSError(errno.ENOENT, "the kernel does not know it")

    def entry(parent: int, name: bytes, ignore_enoent: bool) -> None:
        told.append(name)
        raise RuntimeError("a bug")

    monkeypatch.setattr("pyfuse3.invalidate_inode", inode)
    monkeypatch.setattr("pyfuse3.invalidate_entry_async", entry)
    world = World(tmp_path)
    async with world.mount() as m:
        mount = FuseMount(m.engine, "nowhere")
        for name in (None, b"gone", None, b"too"):
            mount._changed(Changed(ROOT, name))
        monkeypatch.setattr("trio.to_thread.run_sync", counted)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount._notify)
            while len(told) < 4:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
        monkeypatch.undo()
    assert sorted(map(str, told)) == sorted(map(str, [ROOT, ROOT, b"gone", b"too"]))
    assert len(threads) == 1


@pytest.mark.slow
def test_directories_in_use_as_soon_as_they_appear(new_host: NewHost, devbucket: DevBucket) -> None:
    """Directories that a refresh brings, opened as soon as they are seen, keep their path, though others were told of
    names that are absent here.
    """
    host = new_host(refresh_interval="300ms")
    host.start_listed()
    assert not (host.path / "last").exists()
    for name in (*(f"{name}/below/file" for name in FOLDERS), "last"):
        devbucket.admin.put(devbucket.bucket, name, b"1")
    until(lambda: len(os.listdir(host.path)) >= len(FOLDERS))
    paths = [host.path / name for name in reversed(FOLDERS)]
    with opened(paths) as called:
        until((host.path / "last").exists)  # the last notice of the listing
        assert called() == [str(path) for path in paths]


@pytest.mark.slow
def test_name_that_was_absent_appears(new_host: NewHost, devbucket: DevBucket) -> None:
    """Who was told that a name is absent sees it as soon as it is in the bucket: a file, a directory, one in another's
    place.
    """
    devbucket.admin.put(devbucket.bucket, "dir/there", b"1")
    host = new_host(refresh_interval="300ms")
    host.start_listed()
    names = ("file", "new/below", "dir/file", "dir/new/below")
    assert [name for name in names if os.path.exists(host.path / name)] == []
    assert [name for name in names if os.path.exists((host.path / name).parent)] == ["file", "dir/file"]
    for name in names:
        devbucket.admin.put(devbucket.bucket, name, b"2")
    devbucket.admin.put(devbucket.bucket, "dir/there", b"another")
    until(lambda: all(Path(host.path / name).exists() for name in names))
    until(lambda: (host.path / "dir/there").read_bytes() == b"another")
