"""Named power cuts: each a moment at which another file system lost something, or this one did.

Rules
  `Cut.everywhere` cuts at one moment with every kind of luck, starts each of what is left, and checks that after a
  drain the bucket equals the tree. What is particular to a test is checked in each of those mounts first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from b2fs.core.inode import ROOT
from tests.engine.seams import HookSeam, InlineSeam, Killed
from tests.engine.test_history import check_bucket
from tests.engine.world import Mount, World
from tests.power.support import Layer, PowerPoint, PowerSeam, restart, sync, until_the_cut

pytestmark = pytest.mark.slow

OLD, NEW = b"old." * 3000, b"new!" * 4000
SEEDS = (None, *range(11))
Check = Callable[[Mount], Awaitable[None]]


class Cut:
    """A world on a disk whose power can be cut as often as one likes: each cut leaves a world of its own."""

    def __init__(self, layer: Layer, disk: Path) -> None:
        self._layer = layer
        self.disk = disk
        self.world = World(disk)

    def image(self, seed: int | None = None) -> Path:
        return self._layer.image(self.disk, seed)

    def world_at(self, place: Path) -> World:
        """What a restart finds there, with the bucket as it is now."""
        world, bucket = World(place), self.world.bucket
        world.now_ns = self.world.now_ns + 10**9
        world.bucket._stacks = {key: list(stack) for key, stack in bucket._stacks.items()}
        world.bucket._by_id = dict(bucket._by_id)
        world.bucket._now = bucket._now
        return world

    async def everywhere(self, check: Check) -> None:
        for seed in SEEDS:
            with self._layer.revived(self.image(seed)) as place:
                world = self.world_at(place)
                try:
                    async with restart(world) as m:
                        await check(m)
                        await m.drained()
                        await m.refresh()
                        check_bucket(world, await m.tree())
                except BaseException as error:
                    error.add_note(f"luck {seed}")
                    raise

    async def everywhere_with_cache(self, check: Check) -> None:
        """The same once the disk has written back the names of the cache."""
        for folder in (self.world.state() / "cache").iterdir():
            sync(folder)
        sync(self.world.state() / "cache")
        await self.everywhere(check)


@pytest.fixture
def cut(layer: Layer, disk: Path) -> Cut:
    return Cut(layer, disk)


async def write_synced(m: Mount, path: str, data: bytes) -> None:
    handle = await m.open(path, os.O_WRONLY | os.O_TRUNC) if await m.exists(path) else await m.create(path)
    await m.files.write(handle, 0, data)
    await m.files.sync(handle)
    await m.close(handle)


async def sync_directory(m: Mount, path: str = "") -> None:
    handle = await m.files.open_directory((await m.node(path)).ino)
    await m.files.sync_directory(handle)
    m.files.release(handle)


async def content(m: Mount, path: str) -> bytes | None:
    """Of a path, without asking B2 about names; None if it is not there."""
    node = await m.volume.resolve(path)
    if node is None:
        return None
    handle = await m.files.open(node.ino, os.O_RDONLY)
    found = bytes(await m.files.read(handle, 0, 1 << 40))
    m.files.release(handle)
    return found


def is_one_of(path: str, *allowed: bytes | None) -> Check:
    async def check(m: Mount) -> None:
        found = await content(m, path)
        assert found in allowed, found and found[:80]

    return check


# ---------------------------------------------------------------- fsync


async def test_fsync_is_enough(cut: Cut, autojump_clock: MockClock) -> None:
    """A file that was fsynced is there with content and mtime, though its directories never were."""
    async with cut.world.mount(upload=False) as m:
        await m.mkdir("d")
        await m.mkdir("d/e")
        await write_synced(m, "d/e/a", NEW)
        mtime_ns = (await m.node("d/e/a")).inode.mtime_ns

        async def check(after: Mount) -> None:
            assert await content(after, "d/e/a") == NEW
            node = await after.volume.resolve("d/e/a")
            assert node is not None and node.inode.mtime_ns == mtime_ns

        await cut.everywhere(check)


async def test_the_first_fsync_of_a_new_state_directory(layer: Layer, disk: Path, autojump_clock: MockClock) -> None:
    """The state directory itself, all of its folders and the journal are known to the disk before the first fsync returns."""
    cut = Cut(layer, disk)
    cut.world.root = disk / "made/by"
    cut.world.root.mkdir(parents=True)
    for path in (disk, disk / "made", cut.world.root):
        sync(path)
    async with cut.world.mount(upload=False) as m:
        await write_synced(m, "a", NEW)
        image = cut.image()
    with layer.revived(image) as place:
        async with restart(cut.world_at(place / "made/by"), upload=False) as m:
            assert await content(m, "a") == NEW


async def test_close_without_fsync(cut: Cut, autojump_clock: MockClock) -> None:
    """A new file that was only closed is whole or absent, an overwritten one whole, old or new."""
    async with cut.world.mount() as m:
        await m.write("old", OLD)
        await m.drained()
    async with cut.world.mount(upload=False) as m:
        await m.write("old", NEW)
        await m.write("new", NEW)

        async def check(after: Mount) -> None:
            assert await content(after, "old") in (OLD, NEW)
            assert await content(after, "new") in (NEW, None)

        await cut.everywhere(check)


async def test_what_went_is_reported(cut: Cut, autojump_clock: MockClock) -> None:
    """Content that the disk had not been asked to keep, of files whose names it had: named in status, kept where any is left."""
    async with cut.world.mount() as m:
        await m.write("old", OLD)
        await m.drained()
    async with cut.world.mount(upload=False) as m:
        await m.write("old", NEW)
        await m.write("new", NEW)
        await write_synced(m, "other", NEW)

        async def check(after: Mount) -> None:
            lost = {path for path in ("old", "new") if await content(after, path) != NEW}
            problems = after.engine.status()["problems"]
            assert {problem["key"] for problem in problems} == lost
            assert await content(after, "other") == NEW

        await cut.everywhere(check)


async def test_fsync_of_a_directory_keeps_its_names(cut: Cut, autojump_clock: MockClock) -> None:
    """mkdir, symlink, rename, unlink before fsync of a directory have happened for good."""
    async with cut.world.mount(upload=False) as m:
        await m.mkdir("d")
        await write_synced(m, "d/a", OLD)
        await write_synced(m, "d/gone", OLD)
        await m.rename("d/a", "d/b")
        await m.unlink("d/gone")
        await m.symlink("d/link", "b")
        await sync_directory(m, "d")

        async def check(after: Mount) -> None:
            journal = after.volume.journal
            assert {path for path, _ in journal.subtree(ROOT)} == {"d", "d/b", "d/link"}
            assert await content(after, "d/b") == OLD

        await cut.everywhere(check)


async def test_fsync_of_a_directory_keeps_its_files(cut: Cut, autojump_clock: MockClock) -> None:
    """A name that fsync of its directory acknowledged has the content that was closed before."""
    async with cut.world.mount(upload=False) as m:
        await m.write("a", NEW)
        await sync_directory(m)
        await cut.everywhere(is_one_of("a", NEW))


async def test_a_file_that_is_written_on_after_fsync(cut: Cut, autojump_clock: MockClock) -> None:
    """A recorder that fsyncs now and then and never closes: what it had fsynced is there, what comes after may be cut off
    or zero in places, as on any disk.
    """
    async with cut.world.mount(upload=False) as m:
        handle = await m.create("a")
        await m.files.write(handle, 0, OLD)
        await m.files.sync(handle)
        await m.files.write(handle, len(OLD), NEW)

        async def check(after: Mount) -> None:
            found = await content(after, "a") or b""
            assert found.startswith(OLD)
            assert len(found) <= len(OLD + NEW)
            assert all(byte in (0, wrote) for byte, wrote in zip(found[len(OLD) :], NEW, strict=False))

        await cut.everywhere(check)
        await m.close(handle)


# ---------------------------------------------------------------- replacing what fsync acknowledged


async def test_an_fsynced_file_is_overwritten(cut: Cut, autojump_clock: MockClock) -> None:
    """O_TRUNC and new content without fsync: the old content or the new, whole; also while it is still being written."""
    async with cut.world.mount(upload=False) as m:
        await write_synced(m, "a", OLD)
        handle = await m.open("a", os.O_WRONLY | os.O_TRUNC)
        await cut.everywhere(is_one_of("a", OLD, b""))
        await m.files.write(handle, 0, NEW)
        await m.close(handle)
        await cut.everywhere(is_one_of("a", OLD, NEW))


async def test_an_fsynced_file_is_overwritten_and_sealed(cut: Cut, autojump_clock: MockClock) -> None:
    """The same when the old content waits for its upload and the new one is on its way behind it."""
    async with cut.world.mount() as m:
        cut.world.bucket.gate.close("upload")
        await write_synced(m, "a", OLD)
        await cut.world.bucket.gate.waiting("upload")
        await m.write("a", NEW)
        await cut.everywhere(is_one_of("a", OLD, NEW))
        cut.world.bucket.gate.open()


async def test_an_fsynced_file_is_emptied_while_it_is_sealed(cut: Cut, autojump_clock: MockClock) -> None:
    """The file is being hashed for its upload, and a program opens it with O_TRUNC: the empty file that it is until the first
    write comes replaces nothing, neither on the disk nor in B2.
    """
    seam, handles = HookSeam(), []

    async def empty() -> None:
        handles.append(await m.open("a", os.O_WRONLY | os.O_TRUNC))

    async with cut.world.mount(seam=seam, max_dirty_age_s=1e6) as m:
        await write_synced(m, "a", OLD)
        seam.before["secure"] = empty
        await m.until(lambda: handles)
        await trio.sleep(5.0)
        await cut.everywhere(is_one_of("a", OLD))
        await m.files.write(handles[0], 0, NEW)
        await m.close(handles[0])
        await m.drained()
    assert [version and version.size for version in cut.world.bucket.versions("a")] == [len(NEW)]


async def test_rename_over_an_fsynced_file(cut: Cut, autojump_clock: MockClock) -> None:
    """temp + fsync + rename, as every careful program does: the old content or the new; after fsync of the directory the
    new. Never none, never the temporary name and no target.
    """
    async with cut.world.mount(upload=False) as m:
        await write_synced(m, "a", OLD)
        await write_synced(m, "a.tmp", NEW)
        await m.rename("a.tmp", "a")
        await cut.everywhere(is_one_of("a", OLD, NEW))
        await sync_directory(m)

        async def check(after: Mount) -> None:
            assert await content(after, "a") == NEW
            assert await content(after, "a.tmp") is None

        await cut.everywhere(check)


async def test_rename_over_by_a_file_that_was_never_fsynced(cut: Cut, autojump_clock: MockClock) -> None:
    """temp + rename without any fsync, as most programs do, over content that the disk has: the old content or the new."""
    async with cut.world.mount(upload=False) as m:
        await write_synced(m, "a", OLD)
        await m.write("a.tmp", NEW)
        await m.rename("a.tmp", "a")
        await cut.everywhere(is_one_of("a", OLD, NEW))
        await trio.sleep(2.0)  # for the reaper
        await cut.everywhere(is_one_of("a", OLD, NEW))


async def test_rename_over_with_uploads_between(cut: Cut, autojump_clock: MockClock) -> None:
    """The same while both versions go to B2: whatever the bucket has by then, the tree has the old content or the new."""
    async with cut.world.mount() as m:
        await write_synced(m, "a", OLD)
        await m.drained()
        await write_synced(m, "a.tmp", NEW)
        await m.idle()
        await m.rename("a.tmp", "a")
        await cut.everywhere(is_one_of("a", OLD, NEW))
        await m.idle()
        await cut.everywhere(is_one_of("a", OLD, NEW))


async def test_unlink_of_an_fsynced_file(cut: Cut, autojump_clock: MockClock) -> None:
    """Without fsync of the directory the file is there, whole, or gone; with it, gone."""
    async with cut.world.mount() as m:
        await write_synced(m, "a", OLD)
        await m.unlink("a")
        await cut.everywhere(is_one_of("a", OLD, None))
        await m.idle()
        await cut.everywhere(is_one_of("a", OLD, None))
        await sync_directory(m)
        await cut.everywhere(is_one_of("a", None))


# ---------------------------------------------------------------- the way into the bucket


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("call", ["secure", "sync_names", "sync"])
async def test_an_fsynced_file_is_being_sealed(cut: Cut, call: str, before: bool, autojump_clock: MockClock) -> None:
    """Before and after each call that waits for the disk on the way from scratch to staged: the content is there, once."""
    seam = HookSeam()
    async with cut.world.mount(seam=seam) as m:
        await write_synced(m, "a", NEW)
        cut.world.bucket.gate.close("upload")
        seen = []

        async def here() -> None:
            seen.append(1)
            await cut.everywhere(is_one_of("a", NEW))

        (seam.before if before else seam.after)[call] = here
        await m.until(lambda: seen)
        cut.world.bucket.gate.open()


async def test_a_sealed_file_needs_no_fsync(cut: Cut, autojump_clock: MockClock) -> None:
    """What was sealed for its upload is whole after a power loss, also if no program ever asked for that, once anything
    has put the journal on stable storage.
    """
    async with cut.world.mount() as m:
        cut.world.bucket.gate.close("upload")
        await m.write("a", NEW)
        await cut.world.bucket.gate.waiting("upload")
        await cut.everywhere(is_one_of("a", NEW, None))
        await sync_directory(m)
        await cut.everywhere(is_one_of("a", NEW))
        cut.world.bucket.gate.open()


async def test_names_are_written_back_before_the_journal(cut: Cut, autojump_clock: MockClock) -> None:
    """The disk has forgotten the names that were deleted, and not yet put away the journal that no longer needs them: what
    the older journal names is there all the same, once sealed under its new name, then replaced by sealed content.
    """
    scratch, staged = (cut.world.state() / folder for folder in ("scratch", "staged"))
    async with cut.world.mount() as m:
        cut.world.bucket.gate.close("upload")
        await write_synced(m, "a", OLD)
        await cut.world.bucket.gate.waiting("upload")
        await trio.sleep(2.0)  # for the reaper
        sync(scratch)
        await cut.everywhere(is_one_of("a", OLD))
        await m.write("a", NEW)
        await m.engine.draining.seal("a", m.engine.draining.mark())
        await trio.sleep(2.0)
        for folder in (scratch, staged):
            sync(folder)
        await cut.everywhere(is_one_of("a", OLD, NEW))
        cut.world.bucket.gate.open()


class Hasty:
    """A program that writes whenever the file is being hashed, so that `seal` freezes it first and hashes it then."""

    def __init__(self, m: Mount, seam: HookSeam, handle: int) -> None:
        self._m, self._seam, self._handle = m, seam, handle
        self.states = [b""]
        """What the file was after each write."""
        self.is_frozen = trio.Event()
        self.go_on = trio.Event()
        """Lets the hash of what is frozen begin."""

    async def write(self) -> None:
        await self._m.files.write(self._handle, len(self.states[-1]), NEW)
        self.states.append(self.states[-1] + NEW)
        if len(self.states) < 4:
            self._seam.after["secure"] = self.write
        else:
            self._seam.before["secure"] = self._frozen

    async def _frozen(self) -> None:
        self.is_frozen.set()
        await self.go_on.wait()


@pytest.mark.parametrize("acknowledge", ["file", "directory"])
async def test_fsync_of_a_file_that_is_frozen(cut: Cut, acknowledge: str, autojump_clock: MockClock) -> None:
    """The file was frozen and is not hashed yet: fsync, of it or its directory, holds all the same."""
    seam = HookSeam()
    async with cut.world.mount(seam=seam) as m:
        handle = await m.create("a")
        program = Hasty(m, seam, handle)
        await program.write()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.drained)
            await program.is_frozen.wait()
            assert not (await m.node("a")).inode.scratch
            if acknowledge == "file":
                await m.files.sync(handle)
            else:
                await sync_directory(m)
            await cut.everywhere(is_one_of("a", program.states[-1]))
            program.go_on.set()
        await m.close(handle)


async def test_an_fsynced_file_is_overwritten_and_frozen(cut: Cut, autojump_clock: MockClock) -> None:
    """The same for a file whose old content was fsynced, without another fsync: the old content, or a whole new one."""
    seam = HookSeam()
    async with cut.world.mount(seam=seam) as m:
        await write_synced(m, "a", OLD)
        handle = await m.open("a", os.O_RDWR | os.O_TRUNC)
        program = Hasty(m, seam, handle)
        await program.write()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.drained)
            await program.is_frozen.wait()
            await trio.sleep(2.0)  # for the reaper
            await cut.everywhere(is_one_of("a", OLD, *program.states[1:]))
            program.go_on.set()
        await m.close(handle)


async def test_a_stop_does_not_make_frozen_content_safe(cut: Cut, autojump_clock: MockClock) -> None:
    """The daemon ended in order, but before frozen content was hashed: after a power loss it is distrusted like any other."""
    seam = HookSeam()
    async with cut.world.mount(seam=seam, check=False) as m:
        handle = await m.create("a")
        program = Hasty(m, seam, handle)
        await program.write()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.engine.drain)
            await program.is_frozen.wait()
            nursery.cancel_scope.cancel()
        await m.close(handle)
    await cut.everywhere(is_one_of("a", None, *program.states[1:]))


async def test_a_checkpoint_comes_between(cut: Cut, autojump_clock: MockClock) -> None:
    """What an fsync had acknowledged is there after a checkpoint, and after the commits that begin the log anew behind it."""
    async with cut.world.mount() as m:
        await write_synced(m, "a", OLD)
        m.volume.journal.checkpoint()
        await write_synced(m, "b", NEW)

        async def check(after: Mount) -> None:
            assert (await content(after, "a"), await content(after, "b")) == (OLD, NEW)

        await cut.everywhere(check)


async def test_a_confirmed_upload(cut: Cut, autojump_clock: MockClock) -> None:
    """Right after B2 confirmed an fsynced file: it is there, and is not uploaded a second time."""
    async with cut.world.mount() as m:
        await write_synced(m, "a", NEW)
        await m.until(lambda: "a" in cut.world.bucket.objects())
        await m.until(lambda: "a" not in m.dirty())

        async def check(after: Mount) -> None:
            assert await content(after, "a") == NEW
            await after.drained()
            bucket = after.volume.bucket
            assert isinstance(bucket, type(cut.world.bucket))
            assert len(bucket.versions("a")) == 1, "it was adopted"

        await cut.everywhere(check)


async def _read_anew(m: Mount, size: int) -> bytes:
    """Have a file ``a`` of this size, fetched into the cache; its content."""
    whole = (OLD * (size // len(OLD) + 1))[:size]
    await m.write("a", whole)
    await m.drained()
    await m.volume.reaper.reap()
    m.engine.cache._evict(1 << 40)
    assert await m.read("a") == whole
    await m.engine.cache.settle()
    await sync_directory(m)
    return whole


@pytest.mark.parametrize("size", [len(OLD), 5 << 20])
async def test_the_cache_may_be_anything(cut: Cut, size: int, autojump_clock: MockClock) -> None:
    """The cache owes nobody durability: a name that the disk has written back, with content that it has not, or only some
    pages of it, is never shown.
    """
    async with cut.world.mount() as m:
        whole = await _read_anew(m, size)
        await cut.everywhere_with_cache(is_one_of("a", whole))


@pytest.mark.parametrize("size", [len(OLD), 5 << 20])
async def test_the_cache_after_a_stop(cut: Cut, size: int, autojump_clock: MockClock) -> None:
    """The same if the daemon had ended in order a moment before the power went: the disk had not written back more for that."""
    async with cut.world.mount() as m:
        whole = await _read_anew(m, size)
    await cut.everywhere_with_cache(is_one_of("a", whole))


async def test_the_cache_on_a_machine_without_a_clock(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The same if the machine believes after the power loss that it is 1970, as one without a battery does."""
    async with cut.world.mount() as m:
        whole = await _read_anew(m, 5 << 20)
        monkeypatch.setattr("b2fs.engine.cache.time.time", lambda: 60.0)
        await cut.everywhere_with_cache(is_one_of("a", whole))


