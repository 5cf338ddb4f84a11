"""Every native call through raw HTTP: its answer, and each way in which it is refused."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.devbucket.raw import Answered, Json, Raw, connect, receive_all
from tests.devbucket_fixture import DevBucket


@pytest.fixture
def bucket_id(raw: Raw, devbucket: DevBucket) -> str:
    return raw.bucket_id(devbucket.bucket)


def restricted(raw: Raw, devbucket: DevBucket, **key: Any) -> Callable[[int], Raw]:
    """A new key, and how to authorise as it with an API version."""
    made = raw.call("b2_create_key", accountId=raw.account["accountId"], keyName="k", **key)
    return lambda api: Raw(devbucket.url, made["applicationKeyId"], made["applicationKey"], api)


def refused(act: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(Answered) as answered:
        act()
    return answered.value.words


# ---------------------------------------------------------------- accounts and keys


@pytest.mark.parametrize("api", [1, 2, 3, 4])
def test_authorize_account_shapes(devbucket: DevBucket, api: int) -> None:
    """v1 and v2 answer flat with `allowed`; v3 has apiInfo with the restrictions in it; v4 a list of buckets."""
    with Raw(devbucket.url, devbucket.key_id, devbucket.key, api) as raw:
        account = raw.account
    storage = account["apiInfo"]["storageApi"] if api >= 3 else account
    assert storage["apiUrl"] == storage["downloadUrl"] == devbucket.url
    assert storage["absoluteMinimumPartSize"] == 5_000_000
    assert storage["recommendedPartSize"] == 100_000_000
    assert ("minimumPartSize" in account) == (api == 1)
    allowed = storage if api == 3 else storage["allowed"]
    assert "writeFiles" in allowed["capabilities"]
    assert allowed["namePrefix"] is None
    assert allowed["buckets" if api == 4 else "bucketId"] is None


def test_the_client_is_sent_back_to_the_address_it_used(devbucket: DevBucket) -> None:
    """Behind port forwarding the answered URLs are those that the client can reach."""
    headers = {"Host": "bucket.example:8080", "Authorization": "Basic ZGV2LWtleS1pZDpkZXYta2V5LXNlY3JldA=="}
    request = urllib.request.Request(devbucket.url + "/b2api/v2/b2_authorize_account", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["apiUrl"] == "http://bucket.example:8080"


@pytest.mark.parametrize(("key_id", "key"), [("dev-key-id", "wrong"), ("unknown", "dev-key-secret"), ("", "")])
def test_wrong_credentials(devbucket: DevBucket, key_id: str, key: str) -> None:
    """A wrong key or key id is 401 bad_auth_token."""
    assert refused(lambda: Raw(devbucket.url, key_id, key)) == (401, "bad_auth_token")


def test_bad_and_missing_tokens(raw: Raw, devbucket: DevBucket) -> None:
    """A token that is unknown, absent, or has expired gets the code that says so."""
    good, raw.token = raw.token, "4_nonsense"
    assert refused(lambda: raw.call("b2_list_buckets")) == (401, "bad_auth_token")
    raw.token = ""
    assert refused(lambda: raw.call("b2_list_buckets")) == (401, "unauthorized")
    raw.token = good
    assert devbucket.admin.expire_tokens() >= 1
    assert refused(lambda: raw.call("b2_list_buckets")) == (401, "expired_auth_token")


def test_token_lifetime(devbucket: DevBucket) -> None:
    """Tokens made while the lifetime is zero are expired at once."""
    devbucket.admin.settings(token_lifetime_s=0)
    with Raw(devbucket.url, devbucket.key_id, devbucket.key) as raw:
        assert refused(lambda: raw.call("b2_list_buckets")) == (401, "expired_auth_token")


def test_a_key_is_restricted_to_its_bucket_and_prefix(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Outside its bucket and prefix a restricted key can do nothing; inside it works."""
    other = devbucket.admin.create_bucket(devbucket.bucket + "-other")
    foreign = devbucket.admin.put(devbucket.bucket, "x/secret", b"s")["fileId"]
    capabilities = ["listBuckets", "listFiles", "readFiles", "writeFiles", "deleteFiles", "shareFiles"]
    key = restricted(raw, devbucket, capabilities=capabilities, bucketIds=[bucket_id], namePrefix="a/")
    with key(4) as mine:
        allowed = mine.account["apiInfo"]["storageApi"]["allowed"]
        assert allowed["buckets"] == [{"id": bucket_id, "name": devbucket.bucket}]
        assert allowed["namePrefix"] == "a/"
        version = mine.upload(bucket_id, "a/mine", b"m")
        assert mine.download(devbucket.bucket, "a/mine").data == b"m"
        assert [f["fileName"] for f in mine.call("b2_list_file_names", bucketId=bucket_id, prefix="a/")["files"]] == [
            "a/mine"
        ]
        assert [b["bucketId"] for b in mine.call("b2_list_buckets", bucketId=bucket_id)["buckets"]] == [bucket_id]
        for act in (
            lambda: mine.call("b2_list_buckets"),
            lambda: mine.call("b2_list_buckets", bucketId=other),
            lambda: mine.upload_url(other),
            lambda: mine.upload(bucket_id, "b", b""),
            lambda: mine.call("b2_list_file_names", bucketId=bucket_id),
            lambda: mine.call("b2_list_file_versions", bucketId=bucket_id, prefix="b/"),
            lambda: mine.call("b2_hide_file", bucketId=bucket_id, fileName="x/secret"),
            lambda: mine.call("b2_delete_file_version", fileName="x/secret", fileId=foreign),
            lambda: mine.call("b2_get_file_info", fileId=foreign),
            lambda: mine.download_by_id(foreign),
            lambda: mine.download(devbucket.bucket, "x/secret"),
            lambda: mine.call("b2_copy_file", sourceFileId=foreign, fileName="a/stolen"),
            lambda: mine.call("b2_copy_file", sourceFileId=version["fileId"], fileName="b"),
            lambda: mine.call("b2_start_large_file", bucketId=bucket_id, fileName="b", contentType="a/b"),
            lambda: mine.call(
                "b2_get_download_authorization", bucketId=bucket_id, fileNamePrefix="", validDurationInSeconds=9
            ),
            lambda: mine.call("b2_create_bucket", bucketName="another", bucketType="allPrivate"),
        ):
            assert refused(act) == (401, "unauthorized")


