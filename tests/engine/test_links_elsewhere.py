"""Hard links when others change the bucket: another host, another tool, and what comes in between."""

from __future__ import annotations

import pytest
import trio

from b2fs.core.inode import INFO_B2FS
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

pytestmark = pytest.mark.parametrize("order", range(3), indirect=True)


async def _two(m: Mount, data: bytes = b"content") -> None:
    await m.mkdir("d")
    await m.write("a", data)
    await m.link("a", "d/b")


# ---------------------------------------------------------------- the order in which B2 sees things


@pytest.mark.parametrize("moved", ["a", "d/b", "d"])
async def test_old_name_of_a_linked_file_stays_until_the_new_one_is_there(
    world: World, autojump_clock: object, moved: str
) -> None:
    """At every moment of a rename each of its names is visible as the old one or the new one."""
    new = {"a": "c", "d/b": "d/c", "d": "e"}[moved]
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        one, other = ("d/b", "e/b") if moved == "d" else (moved, new)
        world.bucket.faults += [Planted(call, DOWN, other) for call in ("upload", "copy") for _ in range(3)]
        seen: list[bool] = []
        world.bucket.tap = lambda: seen.append(not {one, other}.isdisjoint(world.bucket.objects()))
        await m.rename(moved, new)
        await m.idle()
        world.bucket.tap = None
        world.bucket.faults.clear()
        assert all(seen) and len(seen) > 3
        assert one not in world.bucket.files() and other in world.bucket.files()


async def test_log_that_is_written_on_keeps_no_name_that_went(world: World, autojump_clock: object) -> None:
    """A removed name goes from B2 although the file is written all the time by the others."""
    async with world.mount() as m:
        await _two(m)
        await m.link("a", "c")
        await m.drained()
        await m.unlink("d/b")
        for turn in range(60):
            world.now_ns += 10**9
            await m.patch("a", 0, b"%07d" % turn)
            await trio.sleep(1.5)
        assert "d/b" not in world.bucket.files()
        await m.drained()


# ---------------------------------------------------------------- two hosts


async def test_write_here_by_one_name_while_the_other_goes_elsewhere(world: World, autojump_clock: object) -> None:
    """What was written here is at both names (the other host removed the one it knew); the removed one is undoable."""
    async with world.mount("first") as first, world.mount("second") as second:
        await _two(first)
        await first.drained()
        await second.refresh()
        world.now_ns += 10**9
        await second.write("d/b", b"by the second")
        await first.unlink("a")
        await first.drained()
        await second.drained()
        await first.refresh()
        await second.refresh()
        tree = await second.tree()
        assert tree["d/b"].content == b"by the second"
        assert await first.tree() == tree
        assert {path for path in tree if path != "d"} == set(world.bucket.files())


async def test_both_write_by_another_name(world: World, autojump_clock: object) -> None:
    """Two hosts that have not heard of each other: the later one's content is shown at all names, by both, and the
    other's is in the history of each.
    """
    async with world.mount("first") as first, world.mount("second") as second:
        await _two(first)
        await first.drained()
        await second.refresh()
        world.now_ns += 10**9
        await first.write("a", b"by the first")
        await second.write("d/b", b"by the second")
        await first.drained()
        await second.drained()
        for m in (first, second):
            await m.refresh()
            tree = await m.tree()
            assert tree["a"].content == tree["d/b"].content == b"by the second"
            assert tree["a"].names == ("a", "d/b")
        for key in ("a", "d/b"):
            assert b"by the first" in world.bucket.history(key)


async def test_write_between_the_uploads_of_two_names(world: World, autojump_clock: object) -> None:
    """A host that sees one name's new content, and still the other's old one, has two files: what it writes to the one
    does not touch the other, and what is lost nowhere is in the history of its own name.
    """
    async with world.mount("first") as first, world.mount("second") as second:
        await _two(first)
        await first.drained()
        await second.refresh()
        world.now_ns += 10**9
        await first.write("a", b"new")
        world.bucket.faults += [Planted("upload", DOWN, key="d/b")] * 3
        await first.until(lambda: world.bucket.content("a") == b"new")
        await second.refresh()
        assert (await second.node("a")).ino != (await second.node("d/b")).ino
        await second.write("d/b", b"by the second")
        await second.drained()
        assert world.bucket.content("a") == b"new"
        await first.drained()
        for m in (first, second):
            await m.refresh()
        assert await first.tree() == await second.tree()
        assert world.bucket.content("a") == b"new"
        assert {b"new", b"by the second", b"content"} <= world.bucket.history("d/b")


