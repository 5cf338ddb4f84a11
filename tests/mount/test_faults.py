"""Faults of B2 while an app works: it sees none of a passing one, and afterwards bucket, tree and other hosts agree.

A row of TROUBLES is one kind of fault. It begins before the app does and ends once it has happened; the app goes on
for some rounds more. Everything goes over HTTP to a bucket in a process of its own.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from b2fs.devbucket.sample import sample_site, write_tree
from tests.app.server import TEMPORARY, serve
from tests.app.story import run_story
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.agree import check_bucket, check_everywhere, check_second_host, stored_twice
from tests.mount.hosts import Host, NewHost
from tests.mount.support import until
from tests.mount.workload import Workload, at_work, cold_objects
from tests.tree import compare, tree

new_host = hosts.new_host

IMPATIENT = (sys.executable, "-m", "tests.mount.impatient")
UPLOAD, FETCH = "b2_upload_file", "b2_download_file_by_id"
HISTORY = "history/h_*"
"""Files that the workload writes once and keeps: a fault of their upload cannot pass because nobody wants them any more."""
ROUNDS = 5
"""At least so many rounds of the app see the fault, or its end."""
HOUR_S = 3600.0
DICTATIONS = 5
"""In the sample that the real app starts with: what it reads of them has to be fetched."""


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def errors(host: Host) -> list[str]:
    """What the daemon answered with an error: the kernel repeats a failed read-ahead, so a program may not see it."""
    return [line for line in host.log_text().splitlines() if " ERROR " in line or " CRITICAL " in line]


@dataclass
class Scene:
    """What a row gets to see."""

    bucket: DevBucket
    host: Host
    app: Workload

    def calls(self, call: str) -> int:
        return self.bucket.admin.calls().get(call, 0)

    def statuses(self, status: int) -> int:
        return int(self.bucket.admin.counters()["statuses"].get(str(status), 0))


@dataclass(frozen=True)
class Trouble:
    begin: Callable[[Scene], None]
    fired: Callable[[Scene], bool]
    """Whether it has happened, as far as it should."""
    end: Callable[[Scene], None]
    before: Callable[[DevBucket], None] = lambda bucket: None
    """Done before the bucket holds anything."""
    proof: Callable[[Scene], None] = lambda scene: None
    """What else must be true at the end, when all is flushed."""
    settings: Mapping[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ()
    reads_cold: bool = True


def faulty(*faults: tuple[str, str, dict[str, Any]], **more: Any) -> Trouble:
    """Faults of the bucket: (kind, call, arguments). They have happened when each has, as often as it can."""

    def begin(scene: Scene) -> None:
        for kind, call, arguments in faults:
            scene.bucket.admin.fault(kind, call, **{"count": 3, **arguments})

    def fired(scene: Scene) -> bool:
        return all(fault["fired"] == fault["count"] for fault in scene.bucket.admin.faults())

    return Trouble(begin, fired, lambda scene: scene.bucket.admin.clear_faults(), **more)


# ---------------------------------------------------------------- what the rows do and prove


def new_url_each(scene: Scene) -> None:
    """With one upload at a time: the first URL is used until an upload fails, and each failure needs another."""
    failed = scene.statuses(503) + scene.statuses(500)
    assert failed == 3
    assert scene.calls("b2_get_upload_url") == 1 + failed


def adopted_all(scene: Scene) -> None:
    assert scene.host.stats()["transfers"]["adopted"] == 3


def expire(scene: Scene) -> None:
    """All tokens at once; a new one takes its time, so that many requests find theirs expired meanwhile."""
    scene.bucket.admin.latency(0.5, "b2_authorize_account")
    scene.bucket.admin.expire_tokens()


def authorised_once(scene: Scene) -> None:
    assert scene.calls("b2_authorize_account") == 1


def not_authorised(scene: Scene) -> None:
    """An upload URL has a token of its own: another URL is enough."""
    assert scene.calls("b2_authorize_account") == 0


def listings(count: int) -> Callable[[Scene], bool]:
    return lambda scene: scene.calls("b2_list_file_names") >= count


def capped(*caps: str, reads_cold: bool) -> Trouble:
    return Trouble(
        begin=lambda scene: scene.bucket.admin.caps(*caps),
        fired=lambda scene: scene.statuses(403) >= 1 and bool(scene.host.status()["problems"]),
        end=lambda scene: scene.bucket.admin.caps(),
        reads_cold=reads_cold,
    )


def skewed(offset_s: float) -> Trouble:
    """The server's clock is wrong from before the first object to the end."""
    return Trouble(
        before=lambda bucket: bucket.admin.clock(offset_s),
        begin=lambda scene: None,
        fired=lambda scene: listings(3)(scene) and scene.calls(UPLOAD) >= 20 and scene.calls("b2_hide_file") >= 1,
        end=lambda scene: None,
        settings={"refresh_interval": "300ms"},
    )