@pytest.mark.parametrize("api", [1, 3])
def test_old_api_versions_name_one_bucket(raw: Raw, devbucket: DevBucket, bucket_id: str, api: int) -> None:
    """Before v4 a key has one bucket, and the account's answer gives its id and name."""
    key = restricted(raw, devbucket, capabilities=["listBuckets"], bucketIds=[bucket_id])
    with key(api) as mine:
        account = mine.account
    allowed = account["allowed"] if api == 1 else account["apiInfo"]["storageApi"]
    assert (allowed["bucketId"], allowed["bucketName"]) == (bucket_id, devbucket.bucket)


@pytest.mark.parametrize(
    ("lacking", "act"),
    [
        ("writeFiles", lambda c, b: c.upload_url(b)),
        ("deleteFiles", lambda c, b: c.call("b2_delete_file_version", fileName="a", fileId="b")),
        ("listFiles", lambda c, b: c.call("b2_list_file_names", bucketId=b)),
        ("readFiles", lambda c, b: c.call("b2_get_file_info", fileId="x")),
        ("readFiles", lambda c, b: c.download("some-bucket", "x")),
        ("readFiles", lambda c, b: c.call("b2_copy_file", sourceFileId="x", fileName="y")),
        ("writeBuckets", lambda c, b: c.call("b2_update_bucket", bucketId=b)),
        ("listKeys", lambda c, b: c.call("b2_list_keys")),
    ],
)
def test_capabilities_are_enforced(
    raw: Raw, devbucket: DevBucket, bucket_id: str, lacking: str, act: Callable[[Raw, str], object]
) -> None:
    """A key without the capability gets 401 unauthorized, whatever the request says."""
    others = {"listBuckets", "writeFiles", "deleteFiles", "listFiles", "readFiles", "writeBuckets", "listKeys"}
    with restricted(raw, devbucket, capabilities=sorted(others - {lacking}))(4) as mine:
        assert refused(lambda: act(mine, bucket_id)) == (401, "unauthorized")


def test_keys_are_listed_expire_and_are_deleted(raw: Raw, devbucket: DevBucket) -> None:
    """A key's life: made, listed without its secret, expired by its own time, deleted with its tokens."""
    made = raw.call("b2_create_key", capabilities=["listBuckets"], keyName="one", validDurationInSeconds=60)
    key_id, key = made["applicationKeyId"], made["applicationKey"]
    listed = raw.call("b2_list_keys", maxKeyCount=1000)["keys"]
    mine = next(row for row in listed if row["applicationKeyId"] == key_id)
    assert mine["expirationTimestamp"] == made["expirationTimestamp"]
    assert key not in json.dumps(listed)
    with Raw(devbucket.url, key_id, key) as client:
        assert client.call("b2_list_buckets")
        devbucket.admin.clock(offset_s=61)
        assert refused(lambda: Raw(devbucket.url, key_id, key)) == (401, "bad_auth_token")
        devbucket.admin.clock()
        assert raw.call("b2_delete_key", applicationKeyId=key_id)["keyName"] == "one"
        assert refused(lambda: client.call("b2_list_buckets")) == (401, "bad_auth_token")
    assert refused(lambda: raw.call("b2_delete_key", applicationKeyId=key_id)) == (400, "bad_request")


