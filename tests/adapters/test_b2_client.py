"""What `B2Client` does beyond the contract: faults, keys, tokens, large files, counting, secrets."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
import urllib3
from b2sdk._internal import exception as sdk  # type: ignore[import-untyped]

from b2fs.adapters.b2 import answers, client, faults, settings, transport
from b2fs.adapters.b2.client import B2Client
from b2fs.adapters.b2.settings import Settings
from b2fs.core.bucket import Version
from b2fs.errors import B2fsError, BucketError, Damaged, Fault, NoSpace
from tests.adapters.b2_support import pattern, sealed, settings_for, sha1_of, store

if TYPE_CHECKING:  # at run time pytest imports it, as a plugin
    from tests.devbucket_fixture import DevBucket


# b2sdk warns of a 400 without a code, which a HEAD always is. Made an error, it would hide the real one.
pytestmark = pytest.mark.filterwarnings("ignore:bad request exception with an unknown `code`:UserWarning")

DATA = pattern(20_000)


class Calls:
    """Each call of the protocol once, against a bucket that holds ``there``."""

    def __init__(self, devbucket: DevBucket, directory: Path, **change: Any) -> None:
        self.client = B2Client(settings_for(devbucket, **change))
        self.directory = directory
        self.there = store(self.client, directory, "there", DATA)

    def make(self, call: str) -> object:
        target = str(self.directory / "fetched")
        match call:
            case "b2_download_file_by_id":
                self.client.fetch(self.there.file_id, target, 0, len(DATA), self.there.sha1)
                return Path(target).read_bytes()
            case "b2_upload_file":
                return store(self.client, self.directory, "new", DATA)
            case "b2_list_file_names":
                return self.client.list_page("", "", "", 10)
            case "b2_copy_file":
                return self.client.copy(self.there.file_id, "copy", len(DATA), {}, "")
            case "b2_hide_file":
                return self.client.hide("there")
            case "head_file_by_name":
                return self.client.head("there")
        raise AssertionError(call)

    def fails(self, call: str) -> BucketError:
        with pytest.raises(BucketError) as caught:
            self.make(call)
        return caught.value


ALL_CALLS = [
    "b2_download_file_by_id",
    "b2_upload_file",
    "b2_list_file_names",
    "b2_copy_file",
    "b2_hide_file",
    "head_file_by_name",
]


@pytest.fixture
def calls(devbucket: DevBucket, tmp_path: Path) -> Calls:
    return Calls(devbucket, tmp_path)


# ------------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("call", ALL_CALLS)
@pytest.mark.parametrize(
    ("kind", "args", "fault", "wait_s"),
    [
        ("status", {"status": 500, "code": "internal_error"}, Fault.TRANSIENT, 0),
        ("status", {"status": 503, "code": "service_unavailable"}, Fault.TRANSIENT, 0),
        ("status", {"status": 503, "code": "slow", "retry_after_s": 7}, Fault.THROTTLED, 7),
        ("status", {"status": 429, "code": "too_many_requests", "retry_after_s": 3}, Fault.THROTTLED, 3),
        ("status", {"status": 408, "code": "request_timeout"}, Fault.TRANSIENT, 0),
        ("status", {"status": 403, "code": "access_denied"}, Fault.DENIED, 0),
        ("status", {"status": 404, "code": "whatever"}, Fault.MISSING, 0),
        ("status", {"status": 400, "code": "bad_request"}, Fault.REFUSED, 0),
        ("reset", {}, Fault.TRANSIENT, 0),
        ("reply_lost", {}, Fault.TRANSIENT, 0),
    ],
)
def test_a_fault_is_one_attempt_and_named(
    devbucket: DevBucket, calls: Calls, call: str, kind: str, args: dict[str, Any], fault: Fault, wait_s: int
) -> None:
    """Each way to fail has its fault and Retry-After, costs one request, and the next call works."""
    devbucket.admin.reset_counters()
    devbucket.admin.fault(kind, call, **args)
    if call in ("b2_hide_file", "head_file_by_name") and fault is Fault.MISSING:
        assert not calls.make(call), "not an error there"
        return
    error = calls.fails(call)
    assert error.fault is fault
    if call != "head_file_by_name" or kind != "status":  # a HEAD has no body to say more
        assert error.retry_after_s == wait_s
    assert devbucket.admin.calls()[call] == 1
    assert calls.make(call) is not None


@pytest.mark.parametrize("cap", ["storage", "transaction", "download"])
def test_caps_are_named(devbucket: DevBucket, calls: Calls, cap: str) -> None:
    """A cap is CAPPED, and the message says which one and what to do."""
    devbucket.admin.fault("cap", "b2_download_file_by_id", code=f"{cap}_cap_exceeded")
    error = calls.fails("b2_download_file_by_id")
    assert error.fault is Fault.CAPPED
    assert f"{cap} cap" in str(error) and "Caps & Alerts" in str(error)


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("truncate", Fault.TRANSIENT),
        ("corrupt", Fault.CORRUPT),
        ("reset_download", Fault.TRANSIENT),
        ("stall_download", Fault.TRANSIENT),
        ("stall", Fault.TRANSIENT),
    ],
)
def test_broken_downloads(devbucket: DevBucket, tmp_path: Path, kind: str, fault: Fault) -> None:
    """A body that is cut, altered or silent is noticed at once; the same fetch then works."""
    calls = Calls(devbucket, tmp_path, idle_timeout_s=0.2)
    devbucket.admin.fault(kind, "b2_download_file_by_id")
    assert calls.fails("b2_download_file_by_id").fault is fault
    assert calls.make("b2_download_file_by_id") == DATA


@pytest.mark.parametrize("kind", ["reset_upload", "stall_upload", "stall"])
def test_broken_uploads(devbucket: DevBucket, tmp_path: Path, kind: str) -> None:
    """An upload that breaks or stalls on the way is TRANSIENT after a bounded time, and leaves no version."""
    calls = Calls(devbucket, tmp_path, upload_timeout_s=0.2)
    devbucket.admin.fault(kind, "b2_upload_file")
    assert calls.fails("b2_upload_file").fault is Fault.TRANSIENT
    assert devbucket.admin.versions(devbucket.bucket, "new") == []


def test_slow_bodies_are_given_up(devbucket: DevBucket, tmp_path: Path) -> None:
    """A body that trickles, and so is never silent, ends by the allowance for its size."""
    data = pattern(200_000)
    slow = B2Client(settings_for(devbucket, call_timeout_s=0.5, slowest=10**9))
    version = store(B2Client(settings_for(devbucket)), tmp_path, "k", data)
    slow.connect()
    devbucket.admin.bandwidth(down_bps=100_000, up_bps=100_000)
    with pytest.raises(BucketError, match="too slow") as down:
        slow.fetch(version.file_id, str(tmp_path / "f"), 0, len(data), version.sha1)
    assert down.value.fault is Fault.TRANSIENT
    data = pattern(8_000_000)  # more than the socket buffers take at once
    with pytest.raises(BucketError, match="too slow") as up:
        store(slow, tmp_path, "k", data)
    assert up.value.fault is Fault.TRANSIENT


def test_nobody_listens(devbucket: DevBucket) -> None:
    """A refused connection is TRANSIENT, in one readable line."""
    nowhere = B2Client(settings_for(devbucket, endpoint="http://127.0.0.1:9"))
    with pytest.raises(BucketError, match=r"^no answer from 127.0.0.1 \(\w+\)$") as caught:
        nowhere.connect()
    assert caught.value.fault is Fault.TRANSIENT


def test_connect_is_bounded(devbucket: DevBucket) -> None:
    """A host that swallows packets costs the connect timeout, not more."""
    with socket.socket() as deaf, ExitStack() as stack:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(4):  # fill its queue: further connects get no answer
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(deaf.getsockname())
        port = deaf.getsockname()[1]
        client = B2Client(settings_for(devbucket, endpoint=f"http://127.0.0.1:{port}", connect_timeout_s=0.1))
        started = time.monotonic()
        with pytest.raises(BucketError) as caught:
            client.connect()
    assert caught.value.fault is Fault.TRANSIENT
    assert time.monotonic() - started < 5


def test_full_disk(calls: Calls) -> None:
    """A fetch onto a full disk is `NoSpace`, whatever the bucket does."""
    with pytest.raises(NoSpace):
        calls.client.fetch(calls.there.file_id, "/dev/full", 0, len(DATA), calls.there.sha1)


def test_ignored_range(devbucket: DevBucket, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers a range with the whole object is found out before a byte is written."""
    real = transport.Api.download_file_from_url
    monkeypatch.setattr(transport.Api, "download_file_from_url", lambda self, token, url, span: real(self, token, url))
    target = calls.directory / "f"
    with pytest.raises(BucketError) as caught:
        calls.client.fetch(calls.there.file_id, str(target), 5, 10, "")
    assert caught.value.fault is Fault.CORRUPT
    assert target.read_bytes() == b""