async def test_a_flush_that_was_acknowledged(cut: Cut, autojump_clock: MockClock) -> None:
    """What flush brought into B2 is there, and nothing older comes back over it, though no program ever called fsync."""
    async with cut.world.mount() as m:
        await m.mkdir("d")
        await write_synced(m, "d/a", OLD)
        await m.write("d/b", OLD)
        await m.write("d/a", NEW)
        await m.rename("d/b", "d/c")
        await m.drained()

        async def check(after: Mount) -> None:
            await after.drained()
            await after.refresh()
            assert await after.read("d/a") == NEW
            assert await after.read("d/c") == OLD
            assert not await after.exists("d/b")

        await cut.everywhere(check)


# ---------------------------------------------------------------- damage


async def _with_staged(layer: Layer, cut: Cut) -> tuple[Path, Path]:
    """A state directory in which NEW waits for its upload as ``a``, and its only staged file."""
    async with cut.world.mount() as m:
        cut.world.bucket.gate.close("upload")
        await write_synced(m, "a", NEW)
        await cut.world.bucket.gate.waiting("upload")
        await m.until(lambda: os.listdir(cut.world.state() / "scratch") == [])
        image = layer.new_image()
        shutil.copytree(cut.world.state(), image / "state")
    (file,) = (image / "state/staged").iterdir()
    assert file.read_bytes() == NEW
    return image, file


