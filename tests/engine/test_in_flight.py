"""Changes while an upload is under way, and answers that got lost: last one wins, nothing twice, no zombie."""

from __future__ import annotations

import itertools
import os

import pytest
import trio

from tests.engine.seams import HookSeam
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

pytestmark = pytest.mark.parametrize("order", range(4), indirect=True)

LARGE = 300 * 1024
"""Bytes: copied and hashed in a thread, so that others get in between."""


async def _held_upload(world: World, m: Mount, path: str, data: bytes) -> None:
    """Write a file and have its upload held by the bucket's gate."""
    world.bucket.gate.close("upload")
    await m.write(path, data)
    await world.bucket.gate.waiting("upload")


async def test_write_during_its_upload(world: World, autojump_clock: object) -> None:
    """Both generations get to the bucket, in their order, without anything else happening."""
    async with world.mount() as m:
        await _held_upload(world, m, "x", b"first")
        await m.write("x", b"second!")
        assert await m.read("x") == b"second!"
        world.bucket.gate.open()
        await m.idle()
        assert await m.read("x") == b"second!"
    assert [world.bucket._by_id[version.file_id].data for version in world.bucket.versions("x") if version] == [
        b"first",
        b"second!",
    ]


async def test_patch_during_its_upload(world: World, autojump_clock: object) -> None:
    """The version under way is the sealed one, untouched by a write that comes meanwhile."""
    data = os.urandom(LARGE)
    async with world.mount() as m:
        await _held_upload(world, m, "x", data)
        await m.patch("x", 10, b"patch")
        world.bucket.gate.open()
        await m.idle()
        patched = data[:10] + b"patch" + data[15:]
        assert await m.read("x") == patched
    first, second = (version for version in world.bucket.versions("x") if version)
    assert world.bucket._by_id[first.file_id].data == data
    assert world.bucket._by_id[second.file_id].data == patched


async def test_confirmed_while_it_is_cloned(world: World, autojump_clock: object) -> None:
    """A write whose clone begins as the upload is just confirmed finds the content in its new place."""
    data = os.urandom(LARGE)
    seam = HookSeam()
    async with world.mount(seam=seam) as m:
        await _held_upload(world, m, "x", data)

        async def confirmed() -> None:
            world.bucket.gate.open()
            node = await m.node("x")
            await m.until(lambda: not node.inode.staged)

        seam.before["clone"] = confirmed
        await m.patch("x", 0, b"patch")
        assert await m.read("x") == b"patch" + data[5:]
        await m.drained()
    assert world.bucket.content("x") == b"patch" + data[5:]


async def test_unlink_during_its_upload(world: World, autojump_clock: object) -> None:
    """The version that arrives late is hidden; nothing stays visible or on the disk."""
    async with world.mount() as m:
        await _held_upload(world, m, "x", b"content")
        await m.unlink("x")
        world.bucket.gate.open()
        await m.idle(100.0)
    assert world.bucket.files() == {}


async def test_unlink_between_upload_and_confirmation(world: World, autojump_clock: object) -> None:
    """Unlinked when the bucket has the bytes and we do not know it yet: hidden right after, without a bug in the log."""
    async with world.mount() as m:
        await m.write("x", b"content")
        held = trio.Event()
        upload = world.bucket.upload

        async def slow(*args: object) -> object:
            version = await upload(*args)  # type: ignore[arg-type]
            await held.wait()
            return version

        world.bucket.upload = slow  # type: ignore[assignment, method-assign]
        await m.until(lambda: world.bucket.versions("x"))
        await m.unlink("x")
        held.set()
        await m.idle(100.0)
    assert world.bucket.files() == {}


async def test_unlink_while_it_is_sealed(world: World, autojump_clock: object) -> None:
    """Unlinked while its bytes are hashed: nothing is uploaded, nothing is left, no bug in the log."""
    seam = HookSeam()
    async with world.mount(seam=seam) as m:
        await m.write("x", os.urandom(LARGE))
        seam.after["secure"] = lambda: m.unlink("x")
        await m.idle(100.0)
    assert world.bucket.calls() == []


async def test_unlink_before_it_is_hashed(world: World, autojump_clock: object) -> None:
    """The same when the file is gone before the thread opens it."""
    seam = HookSeam()
    async with world.mount(seam=seam) as m:
        await m.write("x", os.urandom(LARGE))
        seam.before["secure"] = lambda: m.unlink("x")
        await m.idle(100.0)
    assert world.bucket.calls() == []