def test_a_key_cannot_make_a_stronger_one(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """New keys have at most the capabilities and buckets of the key that makes them."""
    with restricted(raw, devbucket, capabilities=["writeKeys", "listBuckets"], bucketIds=[bucket_id])(4) as weak:
        for extra in ({"capabilities": ["deleteFiles"], "bucketIds": [bucket_id]}, {"capabilities": ["listBuckets"]}):
            assert refused(lambda extra=extra: weak.call("b2_create_key", keyName="k", **extra)) == (
                401,
                "unauthorized",
            )


# ---------------------------------------------------------------- buckets


def test_bucket_life(raw: Raw) -> None:
    """A bucket is made, changed under its revision, refused to be deleted while it has versions, and deleted."""
    rules = [{"fileNamePrefix": "", "daysFromHidingToDeleting": 7, "daysFromUploadingToHiding": None}]
    made = raw.call("b2_create_bucket", bucketName="life-bucket", bucketType="allPrivate", bucketInfo={"A": "b"})
    bucket_id = made["bucketId"]
    assert (made["revision"], made["bucketInfo"]) == (1, {"a": "b"})
    changed = raw.call("b2_update_bucket", bucketId=bucket_id, lifecycleRules=rules, ifRevisionIs=1)
    assert (changed["revision"], changed["lifecycleRules"], changed["bucketInfo"]) == (2, rules, {"a": "b"})
    assert refused(lambda: raw.call("b2_update_bucket", bucketId=bucket_id, bucketInfo={}, ifRevisionIs=1)) == (
        409,
        "conflict",
    )
    version = raw.upload(bucket_id, "a")
    assert refused(lambda: raw.call("b2_delete_bucket", bucketId=bucket_id)) == (400, "cannot_delete_non_empty_bucket")
    raw.call("b2_delete_file_version", fileId=version["fileId"], fileName="a")
    raw.call("b2_delete_bucket", bucketId=bucket_id)
    assert refused(lambda: raw.upload_url(bucket_id)) == (400, "bad_bucket_id")


def test_list_buckets_filters(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Buckets are found by id, by name in any case, and by type; an unknown one gives an empty list."""

    def names(**filters: object) -> list[str]:
        return [b["bucketName"] for b in raw.call("b2_list_buckets", **filters)["buckets"]]

    assert names(bucketId=bucket_id) == names(bucketName=devbucket.bucket.upper()) == [devbucket.bucket]
    assert devbucket.bucket in names(bucketTypes=["all"])
    assert devbucket.bucket not in names(bucketTypes=["allPublic"])
    assert names(bucketName="no-such-bucket") == []


@pytest.mark.parametrize(
    ("call", "arguments", "words"),
    [
        ("b2_create_bucket", {"bucketName": "x", "bucketType": "allPrivate"}, (400, "bad_request")),
        ("b2_create_bucket", {"bucketName": "devbucket", "bucketType": "allPrivate"}, (400, "duplicate_bucket_name")),
        ("b2_create_bucket", {"bucketName": "new-bucket", "bucketType": "odd"}, (400, "bad_request")),
        ("b2_create_bucket", {"bucketName": "new-bucket"}, (400, "bad_request")),
        ("b2_create_key", {"keyName": "k", "capabilities": ["fly"]}, (400, "bad_request")),
        ("b2_create_key", {"keyName": "k", "capabilities": ["listFiles"], "namePrefix": "p"}, (400, "bad_request")),
        ("b2_list_keys", {"maxKeyCount": 0}, (400, "bad_request")),
        ("b2_list_file_names", {"bucketId": "0" * 24}, (400, "bad_bucket_id")),
        ("b2_get_file_info", {"fileId": "nonsense"}, (400, "bad_request")),
        ("b2_no_such_call", {}, (400, "bad_request")),
    ],
)
def test_bad_arguments(raw: Raw, call: str, arguments: Json, words: tuple[int, str]) -> None:
    """Arguments that are missing, unknown or out of range are refused with B2's code."""
    assert refused(lambda: raw.call(call, **arguments)) == words


def test_bad_json_and_bad_paths(raw: Raw) -> None:
    """What is not JSON is bad_json; other methods and paths are refused, and the connection lives on."""
    socket = raw.connection.sock
    assert refused(lambda: raw.send("POST", "/b2api/v4/b2_hide_file", b"{")) == (400, "bad_json")
    assert refused(lambda: raw.send("GET", "/nothing")) == (404, "not_found")
    assert refused(lambda: raw.send("DELETE", "/file/bucket/x")) == (405, "method_not_allowed")
    assert raw.connection.sock is socket


def test_what_is_not_http(devbucket: DevBucket) -> None:
    """Garbage gets 400 and a closed connection, and the server goes on."""
    with connect(devbucket.url) as sock:
        sock.sendall(b"\x16\x03\x01 this is TLS\r\n\r\n")
        assert receive_all(sock).startswith(b"HTTP/1.1 400")
    assert devbucket.admin.state()


# ---------------------------------------------------------------- upload


@pytest.mark.parametrize("name", ["a", "/x", "a//b", "dir/", "a\\b", "ž/日 本+%&?#", "~" * 1024])
def test_names_round_trip(raw: Raw, devbucket: DevBucket, bucket_id: str, name: str) -> None:
    """Every legal name is stored, listed, and downloaded as it was given."""
    version = raw.upload(bucket_id, name, b"body", info={"src": "ž +%"})
    assert version["fileName"] == name
    assert [f["fileName"] for f in raw.call("b2_list_file_names", bucketId=bucket_id)["files"]] == [name]
    answer = raw.download(devbucket.bucket, name)
    assert (answer.data, answer.headers["X-Bz-File-Id"]) == (b"body", version["fileId"])
    assert answer.headers["X-Bz-Info-src"] == "%C5%BE%20%2B%25"
    assert version["fileInfo"] == {"src": "ž +%"}


def test_upload_answer(raw: Raw, bucket_id: str) -> None:
    """The answer is the version: size, SHA-1, type by extension, encryption, and the time it began."""
    data = b"hello"
    version = raw.upload(bucket_id, "a.txt", data)
    assert version["contentSha1"] == hashlib.sha1(data).hexdigest()
    assert (version["contentLength"], version["contentType"], version["action"]) == (5, "text/plain", "upload")
    assert version["serverSideEncryption"] == {"algorithm": "AES256", "mode": "SSE-B2"}
    assert version["fileId"].endswith(f"_u0{version['uploadTimestamp']}")
    assert raw.call("b2_get_file_info", fileId=version["fileId"]) == version


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_sha1_at_the_end(raw: Raw, devbucket: DevBucket, bucket_id: str, size: int) -> None:
    """With hex_digits_at_end the last 40 bytes are the digest, whatever the size and however it is cut."""
    data = b"x" * size
    digest = hashlib.sha1(data).hexdigest()
    version = raw.upload(bucket_id, "a", data, sha1="hex_digits_at_end", tail=digest.encode())
    assert (version["contentSha1"], version["contentLength"]) == (digest, size)
    assert raw.download(devbucket.bucket, "a").data == data


def test_sha1_not_verified(raw: Raw, bucket_id: str) -> None:
    """do_not_verify stores the SHA-1 as unverified."""
    version = raw.upload(bucket_id, "a", b"hello", sha1="do_not_verify")
    assert version["contentSha1"] == "unverified:" + hashlib.sha1(b"hello").hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"sha1": "0" * 40},
        {"sha1": "hex_digits_at_end", "tail": b"0" * 40},
        {"sha1": "hex_digits_at_end"},
        {"sha1": "sha1"},
        {"X_Bz_Content_Sha1": ""},
        {"X_Bz_File_Name": ""},
        {"X_Bz_File_Name": "%ff"},
        {"X_Bz_File_Name": "%01"},
        {"X_Bz_File_Name": "ä"},
        {"Content_Type": ""},
        {"info": {"k": "v" * 2040}},
        {"info": {"k" * 51: "v"}},
    ],
    ids=str,
)
def test_refused_uploads_leave_nothing(raw: Raw, devbucket: DevBucket, bucket_id: str, change: Json) -> None:
    """A wrong SHA-1, a missing header, a bad name or too much info is 400 bad_request, and no version appears."""
    assert refused(lambda: raw.upload(bucket_id, "name", b"body", **change)) == (400, "bad_request")
    assert devbucket.admin.versions(devbucket.bucket) == []
    assert list((devbucket.root / "incoming").iterdir()) == []


