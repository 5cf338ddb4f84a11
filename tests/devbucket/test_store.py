"""The store and its listings without HTTP: version order, hide and delete, crash repair."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from b2fs.devbucket.clock import Clock
from b2fs.devbucket.listing import list_rows
from b2fs.devbucket.rules import Refused
from b2fs.devbucket.store import BucketRow, Store, Version
from b2fs.errors import StateError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "root", Clock())
    yield opened
    opened.close()


@pytest.fixture
def bucket(store: Store) -> BucketRow:
    return store.create_bucket("bucket-1", "allPrivate", {})


def put(store: Store, bucket: BucketRow, name: str, data: bytes = b"", uploaded_ms: int | None = None) -> Version:
    file_id, stamp_ms = store.begin(bucket.id, uploaded_ms)
    incoming = store.bodies.new(file_id)
    incoming.hold(data)
    sha1 = incoming.close()
    return store.add(Version(bucket.id, name, stamp_ms, file_id, "upload", len(data), sha1, "a/b", {"k": "v"}))


def start(store: Store, bucket: BucketRow, name: str) -> Version:
    file_id, stamp_ms = store.begin(bucket.id)
    return store.add(Version(bucket.id, name, stamp_ms, file_id, "start", 0, "none", "a/b", {}))


def add_part(store: Store, version: Version, number: int, data: bytes, nonce: str = "a") -> str:
    name = f"{version.file_id}.p{number}.{nonce}"
    incoming = store.bodies.new(name)
    incoming.hold(data)
    sha1 = incoming.close()
    store.add_part(version.file_id, number, name, len(data), sha1)
    return name


def read(store: Store, body: str) -> bytes:
    with open(store.bodies.open(body), "rb") as file:
        return file.read()


def files_below(root: Path) -> set[str]:
    return {name for folder in ("bodies", "incoming") for _, _, names in os.walk(root / folder) for name in names}


def test_the_newest_version_is_current(store: Store, bucket: BucketRow) -> None:
    """Upload, hide and delete decide what a name is; deleting the newest resurrects the one before."""
    first = put(store, bucket, "a", b"1")
    second = put(store, bucket, "a", b"2")
    hidden = store.hide(bucket, "a")
    assert first.uploaded_ms < second.uploaded_ms < hidden.uploaded_ms
    assert store.current(bucket, "a") == hidden
    store.delete(hidden.file_id, "a")
    assert store.current(bucket, "a") == second
    store.delete(second.file_id, "a")
    assert store.current(bucket, "a") == first
    assert read(store, first.file_id) == b"1"
    store.delete(first.file_id, "a")
    assert store.current(bucket, "a") is None


def test_order_is_upload_time_then_file_id(store: Store, bucket: BucketRow) -> None:
    """A version that began earlier is older whenever it arrives; equal times are ordered by file id."""
    newer = put(store, bucket, "a", uploaded_ms=2_000_000_000_001)
    put(store, bucket, "a", uploaded_ms=2_000_000_000_000)
    assert store.current(bucket, "a") == newer
    ties = [put(store, bucket, "b", uploaded_ms=2_000_000_000_000) for _ in range(8)]
    current = store.current(bucket, "b")
    assert current is not None and current.file_id == max(version.file_id for version in ties)


def test_an_unfinished_large_file_is_never_current(store: Store, bucket: BucketRow) -> None:
    """Only an upload or a hide marker decides; a started large file does not."""
    version = put(store, bucket, "a")
    start(store, bucket, "a")
    assert store.current(bucket, "a") == version


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (lambda s, b, v: s.hide(b, "missing"), "no_such_file"),
        (lambda s, b, v: s.hide(b, v.name) and s.hide(b, v.name), "already_hidden"),
        (lambda s, b, v: s.delete(v.file_id, "other"), "file_not_present"),
        (lambda s, b, v: s.delete(v.file_id, v.name) and s.delete(v.file_id, v.name), "file_not_present"),
        (lambda s, b, v: s.started(v.file_id), "bad_request"),
        (lambda s, b, v: s.delete_bucket(b), "cannot_delete_non_empty_bucket"),
        (lambda s, b, v: s.create_bucket("BUCKET-1", "allPrivate", {}), "duplicate_bucket_name"),
        (lambda s, b, v: s.bucket("0" * 24), "bad_bucket_id"),
    ],
)
def test_refusals(
    store: Store, bucket: BucketRow, act: Callable[[Store, BucketRow, Version], object], code: str
) -> None:
    """What depends on state is refused with status 400 and B2's code."""
    version = put(store, bucket, "a")
    with pytest.raises(Refused) as refused:
        act(store, bucket, version)
    assert (refused.value.status, refused.value.code) == (400, code)


