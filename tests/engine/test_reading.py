"""Reading: from wherever the bytes are, once each, never more of them than the cache may hold, never a wrong errno."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from b2fs.adapters.journal import Journal
from b2fs.core.chunks import CHUNK
from b2fs.errors import BucketError, Fault, NoSpace, NotFound, Unavailable
from tests.engine.seams import HookSeam
from tests.engine.world import DOWN, World
from tests.fakes.bucket import Planted

MIB = 1 << 20


def _bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


async def test_open_fetches_nothing(world: World, autojump_clock: object) -> None:
    """Listing, looking up, opening and closing need no download."""
    world.bucket.put("d/x", b"content")
    async with world.mount() as m:
        await m.names("d")
        await m.close(await m.open("d/x"))
    assert world.bucket.calls("fetch") == []


async def test_single_flight(world: World, autojump_clock: object) -> None:
    """Twenty readers of a file that is not here cause one download."""
    world.bucket.put("x", b"content")
    async with world.mount() as m:
        world.bucket.gate.close("fetch")
        found: list[bytes] = []

        async def reader() -> None:
            found.append(await m.read("x"))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(reader)
            await world.bucket.gate.waiting("fetch")
            world.bucket.gate.open()
        assert found == [b"content"] * 20
    assert len(world.bucket.calls("fetch")) == 1


async def test_an_open_part_is_read_without_asking_the_disk(world: World, autojump_clock: object) -> None:
    """Once a part of a fetched file is open, no later read looks for a file of the cache directory."""
    content = _bytes(CHUNK + 100)
    world.bucket.put("x", content)
    async with world.mount() as m:
        handle = await m.open("x")
        for offset in (0, CHUNK):
            await m.engine.files.read(handle, offset, 100)
        disk, looked = m.engine.volume.disk, []
        real = disk.open_blob
        disk.open_blob = lambda name: looked.append(name) or real(name)  # type: ignore[method-assign,func-returns-value]
        for offset in (7, CHUNK + 7):
            found = await m.engine.files.read(handle, offset, 10)
            assert bytes(found) == content[offset : offset + 10]
        await m.close(handle)
        disk.open_blob = real  # type: ignore[method-assign]
    assert looked == []


async def test_reader_that_goes_away_takes_nothing_from_the_others(world: World, autojump_clock: object) -> None:
    """The first reader is cancelled while its download is under way; the second gets the content of the same one."""
    world.bucket.put("x", b"content")
    async with world.mount() as m:
        world.bucket.gate.close("fetch")
        found: list[bytes] = []

        async def reader() -> None:
            found.append(await m.read("x"))

        async with trio.open_nursery() as nursery:
            first = trio.CancelScope()

            async def impatient() -> None:
                with first:
                    await m.read("x")

            nursery.start_soon(impatient)
            await world.bucket.gate.waiting("fetch")
            nursery.start_soon(reader)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            world.bucket.gate.open()
        assert found == [b"content"]
    assert len(world.bucket.calls("fetch")) == 1


async def test_ranges_across_chunk_borders(world: World, autojump_clock: object) -> None:
    """Any part of a large object equals the same part of its content, at and across the borders of chunks."""
    data = _bytes(7 * MIB)
    world.bucket.put("x", data)
    async with world.mount(upload=False) as m:
        for offset, size in [
            (0, 1), (CHUNK - 1, 2), (CHUNK, CHUNK), (CHUNK - 7, 2 * CHUNK + 9), (3 * CHUNK, 10 * MIB),
            (7 * MIB - 1, 100), (7 * MIB, 1), (9 * MIB, 1), (0, 7 * MIB),
        ]:  # fmt: skip
            assert await m.read("x", offset, size) == data[offset : offset + size], (offset, size)
    assert len(world.bucket.calls("fetch")) == 4, "each chunk once"


async def test_sequential_reader_is_ahead_of_itself(world: World, autojump_clock: object) -> None:
    """Reading a large file in the kernel's pieces asks for each chunk once, and for the next before it is needed."""
    data = _bytes(9 * MIB)
    world.bucket.put("x", data)
    async with world.mount(upload=False) as m:
        handle = await m.open("x")
        pieces = []
        for offset in range(0, len(data), 128 * 1024):
            pieces.append(bytes(await m.files.read(handle, offset, 128 * 1024)))
            await trio.testing.wait_all_tasks_blocked()
        await m.close(handle)
        assert b"".join(pieces) == data
        assert m.engine.cache.counters.misses < 5
    assert len(world.bucket.calls("fetch")) == 5