async def test_renamed_elsewhere(world: World, autojump_clock: object) -> None:
    """A host that has the file open and looks at it hears of names that moved: one file still, all its names right."""
    async with world.mount("first") as first, world.mount("second") as second:
        await _two(first)
        await first.drained()
        await second.refresh()
        handle = await second.open("a")
        await first.rename("a", "c")
        await first.link("c", "e")
        await first.drained()
        await second.refresh()
        assert bytes(await second.files.read(handle, 0, 100)) == b"content"
        await second.close(handle)
        tree = await second.tree()
        assert tree["c"].names == tree["d/b"].names == tree["e"].names == ("c", "d/b", "e")
        assert await first.tree() == tree


# ---------------------------------------------------------------- other tools


async def test_one_link_id_with_two_contents(world: World, autojump_clock: object) -> None:
    """A tool that changes the bytes and keeps the fileInfo makes two files of it, each with its own content; a write to one
    leaves the other alone.
    """
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        world.bucket.put("d/b", b"CONTENT", world.bucket.objects()["d/b"].info)
        await m.refresh()
        assert (await m.read("a"), await m.read("d/b")) == (b"content", b"CONTENT")
        assert (await m.node("a")).ino != (await m.node("d/b")).ino
        await m.write("a", b"new")
        await m.drained()
        assert world.bucket.files() == {"a": b"new", "d/b": b"CONTENT"}


async def test_old_version_of_a_name_is_restored(world: World, autojump_clock: object) -> None:
    """A copy of an older version of the same key has the link id and the old content: a file of its own. One whose name had
    been hidden, and whose content is still the file's, is a name of it again.
    """
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        old = world.bucket.objects()["d/b"]
        await m.unlink("d/b")
        await m.drained()
        world.bucket.put("d/b", b"content", old.info)
        await m.refresh()
        assert (await m.tree())["a"].names == ("a", "d/b")
        world.now_ns += 10**9
        await m.write("a", b"new")
        await m.drained()
        world.bucket.put("d/b", b"content", old.info)
        await m.refresh()
        tree = await m.tree()
        assert (tree["a"].content, tree["d/b"].content) == (b"new", b"content")
        assert tree["a"].names == ()
        await m.write("d/b", b"newer")
        await m.drained()
        assert world.bucket.files() == {"a": b"new", "d/b": b"newer"}


async def test_symlinks_of_one_id_that_point_elsewhere(world: World, autojump_clock: object) -> None:
    """The same for symlinks, whose attributes do not say where they point to."""
    async with world.mount() as m:
        await m.symlink("a", "one")
        await m.link("a", "b")
        await m.drained()
        version = world.bucket.objects()["b"]
        world.bucket.put("b", b"two", version.info | {"b2fs_link": "two"}, version.content_type)
    for state in ("state", "another"):
        async with world.mount(state) as m:
            for path, target in (("a", "one"), ("b", "two")):
                assert await m.files.read_link((await m.node(path)).ino) == target, state


async def test_link_id_that_is_not_one(world: World, autojump_clock: object) -> None:
    """Whatever a tool writes in its place: the object is a file without other names."""
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        info = dict(world.bucket.objects()["d/b"].info)
        field = next(part for part in info[INFO_B2FS].split(";") if part.startswith("l="))
        for number, bad in enumerate(
            ("l=", "l=.", "l=xyz.12345678", field + "0", field[:-1], f"l={'0' * 99}.12345678")
        ):
            world.bucket.put(f"c{number}", b"content", info | {INFO_B2FS: info[INFO_B2FS].replace(field, bad)})
        await m.refresh()
        assert all(entry.names == () for path, entry in (await m.tree()).items() if path.startswith("c"))
        assert (await m.node("a")).inode.nlink == 2