def test_wrong_confirmation(devbucket: DevBucket, calls: Calls) -> None:
    """An upload that B2 confirms with another SHA-1 is not taken for done."""
    devbucket.admin.fault("wrong_sha1", "b2_upload_file")
    assert calls.fails("b2_upload_file").fault is Fault.CORRUPT


# Each row of the table, and what lies outside it. `secret` stands for a token in the exception's text.
SECRET = "s3cr3t-t0k3n"


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (sdk.InvalidAuthToken(f"bad {SECRET}", "bad_auth_token"), Fault.TRANSIENT),
        (sdk.Unauthorized(f"no {SECRET}", "unauthorized"), Fault.DENIED),
        (sdk.StorageCapExceeded(), Fault.CAPPED),
        (sdk.CapExceeded(), Fault.CAPPED),
        (sdk.UnknownError(f"403 download_cap_exceeded {SECRET}"), Fault.CAPPED),
        (sdk.UnknownError(f"403 other {SECRET}"), Fault.DENIED),
        (sdk.UnknownError(f"418 teapot {SECRET}"), Fault.REFUSED),
        (sdk.UnknownError(f"ChunkedEncodingError('{SECRET}')"), Fault.TRANSIENT),
        (sdk.AccessDenied(), Fault.DENIED),
        (sdk.SSECKeyError(), Fault.DENIED),
        (sdk.TooManyRequests(5), Fault.THROTTLED),
        (sdk.ServiceError(f"503 x {SECRET}", retry_after_seconds="9"), Fault.THROTTLED),
        (sdk.ServiceError(f"503 x {SECRET}"), Fault.TRANSIENT),
        (sdk.RequestTimeout(SECRET), Fault.TRANSIENT),
        (sdk.FileNotPresent(file_id_or_name="k"), Fault.MISSING),
        (sdk.BucketIdNotFound("b"), Fault.MISSING),
        (sdk.UploadTokenUsedConcurrently(SECRET), Fault.TRANSIENT),
        (sdk.B2ConnectionError(f"HTTPSConnectionPool(host='h', port=1): /x?token={SECRET}"), Fault.TRANSIENT),
        (sdk.B2RequestTimeout(SECRET), Fault.TRANSIENT),
        (sdk.BrokenPipe(), Fault.TRANSIENT),
        (sdk.ConnectionReset(), Fault.TRANSIENT),
        (sdk.UnknownHost(), Fault.TRANSIENT),
        (sdk.PartSha1Mismatch("k"), Fault.CORRUPT),
        (sdk.UnsatisfiableRange(), Fault.CORRUPT),
        (sdk.BadRequest(f"Sha1 did not match {SECRET}", "bad_request"), Fault.CORRUPT),
        (sdk.BadRequest(f"no {SECRET}", "bad_request"), Fault.REFUSED),
        (sdk.UnusableFileName("x//y"), Fault.REFUSED),
        (sdk.PotentialS3EndpointPassedAsRealm(b"<xml>"), Fault.REFUSED),
        (requests.exceptions.ChunkedEncodingError(SECRET), Fault.TRANSIENT),
        (urllib3.exceptions.ProtocolError(SECRET), Fault.TRANSIENT),
        (urllib3.exceptions.ProtocolError("x", urllib3.exceptions.IncompleteRead(1, 2)), Fault.TRANSIENT),
        (ConnectionResetError(104, SECRET), Fault.TRANSIENT),
        (KeyError(SECRET), Fault.TRANSIENT),
        (ValueError(SECRET), Fault.TRANSIENT),
        (AssertionError(SECRET), Fault.TRANSIENT),
        (TypeError(SECRET), Fault.TRANSIENT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_every_exception_has_a_fault_and_no_secret(error: Exception, fault: Fault) -> None:
    """The table maps each exception to its fault, and the message is one line without the token."""
    translated = faults.translate(error, [SECRET])
    assert isinstance(translated, BucketError)
    assert translated.fault is fault
    assert str(translated) and "\n" not in str(translated) and SECRET not in str(translated)


def test_messages_hold_no_secret(devbucket: DevBucket, calls: Calls) -> None:
    """A server that quotes key and tokens back, and a connection that breaks, do not get them into a message."""
    account = calls.client._authority.connect()
    upload = calls.client._new_upload_url()
    calls.client._urls.append(upload)
    quoted = f"{devbucket.key} {account.token} Basic {SECRET}"
    texts = []
    for call in ALL_CALLS:
        message = quoted.replace(account.token, upload.token) if call == "b2_upload_file" else quoted
        devbucket.admin.fault("status", call, status=400, code="bad_request", message=message)
        error = calls.fails(call)
        assert error.__cause__ is None and error.__suppress_context__
        texts.append(str(error))
        devbucket.admin.fault("reset", call)
        texts.append(str(calls.fails(call)))
    devbucket.admin.fault("status", "b2_authorize_account", status=401, code="unauthorized", message=quoted)
    with pytest.raises(BucketError) as caught:
        calls.client.connect()
    texts.append(str(caught.value))
    for text in texts:
        assert account.token not in text
        assert upload.token not in text
        assert devbucket.key not in text
        assert SECRET not in text
    assert devbucket.key not in repr(settings_for(devbucket))


# ------------------------------------------------------------------------------------- keys and accounts


def make_key(
    devbucket: DevBucket, capabilities: list[str], bucket: str = "", prefix: str | None = None
) -> dict[str, str]:
    """A restricted key, as the settings fields that use it."""
    master = B2Client(settings_for(devbucket, bucket=bucket or devbucket.bucket))
    account = master._authority.connect()
    made = master._api.create_key(
        account.api_url,
        account.token,
        devbucket.admin.state()["account_id"],
        capabilities,
        "test",
        None,
        [account.bucket_id] if bucket or prefix is not None else None,
        prefix,
    )
    return {"key_id": made["applicationKeyId"], "key": made["applicationKey"]}


def refused(client: B2Client) -> tuple[Fault, str]:
    with pytest.raises(BucketError) as caught:
        client.connect()
    return caught.value.fault, str(caught.value)


NEEDED = ["listBuckets", "listFiles", "readFiles", "writeFiles"]


def test_connect_costs_two_requests(devbucket: DevBucket) -> None:
    """One b2_authorize_account and one b2_list_buckets, however often calls follow."""
    client = B2Client(settings_for(devbucket))
    client.connect()
    client.list_page("", "", "", 10)
    client.head("k")
    calls = devbucket.admin.calls()
    assert (calls["b2_authorize_account"], calls["b2_list_buckets"]) == (1, 1)


def test_wrong_key(devbucket: DevBucket) -> None:
    """A wrong key is DENIED; the message names the key id and not the key."""
    fault, text = refused(B2Client(settings_for(devbucket, key="wr0ng")))
    assert fault is Fault.DENIED
    assert devbucket.key_id in text and "wr0ng" not in text


def test_key_that_was_accepted_is_not_given_up_at_once(devbucket: DevBucket) -> None:
    """One odd refusal of a key that has worked is a passing fault; three in a row are believed; an acceptance forgets them."""
    client = B2Client(settings_for(devbucket))
    client.connect()

    def attempts(refusals: int) -> list[Fault | None]:
        devbucket.admin.expire_tokens()
        devbucket.admin.fault("status", "b2_authorize_account", status=401, code="unauthorized", count=refusals)
        found: list[Fault | None] = []
        for _ in range(refusals + 1):
            try:
                client.list_page("", "", "", 10)
                found.append(None)
            except BucketError as error:
                found.append(error.fault)
        return found

    assert attempts(2) == [Fault.TRANSIENT, Fault.TRANSIENT, None]
    assert attempts(4) == [Fault.TRANSIENT, Fault.TRANSIENT, Fault.DENIED, Fault.DENIED, None]


def test_wrong_bucket(devbucket: DevBucket) -> None:
    """A bucket that is not there is MISSING, by name."""
    fault, text = refused(B2Client(settings_for(devbucket, bucket="no-such-bucket")))
    assert fault is Fault.MISSING
    assert text == "no bucket named 'no-such-bucket' in this account"


def test_bucket_made_anew(devbucket: DevBucket) -> None:
    """A bucket of the right name with another id than the pinned one is not ours."""
    fault, text = refused(B2Client(settings_for(devbucket, bucket_id="0123456789abcdef01234567")))
    assert fault is Fault.MISSING
    assert "is not the one it was" in text


@pytest.mark.parametrize("lacking", NEEDED)
def test_lacking_capability(devbucket: DevBucket, lacking: str) -> None:
    """A key without a needed capability is DENIED at connect, which names it."""
    key = make_key(devbucket, [name for name in NEEDED if name != lacking])
    fault, text = refused(B2Client(settings_for(devbucket, **key)))
    assert fault is Fault.DENIED
    assert f"lacks the capability {lacking}" in text


def test_restricted_key_suffices(devbucket: DevBucket, tmp_path: Path) -> None:
    """A key for one bucket and prefix, without deleteFiles, serves a mount below that prefix."""
    key = make_key(devbucket, NEEDED, devbucket.bucket, "app/")
    client = B2Client(settings_for(devbucket, prefix="app/data/", **key))
    client.connect()
    version = store(client, tmp_path, "k", b"data")
    assert client.list_page("", "", "/", 10).versions == [version]
    assert client.head("k") == version
    assert client.hide("k") > 0
    assert [row["fileName"] for row in devbucket.admin.versions(devbucket.bucket)] == ["app/data/k"] * 2


def test_key_of_other_prefix_or_bucket(devbucket: DevBucket) -> None:
    """A key that is restricted to another prefix or bucket is DENIED, with what it is restricted to."""
    key = make_key(devbucket, NEEDED, devbucket.bucket, "app/")
    fault, text = refused(B2Client(settings_for(devbucket, prefix="", **key)))
    assert fault is Fault.DENIED and "'app/'" in text
    fault, text = refused(B2Client(settings_for(devbucket, bucket="another", **key)))
    assert fault is Fault.DENIED and devbucket.bucket in text and "another" in text


def test_expired_token_is_renewed_once_for_all(devbucket: DevBucket, calls: Calls) -> None:
    """16 threads that meet an expired token together make one b2_authorize_account, and all succeed."""
    devbucket.admin.expire_tokens()
    devbucket.admin.reset_counters()
    devbucket.admin.latency(0.05)  # so that all are refused before the first is authorised
    barrier = threading.Barrier(16)

    def fetch(number: int) -> bytes:
        path = calls.directory / f"f{number}"
        barrier.wait(10)
        calls.client.fetch(calls.there.file_id, str(path), 0, len(DATA), calls.there.sha1)
        return path.read_bytes()

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(fetch, range(16))) == [DATA] * 16
    assert devbucket.admin.calls() == {"b2_download_file_by_id": 32, "b2_authorize_account": 1}


