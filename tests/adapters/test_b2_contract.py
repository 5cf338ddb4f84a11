"""What every `Bucket` does: one suite for the fake, the client in threads, and the transfer process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from b2fs.adapters.b2.client import B2Client
from b2fs.adapters.b2.process import TransferProcess
from b2fs.core.bucket import Bucket, Version
from b2fs.errors import BucketError, Damaged, Fault
from tests.adapters.b2_support import ThreadedBucket, pattern, purge, sealed, settings_for, sha1_of
from tests.fakes.bucket import FakeBucket

if TYPE_CHECKING:  # at run time pytest imports it, as a plugin
    from tests.devbucket_fixture import DevBucket


PREFIX = "mount/"

ODD_NAMES = [
    "back\\slash",
    "a b/c  d",
    "ünïcødé/日本語",
    "🦊.txt",
    "100%25",
    "a+b=c&d",
    "what?",
    "#hash#",
    "semi;colon",
    "~tilde'quote\"",
    "x" * 250,
    "dots/.hidden/..x",
]


class Target:
    """A bucket under test, and what the tests need besides the protocol."""

    def __init__(self, bucket: Bucket, purge: Callable[[Version], None], directory: Path) -> None:
        self.bucket = bucket
        self.purge = purge
        self._directory = directory
        self._files = 0

    def path(self) -> Path:
        self._files += 1
        return self._directory / f"file{self._files}"

    async def store(self, key: str, data: bytes, **info: str) -> Version:
        path, size, sha1 = sealed(self._directory, data, self.path().name)
        return await self.bucket.upload(key, path, size, sha1, info, "text/plain")

    async def content(self, version: Version) -> bytes:
        path = self.path()
        await self.bucket.fetch(version.file_id, str(path), 0, version.size, version.sha1)
        return path.read_bytes()

    async def listed(self, prefix: str = "", delimiter: str = "", limit: int = 1000) -> list[str]:
        """Keys and folders of a whole listing, in order."""
        found: list[str] = []
        start: str | None = ""
        while start is not None:
            page = await self.bucket.list_page(prefix, start, delimiter, limit)
            assert len(page.versions) + len(page.folders) <= limit
            assert page.next_key is None or page.next_key > start
            found += sorted([version.key for version in page.versions] + page.folders)
            start = page.next_key
        return found


@pytest.fixture(params=["fake", "client", pytest.param("process", marks=pytest.mark.slow)])
async def target(request: pytest.FixtureRequest, devbucket: DevBucket, tmp_path: Path) -> AsyncIterator[Target]:
    if request.param == "fake":
        fake = FakeBucket(PREFIX)
        yield Target(fake, lambda version: fake.purge(version.file_id), tmp_path)
        return
    settings = settings_for(devbucket, prefix=PREFIX)
    client = B2Client(settings)
    if request.param == "client":
        yield Target(ThreadedBucket(client), lambda version: purge(client, version, PREFIX), tmp_path)
    else:
        async with TransferProcess.open(settings) as process:
            yield Target(process, lambda version: purge(client, version, PREFIX), tmp_path)


def test_implementations_fit_the_protocol(devbucket: DevBucket) -> None:
    """mypy checks these three assignments; at run time every method of the protocol exists."""
    fake: Bucket = FakeBucket()
    client: Bucket = ThreadedBucket(B2Client(settings_for(devbucket)))
    process: Bucket = TransferProcess(settings_for(devbucket))
    names = [name for name in vars(Bucket) if not name.startswith("_")]
    assert len(names) == 8
    assert all(callable(getattr(each, name)) for each in (fake, client, process) for name in names)


async def test_connect_tells_which_bucket(target: Target) -> None:
    """The identity names the bucket, its id and the prefix, and is the same the second time."""
    identity = await target.bucket.connect()
    assert identity.prefix == PREFIX
    assert identity.bucket_id and identity.bucket_name and identity.endpoint
    assert await target.bucket.connect() == identity


async def test_upload_then_fetch(target: Target) -> None:
    """What was uploaded comes back, and the version says what was stored."""
    data = pattern(100_000)
    version = await target.store("a/b.txt", data, src_last_modified_millis="1234.5", b2fs="v=1")
    assert (version.key, version.size, version.sha1) == ("a/b.txt", len(data), sha1_of(data))
    assert version.content_type == "text/plain"
    assert version.info == {"src_last_modified_millis": "1234.5", "b2fs": "v=1"}
    assert version.uploaded_ms > 0
    assert await target.content(version) == data


async def test_empty_object(target: Target) -> None:
    """A file of no bytes can be stored, listed and fetched."""
    version = await target.store("empty", b"")
    assert version.size == 0
    assert await target.content(version) == b""
    assert await target.listed() == ["empty"]


async def test_odd_names_and_values(target: Target) -> None:
    """Names and info values with any printable character survive upload, HEAD, listing, copy and hide."""
    value = "ä ö%+?#\\/🦊 =;&"
    for name in ODD_NAMES:
        version = await target.store(name, name.encode(), note=value)
        assert version.key == name
        assert await target.bucket.head(name) == version
    assert await target.listed() == sorted(ODD_NAMES)
    listed = {version.key: version for version in (await target.bucket.list_page("", "", "", 100)).versions}
    for name in ODD_NAMES:
        assert listed[name].info == {"note": value}
        assert await target.content(listed[name]) == name.encode()
        source = listed[name]
        copied = await target.bucket.copy(source.file_id, f"copy/{name}", source.size, source.info, "a/b")
        assert copied.key == f"copy/{name}"
        assert await target.bucket.hide(name) > 0
    assert await target.listed() == sorted(f"copy/{name}" for name in ODD_NAMES)


async def test_fetch_of_a_range_writes_nothing_else(target: Target) -> None:
    """A range lands at the beginning of the file, whose other bytes and length stay."""
    data = pattern(10_000)
    version = await target.store("k", data)
    path = target.path()
    path.write_bytes(b"-" * 2_000)
    await target.bucket.fetch(version.file_id, str(path), 4_000, 1_000, "")
    assert path.read_bytes() == data[4_000:5_000] + b"-" * 1_000


async def test_fetch_of_parts_makes_the_whole(target: Target) -> None:
    """Ranges fetched at once, each into a file of its own, make up the object."""
    data = pattern(10_000)
    version = await target.store("k", data)
    paths = {start: target.path() for start in range(0, 10_000, 3_000)}
    async with trio.open_nursery() as nursery:
        for start, path in paths.items():
            size = min(3_000, 10_000 - start)
            nursery.start_soon(target.bucket.fetch, version.file_id, str(path), start, size, "")
    assert b"".join(path.read_bytes() for path in paths.values()) == data


async def test_fetched_file_is_private(target: Target) -> None:
    """A file that a fetch creates belongs to its owner alone."""
    version = await target.store("k", b"secret")
    path = target.path()
    await target.bucket.fetch(version.file_id, str(path), 0, 6, "")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("length", "sha1"), [(6, sha1_of(b"other!")), (5, sha1_of(b"hello")), (7, "")])
async def test_fetch_of_other_bytes_is_corrupt(target: Target, length: int, sha1: str) -> None:
    """Another SHA-1, or another length than promised, is CORRUPT, with or without a SHA-1."""
    version = await target.store("k", b"hello!")
    with pytest.raises(BucketError) as caught:
        await target.bucket.fetch(version.file_id, str(target.path()), 0, length, sha1)
    assert caught.value.fault is Fault.CORRUPT


async def test_what_is_gone_is_missing(target: Target) -> None:
    """Fetch and copy of a version that was deleted for good are MISSING."""
    version = await target.store("k", b"hello!")
    await target.store("k", b"newer")
    await trio.to_thread.run_sync(target.purge, version)
    with pytest.raises(BucketError) as fetched:
        await target.bucket.fetch(version.file_id, str(target.path()), 0, 6, "")
    with pytest.raises(BucketError) as copied:
        await target.bucket.copy(version.file_id, "other", 6, {}, "text/plain")
    assert fetched.value.fault is copied.value.fault is Fault.MISSING


async def test_later_attempt_at_an_upload(target: Target) -> None:
    """An upload that says that it may not be the first stores the file all the same, if nothing is to be resumed."""
    path, size, sha1 = sealed(target.path().parent, pattern(10_000), "again")
    info = {"b2fs": "m=100644;o=mount.1"}
    first = await target.bucket.upload("k", path, size, sha1, info, "text/plain")
    again = await target.bucket.upload("k", path, size, sha1, info, "text/plain", resume=True)
    assert first.file_id != again.file_id
    assert (again.sha1, again.info) == (sha1, info)
    assert await target.content(again) == pattern(10_000)


async def test_newest_version_shadows(target: Target) -> None:
    """A second upload is what a HEAD sees; the first can still be fetched by its id."""
    first = await target.store("k", b"first")
    second = await target.store("k", b"second")
    assert first.file_id != second.file_id
    assert first.uploaded_ms <= second.uploaded_ms
    assert await target.content(first) == b"first"
    head = await target.bucket.head("k")
    assert head is not None and head.sha1 == sha1_of(b"second")


async def test_hide(target: Target) -> None:
    """A hidden key is gone from HEAD and listing, a second hide has nothing to do, an upload brings it back."""
    assert await target.bucket.hide("k") == 0
    version = await target.store("k", b"data")
    assert await target.bucket.hide("k") >= version.uploaded_ms
    assert await target.bucket.head("k") is None
    assert await target.listed() == []
    assert await target.bucket.hide("k") == 0
    assert await target.content(version) == b"data"
    await target.store("k", b"again")
    assert await target.listed() == ["k"]


async def test_head_of_nothing(target: Target) -> None:
    """A name that was never there has no version, and that is an answer, not an error."""
    assert await target.bucket.head("never/there") is None


async def test_copy_replaces_info(target: Target) -> None:
    """A copy has the bytes of its source and exactly the info and type that were given."""
    source = await target.store("from", b"bytes", old="1")
    copied = await target.bucket.copy(source.file_id, "to", 5, {"new": "2"}, "application/x-new")
    assert (copied.key, copied.size, copied.sha1) == ("to", 5, source.sha1)
    assert (copied.info, copied.content_type) == ({"new": "2"}, "application/x-new")
    assert await target.content(copied) == b"bytes"
    assert await target.listed() == ["from", "to"]


async def test_listing_in_pages(target: Target) -> None:
    """Pages of any size together hold every visible key once, in byte order, below the prefix."""
    keys = ["a", "a/b", "a/c/d", "a/c/e", "a0", "b/x", "z", "é", "日", "🦊"]
    for key in keys:
        await target.store(key, key.encode())
    await target.store("hidden", b"")
    await target.bucket.hide("hidden")
    for limit in (1, 2, 3, 1000):
        assert await target.listed(limit=limit) == keys
        assert await target.listed("a", limit=limit) == ["a", "a/b", "a/c/d", "a/c/e", "a0"]
        assert await target.listed("", "/", limit) == ["a", "a/", "a0", "b/", "z", "é", "日", "🦊"]
        assert await target.listed("a/", "/", limit) == ["a/b", "a/c/"]
    page = await target.bucket.list_page("", "a0", "", 2)
    assert [version.key for version in page.versions] == ["a0", "b/x"]
    assert page.next_key == "z"


async def test_damaged_source_is_not_uploaded(target: Target) -> None:
    """A file that is missing, short or other than its SHA-1 says is `Damaged`, and nothing gets visible."""
    path, size, sha1 = sealed(target.path().parent, b"sealed bytes", "source")
    with pytest.raises(Damaged):
        await target.bucket.upload("k", path + ".missing", size, sha1, {}, "")
    with pytest.raises(Damaged):
        await target.bucket.upload("k", path, size + 1, sha1, {}, "")
    with pytest.raises(Damaged):
        await target.bucket.upload("k", path, size, sha1_of(b"other"), {}, "")
    assert await target.bucket.head("k") is None


async def test_fetch_into_a_missing_directory(target: Target) -> None:
    """A target that cannot be created is a local failure, not one of the bucket."""
    version = await target.store("k", b"data")
    with pytest.raises(Damaged):
        await target.bucket.fetch(version.file_id, str(target.path() / "no" / "dir"), 0, 4, "")


async def test_requests_are_counted(target: Target) -> None:
    """Calls, classes and bytes add up."""
    await target.bucket.connect()
    before = target.bucket.requests()
    version = await target.store("k", b"x" * 1000)
    await target.content(version)
    await target.bucket.head("k")
    await target.listed()
    after = target.bucket.requests()

    def grown(call: str) -> int:
        return after.calls.get(call, 0) - before.calls.get(call, 0)

    assert grown("b2_upload_file") == grown("b2_download_file_by_id") == 1
    assert grown("b2_list_file_names") == grown("b2_download_file_by_name") == 1
    assert after.classes["B"] - before.classes.get("B", 0) == 2
    assert after.classes["C"] - before.classes.get("C", 0) == 1
    assert sum(after.classes.values()) == sum(after.calls.values())
    assert after.sent - before.sent >= 1000
    assert after.received - before.received >= 1000
