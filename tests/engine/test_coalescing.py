"""What a quiet period saves: the fewest versions that bring the bucket to what the namespace says."""

from __future__ import annotations

import os

import trio

from tests.engine.world import World


async def test_temporary_name_and_rename_make_one_version(world: World, autojump_clock: object) -> None:
    """Saving as `x.tmp` + rename uploads the content once, under its final name alone."""
    async with world.mount() as m:
        await m.write("x.tmp", b"saved")
        await m.rename("x.tmp", "x")
        await m.idle()
    assert world.bucket.calls() == [("upload", "x")]
    assert world.bucket.files() == {"x": b"saved"}


async def test_create_and_delete_ask_nothing(world: World, autojump_clock: object) -> None:
    """A file that is gone before its quiet period ends costs no request."""
    async with world.mount() as m:
        await m.write("x", b"1")
        await m.unlink("x")
        await m.idle()
    assert world.bucket.calls() == []


async def test_directory_that_came_and_went_asks_nothing(world: World, autojump_clock: object) -> None:
    """A temporary directory with files in it costs no request of its own."""
    async with world.mount() as m:
        await m.mkdir("t")
        await m.write("t/x", b"1")
        await m.unlink("t/x")
        await m.rmdir("t")
        await m.idle()
    assert [key for _, key in world.bucket.log if key.startswith("t")] == []


async def test_new_file_renamed_twice_is_uploaded_once(world: World, autojump_clock: object) -> None:
    """a→b→c before the first upload is one upload to c."""
    async with world.mount() as m:
        await m.write("a", b"1")
        await m.rename("a", "b")
        await m.rename("b", "c")
        await m.idle()
    assert world.bucket.calls() == [("upload", "c")]


async def test_large_file_renamed_twice_is_copied_once(world: World, autojump_clock: object) -> None:
    """a→b→c of what is in the bucket and not in the cache is one copy to c, then one hide of a."""
    world.bucket.put("a", bytes(9 << 20))
    async with world.mount() as m:
        await m.rename("a", "b")
        await m.rename("b", "c")
        await m.idle()
    assert world.bucket.calls() == [("copy", "c"), ("hide", "a")]


async def test_late_attributes_belong_to_the_same_version(world: World, autojump_clock: object) -> None:
    """copy2's utime and chmod after the close are in the first and only version."""
    async with world.mount() as m:
        await m.write("x", b"copied")
        await trio.sleep(1.0)
        await m.utime("x", 1_600_000_000_000_000_007)
        await m.chmod("x", 0o600)
        await m.idle()
    assert world.bucket.calls() == [("upload", "x")]
    (seen,) = (await world.seen_by_another()).values()
    assert (seen.mode, seen.mtime_ns) == (0o100600, 1_600_000_000_000_000_007)


async def test_quiet_period_begins_again_with_each_close(world: World, autojump_clock: object) -> None:
    """A file that is saved every second is uploaded once it rests, not before."""
    async with world.mount(quiet_s=2.0, max_dirty_age_s=60.0) as m:
        for number in range(10):
            await m.write("x", b"%d" % number)
            await trio.sleep(1.0)
        assert world.bucket.calls() == []
        await m.idle()
    assert world.bucket.calls() == [("upload", "x")]
    assert world.bucket.content("x") == b"9"


async def test_greatest_age_ends_the_quiet_period(world: World, autojump_clock: object) -> None:
    """A file that never rests is uploaded all the same, every `max_dirty_age_s`."""
    async with world.mount(quiet_s=2.0, max_dirty_age_s=10.0) as m:
        for number in range(25):
            await m.write("x", b"%d" % number)
            await trio.sleep(1.0)
        assert 2 <= len(world.bucket.calls("upload")) <= 3
        await m.idle()
    assert world.bucket.content("x") == b"24"


async def test_file_held_open_is_sealed_at_its_greatest_age(world: World, autojump_clock: object) -> None:
    """What was written to a file that is never closed gets to the bucket after `max_dirty_age_s`."""
    async with world.mount(quiet_s=2.0, max_dirty_age_s=10.0) as m:
        handle = await m.create("log")
        await m.files.write(handle, 0, b"line\n")
        await trio.sleep(8.0)
        assert world.bucket.files() == {}
        await trio.sleep(8.0)
        assert world.bucket.files() == {"log": b"line\n"}
        await m.files.write(handle, 5, b"more\n")
        await trio.sleep(15.0)
        assert world.bucket.files() == {"log": b"line\nmore\n"}
        await m.close(handle)
        await m.drained()