@pytest.mark.parametrize("call", ALL_CALLS)
def test_expired_token_is_renewed_by_each_call(devbucket: DevBucket, calls: Calls, call: str) -> None:
    """Whatever call meets the expired token renews it, uploads with an old URL too, at one authorisation."""
    devbucket.admin.expire_tokens()
    devbucket.admin.reset_counters()
    assert calls.make(call)
    assert devbucket.admin.calls()["b2_authorize_account"] == 1


def test_failed_renewal_is_shared(devbucket: DevBucket, calls: Calls) -> None:
    """When B2 refuses to authorise, threads that wait for it fail with it; the next call tries anew."""
    devbucket.admin.expire_tokens()
    devbucket.admin.reset_counters()
    devbucket.admin.latency(0.1, "b2_authorize_account")
    devbucket.admin.fault("status", "b2_authorize_account", count=1, status=503, code="busy")
    barrier = threading.Barrier(8)

    def head(_: int) -> Fault | None:
        barrier.wait(10)
        try:
            calls.client.head("there")
        except BucketError as error:
            return error.fault
        return None

    with ThreadPoolExecutor(8) as pool:
        assert Fault.TRANSIENT in list(pool.map(head, range(8)))
    assert devbucket.admin.calls()["b2_authorize_account"] <= 2
    assert calls.client.head("there") == calls.there


