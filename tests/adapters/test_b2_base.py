"""Uploads of a changed file on an earlier version of it: what is copied on the server, what is sent, what is made sure of.

A copy pays from 20 kB on here, not from 32 MiB, so that the files can be small.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from b2fs.adapters.b2 import large
from b2fs.adapters.b2.client import B2Client
from b2fs.core.bucket import Base, Version
from b2fs.errors import BucketError, Fault
from tests.adapters.b2_support import pattern, purge, sealed, settings_for, sha1_of, store

if TYPE_CHECKING:  # at run time pytest imports it, as a plugin
    from tests.devbucket_fixture import DevBucket


LEAST = 10_000
WORTH = 20_000
OLD = pattern(300_000)
CHANGE = slice(150_000, 154_096)
NEW = OLD[: CHANGE.start] + bytes(4096) + OLD[CHANGE.stop :]
SAME = [(0, CHANGE.start), (CHANGE.stop, len(NEW))]
OURS = {"src_last_modified_millis": "1700000000000", "b2fs": "m=100644;u=0;g=0;n=0;o=mount1.1f"}


class Changed:
    """A client, and an object of which a changed version is to be uploaded."""

    def __init__(self, devbucket: DevBucket, directory: Path, **change: Any) -> None:
        self.admin = devbucket.admin
        self.bucket = devbucket.bucket
        self.directory = directory
        self.client = B2Client(settings_for(devbucket, part_size=LEAST, part_lanes=1, **change))
        self.old = store(self.client, directory, "large", OLD)
        self.admin.reset_counters()
        self._before = self.client.requests()

    def upload(
        self, data: bytes = NEW, same: list[tuple[int, int]] | None = None, file_id: str = "", resume: bool = False
    ) -> Version:
        base = Base(file_id or self.old.file_id, SAME if same is None else same)
        return self.client.upload("large", *sealed(self.directory, data), OURS, "text/plain", resume, base)

    def calls(self) -> dict[str, int]:
        """Calls that move bytes, since the object was made."""
        moving = ("b2_upload_file", "b2_upload_part", "b2_copy_part", "b2_copy_file")
        return {call: number for call, number in self.admin.calls().items() if call in moving}

    def moved(self) -> tuple[int, int]:
        """(bytes sent as parts or files, bytes copied) since the object was made, about: JSON counts as sent."""
        now = self.client.requests()
        return now.sent - self._before.sent, now.copied - self._before.copied

    def unfinished(self) -> list[str]:
        return [row["fileId"] for row in self.admin.versions(self.bucket) if row["action"] == "start"]

    def check(self, version: Version, data: bytes = NEW) -> None:
        """The bucket has `data`, with our info, and nothing is left over."""
        assert self.admin.content(self.bucket, "large") == data
        assert (version.size, version.sha1) == (len(data), sha1_of(data))
        assert {name: version.info[name] for name in OURS} == OURS
        assert self.unfinished() == []


@pytest.fixture(autouse=True)
def _cheap_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large, "WORTH", WORTH)
    monkeypatch.setattr(large, "_PAUSE_MAX_S", 0.0)


@pytest.fixture
def changed(devbucket: DevBucket, tmp_path: Path) -> Changed:
    devbucket.admin.settings(min_part_size=LEAST)
    return Changed(devbucket, tmp_path)


WHOLE = {"b2_upload_file": 1}


# ------------------------------------------------------------------------------------------- what it costs


def test_a_small_change_is_sent_and_the_rest_copied(changed: Changed) -> None:
    """4 KiB in the middle: two copies, and one part of the least size."""
    version = changed.upload()
    changed.check(version)
    assert changed.calls() == {"b2_upload_part": 1, "b2_copy_part": 2}
    sent, copied = changed.moved()
    assert copied == len(NEW) - LEAST
    assert LEAST <= sent < LEAST + 3000


@pytest.mark.parametrize(
    ("data", "same", "calls"),
    [
        pytest.param(OLD + b"more", [(0, len(OLD))], {"b2_upload_part": 1, "b2_copy_part": 1}, id="extended"),
        pytest.param(OLD[:200_000], [(0, 200_000)], {"b2_copy_part": 2}, id="cut"),
        pytest.param(b"x" + OLD[1:], [(1, len(OLD))], {"b2_upload_part": 1, "b2_copy_part": 1}, id="first byte"),
        pytest.param(OLD[:-1] + b"x", [(0, len(OLD) - 1)], {"b2_upload_part": 1, "b2_copy_part": 1}, id="last byte"),
    ],
)
def test_other_changes(changed: Changed, data: bytes, same: list[tuple[int, int]], calls: dict[str, int]) -> None:
    """A file that grew, shrank, or changed at an end."""
    changed.check(changed.upload(data, same), data)
    assert changed.calls() == calls


def test_copies_have_a_largest_size(devbucket: DevBucket, tmp_path: Path) -> None:
    """What is the same is copied in pieces of at most `copy_part_size`."""
    devbucket.admin.settings(min_part_size=LEAST)
    changed = Changed(devbucket, tmp_path, copy_part_size=60_000)
    changed.check(changed.upload())
    assert changed.calls() == {"b2_upload_part": 1, "b2_copy_part": 6}


@pytest.mark.parametrize("same", [[], [(0, WORTH)], [(0, WORTH + 1), (100_000, 100_000 + WORTH)]])
def test_all_of_it_is_sent_if_that_is_not_dearer(changed: Changed, same: list[tuple[int, int]]) -> None:
    """Where copies would save too little the file goes as one, as any other."""
    changed.check(changed.upload(same=same))
    assert changed.calls() == WHOLE


# ------------------------------------------------------------------------------------------- what is made sure of


@pytest.mark.parametrize("same", [[(0, len(NEW))], [(0, 152_000), (CHANGE.stop, len(NEW))]])
def test_a_wrong_hint_changes_no_byte(changed: Changed, same: list[tuple[int, int]]) -> None:
    """If a range is not what was said of it, the copied part's SHA-1 tells, and all is uploaded."""
    changed.check(changed.upload(same=same))
    assert changed.calls()["b2_upload_file"] == 1


