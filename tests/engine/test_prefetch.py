"""Prefetch: reads find what they need, nobody waits behind it, and it costs no more than it may."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable

import pytest
import trio
import trio.testing

from b2fs.core.change import ObjectRow
from b2fs.core.policy import parse
from b2fs.core.prefetch import LISTED, START
from b2fs.engine.prefetch import _TOGETHER
from b2fs.engine.retry import REFUSED_S
from b2fs.errors import BucketError, Fault
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

KIB = 1024


def fill(world: World, names: Iterable[str], size: int = 100) -> dict[str, bytes]:
    """Objects of these names, each with a content of its own."""
    found = {name: name.encode().ljust(size, b".") for name in names}
    for name, data in found.items():
        world.bucket.put(name, data)
    return found


def directory(count: int, path: str = "d") -> list[str]:
    return [f"{path}/{number:03}.mp3" for number in range(count)]


def site(count: int) -> list[str]:
    """Dictations with the three kinds of files that an index page passes by."""
    names = ("cover.webp", "en/000.mp3", "en/sentences.json", "info.json", "ru/000.mp3")
    return [f"dictations/dict_{number:03}/{name}" for number in range(count) for name in names]


async def ready(m: Mount) -> None:
    """The bucket is listed."""
    await m.until(lambda: m.engine.listing.complete and not m.engine.listing.running)


def fetched(world: World) -> int:
    return len(world.bucket.calls("fetch"))


async def test_files_in_order_are_here_when_they_are_read(world: World, autojump_clock: object) -> None:
    """A directory read in the order of its names: a miss, then hits; each file is fetched once, and none is wasted."""
    files = fill(world, directory(60))
    async with world.mount(serve=True) as m:
        await ready(m)
        for name, data in files.items():
            assert await m.read(name) == data
            await trio.testing.wait_all_tasks_blocked()
        assert m.engine.cache.counters.misses == 1
        assert m.engine.prefetch.statistics() | {"useful_bytes": 5900, "bytes": 5900} == {
            "requests": 59, "bytes": 5900, "useful": 59, "useful_bytes": 5900, "wasted": 0, "wasted_bytes": 0,
            "failed": 0, "unread": 0, "unread_bytes": 0, "on": True,
        }  # fmt: skip
    assert fetched(world) == 60


async def test_the_nearest_is_asked_for_first(world: World, autojump_clock: object) -> None:
    """What is predicted is fetched about in the order in which it will be read, for all of it cannot be here at once."""
    fill(world, directory(60))
    async with world.mount(serve=True) as m:
        await ready(m)
        for name in directory(60):
            await m.read(name)
            await trio.testing.wait_all_tasks_blocked()
    objects = world.bucket.objects()
    asked = [file_id for _, file_id in world.bucket.calls("fetch")]
    assert max(abs(asked.index(objects[name].file_id) - place) for place, name in enumerate(directory(60))) <= _TOGETHER


async def test_the_index_of_a_site(world: World, autojump_clock: object) -> None:
    """One file or two of each of many directories, one directory after the other: a miss of each in the first directory,
    then hits; what lies beside is not fetched.
    """
    fill(world, site(50))
    async with world.mount(serve=True) as m:
        await ready(m)
        for name in await m.names("dictations"):
            await m.names(f"dictations/{name}")
            for file in ("info.json", "en/sentences.json"):
                await m.read(f"dictations/{name}/{file}")
                await trio.testing.wait_all_tasks_blocked()
        assert m.engine.cache.counters.misses == 2
    assert fetched(world) == 100


async def test_an_index_by_who_knows_the_names(world: World, autojump_clock: object) -> None:
    """Without a listing it takes the second directory to see that one follows the other, for a file that was guessed
    in the first one too.
    """
    fill(world, site(30))
    async with world.mount(serve=True) as m:
        await ready(m)
        for number in range(30):
            for file in ("info.json", "en/sentences.json"):
                await m.read(f"dictations/dict_{number:03}/{file}")
                await trio.testing.wait_all_tasks_blocked()
        assert m.engine.cache.counters.misses == 3
    assert fetched(world) == 60


async def test_an_index_while_the_bucket_is_being_listed(world: World, autojump_clock: object) -> None:
    """What no listing has reached yet when a window is looked at is fetched once one has."""
    fill(world, site(30))
    async with world.mount(upload=False, listing=False) as m, trio.open_nursery() as nursery:
        nursery.start_soon(m.engine.prefetch.run)
        for number in range(4):  # each by a listing of its own
            assert await m.exists(f"dictations/dict_{number:03}/info.json")
        await m.read("dictations/dict_000/info.json")
        await m.read("dictations/dict_001/info.json")
        await trio.testing.wait_all_tasks_blocked()
        assert fetched(world) == 4
        await m.refresh()
        for number in range(2, 30):
            await m.read(f"dictations/dict_{number:03}/info.json")
            await trio.testing.wait_all_tasks_blocked()
        assert m.engine.cache.counters.misses == 2
        nursery.cancel_scope.cancel()
    assert fetched(world) == 30


async def test_a_listed_directory_is_read_on(world: World, autojump_clock: object) -> None:
    """After a listing the first file's miss is enough."""
    files = fill(world, directory(30))
    async with world.mount(serve=True) as m:
        await ready(m)
        assert len(await m.names("d")) == 30
        for name in files:
            await m.read(name)
            await trio.testing.wait_all_tasks_blocked()
        assert m.engine.cache.counters.misses == 1


