"""Hard links: one file with several names here, one object a name in the bucket, and one file again on another host."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from b2fs.core.policy import Patterns
from b2fs.engine.volume import Changed
from b2fs.errors import B2fsError, NotPermitted
from tests.engine.model import Model, Step, outcome, run_step
from tests.engine.test_history import _run as run
from tests.engine.test_history import through_a_link
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

LARGE = b"0123456789abcdef" * 600_000
"""More than what is uploaded again rather than copied on the server."""


async def _two(m: Mount, data: bytes = b"content") -> None:
    await m.mkdir("d")
    await m.write("a", data)
    await m.link("a", "d/b")


@pytest.mark.parametrize("order", range(3), indirect=True)
@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("data", [b"", b"content", LARGE], ids=["empty", "small", "large"])
async def test_second_name(world: World, autojump_clock: object, data: bytes, drained: bool) -> None:
    """Made before or after the first one is in B2: both show the file, the bucket has an object each, another host sees one
    file with two names.
    """
    async with world.mount() as m:
        await m.mkdir("d")
        await m.write("a", data)
        if drained:
            await m.drained()
        await m.link("a", "d/b")
        assert (await m.node("a")).inode.nlink == 2
        await m.drained()
        tree = await m.tree()
        assert tree["d/b"].names == tree["a"].names == ("a", "d/b")
        assert world.bucket.files() == {"a": data, "d/b": data}
    assert await world.seen_by_another() == tree


CHANGES: dict[str, Callable[[Mount], Awaitable[None]]] = {
    "write a": lambda m: m.write("a", b"new"),
    "write b": lambda m: m.write("d/b", b"new"),
    "patch b": lambda m: m.patch("d/b", 3, b"XX"),
    "chmod b": lambda m: m.chmod("d/b", 0o600),
    "xattr a": lambda m: m.setxattr("a", "user.a", b"1"),
    "unlink a": lambda m: m.unlink("a"),
    "unlink b": lambda m: m.unlink("d/b"),
    "rename a": lambda m: m.rename("a", "c"),
    "rename b": lambda m: m.rename("d/b", "c"),
    "rename d": lambda m: m.rename("d", "e"),
    "rename onto itself": lambda m: m.rename("a", "d/b"),
    "third": lambda m: m.link("d/b", "c"),
}


@pytest.mark.parametrize("order", range(3), indirect=True)
@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("case", CHANGES)
async def test_change_by_one_name(world: World, autojump_clock: object, case: str, restart: bool) -> None:
    """What is done by one name shows at the other, in the bucket, and on another host; after a restart too, when the
    directory of the other name was not looked at.
    """
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        if not restart:
            await _change(world, m, case)
    if restart:
        async with world.mount(listing=False) as m:
            await _change(world, m, case)


async def _change(world: World, m: Mount, case: str) -> None:
    world.now_ns += 10**9
    await CHANGES[case](m)
    await m.drained()
    tree = await m.tree()
    assert {path: entry.content for path, entry in tree.items() if path not in ("d", "e")} == world.bucket.files()
    assert await world.seen_by_another() == tree
    await m.refresh()
    assert await m.tree() == tree


async def test_one_name_is_not_in_b2_yet(world: World, autojump_clock: object) -> None:
    """While only one of two names was uploaded another host sees two whole files; when both are there, one again."""
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        world.now_ns += 10**9
        await m.write("a", b"new")
        world.bucket.faults += [Planted("upload", DOWN, key="d/b")] * 3
        await m.until(lambda: world.bucket.content("a") == b"new")
        async with world.mount("other", upload=False) as other:
            between = await other.tree()
            assert (between["a"].content, between["d/b"].content) == (b"new", b"content")
            assert between["a"].names == ()
            await m.drained()
            await other.refresh()
            assert await other.tree() == await m.tree()


async def test_open_file_whose_first_name_went(world: World, autojump_clock: object) -> None:
    """Writes through a handle reach the names that are left, in a directory that was not looked at too."""
    async with world.mount() as m:
        await _two(m)
        await m.drained()
    async with world.mount(listing=False) as m:
        handle = await m.open("a", os.O_RDWR)
        await m.unlink("a")
        await m.files.write(handle, 0, b"CON")
        await m.close(handle)
        await m.drained()
        assert world.bucket.files() == {"d/b": b"CONtent"}
        assert await m.read("d/b") == b"CONtent"


async def test_another_host_removes_a_name(world: World, autojump_clock: object) -> None:
    """The other name stays, its content is that of the version at the name that is left, whichever went."""
    for gone, left in (("a", "d/b"), ("d/b", "a")):
        async with world.mount(others=True) as m:
            await _two(m)
            await m.drained()
            world.bucket.hide_now(gone)
            world.now_ns += 10**9
            told: list[Changed] = []
            m.volume.on_change = told.append
            await m.refresh()
            assert not await m.exists(gone)
            assert Changed((await m.node(left)).ino, None) in told, "its link count"
            inode = (await m.node(left)).inode
            assert (inode.nlink, inode.file_id) == (1, world.bucket.objects()[left].file_id)
            assert await m.read(left) == b"content"
            await m.unlink(left)
            await m.rmdir("d")
            await m.drained()
        world.forget("state")


async def test_fsync_of_a_file_whose_other_name_wants_b2(world: World, autojump_clock: object) -> None:
    """`remote_fsync` names one of its paths: the fsync returns when B2 has that one, by whatever name it was opened."""
    async with world.mount(remote_fsync=Patterns(("d/*",))) as m:
        await _two(m)
        handle = await m.open("a", os.O_RDWR)
        await m.files.write(handle, 0, b"CON")
        await m.files.sync(handle)
        assert world.bucket.content("d/b") == b"CONtent"
        await m.close(handle)
        await m.drained()


async def test_flush_is_about_the_name_that_was_asked_for(world: World, autojump_clock: object) -> None:
    """`b2fs flush d/b` returns when B2 has that name, not only the file's first one; links to it are followed."""
    async with world.mount(upload=True, quiet_s=1000.0, max_dirty_age_s=2000.0) as m:
        await _two(m)
        await m.symlink("l", "d/b")
        for asked in ("d/b", "l", "d/../d/b"):
            assert await m.engine.real_path(asked) == "d/b"
            assert (await m.engine.path_status(asked))["path"] == "d/b"
        assert await m.engine.real_path("a") == "a"
        assert await m.engine.drain(await m.engine.real_path("l"), 60.0) == []
        assert "d/b" in world.bucket.files()
        await m.drained()


