"""Large files with a real mount and real parts: an upload that is interrupted by the end of the daemon, and changes, of
which only the changed part goes to B2.

The daemon has no setting for the size of parts: it follows B2's recommendation, so the bucket makes them small.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from b2fs.adapters.b2.client import B2Client
from tests.adapters.b2_support import purge, settings_for
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import LONG, Host, NewHost, in_bucket
from tests.mount.support import until

new_host = hosts.new_host

pytestmark = pytest.mark.slow

PART = 450_000
PARTS = 40
"""Together more than what is uploaded again rather than copied (`core.writeback.REUPLOAD_LIMIT`)."""
LANES = 8
"""Parts of one file that the daemon sends at a time."""


def killed_midway(host: Host, bucket: DevBucket, content: bytes) -> tuple[str, int]:
    """Write `large`, let some parts arrive, and kill the daemon while others are under way.

    The id of the unfinished file, and how many parts B2 has of it. Faults and counters are reset.
    """
    bucket.admin.settings(min_part_size=PART, recommended_part_size=PART)
    stall = bucket.admin.fault("stall", "b2_upload_part", count=None, probability=0.45)
    host.start()
    (host.path / "large").write_bytes(content)
    until(lambda: bucket.admin.fired(stall) == LANES, 60.0)
    host.kill()
    arrived = bucket.admin.calls()["b2_upload_part"] - LANES
    assert 0 < arrived < PARTS
    bucket.admin.disconnect()
    bucket.admin.clear_faults()
    bucket.admin.reset_counters()
    (row,) = bucket.admin.versions(bucket.bucket, "large")
    assert row["action"] == "start"
    return row["fileId"], arrived


def test_killed_daemon_goes_on_with_its_parts(new_host: NewHost, devbucket: DevBucket) -> None:
    """After SIGKILL midway the next start sends only the parts that are missing, into the same large file."""
    content = os.urandom(PART * PARTS - 1)
    host = new_host()
    file_id, arrived = killed_midway(host, devbucket, content)
    host.start()
    host.flush()
    calls = devbucket.admin.calls()
    assert calls["b2_upload_part"] == PARTS - arrived
    assert "b2_start_large_file" not in calls
    assert [row["fileId"] for row in devbucket.admin.versions(devbucket.bucket, "large")] == [file_id]
    host.stop()
    assert in_bucket(devbucket) == {"large": content}


def test_file_that_was_changed_after_the_kill_is_not_resumed(new_host: NewHost, devbucket: DevBucket) -> None:
    """If the file is written again before the next attempt, it goes to B2 as it is now, and the parts are cancelled."""
    host = new_host()
    killed_midway(host, devbucket, os.urandom(PART * PARTS - 1))
    devbucket.admin.down()
    host.start()
    content = os.urandom(PART * PARTS - 1)
    (host.path / "large").write_bytes(content)
    devbucket.admin.up()
    host.flush()
    assert devbucket.admin.calls()["b2_upload_part"] == PARTS
    assert [row["action"] for row in devbucket.admin.versions(devbucket.bucket, "large")] == ["upload"]
    host.stop()
    assert in_bucket(devbucket) == {"large": content}


def test_version_that_came_in_between_is_history(new_host: NewHost, devbucket: DevBucket) -> None:
    """Somebody wrote the name while our upload lay unfinished: the resumed version is below theirs, so ours is put
    on top again by a copy on the server, once.
    """
    content = os.urandom(PART * PARTS - 1)
    host = new_host()
    file_id, arrived = killed_midway(host, devbucket, content)
    theirs = devbucket.admin.put(devbucket.bucket, "large", b"theirs")
    host.start()
    until(lambda: not host.status()["dirty"]["files"], 60.0)
    calls = devbucket.admin.calls()
    assert (calls["b2_upload_part"], calls["b2_copy_file"]) == (PARTS - arrived, 1)
    rows = devbucket.admin.versions(devbucket.bucket, "large")
    assert [row["fileId"] for row in rows][1:] == [theirs["fileId"], file_id]
    assert (host.path / "large").read_bytes() == content
    host.stop()
    assert in_bucket(devbucket) == {"large": content}


def test_kernel_asks_for_large_pieces(new_host: NewHost) -> None:
    """The kernel reads ahead half a megabyte at a time: four times fewer requests for a sequential reader."""
    host = new_host()
    host.start()
    device = os.stat(host.path).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if not os.access(setting, os.W_OK):
        pytest.skip("only root may say so")
    until(lambda: setting.read_text().strip() == "512")
    host.stop()


LARGE = 144 << 20
PLACE = 72 << 20
LEAST = 5_000_000
"""B2's smallest part."""


