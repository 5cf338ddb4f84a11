"""The state directory of a daemon that was killed, on another machine: everything that was acknowledged reaches B2."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import FILES, LONG, NewHost, failing, in_bucket, write
from tests.tree import compare, tree

new_host = hosts.new_host


@pytest.mark.slow
def test_rescue_of_a_killed_daemon(new_host: NewHost, devbucket: DevBucket, tmp_path: Path) -> None:
    """SIGKILL with nothing uploaded, the state directory moved elsewhere: one rescue, and the bucket is the tree."""
    host = new_host(quiet_period="200ms")
    host.start()
    write(host.path, {"old/clean": b"in B2", "old/changed": b"before", "moved/x": b"1", "gone": b"2"})
    host.flush()
    host.settings["quiet_period"] = LONG
    host.stop()
    host.start()
    write(host.path)
    (host.path / "old/changed").write_bytes(b"after")
    (host.path / "moved").rename(host.path / "new")
    (host.path / "gone").unlink()
    (host.path / "link").symlink_to("a.txt")
    (host.path / "a.txt").chmod(0o640)
    here = tree(host.path)
    descriptor = os.open(host.path / "open.log", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"never closed")
    host.kill()
    with failing(errno.ENOTCONN):
        os.write(descriptor, b"lost")
    os.close(descriptor)
    elsewhere = shutil.move(host.state, tmp_path / "elsewhere")

    host.command("rescue", str(elsewhere))
    assert in_bucket(devbucket) == FILES | {
        "old/clean": b"in B2", "old/changed": b"after", "new/x": b"1", "link": b"a.txt", "open.log": b"never closed",
    }  # fmt: skip
    assert host.command("fsck", "--remote", str(elsewhere)).startswith("0 problems, 0 notes;")

    host.start()  # another machine, with an empty state directory
    there = tree(host.path)
    del there["open.log"]  # its bytes are in the bucket (above); its time is that of the last write as the disk saw it
    assert compare(there, here) == []
    host.stop()


@pytest.mark.slow
def test_rescue_and_daemon_keep_apart(new_host: NewHost, devbucket: DevBucket) -> None:
    """While the daemon serves, its state directory is neither rescued nor checked: code 6, and it does not notice."""
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path)
    for command in ("rescue", "fsck"):
        assert "is in use" in host.command(command, str(host.state), expect=Exit.STATE)
    assert in_bucket(devbucket) == {}
    host.stop()
    assert in_bucket(devbucket) == FILES
