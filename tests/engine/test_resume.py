"""When an upload is told that it may not be the first attempt, and what becomes of a version that is old when it comes."""

from __future__ import annotations

import msgspec
import pytest

from b2fs.core.bucket import Version
from b2fs.core.inode import operation_of
from b2fs.errors import BucketError, Fault
from tests.engine.world import DOWN, World
from tests.fakes.bucket import Planted


async def test_first_attempt_does_not_resume(world: World, autojump_clock: object) -> None:
    """New files, rewritten ones and copies: nothing was begun before, so nothing is looked for."""
    async with world.mount() as m:
        await m.write("x", b"first")
        await m.idle()
        await m.write("x", b"second")
        await m.write("y", b"another")
        await m.idle()
        await m.rename("y", "z")
        await m.idle()
    assert world.bucket.resumed == []
    assert world.bucket.files() == {"x": b"second", "z": b"another"}


@pytest.mark.parametrize("fault", [Fault.TRANSIENT, Fault.THROTTLED, Fault.CAPPED, Fault.DENIED, Fault.CORRUPT])
async def test_attempt_after_a_failed_one_resumes(world: World, autojump_clock: object, fault: Fault) -> None:
    """Whatever ended the first attempt, parts of it may be in the bucket; after a success that is over."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", BucketError(fault, "no"), "x"))
        await m.write("x", b"content")
        await m.idle()
        assert world.bucket.resumed == ["x"]
        await m.write("x", b"again")
        await m.idle()
    assert world.bucket.resumed == ["x"]
    assert len(world.bucket.calls("upload")) == 3


async def test_flush_after_a_failed_attempt_resumes(world: World, autojump_clock: object) -> None:
    """A flush, which forgets how often an attempt failed, does not forget that there was one."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", BucketError(Fault.CAPPED, "cap"), "x"))
        await m.write("x", b"content")
        await m.until(lambda: not world.bucket.faults)
        await m.drained()
    assert world.bucket.resumed == ["x"]


@pytest.mark.parametrize("failed_before", [False, True])
async def test_copy_that_becomes_an_upload(world: World, autojump_clock: object, failed_before: bool) -> None:
    """If the source of a copy is gone the bytes are uploaded; that resumes if an attempt was made before."""
    async with world.mount() as m:
        await m.write("a", bytes(9 << 20))
        await m.drained()
        if failed_before:
            world.bucket.faults.append(Planted("copy", BucketError(Fault.THROTTLED, "slow"), "b"))
        world.bucket.faults.append(Planted("copy", BucketError(Fault.MISSING, "gone"), "b"))
        await m.rename("a", "b")
        await m.idle()
    assert world.bucket.calls("copy", "upload")[-1] == ("upload", "b")
    assert world.bucket.resumed == (["b"] if failed_before else [])


async def test_attempt_after_a_restart_resumes_the_same_operation(world: World, autojump_clock: object) -> None:
    """The daemon is killed during an upload: the next one says `resume`, and names the write as before."""
    operations: list[str] = []
    upload = world.bucket.upload

    async def watched(*args: object) -> Version:
        if args[0] == "x":
            operations.append(operation_of(args[4]))  # type: ignore[arg-type]
        return await upload(*args)  # type: ignore[arg-type]

    world.bucket.upload = watched  # type: ignore[assignment, method-assign]
    world.bucket.gate.close("upload")
    async with world.mount(check=False) as m:
        await m.write("x", b"content")
        await m.until(lambda: operations)
    assert world.bucket.resumed == []
    world.bucket.gate.open()
    async with world.mount() as m:
        await m.drained()
        assert await m.read("x") == b"content"
    assert world.bucket.resumed.count("x") == 1
    assert len(set(operations)) == 1 and operations[0]
    assert len(world.bucket.versions("x")) == 1