def test_upload_needs_a_length(raw: Raw, bucket_id: str) -> None:
    """A chunked upload is refused: Content-Length is mandatory."""
    url = raw.upload_url(bucket_id)
    headers = {
        "Authorization": url["authorizationToken"],
        "X-Bz-File-Name": "a",
        "Content-Type": "a/b",
        "X-Bz-Content-Sha1": "do_not_verify",
        "Transfer-Encoding": "chunked",
    }
    path = urlsplit(url["uploadUrl"]).path
    assert refused(lambda: raw.send("POST", path, b"1\r\nx\r\n0\r\n\r\n", headers)) == (400, "bad_request")


def test_one_upload_at_a_time_for_a_token(
    raw: Raw, devbucket: DevBucket, bucket_id: str, eventually: Callable[..., None]
) -> None:
    """A second upload by a token in use is 400 auth_token_limit; the first one ends well."""
    url = raw.upload_url(bucket_id)
    head = (
        f"POST {urlsplit(url['uploadUrl']).path} HTTP/1.1\r\nHost: x\r\nAuthorization: {url['authorizationToken']}\r\n"
        "X-Bz-File-Name: slow\r\nContent-Type: a/b\r\nX-Bz-Content-Sha1: do_not_verify\r\nContent-Length: 4\r\n"
        "Connection: close\r\n\r\nab"
    )
    with connect(devbucket.url) as sock:
        sock.sendall(head.encode())
        eventually(lambda: devbucket.admin.counters()["running"] == 1)
        with pytest.raises(Answered) as answered:
            raw.upload(bucket_id, "a", b"x", url=url)
        assert answered.value.words == (400, "auth_token_limit")
        assert answered.value.message == f"more than one upload using auth token {url['authorizationToken']}"
        sock.sendall(b"cd")
        assert receive_all(sock).startswith(b"HTTP/1.1 200")
    assert devbucket.admin.content(devbucket.bucket, "slow") == b"abcd"
    raw.upload(bucket_id, "a", b"x", url=url)


def test_the_order_is_that_of_the_beginnings(
    raw: Raw, devbucket: DevBucket, bucket_id: str, eventually: Callable[..., None]
) -> None:
    """An upload that began first and ended last does not become the current version."""
    url = raw.upload_url(bucket_id)
    head = (
        f"POST {urlsplit(url['uploadUrl']).path} HTTP/1.1\r\nHost: x\r\nAuthorization: {url['authorizationToken']}\r\n"
        "X-Bz-File-Name: a\r\nContent-Type: a/b\r\nX-Bz-Content-Sha1: do_not_verify\r\nContent-Length: 3\r\n"
        "Connection: close\r\n\r\n"
    )
    with connect(devbucket.url) as sock:
        sock.sendall(head.encode())
        eventually(lambda: devbucket.admin.counters()["running"] == 1)
        raw.upload(bucket_id, "a", b"began second")
        sock.sendall(b"old")
        assert receive_all(sock).startswith(b"HTTP/1.1 200")
    assert devbucket.admin.content(devbucket.bucket, "a") == b"began second"
    assert [v["contentLength"] for v in devbucket.admin.versions(devbucket.bucket)] == [12, 3]


