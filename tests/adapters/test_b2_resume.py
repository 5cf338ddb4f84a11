"""Large files whose upload was interrupted: what a later attempt sends again, what it cancels, what it leaves alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from b2fs.adapters.b2 import client, large, unfinished
from b2fs.adapters.b2.client import B2Client, no_progress
from b2fs.adapters.b2.process import TransferProcess
from b2fs.adapters.b2.source import Source
from b2fs.core.bucket import Version
from b2fs.errors import BucketError, Damaged, Fault
from tests.adapters.b2_support import pattern, sealed, settings_for, sha1_of

if TYPE_CHECKING:  # at run time pytest imports it, as a plugin
    from tests.devbucket_fixture import DevBucket


PART = 10_000
DATA = pattern(95_000)
PARTS = 10
SIZES: dict[str, Any] = {"part_size": PART, "large_size": 30_000}

OURS = {"src_last_modified_millis": "1700000000000", "b2fs": "m=100644;u=0;g=0;n=0;o=mount1.1f"}
LATER = {**OURS, "b2fs": "m=100644;u=0;g=0;n=0;o=mount1.20"}
"""The same file, written again by the same mount."""
CHANGED = {**OURS, "b2fs": "m=100600;u=0;g=0;n=0;o=mount1.1f"}
THEIRS = {**OURS, "b2fs": "m=100644;u=0;g=0;n=0;o=mount2.1f"}
FOREIGN = {"src_last_modified_millis": "1700000000000"}


class Attempts:
    """One client for which everything from 30 kB on is large, and the bucket that it uploads to."""

    def __init__(self, devbucket: DevBucket, directory: Path, **change: Any) -> None:
        self.admin = devbucket.admin
        self.bucket = devbucket.bucket
        self.directory = directory
        self.client = B2Client(settings_for(devbucket, **{**SIZES, **change}))
        self.client.connect()
        self.admin.reset_counters()

    def upload(
        self,
        resume: bool = True,
        data: bytes = DATA,
        info: Mapping[str, str] = OURS,
        progress: Callable[[], None] = no_progress,
        key: str = "large",
    ) -> Version:
        return self.client.upload(key, *sealed(self.directory, data), info, "text/plain", resume, None, progress)

    def fails(self, **arguments: Any) -> Fault:
        """An upload that is not to succeed: its fault."""
        with pytest.raises(BucketError) as caught:
            self.upload(**arguments)
        return caught.value.fault

    def begin(
        self,
        *parts: tuple[int, bytes],
        data: bytes = DATA,
        info: Mapping[str, str] = OURS,
        name: str = "large",
    ) -> str:
        """The id of a large file that has got these parts so far, as an attempt that was killed leaves it."""
        api, call = self.client._api, self.client._authority.call
        started = call(
            lambda account: api.start_large_file(
                account.api_url,
                account.token,
                account.bucket_id,
                name,
                "text/plain",
                {**info, "large_file_sha1": sha1_of(data)},
            )
        )
        file_id: str = started["fileId"]
        for number, content in parts:
            url = call(lambda account: api.get_upload_part_url(account.api_url, account.token, file_id))
            path, size, sha1 = sealed(self.directory, content, "part")
            fd = os.open(path, os.O_RDONLY)
            try:
                source = Source(fd, path, 0, size, 60.0)
                api.upload_part(url["uploadUrl"], url["authorizationToken"], number, size, sha1, source)
            finally:
                os.close(fd)
        self.admin.reset_counters()
        return file_id

    def sent(self) -> int:
        """Parts that were sent since the counters were reset."""
        return self.admin.calls().get("b2_upload_part", 0)

    def count(self, call: str) -> int:
        return self.admin.calls().get(call, 0)

    def unfinished(self) -> list[str]:
        """Ids of the large files that B2 waits for."""
        return [row["fileId"] for row in self.admin.versions(self.bucket) if row["action"] == "start"]

    def content(self) -> bytes:
        return self.admin.content(self.bucket, "large")


@pytest.fixture
def attempts(devbucket: DevBucket, tmp_path: Path) -> Attempts:
    devbucket.admin.settings(min_part_size=1)
    return Attempts(devbucket, tmp_path, part_lanes=1)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "_PAUSE_MAX_S", 0.0)


def part(number: int, data: bytes = DATA) -> tuple[int, bytes]:
    return number, data[(number - 1) * PART : number * PART]


def after(number: int, action: Callable[[], object]) -> Callable[[], None]:
    """A progress call that does something when so many parts were sent (each is hashed before)."""
    calls: list[int] = []

    def progress() -> None:
        calls.append(1)
        if len(calls) == PARTS + number:
            action()

    return progress


# ------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("begun", [[], [1], [1, 2, 3], [2, 7, 10], list(range(1, 11))])
def test_only_missing_parts_are_sent(attempts: Attempts, begun: list[int]) -> None:
    """Whatever parts arrived, the next attempt sends the others and finishes the same large file."""
    file_id = attempts.begin(*[part(number) for number in begun])
    version = attempts.upload()
    assert attempts.sent() == PARTS - len(begun)
    assert (version.file_id, version.sha1) == (file_id, sha1_of(DATA))
    assert version.info == {**OURS, "large_file_sha1": sha1_of(DATA)}
    assert attempts.count("b2_start_large_file") == 0
    assert attempts.content() == DATA
    assert attempts.unfinished() == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_transfer_process_killed_midway(devbucket: DevBucket, tmp_path: Path, number: signal.Signals) -> None:
    """After the transfer process was killed, or hung and was replaced, the new one sends only what is missing."""
    devbucket.admin.settings(min_part_size=PART)
    settings = settings_for(devbucket, **SIZES, heartbeat_s=0.1, silence_timeout_s=2.0)
    data = pattern(195_000)
    arguments = ("large", *sealed(tmp_path, data), OURS, "")
    async with TransferProcess.open(settings) as transfer:
        await transfer.connect()
        devbucket.admin.reset_counters()
        stall = devbucket.admin.fault("stall", "b2_upload_part", count=None, probability=0.45)
        errors: list[BucketError] = []

        async def attempt() -> None:
            try:
                await transfer.upload(*arguments)
            except BucketError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attempt)
            with trio.fail_after(30.0):
                while devbucket.admin.fired(stall) < settings.part_lanes:
                    await trio.sleep(0.02)
            assert transfer.pid is not None
            os.kill(transfer.pid, number)
        assert [error.fault for error in errors] == [Fault.TRANSIENT]
        arrived = devbucket.admin.calls()["b2_upload_part"] - settings.part_lanes
        assert 0 < arrived < 20
        devbucket.admin.clear_faults()
        devbucket.admin.reset_counters()
        version = await transfer.upload(*arguments, resume=True)
    assert devbucket.admin.calls()["b2_upload_part"] == 20 - arrived
    assert version.sha1 == sha1_of(data)
    assert devbucket.admin.content(devbucket.bucket, "large") == data
    assert len(devbucket.admin.versions(devbucket.bucket)) == 1


@pytest.mark.parametrize(
    ("kind", "args", "fault"),
    [
        ("status", {"status": 503, "code": "service_unavailable"}, Fault.TRANSIENT),
        ("reset_upload", {}, Fault.TRANSIENT),
        ("status", {"status": 429, "code": "too_many_requests", "retry_after_s": 1}, Fault.THROTTLED),
        ("cap", {"code": "storage_cap_exceeded"}, Fault.CAPPED),
        ("status", {"status": 403, "code": "access_denied"}, Fault.DENIED),
        ("status", {"status": 400, "code": "bad_request", "message": "Sha1 did not match"}, Fault.CORRUPT),
    ],
)
def test_passing_fault_midway_keeps_what_arrived(
    attempts: Attempts, kind: str, args: dict[str, Any], fault: Fault
) -> None:
    """A fault that may pass ends the attempt and cancels nothing; the next one sends the other parts."""
    break_down = after(3, lambda: attempts.admin.fault(kind, "b2_upload_part", count=None, **args))
    assert attempts.fails(resume=False, progress=break_down) is fault
    assert attempts.count("b2_cancel_large_file") == 0
    (file_id,) = attempts.unfinished()
    attempts.admin.clear_faults()
    attempts.admin.reset_counters()
    assert attempts.upload().file_id == file_id
    assert attempts.sent() == PARTS - 3
    assert attempts.content() == DATA


def test_refused_part_cancels(attempts: Attempts) -> None:
    """What B2 will never accept is not kept: the large file is cancelled."""
    refused = {"status": 400, "code": "bad_request"}
    refuse = after(3, lambda: attempts.admin.fault("status", "b2_upload_part", count=None, **refused))
    assert attempts.fails(resume=False, progress=refuse) is Fault.REFUSED
    assert attempts.count("b2_cancel_large_file") == 1
    assert attempts.unfinished() == []


def test_local_file_damaged_midway_cancels(attempts: Attempts) -> None:
    """A local file that changes after it was hashed is `Damaged`; what was sent of it is cancelled."""
    damage = after(3, lambda: (attempts.directory / "sealed").write_bytes(bytes(len(DATA))))
    with pytest.raises(Damaged):
        attempts.upload(resume=False, progress=damage)
    assert attempts.unfinished() == []


@pytest.mark.parametrize(
    ("kind", "args", "kept"),
    [
        ("cap", {"code": "storage_cap_exceeded"}, True),
        ("status", {"status": 503, "code": "service_unavailable"}, True),
        ("status", {"status": 400, "code": "bad_request"}, False),
    ],
)
def test_failed_finish(attempts: Attempts, kind: str, args: dict[str, Any], kept: bool) -> None:
    """A finish that may work later leaves all parts, and the next attempt only finishes; a refused one cancels."""
    attempts.admin.fault(kind, "b2_finish_large_file", count=None, **args)
    attempts.fails(resume=False)
    attempts.admin.clear_faults()
    assert len(attempts.unfinished()) == kept
    attempts.admin.reset_counters()
    attempts.upload()
    assert attempts.sent() == (0 if kept else PARTS)
    assert attempts.content() == DATA


def test_lost_finish_of_a_resumed_upload(attempts: Attempts) -> None:
    """The answer to the finish may get lost here too: there is one version, and we hear of it."""
    file_id = attempts.begin(part(1))
    attempts.admin.fault("reply_lost", "b2_finish_large_file")
    assert attempts.upload().file_id == file_id
    assert len(attempts.admin.versions(attempts.bucket)) == 1


def test_nothing_to_go_on_with(attempts: Attempts) -> None:
    """If there is no unfinished file the upload is as any other, and the look costs one class C."""
    before = attempts.client.requests().classes
    assert attempts.upload().sha1 == sha1_of(DATA)
    assert attempts.sent() == PARTS
    assert attempts.count("b2_start_large_file") == 1
    assert attempts.client.requests().classes["C"] - before["C"] == 1


@pytest.mark.parametrize("resume", [False, True])
def test_first_attempt_and_small_files_do_not_look(attempts: Attempts, resume: bool) -> None:
    """Only a later attempt with a large file looks for parts."""
    attempts.upload(resume, data=DATA if not resume else b"small")
    assert attempts.count("b2_list_unfinished_large_files") == 0


# --------------------------------------------------------------------------- parts that are not as wanted


def test_parts_with_other_bytes_are_sent_again(attempts: Attempts) -> None:
    """A part of the right length with another SHA-1, and one of another length, are replaced."""
    attempts.begin(part(1), (2, b"x" * PART), (3, DATA[:5_000]), part(4))
    attempts.upload()
    assert attempts.sent() == PARTS - 2
    assert attempts.content() == DATA


def test_other_plan_begins_anew(attempts: Attempts, devbucket: DevBucket, tmp_path: Path) -> None:
    """If the file was cut into more parts than now the old ones cannot be used: cancelled, and begun anew."""
    attempts.begin(*[(number, DATA[(number - 1) * 5_000 : number * 5_000]) for number in (1, 2, 11)])
    attempts.upload()
    assert attempts.count("b2_cancel_large_file") == attempts.count("b2_start_large_file") == 1
    assert attempts.sent() == PARTS
    assert attempts.content() == DATA
    assert attempts.unfinished() == []


def test_pages_of_parts(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are found on every page of their list."""
    monkeypatch.setattr(unfinished, "_PARTS", 2)
    attempts.begin(*[part(number) for number in (1, 3, 5, 6, 8, 9, 10)])
    attempts.upload()
    assert attempts.count("b2_list_parts") == 4
    assert attempts.sent() == 3
    assert attempts.content() == DATA


