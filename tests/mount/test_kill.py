"""SIGKILL in a write storm: what was acknowledged is there after the restart, in the bucket, and on another host."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.agree import check_everywhere, stored_twice
from tests.mount.hosts import LONG, Host, NewHost, in_bucket
from tests.mount.storm import UNSERVED, crashed, found, replay
from tests.mount.support import until

new_host = hosts.new_host

STORMS = ("before uploads", "amid uploads", "amid uploads, and while starting again")
"""Each begins with what the one before has left; in the first, nothing gets to B2."""
ENDLESS = 10**9


def settled(bucket: DevBucket) -> bool:
    """Whether the server has ended what the killed daemon had asked it for."""
    return bucket.admin.counters()["running"] == 0


def acknowledged(log: Path) -> int:
    return log.read_bytes().count(b"\n\n") if log.exists() else 0


def storm_and_kill(host: Host, log: Path, seed: str, operations: int) -> None:
    """Let a program write until so many more operations are acknowledged, then SIGKILL the daemon under it."""
    wanted = acknowledged(log) + operations
    command = [sys.executable, "-m", "tests.mount.storm", str(host.path), str(log), seed, str(ENDLESS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as storm:
        try:
            until(lambda: acknowledged(log) >= wanted or storm.poll() is not None, 60)
            assert storm.poll() is None, (storm.communicate()[0], host.log_text())
            assert host.process is not None
            host.process.kill()
            host.process.wait(60)
            said, _ = storm.communicate(timeout=60)
        finally:
            storm.kill()
    # Only now: a path below a mountpoint that is none any more would be a plain file.
    host.detach()
    assert int(said.split()[-1]) in UNSERVED, said


def kill_while_starting(host: Host, after_s: float) -> None:
    host.launch()
    assert host.process is not None
    with suppress(subprocess.TimeoutExpired):
        host.process.wait(after_s)
    host.kill()


def check_nothing_lost(host: Host, log: Path) -> None:
    """The tree is what was acknowledged, with or without the operation in flight. Notes in the log which."""
    here = found(host.path)
    allowed = [model.content() for model in replay(log)]
    assert here in allowed, [differing(here, each) for each in allowed]
    crashed(log, allowed.index(here))


def differing(here: dict[str, object], wanted: dict[str, object]) -> dict[str, tuple[object, object]]:
    paths = here.keys() | wanted.keys()
    return {p: (here.get(p, "-"), wanted.get(p, "-")) for p in paths if here.get(p, "-") != wanted.get(p, "-")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_nothing_acknowledged_is_lost(seed: int, new_host: NewHost, fresh_devbucket: DevBucket, tmp_path: Path) -> None:
    """Killed again and again while a program writes; each restart has every acknowledged operation, and B2 has it in the end."""
    bucket, log, random = fresh_devbucket, tmp_path / "log", Random(seed)
    host = new_host(bucket)
    for when in STORMS:
        host.settings["quiet_period"] = LONG if when == "before uploads" else "20ms"
        host.start()
        check_nothing_lost(host, log)
        bucket.admin.latency(random.choice((0.02, 0.1, 0.3)), "b2_upload_file")
        storm_and_kill(host, log, f"{seed} {when}", random.randint(30, 600))
        if when.endswith("starting again"):
            for _ in range(3):
                kill_while_starting(host, random.uniform(0.1, 0.5))
        until(lambda: settled(bucket), 60)
        bucket.admin.latency(0)
    host.start()
    check_nothing_lost(host, log)
    host.flush()
    here = check_everywhere(new_host, bucket, host.path)
    assert {path for path, each in here.items() if each.kind == "file"} == set(replay(log)[0].files)
    assert stored_twice(bucket) == {}
    host.stop()


@pytest.mark.slow
def test_version_whose_answer_the_kill_took_is_adopted(new_host: NewHost, devbucket: DevBucket) -> None:
    """What B2 stored while the daemon died is found after the restart: one version each, and none is uploaded again."""
    host = new_host(quiet_period="0")
    host.start_listed()
    devbucket.admin.latency(0.5, "b2_upload_file")
    files = {f"{number}.bin": b"%d" % number * 5000 for number in range(8)}
    hosts.write(host.path, files)

    def sent() -> list[str]:
        rows = devbucket.admin.log()
        return sorted(row["key"] for row in rows if row["call"] == "b2_upload_file" and row["key"] in files)

    until(lambda: sent() == sorted(files))  # the root's own object goes up too
    host.kill()
    until(lambda: in_bucket(devbucket) == files)
    devbucket.admin.latency(0)
    devbucket.admin.fault("status", "b2_list_file_names", count=None)  # a listing would tell it too
    host.start()
    host.flush()
    assert host.stats()["transfers"]["adopted"] >= len(files), "and perhaps the root's own object"
    assert sent() == sorted(files)
    assert stored_twice(devbucket) == {}
    assert {path: (host.path / path).read_bytes() for path in files} == files
    assert os.listdir(host.state / "staged") == []
    host.stop()


@pytest.mark.slow
@pytest.mark.parametrize("then", ["written again", "removed"])
def test_upload_that_comes_after_the_restart_changes_nothing(
    then: str, new_host: NewHost, devbucket: DevBucket
) -> None:
    """Bytes that the killed daemon had sent reach B2 after what followed them: what is here goes on top again."""
    admin = devbucket.admin
    host = new_host(quiet_period="100ms", refresh_interval="300ms")
    host.start_listed()
    admin.fault("latency", "b2_upload_file", key="file", count=1, seconds=3)
    hosts.write(host.path, {"file": b"old"})
    until(lambda: admin.calls().get("b2_upload_file", 0) and "file" in [row["key"] for row in admin.log()])
    host.kill()
    host.start()
    hosts.write(host.path, {"file": b"new"}) if then == "written again" else (host.path / "file").unlink()
    host.flush()
    wanted = {"file": b"new"} if then == "written again" else {}

    def contents() -> list[bytes | None]:
        rows = admin.versions(devbucket.bucket, "file")
        return [admin.content_by_id(row["fileId"]) if row["action"] == "upload" else None for row in rows]

    # what the killed daemon had sent is there; perhaps the new one had sent it once more
    until(lambda: settled(devbucket))
    until(lambda: b"old" in contents() and contents()[0] != b"old")
    listings = admin.calls()["b2_list_file_names"]
    until(lambda: admin.calls()["b2_list_file_names"] >= listings + 2)
    assert {path.name: path.read_bytes() for path in host.path.iterdir()} == wanted
    assert in_bucket(devbucket) == wanted
    host.stop()
