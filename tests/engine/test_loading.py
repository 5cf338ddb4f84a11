"""A directory is being read from the journal, in a thread, while something else changes what is read."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.engine.seams import HookSeam
from tests.engine.world import World

pytestmark = pytest.mark.parametrize("order", range(3), indirect=True)


@pytest.fixture(autouse=True)
def every_directory_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("b2fs.engine.volume._INLINE_ENTRIES", -1)


async def test_row_that_changes(world: World, autojump_clock: object) -> None:
    """A listing takes one name of a file, in a directory that is not in memory, while the directory of the other is just
    being read: what is then in memory is the row as it is now.
    """
    async with world.mount() as m:
        for folder in ("c", "d"):
            await m.mkdir(folder)
        await m.write("c/a", b"content")
        await m.link("c/a", "d/b")
        await m.drained()
    seam = HookSeam()
    async with world.mount(seam=seam, listing=False) as m:
        world.bucket.hide_now("c/a")
        node = await m.node("d")
        assert node.children is None, "the test needs a directory that is not in memory"
        seam.after["load_directory"] = m.refresh
        assert await m.names("d") == ["b"]
        inode = (await m.node("d/b")).inode
        assert inode == m.volume.journal.inode(inode.ino)
        assert (inode.nlink, inode.file_id) == (1, world.bucket.objects()["d/b"].file_id)
        await m.unlink("d/b")
        await m.drained()


async def test_name_that_is_given(world: World, autojump_clock: object) -> None:
    """A listing that misses an object waits until its directory was read; what was renamed there meanwhile stays."""
    async with world.mount() as m:
        await m.mkdir("d")
        await m.write("d/x", b"old")
        await m.write("a", b"content")
        await m.link("a", "b")
        await m.drained()
    seam = HookSeam()
    async with world.mount(seam=seam, listing=False) as m:
        world.bucket.hide_now("d/x")
        assert (await m.node("d")).children is None, "the test needs a directory that is not in memory"

        async def refresh_and_rename() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.refresh)
                nursery.start_soon(m.rename, "a", "d/x")

        held = trio.Event()
        seam.after["load_directory"] = held.wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.names, "d")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(refresh_and_rename)
            await trio.testing.wait_all_tasks_blocked()
            held.set()
        assert await m.read("d/x") == b"content"
        assert (await m.node("b")).inode.nlink == 2
        await m.drained()
        assert world.bucket.files() == {"d/x": b"content", "b": b"content"}


async def test_name_that_is_forgotten(world: World, autojump_clock: object) -> None:
    """Content that is found spoilt just then takes its name with it; its directory is listed again."""
    async with world.mount(upload=False) as m:
        await m.mkdir("d")
        for name in ("x", "y"):
            await m.write(f"d/{name}", b"content")
            await m.engine.content.seal(await m.node(f"d/{name}"))
        spoilt = (await m.node("d/x")).inode
    seam = HookSeam()
    async with world.mount(seam=seam, listing=False, upload=False, known=("damaged",)) as m:
        assert (await m.node("d")).children is None, "the test needs a directory that is not in memory"
        path = m.volume.disk.staged_path(spoilt.staged)
        with open(path, "r+b") as file:
            file.write(b"C")
        seam.after["load_directory"] = lambda: m.engine.recovery.examine(spoilt.ino, spoilt.staged, spoilt.sha1)
        await m.names("d")
        assert await m.read("d/y") == b"content"
        assert not await m.exists("d/x")