async def test_finished_version_is_adopted_before_anything_is_resumed(world: World, autojump_clock: object) -> None:
    """If the upload was done and only its answer lost, it is found by a HEAD, and no upload is asked for."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x", after=True))
        await m.write("x", b"content")
        await m.idle()
    assert world.bucket.resumed == []
    assert world.bucket.calls() == [("upload", "x"), ("head", "x")]


async def test_unheard_version_of_another_size_is_not_adopted(world: World, autojump_clock: object) -> None:
    """The SHA-1 of a large file is what its uploader promised: a version of ours that is too short is made again."""
    upload = world.bucket.upload

    async def short(*args: object) -> Version:
        if args[0] != "x" or world.bucket.versions("x"):
            return await upload(*args)  # type: ignore[arg-type]
        version = world.bucket.put("x", b"con", args[4])  # type: ignore[arg-type]
        stored = world.bucket._by_id[version.file_id]
        stored.version = msgspec.structs.replace(version, sha1=args[3])
        raise BucketError(Fault.CORRUPT, "B2 confirmed another size")

    world.bucket.upload = short  # type: ignore[assignment, method-assign]
    async with world.mount() as m:
        await m.write("x", b"content")
        await m.idle()
        assert m.engine.uploader.counters.adopted == 0
    assert world.bucket.content("x") == b"content"


class Old:
    """A bucket in which a resumed version of "x" is as old as its first attempt, as B2's are."""

    def __init__(self, world: World) -> None:
        self.bucket = world.bucket
        self.operations: list[str] = []
        self._upload = world.bucket.upload
        self._began_ms = 0
        world.bucket.upload = self.upload  # type: ignore[assignment, method-assign]

    async def upload(self, *args: object) -> Version:
        key, resume = args[0], args[6]
        if key == "x":
            self.operations.append(operation_of(args[4]))  # type: ignore[arg-type]
            self._began_ms = self._began_ms or self.bucket._tick()
        version = await self._upload(*args)  # type: ignore[arg-type]
        if key != "x" or not resume:
            return version
        stack = self.bucket._stacks["x"]
        stored = stack.pop()
        stored.version = version = msgspec.structs.replace(version, uploaded_ms=self._began_ms)
        stack.insert(
            sum(other.version is None or other.version.uploaded_ms < self._began_ms for other in stack), stored
        )
        return version


@pytest.mark.parametrize("size", [7, 9 << 20], ids=["small", "large"])
@pytest.mark.parametrize("fault", [Fault.TRANSIENT, Fault.THROTTLED, Fault.CAPPED])
@pytest.mark.parametrize("known", [False, True])
async def test_overtaken_version_is_written_again_once(
    world: World, autojump_clock: object, size: int, fault: Fault, known: bool
) -> None:
    """Somebody wrote the name since the first attempt began: ours lands below, and is written once more, under a
    new operation that resumes nothing, whether a listing has told us of the other version or not.
    """
    content = bytes(size)
    async with world.mount() as m:
        old = Old(world)
        world.bucket.faults.append(Planted("upload", BucketError(fault, "no"), "x"))
        await m.write("x", content)
        await m.until(lambda: not world.bucket.faults)
        world.bucket.put("x", b"theirs")
        if known:
            await m.refresh()
        await m.idle()
        assert await m.read("x") == content
    assert world.bucket.content("x") == content
    assert world.bucket.resumed == ["x"], "what came after the overtaken one resumes nothing"
    versions = [version for version in world.bucket.versions("x") if version]
    assert len(versions) == 3
    first, last = versions[0], versions[-1]
    assert operation_of(first.info) == old.operations[0] == old.operations[1]
    assert operation_of(last.info) not in ("", operation_of(first.info))
    assert last.uploaded_ms > versions[1].uploaded_ms
    again = ("upload", "x") if size < (8 << 20) else ("copy", "x")
    assert world.bucket.calls("upload", "copy")[2:] == [again], "a large one is copied on the server"


async def test_clock_that_goes_back(world: World, autojump_clock: object) -> None:
    """A first attempt, too, can be ordered below what we know (B2's clocks differ): it is written once more."""
    world.bucket._now = 1000
    world.bucket.put("x", b"theirs")
    async with world.mount() as m:
        world.bucket._now = 10
        await m.write("x", b"ours")
        await m.idle()
    assert world.bucket.calls("upload", "head") == [("upload", "x"), ("upload", "x")]
    assert world.bucket.resumed == []


async def test_refused_upload_is_not_resumed(world: World, autojump_clock: object) -> None:
    """What B2 refused for good was cancelled: there is nothing to look for."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", BucketError(Fault.REFUSED, "never"), "x"))
        await m.write("x", b"content")
        await m.idle()
    assert world.bucket.resumed == []
    assert world.bucket.files() == {"x": b"content"}


async def test_write_during_the_second_attempt_is_a_first_one(world: World, autojump_clock: object) -> None:
    """What was in doubt ends with the attempt that succeeds, also if the file was written again meanwhile."""
    async with world.mount() as m:
        world.bucket.faults.append(Planted("upload", DOWN, "x"))
        await m.write("x", b"first")
        await m.until(lambda: not world.bucket.faults)
        world.bucket.gate.close("upload")
        await world.bucket.gate.waiting("upload")
        await m.write("x", b"second")
        world.bucket.gate.open()
        await m.idle()
    assert world.bucket.resumed == ["x"]
    assert world.bucket.content("x") == b"second"


async def test_write_after_a_failed_attempt_is_another_operation(world: World, autojump_clock: object) -> None:
    """Content that changed after a doubtful attempt has an operation of its own, so nothing old can be taken for it."""
    async with world.mount() as m:
        old = Old(world)
        world.bucket.faults.append(Planted("upload", DOWN, "x"))
        await m.write("x", b"first")
        await m.until(lambda: not world.bucket.faults)
        await m.write("x", b"other")
        await m.idle()
    assert len(set(old.operations)) == len(old.operations) == 2
    assert world.bucket.content("x") == b"other"