# ------------------------------------------------------------------------------------------- upload URLs


def test_failed_upload_takes_a_fresh_url(devbucket: DevBucket, calls: Calls) -> None:
    """The URL of a failed upload is dropped, the others are kept."""
    kept = calls.client._new_upload_url()
    calls.client._urls.appendleft(kept)
    assert len(calls.client._urls) == 2
    devbucket.admin.fault("status", "b2_upload_file", status=503, code="busy")
    calls.fails("b2_upload_file")
    assert list(calls.client._urls) == [kept]
    devbucket.admin.reset_counters()
    calls.make("b2_upload_file")
    assert devbucket.admin.calls() == {"b2_upload_file": 1}


def test_uploads_share_urls(devbucket: DevBucket, calls: Calls) -> None:
    """Uploads one after the other use one URL; uploads at once use one each."""
    devbucket.admin.reset_counters()
    for _ in range(5):
        calls.make("b2_upload_file")
    assert devbucket.admin.calls() == {"b2_upload_file": 5}
    devbucket.admin.latency(0.05, "b2_upload_file")
    path = sealed(calls.directory, DATA)
    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(calls.client.upload, f"k{number}", *path, {}, "")
    assert devbucket.admin.calls()["b2_get_upload_url"] == 3
    assert len(devbucket.admin.objects(devbucket.bucket)) == 6


