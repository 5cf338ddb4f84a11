"""Every way in which the server can be told to misbehave, seen from the other end of a real connection."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import time
from collections.abc import Callable
from urllib.parse import quote

import pytest

from b2fs.devbucket.client import AdminError
from b2fs.devbucket.faults import Fault, Faults, FaultSpec, Kind
from tests.devbucket.raw import Answered, Raw, connect, receive_all
from tests.devbucket_fixture import DevBucket

DATA = bytes(range(256)) * 1000


@pytest.fixture
def bucket_id(raw: Raw, devbucket: DevBucket) -> str:
    return raw.bucket_id(devbucket.bucket)


def refused(act: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(Answered) as answered:
        act()
    return answered.value.words


def head(raw: Raw, path: str) -> bytes:
    return f"GET {quote(path)} HTTP/1.1\r\nHost: x\r\nAuthorization: {raw.token}\r\n\r\n".encode()


# ---------------------------------------------------------------- which requests a fault hits


def fault(**spec: object) -> Fault:
    faults = Faults()
    return faults.add(FaultSpec(kind=Kind.RESET, **spec))  # type: ignore[arg-type]


def test_a_fault_matches_by_call_and_key() -> None:
    """Globs decide; both have to match."""
    hit = fault(call="b2_list_*", key="a/*", count=None)
    assert hit.fires("b2_list_file_names", "a/x")
    assert not hit.fires("b2_list_file_names", "b/x")
    assert not hit.fires("b2_hide_file", "a/x")
    assert hit.fired == 1


def test_a_fault_fires_so_often() -> None:
    """It stops after its count; None means for ever."""
    assert [fault(count=2).fires("x", "") for _ in range(1)] == [True]
    twice = fault(count=2)
    assert [twice.fires("x", "") for _ in range(4)] == [True, True, False, False]
    assert all(fault(count=None).fires("x", "") for _ in range(10))


def test_a_probable_fault_can_be_repeated() -> None:
    """Equal seeds give equal runs, and about the asked share of them."""
    runs = []
    for seed in (1, 1, 2):
        some = fault(count=None, probability=0.3, seed=seed)
        runs.append([some.fires("x", "") for _ in range(400)])
    assert runs[0] == runs[1] != runs[2]
    assert 80 < sum(runs[0]) < 160


def test_the_oldest_fault_wins_and_latencies_add_up() -> None:
    """One fault happens at a time, in the order in which they were given."""
    faults = Faults()
    for seconds in (1.0, 2.0):
        faults.add(FaultSpec(kind=Kind.LATENCY, args=type(FaultSpec(Kind.RESET).args)(seconds=seconds)))
    first = faults.add(FaultSpec(kind=Kind.STALL))
    second = faults.add(FaultSpec(kind=Kind.RESET))
    assert faults.pick("x", "") == (3.0, first)
    assert faults.pick("x", "") == (0.0, second)
    assert faults.pick("x", "") == (0.0, None)
    faults.remove(first.number)
    assert faults.all()[-1] is second


# ---------------------------------------------------------------- answers that refuse


@pytest.mark.parametrize(
    ("kind", "args", "words"),
    [
        ("status", {}, (503, "service_unavailable")),
        ("status", {"status": 408, "code": "request_timeout"}, (408, "request_timeout")),
        ("status", {"status": 429, "code": "too_many_requests"}, (429, "too_many_requests")),
        ("status", {"status": 500, "code": "internal_error"}, (500, "internal_error")),
        ("expired", {}, (401, "expired_auth_token")),
        ("cap", {"code": "transaction_cap_exceeded"}, (403, "transaction_cap_exceeded")),
    ],
)
def test_refusals(
    raw: Raw, devbucket: DevBucket, bucket_id: str, kind: str, args: dict[str, object], words: tuple[int, str]
) -> None:
    """The next matching request gets the asked status and code and does nothing; the one after it works."""
    number = devbucket.admin.fault(kind, "b2_upload_file", **args)
    url = raw.upload_url(bucket_id)
    assert refused(lambda: raw.upload(bucket_id, "a", DATA, url=url)) == words
    assert devbucket.admin.versions(devbucket.bucket) == []
    assert devbucket.admin.fired(number) == 1
    raw.upload(bucket_id, "a", DATA, url=url)
    log = devbucket.admin.log(2)
    assert [(row["call"], row["key"], row["status"], row["fault"]) for row in log] == [
        ("b2_upload_file", "a", words[0], kind),
        ("b2_upload_file", "a", 200, ""),
    ]


def test_retry_after(raw: Raw, devbucket: DevBucket) -> None:
    """A status can carry Retry-After."""
    devbucket.admin.fault("status", status=429, code="too_many_requests", retry_after_s=7)
    with pytest.raises(Answered) as answered:
        raw.call("b2_list_buckets")
    assert answered.value.headers["Retry-After"] == "7"


def test_a_fault_for_one_key(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """With a key glob other keys are spared, for uploads, JSON calls and downloads by id alike."""
    for name in ("good", "bad"):
        devbucket.admin.put(devbucket.bucket, name, b"x")
    ids = {row["fileName"]: row["fileId"] for row in devbucket.admin.versions(devbucket.bucket)}
    devbucket.admin.fault("status", key="b*d", count=None)
    assert raw.download_by_id(ids["good"]).data == b"x"
    raw.upload(bucket_id, "good")
    for act in (
        lambda: raw.download_by_id(ids["bad"]),
        lambda: raw.download(devbucket.bucket, "bad"),
        lambda: raw.upload(bucket_id, "bad"),
        lambda: raw.call("b2_hide_file", bucketId=bucket_id, fileName="bad"),
        lambda: raw.call("b2_get_file_info", fileId=ids["bad"]),
    ):
        assert refused(act) == (503, "service_unavailable")
    devbucket.admin.clear_faults()
    assert raw.download(devbucket.bucket, "bad").data == b"x"


# ---------------------------------------------------------------- broken requests


@pytest.mark.parametrize("kind", ["reset", "reset_upload"])
def test_resets_of_an_upload(raw: Raw, devbucket: DevBucket, bucket_id: str, kind: str) -> None:
    """The connection is reset before or midway through the body; nothing is stored, no file is left."""
    url = raw.upload_url(bucket_id)
    devbucket.admin.fault(kind, "b2_upload_file")
    with pytest.raises(ConnectionError):
        raw.upload(bucket_id, "a", bytes(8_000_000), url=url)
    assert devbucket.admin.versions(devbucket.bucket) == []
    entry = devbucket.admin.log(1)[0]
    assert (entry["status"], entry["fault"]) == (0, kind)
    if kind == "reset":
        assert entry["received"] == 0
    else:
        assert 4_000_000 <= entry["received"] < 6_000_000
    assert list((devbucket.root / "incoming").iterdir()) == []
    raw.upload(bucket_id, "a", b"x", url=url)


def test_a_lost_reply(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """The upload is stored, its answer never comes: a client that repeats it makes a second version."""
    url = raw.upload_url(bucket_id)
    devbucket.admin.fault("reply_lost", "b2_upload_file")
    with pytest.raises(ConnectionError):
        raw.upload(bucket_id, "a", DATA, url=url)
    assert devbucket.admin.content(devbucket.bucket, "a") == DATA
    raw.upload(bucket_id, "a", DATA, url=url)
    assert len(devbucket.admin.versions(devbucket.bucket, "a")) == 2


def test_a_lost_reply_of_a_hide(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """The marker is there although the answer was lost; the repetition says already_hidden."""
    raw.upload(bucket_id, "a")
    devbucket.admin.fault("reply_lost", "b2_hide_file")
    with pytest.raises(ConnectionError):
        raw.call("b2_hide_file", bucketId=bucket_id, fileName="a")
    assert devbucket.admin.objects(devbucket.bucket) == {}
    assert refused(lambda: raw.call("b2_hide_file", bucketId=bucket_id, fileName="a")) == (400, "already_hidden")


@pytest.mark.parametrize("kind", ["stall", "stall_upload"])
def test_stalls(raw: Raw, devbucket: DevBucket, bucket_id: str, kind: str, eventually: Callable[..., None]) -> None:
    """No answer comes, the connection stays open, and it ends when the client gives up."""
    url = raw.upload_url(bucket_id)
    devbucket.admin.fault(kind, "b2_upload_file", after=1)
    before = devbucket.admin.state()["connections"]
    with Raw(devbucket.url, devbucket.key_id, devbucket.key, timeout=0.2) as impatient, pytest.raises(TimeoutError):
        impatient.upload(bucket_id, "a", DATA, url=url)
    assert devbucket.admin.versions(devbucket.bucket) == []
    eventually(lambda: devbucket.admin.state()["connections"] <= before)


# ---------------------------------------------------------------- broken answers


@pytest.mark.parametrize("size", [10_000, 3_000_000])
@pytest.mark.parametrize("kind", ["truncate", "reset_download", "stall_download"])
def test_answers_that_end_early(
    raw: Raw, devbucket: DevBucket, kind: str, size: int, eventually: Callable[..., None]
) -> None:
    """The headers promise the whole body, and only the first bytes come: closed, reset, or silent."""
    data = (DATA * 20)[:size]
    devbucket.admin.put(devbucket.bucket, "a", data)
    devbucket.admin.fault(kind, "b2_download_*", after=5000)
    with connect(devbucket.url, timeout=1.0) as sock:
        sock.sendall(head(raw, f"/file/{devbucket.bucket}/a"))
        got = b""
        ended = ""
        while not ended:
            try:
                piece = sock.recv(65536)
                got += piece
                ended = "" if piece else "truncate"
            except ConnectionResetError:
                ended = "reset_download"
            except TimeoutError:
                ended = "stall_download"
            if kind == "stall_download" and len(got.partition(b"\r\n\r\n")[2]) == 5000:
                sock.settimeout(0.05)
    headers, _, body = got.partition(b"\r\n\r\n")
    assert f"content-length: {size}".encode() in headers.lower()
    assert ended == kind
    assert body == data[:5000]
    assert raw.download(devbucket.bucket, "a").data == data


def test_half_of_the_body_is_the_default(raw: Raw, devbucket: DevBucket) -> None:
    """Without `after` the body ends in its middle."""
    devbucket.admin.put(devbucket.bucket, "a", DATA)
    devbucket.admin.fault("truncate")
    with pytest.raises(http.client.IncompleteRead) as error:
        raw.download(devbucket.bucket, "a")
    assert error.value.partial == DATA[: len(DATA) // 2]


@pytest.mark.parametrize("size", [100, 3_000_000])
def test_a_corrupt_body(raw: Raw, devbucket: DevBucket, size: int) -> None:
    """One byte differs; length and SHA-1 header are those of the true body, which is unharmed."""
    data = (DATA * 20)[:size]
    devbucket.admin.put(devbucket.bucket, "a", data)
    devbucket.admin.fault("corrupt", after=7)
    got = raw.download(devbucket.bucket, "a")
    assert [n for n in range(size) if got.data[n] != data[n]] == [7]
    assert got.headers["X-Bz-Content-Sha1"] == hashlib.sha1(data).hexdigest()
    assert raw.download(devbucket.bucket, "a").data == data


def test_a_wrong_sha1(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """The answers to upload and download name a SHA-1 that is not the body's."""
    devbucket.admin.fault("wrong_sha1", "b2_upload_file")
    assert raw.upload(bucket_id, "a", DATA)["contentSha1"] == "0" * 40
    devbucket.admin.fault("wrong_sha1", "b2_download_*")
    assert raw.download(devbucket.bucket, "a").headers["X-Bz-Content-Sha1"] == "0" * 40
    assert raw.download(devbucket.bucket, "a").headers["X-Bz-Content-Sha1"] == hashlib.sha1(DATA).hexdigest()