async def test_documents_in_the_directories_beside_one(world: World, autojump_clock: object) -> None:
    """A file without a number brings the few small ones of its suffix below its directory; neither large ones nor many."""
    fill(world, ["d/info.json", "d/en/text.json", "d/tr/text.json", "d/cover.webp", *directory(40, "d/en")])
    fill(world, ["d/en/archive.json"], size=100 * KIB)
    fill(world, ["m/info.json", *(f"m/en/{letter}.json" for letter in "abcdefghi")])
    async with world.mount(serve=True) as m:
        await ready(m)
        await m.read("d/info.json")
        await trio.testing.wait_all_tasks_blocked()
        assert fetched(world) == 3 + START, "the numbered ones too, see below"
        for name in ("d/en/text.json", "d/tr/text.json"):
            await m.read(name)
        assert m.engine.cache.counters.misses == 1
        await m.read("m/info.json")
        await trio.testing.wait_all_tasks_blocked()
    assert fetched(world) == 3 + START + 1


async def test_who_goes_straight_to_a_document(world: World, autojump_clock: object) -> None:
    """He gets the first numbered files below with it, in one round trip; who has listed what is beside does not."""
    fill(world, directory(3, "b"))
    for name in ("a/d", "b/d"):
        fill(world, [f"{name}/info.json", f"{name}/en/text.json", *directory(40, f"{name}/en"), f"{name}/tr/text.json"])
    async with world.mount(serve=True) as m:
        await ready(m)
        await m.read("a/d/info.json")
        await trio.testing.wait_all_tasks_blocked()
        assert fetched(world) == 3 + START
        for name in ["a/d/en/text.json", *directory(START, "a/d/en")]:
            await m.read(name)
        assert m.engine.cache.counters.misses == 1
        await trio.testing.wait_all_tasks_blocked()
        before = fetched(world)
        await m.names("b")
        await m.read("b/d/info.json")
        await trio.testing.wait_all_tasks_blocked()
        assert fetched(world) == before + 3


async def test_who_begins_is_served_before_who_goes_on(world: World, autojump_clock: object) -> None:
    """What a new run predicts does not wait until all is here that another one has in the queue."""
    fill(world, directory(40, "a") + directory(20, "b"))
    world.bucket.gate.close("fetch")
    async with world.mount(serve=True, fetches=8) as m:
        await ready(m)
        await m.names("a")
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.read, "a/000.mp3")
                await world.bucket.gate.waiting("fetch", 7)
                nursery.start_soon(m.read, "b/000.mp3")
                await world.bucket.gate.waiting("fetch", 8)
                world.bucket.gate.open()
        await m.until(lambda: fetched(world) == 1 + LISTED + 1 + START)
    objects = world.bucket.objects()
    asked = [file_id for _, file_id in world.bucket.calls("fetch")]
    assert asked.index(objects["b/016.mp3"].file_id) < asked.index(objects["a/007.mp3"].file_id)


async def test_a_read_takes_over_the_fetch_that_is_under_way(world: World, autojump_clock: object) -> None:
    """Whoever reads what is being prefetched waits for that fetch; a passing fault of it is tried again then."""
    fill(world, directory(20))
    async with world.mount(serve=True) as m:
        await ready(m)
        world.bucket.gate.close("fetch")
        wanted = world.bucket.objects()["d/001.mp3"].file_id
        world.bucket.faults.append(Planted("fetch", DOWN, wanted))
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.read, "d/000.mp3")
                await world.bucket.gate.waiting("fetch", 1 + START)
                nursery.start_soon(m.read, "d/001.mp3")
                await trio.testing.wait_all_tasks_blocked()
                world.bucket.gate.open()
        assert [key for _, key in world.bucket.calls("fetch")].count(wanted) == 2, "the fault, and the one more attempt"
        assert m.engine.prefetch.counters.useful >= 1