def test_parts_join_and_are_replaced(store: Store, bucket: BucketRow, tmp_path: Path) -> None:
    """A part that arrives again replaces the first; the parts' files are gone after the finish."""
    version = start(store, bucket, "big")
    add_part(store, version, 2, b"world")
    add_part(store, version, 1, b"HELLO", nonce="a")
    add_part(store, version, 1, b"hello", nonce="b")
    parts = store.parts(version.file_id)
    assert [read(store, part.body) for part in parts] == [b"hello", b"world"]
    assert files_below(tmp_path / "root") == {part.body for part in parts}
    incoming = store.bodies.new(version.file_id)
    for part in parts:
        fd = store.bodies.open(part.body)
        incoming.append(fd, part.size)
        os.close(fd)
    incoming.close()
    finished = store.finish(version, parts)
    assert (finished.action, finished.size, finished.sha1) == ("upload", 10, "none")
    assert store.version(version.file_id) == finished
    assert read(store, version.file_id) == b"helloworld"
    assert files_below(tmp_path / "root") == {version.file_id}


def test_a_cancelled_large_file_leaves_no_files(store: Store, bucket: BucketRow, tmp_path: Path) -> None:
    """Deleting an unfinished large file removes its parts."""
    version = start(store, bucket, "big")
    add_part(store, version, 1, b"hello")
    assert len(files_below(tmp_path / "root")) == 1
    store.delete(version.file_id, "big")
    assert files_below(tmp_path / "root") == set()


def test_everything_survives_a_reopen(store: Store, bucket: BucketRow, tmp_path: Path) -> None:
    """Buckets, versions, parts, keys and the account's id are the same after close and open."""
    version = put(store, bucket, "ž/a", b"body")
    large = start(store, bucket, "big")
    add_part(store, large, 1, b"part")
    store.add_key("key-id", "digest", {"capabilities": ["listFiles"]})
    changed = store.update_bucket(bucket, "allPublic", {"bucketInfo": {"a": "b"}})
    parts, account_id = store.parts(large.file_id), store.account_id
    store.close()
    again = Store(tmp_path / "root", Clock())
    try:
        assert again.account_id == account_id
        assert again.bucket(bucket.id) == changed
        assert again.version(version.file_id) == version
        assert read(again, version.file_id) == b"body"
        assert again.parts(large.file_id) == parts
        assert again.key("key-id") == ("digest", {"capabilities": ["listFiles"]})
    finally:
        again.close()


def test_a_crash_at_any_step_is_repaired(store: Store, bucket: BucketRow, tmp_path: Path) -> None:
    """On opening, a body in incoming/ is settled if the metadata names it, and removed if not."""
    root = tmp_path / "root"
    kept = put(store, bucket, "a", b"kept")
    large = start(store, bucket, "big")
    part = add_part(store, large, 1, b"part")
    # as after a crash between the commit of a row and its settle, or between unsettle and the commit of a delete:
    store.bodies.unsettle(kept.file_id)
    store.bodies.unsettle(part)
    # as after a crash before the commit of an upload, of a part, and of a finish:
    begun, _ = store.begin(bucket.id)
    for name in (begun, f"{large.file_id}.p1.old", large.file_id):
        store.bodies.new(name).close()
    assert len(list((root / "incoming").iterdir())) == 5
    store.bodies.recover(store._wants_body)
    assert list((root / "incoming").iterdir()) == []
    assert files_below(root) == {kept.file_id, part}
    assert (read(store, kept.file_id), read(store, part)) == (b"kept", b"part")


def test_a_version_that_cannot_be_stored_leaves_no_file(store: Store, bucket: BucketRow, tmp_path: Path) -> None:
    """When the bucket is deleted while a body arrives, the upload is refused and its body removed."""
    file_id, stamp_ms = store.begin(bucket.id)
    store.bodies.new(file_id).close()
    store.delete_bucket(bucket)
    with pytest.raises(Refused):
        store.add(Version(bucket.id, "a", stamp_ms, file_id, "upload", 0, "", "a/b", {}))
    assert files_below(tmp_path / "root") == set()


