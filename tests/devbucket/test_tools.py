"""Two clients that nobody here wrote: the `b2` command line tool and rclone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket

Tool = Callable[..., str]

pytestmark = pytest.mark.slow


def run(command: list[str], environ: dict[str, str]) -> str:
    ended = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


@pytest.fixture
def b2(devbucket: DevBucket, tmp_path: Path) -> Tool:
    """The b2 tool, with its account file in the test's directory."""
    tool = Path(sys.executable).with_name("b2")
    if not tool.exists():
        pytest.skip("the b2 tool is not installed")
    environ = {
        "B2_ACCOUNT_INFO": str(tmp_path / "account_info"),
        "B2_APPLICATION_KEY_ID": devbucket.key_id,
        "B2_APPLICATION_KEY": devbucket.key,
        "B2_ENVIRONMENT": devbucket.url,
        "COLUMNS": "200",
    }
    return lambda *arguments: run([str(tool), *map(str, arguments)], environ)


@pytest.fixture
def rclone(devbucket: DevBucket, tmp_path: Path) -> Tool:
    """rclone with a remote ``b2:`` that is this server."""
    tool = shutil.which("rclone")
    if tool is None:
        pytest.skip("rclone is not installed")
    environ = {
        "RCLONE_CONFIG": str(tmp_path / "rclone.conf"),
        "RCLONE_CONFIG_B2_TYPE": "b2",
        "RCLONE_CONFIG_B2_ACCOUNT": devbucket.key_id,
        "RCLONE_CONFIG_B2_KEY": devbucket.key,
        "RCLONE_CONFIG_B2_ENDPOINT": devbucket.url,
        "RCLONE_RETRIES": "1",
        "RCLONE_LOW_LEVEL_RETRIES": "3",
    }
    (tmp_path / "rclone.conf").touch()
    return lambda *arguments: run([tool, *map(str, arguments)], environ)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree with awkward names."""
    root = tmp_path / "tree"
    for name, data in {
        "a.txt": b"a",
        "empty": b"",
        "dir/sub/ž 日 +%.bin": os.urandom(70_000),
        "dir/b": b"b" * 3000,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def stored(devbucket: DevBucket, prefix: str = "") -> dict[str, bytes]:
    objects = devbucket.admin.objects(devbucket.bucket)
    return {
        name.removeprefix(prefix): devbucket.admin.content_by_id(row["fileId"])
        for name, row in objects.items()
        if name.startswith(prefix)
    }


# ---------------------------------------------------------------- b2


def test_b2_sync_there_and_back(b2: Tool, devbucket: DevBucket, tree: Path, tmp_path: Path) -> None:
    """`b2 sync` stores a tree, hides what was removed locally, and brings it back whole."""
    url = f"b2://{devbucket.bucket}/t"
    b2("sync", "--no-progress", tree, url)
    assert stored(devbucket, "t/") == contents(tree)
    (tree / "a.txt").unlink()
    b2("sync", "--no-progress", "--delete", tree, url)
    assert stored(devbucket, "t/") == contents(tree)
    b2("sync", "--no-progress", url, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tree)


def test_b2_files_and_versions(b2: Tool, devbucket: DevBucket, tmp_path: Path) -> None:
    """Upload, ls with versions, info, hide, unhide, server-side copy, download, rm: the tool's own view agrees."""
    source = tmp_path / "source"
    base = f"b2://{devbucket.bucket}"
    for text in ("one", "two"):
        source.write_text(text)
        b2("file", "upload", "--no-progress", "--info", "color=blue", devbucket.bucket, source, "d/file.txt")
    listed = json.loads(b2("ls", "--json", "--versions", "--recursive", base))
    assert [(row["fileName"], row["action"], row["size"]) for row in listed] == [("d/file.txt", "upload", 3)] * 2
    info = json.loads(b2("file", "info", f"{base}/d/file.txt"))
    assert (info["fileInfo"]["color"], info["contentType"]) == ("blue", "text/plain")
    b2("file", "hide", f"{base}/d/file.txt")
    assert b2("ls", "--recursive", base) == ""
    b2("file", "unhide", f"{base}/d/file.txt")
    b2("file", "server-side-copy", f"{base}/d/file.txt", f"{base}/copy")
    b2("file", "download", "--no-progress", f"{base}/copy", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "two"
    b2("rm", "--no-progress", "--versions", "--recursive", base)
    assert devbucket.admin.versions(devbucket.bucket) == []


def test_b2_large_file(b2: Tool, devbucket: DevBucket, tmp_path: Path) -> None:
    """With a small minimum the tool uploads in parts, and downloads what it stored."""
    devbucket.admin.settings(min_part_size=200_000, recommended_part_size=200_000)
    source = tmp_path / "big"
    source.write_bytes(os.urandom(1_000_001))
    arguments = ("--no-progress", "--min-part-size", 200_000, devbucket.bucket, source, "big")
    b2("file", "upload", *arguments)
    assert devbucket.admin.calls()["b2_upload_part"] >= 5
    b2("file", "download", "--no-progress", f"b2://{devbucket.bucket}/big", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()


def test_b2_buckets_and_keys(b2: Tool, devbucket: DevBucket) -> None:
    """Account, bucket and key commands work."""
    assert json.loads(b2("account", "get"))["apiUrl"] == devbucket.url
    b2("bucket", "create", "cli-bucket", "allPrivate")
    b2("bucket", "update", "cli-bucket", "--lifecycle-rule", '{"fileNamePrefix": "", "daysFromHidingToDeleting": 3}')
    bucket = json.loads(b2("bucket", "get", "cli-bucket"))
    assert bucket["lifecycleRules"][0]["daysFromHidingToDeleting"] == 3
    key_id, key = b2("key", "create", "--bucket", "cli-bucket", "cli-key", "listBuckets,listFiles").split()
    assert key_id in b2("key", "list")
    assert key not in b2("key", "list", "--long")
    b2("key", "delete", key_id)
    b2("bucket", "notification-rule", "list", "b2://cli-bucket")
    b2("bucket", "delete", "cli-bucket")
    assert "cli-bucket" not in b2("bucket", "list")


# ---------------------------------------------------------------- rclone


def test_rclone_copy_check_sync(rclone: Tool, devbucket: DevBucket, tree: Path, tmp_path: Path) -> None:
    """rclone stores a tree, checks every hash, lists it, mirrors a removal, and copies it back."""
    remote = f"b2:{devbucket.bucket}/t"
    rclone("copy", tree, remote)
    assert stored(devbucket, "t/") == contents(tree)
    rclone("check", tree, remote)
    rclone("check", "--download", tree, remote)
    assert sorted(rclone("lsf", "-R", "--files-only", remote).splitlines()) == sorted(contents(tree))
    assert rclone("lsf", "--dirs-only", remote).split() == ["dir/"]
    (tree / "a.txt").unlink()
    rclone("sync", tree, remote)
    assert stored(devbucket, "t/") == contents(tree)
    rclone("copy", remote, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tree)
    assert (tmp_path / "back/dir/b").stat().st_mtime == pytest.approx((tree / "dir/b").stat().st_mtime, abs=0.002)


def test_rclone_large_file(rclone: Tool, devbucket: DevBucket, tmp_path: Path) -> None:
    """Above --b2-upload-cutoff rclone uploads in chunks of 5 MiB and checks what it reads back."""
    source = tmp_path / "big"
    source.write_bytes(os.urandom(11_000_000))
    remote = f"b2:{devbucket.bucket}"
    rclone("copy", "--b2-upload-cutoff", "5Mi", "--b2-chunk-size", "5Mi", source, remote)
    assert devbucket.admin.calls()["b2_upload_part"] == 3
    row = devbucket.admin.objects(devbucket.bucket)["big"]
    assert row["contentSha1"] == "none"
    assert row["fileInfo"]["large_file_sha1"] == hashlib.sha1(source.read_bytes()).hexdigest()
    rclone("check", "--download", tmp_path, remote, "--include", "big")


def test_rclone_versions_move_and_restore(rclone: Tool, devbucket: DevBucket, tmp_path: Path) -> None:
    """Old versions are listed and read, a server-side move keeps the bytes, cleanup removes what is hidden."""
    source = tmp_path / "f.txt"
    remote = f"b2:{devbucket.bucket}"
    for text in ("one", "second"):
        source.write_text(text)
        rclone("copyto", source, f"{remote}/f.txt")
    names = rclone("lsf", "--b2-versions", remote).split()
    assert len(names) == 2
    old = next(name for name in names if name != "f.txt")
    rclone("copyto", "--b2-versions", f"{remote}/{old}", tmp_path / "restored")
    assert (tmp_path / "restored").read_text() == "one"
    rclone("moveto", f"{remote}/f.txt", f"{remote}/g.txt")
    assert stored(devbucket) == {"g.txt": b"second"}
    assert devbucket.admin.calls()["b2_copy_file"] == 1
    rclone("deletefile", f"{remote}/g.txt")
    assert stored(devbucket) == {}
    rclone("cleanup", remote)
    assert devbucket.admin.versions(devbucket.bucket) == []


def test_rclone_buckets_touch_and_link(rclone: Tool, devbucket: DevBucket, tmp_path: Path) -> None:
    """mkdir and rmdir make and remove buckets; touch changes a time by a copy to itself; cat reads a range."""
    rclone("mkdir", "b2:rclone-bucket")
    assert "rclone-bucket" in rclone("lsd", "b2:")
    rclone("rmdir", "b2:rclone-bucket")
    devbucket.admin.put(devbucket.bucket, "x", b"0123456789", info={"src_last_modified_millis": "1000"})
    rclone("touch", "-t", "2020-01-02T03:04:05", f"b2:{devbucket.bucket}/x")
    assert devbucket.admin.objects(devbucket.bucket)["x"]["fileInfo"]["src_last_modified_millis"] == "1577934245000"
    assert rclone("cat", "--offset", "3", "--count", "4", f"b2:{devbucket.bucket}/x") == "3456"


def test_rclone_survives_faults(rclone: Tool, devbucket: DevBucket, tree: Path) -> None:
    """Against 503s, resets and an expired token rclone's own retries win, and everything arrives."""
    devbucket.admin.fault("status", "b2_upload_file", count=1)
    devbucket.admin.fault("reset", "b2_upload_file", count=1)
    devbucket.admin.fault("expired", "b2_get_upload_url", count=1)
    rclone("copy", "--retries", "5", tree, f"b2:{devbucket.bucket}")
    assert stored(devbucket) == contents(tree)
    assert all(fault["fired"] == fault["count"] for fault in devbucket.admin.faults())