@pytest.mark.parametrize("is_in_b2", [True, False])
async def test_a_damaged_staged_file(layer: Layer, cut: Cut, is_in_b2: bool, autojump_clock: MockClock) -> None:
    """A byte of staged content has flipped: it is set aside and reported, never uploaded; the file has its version in B2
    again, or is gone if there is none.
    """
    if is_in_b2:
        async with cut.world.mount() as m:
            await m.write("a", OLD)
            await m.drained()
    image, file = await _with_staged(layer, cut)
    middle = len(NEW) // 2
    damaged = NEW[:middle] + bytes([NEW[middle] ^ 0x20]) + NEW[middle + 1 :]
    file.write_bytes(damaged)
    with layer.revived(image) as place:
        world = cut.world_at(place)
        versions = [version and version.sha1 for version in world.bucket.versions("a")]
        async with restart(world, serve=True) as m:
            await m.until(lambda: m.engine.status()["problems"])
            (problem,) = m.engine.status()["problems"]
            assert problem["key"] == "a"
            assert "SHA-1" in problem["why"]
            await m.until(lambda: m.engine.listing.complete)
            await m.drained()
            if is_in_b2:
                assert await m.read("a") == OLD
            else:
                assert not await m.exists("a")
            check_bucket(world, await m.tree())
        assert [version and version.sha1 for version in world.bucket.versions("a")] == versions, "nothing was uploaded"
        kept = [file.read_bytes() for file in (place / "state/quarantine").iterdir()]
        assert kept == [damaged]