async def test_rename_during_its_upload(world: World, autojump_clock: object) -> None:
    """The content ends under its new name, the old one is hidden after that."""
    async with world.mount() as m:
        await _held_upload(world, m, "a", b"content")
        await m.rename("a", "b")
        world.bucket.gate.open()
        await m.idle()
        assert await m.read("b") == b"content"
    assert world.bucket.files() == {"b": b"content"}
    calls = world.bucket.calls("upload", "copy", "hide")
    assert calls[-1] == ("hide", "a")


async def test_rename_while_it_is_sealed(world: World, autojump_clock: object) -> None:
    """Renamed while its bytes are hashed: uploaded under the new name alone."""
    seam = HookSeam()
    data = os.urandom(LARGE)
    async with world.mount(seam=seam) as m:
        await m.write("a", data)
        seam.after["secure"] = lambda: m.rename("a", "b")
        await m.idle()
    assert world.bucket.files() == {"b": data}
    assert ("upload", "a") not in world.bucket.log


async def test_write_while_it_is_sealed(world: World, autojump_clock: object) -> None:
    """Bytes that come while the file is hashed are in what is uploaded last."""
    seam = HookSeam()
    data = os.urandom(LARGE)
    async with world.mount(seam=seam) as m:
        await m.write("x", data)
        seam.after["secure"] = lambda: m.patch("x", 0, b"late!")
        await m.idle()
    assert world.bucket.content("x") == b"late!" + data[5:]


async def test_file_that_is_written_all_the_time_gets_to_the_bucket(world: World, autojump_clock: object) -> None:
    """A large file that changes during every hash is uploaded as of some moment all the same."""

    class Restless(HookSeam):
        handle = 0

        async def thread(self, call, *args):  # type: ignore[no-untyped-def]
            if call.__name__ == "sha1_of" and self.handle:
                await m.files.write(self.handle, 0, os.urandom(8))
            return await super().thread(call, *args)

    seam = Restless()
    async with world.mount(seam=seam, max_dirty_age_s=10.0) as m:
        seam.handle = handle = await m.create("x")
        await m.files.write(handle, 0, os.urandom(LARGE))
        for _ in range(100):
            await m.files.write(handle, LARGE - 8, os.urandom(8))
            await trio.sleep(1.0)
        assert "x" in world.bucket.objects()
        seam.handle = 0
        await m.close(handle)
        await m.drained()
        assert await m.read("x") == world.bucket.content("x")


async def test_chmod_during_its_upload(world: World, autojump_clock: object) -> None:
    """Attributes that change meanwhile make the next version."""
    async with world.mount() as m:
        await _held_upload(world, m, "x", b"content")
        await m.chmod("x", 0o600)
        world.bucket.gate.open()
        await m.idle()
    assert len(world.bucket.versions("x")) == 2
    assert (await world.seen_by_another())["x"].mode == 0o100600


async def test_made_again_while_it_is_hidden(world: World, autojump_clock: object) -> None:
    """A new file under a name whose hide is under way is visible in the end."""
    world.bucket.put("x", b"old")
    async with world.mount() as m:
        world.bucket.gate.close("hide")
        await m.unlink("x")
        await world.bucket.gate.waiting("hide")
        await m.write("x", b"new")
        world.bucket.gate.open()
        await m.idle()
    assert world.bucket.files() == {"x": b"new"}


# ---------------------------------------------------------------- lost answers