async def test_sequential_reader_has_many_ranges_in_flight(world: World, autojump_clock: object) -> None:
    """From the fourth chunk on sixteen ranges are asked for at once: one connection is slower than the line."""
    world.bucket.put("x", bytes(40 * CHUNK))
    async with world.mount(upload=False) as m:
        handle = await m.open("x")
        for index in range(3):
            await m.files.read(handle, index * CHUNK, MIB)
        await trio.testing.wait_all_tasks_blocked()
        asked = len(world.bucket.calls("fetch"))
        assert asked == 3 + 8
        world.bucket.gate.close("fetch")
        for index in range(3, asked):  # these are here
            await m.files.read(handle, index * CHUNK, MIB)
        with trio.fail_after(60):
            await world.bucket.gate.waiting("fetch", 16)
        world.bucket.gate.open()
        await m.close(handle)
        while m.engine.cache.index.reserved:
            await trio.sleep(0.01)
    assert len(world.bucket.calls("fetch")) == asked + 16


async def test_reader_that_jumps_fetches_nothing_in_vain(world: World, autojump_clock: object) -> None:
    """Reading here and there in a large object asks for the chunks that are read, and for no other."""
    world.bucket.put("x", bytes(40 * CHUNK))
    places = [7, 30, 2, 38, 20, 7, 11, 0, 25]
    async with world.mount(upload=False) as m:
        handle = await m.open("x")
        for index in places:
            await m.files.read(handle, index * CHUNK + 5, 4096)
            await trio.testing.wait_all_tasks_blocked()
        await m.close(handle)
    assert len(world.bucket.calls("fetch")) == len(set(places))


@pytest.mark.parametrize("size", [1, CHUNK, CHUNK + 1])
async def test_whole_files_of_border_sizes(world: World, autojump_clock: object, size: int) -> None:
    """One byte, exactly one chunk, one byte more than a chunk."""
    data = _bytes(size)
    world.bucket.put("x", data)
    async with world.mount(upload=False) as m:
        assert await m.read("x") == data


@pytest.mark.slow
async def test_small_cache_under_parallel_readers(world: World, autojump_clock: object) -> None:
    """Twelve readers of 12 large files with a cache of 5 MiB: all get the right bytes, and the limit is kept throughout."""
    contents = {f"f{number}": _bytes(3 * MIB, number) for number in range(12)}
    for name, data in contents.items():
        world.bucket.put(name, data)
    async with world.mount(upload=False, cache_size=5 * MIB) as m:
        used: list[int] = []
        world.bucket.tap = lambda: used.append(m.engine.cache.index.used)
        right: list[bool] = []

        async def reader(name: str) -> None:
            for offset in (0, CHUNK - 10, CHUNK + 5, 0):
                right.append(await m.read(name, offset, 100) == contents[name][offset : offset + 100])

        with trio.fail_after(600.0):
            async with trio.open_nursery() as nursery:
                for name in contents:
                    nursery.start_soon(reader, name)
        used.append(m.engine.cache.index.used)
        on_disk = sum(file.stat().st_size for file in (world.state() / "cache").glob("*/*"))
        assert all(right)
        assert len(right) == 48
        assert max(used) <= 5 * MIB
        assert on_disk == m.engine.cache.index.used <= 5 * MIB


async def test_evicted_content_is_fetched_again(world: World, autojump_clock: object) -> None:
    """Reading more than the cache holds, twice, gives the right bytes each time."""
    contents = {f"f{number}": _bytes(1 * MIB, number) for number in range(6)}
    for name, data in contents.items():
        world.bucket.put(name, data)
    async with world.mount(upload=False, cache_size=3 * MIB) as m:
        for _ in range(2):
            for name, data in contents.items():
                assert await m.read(name) == data
                assert m.engine.cache.index.used <= 3 * MIB