def test_pages_of_unfinished_files(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our large file is found on whatever page it stands, and every page is looked through."""
    monkeypatch.setattr(unfinished, "_FILES", 2)
    others = [attempts.begin(info=THEIRS) for _ in range(5)]
    file_id = attempts.begin(part(1), part(2))
    abandoned = [attempts.begin(info=LATER) for _ in range(3)]
    assert attempts.upload().file_id == file_id
    assert attempts.sent() == PARTS - 2
    assert attempts.count("b2_list_unfinished_large_files") == 5
    assert attempts.count("b2_cancel_large_file") == len(abandoned)
    assert sorted(attempts.unfinished()) == sorted(others)


@pytest.mark.parametrize(
    ("call", "answer", "asked"),
    [
        ("list_unfinished_large_files", {"files": [], "nextFileId": "a"}, 2),
        ("list_parts", {"parts": [], "nextPartNumber": 1}, 1),
    ],
)
def test_list_that_does_not_move_on(
    attempts: Attempts, monkeypatch: pytest.MonkeyPatch, call: str, answer: dict[str, Any], asked: int
) -> None:
    """A list that repeats itself is a passing fault, not an endless loop."""
    asks: list[object] = []

    def repeated(*_: object) -> dict[str, Any]:
        asks.append(call)
        if len(asks) > 10:
            raise RuntimeError
        return answer

    attempts.begin(part(1))
    monkeypatch.setattr(attempts.client._api, call, repeated)
    assert attempts.fails() is Fault.TRANSIENT
    assert len(asks) == asked
    assert len(attempts.unfinished()) == 1


# ----------------------------------------------------------------------------------------- whose file it is


@pytest.mark.parametrize("info", [LATER, CHANGED], ids=["operation", "attributes"])
def test_another_write_is_not_resumed(attempts: Attempts, info: dict[str, str]) -> None:
    """Another operation, or other attributes, with the same bytes: begun anew, and the abandoned file cancelled."""
    old = attempts.begin(part(1), info=OURS)
    assert attempts.upload(info=info).file_id != old
    assert attempts.sent() == PARTS
    assert attempts.unfinished() == []


def test_changed_content_is_not_resumed(attempts: Attempts) -> None:
    """If the content changed, however little, nothing of the old one is used, and it is cancelled."""
    changed = DATA[:-1] + b"!"
    attempts.begin(*[part(number) for number in range(1, 10)])
    attempts.upload(data=changed)
    assert attempts.sent() == PARTS
    assert attempts.content() == changed
    assert attempts.unfinished() == []


@pytest.mark.parametrize("info", [THEIRS, FOREIGN, {}], ids=["mount", "tool", "bare"])
def test_unfinished_files_of_others_are_untouched(attempts: Attempts, info: dict[str, str]) -> None:
    """What another mount or tool began under our name is neither used nor cancelled, though it has our bytes."""
    theirs = attempts.begin(part(1), part(2), info=info)
    assert attempts.upload().file_id != theirs
    assert attempts.sent() == PARTS
    assert attempts.count("b2_cancel_large_file") == 0
    assert attempts.unfinished() == [theirs]


def test_other_names_are_untouched(attempts: Attempts) -> None:
    """A file of ours whose name only begins alike is another key's business."""
    other = attempts.begin(part(1), name="large.2")
    attempts.upload()
    assert attempts.sent() == PARTS
    assert attempts.unfinished() == [other]


def test_content_without_an_operation_is_not_resumed(attempts: Attempts) -> None:
    """Without an operation id nobody can tell whose file it is, however equal it is."""
    equal = attempts.begin(part(1), info=FOREIGN)
    attempts.upload(info=FOREIGN)
    assert attempts.sent() == PARTS
    assert attempts.unfinished() == [equal]


def test_newest_of_several_is_taken(attempts: Attempts) -> None:
    """If two attempts at one write began, the later start is used, for its version lies higher; the other is cancelled."""
    attempts.admin.clock(offset_s=-60)
    attempts.begin(part(1), part(2), part(3))
    attempts.admin.clock()
    newer = attempts.begin(part(1))
    attempts.admin.clock(offset_s=-30)
    attempts.begin(part(1), part(2))
    attempts.admin.clock()
    assert attempts.upload().file_id == newer
    assert attempts.sent() == PARTS - 1
    assert attempts.unfinished() == []


def test_restricted_key_and_prefix(devbucket: DevBucket, tmp_path: Path) -> None:
    """The look is for the name with its prefix, so a key that is restricted to the prefix may have it."""
    devbucket.admin.settings(min_part_size=PART)
    master = B2Client(settings_for(devbucket))
    account = master._authority.connect()
    made = master._api.create_key(
        account.api_url,
        account.token,
        devbucket.admin.state()["account_id"],
        ["listBuckets", "listFiles", "readFiles", "writeFiles"],
        "test",
        None,
        [account.bucket_id],
        "app/",
    )
    key = {"key_id": made["applicationKeyId"], "key": made["applicationKey"]}
    attempts = Attempts(devbucket, tmp_path, prefix="app/", **key)
    file_id = attempts.begin(part(1), name="app/large")
    attempts.begin(part(1), name="app/large", info=LATER)
    assert attempts.upload().file_id == file_id
    assert attempts.sent() == PARTS - 1
    assert attempts.unfinished() == []


# ---------------------------------------------------------------------------------- order, and two at a time


def test_resumed_version_is_as_old_as_its_start(attempts: Attempts) -> None:
    """What others wrote since the start lies above a resumed version, whose time tells so; the next operation
    finds nothing to resume, and comes out on top.
    """
    attempts.admin.clock(offset_s=-60)
    attempts.begin(part(1))
    attempts.admin.clock()
    theirs = attempts.admin.put(attempts.bucket, "large", b"theirs")
    version = attempts.upload()
    assert version.uploaded_ms < theirs["uploadTimestamp"]
    assert attempts.content() == b"theirs"
    again = attempts.upload(info=LATER)
    assert again.uploaded_ms >= theirs["uploadTimestamp"]
    assert attempts.content() == DATA
    assert attempts.unfinished() == []


def test_attempt_that_was_given_up_meets_the_next(attempts: Attempts) -> None:
    """Two attempts at one write at a time, the first one forgotten by its caller, make one version and no error."""
    second: list[Version] = []
    first = attempts.upload(resume=False, progress=after(3, lambda: second.append(attempts.upload())))
    assert first == second[0]
    assert attempts.sent() == 3 + (PARTS - 3) + 1
    assert attempts.content() == DATA
    assert len(attempts.admin.versions(attempts.bucket)) == 1


def test_cancelled_by_somebody_midway(attempts: Attempts) -> None:
    """A large file that a lifecycle rule or a person cancels midway is a passing fault; the next attempt begins anew."""

    def cancel() -> None:
        attempts.client._large._unfinished.cancel(attempts.unfinished()[0])

    assert attempts.fails(resume=False, progress=after(3, cancel)) is Fault.TRANSIENT
    assert attempts.upload().sha1 == sha1_of(DATA)
    assert attempts.content() == DATA


def test_cancelled_between_the_lists(attempts: Attempts) -> None:
    """The same between finding the file and listing its parts."""
    attempts.begin(part(1))
    attempts.admin.fault("status", "b2_list_parts", status=400, code="bad_request", message="No active upload for: x")
    attempts.upload()
    assert attempts.sent() == PARTS
    assert attempts.content() == DATA


def test_failed_look_is_a_failed_attempt(attempts: Attempts) -> None:
    """If B2 cannot tell what is unfinished, nothing is begun: otherwise each such attempt would leave one more."""
    attempts.begin(part(1))
    attempts.admin.fault("status", "b2_list_unfinished_large_files", status=503, code="busy")
    assert attempts.fails() is Fault.TRANSIENT
    assert attempts.count("b2_start_large_file") == 0


def test_copy_in_parts_keeps_nothing(attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy is not resumed, so whatever ends it cancels its large file."""
    source = attempts.upload(resume=False)
    monkeypatch.setattr(client, "MAX_SINGLE", 50_000)
    monkeypatch.setattr(large, "MAX_SINGLE", 50_000)
    attempts.admin.fault("status", "b2_copy_part", count=None, status=503, code="busy")
    with pytest.raises(BucketError) as caught:
        attempts.client.copy(source.file_id, "copy", source.size, OURS, "")
    assert caught.value.fault is Fault.TRANSIENT
    assert attempts.count("b2_cancel_large_file") == 1
    assert attempts.unfinished() == []


# ------------------------------------------------------------------------------------------------ part sizes


@pytest.mark.parametrize(
    ("recommended", "size", "parts"),
    [(50_000, 99_999, 0), (50_000, 100_000, 2), (50_000, 100_001, 3), (10**8, 10**6, 0), (300_000, 700_000, 3)],
)
def test_recommendation_of_the_bucket_counts(devbucket: DevBucket, recommended: int, size: int, parts: int) -> None:
    """From twice the recommended part size on a file is large, in parts of that size, if ours are not smaller."""
    devbucket.admin.settings(min_part_size=1, recommended_part_size=recommended)
    large_files = B2Client(settings_for(devbucket))._large
    assert large_files.is_large(size) == (parts > 0)
    if parts:
        assert len(large_files._plan(size)) == parts
