"""What is in memory has a bound, however many names are walked over; what is in use stays, and nothing shows it."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from b2fs.adapters.journal import Journal
from b2fs.core.change import Change
from b2fs.core.inode import ROOT
from b2fs.errors import NotFound, Stale
from tests.engine.seams import HookSeam
from tests.engine.world import Mount, World

MOST = 40
FOLDERS, FILES = 20, 10


async def _fill(world: World) -> None:
    for folder in range(FOLDERS):
        for file in range(FILES):
            world.bucket.put(f"d{folder:02}/f{file}", b"%d" % file)


def _in_memory(m: Mount) -> int:
    return len(m.volume.tree.nodes)


async def test_a_walk_over_everything(world: World, autojump_clock: object) -> None:
    """All names are seen, and no more of them are in memory than there may be, but for the directories of the walk."""
    await _fill(world)
    async with world.mount(names_in_memory=MOST) as m:
        seen = 0
        for folder in await m.names():
            seen += len(await m.names(folder))
            assert _in_memory(m) <= MOST + FOLDERS + FILES
        assert seen == FOLDERS * FILES
        assert await m.read("d00/f3") == b"3"


async def test_the_kernel_goes_on_with_numbers(world: World, autojump_clock: object) -> None:
    """What it looked up before is there by its number, a file without its directory; what is gone says so."""
    await _fill(world)
    async with world.mount(names_in_memory=0) as m:
        file, directory = await m.node("d03/f1"), await m.node("d03")
        file.lookups, directory.lookups = 1, 1
        ino, above = file.ino, directory.ino
        del file, directory
        for _ in range(3):
            m.volume.shrink()
        assert set(m.volume.tree.nodes) == {ROOT}
        handle = await m.files.open(ino, os.O_RDWR)
        assert set(m.volume.tree.nodes) == {ROOT, ino}
        assert bytes(await m.files.read(handle, 0, 9)) == b"1"
        await m.files.write(handle, 0, b"new")
        m.volume.shrink()
        assert (await m.node("d03/f1")).inode.size == 3
        await m.close(handle)
        assert (await m.files.lookup(above, b"f1")).ino == ino
        await m.drained()
        assert world.bucket.files()["d03/f1"] == b"new"
        m.files.forget(ino, 1)
        m.volume.shrink()
        assert m.volume.tree.lookups(ino) == 0


@pytest.mark.parametrize("files", [FILES, 200])
async def test_single_names_of_a_directory(world: World, files: int, autojump_clock: object) -> None:
    """One name is looked up without the others; the second look has a small directory in memory, a large one stays where
    it is, until somebody lists it. What was looked up before is the same node then.
    """
    for file in range(files):
        world.bucket.put(f"d/f{file:03}", b"%d" % file)
    world.bucket.put("d/below/x", b"x")
    async with world.mount():
        pass
    async with world.mount(listing=False) as m:
        directory = await m.node("d")
        first = await m.files.lookup(directory.ino, b"f001")
        assert directory.children is None and set(m.volume.tree.nodes) == {ROOT, directory.ino, first.ino}
        assert m.volume.tree.keys(first) == ["d/f001"]
        with pytest.raises(NotFound):
            await m.files.lookup(directory.ino, b"nothing")
        second = await m.files.lookup(directory.ino, b"f002")
        assert (directory.children is None) == (files == 200)
        assert (await m.files.lookup(directory.ino, b"f001")) is first
        handle = await m.files.open(second.ino, os.O_RDWR | os.O_TRUNC)
        await m.files.write(handle, 0, b"new")
        assert len(await m.names("d")) == files + 1
        assert m.volume.tree.child(directory, b"f001") is first
        assert (await m.files.lookup(directory.ino, b"f002")) is second and second.inode.size == 3
        m.files.release(handle)
        await m.drained()
        assert world.bucket.files()["d/f002"] == b"new"


async def test_a_subdirectory_of_a_directory_that_is_not_in_memory(world: World, autojump_clock: object) -> None:
    """It is found, and brings what is beside it: a directory in memory has all that is above it there too."""
    for file in range(200):
        world.bucket.put(f"d/f{file:03}", b"%d" % file)
    world.bucket.put("d/below/x", b"x")
    async with world.mount():
        pass
    async with world.mount(listing=False) as m:
        directory = await m.node("d")
        assert directory.children is None, "the test needs a directory that is not in memory"
        below = await m.files.lookup(directory.ino, b"below")
        assert m.volume.tree.path(below) == "d/below" and len(directory.children or {}) == 201
        assert (await m.files.lookup(below.ino, b"x")).inode.size == 1


async def test_what_went_meanwhile(world: World, autojump_clock: object) -> None:
    """An inode whose file the bucket lost or replaced is stale by its number: the kernel looks the name up again."""
    await _fill(world)
    async with world.mount(names_in_memory=0) as m:
        told: list[tuple[int, bytes | None]] = []
        m.volume.on_change = lambda changed: told.append((changed.ino, changed.name))
        node = await m.node("d05/f5")
        node.lookups = 1
        ino, above = node.ino, (await m.node("d05")).ino
        del node
        for _ in range(3):
            m.volume.shrink()
        assert set(m.volume.tree.nodes) == {ROOT}
        world.bucket.put("d05/f5", b"another")
        await m.refresh()
        assert (above, b"f5") in told
        with pytest.raises(Stale):
            await m.files.open(ino, os.O_RDONLY)
        assert await m.read("d05/f5") == b"another"
        assert m.volume.tree.lookups(ino) == 1


async def test_operation_that_is_suspended(world: World, autojump_clock: object) -> None:
    """A rename waits for a thread while everything else goes: its two directories stay as it saw them."""
    await _fill(world)
    seam = HookSeam()
    async with world.mount(names_in_memory=0, seam=seam) as m:

        async def unload() -> None:
            for _ in range(5):
                m.volume.shrink()
            assert (await m.volume.node(ROOT)).children is not None

        seam.before["longest_below"] = unload
        await m.mkdir("d00/below")
        await m.rename("d01", "d00/below/with a longer name")
        assert len(await m.names("d00/below/with a longer name")) == FILES
        assert not await m.exists("d01")
        assert seam.before == {}
        await m.drained()
        assert "d00/below/with a longer name/f1" in world.bucket.files()


async def test_removal_of_a_directory_that_is_not_in_memory(world: World, autojump_clock: object) -> None:
    """Whether it is empty is looked up, not guessed from memory."""
    await _fill(world)
    async with world.mount(names_in_memory=0) as m:
        await m.mkdir("empty")
        with pytest.raises(Exception, match="not empty"):
            await m.rmdir("d07")
        with pytest.raises(Exception, match="not empty"):
            await m.rename("empty", "d07")
        await m.rmdir("empty")
        await m.drained()
        assert len(await m.names("d07")) == FILES


async def test_large_directory_comes_by_slices(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices others have their turn; a name that comes meanwhile is not lost."""
    monkeypatch.setattr("b2fs.engine.volume._INLINE_ENTRIES", -1)
    monkeypatch.setattr("b2fs.engine.volume._LOAD_SLICE", 1)
    await _fill(world)
    async with world.mount() as m:
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        await m.node("")
        turns_before = turns
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            assert len(await m.names("d00")) == FILES
            nursery.cancel_scope.cancel()
        assert turns - turns_before >= FILES


