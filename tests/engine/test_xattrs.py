"""Extended attributes: kept here, in the bucket, and by another host; what does not fit says so."""

from __future__ import annotations

import pytest

from b2fs.engine.filesystem import NewAttributes
from b2fs.errors import NameTooLong, NoAttribute, NoSpace, NotPermitted, NotSupported
from tests.engine.world import DOWN, World
from tests.fakes.bucket import Planted

SOME = {"user.mime_type": b"text/plain", "user.raw": bytes(range(256)), "user.пусто": b""}


async def test_attributes_reach_another_host(world: World, autojump_clock: object) -> None:
    """Of a file, a directory and the root, whatever bytes; a restart and a host with an empty state directory have them."""
    async with world.mount() as m:
        await m.mkdir("d")
        await m.write("d/x", b"content")
        for path in ("d/x", "d", ""):
            for name, value in SOME.items():
                await m.setxattr(path, name, value)
        await m.drained()
    for state in ("state", "another"):
        async with world.mount(state) as m:
            for path in ("d/x", "d", ""):
                assert await m.xattrs(path) == SOME, (state, path)
            assert m.dirty() == set()


async def test_a_change_is_one_version(world: World, autojump_clock: object) -> None:
    """Several within the quiet period, as `cp -a` makes them, are one upload; the same value again is none."""
    async with world.mount() as m:
        await m.write("x", b"content")
        for name, value in SOME.items():
            await m.setxattr("x", name, value)
        await m.idle()
        assert len(world.bucket.calls("upload")) == 1
        await m.setxattr("x", "user.raw", b"1")
        await m.setxattr("x", "user.raw", None)
        await m.idle()
        assert len(world.bucket.calls("upload")) == 2
        await m.setxattr("x", "user.mime_type", SOME["user.mime_type"])
        await m.idle()
        assert len(world.bucket.calls("upload")) == 2
        assert world.bucket.files() == {"x": b"content"}


async def test_writing_and_renaming_keep_them(world: World, autojump_clock: object) -> None:
    """They belong to the inode: O_TRUNC, a write and a rename keep them, a file that takes the name has its own."""
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.setxattr("x", "user.a", b"1")
        await m.drained()
        await m.write("x", b"new")
        await m.rename("x", "y")
        await m.write("other", b"other")
        assert await m.xattrs("y") == {"user.a": b"1"}
        await m.drained()
        await m.rename("other", "y")
        assert await m.xattrs("y") == {}
        await m.drained()
        tree = await m.tree()
    assert await world.seen_by_another() == tree


async def test_survives_sigkill(world: World, autojump_clock: object) -> None:
    """What was set is there after a kill, B2 reached or not, and gets there afterwards."""
    async with world.mount(check=False) as m:
        await m.write("x", b"content")
        await m.drained()
        world.bucket.down = True
        await m.setxattr("x", "user.a", b"1")
    world.bucket.mend()
    async with world.mount(crashed=True) as m:
        assert await m.xattrs("x") == {"user.a": b"1"}
        await m.drained()
        tree = await m.tree()
    assert await world.seen_by_another() == tree


async def test_another_host_changes_them(world: World, autojump_clock: object) -> None:
    """A refresh shows what another host set, on a file and on a directory."""
    async with world.mount() as m:
        await m.mkdir("d")
        await m.write("d/x", b"content")
        await m.drained()
        async with world.mount("another") as other:
            await other.setxattr("d/x", "user.a", b"1")
            await other.setxattr("d", "user.b", b"2")
            await other.drained()
        await m.refresh()
        assert (await m.xattrs("d/x"), await m.xattrs("d")) == ({"user.a": b"1"}, {"user.b": b"2"})
        assert m.dirty() == set()


async def test_answer_of_the_upload_is_lost(world: World, autojump_clock: object) -> None:
    """The version that B2 has is known by its attributes too, and is not made twice."""
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.setxattr("x", "user.a", b"1")
        world.bucket.faults.append(Planted("upload", DOWN, key="x", after=True))
        await m.idle()
        assert (m.engine.uploader.counters.adopted, len(world.bucket.calls("upload"))) == (1, 1)


async def test_what_cannot_be_set(world: World, autojump_clock: object) -> None:
    """Each refusal has its error and changes nothing."""
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.symlink("l", "x")
        for name, error in (
            ("user.b2fs.state", NotPermitted),
            ("security.capability", NotSupported),
            ("trusted.x", NotSupported),
            ("system.posix_acl_access", NotSupported),
        ):
            with pytest.raises(error):
                await m.setxattr("x", name, b"1")
        with pytest.raises(NotPermitted):
            await m.setxattr("l", "user.a", b"1")
        with pytest.raises(NoAttribute):
            await m.setxattr("x", "user.a", None)
        with pytest.raises(NoSpace):
            await m.setxattr("x", "user.a", b"1" * 4096)
        assert await m.xattrs("x") == {}
        await m.drained()


@pytest.mark.parametrize("exchange", [False, True])
async def test_directory_that_gets_a_longer_name(world: World, autojump_clock: object, exchange: bool) -> None:
    """What is below a directory and would have no room in the header beside its new path keeps the directory where it is;
    names that are not in memory are known too.
    """
    async with world.mount() as m:
        for path in ("d", "d/e", "short", "long"):
            await m.mkdir(path)
        await m.mkdir("long/" + "n" * 200)
        await m.write("d/e/x", b"content")
        await m.setxattr("d/e/x", "user.a", b"v" * 1600)
        await m.drained()
    async with world.mount(listing=False) as m:
        flags = 2 if exchange else 0
        far = "long/" + ("n" if exchange else "m") * 200
        for old, new in (("d", far), (far, "d")) if exchange else (("d", far),):
            with pytest.raises(NameTooLong):
                await m.rename(old, new, flags)
        await m.rename("d", "short", flags)
        await m.drained()
        tree = await m.tree()
        assert "short/e/x" in tree
    assert await world.seen_by_another() == tree


async def test_long_paths_below_a_directory_that_moves(world: World, autojump_clock: object) -> None:
    """The same without attributes: a rename that would give a file a path longer than B2's names is refused."""
    deep = "/".join(["s" * 200] * 4)
    async with world.mount() as m:
        await m.mkdir("d")
        for end in range(1, 5):
            await m.mkdir("d/" + "/".join(["s" * 200] * end))
        await m.write(f"d/{deep}/x", b"content")
        with pytest.raises(NameTooLong):
            await m.rename("d", "d" * 250)
        await m.rename("d", "d" * 150)
        await m.drained()
        tree = await m.tree()
    assert await world.seen_by_another() == tree


async def test_full_header_reaches_b2(world: World, autojump_clock: object) -> None:
    """What was accepted is never refused later, whatever owner and time the file is given; a longer name is refused at once."""
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.utime("x", 0)
        size = 2048
        while True:
            try:
                await m.setxattr("x", "user.a", b"v" * size)
                break
            except NoSpace:
                size -= 1
        await m.utime("x", -(2**61))
        await m.files.set_attributes((await m.node("x")).ino, NewAttributes(uid=2**32 - 2, gid=2**32 - 2))
        with pytest.raises(NameTooLong):
            await m.rename("x", "xx")
        await m.drained()
        tree = await m.tree()
    assert await world.seen_by_another() == tree
