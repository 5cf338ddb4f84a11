"""What the bucket goes through: new names before old ones, in whatever order things happen and fail."""

from __future__ import annotations

import pytest
import trio

from b2fs.errors import BucketError, Fault
from tests.engine.world import DOWN, World
from tests.fakes.bucket import Planted

pytestmark = pytest.mark.parametrize("order", range(4), indirect=True)

MIB = 1 << 20


def _never_without(world: World, *keys: str) -> list[bool]:
    """Watch the bucket from now on: at every call, is the content visible under one of `keys`?"""
    seen: list[bool] = []
    world.bucket.tap = lambda: seen.append(any(key in world.bucket.objects() for key in keys))
    return seen


async def test_renamed_file_is_hidden_after_its_new_name_is_there(world: World, autojump_clock: object) -> None:
    """A clean small file is uploaded again from the cache, a large one copied, and only then the old name hidden."""
    world.bucket.put("small", b"s")
    world.bucket.put("large", bytes(9 * MIB))
    async with world.mount() as m:
        await m.read("small")
        await m.rename("small", "small2")
        await m.rename("large", "large2")
        await m.idle()
    calls = world.bucket.calls("upload", "copy", "hide")
    assert calls.index(("upload", "small2")) < calls.index(("hide", "small"))
    assert calls.index(("copy", "large2")) < calls.index(("hide", "large"))
    assert len(calls) == 4
    assert world.bucket.files() == {"small2": b"s", "large2": bytes(9 * MIB)}


async def test_old_name_stays_while_the_new_one_fails(world: World, autojump_clock: object) -> None:
    """Whatever number of attempts the new name needs, at every moment one of the two names is visible."""
    world.bucket.put("a", b"content")
    async with world.mount() as m:
        for call in ("copy", "upload"):
            world.bucket.faults += [Planted(call, DOWN, "b") for _ in range(6)]
        seen = _never_without(world, "a", "b")
        await m.rename("a", "b")
        await m.idle()
    assert all(seen)
    assert len(seen) > 6
    assert world.bucket.files() == {"b": b"content"}


async def test_changed_and_renamed_file_keeps_its_old_version_until_then(world: World, autojump_clock: object) -> None:
    """A file that was rewritten and renamed leaves its last confirmed version visible until the new one is there."""
    world.bucket.put("a", b"old")
    async with world.mount() as m:
        world.bucket.faults += [Planted("upload", DOWN, "b") for _ in range(3)]
        seen = _never_without(world, "a", "b")
        await m.write("a", b"new")
        await m.rename("a", "b")
        await m.idle()
    assert all(seen)
    assert world.bucket.files() == {"b": b"new"}


async def test_rename_over_an_existing_file(world: World, autojump_clock: object) -> None:
    """The target's name is never hidden: the new content becomes its newest version, then the old name goes."""
    world.bucket.put("a", b"new")
    world.bucket.put("b", b"old")
    async with world.mount() as m:
        seen = _never_without(world, "b")
        await m.rename("a", "b")
        await m.idle()
    assert all(seen)
    assert world.bucket.files() == {"b": b"new"}
    assert ("hide", "b") not in world.bucket.log


async def test_names_swapped_through_a_third(world: World, autojump_clock: object) -> None:
    """Two uploaded files that swap names keep both contents."""
    world.bucket.put("a", b"A" * 10)
    world.bucket.put("b", b"B" * 10)
    async with world.mount() as m:
        await m.rename("a", "t")
        await m.rename("b", "a")
        await m.rename("t", "b")
        await m.idle()
        assert (await m.read("a"), await m.read("b")) == (b"B" * 10, b"A" * 10)
    assert world.bucket.files() == {"a": b"B" * 10, "b": b"A" * 10}