def waits_for_b2(scene: Scene) -> bool:
    return bool(scene.host.stats()["queue"]["failed"] >= 3)


MIDWAY = {"after": 1000}
ANY_SMALL = {"key": "cold/small/*"}
KEPT = {"key": HISTORY}
NOT_AHEAD = {"predict": "false"}
"""What is here is not copied in B2 when it gets another name, but uploaded; so nothing may come before it is read."""

TROUBLES: dict[str, Trouble] = {
    "503 on upload": faulty(("status", UPLOAD, KEPT | {"status": 503}), settings={"uploads": "1"}, proof=new_url_each),
    "500 on upload": faulty(
        ("status", UPLOAD, KEPT | {"status": 500, "code": "internal_error"}),
        settings={"uploads": "1"},
        proof=new_url_each,
    ),
    "503 on everything else": faulty(
        *(("status", call, {"status": 503}) for call in (FETCH, "b2_hide_file", "b2_copy_file", "b2_get_upload_url")),
        settings=NOT_AHEAD,
    ),
    "429 with Retry-After": faulty(
        *(
            ("status", call, key | {"status": 429, "code": "too_many_requests", "retry_after_s": 1, "count": 2})
            for call, key in ((UPLOAD, KEPT), (FETCH, ANY_SMALL), ("b2_hide_file", {}))
        )
    ),
    "401 for all tokens at once": Trouble(
        begin=expire,
        fired=lambda scene: scene.statuses(401) >= 4 and scene.calls(UPLOAD) >= 10,
        end=lambda scene: None,
        proof=authorised_once,
    ),
    "401 for upload tokens": faulty(("expired", UPLOAD, KEPT), proof=not_authorised),
    "401 for each fresh token": faulty(("expired", FETCH, {}), ("expired", "b2_hide_file", {})),
    "408": faulty(
        *(
            ("status", call, key | {"status": 408, "code": "request_timeout"})
            for call, key in ((UPLOAD, KEPT), (FETCH, ANY_SMALL))
        )
    ),
    "reset midway through an upload": faulty(("reset_upload", UPLOAD, KEPT | MIDWAY)),
    "reset midway through a download": faulty(
        ("reset_download", FETCH, MIDWAY | ANY_SMALL),
        ("reset_download", FETCH, {"key": "cold/large/*", "after": 700_000, "count": 1}),
    ),
    "reply lost after an upload": faulty(("reply_lost", UPLOAD, KEPT), proof=adopted_all),
    "reply lost after a copy and a hide": faulty(
        ("reply_lost", "b2_copy_file", {"key": "copied/*"}),
        ("reply_lost", "b2_hide_file", {}),
        proof=adopted_all,
        settings=NOT_AHEAD,
    ),
    "stalls": faulty(
        ("stall_upload", UPLOAD, KEPT | MIDWAY | {"count": 1}),
        ("stall", UPLOAD, KEPT | {"count": 1}),
        ("stall", "b2_get_upload_url", {"count": 1}),
        ("stall_download", FETCH, MIDWAY | ANY_SMALL | {"count": 1}),
        ("stall", "b2_hide_file", {"count": 1}),
        program=IMPATIENT,
    ),
    "truncated download": faulty(
        ("truncate", FETCH, MIDWAY | ANY_SMALL),
        ("truncate", FETCH, {"key": "cold/large/*", "after": 700_000, "count": 1}),
    ),
    "corrupted download": faulty(("corrupt", FETCH, MIDWAY | ANY_SMALL)),
    "wrong SHA-1 in the answer to an upload": faulty(("wrong_sha1", UPLOAD, KEPT), proof=adopted_all),
    "storage cap": capped("storage", reads_cold=True),
    "transaction and download caps": capped("transaction", "download", reads_cold=False),
    "stale listings": Trouble(
        begin=lambda scene: scene.bucket.admin.settings(stale_s=2.0),
        fired=listings(8),
        end=lambda scene: scene.bucket.admin.settings(stale_s=None),
        settings={"refresh_interval": "200ms"},
    ),
    "clock an hour ahead": skewed(HOUR_S),
    "clock an hour behind": skewed(-HOUR_S),
    "every connection is reset": Trouble(
        begin=lambda scene: scene.bucket.admin.down(), fired=waits_for_b2, end=lambda scene: scene.bucket.admin.up()
    ),
    "server killed": Trouble(
        begin=lambda scene: scene.bucket.kill(), fired=waits_for_b2, end=lambda scene: scene.bucket.restart()
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLES)
def test_the_app_sees_nothing_of(name: str, new_host: NewHost, fresh_devbucket: DevBucket) -> None:
    """A passing fault costs time and nothing else: no error, no byte, no object too many, here or on another host."""
    trouble, bucket = TROUBLES[name], fresh_devbucket
    trouble.before(bucket)
    cold = cold_objects()
    for path, data in cold.items():
        bucket.admin.put(bucket.bucket, path, data)
    host = new_host(bucket, **{"quiet_period": "50ms", **trouble.settings})
    host.program = trouble.program or host.program
    host.start_listed()
    app = Workload(host.path, cold, seed=list(TROUBLES).index(name))
    if not trouble.reads_cold:
        app.reads_cold = False
        app.read("categories.json")
    scene = Scene(bucket, host, app)
    bucket.admin.reset_counters()
    trouble.begin(scene)
    with at_work(app):
        until(lambda: trouble.fired(scene), 60)
        trouble.end(scene)
        enough = max(ROUNDS, app.rounds + 1)
        until(lambda: app.rounds >= enough, 60)
    assert app.failures == []
    assert errors(host) == []
    host.flush()
    trouble.proof(scene)
    assert app.differences() == []
    check_everywhere(new_host, bucket, host.path)
    assert not stored_twice(bucket)
    host.stop()


@pytest.mark.slow
def test_stale_listing_after_a_restart_hides_nothing(new_host: NewHost, fresh_devbucket: DevBucket) -> None:
    """What the last run brought to B2 stays where it is, also if the first listing of the next one is older than it."""
    bucket, admin = fresh_devbucket, fresh_devbucket.admin
    admin.put(bucket.bucket, "there", b"content")
    admin.settings(freeze_listings=True)
    host = new_host(bucket, refresh_interval="300ms")
    host.start_listed()
    files = {f"dir/{number}": b"%d" % number for number in range(5)}
    hosts.write(host.path, files)
    os.rename(host.path / "there", host.path / "moved")
    before = tree(host.path)
    host.stop()
    admin.reset_counters()
    host.start()
    until(lambda: admin.calls().get("b2_list_file_names", 0) >= 3)
    assert compare(before, tree(host.path)) == []
    assert not (host.path / "there").exists()
    host.stop()
    assert hosts.in_bucket(bucket) == {**files, "moved": b"content"}


@pytest.mark.slow
def test_rename_and_back_around_a_lost_reply(new_host: NewHost, devbucket: DevBucket) -> None:
    """The old name of a moved file was hidden unheard, then the file came back to it: a flush makes it visible again."""
    admin = devbucket.admin
    admin.put(devbucket.bucket, "a", b"content")
    host = new_host(quiet_period="50ms")
    host.start_listed()
    lost = admin.fault("reply_lost", "b2_hide_file", key="a")
    admin.fault("status", "b2_hide_file", key="a", count=None)
    os.rename(host.path / "a", host.path / "b")
    until(lambda: admin.fired(lost))
    os.rename(host.path / "b", host.path / "a")
    admin.clear_faults()
    host.flush()
    assert hosts.in_bucket(devbucket) == {"a": b"content"}
    host.stop()


# ---------------------------------------------------------------- the real app


@pytest.mark.slow
def test_the_story_under_a_mix_of_faults(new_host: NewHost, fresh_devbucket: DevBucket) -> None:
    """The app under gunicorn passes its whole story while B2 fails at random, and then all is where it belongs."""
    bucket, admin = fresh_devbucket, fresh_devbucket.admin
    host = new_host(bucket, quiet_period="100ms")
    host.start()
    write_tree(sample_site(DICTATIONS), host.path)
    host.flush()
    host.kill()
    host.forget_state()  # what the story reads is in the bucket only
    host.start_listed()
    mix = [
        ("status", 0.05, {"status": 503}),
        ("reset", 0.02, {}),
        ("reply_lost", 0.02, {}),
        ("expired", 0.01, {}),
        ("latency", 0.2, {"seconds": 0.03}),
    ]
    for seed, (kind, probability, arguments) in enumerate(mix):
        admin.fault(kind, "b2_*", count=None, probability=probability, seed=seed, **arguments)
    with serve(host.path) as url:
        report = run_story(url, rounds=1, dictations=DICTATIONS)
    assert report.failures == [], str(report)
    assert errors(host) == []
    assert all(fault["fired"] > 0 for fault in admin.faults()), admin.faults()
    admin.clear_faults()
    host.flush()
    here = tree(host.path)
    files = {p: each.sha1 for p, each in here.items() if each.kind == "file" and not p.startswith(TEMPORARY + "/")}
    assert files == {path: sha1(data) for path, data in report.expected.files.items()}
    check_bucket(bucket, here)
    check_second_host(new_host, bucket, here)
    assert stored_twice(bucket) == {}
    host.stop()
