"""Pins: what the setting names is fetched, and stays; what it names no more is like any other file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

import pytest
import trio
import trio.testing

from b2fs.core import chunks
from b2fs.core.policy import parse
from b2fs.errors import BucketError, Fault
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

KIB = 1024
JSON = parse(["*.json"])
ALL = [f"site/{number}/info.json" for number in range(10)]
OTHERS = [f"audio/{number:02}.mp3" for number in range(60)]


def fill(world: World, names: Iterable[str], size: int = KIB) -> dict[str, bytes]:
    found = {name: name.encode().ljust(size, b".") for name in names}
    for name, data in found.items():
        world.bucket.put(name, data)
    return found


async def ready(m: Mount) -> None:
    await m.until(lambda: m.engine.listing.complete and not m.engine.listing.running)
    await trio.testing.wait_all_tasks_blocked()


def pins(m: Mount) -> dict[str, Any]:
    return m.engine.pins.statistics()


def fetches(world: World) -> list[str]:
    return [key for _, key in world.bucket.calls("fetch")]


def is_kept(m: Mount, file_id: str) -> bool:
    return m.engine.cache.index.is_kept(chunks.whole(file_id))


async def kept(m: Mount, size: int) -> None:
    """So many bytes are pinned, and all of them are here."""
    await m.until(lambda: pins(m)["bytes"] == pins(m)["here_bytes"] == size)


async def flood(m: Mount) -> None:
    """Read more than the cache has room for."""
    for name in OTHERS:
        await m.read(name)


async def hits(world: World, m: Mount, files: dict[str, bytes]) -> None:
    """These are read without a request."""
    before = len(fetches(world))
    for name, data in files.items():
        assert await m.read(name) == data
    assert len(fetches(world)) == before


# ---------------------------------------------------------------- they come, and stay


async def test_pinned_files_are_fetched_and_stay(world: World, autojump_clock: object) -> None:
    """They are here before anybody asks, once each, and nothing that is read takes their room; the limit holds."""
    files = fill(world, ALL)
    fill(world, OTHERS, 4 * KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, pin=JSON, predict=False) as m:
        await ready(m)
        await kept(m, 10 * KIB)
        assert len(fetches(world)) == 10
        assert m.engine.prefetch.statistics()["unread"] == 0, "they are no predictions that must come true"
        await flood(m)
        assert m.engine.cache.index.used <= 100 * KIB
        assert m.engine.cache.counters.evictions >= 30
        await hits(world, m, files)


async def test_an_eviction_does_not_meet_them(world: World, autojump_clock: object) -> None:
    """However many are pinned, in this run or by the last one: an eviction looks at what it evicts."""
    files = fill(world, [f"{number}.json" for number in range(300)], 100)
    fill(world, OTHERS, 4 * KIB)
    settings: dict[str, Any] = {"cache_size": 100 * KIB, "pin": JSON, "predict": False}
    async with world.mount(serve=True, **settings) as m:
        await ready(m)
        await kept(m, 30_000)
        for name in OTHERS[:10]:
            await m.read(name)
    async with world.mount(serve=True, **settings) as m:
        await ready(m)
        await kept(m, 30_000)
        index, journal = m.engine.cache.index, m.volume.journal
        assert len(index.hot_names()) == 0
        assert len(journal.coldest_blobs(1000, (-1, 0, ""))) == index.cold_count == 10
        await flood(m)
        assert not set(index.hot_names()) & {
            chunks.whole(o.file_id) for k, o in world.bucket.objects().items() if k in files
        }
        await hits(world, m, files)


async def test_a_start_fetches_nothing_that_is_here(world: World, autojump_clock: object) -> None:
    """Pins outlive a restart: what is read before the names are takes nothing from them either."""
    files = fill(world, ALL)
    fill(world, OTHERS, 4 * KIB)
    settings: dict[str, Any] = {"cache_size": 100 * KIB, "pin": JSON, "predict": False}
    async with world.mount(serve=True, **settings) as m:
        await ready(m)
        await kept(m, 10 * KIB)
    async with world.mount(**settings) as m:  # nobody reads the names in this one
        await flood(m)
        assert m.engine.cache.counters.evictions >= 30
    world.bucket.log.clear()
    async with world.mount(serve=True, **settings) as m:
        await ready(m)
        await kept(m, 10 * KIB)
        await hits(world, m, files)
    assert fetches(world) == []


async def test_pinned_while_b2_is_not_reachable(world: World, autojump_clock: object) -> None:
    """A start without B2 keeps what is here, and fetches the rest once it can."""
    fill(world, ALL[:4])
    async with world.mount():
        pass
    world.bucket.down = True
    async with world.mount(serve=True, pin=JSON) as m:
        await m.until(lambda: pins(m)["files"] == 4)
        await trio.sleep(100)
        world.bucket.mend()
        await kept(m, 4 * KIB)


async def test_a_restart_before_the_bucket_has_followed_a_rename(world: World, autojump_clock: object) -> None:
    """What was renamed within the pattern, or out of it, while B2 was away is as it should be in the next run."""
    fill(world, ALL)
    async with world.mount(serve=True, pin=JSON, quiet_s=900.0, max_dirty_age_s=900.0) as m:
        await ready(m)
        await kept(m, 10 * KIB)
        await m.rename(ALL[0], "renamed.json")
        await m.rename(ALL[1], "renamed.txt")
        await m.rename("site/2", "moved")
        await trio.testing.wait_all_tasks_blocked()
        assert pins(m)["files"] == 9
    world.bucket.down = True
    async with world.mount(serve=True, pin=JSON) as m:
        await trio.sleep(1)
        assert (pins(m)["files"], pins(m)["here_bytes"]) == (9, 9 * KIB)
        assert is_kept(m, (await m.node("renamed.json")).inode.file_id)
        world.bucket.mend()
        await m.drained()
    assert len(fetches(world)) == 10


async def test_a_pattern_that_is_taken_away(world: World, autojump_clock: object) -> None:
    """What the last run has pinned is like any other file in the next one, which no longer does."""
    fill(world, ALL)
    fill(world, OTHERS, 4 * KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, pin=JSON) as m:
        await ready(m)
        await kept(m, 10 * KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, pin=parse(["site/3/*"]), predict=False) as m:
        await ready(m)
        assert (pins(m)["files"], pins(m)["here_bytes"]) == (1, KIB)
        await flood(m)
        assert m.engine.cache.index.cold_count == 0
    async with world.mount(serve=True, cache_size=100 * KIB, predict=False) as m:
        await ready(m)
        assert m.volume.journal.kept_blobs((-1, ""), 10) == []
        await flood(m)
        here = {key for key, o in world.bucket.objects().items() if m.engine.cache.whole_path(o.file_id)}
        assert not here & set(ALL)


async def test_large_files_come_chunk_by_chunk(world: World, autojump_clock: object) -> None:
    """All chunks, in parallel on a part of the lanes: what is read passes them."""
    data = os.urandom(5 * chunks.CHUNK + 1)
    world.bucket.put("film.json", data)
    fill(world, ["x"])
    world.bucket.gate.close("fetch")
    async with world.mount(serve=True, fetches=6, cache_size=40 << 20, pin=JSON) as m:
        await ready(m)
        with trio.fail_after(100):
            await world.bucket.gate.waiting("fetch", 3)
            await trio.testing.wait_all_tasks_blocked()
            assert len(m.engine.cache._flights) == 3
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.read, "x")
                await world.bucket.gate.waiting("fetch", 4)
                world.bucket.gate.open()
        await kept(m, len(data))
        assert len(fetches(world)) == 7
        await hits(world, m, {"film.json": data})


# ---------------------------------------------------------------- they change


async def test_what_another_host_changes_is_fetched_again(world: World, autojump_clock: object) -> None:
    """The new version is here before anybody asks; the old one may go. What was removed may go too."""
    fill(world, ALL[:3])
    async with world.mount(serve=True, pin=JSON) as m:
        await ready(m)
        await kept(m, 3 * KIB)
        old = world.bucket.objects()[ALL[0]].file_id
        gone = world.bucket.objects()[ALL[1]].file_id
        world.bucket.put(ALL[0], b"new")
        world.bucket.hide_now(ALL[1])
        world.bucket.put("site/new.json", b"also")
        await m.refresh()
        await kept(m, KIB + 7)
        await hits(world, m, {ALL[0]: b"new", "site/new.json": b"also"})
        assert not is_kept(m, old)
        assert not is_kept(m, gone)


async def test_what_is_written_here_stays_after_its_upload(world: World, autojump_clock: object) -> None:
    """Also if it is written again, or saved by a rename. Nothing of it is fetched."""
    fill(world, OTHERS, 4 * KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, pin=JSON, predict=False) as m:
        await ready(m)
        await m.write("a.json", b"first")
        await m.write("b.json.new", b"saved")
        await m.rename("b.json.new", "b.json")
        await m.drained()
        await kept(m, 10)
        first = world.bucket.objects()["a.json"].file_id
        await m.write("a.json", b"a second")
        await m.write("b.tmp", b"saved again")
        await m.drained()
        await m.rename("b.tmp", "b.json")
        await m.drained()
        await kept(m, 19)
        assert not is_kept(m, first)
        assert fetches(world) == []
        await flood(m)
        await hits(world, m, {"a.json": b"a second", "b.json": b"saved again"})


async def test_names_decide(world: World, autojump_clock: object) -> None:
    """Renamed out of the pattern, or removed, a file may go; renamed into it, it stays, fetched if need be. That holds for
    what lies in a directory that is moved as well, once the bucket has followed.
    """
    fill(world, ["in/a", "in/b", "in/c", "out/d", "out/e", "old/f", "old/g"])
    async with world.mount(serve=True, pin=parse(["in/**", "new/**"]), predict=False) as m:
        await ready(m)
        await kept(m, 3 * KIB)
        await m.rename("in/a", "out/a")
        await m.unlink("in/b")
        await m.rename("out/d", "in/d")
        await trio.testing.wait_all_tasks_blocked()
        assert pins(m)["files"] == 2, "at once, whenever the bucket follows"
        await m.drained()
        await kept(m, 2 * KIB)
        objects = world.bucket.objects()
        assert [is_kept(m, objects[key].file_id) for key in ("out/a", "in/c", "in/d")] == [False, True, True]
        await m.rename("in", "was")
        await m.rename("old", "new")
        await m.drained()
        await kept(m, 2 * KIB)
        objects = world.bucket.objects()
        assert {key for key in objects if is_kept(m, objects[key].file_id)} == {"new/f", "new/g"}


async def test_a_file_of_several_names(world: World, autojump_clock: object) -> None:
    """One name that matches is enough, in whichever name's version the file lives; without it the file may go."""
    async with world.mount(serve=True, pin=JSON) as m:
        await ready(m)
        await m.write("a.json", b"content")
        await m.link("a.json", "b")
        await m.drained()
        await kept(m, 7)
        await m.chmod("b", 0o600)
        await m.drained()
        await kept(m, 7)
        assert is_kept(m, (await m.node("b")).inode.file_id)
        await m.unlink("a.json")
        await m.drained()
        assert pins(m)["files"] == pins(m)["here_bytes"] == 0