async def test_names_exchanged(world: World, autojump_clock: object) -> None:
    """RENAME_EXCHANGE of two uploaded files, one of them cached, keeps both contents."""
    world.bucket.put("a", b"A" * 10)
    world.bucket.put("b", b"B" * 20)
    async with world.mount() as m:
        await m.read("a")
        await m.rename("a", "b", flags=2)
        await m.idle()
    assert world.bucket.files() == {"a": b"B" * 20, "b": b"A" * 10}


async def test_new_file_under_the_old_name(world: World, autojump_clock: object) -> None:
    """mv a b; write a: both are there in the end, and the old name was not hidden in between for good."""
    world.bucket.put("a", b"one")
    async with world.mount() as m:
        await m.rename("a", "b")
        await m.write("a", b"two")
        await m.idle()
    assert world.bucket.files() == {"a": b"two", "b": b"one"}


@pytest.mark.slow
async def test_directory_of_many_files_is_renamed(world: World, autojump_clock: object) -> None:
    """Every file is visible under its old or new name at every moment, and none under both in the end."""
    contents = {f"{number:03}": b"%d" % number for number in range(300)}
    for name, data in contents.items():
        world.bucket.put(f"d/{name}", data)
    async with world.mount() as m:
        lost: list[str] = []

        def check() -> None:
            visible = world.bucket.objects()
            lost.extend(name for name in contents if f"d/{name}" not in visible and f"e/{name}" not in visible)

        await m.rename("d", "e")
        world.bucket.tap = check
        await m.idle()
    assert lost == []
    assert world.bucket.files() == {f"e/{name}": data for name, data in contents.items()}
    assert "d/.bzEmpty" not in world.bucket.objects()


async def test_directory_renamed_while_its_file_is_uploaded(world: World, autojump_clock: object) -> None:
    """An upload to the old path that is confirmed long after the rename leaves no zombie there."""
    async with world.mount() as m:
        await m.mkdir("d")
        await m.write("d/x", b"content")
        world.bucket.gate.close("upload")
        await world.bucket.gate.waiting("upload")
        await m.rename("d", "e")
        await trio.sleep(60.0)  # the move itself was looked at long ago
        world.bucket.gate.open()
        await m.drained()
        await m.idle()
        assert await m.read("e/x") == b"content"
    assert list(world.bucket.objects()) == [".bzEmpty", "e/.bzEmpty", "e/x"]


async def test_directory_renamed_twice_with_changes_in_between(world: World, autojump_clock: object) -> None:
    """d→e→f with a write, a new file and an unlink at each station: the bucket has the last state alone."""
    for name in "abc":
        world.bucket.put(f"d/{name}", name.encode())
    async with world.mount() as m:
        await m.rename("d", "e")
        await m.write("e/a", b"changed")
        await m.write("e/new", b"new")
        await trio.sleep(2.1)
        await m.rename("e", "f")
        await m.unlink("f/b")
        await m.idle()
    assert world.bucket.files() == {"f/a": b"changed", "f/c": b"c", "f/new": b"new"}


async def test_directory_moved_and_its_old_name_used_again(world: World, autojump_clock: object) -> None:
    """A new directory under the old name keeps its own files, none of the old."""
    world.bucket.put("d/a", b"1")
    world.bucket.put("d/b", b"2")
    async with world.mount() as m:
        await m.rename("d", "e")
        await m.mkdir("d")
        await m.write("d/b", b"3")
        await m.idle()
    assert world.bucket.files() == {"d/b": b"3", "e/a": b"1", "e/b": b"2"}


async def test_directory_replaces_an_empty_one(world: World, autojump_clock: object) -> None:
    """rmtree(e); mv d e, the app's save: the bucket has exactly d's files below e."""
    world.bucket.put("d/a", b"new a")
    world.bucket.put("e/a", b"old a")
    world.bucket.put("e/gone", b"old")
    async with world.mount() as m:
        await m.unlink("e/a")
        await m.unlink("e/gone")
        await m.rename("d", "e")
        await m.idle()
    assert world.bucket.files() == {"e/a": b"new a"}