# ------------------------------------------------------------------------------------------- large files


PART = 10_000


@pytest.fixture
def in_parts(devbucket: DevBucket, tmp_path: Path) -> Calls:
    """A client for which everything above 30 kB is large."""
    devbucket.admin.settings(min_part_size=PART)
    return Calls(devbucket, tmp_path, part_size=PART, large_size=30_000)


def upload_large(calls: Calls, data: bytes, progress: Callable[[], None] = client.no_progress) -> Version:
    path, size, sha1 = sealed(calls.directory, data)
    return calls.client.upload("large", path, size, sha1, {"note": "ä"}, "text/plain", progress=progress)


def test_large_upload(devbucket: DevBucket, in_parts: Calls) -> None:
    """A large file goes in parts, carries its SHA-1 in the info, and comes back whole."""
    data = pattern(95_000)
    moved: list[int] = []
    devbucket.admin.reset_counters()
    version = upload_large(in_parts, data, lambda: moved.append(1))
    assert version.sha1 == sha1_of(data)
    assert version.info == {"note": "ä", "large_file_sha1": sha1_of(data)}
    calls = devbucket.admin.calls()
    assert calls["b2_upload_part"] == 10
    assert calls["b2_get_upload_part_url"] <= Settings(key_id="", key="", bucket="").part_lanes
    assert calls["b2_start_large_file"] == calls["b2_finish_large_file"] == 1
    assert len(moved) == 20  # hashed, then sent
    assert devbucket.admin.content(devbucket.bucket, "large") == data
    assert in_parts.client.head("large") == version
    assert in_parts.client.list_page("large", "", "", 10).versions == [version]


@pytest.mark.parametrize("size", [1, 200 * settings.MIB, 10**13])
def test_part_size_obeys_the_limits(devbucket: DevBucket, size: int) -> None:
    """At most 10,000 parts, each at least the account's minimum."""
    client = B2Client(settings_for(devbucket, part_size=1))
    parts = client._large._plan(size)
    assert len(parts) <= 10_000
    assert sum(part.size for part in parts) == size
    assert all(part.size >= 5_000_000 for part in parts[:-1])


def test_busy_part_is_sent_again(devbucket: DevBucket, in_parts: Calls) -> None:
    """A part that fails goes to a new URL; nothing else is sent twice."""
    devbucket.admin.reset_counters()
    devbucket.admin.fault("status", "b2_upload_part", count=2, status=503, code="busy")
    devbucket.admin.fault("reset_upload", "b2_upload_part", count=1)
    version = upload_large(in_parts, pattern(95_000))
    assert version.size == 95_000
    assert devbucket.admin.calls()["b2_upload_part"] == 13