async def test_a_short_staged_file(layer: Layer, cut: Cut, autojump_clock: MockClock) -> None:
    """A staged file that lost its end is set aside too, before anybody reads or uploads it."""
    image, file = await _with_staged(layer, cut)
    os.truncate(file, 5000)
    with layer.revived(image) as place:
        world = cut.world_at(place)
        async with restart(world) as m:
            await m.drained()
            assert [problem["key"] for problem in m.engine.status()["problems"]] == ["a"]
            assert not await m.exists("a")
        assert world.bucket.files() == {}


@pytest.mark.parametrize("end", ["cut off", "zeros", "old"])
async def test_a_torn_journal(layer: Layer, cut: Cut, end: str, autojump_clock: MockClock) -> None:
    """The log ends at any sector of its last commits, or goes on with zeros or something older: every start finds the
    names up to some commit, and what was fsynced before.
    """
    async with cut.world.mount(upload=False) as m:
        await write_synced(m, "a", NEW)
        log = cut.world.state() / "journal.db-wal"
        synced = log.stat().st_size
        for number in range(2):
            await m.mkdir(f"d{number}")
        whole = shutil.copytree(cut.world.state(), layer.new_image() / "state")  # all that was written, synced or not
    data, found = (whole / log.name).read_bytes(), set()
    assert len(data) > synced + 2 * 4096
    for at in [*range(synced, len(data), 512), len(data)]:
        tail = {"cut off": b"", "zeros": bytes(len(data) - at), "old": data[: len(data) - at]}[end]
        with layer.directory() as place:
            shutil.copytree(whole, place / "state")
            (place / "state" / log.name).write_bytes(data[:at] + tail)
            async with restart(cut.world_at(place), upload=False) as m:
                names = {path for path, _ in m.volume.journal.subtree(ROOT)}
                assert await content(m, "a") == NEW
        assert names == {"a", *[f"d{number}" for number in range(len(names) - 1)]}
        found.add(len(names) - 1)
    assert found == {0, 1, 2}
    shutil.rmtree(whole.parent)