async def test_the_earlier_version_stays_while_a_file_is_written(world: World, autojump_clock: object) -> None:
    """Until B2 has the new content; nothing is fetched for what has new content here."""
    fill(world, ALL[:1])
    async with world.mount(serve=True, pin=JSON, quiet_s=50.0, max_dirty_age_s=100.0) as m:
        await ready(m)
        await kept(m, KIB)
        old = world.bucket.objects()[ALL[0]].file_id
        handle = await m.open(ALL[0], os.O_RDWR)
        await m.files.write(handle, KIB, b"more")
        await m.close(handle)
        await m.chmod(ALL[0], 0o600)
        await trio.testing.wait_all_tasks_blocked()
        assert is_kept(m, old)
        assert pins(m)["bytes"] == KIB, "it is the version that is pinned, not what is being written"
        await m.drained()
        await kept(m, KIB + 4)
        assert not is_kept(m, old)
    assert len(fetches(world)) == 1


# ---------------------------------------------------------------- what cannot be kept


async def test_half_of_the_cache(world: World, autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is like any other file, and named once in the log; it gets the room of what goes."""
    fill(world, ALL, 10 * KIB)
    fill(world, OTHERS, 4 * KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, pin=JSON, predict=False) as m:
        await ready(m)
        await kept(m, 50 * KIB)
        assert pins(m) == {
            "files": 5, "bytes": 50 * KIB, "here_bytes": 50 * KIB, "limit": 50 * KIB,
            "left_out": 5, "left_out_bytes": 50 * KIB,
        }  # fmt: skip
        assert m.engine.status()["pins"]["left_out"] == 5
        for name in ALL:
            await m.read(name)
        await flood(m)
        assert m.engine.cache.index.used <= 100 * KIB
        before = len(fetches(world))
        for name in ALL:
            await m.read(name)
        assert len(fetches(world)) == before + 5
        await m.unlink(ALL[0])
        await m.unlink(ALL[1])
        await m.until(lambda: pins(m)["left_out"] == 3)
        await kept(m, 50 * KIB)
    told = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(told) == 1
    assert "`pin`" in told[0].getMessage()


async def test_a_full_disk_takes_them_last(world: World, autojump_clock: object) -> None:
    """First goes what is not pinned; then what is, no more than needed; it comes back later."""
    files = fill(world, ALL, 10 * KIB)
    fill(world, OTHERS, 4 * KIB)
    async with world.mount(serve=True, cache_size=300 * KIB, pin=JSON, predict=False) as m:
        await ready(m)
        await kept(m, 100 * KIB)
        for name in OTHERS[:20]:
            await m.read(name)
        assert m.engine.cache.give_way(KIB)
        assert m.engine.cache.index.used == 100 * KIB
        await hits(world, m, files)
        assert m.engine.cache.give_way(15 * KIB)
        assert pins(m)["here_bytes"] == 80 * KIB
        before = len(fetches(world))
        await trio.sleep(30)
        assert len(fetches(world)) == before, "not at once: the disk was full just now"
        await trio.sleep(60)
        assert pins(m)["here_bytes"] == 100 * KIB
        while m.engine.cache.give_way(KIB):
            pass
        assert m.engine.cache.index.used == 0


async def test_nothing_is_fetched_to_a_full_disk(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come once there is room."""
    fill(world, ALL)
    async with world.mount(serve=True, pin=JSON) as m:
        monkeypatch.setattr(m.volume, "disk_room", lambda size: False)
        await ready(m)
        await trio.sleep(300)
        assert (pins(m)["files"], fetches(world)) == (10, [])
        monkeypatch.undo()
        await kept(m, 10 * KIB)


async def test_faults(world: World, autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """What fails is tried again, not at once and not for ever the same; what B2 has no more is dropped without a word."""
    fill(world, ALL)
    ids = [world.bucket.objects()[name].file_id for name in ALL]
    async with world.mount(serve=True, others=True) as m:
        await ready(m)
    world.bucket.purge(ids[3])
    world.bucket.faults += [Planted("fetch", DOWN, ids[0]) for _ in range(4)]
    world.bucket.faults.append(Planted("fetch", BucketError(Fault.CAPPED, "download cap exceeded"), ids[5]))
    async with world.mount(serve=True, others=True, pin=JSON) as m:
        await m.until(lambda: pins(m)["here_bytes"] == 9 * KIB, 10_000)
    assert fetches(world).count(ids[0]) == 5
    assert fetches(world).count(ids[3]) <= 1
    assert fetches(world).count(ids[5]) == 2
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
