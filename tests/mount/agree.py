"""Whether the tree of a mount, the bucket, and what any other host sees are the same thing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from b2fs.core.inode import operation_of
from b2fs.core.names import marked_directory
from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import NewHost
from tests.tree import Entry, compare, tree


def check_bucket(bucket: DevBucket, here: dict[str, Entry]) -> None:
    """The visible objects are the files (and links) of the tree, no more, no less; a marker has its directory."""
    objects = bucket.admin.objects(bucket.bucket)
    files = {name: row for name, row in objects.items() if marked_directory(name) is None}
    assert files.keys() == {path for path, each in here.items() if each.kind != "dir"}
    stored = {name: (row["contentLength"], row["contentSha1"]) for name, row in files.items()}
    wanted = {path: (each.size, each.sha1) for path, each in here.items() if each.kind == "file"}
    assert {name: stored[name] for name in wanted} == wanted
    marked = {marked_directory(name) for name in objects.keys() - files.keys()}
    assert marked - {""} <= {path for path, each in here.items() if each.kind == "dir"}


def check_second_host(new_host: NewHost, bucket: DevBucket, here: dict[str, Entry], **settings: str) -> None:
    """A host that has never seen the bucket shows the same tree, times and modes included."""
    other = new_host(bucket, **settings)
    other.start()
    there = tree(other.path)
    assert compare(here, there) == []
    times = {path: each.mtime_ns for path, each in here.items() if each.kind == "file"}
    assert times == {path: there[path].mtime_ns for path in times}
    other.kill()


def check_everywhere(new_host: NewHost, bucket: DevBucket, root: Path) -> dict[str, Entry]:
    """Both; the tree. Everything must have been flushed."""
    here = tree(root)
    check_bucket(bucket, here)
    check_second_host(new_host, bucket, here)
    return here


def stored_twice(bucket: DevBucket) -> dict[tuple[str, str], int]:
    """Versions that are there more than once: (name, our operation) to how many. An adopted one is there once."""
    rows = bucket.admin.versions(bucket.bucket)
    operations = Counter((row["fileName"], operation_of(row["fileInfo"])) for row in rows if row["action"] == "upload")
    return {each: count for each, count in operations.items() if each[1] and count > 1}