async def test_listing_ends_by_slices(world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """All directories are complete in the end, in memory and in the journal, the ones that were not looked into too."""
    monkeypatch.setattr("b2fs.engine.listing._DIRECTORIES", 3)
    await _fill(world)
    async with world.mount() as m:
        assert (await m.node("d04")).inode.complete
        journal = m.volume.journal
        for folder in range(FOLDERS):
            inode = journal.path_inode(f"d{folder:02}")
            assert inode is not None and inode.complete
        assert m.engine.listing.complete
        world.bucket.log.clear()
        assert not await m.exists("d09/none")
        assert world.bucket.log == []


async def test_eviction_goes_on_where_it_was(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was used in this run is passed once, not with each eviction."""
    monkeypatch.setattr("b2fs.engine.cache._COLD_BATCH", 4)
    await _fill(world)
    async with world.mount() as m:
        for folder in range(FOLDERS):
            for file in range(FILES):
                await m.read(f"d{folder:02}/f{file}")
    async with world.mount() as m:
        journal, rows = m.volume.journal, 0
        coldest = journal.coldest_blobs

        def counted(limit: int, after: tuple[int, int, str]) -> object:
            nonlocal rows
            found = coldest(limit, after)
            rows += len(found)
            return found

        monkeypatch.setattr(journal, "coldest_blobs", counted)
        used = [f"d{folder:02}/f{file}" for folder in range(FOLDERS) for file in range(5)]
        for path in used:
            await m.read(path)
        for _ in range(FOLDERS * 5):
            assert m.engine.cache._evict(1)
        assert m.engine.cache.index.cold_bytes == 0
        assert rows <= FOLDERS * FILES + 4 * FOLDERS * 5
        world.bucket.log.clear()
        for path in used:
            await m.read(path)
        assert world.bucket.log == [], "what was used is here still"


async def test_start_with_many_dirty_files(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are taken up by one commit, their sizes as they are on the disk."""
    async with world.mount(upload=False) as m:
        for number in range(FOLDERS):
            await m.write(f"f{number}", b"x" * number)
    commits: list[Change] = []
    commit = Journal.commit

    def counted(journal: Journal, change: Change) -> None:
        commits.append(change)
        commit(journal, change)

    monkeypatch.setattr(Journal, "commit", counted)
    async with world.mount(upload=False, listing=False) as m:
        assert [len(change.inodes) for change in commits] == [FOLDERS - 1], "the row of an empty file is right already"
        monkeypatch.undo()
        assert [(await m.node(f"f{number}")).inode.size for number in range(FOLDERS)] == list(range(FOLDERS))
    async with world.mount() as m:
        await m.drained()
        assert len(world.bucket.files()) == FOLDERS
