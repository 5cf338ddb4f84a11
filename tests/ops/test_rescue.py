"""`b2fs rescue`: what an orphaned state directory holds goes to B2, or is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from b2fs.adapters.disk import Disk
from b2fs.adapters.journal import Journal
from b2fs.config import load
from b2fs.core.names import MARKER
from b2fs.errors import Exit
from b2fs.ops import manifest
from tests.devbucket_fixture import DevBucket
from tests.fsck import fsck
from tests.ops import states
from tests.ops.conftest import B2fs

Eventually = Callable[..., None]


@pytest.fixture
def orphan(devbucket: DevBucket, tmp_path: Path) -> Path:
    """What a host left that died before it uploaded anything; the directory is at another path now."""
    states.make(tmp_path / "left", devbucket, drained=False, prefix="site/")
    return Path(shutil.move(tmp_path / "left", tmp_path / "moved"))


def stored(bucket: DevBucket) -> dict[str, bytes]:
    """The visible objects but the markers."""
    return {
        name: bucket.admin.content(bucket.bucket, name)
        for name in bucket.admin.objects(bucket.bucket)
        if name.rpartition("/")[2] != MARKER
    }


EVERYTHING = {f"site/{name}": data for name, data in (states.FILES | {"link": b"a.txt"}).items()}


def not_in_b2(state: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads((state / manifest.NAME).read_text())["not_in_b2"]
    return {entry["path"]: entry for entry in entries if not entry["path"].endswith(MARKER)}


@pytest.mark.slow
def test_uploads_everything(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """Files, links, modes and directories of the dead host are in the bucket, below its prefix; only the key is given."""
    done = b2fs("rescue", str(orphan), environ=states.environ(devbucket))
    assert done.returncode == Exit.OK, done.stderr
    assert done.stdout == f"6 objects uploaded; all that {orphan} held is in {devbucket.bucket}\n"
    assert stored(devbucket) == EVERYTHING
    assert not (orphan / manifest.NAME).exists()
    assert fsck(orphan).notes == []
    checked = b2fs("fsck", str(orphan), "--remote", environ=states.environ(devbucket))
    assert (checked.returncode, checked.stdout[:20]) == (Exit.OK, "0 problems, 0 notes;")


@pytest.mark.slow
def test_twice_is_harmless(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """A second rescue finds nothing to do, and makes no second version of anything."""
    assert b2fs("rescue", str(orphan), environ=states.environ(devbucket)).returncode == Exit.OK
    versions = devbucket.admin.versions(devbucket.bucket)
    done = b2fs("rescue", str(orphan), environ=states.environ(devbucket))
    assert (done.returncode, done.stdout[:18]) == (Exit.OK, "0 objects uploaded")
    assert devbucket.admin.versions(devbucket.bucket) == versions


@pytest.mark.slow
def test_upload_whose_answer_was_lost(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """What is in B2 already, only nobody heard of it, is adopted: there is one version of each object."""
    devbucket.admin.fault("reply_lost", "b2_upload_file", count=1)
    done = b2fs("rescue", str(orphan), environ=states.environ(devbucket))
    assert done.returncode == Exit.OK, done.stderr
    assert stored(devbucket) == EVERYTHING
    names = [each["fileName"] for each in devbucket.admin.versions(devbucket.bucket)]
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_b2_is_away(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """Without an answer it ends at its deadline with 8 and the manifest; nothing is lost, and the next one does it."""
    devbucket.admin.down()
    done = b2fs("rescue", str(orphan), "--drain-timeout", "1s", environ=states.environ(devbucket))
    assert done.returncode == Exit.NOT_DRAINED
    assert done.stderr.splitlines()[-1].startswith("b2fs: ") and str(orphan / manifest.NAME) in done.stderr
    left = not_in_b2(orphan)
    assert {f"site/{name}": entry["size"] for name, entry in left.items()} == {k: len(v) for k, v in EVERYTHING.items()}
    assert all(entry["why"] == "B2 did not answer" for entry in left.values())
    assert fsck(orphan).notes == []
    devbucket.admin.up()
    assert b2fs("rescue", str(orphan), environ=states.environ(devbucket)).returncode == Exit.OK
    assert stored(devbucket) == EVERYTHING
    assert not (orphan / manifest.NAME).exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(
    orphan: Path, devbucket: DevBucket, eventually: Eventually, number: signal.Signals
) -> None:
    """SIGTERM and Ctrl-C end a rescue that waits for B2 with 8 and the manifest; the next one goes on."""
    devbucket.admin.fault("stall", "b2_upload_file", count=None)
    command = [sys.executable, "-m", "b2fs", "rescue", str(orphan)]
    process = subprocess.Popen(command, env=os.environ | states.environ(devbucket), stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: devbucket.admin.calls().get("b2_upload_file"), 30)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == Exit.NOT_DRAINED, errors
    assert "Traceback" not in errors
    assert {f"site/{name}" for name in not_in_b2(orphan)} == set(EVERYTHING)
    assert fsck(orphan).problems == []


@pytest.mark.slow
def test_content_that_nobody_would_upload(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """A damaged journal that lost an intent keeps no byte back: its content is taken up all the same."""
    db = sqlite3.connect(orphan / "journal.db", isolation_level=None)
    db.execute("DELETE FROM intent WHERE key = 'a.txt'")
    db.close()
    assert b2fs("rescue", str(orphan), environ=states.environ(devbucket)).returncode == Exit.OK
    assert stored(devbucket) == EVERYTHING


def from_another_machine(state: Path) -> None:
    """The last run was in another boot, and did not end in order."""
    db = sqlite3.connect(state / "journal.db", isolation_level=None)
    assert db.execute("UPDATE meta SET value = 'elsewhere' WHERE name = 'boot' AND value <> ''").rowcount == 1
    db.close()


@pytest.mark.slow
def test_from_another_machine(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """What a killed daemon held is uploaded on another machine too, though it had not been fsynced."""
    from_another_machine(orphan)
    assert b2fs("rescue", str(orphan), environ=states.environ(devbucket)).returncode == Exit.OK
    assert stored(devbucket) == EVERYTHING
    assert list((orphan / "quarantine").iterdir()) == []


@pytest.mark.slow
def test_after_a_power_loss(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """With --power-lost nothing is uploaded that no fsync covered: it is set aside, and named with 8 and the manifest."""
    from_another_machine(orphan)
    done = b2fs("rescue", str(orphan), "--power-lost", environ=states.environ(devbucket))
    assert done.returncode == Exit.NOT_DRAINED, done.stderr
    assert stored(devbucket) == {"site/link": b"a.txt"}, "a link is in the journal"
    assert set(not_in_b2(orphan)) == set(states.FILES)
    kept = [path.read_bytes() for path in (orphan / "quarantine").iterdir()]
    assert sorted(kept) == sorted(states.FILES.values())
    checked = b2fs("fsck", str(orphan))
    assert (checked.returncode, checked.stdout.count("[damaged]")) == (Exit.DAMAGED, 3)
    assert "\n3 problems, 0 notes;" in checked.stdout


@pytest.mark.slow
def test_content_that_no_path_leads_to(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """What a damaged journal has no name for is not passed over in silence: 8, and the manifest has it."""
    db = sqlite3.connect(orphan / "journal.db", isolation_level=None)
    db.execute("DELETE FROM dentry WHERE name = CAST('a.txt' AS BLOB)")
    db.execute("UPDATE dentry SET parent = ino WHERE name = CAST('dir' AS BLOB)")
    db.close()
    done = b2fs("rescue", str(orphan), environ=states.environ(devbucket))
    assert done.returncode == Exit.NOT_DRAINED
    assert sorted(entry["size"] for entry in not_in_b2(orphan).values()) == sorted(map(len, states.FILES.values()))
    assert all("no path" in entry["why"] for entry in not_in_b2(orphan).values())
    assert stored(devbucket) == {"site/link": b"a.txt"}


@pytest.mark.slow
def test_what_b2_refuses_is_named(b2fs: B2fs, orphan: Path, devbucket: DevBucket) -> None:
    """A reached cap ends it long before its deadline, with 8 and the reason."""
    devbucket.admin.caps("storage")
    done = b2fs("rescue", str(orphan), environ=states.environ(devbucket))
    assert done.returncode == Exit.NOT_DRAINED
    assert all("cap" in entry["why"] for entry in not_in_b2(orphan).values())


@pytest.mark.slow
def test_refused(b2fs: B2fs, orphan: Path, devbucket: DevBucket, tmp_path: Path) -> None:
    """No key is 3, a wrong one 4, another bucket 6, a directory in use 6; each is told, and nothing is changed."""

    def refused(code: Exit, text: str, environ: dict[str, str]) -> None:
        done = b2fs("rescue", str(orphan), environ=environ)
        assert (done.returncode, text in done.stderr, done.stdout) == (code, True, ""), done.stderr
        assert (stored(devbucket), (orphan / manifest.NAME).exists()) == ({}, False)

    settings = states.environ(devbucket)
    refused(Exit.CONFIG, "B2_APPLICATION_KEY", settings | {"B2_APPLICATION_KEY": ""})
    refused(Exit.DENIED, "check B2_APPLICATION_KEY_ID", settings | {"B2_APPLICATION_KEY": "wrong"})
    disk = Disk(str(orphan))
    refused(Exit.STATE, "is in use", settings)
    disk.close()
    journal = Journal(str(orphan / "journal.db"))
    journal.set_meta("bucket_id", "another")
    journal.close()
    refused(Exit.STATE, "made anew", settings)


def test_no_state_directory(b2fs: B2fs, tmp_path: Path) -> None:
    """What is no state directory, or none that a mount ever used, is one line and code 6; nothing is made in it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/journal.db").touch()
    for name, text in (
        ("missing", "no state directory"),
        ("empty", "no state directory"),
        ("odd", "not a b2fs journal"),
    ):
        done = b2fs("rescue", str(tmp_path / name))
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (Exit.STATE, True, 1)
    assert not (tmp_path / "missing").exists() and not list((tmp_path / "empty").iterdir())
    Journal(str(tmp_path / "empty/journal.db")).close()
    done = b2fs("rescue", str(tmp_path / "empty"))
    assert (done.returncode, "no mount has ever" in done.stderr) == (Exit.STATE, True)


# ---------------------------------------------------------------- the manifest


LEFT = [{"path": "ж", "size": 3, "sha1": "", "why": "not uploaded yet"}]


def test_manifest_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on stable storage under its name or not there: a write that fails leaves the one before, and the end goes on."""
    config = replace(load({}, {}), state_dir=str(tmp_path), bucket="bucket")
    path = manifest.write(config, LEFT)
    assert json.loads(Path(path).read_text()) == {"bucket": "bucket", "prefix": "", "not_in_b2": LEFT}
    assert os.stat(path).st_mode & 0o777 == 0o600

    def fails(*_: object) -> None:
        raise OSError("the disk fails")

    monkeypatch.setattr(os, "fsync", fails)
    assert manifest.write(config, LEFT * 2) == ""
    assert os.listdir(tmp_path) == [manifest.NAME]
    assert json.loads(Path(path).read_text())["not_in_b2"] == LEFT


def test_manifest_goes_when_nothing_is_left(tmp_path: Path) -> None:
    """A manifest that is there means that something is left."""
    config = replace(load({}, {}), state_dir=str(tmp_path), bucket="bucket")
    assert manifest.write(config, LEFT)
    assert manifest.write(config, []) == ""
    assert list(tmp_path.iterdir()) == []