async def test_lost_answer_of_an_upload_is_adopted(world: World, autojump_clock: object) -> None:
    """The upload took effect and its answer was lost: the version is found, not made twice."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"content")
        await m.idle()
        assert m.engine.uploader.counters.adopted == 1
        assert await m.read("x") == b"content"
    assert len(world.bucket.versions("x")) == 1


async def test_lost_answer_of_a_copy_is_adopted(world: World, autojump_clock: object) -> None:
    """The same for a copy; the old name is hidden once."""
    world.bucket.put("a", bytes(9 << 20))
    async with world.mount() as m:
        world.bucket.faults.append(Planted("copy", DOWN, "b", after=True))
        await m.rename("a", "b")
        await m.idle()
    assert len(world.bucket.versions("b")) == 1
    assert world.bucket.calls("copy", "hide") == [("copy", "b"), ("hide", "a")]


async def test_lost_answer_of_a_hide(world: World, autojump_clock: object) -> None:
    """A hide that took effect unheard is no error and not done twice."""
    world.bucket.put("x", b"1")
    async with world.mount() as m:
        world.bucket.faults.append(Planted("hide", DOWN, "x", after=True))
        await m.unlink("x")
        await m.idle()
    assert world.bucket.versions("x")[1:] == [None]


async def test_lost_answer_of_a_hide_then_back(world: World, autojump_clock: object) -> None:
    """a→b, the hide of a took effect unheard, b→a: a is visible in the bucket again, though it seemed to be in line."""
    world.bucket.put("a", b"content")
    async with world.mount() as m:
        world.bucket.faults.append(Planted("hide", DOWN, "a", after=True))
        await m.rename("a", "b")
        await m.until(lambda: world.bucket.versions("a")[1:] == [None])
        await m.rename("b", "a")
        await m.idle()
        assert await m.read("a") == b"content"
    assert world.bucket.files() == {"a": b"content"}


async def test_lost_answer_of_an_upload_then_back(world: World, autojump_clock: object) -> None:
    """Other content took effect unheard, then the file became what it was: so it is in the bucket, too."""
    async with world.mount() as m:
        await m.write("x", b"first")
        await m.utime("x", 1)
        await m.idle()
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"other")
        await m.until(lambda: world.bucket.content("x") == b"other")
        await m.write("x", b"first")
        await m.utime("x", 1)
        await m.idle()
    assert world.bucket.content("x") == b"first"


async def test_lost_answer_then_other_content_of_the_same_size(world: World, autojump_clock: object) -> None:
    """An unheard version is not taken for a later content of equal length."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"first")
        await m.until(lambda: world.bucket.versions("x"))
        await m.write("x", b"other")
        await m.idle()
        assert await m.read("x") == b"other"
    assert world.bucket.content("x") == b"other"


async def test_lost_answer_then_other_attributes(world: World, autojump_clock: object) -> None:
    """A chmod after an unheard upload gets to the bucket."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"first")
        await m.until(lambda: world.bucket.versions("x"))
        await m.chmod("x", 0o600)
        await m.idle()
    assert (await world.seen_by_another())["x"].mode == 0o100600


async def test_lost_answer_then_another_file_of_the_same_size(world: World, autojump_clock: object) -> None:
    """The same when the file was deleted and another one made under its name."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"first")
        await m.until(lambda: world.bucket.versions("x"))
        await m.unlink("x")
        await m.write("x", b"other")
        await m.idle()
    assert world.bucket.content("x") == b"other"


async def test_lost_answer_then_link_to_another_target(world: World, autojump_clock: object) -> None:
    """A symlink that is replaced by one of equal length after an unheard upload points to the new target."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "l", after=True))
        await m.symlink("l", "one")
        await m.until(lambda: world.bucket.versions("l"))
        await m.unlink("l")
        await m.symlink("l", "two")
        await m.idle()
    assert (await world.seen_by_another())["l"].content == b"two"


@pytest.mark.parametrize("restart", [False, True])
async def test_lost_answer_then_unlink(world: World, autojump_clock: object, restart: bool) -> None:
    """A file deleted after an unheard upload does not stay in the bucket, also if the daemon restarts in between."""
    async with world.mount(check=False) as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"content")
        await m.until(lambda: world.bucket.versions("x"))
        await m.unlink("x")
        if not restart:
            await m.idle()
    async with world.mount(listing=False) as m:
        await m.drained()
    assert world.bucket.files() == {}


async def test_lost_answer_then_rename(world: World, autojump_clock: object) -> None:
    """A file renamed after an unheard upload does not stay under its old name."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "a", after=True))
        await m.write("a", b"content")
        await m.until(lambda: world.bucket.versions("a"))
        await m.rename("a", "b")
        await m.idle()
    assert world.bucket.files() == {"b": b"content"}


async def test_lost_answer_then_directory_rename(world: World, autojump_clock: object) -> None:
    """The same when its directory is renamed."""
    async with world.mount() as m:
        await m.mkdir("d")
        world.bucket.faults.append(Planted("upload", DOWN, "d/x", after=True))
        await m.write("d/x", b"content")
        await m.until(lambda: world.bucket.versions("d/x"))
        await m.rename("d", "e")
        await m.idle()
    assert world.bucket.files() == {"e/x": b"content"}


# ---------------------------------------------------------------- faults


async def test_passing_faults_are_retried(world: World, autojump_clock: object) -> None:
    """An upload that fails ten times gets there in the end, with pauses that grow, and nobody else needs to act."""
    async with world.mount() as m:
        times: list[float] = []
        world.bucket.faults += [Planted("upload", DOWN, "x") for _ in range(10)]
        upload = world.bucket.upload

        async def timed(*args: object) -> object:
            if args[0] == "x":
                times.append(trio.current_time())
            return await upload(*args)  # type: ignore[arg-type]

        world.bucket.upload = timed  # type: ignore[assignment, method-assign]
        await m.write("x", b"content")
        await trio.sleep(30.0)  # let the root's marker be done: it would wake the loop
        await m.idle()
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(pauses) == 10
        assert max(pauses) > 4 * max(pauses[:3])
    assert world.bucket.files() == {"x": b"content"}


