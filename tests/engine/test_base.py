"""What an upload of a changed file is told of an earlier version: only what is the same, whichever way it was changed.

The fake bucket compares each range that it is told of with the version, so a wrong one fails the test.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from b2fs.core import parts
from b2fs.engine import base
from b2fs.errors import BucketError, Fault
from tests.engine.world import Mount, World
from tests.fakes.bucket import Planted

pytestmark = pytest.mark.slow

SIZE = 40 << 20
PLACE = 20 << 20
PAGE = 4096
OLD = random.Random(7).randbytes(SIZE)
CHANGE = b"changed!" * (PAGE // 8)
NEW = OLD[:PLACE] + CHANGE + OLD[PLACE + PAGE :]
BLOCK = parts.BLOCK
WORTH = 8 << 20
"""What a copy must save here, so that files of 40 MiB are large."""
AROUND = [(0, PLACE), (PLACE + BLOCK, SIZE)]
"""All but the block that was changed."""


@pytest.fixture(autouse=True)
def _cheap_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "WORTH", WORTH)


def sent(world: World) -> int:
    return world.bucket.requests().sent


async def in_bucket(m: Mount, world: World, data: bytes = OLD) -> str:
    """The object `x`, uploaded from here; its file id. Nothing counts as sent yet."""
    await m.write("x", data)
    await m.drained()
    world.bucket._sent = 0
    return world.bucket.objects()["x"].file_id


async def test_page_in_an_object_that_was_written_here(world: World, autojump_clock: object) -> None:
    """The whole content lies in the cache as one blob."""
    async with world.mount() as m:
        file_id = await in_bucket(m, world)
        await m.patch("x", PLACE, CHANGE)
        await m.drained()
        assert world.bucket.content("x") == NEW
        assert await m.read("x") == NEW
    (known,) = world.bucket.bases
    assert (known.file_id, known.same) == (file_id, AROUND)
    assert sent(world) == BLOCK


async def test_page_in_an_object_of_others(world: World, autojump_clock: object) -> None:
    """The content was fetched in chunks."""
    old = world.bucket.put("x", OLD)
    async with world.mount() as m:
        await m.patch("x", PLACE, CHANGE)
        await m.drained()
        assert world.bucket.content("x") == NEW
    (known,) = world.bucket.bases
    assert (known.file_id, known.same) == (old.file_id, AROUND)


@pytest.mark.parametrize("size", [SIZE - 5, PLACE + 7, SIZE + PAGE])
async def test_cut_and_extended(world: World, autojump_clock: object, size: int) -> None:
    """What is left of the old content is the same, to the last byte."""
    async with world.mount() as m:
        await in_bucket(m, world)
        await m.truncate("x", size)
        await m.drained()
        assert world.bucket.content("x") == OLD[:size] + bytes(max(0, size - SIZE))
    (known,) = world.bucket.bases
    assert known.same == [(0, min(size, SIZE))]


@pytest.mark.parametrize("way", ["in place", "emptied", "renamed over"])
async def test_written_anew(world: World, autojump_clock: object, way: str) -> None:
    """A program that writes the whole file again, in one of the usual ways, with one page changed."""
    async with world.mount() as m:
        file_id = await in_bucket(m, world)
        if way == "in place":
            await m.patch("x", 0, NEW)
        elif way == "emptied":
            await m.write("x", NEW)
        else:
            await m.write("x.tmp", NEW)
            await m.rename("x.tmp", "x")
        await m.drained()
        assert world.bucket.content("x") == NEW
    (known,) = world.bucket.bases
    assert (known.file_id, known.same) == (file_id, AROUND)


async def test_renamed_before_its_upload(world: World, autojump_clock: object) -> None:
    """The version is found by the file that came from it, not by the name."""
    async with world.mount() as m:
        file_id = await in_bucket(m, world)
        await m.patch("x", PLACE, CHANGE)
        await m.rename("x", "y")
        await m.drained()
        assert world.bucket.files() == {"y": NEW}
    (known,) = world.bucket.bases
    assert (known.file_id, known.same) == (file_id, AROUND)


async def test_overwritten_by_another_host(world: World, autojump_clock: object) -> None:
    """The file here is still like the version that it came from; that is what is copied from, and ours goes on top."""
    async with world.mount() as m:
        file_id = await in_bucket(m, world)
        await m.patch("x", PLACE, CHANGE)
        world.bucket.put("x", b"theirs")
        await m.drained()
        assert world.bucket.content("x") == NEW
    (known,) = world.bucket.bases
    assert (known.file_id, known.same) == (file_id, AROUND)


async def test_evicted_base_counts_as_changed(world: World, autojump_clock: object) -> None:
    """What the cache has no room for is sent; only what is still here is named."""
    old = world.bucket.put("x", OLD)
    room = 30 << 20
    async with world.mount(cache_size=room) as m:
        await m.patch("x", PLACE, CHANGE)
        await m.drained()
        assert world.bucket.content("x") == NEW
    (known,) = world.bucket.bases
    assert known.file_id == old.file_id
    assert 0 < sum(end - start for start, end in known.same) <= room


async def test_after_a_restart(world: World, autojump_clock: object) -> None:
    """Nothing has to be remembered: a daemon that was killed before the upload finds the same."""
    async with world.mount() as m:
        file_id = await in_bucket(m, world)
    async with world.mount(upload=False, check=False) as m:
        await m.patch("x", PLACE, CHANGE)
    async with world.mount(crashed=True) as m:
        await m.drained()
        assert world.bucket.content("x") == NEW
    (known,) = world.bucket.bases
    assert (known.file_id, known.same) == (file_id, AROUND)


async def test_every_attempt_is_told(world: World, autojump_clock: object) -> None:
    """An attempt after a failed one gets the same base: its parts are those of the first."""
    async with world.mount() as m:
        await in_bucket(m, world)
        world.bucket.faults += [Planted("upload", BucketError(Fault.TRANSIENT, "no"), "x", after=False)]
        world.bucket.faults += [Planted("upload", BucketError(Fault.CAPPED, "no"), "x", after=False)]
        await m.patch("x", PLACE, CHANGE)
        await m.idle(4000.0)
        assert world.bucket.content("x") == NEW
    assert [known.same for known in world.bucket.bases] == [AROUND]
    assert world.bucket.resumed == ["x", "x"]


@pytest.mark.parametrize("size", [0, PAGE, 2 * WORTH])
async def test_small_files_are_not_compared(world: World, autojump_clock: object, size: int) -> None:
    """No copy could pay."""
    data = os.urandom(size)
    async with world.mount() as m:
        await in_bucket(m, world, data)
        await m.write("x", data[:-1] + b"?" if data else b"?")
        await m.drained()
    assert world.bucket.bases == []


async def test_new_file_has_no_base(world: World, autojump_clock: object) -> None:
    """B2 has nothing of it."""
    async with world.mount() as m:
        await m.write("x", OLD)
        await m.drained()
    assert world.bucket.bases == []


@pytest.mark.parametrize("what", ["ranges", "the whole"])
async def test_b2_that_stores_but_does_not_copy(
    world: World, what: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: object
) -> None:
    """After some failures what is here is sent, instead of being copied for ever."""
    failed: list[str] = []

    def failing(name: str, position: int) -> None:
        call = getattr(world.bucket, name)

        async def tried(*args: Any) -> Any:
            if name == "copy" or args[position] is not None:
                failed.append(name)
                raise BucketError(Fault.TRANSIENT, "503")
            return await call(*args)

        monkeypatch.setattr(world.bucket, name, tried)

    async with world.mount() as m:
        await in_bucket(m, world)
        failing("upload", 7)
        failing("copy", 0)
        if what == "ranges":
            await m.patch("x", PLACE, CHANGE)
        else:
            await m.chmod("x", 0o600)
        await m.drained()
        assert world.bucket.content("x") == (NEW if what == "ranges" else OLD)
    assert 1 < len(failed) < 6, failed
