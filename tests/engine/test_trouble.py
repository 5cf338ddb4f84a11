"""A journal, a disk or a bug that fails at a bad moment: nothing is acknowledged that is not so, nothing is stuck."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

import pytest
import trio

from b2fs.core.change import Change, Damage
from b2fs.errors import Damaged, NoSpace, ReadOnly
from tests.engine.seams import HookSeam, InlineSeam
from tests.engine.world import World
from tests.fakes.bucket import Planted

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class FailingSeam(InlineSeam):
    """Calls of a function named in `fails` raise its error instead, so many times."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: dict[str, tuple[Exception, int]] = {}

    def inline(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        self._fail(call.__name__)
        return super().inline(call, *args)

    async def thread(self, call: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.lowlevel.checkpoint()
        self._fail(call.__name__)
        return await super().thread(call, *args)

    def _fail(self, name: str) -> None:
        error, times = self.fails.get(name, (None, 0))
        if error is not None and times > 0:
            self.fails[name] = error, times - 1
            raise error


async def _spoilt(world: World, newer: bytes = b"newer", *, in_place: bool = False) -> None:
    """A state directory ``cut`` whose power went: ``d/x`` is good in B2; what replaced it here was sealed, and has spoilt."""
    async with world.mount(boot="one") as m:
        await m.mkdir("d")
        await m.write("d/x", b"good")
        await m.drained()
    async with world.mount(boot="one", upload=False, check=False) as m:
        if in_place:
            await m.write("d/x", newer)
        else:
            await m.write("d/new", newer)
            await m.rename("d/new", "d/x")
        node = await m.node("d/x")
        await m.engine.content.seal(node)
        await m.volume.reaper.reap()
        m.volume.journal.commit(Change(damaged=[Damage("another", "", "it was there when this run began", 1)]))
        shutil.copytree(world.state(), world.state("cut"))
    (world.state("cut") / "staged" / str(node.inode.staged)).write_bytes(newer[:-1] + b"?")


# ---------------------------------------------------------------- content that was set aside


async def test_the_version_below_spoilt_content_is_not_hidden(world: World, autojump_clock: object) -> None:
    """A file whose content was set aside before B2 answered has its version in B2 again, which nobody hides."""
    await _spoilt(world)
    world.bucket.down = True
    async with world.mount("cut", boot="two", serve=True, known=["damaged"]) as m:
        await m.until(lambda: m.engine.status()["problems"])
        world.bucket.mend()
        await m.until(lambda: m.engine.listing.complete)
        await m.idle()
        assert await m.read("d/x") == b"good"
    assert world.bucket.content("d/x") == b"good"
    assert world.bucket.calls("hide") == []


async def test_fsck_knows_that_a_name_was_forgotten(world: World, autojump_clock: object) -> None:
    """An object whose name was forgotten here is what the next listing finds: no problem, and nobody is told to hide it."""
    await _spoilt(world)
    async with world.mount("cut", boot="two", listing=False, upload=False, known=["damaged"]) as m:
        await m.engine.recovery.verify()
        assert m.volume.journal.object("d/x") is None


async def test_spoilt_content_is_set_aside_while_it_is_copied(world: World, autojump_clock: object) -> None:
    """Content that turns out to be spoilt while a write copies it does not come back as the new content."""
    await _spoilt(world, b"." * 200_000, in_place=True)
    seam = HookSeam()
    async with world.mount("cut", seam=seam, boot="two", listing=False, upload=False, known=["damaged"]) as m:
        handle = await m.open("d/x", os.O_RDWR)
        seam.after["clone"] = m.engine.recovery.verify
        with pytest.raises(Damaged):
            await m.files.write(handle, 0, b"!")
        await m.close(handle)
        await m.refresh()
        assert await m.read("d/x") == b"good"


async def test_what_one_run_has_set_aside(world: World, autojump_clock: object) -> None:
    """A run knows what it has set aside, whatever is forgotten at its start: a rescue says that, and does not exit with 0."""
    await _spoilt(world)
    async with world.mount("cut", boot="two", upload=False, known=["damaged"]) as m:
        assert m.engine.recovery.set_aside == []
        await m.engine.recovery.verify()
        assert [damage.key for damage in m.engine.recovery.set_aside] == ["d/x"]
        await m.refresh()


async def test_a_name_that_is_forgotten_while_the_bucket_is_listed(world: World, autojump_clock: object) -> None:
    """Content that is set aside during a listing that has passed its name already: the name is not taken for absent."""
    await _spoilt(world)
    seam = HookSeam()
    async with world.mount("cut", seam=seam, boot="two", listing=False, upload=False, known=["damaged"]) as m:
        seam.after["objects"] = m.engine.recovery.verify
        await m.refresh()
        assert len(m.engine.status()["problems"]) == 1
        assert await m.read("d/x") == b"good"


async def test_a_directory_is_renamed_of_which_a_name_was_forgotten(world: World, autojump_clock: object) -> None:
    """What B2 has under a name that was forgotten moves with its directory."""
    await _spoilt(world)
    async with world.mount("cut", boot="two", listing=False, known=["damaged"]) as m:
        await m.node("d")
        await m.engine.recovery.verify()
        await m.rename("d", "e")
        await m.drained()
        await m.refresh()
        assert await m.names() == ["e"]
        assert await m.read("e/x") == b"good"


# ---------------------------------------------------------------- failures that must not stop the rest


async def test_the_disk_fails_while_content_is_set_aside(world: World, autojump_clock: object) -> None:
    """An error in the handling of an error stops no other upload, and the file is looked at again."""
    async with world.mount(known=["damaged"]) as m:
        world.bucket.gate.close("upload")
        await m.write("x", b"spoilt")
        await world.bucket.gate.waiting("upload")
        (world.state() / "staged" / str((await m.node("x")).inode.staged)).write_bytes(b"spoiLt")
        quarantine, failures = m.volume.disk.quarantine, [NoSpace("full")] * 2

        def failing(number: int) -> str:
            if failures:
                raise failures.pop()
            return quarantine(number)

        m.volume.disk.quarantine = failing  # type: ignore[method-assign]
        await m.write("y", b"1")
        world.bucket.gate.open()
        await m.idle()
        assert world.bucket.files() == {"y": b"1"}
        (problem,) = m.engine.status()["problems"]
        assert problem["key"] == "x"


async def test_no_number_can_be_drawn_for_an_upload(world: World, autojump_clock: object) -> None:
    """A journal without room for the next block of numbers delays an upload, and no more."""
    async with world.mount() as m:
        await m.write("x", b"1")
        draw, failures = m.volume.journal.next_number, [NoSpace("full")] * 3

        def failing() -> int:
            if failures:
                raise failures.pop()
            return draw()

        m.volume.journal.next_number = failing  # type: ignore[method-assign]
        await m.idle()
        assert failures == []
    assert world.bucket.files() == {"x": b"1"}


@pytest.mark.parametrize("call", ["secure", "sha1_of"])
async def test_content_that_cannot_be_read(world: World, call: str, autojump_clock: object) -> None:
    """A file that the disk does not give is tried again with pauses, and the status says why; nobody turns in circles."""
    seam = FailingSeam()
    async with world.mount(seam=seam) as m:
        if call == "sha1_of":
            world.bucket.faults += [Planted("upload", Damaged("I/O error")) for _ in range(20)]
        seam.fails[call] = Damaged("I/O error"), 20
        await m.write("x", b"1")
        await m.until(lambda: "I/O error" in m.volume.schedule.entries["x"].error)
        began = trio.current_time()
        await m.until(lambda: m.volume.schedule.entries["x"].attempts > 4)
        assert trio.current_time() > began
        world.bucket.mend()
        seam.fails.clear()
        await m.idle()
    assert world.bucket.files() == {"x": b"1"}


# ---------------------------------------------------------------- the journal fails


async def test_nothing_is_acknowledged_after_a_failed_sync(world: World, autojump_clock: object) -> None:
    """The kernel reports a failed fsync once: a second one that succeeds says nothing, so none is believed."""
    seam = FailingSeam()
    async with world.mount(seam=seam, upload=False, check=False) as m:
        await m.write("x", b"old")
        node = await m.node("x")
        await m.engine.content.seal(node)
        await m.volume.reaper.reap()
        old = node.inode.staged
        await m.write("x", b"new")
        await m.engine.content.seal(node)
        seam.fails["sync"] = ReadOnly("the disk failed"), 1
        root = await m.files.open_directory(1)
        with pytest.raises(ReadOnly):
            await m.files.sync_directory(root)
        with pytest.raises(ReadOnly):
            await m.files.sync_directory(root)
        with pytest.raises(ReadOnly):
            await m.volume.reaper.reap()
        assert (world.state() / "staged" / str(old)).exists(), "a power loss may bring back the row that names it"
        assert await m.read("x") == b"new"


async def test_fsync_of_a_file_that_is_sealed_in_a_hurry_meanwhile(world: World, autojump_clock: object) -> None:
    """What an fsync acknowledged is on stable storage, also if the file was frozen twice while it waited for the disk."""
    seam = HookSeam()
    async with world.mount(seam=seam, upload=False) as m:
        handle = await m.create("x")
        await m.files.write(handle, 0, b"1")
        node = await m.node("x")

        async def freeze_twice() -> None:
            m.engine.content._freeze(node, "")
            await m.files.write(handle, 1, b"2")
            m.engine.content._freeze(node, "")

        seam.before["fsync"] = freeze_twice
        await m.files.sync(handle)
        assert node.inode.synced == node.inode.unsealed > 0
        await m.close(handle)


async def test_rename_of_a_frozen_file_over_a_safe_one(world: World, autojump_clock: object) -> None:
    """A file that is frozen and not on stable storage is made so before it takes the name of one that is."""
    async with world.mount(upload=False) as m:
        await m.write("x", b"old")
        await m.engine.content.seal(await m.node("x"))
        await m.write("new", b"new")
        node = await m.node("new")
        m.engine.content._freeze(node, "")
        await m.rename("new", "x")
        assert node.inode.synced == node.inode.staged > 0


# ---------------------------------------------------------------- the disk is full


async def test_room_is_given_back_when_the_disk_fails(world: World, autojump_clock: object) -> None:
    """Content that could not be held for an upload, or not kept after it, does not count against the budget for ever."""
    seam = FailingSeam()
    async with world.mount(seam=seam) as m:
        seam.fails["staged_to_blob"] = NoSpace("full"), 1
        await m.write("x", b"x" * 1000)
        await m.idle()
        await m.volume.reaper.reap()
        assert m.volume.budget.used == 0
        await m.read("x")
        seam.fails["stage_blob"] = NoSpace("full"), 3
        await m.chmod("x", 0o600)
        await m.idle()
        assert m.volume.budget.used == 0
        seam.fails["make_staged"] = NoSpace("full"), 1
        await m.symlink("l", "x")
        await m.idle()


async def test_deleting_goes_on_after_the_disk_failed(world: World, autojump_clock: object) -> None:
    """A file that could not be deleted is deleted later, and so are those behind it."""
    seam = FailingSeam()
    async with world.mount(seam=seam, upload=False) as m:
        seam.fails["drop_staged"] = Damaged("I/O error"), 1
        seam.fails["sync_names"] = Damaged("I/O error"), 1
        for name in "aabbcc":
            await m.write(name, b"x" * 1000)
            await m.engine.content.seal(await m.node(name))
        await m.until(lambda: m.volume.budget.used == 3000, 120.0)


async def test_clean_bytes_give_way_to_a_file_that_is_changed(world: World, autojump_clock: object) -> None:
    """A disk that has no room for the copy of a file that is changed gets it from the cache, as for any other write."""
    seam = FailingSeam()
    world.bucket.put("x", b"x" * 1000)
    async with world.mount(seam=seam) as m:
        await m.read("x")
        seam.fails["copy_range"] = NoSpace("full"), 1
        await m.patch("x", 0, b"y")
        assert m.engine.cache.counters.evictions == 1
        await m.drained()
    assert world.bucket.content("x") == b"y" + b"x" * 999


# ---------------------------------------------------------------- the end


async def test_drain_ends_while_new_files_come(world: World, autojump_clock: object) -> None:
    """A program that makes new files all the time does not keep a drain from ending, nor is one of its files `left`."""
    upload = world.bucket.upload

    async def slow(key: str, *args: object) -> object:
        await trio.sleep(1.0)
        return await upload(key, *args)  # type: ignore[arg-type]

    world.bucket.upload = slow  # type: ignore[assignment, method-assign]
    async with world.mount() as m, trio.open_nursery() as nursery:
        await m.mkdir("d")
        await m.write("d/old", b"old")

        async def make() -> None:
            for number in itertools.count():
                await m.write(f"d/{number}", b"new")
                await trio.sleep(0.1)

        nursery.start_soon(make)
        await trio.sleep(1.0)
        before = len(await m.names("d"))
        began = trio.current_time()
        assert await m.engine.drain("", 60.0) == []
        assert trio.current_time() - began < 30.0
        assert len([key for key in world.bucket.files() if key.startswith("d/")]) >= before
        nursery.cancel_scope.cancel()


async def test_drain_follows_what_is_renamed_meanwhile(world: World, autojump_clock: object) -> None:
    """What was written before a drain is in B2 when it ends, under the names that it got since; deletions need not be."""
    async with world.mount() as m, trio.open_nursery() as nursery:
        await m.mkdir("d")
        await m.mkdir("d/empty")
        await m.write("d/x", b"1")
        await m.write("y", b"2")
        world.bucket.gate.close("upload")

        async def drain() -> None:
            assert await m.engine.drain("", 60.0) == []
            assert {"e/x", "z", "e/empty/.bzEmpty"} <= set(world.bucket.objects())

        nursery.start_soon(drain)
        await world.bucket.gate.waiting("upload", 4)
        await m.rename("d", "e")
        await m.rename("y", "z")
        world.bucket.gate.open()