async def test_unreachable_bucket_stops_nobody(world: World, autojump_clock: object) -> None:
    """While B2 is down everything can be written, read back, renamed and deleted; afterwards it all gets there."""
    world.bucket.put("known", b"1")
    async with world.mount() as m:
        world.bucket.down = True
        await m.mkdir("d")
        await m.write("d/x", b"content")
        await m.rename("d/x", "d/y")
        await m.unlink("known")
        await trio.sleep(1000.0)
        assert await m.read("d/y") == b"content"
        assert not await m.exists("known")
        world.bucket.down = False
        await m.idle()
    assert world.bucket.files() == {"d/y": b"content"}


async def test_open_unlinked_file(world: World, autojump_clock: object) -> None:
    """It stays readable and writable through its handle, is never uploaded, and leaves nothing."""
    world.bucket.put("old", b"of the bucket")
    async with world.mount() as m:
        new = await m.create("new")
        await m.files.write(new, 0, b"content")
        old = await m.open("old", os.O_RDWR)
        await m.unlink("new")
        await m.unlink("old")
        await m.idle()
        await m.files.write(new, 7, b" goes on")
        assert await m.files.read(new, 0, 100) == b"content goes on"
        assert await m.files.read(old, 0, 100) == b"of the bucket"
        await m.files.write(old, 0, b"OF")
        assert await m.files.read(old, 0, 100) == b"OF the bucket"
        await m.close(new)
        await m.close(old)
        await m.idle()
    assert world.bucket.files() == {}
    assert world.bucket.calls("upload", "copy", "hide") == [("hide", "old")]


async def test_open_unlinked_after_sealing(world: World, autojump_clock: object) -> None:
    """The same for a file whose content was sealed and uploaded under a name that is gone."""
    async with world.mount() as m:
        handle = await m.create("x")
        await m.files.write(handle, 0, b"content")
        await m.drained()
        await m.files.write(handle, 0, b"CON")
        await m.unlink("x")
        assert await m.files.read(handle, 0, 100) == b"CONtent"
        await m.close(handle)
        await m.idle()
    assert world.bucket.files() == {}


async def test_opened_under_a_name_that_went(world: World, autojump_clock: object) -> None:
    """Whoever looked a file up before it was replaced opens and reads it whole; its bytes go when the kernel forgets it."""
    async with world.mount() as m:
        await m.write("x", b"old content")
        old = await m.node("x")
        old.lookups += 1  # as the front end does for the kernel
        await m.write("new", b"new")
        await m.rename("new", "x")
        handle = await m.files.open(old.ino, os.O_RDONLY)
        assert bytes(await m.files.read(handle, 0, 100)) == b"old content"
        await m.close(handle)
        handle = await m.files.open(old.ino, os.O_RDONLY)
        assert bytes(await m.files.read(handle, 0, 100)) == b"old content"
        await m.close(handle)
        m.files.forget(old.ino, 1)
        assert m.volume.budget.used == len(b"new")
        assert await m.read("x") == b"new"


async def test_own_version_is_listed_before_its_answer(
    world: World, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    """A listing that shows our own upload before we heard of it reports no change by others, and nothing goes up twice."""
    async with world.mount() as m:
        world.bucket.breaks_after = "upload"
        await m.write("x", b"ours")
        await m.until(lambda: world.bucket.down)
        world.bucket.mend()
        await m.refresh()
        await m.drained()
    assert "changed in the bucket" not in caplog.text
    assert len(world.bucket.versions("x")) == 1


async def test_old_name_is_confirmed_after_the_new_one(world: World, autojump_clock: object) -> None:
    """A file renamed during its upload, whose new name is in B2 first, leaves nothing at the old name, and a drain ends."""
    answer, original = trio.Event(), world.bucket.upload

    async def upload(key: str, *rest: object) -> object:
        version = await original(key, *rest)
        if key == "old":
            await answer.wait()
        return version

    async with world.mount() as m:
        world.bucket.upload = upload
        await m.write("old", b"content")
        await m.until(lambda: world.bucket.versions("old"))
        await m.rename("old", "new")
        await m.until(lambda: world.bucket.versions("new") and "new" not in m.dirty())
        answer.set()
        await m.drained()
    assert world.bucket.files() == {"new": b"content"}