async def test_reads_do_not_wait_behind_prefetches(world: World, autojump_clock: object) -> None:
    """However much is to be prefetched, a part of the lanes is left: a read's fetch begins at once. One that waits in
    the queue is fetched by its reader.
    """
    names = directory(400)
    fill(world, [*names, "other/x"])
    world.bucket.gate.close("fetch")
    async with world.mount(serve=True, fetches=8, prefetch=parse(["*.mp3"])) as m:
        await ready(m)
        with trio.fail_after(100):
            await world.bucket.gate.waiting("fetch", 6)
            await trio.testing.wait_all_tasks_blocked()
            assert len(m.engine.prefetch._on_the_way) == 6
            async with trio.open_nursery() as nursery:
                nursery.start_soon(m.read, "other/x")
                nursery.start_soon(m.read, names[-1])
                await world.bucket.gate.waiting("fetch", 8)
                world.bucket.gate.open()
        await m.until(lambda: not m.engine.prefetch._named and not m.engine.prefetch._on_the_way)
    assert fetched(world) == 401


async def test_patterns_are_fetched_once_the_bucket_is_listed(world: World, autojump_clock: object) -> None:
    """What the setting names is here before anybody asks; the next start fetches nothing, but what has changed."""
    fill(world, site(40))
    async with world.mount(serve=True, prefetch=parse(["*.json"])) as m:
        await ready(m)
        await m.until(lambda: fetched(world) == 80 and not m.engine.prefetch._on_the_way)
        await m.read("dictations/dict_007/info.json")
        assert m.engine.cache.counters.misses == 0
    async with world.mount(serve=True, prefetch=parse(["*.json"])) as m:
        await ready(m)
        world.bucket.put("dictations/dict_007/info.json", b"new")
        await m.refresh()
        await m.until(lambda: fetched(world) == 81)
        assert await m.read("dictations/dict_007/info.json") == b"new"
    assert fetched(world) == 81


async def test_what_earlier_runs_have_listed_is_fetched_at_the_start(world: World, autojump_clock: object) -> None:
    """A pattern that is set later is about objects that were listed before, too."""
    fill(world, site(10))
    async with world.mount():
        pass
    async with world.mount(serve=True, prefetch=parse(["*.json"])) as m:
        await m.until(lambda: fetched(world) == 20 and not m.engine.prefetch._on_the_way)


async def test_switched_off(world: World, autojump_clock: object) -> None:
    """`predict` off: only what is read is fetched."""
    files = fill(world, directory(20))
    async with world.mount(serve=True, predict=False) as m:
        await ready(m)
        for name in files:
            await m.read(name)
        assert m.engine.cache.counters.misses == 20
        assert m.engine.prefetch.counters.requests == 0


async def test_random_access_switches_it_off(world: World, autojump_clock: object) -> None:
    """Two neighbours here and there, never more: prefetch ends after a bounded waste, and says so."""
    fill(world, [name for number in range(150) for name in directory(12, f"d{number:03}")])
    async with world.mount(serve=True) as m:
        await ready(m)
        for number in random.Random(1).sample(range(150), 150):
            for name in directory(12, f"d{number:03}")[3:5]:
                await m.read(name)
                await trio.testing.wait_all_tasks_blocked()
        statistics = m.engine.prefetch.statistics()
        assert statistics["on"] is False
        assert statistics["useful"] == 0
        assert statistics["unread"] == statistics["requests"] <= 200
    assert fetched(world) == 300 + statistics["requests"]


