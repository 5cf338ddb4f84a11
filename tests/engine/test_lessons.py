"""What users of other mounts lost, and what the queue promises, where no other module shows it yet."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import trio

from b2fs.core.policy import Patterns
from b2fs.errors import BucketError, Fault, Unavailable
from tests.engine.world import DOWN, Mount, World
from tests.fakes.bucket import Planted

LARGE = 9 * 1024 * 1024
"""Bytes: more than what is uploaded again rather than copied."""


def _slow_uploads(world: World, seconds: float) -> list[tuple[float, str]]:
    """Let each upload take its time; when it ended, and its key."""
    done: list[tuple[float, str]] = []
    upload = world.bucket.upload

    async def slow(key: str, *args: object) -> object:
        await trio.sleep(seconds)
        version = await upload(key, *args)  # type: ignore[arg-type]
        done.append((trio.current_time(), key))
        return version

    world.bucket.upload = slow  # type: ignore[assignment, method-assign]
    return done


# ---------------------------------------------------------------- the queue


async def test_first_in_first_out(world: World, autojump_clock: object) -> None:
    """A backlog is uploaded in the order in which its files came to rest, whatever comes later."""
    done = _slow_uploads(world, 1.0)
    async with world.mount(uploads=1) as m:
        for number in range(40):
            await m.write(f"{number:02}", b"x")
            await trio.sleep(0.1)
        await m.idle()
    assert [key for _, key in done if not key.endswith(".bzEmpty")] == [f"{number:02}" for number in range(40)]


async def test_nobody_starves(world: World, autojump_clock: object) -> None:
    """A file that is rewritten all the time, and a flood of new ones, keep nobody back: each file gets there within its
    greatest age and the time that those before it need.
    """
    done = _slow_uploads(world, 0.5)
    async with world.mount(uploads=2, max_dirty_age_s=20.0) as m:
        began = trio.current_time()
        written: dict[str, float] = {}
        for number in range(120):
            written[f"new{number}"] = trio.current_time()
            await m.write(f"new{number}", b"x")
            await m.write("hot", b"%d" % number)
            await trio.sleep(0.5)
        await m.idle()
    first_done = {key: when for when, key in reversed(done)}
    assert max(first_done[key] - when for key, when in written.items()) < 20.0 + 2.0
    hot = [when for when, key in done if key == "hot"]
    assert hot[0] - began < 20.0 + 2.0
    assert max(b - a for a, b in itertools.pairwise(hot)) < 20.0 + 2.0


async def test_rewritten_faster_than_its_upload(world: World, autojump_clock: object) -> None:
    """A file that changes every second while its upload takes twenty gets to B2 again and again, always whole."""
    done = _slow_uploads(world, 20.0)
    async with world.mount(max_dirty_age_s=60.0) as m:
        contents = set()
        for number in range(300):
            content = b"%06d" % number * 100
            contents.add(content)
            await m.write("x", content)
            await trio.sleep(1.0)
        versions = [world.bucket._by_id[version.file_id].data for version in world.bucket.versions("x") if version]
        await m.drained()
    assert len(versions) >= 3 and set(versions) <= contents
    times = [when for when, key in done if key == "x"]
    assert max(b - a for a, b in itertools.pairwise([0.0, *times])) <= 60.0 + 20.0 + 2.0


async def test_oldest_age_is_that_of_the_first_change(world: World, autojump_clock: object) -> None:
    """The metric to alert on: how long the oldest change has been waiting."""
    async with world.mount(upload=False) as m:
        assert m.engine.dirty()["oldest_age_s"] == 0.0
        await m.write("a", b"1")
        world.now_ns += 90 * 10**9
        await m.write("b", b"1")
        assert m.engine.dirty()["oldest_age_s"] == 90.0


async def test_drain_ends_while_a_program_goes_on_writing(world: World, autojump_clock: object) -> None:
    """What was written before it is in B2 when a drain says so; a file that changes all the time does not keep it."""
    _slow_uploads(world, 1.0)
    async with world.mount() as m, trio.open_nursery() as nursery:
        written = [0]

        async def write() -> None:
            handle = await m.create("log")
            while True:
                await m.files.write(handle, written[0] * 4, b"%03d\n" % (written[0] % 1000))
                written[0] += 1
                await trio.sleep(0.01)

        nursery.start_soon(write)
        await m.write("other", b"other")
        await trio.sleep(1.0)
        for _ in range(3):
            before = written[0]
            assert await m.engine.drain("", 60.0) == []
            assert len(world.bucket.content("log")) >= before * 4
            assert world.bucket.content("other") == b"other"
        nursery.cancel_scope.cancel()


# ---------------------------------------------------------------- content that is not what it was


async def test_cache_files_deleted_by_somebody(world: World, autojump_clock: object) -> None:
    """A file of the cache that is gone is a miss, before and after a restart, for small and for large files."""
    large = os.urandom(LARGE)
    world.bucket.put("small", b"content")
    world.bucket.put("large", large)

    def empty_the_cache() -> None:
        for path in (world.state() / "cache").glob("*/*"):
            path.unlink()

    for restart in (False, True, True):
        async with world.mount(check=False) as m:
            assert await m.read("small") == b"content"
            assert await m.read("large") == large
            if not restart:
                m.engine.cache._files.clear()
                empty_the_cache()
                assert await m.read("small") == b"content"
                assert await m.read("large") == large
        empty_the_cache()


async def test_staged_content_that_the_disk_has_spoilt(world: World, autojump_clock: object) -> None:
    """It is never uploaded: set aside, named by the status, kept for a person, and the version in B2 is shown again."""
    async with world.mount(known=["damaged-seen"]) as m:
        await m.write("x", b"in B2")
        await m.drained()
        world.bucket.gate.close("upload")
        await m.write("x", b"newer, spoilt")
        await world.bucket.gate.waiting("upload")
        staged = world.state() / "staged" / str((await m.node("x")).inode.staged)
        staged.write_bytes(b"newer, spoiLt")
        world.bucket.gate.open()
        await m.until(lambda: m.engine.status()["problems"])
        await m.drained()
        (problem,) = m.engine.status()["problems"]
        assert problem["key"] == "x" and "SHA-1" in problem["why"]
        (kept,) = (world.state() / "quarantine").iterdir()
        assert kept.read_bytes() == b"newer, spoiLt"
        assert await m.read("x") == b"in B2"
        kept.unlink()
        assert m.engine.status()["problems"] == [], "who has dealt with it deletes the file"
    assert [world.bucket._by_id[version.file_id].data for version in world.bucket.versions("x") if version] == [
        b"in B2"
    ]


async def test_spoilt_staged_content_of_a_file_that_b2_never_had(world: World, autojump_clock: object) -> None:
    """Its name goes, its bytes are kept for a person, and the next file of that name is an ordinary one."""
    async with world.mount(known=["damaged"]) as m:
        world.bucket.gate.close("upload")
        await m.write("x", b"spoilt")
        await world.bucket.gate.waiting("upload")
        (world.state() / "staged" / str((await m.node("x")).inode.staged)).write_bytes(b"spoiLt")
        world.bucket.gate.open()
        await m.idle()
        assert not await m.exists("x")
        assert len(list((world.state() / "quarantine").iterdir())) == 1
        await m.write("x", b"again")
        await m.drained()
    assert world.bucket.files() == {"x": b"again"}


async def test_spoilt_clean_content_is_not_uploaded_again(world: World, autojump_clock: object) -> None:
    """A chmod of a file whose cached bytes the disk has spoilt makes its new version from the one in B2."""
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.drained()
        (blob,) = (world.state() / "cache").glob("*/*")
        blob.write_bytes(b"cOntent")
        await m.chmod("x", 0o600)
        await m.drained()
        assert await m.read("x") == b"content"
    assert world.bucket.content("x") == b"content"
    assert world.bucket.calls("copy") == [("copy", "x")]


async def test_eviction_takes_nothing_from_the_queue(world: World, autojump_clock: object) -> None:
    """With the whole cache evicted, and its rows with it, everything that waits still gets to B2."""
    async with world.mount() as m:
        world.bucket.gate.close("upload")
        await m.write("staged", b"1")
        await world.bucket.gate.waiting("upload")
        await m.write("scratch", b"2")
        m.engine.cache._evict(1 << 40)
        world.bucket.gate.open()
        await m.drained()
    assert world.bucket.files() == {"staged": b"1", "scratch": b"2"}


# ---------------------------------------------------------------- names and handles


@pytest.mark.parametrize("failures", [1, 5])
async def test_directory_half_of_whose_files_cannot_be_copied(
    world: World, autojump_clock: object, failures: int
) -> None:
    """At every moment each file is in the bucket under its old or its new name; in the end all are under the new."""
    data = {f"{number}": bytes([number]) * LARGE for number in range(6)}
    for name, content in data.items():
        world.bucket.put(f"d/{name}", content)
    missing: list[str] = []

    def look() -> None:
        seen = world.bucket.objects()
        missing.extend(name for name in data if f"d/{name}" not in seen and f"e/{name}" not in seen)

    async with world.mount() as m:
        world.bucket.tap = look
        for name in ("1", "3", "5"):
            world.bucket.faults += [Planted("copy", DOWN, key=f"e/{name}") for _ in range(failures)]
        await m.rename("d", "e")
        await m.idle()
        world.bucket.tap = None
    assert missing == []
    assert world.bucket.files() == {f"e/{name}": content for name, content in data.items()}


async def test_two_handles_of_one_file(world: World, autojump_clock: object) -> None:
    """Closing one, and uploading what it wrote, takes nothing from the other: what it writes later is in B2 too."""
    async with world.mount() as m:
        first = await m.create("x")
        second = await m.open("x", os.O_RDWR)
        await m.files.write(first, 0, b"first")
        await m.close(first)
        await m.drained()
        m.engine.cache._evict(1 << 40)
        await m.files.write(second, 5, b" second")
        assert bytes(await m.files.read(second, 0, 99)) == b"first second"
        await m.close(second)
        await m.idle()
    assert world.bucket.files() == {"x": b"first second"}


async def test_base_version_that_others_deleted(world: World, autojump_clock: object) -> None:
    """Renamed here while somebody deleted its version for good: reported, and everybody else goes on."""
    stored = world.bucket.put("a", bytes(LARGE))
    async with world.mount() as m:
        await m.rename("a", "b")
        world.bucket.purge(stored.file_id)
        await m.write("other", b"other")
        await m.until(lambda: m.engine.status()["problems"])
        assert {problem["key"] for problem in m.engine.status()["problems"]} == {"b"}
        await m.until(lambda: "other" in world.bucket.files())
        assert await m.exists("b")


# ---------------------------------------------------------------- what fsync and the states say


async def test_fsync_of_a_path_that_is_to_be_in_b2(world: World, autojump_clock: object) -> None:
    """With `remote_fsync` fsync returns when B2 has the content, for a file, a directory, and O_SYNC; others stay here."""
    async with world.mount(remote_fsync=Patterns(("users/**",)), quiet_s=1000.0, max_dirty_age_s=2000.0) as m:
        await m.mkdir("users")
        other = await m.create("other")
        await m.files.write(other, 0, b"here")
        await m.files.sync(other)
        handle = await m.create("users/a")
        await m.files.write(handle, 0, b"safe")
        await m.files.sync(handle)
        assert world.bucket.files() == {"users/a": b"safe"}
        await m.close(handle)
        await m.mkdir("users/d")
        await m.write("users/d/b", b"too")
        directory = await m.files.open_directory((await m.node("users/d")).ino)
        await m.files.sync_directory(directory)
        m.files.release(directory)
        assert world.bucket.files() == {"users/a": b"safe", "users/d/b": b"too"}
        handle = await m.open("users/a", os.O_WRONLY | os.O_SYNC)
        await m.files.write(handle, 0, b"SAFE")
        assert world.bucket.content("users/a") == b"SAFE"
        await m.close(handle)
        await m.close(other)


async def test_fsync_that_b2_does_not_confirm(world: World, autojump_clock: object) -> None:
    """It fails after the deadline, and says so; the content stays, and gets there later."""
    async with world.mount(remote_fsync=Patterns(("*.json",)), read_deadline_s=30.0) as m:
        world.bucket.down = True
        handle = await m.create("x.json")
        await m.files.write(handle, 0, b"content")
        began = trio.current_time()
        with pytest.raises(Unavailable, match=r"x\.json.*safe here"):
            await m.files.sync(handle)
        assert 30.0 <= trio.current_time() - began < 31.0
        await m.close(handle)
        world.bucket.mend()
        await m.idle()
    assert world.bucket.files() == {"x.json": b"content"}


async def _state(m: Mount, path: str) -> str:
    state: str = m.engine.file_status(await m.node(path))["state"]
    return state


async def test_states_of_a_file(world: World, autojump_clock: object) -> None:
    """scratch, staged, uploading, in-b2, and with the last the file id and SHA-1 of its version."""
    async with world.mount() as m:
        await m.write("x", b"content")
        assert await _state(m, "x") == "scratch"
        world.bucket.faults.append(Planted("upload", BucketError(Fault.THROTTLED, "later", 5.0)))
        await m.until(lambda: not world.bucket.faults)
        await trio.sleep(1.0)
        assert await _state(m, "x") == "staged"
        world.bucket.gate.close("upload")
        await world.bucket.gate.waiting("upload")
        assert await _state(m, "x") == "uploading"
        world.bucket.gate.open()
        await m.idle()
        status = m.engine.file_status(await m.node("x"))
        version = world.bucket.objects()["x"]
        assert (status["state"], status["file_id"], status["sha1"]) == ("in-b2", version.file_id, version.sha1)


# ---------------------------------------------------------------- the quarantine of a start


async def test_content_that_somebody_deleted(world: World, autojump_clock: object) -> None:
    """Staged and scratch files deleted behind our back: what B2 has is shown, what it never had is gone, all is reported."""
    async with world.mount() as m:
        await m.write("known", b"in B2")
        await m.drained()
    async with world.mount(upload=False) as m:
        await m.write("known", b"newer")
        await m.write("new", b"new")
    for path in [*(world.state() / "scratch").iterdir(), *(world.state() / "staged").iterdir()]:
        Path(path).unlink()
    async with world.mount(known=["damaged"]) as m:
        assert await m.read("known") == b"in B2"
        assert not await m.exists("new")
        assert {problem["key"] for problem in m.engine.status()["problems"]} == {"known", "new"}
        await m.drained()
    assert world.bucket.files() == {"known": b"in B2"}
    async with world.mount() as m:
        assert m.engine.status()["problems"] == [], "there is nothing to keep, and it was reported for a whole run"