def changed(host: Host, bucket: DevBucket) -> bytes:
    """Bring `large` into the bucket, reset the counters, change 4 KiB in the middle of it; its content now."""
    old = os.urandom(LARGE)
    (host.path / "large").write_bytes(old)
    host.flush()
    bucket.admin.reset_counters()
    patch = os.urandom(4096)
    with open(host.path / "large", "r+b") as file:
        file.seek(PLACE)
        file.write(patch)
    return old[:PLACE] + patch + old[PLACE + 4096 :]


def test_change_in_a_large_object(new_host: NewHost, devbucket: DevBucket) -> None:
    """4 KiB in 144 MiB: one part of the least size is sent, two copies on the server do the rest; what `stats` says."""
    host = new_host(quiet_period=LONG)
    host.start()
    content = changed(host, devbucket)
    before = host.stats()["requests"]
    host.flush()
    calls = devbucket.admin.calls()
    assert calls == {
        "b2_start_large_file": 1,
        "b2_get_upload_part_url": 1,
        "b2_upload_part": 1,
        "b2_copy_part": 2,
        "b2_finish_large_file": 1,
    }
    requests = host.stats()["requests"]
    assert LEAST <= requests["sent"] - before["sent"] < LEAST + 5000
    assert requests["copied"] - before["copied"] == LARGE - LEAST
    assert requests["classes"]["C"] - before["classes"]["C"] == 2
    assert (host.path / "large").read_bytes() == content
    host.stop()
    assert in_bucket(devbucket) == {"large": content}


def test_change_of_an_object_whose_version_is_gone(new_host: NewHost, devbucket: DevBucket) -> None:
    """Somebody deleted the version for good before the upload: all of the file is uploaded, and nothing is left over."""
    host = new_host(quiet_period=LONG)
    host.start()
    content = changed(host, devbucket)
    client = B2Client(settings_for(devbucket))
    version = client.head("large")
    assert version is not None
    purge(client, version)
    host.flush()
    calls = devbucket.admin.calls()
    assert calls["b2_upload_file"] == 1
    assert [row["action"] for row in devbucket.admin.versions(devbucket.bucket, "large")] == ["upload"]
    host.stop()
    assert in_bucket(devbucket) == {"large": content}


def test_killed_in_the_middle_of_a_change(new_host: NewHost, devbucket: DevBucket) -> None:
    """SIGKILL after the copies, while the changed part is under way: the next start sends that part alone."""
    host = new_host(quiet_period="0")
    host.start()
    old = os.urandom(LARGE)
    (host.path / "large").write_bytes(old)
    host.flush()
    stall = devbucket.admin.fault("stall", "b2_upload_part", count=None)
    devbucket.admin.reset_counters()
    with open(host.path / "large", "r+b") as file:
        file.write(b"new")
    until(lambda: devbucket.admin.fired(stall) == 1 and devbucket.admin.calls().get("b2_copy_part") == 1, 60.0)
    (begun,) = [row["fileId"] for row in devbucket.admin.versions(devbucket.bucket) if row["action"] == "start"]
    host.kill()
    devbucket.admin.disconnect()
    devbucket.admin.clear_faults()
    devbucket.admin.reset_counters()
    host.start()
    host.flush()
    calls = devbucket.admin.calls()
    assert calls["b2_upload_part"] == 1
    assert "b2_copy_part" not in calls
    assert devbucket.admin.objects(devbucket.bucket)["large"]["fileId"] == begun
    host.stop()
    assert in_bucket(devbucket) == {"large": b"new" + old[3:]}