def test_an_upload_that_breaks_off_leaves_nothing(
    raw: Raw, devbucket: DevBucket, bucket_id: str, eventually: Callable[..., None]
) -> None:
    """When the client goes away midway there is no version and no file."""
    url = raw.upload_url(bucket_id)
    head = (
        f"POST {urlsplit(url['uploadUrl']).path} HTTP/1.1\r\nHost: x\r\nAuthorization: {url['authorizationToken']}\r\n"
        "X-Bz-File-Name: a\r\nContent-Type: a/b\r\nX-Bz-Content-Sha1: do_not_verify\r\nContent-Length: 9999999\r\n\r\n"
    )
    with connect(devbucket.url) as sock:
        sock.sendall(head.encode() + b"x" * 3_000_000)
        eventually(lambda: list((devbucket.root / "incoming").iterdir()))
    eventually(lambda: not list((devbucket.root / "incoming").iterdir()))
    assert devbucket.admin.versions(devbucket.bucket) == []


def test_expect_100_continue(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A client that asks first is told to go on when it may, and refused before it sends when it may not."""
    url = raw.upload_url(bucket_id)
    for token, first in ((url["authorizationToken"], b"HTTP/1.1 100"), ("wrong", b"HTTP/1.1 401")):
        head = (
            f"POST {urlsplit(url['uploadUrl']).path} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
            "X-Bz-File-Name: a\r\nContent-Type: a/b\r\nX-Bz-Content-Sha1: do_not_verify\r\nContent-Length: 2\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        with connect(devbucket.url) as sock:
            sock.sendall(head.encode())
            answer = sock.recv(1000)
            assert answer.startswith(first)
            if first.endswith(b"100"):
                sock.sendall(b"ab")
                assert sock.recv(1000).startswith(b"HTTP/1.1 200")
            else:
                assert b"connection: close" in answer.lower()


# ---------------------------------------------------------------- list, hide, delete


def test_listing_rows(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Names in byte order, folders folded, pages joined by nextFileName; versions with hide and start rows."""
    for name in ("b", "a/2", "a/1", "ž", "B", "a.txt"):
        raw.upload(bucket_id, name)
    raw.call("b2_hide_file", bucketId=bucket_id, fileName="b")
    raw.call("b2_start_large_file", bucketId=bucket_id, fileName="c", contentType="a/b")

    def listed(call: str, **arguments: object) -> list[tuple[str, str]]:
        rows, following = [], {}
        while True:
            answer = raw.call(call, bucketId=bucket_id, maxFileCount=2, **arguments, **following)
            rows += [(row["action"], row["fileName"]) for row in answer["files"]]
            if answer["nextFileName"] is None:
                return rows
            following = {"startFileName": answer["nextFileName"]}
            if answer.get("nextFileId"):
                following["startFileId"] = answer["nextFileId"]

    up = [("upload", name) for name in ("B", "a.txt", "a/1", "a/2", "ž")]
    assert listed("b2_list_file_names") == up
    assert listed("b2_list_file_names", prefix="a/") == up[2:4]
    assert listed("b2_list_file_names", delimiter="/") == [*up[:2], ("folder", "a/"), up[4]]
    assert listed("b2_list_file_versions", prefix="b") == [("hide", "b"), ("upload", "b")]
    assert listed("b2_list_file_versions", prefix="c") == [("start", "c")]


def test_listing_v1_has_size(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """v1 clients (rclone) read `size` where later ones read contentLength."""
    raw.upload(bucket_id, "a", b"12345")
    with Raw(devbucket.url, devbucket.key_id, devbucket.key, 1) as old:
        row = old.call("b2_list_file_names", bucketId=bucket_id)["files"][0]
    assert row["size"] == row["contentLength"] == 5


@pytest.mark.parametrize("count", [0, 10_001, -1])
def test_listing_bounds(raw: Raw, bucket_id: str, count: int) -> None:
    """maxFileCount is 1 to 10000."""
    assert refused(lambda: raw.call("b2_list_file_names", bucketId=bucket_id, maxFileCount=count)) == (
        400,
        "bad_request",
    )


def test_hide_and_delete(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Hiding and deleting, and what is answered when there is nothing left to do."""

    def hide(name: str) -> Json:
        return raw.call("b2_hide_file", bucketId=bucket_id, fileName=name)

    assert refused(lambda: hide("a")) == (400, "no_such_file")
    version = raw.upload(bucket_id, "a", b"1")
    marker = hide("a")
    assert (marker["action"], marker["contentLength"], marker["contentSha1"]) == ("hide", 0, None)
    assert marker["uploadTimestamp"] > version["uploadTimestamp"]
    assert refused(lambda: hide("a")) == (400, "already_hidden")
    assert refused(lambda: raw.download(devbucket.bucket, "a")) == (404, "not_found")
    assert raw.download_by_id(version["fileId"]).data == b"1"

    def delete(file_id: str, name: str = "a") -> Json:
        return raw.call("b2_delete_file_version", fileId=file_id, fileName=name)

    assert refused(lambda: delete(marker["fileId"], "other")) == (400, "file_not_present")
    assert delete(marker["fileId"]) == {"fileId": marker["fileId"], "fileName": "a"}
    assert raw.download(devbucket.bucket, "a").data == b"1"
    delete(version["fileId"])
    assert refused(lambda: delete(version["fileId"])) == (400, "file_not_present")
    assert refused(lambda: raw.download_by_id(version["fileId"])) == (404, "not_found")
    assert refused(lambda: raw.call("b2_get_file_info", fileId=version["fileId"])) == (404, "not_found")


# ---------------------------------------------------------------- download


@pytest.mark.parametrize("size", [0, 10, 5_000_000])
def test_downloads(raw: Raw, devbucket: DevBucket, bucket_id: str, size: int) -> None:
    """By name and by id, GET and HEAD agree in headers; only GET has a body."""
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    version = raw.upload(bucket_id, "a.bin", data)
    got = raw.download(devbucket.bucket, "a.bin")
    assert got.data == data
    for other in (
        raw.download_by_id(version["fileId"]),
        raw.download(devbucket.bucket, "a.bin", "HEAD"),
        raw.download_by_id(version["fileId"], "HEAD"),
    ):
        assert {k: v for k, v in other.headers.items() if k != "date"} == {
            k: v for k, v in got.headers.items() if k != "date"
        }
        assert other.data in (b"", data)
    assert got.headers["X-Bz-Content-Sha1"] == hashlib.sha1(data).hexdigest()
    assert got.headers["X-Bz-Upload-Timestamp"] == str(version["uploadTimestamp"])
    assert int(got.headers["Content-Length"]) == size


@pytest.mark.parametrize(
    ("header", "first", "last"), [("bytes=0-0", 0, 0), ("bytes=5-", 5, 9), ("bytes=-3", 7, 9), ("bytes=8-99", 8, 9)]
)
def test_ranges(raw: Raw, devbucket: DevBucket, bucket_id: str, header: str, first: int, last: int) -> None:
    """A range is 206 with Content-Range; what reaches behind the end is served short."""
    raw.upload(bucket_id, "a", b"0123456789")
    answer = raw.download(devbucket.bucket, "a", Range=header)
    assert (answer.status, answer.data) == (206, b"0123456789"[first : last + 1])
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/10"
    head = raw.download(devbucket.bucket, "a", "HEAD", Range=header)
    assert (head.status, head.headers["Content-Range"]) == (206, answer.headers["Content-Range"])


def test_ranges_of_a_big_file(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Ranges far into a file that is streamed have the right bytes."""
    data = b"".join(n.to_bytes(4, "big") for n in range(1_000_000))
    file_id = raw.upload(bucket_id, "a", data)["fileId"]
    assert raw.download_by_id(file_id, Range="bytes=1000001-3999998").data == data[1_000_001:3_999_999]


def test_range_not_satisfiable(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A range behind the end is 416 with B2's code."""
    raw.upload(bucket_id, "a", b"0123456789")
    assert refused(lambda: raw.download(devbucket.bucket, "a", Range="bytes=10-")) == (416, "range_not_satisfiable")


def test_downloads_of_nothing(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Missing names, buckets and ids are 404; a malformed id is 400; HEAD says it without a body."""
    gone = "4_z" + bucket_id + "_f0123456789abcdef_d20230521_m235957_c002_v0001000_t0000_u01684713597235"
    marker = raw.upload(bucket_id, "a") and raw.call("b2_hide_file", bucketId=bucket_id, fileName="a")
    large = raw.call("b2_start_large_file", bucketId=bucket_id, fileName="big", contentType="a/b")
    for act in (
        lambda: raw.download(devbucket.bucket, "missing"),
        lambda: raw.download("no-such-bucket", "a"),
        lambda: raw.download_by_id(gone),
        lambda: raw.download_by_id(marker["fileId"]),
        lambda: raw.download_by_id(large["fileId"]),
    ):
        assert refused(act) == (404, "not_found")
    assert refused(lambda: raw.download_by_id("nonsense")) == (400, "bad_request")
    assert refused(lambda: raw.download(devbucket.bucket, "missing", "HEAD")) == (404, "")


def test_download_authorization(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A download token works in header and query, below its prefix, and for nothing else."""
    raw.upload(bucket_id, "pub/a", b"shared")
    raw.upload(bucket_id, "priv/a", b"secret")
    token = raw.call(
        "b2_get_download_authorization", bucketId=bucket_id, fileNamePrefix="pub/", validDurationInSeconds=60
    )["authorizationToken"]
    raw.token = ""
    path = f"/file/{devbucket.bucket}/pub/a"
    assert raw.send("GET", f"{path}?Authorization={token}").data == b"shared"
    assert raw.send("GET", path, headers={"Authorization": token}).data == b"shared"
    assert refused(lambda: raw.send("GET", path)) == (401, "unauthorized")
    raw.token = token
    assert refused(lambda: raw.download(devbucket.bucket, "priv/a")) == (401, "unauthorized")
    assert refused(lambda: raw.call("b2_list_file_names", bucketId=bucket_id)) == (401, "unauthorized")


def test_public_buckets_need_no_token(raw: Raw, bucket_id: str, devbucket: DevBucket) -> None:
    """A public bucket is read by anybody, by name and by id; everything else still needs a token."""
    version = raw.upload(bucket_id, "a", b"open")
    raw.call("b2_update_bucket", bucketId=bucket_id, bucketType="allPublic")
    raw.token = ""
    assert raw.download(devbucket.bucket, "a").data == raw.download_by_id(version["fileId"]).data == b"open"
    assert refused(lambda: raw.call("b2_list_file_names", bucketId=bucket_id)) == (401, "unauthorized")


def test_info_becomes_headers(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """The known b2- info keys come back as headers of their own; the query can override them."""
    raw.upload(bucket_id, "a.txt", b"x", info={"b2-cache-control": "max-age=5"})
    assert raw.download(devbucket.bucket, "a.txt").headers["Cache-Control"] == "max-age=5"
    answer = raw.send("GET", f"/file/{devbucket.bucket}/a.txt?b2ContentType=image/png")
    assert answer.headers["Content-Type"] == "image/png"
    smuggle = f"/file/{devbucket.bucket}/a.txt?b2ContentType=a%0d%0aX:%20y"
    assert refused(lambda: raw.send("GET", smuggle)) == (400, "bad_request")


# ---------------------------------------------------------------- copy


def test_copy(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """COPY keeps type and info, REPLACE takes new ones, a range takes its bytes, and buckets can differ."""
    source = raw.upload(bucket_id, "a.txt", b"0123456789", info={"k": "v"})
    copy = raw.call("b2_copy_file", sourceFileId=source["fileId"], fileName="b")
    for field in ("contentSha1", "contentLength", "contentType", "fileInfo"):
        assert copy[field] == source[field]
    assert copy["uploadTimestamp"] > source["uploadTimestamp"]
    other = devbucket.admin.create_bucket(devbucket.bucket + "-copy")
    part = raw.call(
        "b2_copy_file",
        sourceFileId=source["fileId"],
        fileName="c",
        range="bytes=2-4",
        destinationBucketId=other,
        metadataDirective="REPLACE",
        contentType="a/b",
        fileInfo={"new": "1"},
    )
    assert (part["contentType"], part["fileInfo"], part["bucketId"]) == ("a/b", {"new": "1"}, other)
    assert part["contentSha1"] == hashlib.sha1(b"234").hexdigest()
    raw.call("b2_delete_file_version", fileId=source["fileId"], fileName="a.txt")
    assert raw.download_by_id(copy["fileId"]).data == b"0123456789"
    assert raw.download(devbucket.bucket + "-copy", "c").data == b"234"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadataDirective": "REPLACE"}, (400, "bad_request")),
        ({"contentType": "a/b"}, (400, "bad_request")),
        ({"metadataDirective": "COPY", "fileInfo": {}}, (400, "bad_request")),
        ({"metadataDirective": "MOVE"}, (400, "bad_request")),
        ({"range": "bytes=2-99"}, (416, "range_not_satisfiable")),
        ({"range": "bytes=10-11"}, (416, "range_not_satisfiable")),
        ({"range": "all"}, (400, "bad_request")),
        ({"fileName": ""}, (400, "bad_request")),
        ({"fileName": "n" * 1024, "metadataDirective": "REPLACE", "contentType": "a/b", "fileInfo": {"k": "v" * 1020}},
         (400, "bad_request")),
        ({"destinationBucketId": "0" * 24}, (400, "bad_bucket_id")),
    ],
)  # fmt: skip
def test_refused_copies(raw: Raw, bucket_id: str, change: Json, words: tuple[int, str]) -> None:
    """The rules of metadataDirective, the range, the name and its header budget hold for copies."""
    file_id = raw.upload(bucket_id, "a", b"0123456789")["fileId"]
    assert refused(lambda: raw.call("b2_copy_file", **{"sourceFileId": file_id, "fileName": "b", **change})) == words


def test_copy_of_nothing(raw: Raw, bucket_id: str) -> None:
    """A source that is gone is 404; a hide marker cannot be copied."""
    raw.upload(bucket_id, "a")
    marker = raw.call("b2_hide_file", bucketId=bucket_id, fileName="a")["fileId"]
    assert refused(lambda: raw.call("b2_copy_file", sourceFileId=marker, fileName="b")) == (404, "not_found")


# ---------------------------------------------------------------- large files


def start(raw: Raw, bucket_id: str, name: str = "big", **arguments: object) -> str:
    answer = raw.call("b2_start_large_file", bucketId=bucket_id, fileName=name, contentType="b2/x-auto", **arguments)
    return str(answer["fileId"])


def sha1s(*parts: bytes) -> list[str]:
    return [hashlib.sha1(part).hexdigest() for part in parts]


def test_large_file_life(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Parts in any order, replaced and listed; finished it is one version with the time of its start."""
    devbucket.admin.settings(min_part_size=4)
    file_id = start(raw, bucket_id, "big.txt", fileInfo={"large_file_sha1": "0" * 40})
    raw.upload_part(file_id, 2, b"world")
    raw.upload_part(file_id, 1, b"wrong")
    part = raw.upload_part(file_id, 1, b"hello ")
    assert (part["partNumber"], part["contentLength"], part["fileId"]) == (1, 6, file_id)
    unfinished = raw.call("b2_list_unfinished_large_files", bucketId=bucket_id, namePrefix="b")["files"]
    assert [row["fileId"] for row in unfinished] == [file_id]
    page = raw.call("b2_list_parts", fileId=file_id, maxPartCount=1)
    assert ([p["contentSha1"] for p in page["parts"]], page["nextPartNumber"]) == (sha1s(b"hello "), 2)
    assert raw.call("b2_get_file_info", fileId=file_id)["action"] == "start"
    later = raw.upload(bucket_id, "big.txt", b"later")
    done = raw.call("b2_finish_large_file", fileId=file_id, partSha1Array=sha1s(b"hello ", b"world"))
    assert (done["contentLength"], done["contentSha1"], done["action"]) == (11, "none", "upload")
    assert (done["contentType"], done["fileInfo"]) == ("text/plain", {"large_file_sha1": "0" * 40})
    assert done["uploadTimestamp"] < later["uploadTimestamp"]
    assert raw.download(devbucket.bucket, "big.txt").data == b"later"
    assert raw.download_by_id(file_id).data == b"hello world"
    assert raw.download_by_id(file_id).headers["X-Bz-Content-Sha1"] == "none"
    assert raw.call("b2_list_unfinished_large_files", bucketId=bucket_id)["files"] == []
    for call, arguments in (
        ("b2_finish_large_file", {"partSha1Array": sha1s(b"hello ", b"world")}),
        ("b2_list_parts", {}),
        ("b2_cancel_large_file", {}),
        ("b2_get_upload_part_url", {}),
    ):
        with pytest.raises(Answered, match=f"No active upload for: {file_id}"):
            raw.call(call, fileId=file_id, **arguments)


@pytest.mark.parametrize(
    ("parts", "given", "words"),
    [
        ({1: b"hello"}, [], (400, "bad_request")),
        ({1: b"hello", 3: b"world"}, sha1s(b"hello", b"world"), (400, "missing_part")),
        ({1: b"hello"}, sha1s(b"hello", b"world"), (400, "missing_part")),
        ({1: b"hello"}, sha1s(b"other"), (400, "part_sha1_mismatch")),
        ({1: b"hello", 2: b"world"}, sha1s(b"hello"), (400, "bad_request")),
        ({1: b"abc", 2: b"world"}, sha1s(b"abc", b"world"), (400, "bad_request")),
    ],
    ids=["none", "gap", "short", "sha1", "too-many", "too-small"],
)
def test_finish_checks_the_parts(
    raw: Raw, devbucket: DevBucket, bucket_id: str, parts: dict[int, bytes], given: list[str], words: tuple[int, str]
) -> None:
    """Finish wants parts 1..n with the given SHA-1s, each but the last of the minimum size."""
    devbucket.admin.settings(min_part_size=4)
    file_id = start(raw, bucket_id)
    for number, data in parts.items():
        raw.upload_part(file_id, number, data)
    assert refused(lambda: raw.call("b2_finish_large_file", fileId=file_id, partSha1Array=given)) == words
    assert raw.call("b2_get_file_info", fileId=file_id)["action"] == "start"


def test_one_finish_of_two(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Of two finishes at once one succeeds, and there is one version."""
    devbucket.admin.settings(min_part_size=1)
    file_id = start(raw, bucket_id)
    data = bytes(30_000_000)
    raw.upload_part(file_id, 1, data)
    words: list[object] = []

    def finish() -> None:
        with Raw(devbucket.url, devbucket.key_id, devbucket.key) as client:
            try:
                words.append(client.call("b2_finish_large_file", fileId=file_id, partSha1Array=sha1s(data))["action"])
            except Answered as answered:
                words.append(answered.words)

    threads = [threading.Thread(target=finish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(words, key=str) == [(400, "bad_request")] * 3 + ["upload"]
    assert [v["action"] for v in devbucket.admin.versions(devbucket.bucket)] == ["upload"]


def test_cancel(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A cancelled large file is gone with its parts; b2_delete_file_version does the same."""
    for cancel in (
        lambda i: raw.call("b2_cancel_large_file", fileId=i),
        lambda i: raw.call("b2_delete_file_version", fileId=i, fileName="big"),
    ):
        file_id = start(raw, bucket_id)
        raw.upload_part(file_id, 1, b"part")
        assert cancel(file_id)["fileName"] == "big"
        assert refused(lambda file_id=file_id: raw.upload_part(file_id, 2, b"x")) == (400, "bad_request")
    assert devbucket.admin.versions(devbucket.bucket) == []


def test_copied_parts(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A large file can be put together from ranges of other versions."""
    devbucket.admin.settings(min_part_size=1)
    source = raw.upload(bucket_id, "a", b"0123456789")["fileId"]
    file_id = start(raw, bucket_id)
    first = raw.call("b2_copy_part", sourceFileId=source, largeFileId=file_id, partNumber=1, range="bytes=5-9")
    second = raw.call("b2_copy_part", sourceFileId=source, largeFileId=file_id, partNumber=2)
    digests = [first["contentSha1"], second["contentSha1"]]
    assert digests == sha1s(b"56789", b"0123456789")
    raw.call("b2_finish_large_file", fileId=file_id, partSha1Array=digests)
    assert raw.download_by_id(file_id).data == b"567890123456789"


def test_part_checks(raw: Raw, bucket_id: str) -> None:
    """Part numbers are 1 to 10000, a part has bytes, and its token is for its large file only."""
    file_id = start(raw, bucket_id)
    for number, data in ((0, b"x"), (10_001, b"x"), (1, b"")):
        assert refused(lambda number=number, data=data: raw.upload_part(file_id, number, data)) == (400, "bad_request")
    url = raw.call("b2_get_upload_part_url", fileId=file_id)
    other = start(raw, bucket_id, "other")
    headers = {
        "Authorization": url["authorizationToken"],
        "X-Bz-Part-Number": "1",
        "X-Bz-Content-Sha1": "do_not_verify",
    }
    path = urlsplit(url["uploadUrl"]).path.replace(file_id, other)
    assert refused(lambda: raw.send("POST", path, b"x", headers)) == (401, "bad_auth_token")


# ---------------------------------------------------------------- what only has to be answered


def test_features_that_are_off(raw: Raw, bucket_id: str) -> None:
    """No notifications, no file lock: asking is answered, setting is refused."""
    file_id = raw.upload(bucket_id, "a")["fileId"]
    assert raw.send("GET", f"/b2api/v4/b2_get_bucket_notification_rules?bucketId={bucket_id}").status == 200
    for call in ("b2_update_file_legal_hold", "b2_update_file_retention"):
        assert refused(lambda call=call: raw.call(call, fileId=file_id, fileName="a", legalHold="on")) == (
            400,
            "bad_request",
        )