async def test_saving_the_same_again_uploads_nothing(world: World, autojump_clock: object) -> None:
    """A file that is rewritten with equal bytes and attributes makes no second version."""
    async with world.mount() as m:
        await m.write("x", b"same")
        await m.idle()
        before = list(world.bucket.log)
        await m.write("x", b"same")
        await m.utime("x", world.now_ns)
        await m.idle()
        assert await m.read("x") == b"same"
        assert world.bucket.log == before
    assert len(world.bucket.versions("x")) == 1


async def test_saving_the_same_after_a_restart_keeps_the_cache_account(world: World, autojump_clock: object) -> None:
    """Content that the cache has from an earlier run, and that is staged once more, is counted once."""
    async with world.mount() as m:
        await m.write("x", b"s" * 1000)
        await m.drained()
    async with world.mount() as m:
        await m.write("x", b"s" * 1000)
        await m.drained()
        assert m.engine.cache.index.used == 1000
    assert len(world.bucket.versions("x")) == 1


async def test_rewrite_with_truncate(world: World, autojump_clock: object) -> None:
    """O_TRUNC and a shorter content make one new version with no rest of the old one, and fetch nothing."""
    world.bucket.put("index.json", b"a long old content")
    async with world.mount() as m:
        await m.write("index.json", b"new")
        await m.idle()
        assert await m.read("index.json") == b"new"
    assert world.bucket.calls() == [("upload", "index.json")]
    assert world.bucket.content("index.json") == b"new"


async def test_truncate_to_nothing(world: World, autojump_clock: object) -> None:
    """A file that was emptied is an empty object."""
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.drained()
        await m.truncate("x", 0)
        await m.drained()
        assert await m.read("x") == b""
    assert world.bucket.files() == {"x": b""}


async def test_append_to_a_file_of_the_bucket(world: World, autojump_clock: object) -> None:
    """Writing at the end of a file that is not here keeps what the bucket has before it."""
    world.bucket.put("log", b"one\n")
    async with world.mount() as m:
        await m.patch("log", 4, b"two\n")
        await m.drained()
    assert world.bucket.content("log") == b"one\ntwo\n"


async def test_chmod_of_clean_content_keeps_the_bytes(world: World, autojump_clock: object) -> None:
    """Only the attributes change: a new version with equal bytes, from the cache or by a copy."""
    world.bucket.put("small", b"s")
    large = world.bucket.put("large", os.urandom(9 << 20))
    async with world.mount() as m:
        assert await m.read("small") == b"s"
        await m.chmod("small", 0o600)
        await m.chmod("large", 0o600)
        await m.idle()
        assert await m.read("small") == b"s"
    assert sorted(world.bucket.calls("upload", "copy")) == [("copy", "large"), ("upload", "small")]
    assert world.bucket.objects()["large"].sha1 == large.sha1
    assert {entry.mode for entry in (await world.seen_by_another()).values()} == {0o100600}


async def test_hole_is_zeros(world: World, autojump_clock: object) -> None:
    """Bytes that were skipped by a write or added by a truncate are zeros, here and in the bucket."""
    async with world.mount() as m:
        await m.write("x", b"a")
        await m.patch("x", 4, b"b")
        await m.truncate("x", 8)
        assert await m.read("x") == b"a\0\0\0b\0\0\0"
        await m.drained()
    assert world.bucket.content("x") == b"a\0\0\0b\0\0\0"


async def test_directory_whose_entries_change(world: World, autojump_clock: object) -> None:
    """However many entries come or go within its quiet period, a directory's own object is written once."""
    async with world.mount() as m:
        await m.mkdir("d")
        for number in range(5):
            world.now_ns += 10**9
            await m.write(f"d/{number}", b"x")
            await trio.sleep(1.0)
        await m.idle()
        assert len(world.bucket.versions("d/.bzEmpty")) == 1
        for number in range(5):
            world.now_ns += 10**9
            await m.unlink(f"d/{number}")
            await trio.sleep(1.0)
        await m.idle()
        assert len(world.bucket.versions("d/.bzEmpty")) == 2