def test_expired_tokens_midway(devbucket: DevBucket, in_parts: Calls) -> None:
    """A token that expires between two parts costs one authorisation and no data."""
    expired: list[int] = []

    def progress() -> None:
        expired.append(1)
        if len(expired) == 12:  # ten times hashed, two parts sent
            devbucket.admin.expire_tokens()

    devbucket.admin.reset_counters()
    assert upload_large(in_parts, pattern(95_000), progress).sha1 == sha1_of(pattern(95_000))
    assert devbucket.admin.calls()["b2_authorize_account"] == 1


def test_hopeless_large_upload_is_cancelled(devbucket: DevBucket, in_parts: Calls) -> None:
    """When a part fails for good the large file is cancelled: no version, no parts to pay for."""
    devbucket.admin.fault("status", "b2_upload_part", count=None, status=400, code="bad_request")
    with pytest.raises(BucketError) as caught:
        upload_large(in_parts, pattern(950_000))
    assert caught.value.fault is Fault.REFUSED
    assert devbucket.admin.calls()["b2_upload_part"] < 50, "the rest of the 95 parts is not tried"
    assert devbucket.admin.versions(devbucket.bucket, "large") == []


@pytest.mark.parametrize("kind", ["reply_lost", "reset"])
def test_lost_finish_is_resolved(devbucket: DevBucket, in_parts: Calls, kind: str) -> None:
    """If the answer to the finish is lost, the file is looked up; there is one version in the end."""
    devbucket.admin.fault(kind, "b2_finish_large_file")
    version = upload_large(in_parts, pattern(95_000))
    rows = devbucket.admin.versions(devbucket.bucket, "large")
    assert [(row["fileId"], row["action"]) for row in rows] == [(version.file_id, "upload")]


def test_finish_of_a_finished_file(devbucket: DevBucket, in_parts: Calls) -> None:
    """'No active upload' after a lost answer that could not be looked up is success all the same."""
    version = upload_large(in_parts, pattern(95_000))
    sums = [sha1_of(pattern(95_000)[start : start + PART]) for start in range(0, 95_000, PART)]
    assert in_parts.client._large._finish(version.file_id, sums, keep=True).file_id == version.file_id


def test_damaged_large_file_is_not_started(devbucket: DevBucket, in_parts: Calls) -> None:
    """A file that changed since it was sealed is found out before anything is sent."""
    path, size, _ = sealed(in_parts.directory, pattern(95_000))
    devbucket.admin.reset_counters()
    with pytest.raises(Damaged):
        in_parts.client.upload("large", path, size, sha1_of(b"other"), {}, "")
    with pytest.raises(Damaged):
        in_parts.client.upload("large", path, size + 1, sha1_of(b"other"), {}, "")
    assert devbucket.admin.calls() == {}


def test_copy_keeps_the_large_sha1(devbucket: DevBucket, in_parts: Calls) -> None:
    """A copy of a large file stays verifiable though its caller gave new info."""
    version = upload_large(in_parts, pattern(95_000))
    copied = in_parts.client.copy(version.file_id, "copy", version.size, {"new": "1"}, "a/b")
    assert copied.info == {"new": "1", "large_file_sha1": version.sha1}
    assert copied.sha1 == version.sha1