def test_the_database_writes_ahead(store: Store, bucket: BucketRow, tmp_path: Path) -> None:
    """Commits go to a write-ahead log, which is what makes them survive SIGKILL without a sync each."""
    assert (tmp_path / "root" / "meta.db-wal").stat().st_size > 0


def test_one_server_for_a_root(store: Store, tmp_path: Path) -> None:
    """A second server on the same root is refused with a message that says what to do."""
    with pytest.raises(StateError, match=r"another devbucket is using .*--root"):
        Store(tmp_path / "root", Clock())


def test_root_is_private(store: Store, tmp_path: Path) -> None:
    """Nobody else may look into the root."""
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700


def test_clock_never_gives_a_stamp_twice_unless_told() -> None:
    """Stamps grow by default; with ties they are equal, and with a negative offset they go back."""
    clock = Clock()
    clock.set(frozen_ms=1000)
    assert [clock.stamp_ms() for _ in range(3)] == [1000, 1001, 1002]
    clock.set(frozen_ms=1000, ties=True)
    assert [clock.stamp_ms() for _ in range(3)] == [1000, 1000, 1000]
    clock.set()
    now_ms = clock.stamp_ms()
    clock.set(offset_s=-60)
    assert clock.stamp_ms() < now_ms


# ---------------------------------------------------------------- listings against a naive model

NAMES = st.text(alphabet="ab/ž", min_size=1, max_size=4)
ACTIONS = st.lists(st.tuples(st.sampled_from(["put", "hide", "start"]), NAMES), max_size=14)


def naive(versions: list[Version], by_version: bool, first: str, prefix: str, delimiter: str) -> list[tuple[str, str]]:
    """(action, name) of every row, by the text of B2's documentation."""
    ordered = sorted(versions, key=lambda v: (v.uploaded_ms, v.file_id), reverse=True)
    ordered.sort(key=lambda v: v.name.encode())
    if not by_version:
        newest: dict[str, Version] = {}
        for version in ordered:
            if version.action != "start":
                newest.setdefault(version.name, version)
        ordered = [version for version in newest.values() if version.action == "upload"]
    rows: list[tuple[str, str]] = []
    for version in ordered:
        if version.name.encode() < first.encode() or not version.name.startswith(prefix):
            continue
        head, cut, _ = version.name[len(prefix) :].partition(delimiter) if delimiter else (version.name, "", "")
        row = ("folder", prefix + head + cut) if cut else (version.action, version.name)
        if not (cut and row in rows):
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, BucketRow]]:
    """One store for all examples; each begins by emptying it."""
    store = Store(tmp_path_factory.mktemp("model") / "root", Clock())
    yield store, store.create_bucket("model-bucket", "allPrivate", {})
    store.close()


@given(
    actions=ACTIONS,
    by_version=st.booleans(),
    first=st.just("") | NAMES,
    prefix=st.text(alphabet="ab/ž", max_size=2),
    delimiter=st.sampled_from(["", "/", "b", "ab"]),
    page=st.integers(1, 5),
)
@settings(max_examples=200)
def test_listing_equals_the_model(
    model: tuple[Store, BucketRow],
    actions: list[tuple[str, str]],
    by_version: bool,
    first: str,
    prefix: str,
    delimiter: str,
    page: int,
) -> None:
    """Any history, listed in pages of any size, gives the rows of the naive model in their order."""
    store, bucket = model
    for row in list(store.scan(bucket, (b"", 0, ""), b"\xff")):
        store.delete(row.file_id, row.name)
    versions: list[Version] = []
    for action, name in actions:
        if action == "put":
            versions.append(put(store, bucket, name))
        elif action == "start":
            versions.append(start(store, bucket, name))
        else:
            try:
                versions.append(store.hide(bucket, name))
            except Refused:
                continue
    rows: list[tuple[str, str]] = []
    position: tuple[str, int, str] = (first, 0, "")
    while True:
        found, following = list_rows(
            store, bucket, versions=by_version, start=position, prefix=prefix, delimiter=delimiter, limit=page
        )
        rows += [(row.action, row.name) for row in found]
        if following is None:
            break
        assert len(found) == page
        position = (following.name, following.uploaded_ms if by_version else 0, following.file_id)
    assert rows == naive(versions, by_version, first, prefix, delimiter)