# ---------------------------------------------------------------- the start itself


async def test_the_power_goes_after_a_kill(layer: Layer, cut: Cut, autojump_clock: MockClock) -> None:
    """SIGKILL, a start, and the power goes before that start has asked the disk for anything: what the killed run had
    acknowledged is there, though the start found newer things that the disk had not written back.
    """
    try:
        async with cut.world.mount(check=False) as m:
            cut.world.bucket.gate.close("upload")
            for path in ("a", "b"):
                await write_synced(m, path, OLD)
            await write_synced(m, "b.tmp", NEW)
            await cut.world.bucket.gate.waiting("upload", 3)
            await m.write("a", NEW)
            await m.engine.draining.seal("a", m.engine.draining.mark())
            await m.rename("b.tmp", "b")
            layer.kill()
            raise Killed
    except* Killed:
        layer.fail()
        cut.world.bucket.gate.open()
    seam, seen = HookSeam(), []

    async def here() -> None:
        for path in ("a", "b"):
            await cut.everywhere(is_one_of(path, OLD, NEW))
        seen.append(1)

    seam.before["sync_root"] = here
    async with cut.world.mount(seam=seam, upload=False, check=False):
        assert seen


async def test_the_power_goes_during_the_first_start(layer: Layer, autojump_clock: MockClock) -> None:
    """At any change of the disk while a state directory is made: the next start works, and its fsync holds."""
    at, came = 1, True
    while came:
        with layer.directory() as disk:
            world = World(disk)
            point = PowerPoint(layer, disk)
            seed = None if at % 3 == 1 else at

            async def first(
                world: World = world, point: PowerPoint = point, at: int = at, seed: int | None = seed
            ) -> None:
                point.arm(at, seed)
                async with world.mount(seam=PowerSeam(point), check=False):
                    pass

            came = await until_the_cut(world, point, first, seed)
        with layer.revived(point.image) as world.root:
            async with restart(world, seam=InlineSeam()) as m:
                await write_synced(m, "a", NEW)
                assert await m.read("a") == NEW
        at += 4
    assert at > 60