async def test_another_tool_replaces_a_name(world: World, autojump_clock: object) -> None:
    """The name that was overwritten is another file from then on, the other keeps its content."""
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        world.bucket.put("d/b", b"theirs")
        await m.refresh()
        assert (await m.read("a"), await m.read("d/b")) == (b"content", b"theirs")
        assert (await m.node("a")).inode.nlink == (await m.node("d/b")).inode.nlink == 1
        await m.write("a", b"new")
        await m.drained()
        assert world.bucket.files() == {"a": b"new", "d/b": b"theirs"}


async def test_copy_by_another_tool_is_no_name(world: World, autojump_clock: object) -> None:
    """A server-side copy has the fileInfo of its source, and is a file of its own: a write to the source leaves it alone."""
    async with world.mount() as m:
        await _two(m)
        await m.drained()
        world.bucket.put("backup", b"content", world.bucket.objects()["a"].info)
        await m.refresh()
        assert (await m.node("backup")).ino != (await m.node("a")).ino
        await m.write("a", b"new")
        await m.drained()
        assert world.bucket.files() == {"a": b"new", "d/b": b"new", "backup": b"content"}


async def test_content_of_unknown_sum_takes_no_second_name(world: World, autojump_clock: object) -> None:
    """Of a large object of another tool B2 may know no SHA-1: then nobody could tell whether two names have one content."""
    async with world.mount() as m:
        await m.write("a", b"content")
        await m.mkdir("d")
        await m.drained()
        node = await m.node("a")
        known = node.inode
        node.inode = replace(known, sha1="")
        with pytest.raises(NotPermitted):
            await m.link("a", "b")
        node.inode = known
        with pytest.raises(NotPermitted):
            await m.link("d", "b")


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
async def test_other_kinds_have_names_too(world: World, autojump_clock: object, kind: str) -> None:
    """A symlink and a FIFO can have two names, as on Linux, and another host sees them."""
    async with world.mount() as m:
        if kind == "symlink":
            await m.symlink("a", "target")
        else:
            await m.files.make_node(1, b"a", 0o010644, 1000, 1000)
        await m.link("a", "b")
        await m.drained()
        assert (await m.node("b")).inode.nlink == 2
    async with world.mount("another", upload=False) as other:
        assert (await other.node("a")).ino == (await other.node("b")).ino


# ---------------------------------------------------------------- any history, on two hosts in turn

