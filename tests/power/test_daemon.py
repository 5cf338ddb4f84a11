"""The power goes under a real daemon, in the middle of a storm of writes: the promise of fsync as a program sees it."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket, _shared_devbucket, devbucket
from tests.mount import hosts
from tests.mount.hosts import NewHost, in_bucket
from tests.mount.support import until
from tests.power.storm import Writer
from tests.power.support import Layer

__all__ = ["_shared_devbucket", "devbucket"]

new_host = hosts.new_host


def _boot_anew(state: Path) -> None:
    """Make the next start believe that the machine was booted since: the journal remembers another boot."""
    with closing(sqlite3.connect(state / "journal.db", isolation_level=None)) as db:
        changed = db.execute("UPDATE meta SET value = 'another' WHERE name = 'boot' AND value <> ''").rowcount
    assert changed == 1, "it had not ended in order"


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_the_power_goes_in_a_storm(layer: Layer, new_host: NewHost, devbucket: DevBucket, seed: int | None) -> None:
    """What fsync had acknowledged is there, the rest is whole or absent, the next start serves it and brings it to B2."""
    with layer.directory() as disk:
        host = new_host(quiet_period="50ms")
        host.state = disk / "state"
        host.start()
        writers = [Writer(host.path, number) for number in range(3)]
        for writer in writers:
            writer.start()
        until(lambda: all(writer.synced >= 30 or not writer.is_alive() for writer in writers), within_s=60.0)
        until(lambda: len(in_bucket(devbucket)) >= 5)
        host.kill()
        for writer in writers:
            writer.join(60.0)
            assert not writer.is_alive()
            assert writer.failure is None and writer.synced >= 30, writer.failure
        image = layer.image(disk, seed)
    after = new_host(devbucket, quiet_period="50ms")
    after.lost_power = True
    shutil.move(image / "state", after.state)
    image.rmdir()
    _boot_anew(after.state)
    after.start_listed()
    found = _files(after.path)
    for writer in writers:
        writer.check(found)
    after.stop(Exit.OK)
    assert in_bucket(devbucket) == found
    with closing(sqlite3.connect(after.state / "journal.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
