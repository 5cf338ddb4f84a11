"""The app under gunicorn on a real mount: its story passes, and what it wrote is in the bucket and on any other host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from b2fs.core.names import MARKER
from b2fs.devbucket.sample import NEWEST_MTIME_NS, sample_site, write_tree
from tests.app.server import TEMPORARY, serve
from tests.app.story import check_site, run_story
from tests.devbucket_fixture import DevBucket
from tests.mount.support import Mount, mount
from tests.tree import Entry, compare, tree

_SKIP = {TEMPORARY}


def _plain_story(directory: Path) -> dict[str, Entry]:
    """The oracle: the tree that the same story leaves on a plain directory."""
    directory.mkdir()
    write_tree(sample_site(), directory)
    with serve(directory) as url:
        assert run_story(url).failures == []
    return tree(directory, skip=_SKIP)


def _objects(bucket: DevBucket) -> dict[str, tuple[int, str]]:
    """Visible objects of the bucket: key to (size, SHA-1), without the directories' markers."""
    return {
        name: (row["contentLength"], row["contentSha1"])
        for name, row in bucket.admin.objects(bucket.bucket).items()
        if name.rpartition("/")[2] != MARKER
    }


@pytest.mark.slow
def test_the_app_on_a_mount(devbucket: DevBucket, tmp_path: Path) -> None:
    """The story passes on the mount; its tree equals the plain one, the bucket equals the tree, and so does a second host."""
    plain = _plain_story(tmp_path / "plain")
    with mount(devbucket, {"quiet_period": "2s"}) as first:
        write_tree(sample_site(), first.path)
        with serve(first.path) as url:
            report = run_story(url)
            assert report.failures == [], str(report)
        here = tree(first.path, skip=_SKIP)
        assert compare(plain, here, clock_ns=NEWEST_MTIME_NS) == []
        first.flush()
        assert compare(here, tree(first.path, skip=_SKIP)) == []
        files = {path: (each.size, each.sha1) for path, each in here.items() if each.kind == "file"}
        assert _objects(devbucket) == files
        first.stop()
    with mount(devbucket) as second:
        there = tree(second.path, skip=_SKIP)
        assert compare(here, there) == []
        assert {path: each.mtime_ns for path, each in here.items()} == {
            path: each.mtime_ns for path, each in there.items()
        }
        with serve(second.path) as url:
            assert check_site(url, report.expected) == []
        second.stop()


@pytest.mark.slow
def test_saving_again_uploads_only_what_changed(mount: Mount) -> None:
    """60 files written again with the same bytes, times and modes cost no upload; 6 changed ones cost 6."""
    site = [(f"dictations/d/{number:03}.mp3", os.urandom(20_000)) for number in range(60)]

    def save(changed: int) -> None:
        for number, (path, data) in enumerate(site):
            target = mount.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data[::-1] if number < changed else data)
            os.utime(target, ns=(1_700_000_000_000_000_001, 1_700_000_000_000_000_001))
        os.utime(target.parent, ns=(1, 1))
        mount.flush()

    save(0)
    mount.bucket.admin.reset_counters()
    save(0)
    assert mount.bucket.admin.calls().get("b2_upload_file", 0) == 0
    save(6)
    assert mount.bucket.admin.calls()["b2_upload_file"] == 6