def test_huge_copy_in_parts(devbucket: DevBucket, in_parts: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of one b2_copy_file a copy is made of parts, with info and type."""
    version = upload_large(in_parts, pattern(95_000))
    monkeypatch.setattr(client, "MAX_SINGLE", 50_000)
    copied = in_parts.client.copy(version.file_id, "copy", version.size, {"new": "1"}, "a/b")
    assert devbucket.admin.calls()["b2_copy_part"] == 10
    assert (copied.content_type, copied.sha1) == ("a/b", version.sha1)
    assert devbucket.admin.content(devbucket.bucket, "copy") == pattern(95_000)


# ------------------------------------------------------------------------------------- foreign objects


def test_prefixes_do_not_meet(devbucket: DevBucket, tmp_path: Path) -> None:
    """Two mounts below different prefixes of one bucket do not see each other."""
    one = B2Client(settings_for(devbucket, prefix="one/"))
    two = B2Client(settings_for(devbucket, prefix="two/"))
    store(one, tmp_path, "k", b"1")
    assert two.list_page("", "", "", 10).versions == []
    assert two.head("k") is None
    assert two.hide("k") == 0
    assert [version.key for version in one.list_page("", "", "", 10).versions] == ["k"]


def test_foreign_objects_do_not_break_a_listing(devbucket: DevBucket) -> None:
    """Names and values that b2fs would never write are listed as they are."""
    names = ["/x", "a//b", "a/../b", "dir/", "s" * 300, "ok"]
    for name in names:
        devbucket.admin.put(devbucket.bucket, name, b"x", info={"src_last_modified_millis": "12.5e", "Big": "y"})
    client = B2Client(settings_for(devbucket))
    page = client.list_page("", "", "", 100)
    assert sorted(version.key for version in page.versions) == sorted(names)
    assert {version.info["src_last_modified_millis"] for version in page.versions} == {"12.5e"}
    assert {version.info["big"] for version in page.versions} == {"y"}
    for version in page.versions:
        assert client.head(version.key) == version
    assert client.head("a/../ok") is None


@pytest.mark.parametrize(
    ("content_sha1", "info", "known"),
    [
        ("none", {}, ""),
        ("none", {"large_file_sha1": "ab" * 20}, "ab" * 20),
        ("none", {"large_file_sha1": "nonsense"}, ""),
        ("unverified:" + "ab" * 20, {}, ""),
        ("cd" * 20, {"large_file_sha1": "ab" * 20}, "cd" * 20),
        (None, {}, ""),
    ],
)
def test_sha1_is_known_or_empty(content_sha1: str | None, info: dict[str, str], known: str) -> None:
    """Only a SHA-1 that somebody vouches for is reported."""
    row = {
        "action": "upload",
        "fileName": "k",
        "fileId": "4_z",
        "contentLength": 1,
        "uploadTimestamp": 1,
        "contentSha1": content_sha1,
        "fileInfo": info,
    }
    assert answers.page({"files": [row], "nextFileName": None}, "").versions[0].sha1 == known


@pytest.mark.parametrize(
    "change",
    [
        {"fileId": None},
        {"contentLength": "1"},
        {"uploadTimestamp": None},
        {"fileName": "p/\ud800"},
        {"fileName": "outside"},
    ],
)
def test_malformed_row_fails_the_page(change: dict[str, Any]) -> None:
    """A row that cannot be read is never left out silently: it could be taken for a deleted file."""
    row = {"action": "upload", "fileName": "p/k", "fileId": "4", "contentLength": 1, "uploadTimestamp": 1}
    answers.page({"files": [row]}, "p/")
    with pytest.raises(ValueError, match=r".+"):
        answers.page({"files": [{**row, **change}]}, "p/")


def test_info_keys_are_lower_case() -> None:
    """B2 stores them so; should it ever answer otherwise, ours still match."""
    row = {"action": "upload", "fileName": "k", "fileId": "4", "contentLength": 1, "uploadTimestamp": 1}
    assert answers.row({**row, "fileInfo": {"Big": "Yes"}}).version("").info == {"big": "Yes"}


def test_listing_that_does_not_move_on(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that continues where it began is an error, and no endless loop for whoever reads on."""
    monkeypatch.setattr(transport.Api, "list_folder", lambda *_: {"files": [], "nextFileName": "k"})
    assert calls.client.list_page("", "j", "", 10).next_key == "k"
    with pytest.raises(BucketError) as caught:
        calls.client.list_page("", "k", "", 10)
    assert caught.value.fault is Fault.TRANSIENT


def test_other_rows_are_left_out() -> None:
    """Unfinished large files and hide markers are no versions; folders are listed apart."""
    rows = [
        {"action": "start", "fileName": "p/a", "uploadTimestamp": 1, "contentLength": 0, "fileId": "1"},
        {"action": "hide", "fileName": "p/b", "uploadTimestamp": 1, "contentLength": 0, "fileId": "2"},
        {"action": "folder", "fileName": "p/c/", "uploadTimestamp": 0, "contentLength": 0, "fileId": None},
    ]
    page = answers.page({"files": rows, "nextFileName": "p/d"}, "p/")
    assert (page.versions, page.folders, page.next_key) == ([], ["c/"], "d")
    assert answers.page({"files": rows, "nextFileName": "q"}, "p/").next_key is None


# ---------------------------------------------------------------------------------- counting, environment


def test_counters_agree_with_the_server(devbucket: DevBucket, calls: Calls) -> None:
    """Every request is counted under the call that the server saw, with its bytes."""
    devbucket.admin.reset_counters()
    before = calls.client.requests()
    for call in ALL_CALLS:
        calls.make(call)
    devbucket.admin.fault("status", "b2_list_file_names", status=503, code="busy")
    calls.fails("b2_list_file_names")
    seen = devbucket.admin.calls()
    seen["b2_download_file_by_name"] = seen.pop("head_file_by_name")
    after = calls.client.requests()
    counted = {call: count - before.calls.get(call, 0) for call, count in after.calls.items()}
    assert {call: count for call, count in counted.items() if count} == seen
    assert after.sent - before.sent >= len(DATA)
    assert after.received - before.received >= len(DATA)


@pytest.mark.parametrize(
    ("call", "price"),
    [
        ("b2_upload_file", "A"),
        ("b2_hide_file", "A"),
        ("b2_finish_large_file", "A"),
        ("b2_get_upload_url", "A"),
        ("b2_download_file_by_id", "B"),
        ("b2_download_file_by_name", "B"),
        ("b2_get_file_info", "B"),
        ("b2_list_file_names", "C"),
        ("b2_copy_file", "C"),
        ("b2_authorize_account", "C"),
        ("b2_list_buckets", "C"),
    ],
)
def test_transaction_classes(call: str, price: str) -> None:
    """Calls are in the class that B2 bills (facts: b2.md 2)."""
    assert transport.class_of(call) == price


@pytest.mark.parametrize(
    ("url", "call"),
    [
        ("https://api/b2api/v4/b2_hide_file", "b2_hide_file"),
        ("https://pod/b2api/v4/b2_upload_file/bucket/c001", "b2_upload_file"),
        ("https://pod/b2api/v4/b2_upload_file?cvt=x&bucket=y", "b2_upload_file"),
        ("https://f/b2api/v4/b2_download_file_by_id?fileId=4_z", "b2_download_file_by_id"),
        ("https://f/file/bucket/b2api/v4/b2_hide_file", "b2_download_file_by_name"),
    ],
)
def test_call_of_a_url(url: str, call: str) -> None:
    """The call is read from the URL's path; an object may be called like a call."""
    assert transport.call_of(url) == call


def test_environment_is_ignored(devbucket: DevBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy settings and a ~/.netrc, which would replace our token, do not touch the traffic."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login x password y\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    B2Client(settings_for(devbucket)).connect()


def test_server_clock_may_differ(devbucket: DevBucket, tmp_path: Path) -> None:
    """A clock that is a day off does not fail an upload that B2 has stored (b2sdk's hook would)."""
    devbucket.admin.clock(offset_s=-86_400)
    assert store(B2Client(settings_for(devbucket)), tmp_path, "k", b"data").size == 4


def test_connections_are_kept(devbucket: DevBucket, calls: Calls) -> None:
    """32 threads use 32 connections, which are all kept for later: a new one costs a TLS handshake."""
    before = devbucket.admin.state()["connections"]
    devbucket.admin.latency(0.02)
    file_id, fetch = calls.there.file_id, calls.client.fetch
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda n: fetch(file_id, f"{calls.directory}/{n % 64}", 0, 100, ""), range(320)))
    assert 24 <= devbucket.admin.state()["connections"] - before <= 32