def test_a_truncated_listing(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """JSON answers break like bodies do."""
    devbucket.admin.put(devbucket.bucket, "a")
    devbucket.admin.fault("truncate", "b2_list_file_names")
    with pytest.raises(http.client.IncompleteRead):
        raw.call("b2_list_file_names", bucketId=bucket_id)


# ---------------------------------------------------------------- slow


def test_latency(raw: Raw, devbucket: DevBucket) -> None:
    """Matching calls wait, others do not; a latency fault waits once."""
    devbucket.admin.latency(0.1, "b2_list_buckets")

    def seconds(act: Callable[[], object]) -> float:
        begin = time.monotonic()
        act()
        return time.monotonic() - begin

    assert seconds(lambda: raw.call("b2_list_buckets")) >= 0.1
    assert seconds(lambda: raw.call("b2_list_keys")) < 0.1
    devbucket.admin.latency(0)
    assert seconds(lambda: raw.call("b2_list_buckets")) < 0.1
    devbucket.admin.fault("latency", "b2_list_keys", seconds=0.1)
    assert seconds(lambda: raw.call("b2_list_keys")) >= 0.1
    assert seconds(lambda: raw.call("b2_list_keys")) < 0.1


def test_bandwidth(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A limited connection needs its time, down and up; the bytes are right."""
    data = DATA[:100_000]
    devbucket.admin.put(devbucket.bucket, "a", data)
    url = raw.upload_url(bucket_id)
    devbucket.admin.bandwidth(down_bps=1_000_000)
    begin = time.monotonic()
    assert raw.download(devbucket.bucket, "a").data == data
    assert 0.04 < time.monotonic() - begin < 1.0
    devbucket.admin.bandwidth(up_bps=1_000_000)
    begin = time.monotonic()
    raw.upload(bucket_id, "b", data, url=url)
    assert 0.04 < time.monotonic() - begin < 1.0
    assert devbucket.admin.content(devbucket.bucket, "b") == data


# ---------------------------------------------------------------- down


def test_down_and_up(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """While down every connection is reset, open ones and new ones, and only the admin interface answers."""
    devbucket.admin.down()
    with pytest.raises(ConnectionError):
        raw.call("b2_list_buckets")
    with connect(devbucket.url) as sock, pytest.raises(ConnectionError):
        sock.sendall(head(raw, "/file/x/y"))
        receive_all(sock)
    assert devbucket.admin.state()["down"] is True
    devbucket.admin.up()
    assert raw.call("b2_list_buckets")


def test_down_breaks_what_is_under_way(
    raw: Raw, devbucket: DevBucket, bucket_id: str, eventually: Callable[..., None]
) -> None:
    """A request that is being answered ends with a reset when the server goes down."""
    devbucket.admin.latency(30, "b2_list_buckets")
    with connect(devbucket.url) as sock:
        sock.sendall(head(raw, "/b2api/v4/b2_list_buckets"))
        eventually(lambda: devbucket.admin.counters()["running"] == 1)
        devbucket.admin.down()
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
    devbucket.admin.up()


# ---------------------------------------------------------------- caps, clock, stale listings


def test_caps(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Each cap refuses its own calls with 403 and its code: storage, transactions of class B and C, downloads."""
    version = raw.upload(bucket_id, "a", b"x")
    devbucket.admin.caps("storage")
    url = raw.upload_url(bucket_id)
    for act in (
        lambda: raw.upload(bucket_id, "b", url=url),
        lambda: raw.call("b2_copy_file", sourceFileId=version["fileId"], fileName="b"),
        lambda: raw.call("b2_start_large_file", bucketId=bucket_id, fileName="b", contentType="a/b"),
    ):
        assert refused(act) == (403, "storage_cap_exceeded")
    assert raw.download(devbucket.bucket, "a").data == b"x"
    devbucket.admin.caps("download")
    assert refused(lambda: raw.download(devbucket.bucket, "a")) == (403, "download_cap_exceeded")
    assert raw.download(devbucket.bucket, "a", "HEAD").status == 200
    devbucket.admin.caps("transaction")
    assert refused(lambda: raw.download(devbucket.bucket, "a", "HEAD"))[0] == 403
    assert refused(lambda: raw.call("b2_list_file_names", bucketId=bucket_id)) == (403, "transaction_cap_exceeded")
    raw.upload(bucket_id, "c", url=url)
    devbucket.admin.caps()
    assert raw.call("b2_list_file_names", bucketId=bucket_id)["files"]


def test_clock(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """The Date header and the timestamps follow the server's clock; with ties two versions have one time."""
    devbucket.admin.clock(frozen_ms=1_700_000_000_000, ties=True)
    url = raw.upload_url(bucket_id)
    versions = [raw.upload(bucket_id, "a", bytes([n]), url=url) for n in range(5)]
    assert {v["uploadTimestamp"] for v in versions} == {1_700_000_000_000}
    got = raw.download(devbucket.bucket, "a")
    assert got.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert got.headers["X-Bz-File-Id"] == max(v["fileId"] for v in versions)
    devbucket.admin.clock(offset_s=-3600)
    raw.upload(bucket_id, "b", b"now", url=url)
    devbucket.admin.clock(offset_s=-7200)
    raw.upload(bucket_id, "b", b"older", url=url)
    assert raw.download(devbucket.bucket, "b").data == b"now"


def test_stale_listings(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Frozen listings show what was, uploads, hides and deletes alike; reads by name see what is."""

    def names() -> list[str]:
        return [f["fileName"] for f in raw.call("b2_list_file_names", bucketId=bucket_id)["files"]]

    for name in ("deleted", "hidden", "kept"):
        raw.upload(bucket_id, name, b"1")
    devbucket.admin.settings(freeze_listings=True)
    devbucket.admin.clock(offset_s=5)
    ids = {row["fileName"]: row["fileId"] for row in devbucket.admin.versions(devbucket.bucket)}
    raw.upload(bucket_id, "new", b"2")
    raw.call("b2_hide_file", bucketId=bucket_id, fileName="hidden")
    raw.call("b2_delete_file_version", fileId=ids["deleted"], fileName="deleted")
    assert names() == ["deleted", "hidden", "kept"]
    assert raw.download(devbucket.bucket, "new").data == b"2"
    assert refused(lambda: raw.download(devbucket.bucket, "deleted")) == (404, "not_found")
    devbucket.admin.settings(freeze_listings=False)
    assert names() == ["kept", "new"]
    devbucket.admin.settings(stale_s=3600)
    assert names() == []
    devbucket.admin.settings(stale_s=None)
    assert names() == ["kept", "new"]


# ---------------------------------------------------------------- counters and the rest of the interface


def test_counters(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Calls, price classes and bytes are counted when the answer is there; admin requests are not."""
    url = raw.upload_url(bucket_id)
    devbucket.admin.reset_counters()
    raw.upload(bucket_id, "a", b"12345", url=url)
    raw.download(devbucket.bucket, "a")
    raw.download(devbucket.bucket, "a", "HEAD")
    raw.call("b2_list_file_names", bucketId=bucket_id)
    counters = devbucket.admin.counters()
    assert counters["calls"] == {
        "b2_upload_file": 1,
        "b2_download_file_by_name": 1,
        "head_file_by_name": 1,
        "b2_list_file_names": 1,
    }
    assert counters["classes"] == {"A": 1, "B": 2, "C": 1}
    assert counters["statuses"] == {"200": 4}
    assert (counters["running"], counters["max_running"]) == (0, 1)
    assert counters["sent_by_call"]["b2_download_file_by_name"] == 5
    assert sum(counters["sent_by_call"].values()) == counters["sent"]
    log = devbucket.admin.log(3)
    assert [(row["call"], row["key"], row["sent"]) for row in log[:2]] == [
        ("b2_download_file_by_name", "a", 5),
        ("head_file_by_name", "a", 0),
    ]
    assert counters["received"] == 5 + log[2]["received"]
    assert raw.token not in json.dumps(devbucket.admin.log())


@pytest.mark.slow
def test_big_listings_cost_more(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """A listing costs one class C transaction for each started thousand of rows."""
    for number in range(1001):
        devbucket.admin.put(devbucket.bucket, f"{number:04}")
    for rows, price in ((1000, 1), (1001, 2)):
        devbucket.admin.reset_counters()
        answer = raw.call("b2_list_file_names", bucketId=bucket_id, maxFileCount=rows)
        assert len(answer["files"]) == rows
        assert devbucket.admin.counters()["classes"] == {"C": price}


def test_max_concurrency(raw: Raw, devbucket: DevBucket, eventually: Callable[..., None]) -> None:
    """The most requests that were under way at once are remembered."""
    devbucket.admin.latency(30, "b2_list_buckets")
    socks = [connect(devbucket.url) for _ in range(5)]
    for sock in socks:
        sock.sendall(head(raw, "/b2api/v4/b2_list_buckets"))
    eventually(lambda: devbucket.admin.counters()["running"] == 5)
    for sock in socks:
        sock.close()
    assert devbucket.admin.counters()["max_running"] == 5


def test_a_download_runs_until_its_last_byte(
    raw: Raw, devbucket: DevBucket, bucket_id: str, eventually: Callable[..., None]
) -> None:
    """A request counts as running while its body is being sent, and no longer when the client has it all."""
    devbucket.admin.put(devbucket.bucket, "a", bytes(20_000_000))
    with connect(devbucket.url) as sock:
        sock.sendall(head(raw, f"/file/{devbucket.bucket}/a"))
        received = len(sock.recv(1000).partition(b"\r\n\r\n")[2])
        assert devbucket.admin.counters()["running"] == 1
        while received < 20_000_000:
            received += len(sock.recv(1 << 20))
        assert devbucket.admin.counters()["running"] == 0


def test_foreign_objects(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """The admin interface stores what other clients could have: odd names, any info, old times, no SHA-1."""
    put = devbucket.admin.put(
        devbucket.bucket,
        "a//b/",
        b"body",
        info={"src_last_modified_millis": "1234.5"},
        content_type="a/b",
        sha1="none",
        uploaded_ms=1_600_000_000_000,
    )
    got = raw.download(devbucket.bucket, "a//b/")
    assert (got.data, got.headers["X-Bz-Content-Sha1"]) == (b"body", "none")
    assert got.headers["X-Bz-Upload-Timestamp"] == "1600000000000"
    assert raw.call("b2_get_file_info", fileId=put["fileId"]) == put
    devbucket.admin.hide(devbucket.bucket, "a//b/")
    assert devbucket.admin.objects(devbucket.bucket) == {}
    assert devbucket.admin.content_by_id(put["fileId"]) == b"body"


def settings_of(devbucket: DevBucket) -> dict[str, object]:
    state = devbucket.admin.state()
    return {name: value for name, value in state.items() if name not in ("now_ms", "connections", "buckets")}


def test_reset_restores_everything_but_objects(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """After a reset the server behaves as it did at its start; what was stored is still there."""
    raw.upload(bucket_id, "a", b"x")
    start = settings_of(devbucket)
    devbucket.admin.settings(
        latency_s={"*": 0.01},
        down_bps=9e9,
        up_bps=9e9,
        token_lifetime_s=5,
        stale_s=3600,
        freeze_listings=True,
        caps=["storage"],
        min_part_size=7,
        recommended_part_size=8,
        clock={"offset_s": 100},
    )
    devbucket.admin.fault("reset", count=None)
    assert settings_of(devbucket) != start
    devbucket.admin.reset()
    assert settings_of(devbucket) == start
    assert devbucket.admin.faults() == []
    assert devbucket.admin.calls() == {}
    assert raw.download(devbucket.bucket, "a").data == b"x"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "faults", {"kind": "explode"}),
        ("POST", "faults", {"kind": "reset", "cuont": 1}),
        ("POST", "settings", {"unknown": 1}),
        ("POST", "settings", {"caps": ["moon"]}),
        ("POST", "put", {"bucket": "no-such-bucket", "name": "a"}),
        ("POST", "put", {"bucket": "devbucket", "name": ""}),
        ("GET", "nothing", None),
        ("GET", "content?fileId=x", None),
    ],
)
def test_bad_admin_requests(devbucket: DevBucket, method: str, path: str, body: dict[str, object] | None) -> None:
    """A mistake in a test is told at once, not ignored."""
    with pytest.raises(AdminError, match=path.partition("?")[0]):
        devbucket.admin._request(method, path, body)


def test_admin_is_not_for_web_pages(devbucket: DevBucket) -> None:
    """A POST without the JSON type, or for a host name that is not this machine's, is refused."""
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/json", "Host": "evil.example"}):
        connection = http.client.HTTPConnection("127.0.0.1", int(devbucket.url.rpartition(":")[2]), timeout=5)
        connection.request("POST", "/admin/expire_tokens", b"{}", headers)
        assert connection.getresponse().status in (403, 415)
        connection.close()


def test_many_clients(raw: Raw, devbucket: DevBucket, bucket_id: str) -> None:
    """Sixteen clients at once upload, list and read back what they wrote."""
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with Raw(devbucket.url, devbucket.key_id, devbucket.key) as client:
                url = client.upload_url(bucket_id)
                for n in range(5):
                    data = f"{number}-{n}".encode() * 1000
                    client.upload(bucket_id, f"{number}/{n}", data, url=url)
                    assert client.download(devbucket.bucket, f"{number}/{n}").data == data
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(devbucket.admin.objects(devbucket.bucket)) == 80