async def test_what_is_gone_is_dropped(world: World, autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    """Versions that others removed meanwhile: no error, no pause, no line in the log."""
    files = fill(world, directory(20))
    async with world.mount(serve=True, others=True) as m:
        await ready(m)
        for name in directory(20)[4:8]:
            world.bucket.purge(world.bucket.objects()[name].file_id)
        for name in directory(20)[:4]:
            assert await m.read(name) == files[name]
            await trio.testing.wait_all_tasks_blocked()
        assert m.engine.prefetch.counters.failed == 4
        assert await m.read("d/019.mp3") == files["d/019.mp3"]
        assert m.engine.cache.counters.misses == 2, "the others have come"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_capped_account_is_left_alone(world: World, autojump_clock: object) -> None:
    """A refusal ends all prefetching for long; reads go on as far as B2 lets them."""
    files = fill(world, directory(40))
    async with world.mount(serve=True) as m:
        await ready(m)
        capped = BucketError(Fault.CAPPED, "download cap exceeded")
        wanted = {world.bucket.objects()[name].file_id for name in directory(40)[1:17]}
        world.bucket.faults += [Planted("fetch", capped, file_id) for file_id in wanted]
        began = trio.current_time()
        for name in directory(40)[:1] + directory(40)[20:26]:
            assert await m.read(name) == files[name]
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() - began < REFUSED_S / 2
        assert 0 < m.engine.prefetch.counters.requests == m.engine.prefetch.counters.failed <= START
        await trio.sleep(REFUSED_S + 1)
        for name in directory(40)[26:]:
            await m.read(name)
            await trio.testing.wait_all_tasks_blocked()
        assert m.engine.prefetch.counters.useful > 0


async def test_what_is_unread_fills_a_quarter_of_the_cache(world: World, autojump_clock: object) -> None:
    """No more is fetched ahead before that is read; it counts as wasted when it has to go."""
    hot = fill(world, [f"hot/{number}" for number in range(8)], size=10 * KIB)
    fill(world, directory(100), size=KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, prefetch=parse(["d/*.mp3"])) as m:
        await ready(m)
        await m.until(lambda: m.engine.prefetch.statistics()["unread"] == 25)
        await trio.sleep(10)
        assert m.engine.prefetch.statistics()["unread_bytes"] == 25 * KIB
        for name in hot:
            await m.read(name)
        statistics = m.engine.prefetch.statistics()
        assert statistics["wasted"] == 5
        assert statistics["unread"] == 20
        before = fetched(world)
        for name in hot:
            await m.read(name)
        assert fetched(world) == before, "they are all here"


async def test_what_had_no_room_is_looked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Once what came first was read, what the patterns name besides is fetched; while there is no room, nobody looks."""
    files = fill(world, directory(60), size=KIB)
    async with world.mount(serve=True, cache_size=100 * KIB, prefetch=parse(["d/*.mp3"]), predict=False) as m:
        await ready(m)
        await m.until(lambda: m.engine.prefetch.statistics()["unread"] == 25)
        reads: list[str] = []

        def counted(after: str, limit: int) -> list[ObjectRow]:
            reads.append(after)
            return []

        monkeypatch.setattr(m.volume.journal, "objects_after", counted)
        await trio.sleep(600)
        assert reads == []
        monkeypatch.undo()
        for _ in range(2):
            unread = set(m.engine.cache.unread)
            for name, data in files.items():
                if world.bucket.objects()[name].file_id in unread:
                    assert await m.read(name) == data
            await trio.sleep(100)
        assert fetched(world) == 60
        assert m.engine.cache.counters.misses == 0
        monkeypatch.setattr(m.volume.journal, "objects_after", counted)
        await trio.sleep(600)
        assert reads == [], "nothing is left out any more"


async def test_it_takes_nothing_from_what_was_read(world: World, autojump_clock: object) -> None:
    """Where only what programs have read could make room, nothing is prefetched."""
    hot = fill(world, [f"hot/{number}" for number in range(9)], size=10 * KIB)
    fill(world, directory(20), size=4 * KIB)
    async with world.mount(serve=True, cache_size=100 * KIB) as m:
        await ready(m)
        for name in random.Random(1).sample(list(hot), 9):
            await m.read(name)
        for name in directory(20)[:2]:
            await m.read(name)
            await trio.testing.wait_all_tasks_blocked()
        before = fetched(world)
        for name in hot:
            await m.read(name)
        assert fetched(world) == before, "they are all here"


async def test_what_is_written_here_is_not_fetched(world: World, autojump_clock: object) -> None:
    """A file that has new content here needs none from the bucket."""
    fill(world, directory(20))
    async with world.mount(serve=True, quiet_s=600.0) as m:
        await ready(m)
        await m.write("d/003.mp3", b"mine")
        before = world.bucket.objects()["d/003.mp3"].file_id
        for name in directory(20)[:3]:
            await m.read(name)
            await trio.testing.wait_all_tasks_blocked()
        assert before not in [key for _, key in world.bucket.calls("fetch")]
        assert m.engine.cache.counters.misses == 1
        await m.drained()