def test_connections_to_many_hosts_are_not_all_kept() -> None:
    """Upload pods come and go: those of the last hosts are kept, the others closed; and a host may come back."""
    adapter = transport._Session(2).get_adapter("https://")
    origins = [f"https://pod-{number}.example.org" for number in range(6)]
    for origin in [*origins, origins[0]]:
        adapter.get_connection_with_tls_context(requests.Request("GET", f"{origin}/x").prepare(), True)
    gc.collect()
    assert sorted(adapter._pools) == [origins[0], origins[5]]


def test_servers_have_to_prove_who_they_are() -> None:
    """Certificates are verified: our session leaves out much of what requests does, not that."""
    adapter = transport._Session(4).get_adapter("https://")
    request = requests.Request("GET", "https://api.backblazeb2.com/b2api/v4/x").prepare()
    pool = adapter.get_connection_with_tls_context(request, True)
    assert isinstance(pool, urllib3.HTTPSConnectionPool)
    assert pool.cert_reqs == "CERT_REQUIRED" and pool.ca_certs
    assert adapter.get_connection_with_tls_context(request, True) is pool


def test_redirects_are_not_followed(devbucket: DevBucket, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """B2 sends none; our token goes nowhere else because some server says so."""
    session = calls.client._api.b2_http.session
    real = session.get_adapter("http://").send

    def moved(*args: Any, **keywords: Any) -> requests.Response:
        response = real(*args, **keywords)
        response.status_code, response.raw.headers["Location"] = 302, devbucket.url
        return response

    monkeypatch.setattr(session.get_adapter("http://"), "send", moved)
    before = devbucket.admin.counters()["calls"].get("b2_hide_file", 0)
    assert calls.fails("b2_hide_file").fault is Fault.TRANSIENT
    assert devbucket.admin.counters()["calls"]["b2_hide_file"] == before + 1


def test_what_we_rely_on_in_b2sdk() -> None:
    """The few names of b2sdk that its interface does not promise are still there, with their meaning."""
    assert issubclass(sdk.FileNotPresent, sdk.ResourceNotFound)
    assert issubclass(sdk.UploadTokenUsedConcurrently, sdk.B2Error)
    http = transport.Http.__mro__[1]
    assert http.CONNECTION_TIMEOUT == 46, "still read from the instance, as `Http` assigns it"
    names = http.request.__code__.co_varnames[: http.request.__code__.co_argcount + 2]
    assert names == ("self", "method", "url", "headers", "data", "try_count", "params", "stream", "_timeout")
    assert transport.Api.API_VERSION == "v4"


def test_only_known_errors_leave(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug below becomes TRANSIENT: whoever waits for B2 retries, and nothing is thrown away."""

    def bug(*_: object) -> None:
        raise TypeError("oops")

    monkeypatch.setattr(transport.Api, "hide_file", bug)
    with pytest.raises(B2fsError, match="internal error: TypeError") as caught:
        calls.client.hide("k")
    assert isinstance(caught.value, BucketError) and caught.value.fault is Fault.TRANSIENT
