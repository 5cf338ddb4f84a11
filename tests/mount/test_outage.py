"""B2 is away for long: what is here goes on, what is not here is an error that says so, and later nothing is missing."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.agree import check_everywhere, stored_twice
from tests.mount.hosts import Host, NewHost, failing
from tests.mount.support import until
from tests.mount.workload import Workload, cold_objects

new_host = hosts.new_host

LARGE = "cold/large/0.wav"
FIRST = 1 << 20
"""Bytes of the large object that are read before B2 goes away: a part of its first chunk."""
UNREAD = [f"cold/small/{number:02}.mp3" for number in range(40, 48)]
"""Objects that the workload does not come to: only their names are here."""


def begun(new_host: NewHost, bucket: DevBucket, **settings: str) -> tuple[Host, Workload]:
    """A host that knows all names and waits a second for B2, and an app that has worked on it; nothing is to be uploaded."""
    cold = cold_objects(small=48)
    for path, data in cold.items():
        bucket.admin.put(bucket.bucket, path, data)
    host = new_host(bucket, quiet_period="50ms")
    host.start_listed()
    app = Workload(host.path, cold)
    app.run(2)
    app.reads_cold = False
    host.stop()
    host.settings |= {"read_deadline": "1s", **settings}
    host.start()
    return host, app


def check_unread(root: Path, app: Workload) -> None:
    """Objects that were never read: their names, sizes and times are there, their bytes are EIO, and no less than that."""
    assert [os.stat(root / path).st_size for path in UNREAD] == [len(app.files[path]) for path in UNREAD]
    assert {Path(path).name for path in UNREAD} <= set(os.listdir(root / "cold/small"))

    def errno_of(path: str) -> int | None:
        try:
            (root / path).read_bytes()
        except OSError as error:
            return error.errno
        return None

    with ThreadPoolExecutor(len(UNREAD)) as threads:
        assert list(threads.map(errno_of, UNREAD)) == [errno.EIO] * len(UNREAD)
    with failing(errno.EIO), open(root / UNREAD[0], "ab") as file:
        file.write(b"more")  # there is nothing to append to


@pytest.mark.slow
def test_outage_while_it_serves(new_host: NewHost, fresh_devbucket: DevBucket) -> None:
    """Cached reads, writes, renames and deletes go on; an uncached read is EIO, never absent, empty, or cut short."""
    bucket = fresh_devbucket
    host, app = begun(new_host, bucket)
    with open(host.path / LARGE, "rb") as file:
        assert file.read(FIRST) == app.files[LARGE][:FIRST]
    bucket.kill()

    app.run(6)
    check_unread(host.path, app)
    with open(host.path / LARGE, "rb") as file:
        assert file.read(FIRST) == app.files[LARGE][:FIRST]
    with failing(errno.EIO):
        (host.path / LARGE).read_bytes()
    app.rename(UNREAD[1], "elsewhere/moved.mp3")  # its bytes are not needed for that
    app.write(UNREAD[2], b"written over without having been read")
    app.read(UNREAD[2])
    app.move("cold/small", "elsewhere/small")
    app.remove("archive")
    app.absent("cold/small")
    assert app.failures == []
    assert host.status()["dirty"]["files"] > 20

    bucket.restart()
    app.read("elsewhere/moved.mp3")
    host.flush()
    assert app.failures == []
    assert app.differences() == []
    check_everywhere(new_host, bucket, host.path)
    assert stored_twice(bucket) == {}
    host.stop()


@pytest.mark.slow
def test_outage_over_restarts(new_host: NewHost, fresh_devbucket: DevBucket) -> None:
    """A stop, a start, a crash and another start, all without B2: the work goes on, and all of it gets there in the end."""
    bucket = fresh_devbucket
    host, app = begun(new_host, bucket, drain_timeout="500ms")
    bucket.kill()
    app.run(2)
    host.stop(Exit.NOT_DRAINED)

    host.start()
    app.run(2)
    check_unread(host.path, app)
    host.kill()

    host.start()
    for path in sorted(app.files):
        if not path.startswith(("cold/", "copied/")):
            app.read(path)
    app.run(2)
    app.move("cold/small", "elsewhere/small")
    assert app.failures == []
    assert host.status()["online"] is False

    bucket.restart()
    until(lambda: host.status()["dirty"]["files"] == 0, 90)
    assert app.failures == []
    assert app.differences() == []
    check_everywhere(new_host, bucket, host.path)
    assert stored_twice(bucket) == {}
    host.stop()


@pytest.mark.slow
def test_what_is_here_is_served_while_many_wait_for_b2(new_host: NewHost, fresh_devbucket: DevBucket) -> None:
    """More reads wait for a silent B2 than pyfuse3 serves unless told (99); what is here is answered at once."""
    bucket = fresh_devbucket
    files = {f"{number:03}.mp3": b"%03d" % number * 1000 for number in range(130)}
    for path, data in files.items():
        bucket.admin.put(bucket.bucket, path, data)
    host = new_host(bucket, prefetch="", predict="false")
    host.start_listed()
    bucket.admin.fault("stall", "b2_download_file_by_id", count=None)
    with ThreadPoolExecutor(len(files)) as threads:
        waiting = [threads.submit((host.path / path).read_bytes) for path in files]
        try:
            until(lambda: host.stats()["loop"]["tasks"] > len(waiting))
            (host.path / "new").write_bytes(b"written meanwhile")
            assert os.statvfs(host.path).f_namemax > 0
            assert not any(each.done() for each in waiting)
        finally:
            host.kill()
    assert all(each.exception() for each in waiting)