async def test_removed_and_made_again(world: World, autojump_clock: object) -> None:
    """rmdir and mkdir of one name, with other files in it, before and after the bucket followed."""
    async with world.mount() as m:
        for content in (b"1", b"2"):
            await m.mkdir("d")
            await m.write("d/x", content)
            await m.drained()
            await m.unlink("d/x")
            await m.rmdir("d")
        await m.mkdir("d", 0o700)
        await m.write("d/y", b"3")
        await m.idle()
    assert world.bucket.files() == {"d/y": b"3"}
    assert (await world.seen_by_another())["d"].mode == 0o040700


async def test_deleting_removes_no_version(world: World, autojump_clock: object) -> None:
    """unlink is a hide marker: the content is still in the bucket's history."""
    version = world.bucket.put("x", b"1")
    async with world.mount() as m:
        await m.unlink("x")
        await m.idle()
    assert world.bucket.versions("x") == [version, None]


async def test_flush_of_a_path_below_a_renamed_directory(world: World, autojump_clock: object) -> None:
    """When a drain of `e/x` says that nothing is left, `e/x` is in the bucket, also right after `mv d e`."""
    world.bucket.put("d/x", b"content")
    async with world.mount() as m:
        await m.rename("d", "e")
        assert await m.engine.drain("e/x", 3600.0) == []
        assert "e/x" in world.bucket.objects()
        await m.drained()


async def test_refused_name_is_set_aside(world: World, autojump_clock: object) -> None:
    """A key that B2 refuses blocks no other key, is named in the status, and stays readable here."""
    async with world.mount(uploads=2) as m:
        world.bucket.faults += [Planted("upload", BucketError(Fault.REFUSED, "bad name"), "bad*") for _ in range(20)]
        for number in range(5):
            await m.write(f"bad{number}", b"precious")
            await m.write(f"good{number}", b"1")
        left = await m.engine.drain("", 300.0)
        assert {entry["path"]: entry["why"] for entry in left} == {f"bad{number}": "bad name" for number in range(5)}
        assert set(world.bucket.files()) == {f"good{number}" for number in range(5)}
        assert {problem["key"] for problem in m.engine.status()["problems"]} == {f"bad{number}" for number in range(5)}
        assert await m.read("bad3") == b"precious"


async def test_drain_ends_when_a_renamed_file_is_refused(world: World, autojump_clock: object) -> None:
    """Renamed to a name that B2 refuses: the old one stays visible, and a drain without a deadline ends and says so."""
    world.bucket.put("a", b"content")
    async with world.mount(check=False) as m:
        world.bucket.faults += [
            Planted(call, BucketError(Fault.REFUSED, "bad name"), "bad")
            for call in ("upload", "copy")
            for _ in range(9)
        ]
        await m.rename("a", "bad")
        left = None
        with trio.move_on_after(600.0):
            left = await m.engine.drain("")
        assert left is not None, "drain never ended"
        assert "bad" in {entry["path"] for entry in left}
    assert world.bucket.files() == {"a": b"content"}


async def test_path_that_became_too_long_is_reported(world: World, autojump_clock: object) -> None:
    """A directory rename that makes a key too long for B2 is refused, or the drain ends and the status says why."""
    names = ["n" * 240] * 3
    async with world.mount(check=False) as m:
        path = "d"
        for name in ["d", *names]:
            path = name if name == "d" else f"{path}/{name}"
            await m.mkdir(path)
        await m.write(f"{path}/x", b"1")
        await m.drained()
        await m.mkdir("p" * 240)
        try:
            await m.rename("d", f"{'p' * 240}/{'q' * 240}")
        except Exception as error:
            assert type(error).__name__ == "NameTooLong"
            return
        left = None
        with trio.move_on_after(600.0):
            left = await m.engine.drain("")
        assert left, "a drain must end, and say that something is left"
        assert m.engine.status()["problems"]