async def test_last_used_content_stays(world: World, autojump_clock: object) -> None:
    """Eviction takes what was not used for the longest time, of earlier runs first."""
    for number in range(4):
        world.bucket.put(f"f{number}", _bytes(MIB, number))
    async with world.mount(upload=False, cache_size=3 * MIB) as m:
        for name in ("f0", "f1"):
            await m.read(name)
    async with world.mount(upload=False, cache_size=3 * MIB) as m:
        await m.read("f1")
        await m.read("f2")
        world.bucket.log.clear()
        await m.read("f3")  # f0 has to go
        for name in ("f1", "f2", "f3"):
            await m.read(name)
        assert len(world.bucket.calls("fetch")) == 1


async def test_confirmed_uploads_count_for_the_cache(world: World, autojump_clock: object) -> None:
    """What was uploaded lies in the cache, needs no download, and is evicted as the rest when room is short."""
    async with world.mount(cache_size=3 * MIB) as m:
        for number in range(5):
            await m.write(f"f{number}", _bytes(MIB, number))
        await m.drained()
        assert m.engine.cache.index.used <= 3 * MIB
        assert await m.read("f4") == _bytes(MIB, 4)
        assert await m.read("f0") == _bytes(MIB, 0)


async def test_what_is_not_in_b2_is_never_evicted(world: World, autojump_clock: object) -> None:
    """With B2 down and the cache far too small, everything that was written can be read."""
    async with world.mount(cache_size=1 * MIB) as m:
        world.bucket.down = True
        for number in range(5):
            await m.write(f"f{number}", _bytes(MIB, number))
        await trio.sleep(100.0)
        for number in range(5):
            assert await m.read(f"f{number}") == _bytes(MIB, number)
        world.bucket.down = False
        await m.drained()


async def test_passing_read_fault_is_not_seen(world: World, autojump_clock: object) -> None:
    """Six failures and a corrupt answer later the reader gets the right bytes."""
    world.bucket.put("x", b"content")
    async with world.mount(upload=False) as m:
        world.bucket.faults += [Planted("fetch", DOWN) for _ in range(6)]
        world.bucket.faults.append(Planted("fetch", BucketError(Fault.CORRUPT, "wrong SHA-1")))
        assert await m.read("x") == b"content"