def test_base_that_is_shorter_than_said(changed: Changed) -> None:
    """A range beyond the end of the base cannot be copied: all is uploaded."""
    data = OLD + pattern(100_000)
    changed.check(changed.upload(data, [(0, len(data))]), data)
    assert changed.calls()["b2_upload_file"] == 1


def test_base_that_is_gone(changed: Changed) -> None:
    """The earlier version was deleted for good: all is uploaded."""
    purge(changed.client, changed.old)
    changed.check(changed.upload())
    assert changed.calls()["b2_upload_file"] == 1


def test_base_that_is_hidden_or_overwritten(changed: Changed) -> None:
    """Another host hid the object and wrote another one: the version is there all the same, and is copied from."""
    changed.client.hide("large")
    store(changed.client, changed.directory, "large", b"theirs")
    changed.admin.reset_counters()
    changed.check(changed.upload())
    assert changed.calls() == {"b2_upload_part": 1, "b2_copy_part": 2}


@pytest.mark.parametrize("code", ["transaction_cap_exceeded", "access_denied"])
def test_copies_that_are_refused(changed: Changed, code: str) -> None:
    """The day's class C transactions are used up, or the key may not read: uploads are free and go on."""
    changed.admin.fault("status", "b2_copy_part", count=None, status=403, code=code)
    changed.check(changed.upload())
    assert changed.calls()["b2_upload_file"] == 1


def test_copy_that_fails_once(changed: Changed) -> None:
    """A busy server at one part costs that part's repetition."""
    changed.admin.fault("status", "b2_copy_part", count=1)
    changed.check(changed.upload())
    assert changed.calls() == {"b2_upload_part": 1, "b2_copy_part": 3}


# ------------------------------------------------------------------------------------------- going on


def test_attempt_that_broke_off_is_gone_on_with(changed: Changed) -> None:
    """Parts that were copied before the upload failed are neither copied nor sent again."""
    changed.admin.fault("status", "b2_upload_part", count=None)
    with pytest.raises(BucketError) as caught:
        changed.upload()
    assert caught.value.fault is Fault.TRANSIENT
    (begun,) = changed.unfinished()
    assert changed.admin.calls()["b2_copy_part"] >= 1
    copied = changed.admin.calls()["b2_copy_part"]
    changed.admin.clear_faults()
    changed.admin.reset_counters()
    version = changed.upload(resume=True)
    changed.check(version)
    assert version.file_id == begun
    assert changed.calls() == {"b2_upload_part": 1, **({"b2_copy_part": 2 - copied} if copied < 2 else {})}


def test_base_that_went_between_two_attempts(changed: Changed) -> None:
    """What an attempt on the base has left is used or cancelled when the next one has none."""
    changed.admin.fault("status", "b2_upload_part", count=5)
    with pytest.raises(BucketError):
        changed.upload()
    purge(changed.client, changed.old)
    changed.check(changed.upload(resume=True))
