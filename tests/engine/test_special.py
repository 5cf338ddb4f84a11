"""Symlinks, FIFOs and devices: objects too, made here, by another host, or by another tool."""

from __future__ import annotations

import os
import stat

import pytest

from b2fs.engine.filesystem import NewAttributes
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

pytestmark = pytest.mark.parametrize("order", range(3), indirect=True)

SHORT, LONG = "target/of/the/link", "long/" * 200 + "target"
"""A target that fits into the header, and one that is in the object's body alone."""
KINDS = {"short": SHORT, "long": LONG, "fifo": "", "device": ""}


async def _make(m: Mount, path: str, kind: str) -> None:
    if KINDS[kind]:
        await m.symlink(path, KINDS[kind])
        return
    mode, rdev = (stat.S_IFIFO, 0) if kind == "fifo" else (stat.S_IFCHR, os.makedev(1, 3))
    parent, name = await m._parent(path)
    await m.files.make_node(parent, name, mode | 0o640, 1000, 1000, rdev=rdev)


async def _check(m: Mount, path: str, kind: str) -> None:
    inode = (await m.node(path)).inode
    if KINDS[kind]:
        assert inode.is_link and await m.files.read_link(inode.ino) == KINDS[kind]
    elif kind == "fifo":
        assert stat.S_ISFIFO(inode.mode)
    else:
        assert stat.S_ISCHR(inode.mode) and inode.rdev == os.makedev(1, 3)


async def _chown(m: Mount, path: str) -> None:
    await m.files.set_attributes((await m.node(path)).ino, NewAttributes(uid=1234))


CHANGES = {
    "rename": ("y", lambda m: m.rename("x", "y")),
    "move": ("d/x", lambda m: m.rename("x", "d/x")),
    "chown": ("x", lambda m: _chown(m, "x")),
    "link": ("y", lambda m: m.link("x", "y")),
}


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
async def test_changed_by_another_host(
    world: World, autojump_clock: object, kind: str, change: str, read: bool
) -> None:
    """What came from the bucket, looked at or not, is what it was after a change here: here, in B2, and elsewhere; and
    nothing of it waits for ever.
    """
    async with world.mount("first") as m:
        await m.mkdir("d")
        await _make(m, "x", kind)
        await m.drained()
    async with world.mount() as m:
        if read:
            await _check(m, "x", kind)
        path, act = CHANGES[change]
        await act(m)
        await m.idle()
        await _check(m, path, kind)
        assert set(world.bucket.files()) == ({"x", "y"} if change == "link" else {path})
        if KINDS[kind]:
            assert world.bucket.content(path) == KINDS[kind].encode()
        await _chown(m, path)
        await m.idle()
        await m.rename(path, "z")
        await m.idle()
        assert "z" in world.bucket.files() and path not in world.bucket.files()
        tree = await m.tree()
    assert await world.seen_by_another() == tree
    async with world.mount("third") as m:
        await _check(m, "z", kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", [False, True])
async def test_removed_by_another_host(world: World, autojump_clock: object, kind: str, changed: bool) -> None:
    """One that was made here goes when another host removes it, changed meanwhile or not."""
    async with world.mount(others=True) as m:
        await _make(m, "x", kind)
        await m.drained()
        if changed:
            await _chown(m, "x")
            await m.drained()
        async with world.mount("other") as other:
            await other.unlink("x")
            await other.drained()
        assert world.bucket.files() == {}
        await m.refresh()
        assert not await m.exists("x")


@pytest.mark.parametrize("kind", KINDS)
async def test_old_name_stays_until_the_new_one_is_there(world: World, autojump_clock: object, kind: str) -> None:
    """A rename, made where the object was or elsewhere, leaves one of the two names visible at every moment."""
    async with world.mount() as m:
        await _make(m, "x", kind)
        await m.drained()
        seen: list[bool] = []
        world.bucket.faults += [Planted(call, DOWN, "y") for call in ("upload", "copy") for _ in range(3)]
        world.bucket.tap = lambda: seen.append(not {"x", "y"}.isdisjoint(world.bucket.objects()))
        await m.rename("x", "y")
        await m.idle()
        world.bucket.tap = None
        assert all(seen) and len(seen) > 3
        assert set(world.bucket.files()) == {"y"}
        world.bucket.faults.clear()


async def test_target_that_is_not_utf8(world: World, autojump_clock: object) -> None:
    """Another tool may put any bytes into a symlink's body: they are its target, and stay it under a new name."""
    body = b"caf\xe9"
    async with world.mount() as m:
        await m.symlink("x", "t")
        await m.drained()
        version = world.bucket.objects()["x"]
        info = {name: value for name, value in version.info.items() if name != "b2fs_link"}
        world.bucket.put("y", body, info, version.content_type)
        await m.refresh()
        assert os.fsencode(await m.files.read_link((await m.node("y")).ino)) == body
        await m.rename("y", "z")
        await m.idle()
        assert world.bucket.files() == {"x": b"t", "z": body}
        assert os.fsencode(await m.files.read_link((await m.node("z")).ino)) == body


async def test_body_that_is_too_large_for_a_target(world: World, autojump_clock: object) -> None:
    """An object of another tool that says it is a symlink, and has more bytes than any target, is a file."""
    async with world.mount() as m:
        await m.symlink("x", "t")
        await m.drained()
        version = world.bucket.objects()["x"]
        world.bucket.put("y", b"x" * 5000, version.info, version.content_type)
        await m.refresh()
        assert (await m.node("y")).inode.is_file
        assert await m.read("y") == b"x" * 5000
