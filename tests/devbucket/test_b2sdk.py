"""b2sdk as a client, in its v3 and its v2 face: what it stores it finds again, and what is refused it understands."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from b2sdk import v2, v3
from b2sdk.v3.exception import (
    BucketIdNotFound,
    ChecksumMismatch,
    Conflict,
    DuplicateBucketName,
    FileAlreadyHidden,
    FileNotPresent,
    InvalidAuthToken,
    StorageCapExceeded,
    TooManyRequests,
    TransactionCapExceeded,
    Unauthorized,
)

from tests.devbucket_fixture import DevBucket

DATA = b"0123456789" * 5000


def authorised(server: DevBucket, key_id: str = "", key: str = "") -> v3.B2Api:
    api = v3.B2Api(v3.InMemoryAccountInfo())
    api.authorize_account(key_id or server.key_id, key or server.key, server.url)
    return api


@pytest.fixture
def bucket(devbucket: DevBucket) -> v3.Bucket:
    return authorised(devbucket).get_bucket_by_name(devbucket.bucket)


def read(bucket: v3.Bucket, name: str, **options: object) -> bytes:
    target = io.BytesIO()
    bucket.download_file_by_name(name, **options).save(target)
    return target.getvalue()


def names(bucket: v3.Bucket, path: str = "", **options: object) -> list[str]:
    return [version.file_name for version, _ in bucket.ls(path, **options)]


def test_upload_list_download(bucket: v3.Bucket) -> None:
    """Bytes, info and type make the round trip by name and by id, whole and in ranges."""
    info = {"src_last_modified_millis": "1234", "k": "ž +%"}
    version = bucket.upload_bytes(DATA, "a/ž +%.bin", file_info=info, content_type="a/b")
    assert version.content_sha1 == hashlib.sha1(DATA).hexdigest()
    assert version.server_side_encryption.mode == v3.EncryptionMode.SSE_B2
    assert read(bucket, "a/ž +%.bin") == DATA
    assert read(bucket, "a/ž +%.bin", range_=(5, 14)) == DATA[5:15]
    head = bucket.get_file_info_by_name("a/ž +%.bin")
    assert (head.id_, head.file_info, head.content_type, head.size) == (version.id_, info, "a/b", len(DATA))
    assert bucket.get_file_info_by_id(version.id_).as_dict() == version.as_dict()
    assert names(bucket, recursive=True) == ["a/ž +%.bin"]
    assert [(v.file_name, folder) for v, folder in bucket.ls()] == [("a/ž +%.bin", "a/")]


def test_hide_unhide_delete(bucket: v3.Bucket) -> None:
    """Hide, its repetition, unhide, and deletion mean what b2sdk expects."""
    version = bucket.upload_bytes(b"1", "a")
    bucket.hide_file("a")
    with pytest.raises(FileAlreadyHidden):
        bucket.hide_file("a")
    with pytest.raises(FileNotPresent):
        bucket.get_file_info_by_name("a")
    assert [v.action for v, _ in bucket.ls(latest_only=False, recursive=True)] == ["hide", "upload"]
    bucket.unhide_file("a")
    assert read(bucket, "a") == b"1"
    bucket.delete_file_version(version.id_, "a")
    for gone in (
        lambda: bucket.delete_file_version(version.id_, "a"),
        lambda: bucket.hide_file("a"),
        lambda: bucket.get_file_info_by_id(version.id_),
    ):
        with pytest.raises(FileNotPresent):
            gone()


def test_copies(bucket: v3.Bucket, devbucket: DevBucket) -> None:
    """Server-side copies keep or replace info, take ranges, and cross buckets."""
    source = bucket.upload_bytes(DATA, "a", file_info={"k": "v"})
    assert bucket.copy(source.id_, "same").file_info == {"k": "v"}
    replaced = bucket.copy(source.id_, "new", file_info={"n": "1"}, content_type="a/b")
    assert (replaced.file_info, replaced.content_type) == ({"n": "1"}, "a/b")
    devbucket.admin.create_bucket(devbucket.bucket + "-to")
    to = bucket.api.get_bucket_by_name(devbucket.bucket + "-to")
    to.copy(source.id_, "part", offset=5, length=10, file_info={}, content_type="a/b")
    assert read(to, "part") == DATA[5:15]


def test_large_file(devbucket: DevBucket) -> None:
    """A file above the threshold goes up in parts; an unfinished one is listed and cancelled."""
    devbucket.admin.settings(min_part_size=100_000, recommended_part_size=100_000)
    bucket = authorised(devbucket).get_bucket_by_name(devbucket.bucket)
    data = bytes(range(256)) * 4000
    version = bucket.upload_bytes(data, "big", file_info={"k": "v"})
    assert devbucket.admin.versions(devbucket.bucket)[0]["contentSha1"] == "none"
    assert devbucket.admin.calls()["b2_upload_part"] == 10
    assert version.file_info["large_file_sha1"] == hashlib.sha1(data).hexdigest()
    assert read(bucket, "big") == data
    started = bucket.api.session.start_large_file(bucket.id_, "other", "a/b", {})["fileId"]
    assert [row.file_id for row in bucket.list_unfinished_large_files()] == [started]
    bucket.cancel_large_file(started)
    assert list(bucket.list_unfinished_large_files()) == []


def test_buckets_and_keys(devbucket: DevBucket) -> None:
    """Buckets and restricted keys are made, changed under their revision, listed, and deleted."""
    api = authorised(devbucket)
    bucket = api.create_bucket("sdk-bucket", "allPrivate", bucket_info={"a": "b"})
    with pytest.raises(DuplicateBucketName):
        api.create_bucket("sdk-bucket", "allPrivate")
    rules = [{"fileNamePrefix": "", "daysFromHidingToDeleting": 7}]
    bucket.update(lifecycle_rules=rules, if_revision_is=1)
    with pytest.raises(Conflict):
        bucket.update(bucket_info={}, if_revision_is=1)
    assert [b.lifecycle_rules for b in api.list_buckets("sdk-bucket")] == [rules]
    key = api.create_key(["listBuckets", "listFiles", "readFiles"], "key", bucket_ids=[bucket.id_], name_prefix="p/")
    assert key.id_ in [listed.id_ for listed in api.list_keys()]
    mine = authorised(devbucket, key.id_, key.application_key)
    allowed = mine.get_bucket_by_name("sdk-bucket")
    assert names(allowed, "p/", recursive=True) == []
    with pytest.raises(Unauthorized):
        allowed.hide_file("p/x")
    api.delete_key(key)
    with pytest.raises(InvalidAuthToken):
        authorised(devbucket, key.id_, key.application_key)
    api.delete_bucket(bucket)
    with pytest.raises(BucketIdNotFound):
        bucket.upload_bytes(b"", "x")


def test_the_old_face(devbucket: DevBucket, tmp_path: Path) -> None:
    """b2sdk.v2 speaks API v3, with a master key and with one that is restricted to a bucket."""
    api = v2.B2Api(v2.InMemoryAccountInfo())
    api.authorize_account(devbucket.url, devbucket.key_id, devbucket.key)
    bucket = api.get_bucket_by_name(devbucket.bucket)
    bucket.upload_bytes(DATA, "a/b")
    key = api.create_key(["listBuckets", "listFiles", "readFiles"], "key", bucket_id=bucket.id_)
    api.authorize_account(devbucket.url, key.id_, key.application_key)
    assert [b.name for b in api.list_buckets(devbucket.bucket)] == [devbucket.bucket]
    api.get_bucket_by_name(devbucket.bucket).download_file_by_name("a/b").save_to(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA


def test_expired_tokens_are_renewed(bucket: v3.Bucket, devbucket: DevBucket) -> None:
    """b2sdk sees an expired token as such and authorises again by itself, for JSON calls and uploads."""
    bucket.upload_bytes(b"1", "a")
    devbucket.admin.expire_tokens()
    assert names(bucket) == ["a"]
    devbucket.admin.expire_tokens()
    bucket.upload_bytes(b"2", "b")
    assert devbucket.admin.calls()["b2_authorize_account"] == 3


@pytest.mark.parametrize(
    ("setup", "act", "error"),
    [
        (lambda a: a.caps("storage"), lambda b: b.upload_bytes(b"", "a"), StorageCapExceeded),
        (lambda a: a.caps("transaction"), lambda b: list(b.ls()), TransactionCapExceeded),
        (
            lambda a: a.fault("status", "b2_upload_file", status=429, code="too_many_requests", retry_after_s=3),
            lambda b: b.upload_bytes(b"", "a"),
            TooManyRequests,
        ),
        (lambda a: a.fault("corrupt", "b2_download_*"), lambda b: read(b, "there"), ChecksumMismatch),
    ],
    ids=["storage", "transaction", "429", "corrupt"],
)
def test_refusals_are_understood(
    bucket: v3.Bucket,
    devbucket: DevBucket,
    setup: Callable[[object], object],
    act: Callable[[v3.Bucket], object],
    error: type[Exception],
) -> None:
    """b2sdk maps the answer to the exception that stands for it."""
    devbucket.admin.put(devbucket.bucket, "there", b"body")
    setup(devbucket.admin)
    with pytest.raises(error):
        act(bucket)


def test_a_lost_reply_makes_two_versions(bucket: v3.Bucket, devbucket: DevBucket) -> None:
    """The known trap (facts: b2.md 3) is reproduced: b2sdk repeats the upload, and both are stored."""
    devbucket.admin.fault("reply_lost", "b2_upload_file")
    bucket.upload_bytes(b"x", "a")
    assert len(devbucket.admin.versions(devbucket.bucket, "a")) == 2
    assert devbucket.admin.calls()["b2_upload_file"] == 2