async def test_a_dozen_passing_faults_in_a_row(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor twelve failures, with the longest pauses that can be drawn: the deadline is there for many attempts."""
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    world.bucket.put("x", b"content")
    async with world.mount(read_deadline_s=60.0) as m:
        world.bucket.faults += [Planted("fetch", DOWN) for _ in range(12)]
        assert await m.read("x") == b"content"


async def test_read_while_b2_is_down(world: World, autojump_clock: object) -> None:
    """After the deadline it is Unavailable (EIO), not before, never NotFound; when B2 is back it works."""
    world.bucket.put("x", b"content")
    async with world.mount(upload=False, read_deadline_s=60.0) as m:
        world.bucket.down = True
        began = trio.current_time()
        with pytest.raises(Unavailable) as raised:
            await m.read("x")
        assert raised.value.errno == 5
        assert 60.0 <= trio.current_time() - began < 61.0
        assert await m.exists("x")
        world.bucket.down = False
        assert await m.read("x") == b"content"


async def test_stalled_read_ends_at_the_deadline(world: World, autojump_clock: object) -> None:
    """B2 that takes the request and never answers is the same."""
    world.bucket.put("x", b"content")
    async with world.mount(upload=False, read_deadline_s=60.0) as m:
        world.bucket.gate.close("fetch")
        with pytest.raises(Unavailable), trio.fail_after(61.0):
            await m.read("x")
        world.bucket.gate.open()
        assert await m.read("x") == b"content"


async def test_version_that_was_deleted_for_good(world: World, autojump_clock: object) -> None:
    """A version that is gone from the bucket is an EIO for its reader; the name does not vanish by that."""
    version = world.bucket.put("x", b"content")
    async with world.mount(upload=False, others=True) as m:
        world.bucket.purge(version.file_id)
        with pytest.raises(BucketError) as raised:
            await m.read("x")
        assert raised.value.errno == 5
        assert not isinstance(raised.value, NotFound)
        assert await m.exists("x")


async def test_unknown_name_while_b2_is_down(world: World, autojump_clock: object) -> None:
    """In a directory that is not fully known a missing name is Unavailable, in a known one it is NotFound."""
    world.bucket.put("d/x", b"1")
    async with world.mount(listing=False, upload=False) as m:
        world.bucket.down = True
        with pytest.raises(Unavailable):
            await m.node("d")
        with pytest.raises(Unavailable):
            await m.names("")
        with pytest.raises(Unavailable):
            await m.write("new", b"1")
        with pytest.raises(NotFound):
            await m.files.lookup(1, b"\xff")
        world.bucket.down = False
        assert await m.names("d") == ["x"]
        world.bucket.down = True
        with pytest.raises(NotFound):
            await m.node("d/y")
        with pytest.raises(NotFound):
            await m.node("other")


async def test_one_listing_for_all_who_wait(world: World, autojump_clock: object) -> None:
    """Ten look-ups in an unknown directory ask for its listing once."""
    world.bucket.put("x", b"1")
    async with world.mount(listing=False, upload=False) as m:
        world.bucket.log.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(m.exists, "x")
        assert world.bucket.log == [("list_page", "")]


async def test_second_start_asks_nothing(world: World, autojump_clock: object) -> None:
    """With the same state directory and B2 down: names, attributes and cached content are there at once."""
    world.bucket.put("d/x", b"content")
    world.bucket.put("d/large", _bytes(3 * MIB))
    async with world.mount() as m:
        await m.write("mine", b"new")
        before = await m.tree()
        await m.drained()
    world.bucket.down = True
    world.bucket.log.clear()
    async with world.mount(listing=False, upload=False) as m:
        assert await m.tree() == before
        assert not await m.exists("d/absent")
    assert world.bucket.log == []


async def test_later_start_looks_for_news_after_the_first_readers(world: World, autojump_clock: object) -> None:
    """Who waited for the mount has B2 for himself; then the listing comes, and brings what others did meanwhile."""
    async with world.mount(serve=True) as m:
        await trio.sleep(1)
        assert m.engine.listing.complete
    world.bucket.put("news", b"x")
    world.bucket.log.clear()
    async with world.mount(serve=True) as m:
        await trio.sleep(1)
        assert world.bucket.calls("list_page") == []
        await trio.sleep(2)
        assert len(world.bucket.calls("list_page")) == 1
        assert await m.names("") == ["news"]


async def test_another_host_sees_everything(world: World, autojump_clock: object) -> None:
    """Modes, ns mtimes, symlinks, empty directories, names of any script: a mount with an empty state directory has them."""
    async with world.mount() as m:
        await m.mkdir("empty", 0o750)
        await m.mkdir("диктант")
        await m.write("диктант/🦊.txt", "текст".encode(), 0o640)
        await m.utime("диктант/🦊.txt", -1_000_000_001)
        await m.write("run.sh", b"#!", 0o755)
        await m.utime("run.sh", 1_234_567_890_123_456_789)
        await m.symlink("link", "диктант/🦊.txt")
        await m.symlink("long", "t" * 1000)
        await m.utime("empty", 1_000_000_007)
        await m.drained()
        expected = await m.tree()
    assert expected["run.sh"].mtime_ns == 1_234_567_890_123_456_789
    assert await world.seen_by_another() == expected
    assert world.bucket.content("link") == "диктант/🦊.txt".encode()


async def test_prefix_changes_nothing_here(world: World, tmp_path: object, autojump_clock: object) -> None:
    """Keys are without the prefix on this side of the adapter."""
    async with world.mount(prefix="site/") as m:
        await m.write("x", b"1")
        await m.drained()
    assert world.bucket.files() == {"x": b"1"}


async def test_writers_wait_for_room_in_the_budget(world: World, autojump_clock: object) -> None:
    """When bytes that are not in B2 fill their budget, several writers wait until uploads make room, and all go on."""
    async with world.mount(dirty_size=2 * MIB, dirty_wait_s=30.0) as m:
        world.bucket.gate.close("upload")
        await m.write("a", bytes(MIB))
        await m.write("b", bytes(MIB))
        done: list[str] = []

        async def writer(name: str) -> None:
            await m.write(name, bytes(MIB // 4))
            done.append(name)

        async with trio.open_nursery() as nursery:
            for name in ("c", "d", "e", "f"):
                nursery.start_soon(writer, name)
            await trio.sleep(5.0)
            assert done == []
            world.bucket.gate.open()
        assert len(done) == 4
        await m.drained()


async def test_full_budget_is_no_space_in_the_end(world: World, autojump_clock: object) -> None:
    """A writer that waited in vain gets NoSpace, what was there before is untouched, and reads go on."""
    world.bucket.put("x", b"content")
    async with world.mount(dirty_size=MIB, dirty_wait_s=30.0) as m:
        world.bucket.gate.close("upload")
        await m.write("a", bytes(MIB))
        began = trio.current_time()
        with pytest.raises(NoSpace):
            await m.write("b", b"1")
        assert 30.0 <= trio.current_time() - began < 31.0
        assert await m.read("x") == b"content"
        assert await m.read("a") == bytes(MIB)
        world.bucket.gate.open()
        await m.drained()


async def test_nobody_waits_for_what_never_fits(world: World, autojump_clock: object) -> None:
    """A file that would be larger than the whole budget gets NoSpace at once: by a write far behind its end, by a
    truncate, by the first write to a large object; nothing has changed.
    """
    world.bucket.put("large", bytes(3 * MIB))
    async with world.mount(dirty_size=2 * MIB, dirty_wait_s=30.0) as m:
        await m.write("x", b"content")
        began = trio.current_time()
        with pytest.raises(NoSpace):
            await m.patch("x", 1 << 40, b"1")
        with pytest.raises(NoSpace):
            await m.truncate("x", 1 << 40)
        with pytest.raises(NoSpace):
            await m.patch("large", 0, b"1")
        assert trio.current_time() - began < 1.0
        assert await m.read("x") == b"content"
        assert await m.read("large") == bytes(3 * MIB)
        await m.drained()


async def test_disk_full_in_the_middle_of_a_write(
    world: World, autojump_clock: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the disk cuts off leaves the file as long as it was: no acknowledged byte is missing."""
    async with world.mount(upload=False) as m:
        handle = await m.create("x")
        await m.files.write(handle, 0, b"0123456789")
        real, calls = os.pwrite, []

        def cut(fd: int, data: bytes, offset: int) -> int:
            calls.append(offset)
            if len(calls) > 1:
                raise OSError(28, "No space left on device")
            return real(fd, data[:50], offset)

        for offset in (5, 100):
            calls.clear()
            monkeypatch.setattr(os, "pwrite", cut)
            try:
                written = await m.files.write(handle, offset, b"x" * 100)
            except NoSpace:
                written = 0
            monkeypatch.setattr(os, "pwrite", real)
            size = max(10, offset + written) if written else 10
            assert (await m.node("x")).inode.size == size
            assert len(await m.files.read(handle, 0, 1000)) == size
            assert os.stat(world.state() / "scratch" / str((await m.node("x")).ino)).st_size == size
            await m.files.write(handle, 0, b"0123456789")
            await m.truncate("x", 10)
        await m.close(handle)


async def test_fsync_covers_a_seal_that_comes_between(world: World, autojump_clock: object) -> None:
    """If the file is sealed while fsync waits for the disk, the staged name is put on stable storage too."""
    seam = HookSeam()
    synced: list[str] = []
    async with world.mount(seam=seam, upload=False) as m:
        handle = await m.create("x")
        await m.files.write(handle, 0, b"content")
        node = await m.node("x")
        seam.after["fsync"] = lambda: m.engine.content.seal(node)
        inner = seam.thread

        async def watched(call, *args):  # type: ignore[no-untyped-def]
            if call.__name__ == "sync_names" and node.inode.staged:
                synced.append("staged")
            return await inner(call, *args)

        seam.thread = watched  # type: ignore[method-assign]
        await m.files.sync(handle)
        await m.close(handle)
        assert node.inode.staged
    assert "staged" in synced


# ---------------------------------------------------------------- settling


async def test_small_blobs_settle_together(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Files that are fetched one after the other are read at once, and get their places and rows by few commits."""
    for number in range(40):
        world.bucket.put(f"d/{number}", _bytes(100, number))
    async with world.mount(predict=False) as m:
        commits: list[int] = []
        commit = m.volume.journal.commit
        monkeypatch.setattr(
            m.volume.journal, "commit", lambda change: (commits.append(len(change.blobs)), commit(change))
        )
        for number in range(40):
            assert await m.read(f"d/{number}") == _bytes(100, number)
        assert m.volume.journal.blob_totals() == (0, 0)
        assert m.engine.cache.index.used == 4000
        await trio.sleep(1)
        assert m.volume.journal.blob_totals() == (4000, 40)
        assert len([count for count in commits if count]) <= 4
        assert [*m.volume.disk.numbers("part")] == []
        m.engine.cache._files.clear()
        assert await m.read("d/7") == _bytes(100, 7)
    assert len(world.bucket.calls("fetch")) == 40


async def test_a_stop_settles(world: World, autojump_clock: object) -> None:
    """What was fetched right before the end is here after it."""
    world.bucket.put("x", b"content")
    async with world.mount() as m:
        assert await m.read("x") == b"content"
    async with world.mount() as m:
        assert await m.read("x") == b"content"
    assert len(world.bucket.calls("fetch")) == 1


async def test_a_stop_closes_nothing_that_is_in_use(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Who waits for the disk when the stop begins gets his answer, and the journal is open for what he does with it:
    SQLite crashes the process when one thread closes what another uses.
    """
    world.bucket.put("x", b"content")
    seam = HookSeam()
    order: list[str] = []
    async with world.mount(seam=seam) as m:
        journal = m.volume.journal

        async def slow_disk() -> None:
            with trio.CancelScope(shield=True):  # a thread's result is delivered, cancelled or not
                await trio.sleep(5)
            order.append("answer")

        def noting(name: str) -> Callable[..., None]:
            call = getattr(journal, name)
            return lambda *args: (order.append(name), call(*args))[1]

        seam.after["secure_parts"] = slow_disk
        assert await m.read("x") == b"content"
        await trio.sleep(0.5)
        assert not seam.after, "it waits for the disk"
        monkeypatch.setattr(journal, "commit", noting("commit"))
        monkeypatch.setattr(journal, "close", noting("close"))
    assert order[0] == "answer" and "commit" not in order[order.index("close") :], order


async def test_a_disk_that_fails_at_the_end_does_not_spoil_it(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """What was fetched last is lost to the cache; all else ends in order, and the next start need not doubt anything."""
    world.bucket.put("x", b"content")
    async with world.mount(check=False, boot="one") as m:
        assert await m.read("x") == b"content"

        def failing(parts: object) -> set[int]:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(m.volume.disk, "secure_parts", failing)
        ended: dict[str, str] = {}
        set_meta = m.volume.journal.set_meta
        monkeypatch.setattr(
            m.volume.journal, "set_meta", lambda name, value: (ended.update({name: value}), set_meta(name, value))
        )
    assert ended == {"boot": ""}


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_blob_is_evicted_before_it_has_settled(world: World, when: str, autojump_clock: object) -> None:
    """It goes as any other, and does not come back by what was under way for it."""
    world.bucket.put("x", b"content")
    seam = HookSeam()
    async with world.mount(seam=seam) as m:

        async def evict() -> None:
            m.engine.cache._evict(1 << 40)

        await m.read("x")
        if when == "before":
            await evict()
        else:
            seam.after["secure_parts"] = evict
        await trio.sleep(1)
        assert not seam.after
        disk = m.volume.disk
        assert not any(map(disk.blob_names, disk.blob_folders())) and [*disk.numbers("part")] == []
        assert m.engine.cache.index.used == 0 and m.volume.journal.blob_totals() == (0, 0)
        assert await m.read("x") == b"content"


async def test_what_the_disk_does_not_keep_is_no_blob(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """A sync that fails takes nothing from who has read, and the next reader fetches anew."""
    world.bucket.put("x", b"content")
    async with world.mount() as m:
        with monkeypatch.context() as failing:
            failing.setattr("b2fs.adapters.disk.os.fsync", _fails)
            assert await m.read("x") == b"content"
            await trio.sleep(1)
        assert m.engine.cache.index.used == 0 and m.volume.disk.blob_folders() == []
        assert await m.read("x") == b"content"
    assert len(world.bucket.calls("fetch")) == 2


async def test_somebody_takes_away_what_has_not_settled(world: World, autojump_clock: object) -> None:
    """A file that is gone is no blob, whoever took it, and nobody else is troubled."""
    seam = HookSeam()
    world.bucket.put("x", b"content")
    async with world.mount(seam=seam) as m:

        async def take() -> None:
            for number in m.volume.disk.numbers("part"):
                m.volume.disk.drop_part(number)

        assert await m.read("x") == b"content"
        seam.after["secure_parts"] = take
        await trio.sleep(1)
        assert not seam.after and m.engine.cache.index.used == 0
        assert await m.read("x") == b"content"


def _fails(fd: int) -> None:
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("when", ["before", "during"])
async def test_a_version_gets_another_id_before_its_blob_has_settled(
    world: World, when: str, autojump_clock: object
) -> None:
    """The blob takes the new name, and settles under it."""
    world.bucket.put("x", b"content")
    seam = HookSeam()
    async with world.mount(seam=seam) as m:

        async def rename() -> None:
            m.engine.cache.rename((await m.node("x")).inode.file_id, "other")

        await m.read("x")
        if when == "before":
            await rename()
        else:
            seam.after["secure_parts"] = rename
        await trio.sleep(1)
        assert not seam.after
        assert m.volume.disk.has_blob("other") and m.volume.journal.blob_totals() == (7, 1)
        assert m.engine.cache.index.used == 7


@pytest.mark.parametrize("in_order", [True, False])
async def test_the_cache_is_swept(world: World, in_order: bool, autojump_clock: object) -> None:
    """A file without a row goes, in the background; if the last run ended in order, after whoever waited for the mount has
    begun, else at once. Others stay.
    """
    world.bucket.put("x", b"content")
    async with world.mount(crashed=True, boot="this") as m:
        await m.read("x")
        kept = (await m.node("x")).inode.file_id
        left = Path(m.volume.disk.blob_path("left"))
        left.parent.mkdir(exist_ok=True)
        left.write_bytes(b"content")
    if not in_order:
        journal = Journal(str(world.state("state") / "journal.db"))
        journal.set_meta("boot", "this")
        journal.close()
    async with world.mount(serve=True, boot="this") as m:
        await trio.sleep(1)
        assert m.volume.disk.has_blob("left") == in_order
        await trio.sleep(10)
        assert not m.volume.disk.has_blob("left") and m.volume.disk.has_blob(kept)
    assert len(world.bucket.calls("fetch")) == 1


async def test_a_blob_is_spoilt_before_it_has_settled(world: World, autojump_clock: object) -> None:
    """What is lost of a version is all of it."""
    world.bucket.put("x", b"content")
    async with world.mount() as m:
        await m.read("x")
        m.engine.cache.lose((await m.node("x")).inode.file_id)
        await trio.sleep(1)
        assert m.engine.cache.index.used == 0 and m.volume.disk.blob_folders() == []


async def test_what_was_uploaded_settles_with_the_rest(
    world: World, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """Confirmed content is a blob at once, its row comes with those of others; evicted or renamed before, it leaves none."""
    async with world.mount() as m:
        commits: list[int] = []
        commit = m.volume.journal.commit
        monkeypatch.setattr(
            m.volume.journal, "commit", lambda change: (commits.append(len(change.blobs)), commit(change))
        )
        for number in range(20):
            await m.write(f"{number}", b"content")
        await m.drained()
        cache, file_ids = m.engine.cache, [(await m.node(f"{number}")).inode.file_id for number in range(20)]
        assert cache.index.used == 140
        assert all(m.volume.disk.has_blob(file_id) for file_id in file_ids)
        cache.rename(file_ids[-1], "other")
        assert m.volume.disk.has_blob("other") and not m.volume.disk.has_blob(file_ids[-1])
        await trio.sleep(1)
        assert m.volume.journal.blob_totals() == (140, 20) and m.volume.journal.blob("other") is not None
        assert len([count for count in commits if count]) <= 3
        await m.write("x", b"content")
        await m.drained()
        cache._evict(1 << 40)
        assert not m.volume.disk.has_blob((await m.node("x")).inode.file_id)
        await trio.sleep(1)
        assert m.volume.journal.blob_totals() == (0, 0) and cache.index.used == 0
        assert await m.read("x") == b"content"