PATHS = st.sampled_from(["a", "b", "d/a", "d/b"])
STEPS = st.one_of(
    st.tuples(st.just("write"), PATHS, st.sampled_from([b"", b"1", b"22"])),
    st.tuples(st.just("patch"), PATHS, st.integers(0, 2), st.just(b"x")),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 0, 2])),
    st.tuples(st.just("rename"), st.just("d"), st.just("e")),
    st.tuples(st.just("rename"), st.just("e"), st.just("d")),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("symlink"), PATHS, st.sampled_from(["t", "long/" * 200])),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o755])),
    st.tuples(st.just("setxattr"), PATHS, st.just("user.x"), st.sampled_from([b"1", None])),
)
BEGINNING: list[Step] = [("mkdir", "d"), ("write", "a", b"1"), ("link", "a", "d/b")]


@pytest.mark.slow
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), st.booleans(), STEPS), max_size=14))
def test_any_history_on_two_hosts(steps: list[tuple[bool, bool, Step]]) -> None:
    """Two hosts that change the bucket in turn see the same files with the same names, those of the model, after each
    refresh; one that was not refreshed for some steps too.
    """
    with tempfile.TemporaryDirectory() as root:
        run(_in_turn, World(Path(root)), [(True, True, step) for step in BEGINNING] + steps)


async def _in_turn(world: World, steps: list[tuple[bool, bool, Step]]) -> None:
    model, on_first = Model(), True
    async with world.mount("first") as first, world.mount("second") as second:
        for is_first, is_turn, step in steps:
            if is_turn and is_first != on_first:
                on_first = is_first
                await (first if on_first else second).refresh()
            m = first if on_first else second
            if through_a_link(model, step):
                continue
            world.now_ns += 1_000_000_007
            model, expected = outcome(model, step, world.now_ns)
            assert await run_step(m, step) is expected, step
            await m.drained()
        for m in (first, second):
            await m.refresh()
            assert await m.tree() == model.tree
        assert await world.seen_by_another() == model.tree


# ---------------------------------------------------------------- any history, on two hosts at once

ACTIONS = st.one_of(
    st.tuples(st.just("write"), PATHS),
    st.tuples(st.just("patch"), PATHS, st.integers(0, 3), st.just(b"x")),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 0, 2])),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("symlink"), PATHS, st.sampled_from(["t", "long/" * 200])),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o755])),
    st.tuples(st.just("utime"), PATHS, st.just(1_600_000_000_000_000_001)),
    st.tuples(st.just("setxattr"), PATHS, st.just("user.x"), st.sampled_from([b"1", None])),
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.5])),
    st.tuples(st.just("drained")),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("refresh")),
)


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.booleans(), ACTIONS), max_size=24))
def test_any_history_on_two_hosts_at_once(steps: list[tuple[bool, Step]]) -> None:
    """Two hosts that change what the other has not heard of yet: what one of them showed and drained stays in the bucket, if
    only in the history of its name; in the end both show the same files with the same names, and so does a third.
    """
    with tempfile.TemporaryDirectory() as root:
        run(_at_once, World(Path(root)), steps)


async def _at_once(world: World, steps: list[tuple[bool, Step]]) -> None:
    kept: set[tuple[str, bytes]] = set()
    async with world.mount("first") as first, world.mount("second") as second:
        hosts = (first, second)
        await _two(first)
        for m in hosts:
            await m.drained()
            await m.refresh()
        for number, (is_first, step) in enumerate(steps):
            world.now_ns += 1_000_000_007
            m = hosts[not is_first]
            await _act(m, step, b"%d" % number)
            if step[0] == "drained":
                kept |= {(path, each.content) for path, each in (await m.tree()).items() if path != "d"}
        for _ in range(2):
            for m in hosts:
                await m.drained()
            for m in hosts:
                await m.refresh()
        tree = await first.tree()
        assert await second.tree() == tree
        assert first.dirty() == second.dirty() == set()
        assert {key: tree[key].content for key in world.bucket.files()} == world.bucket.files()
    assert await world.seen_by_another() == tree
    for key, content in kept:
        assert content in world.bucket.history(key)


async def _act(m: Mount, step: Step, data: bytes) -> None:
    name, arguments = step[0], step[1:]
    with contextlib.suppress(B2fsError):
        if name == "wait":
            await trio.sleep(*arguments)
        elif name in ("write", "patch") and await m.exists(step[1]) and (await m.node(step[1])).inode.is_link:
            return  # the kernel opens what it points to
        elif name == "write":
            await m.write(step[1], data)
        else:
            await getattr(m, name)(*arguments)
