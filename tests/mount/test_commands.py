"""The commands against a real daemon: status, stats, flush, and what they say in a pipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import FILES, LONG, NewHost, in_bucket, write
from tests.mount.support import B2FS, Mount, until

new_host = hosts.new_host


def quietly(mount: Mount, *arguments: str) -> str:
    """Run a command whose stdout and stderr are pipes; it must say nothing on stderr. Its stdout."""
    done = subprocess.run([*B2FS, *arguments], env=mount.environment(), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_status(mount: Mount, devbucket: DevBucket) -> None:
    """`status` tells the state of the mount, as lines and as JSON, from any path in it."""
    write(mount.path)
    mount.flush()
    status = mount.status()
    expected = {
        "mountpoint": str(mount.path), "bucket": devbucket.bucket, "prefix": "", "endpoint": devbucket.url,
        "state_dir": str(mount.state), "pid": mount.pid, "state": "serving", "online": True, "last_error": "",
        "problems": [], "ignored": [],
    }  # fmt: skip
    assert {name: status[name] for name in expected} == expected
    assert status["dirty"]["files"] == status["dirty"]["bytes"] == 0
    text = quietly(mount, "status", str(mount.path))
    for part in (str(mount.path), devbucket.bucket, "serving", f"pid {mount.pid}", "nothing"):
        assert part in text


@pytest.mark.slow
def test_status_of_a_file(new_host: NewHost, devbucket: DevBucket) -> None:
    """`status FILE` tells where its bytes are: only here while it is written and waits, then in B2 under an id."""
    host = new_host(quiet_period=LONG)
    host.start()
    descriptor = os.open(host.path / "file", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"content")
    assert host.status("file")["state"] == "scratch"
    os.close(descriptor)
    waiting = host.status("file")
    assert waiting["state"] in ("scratch", "staged") and waiting["size"] == 7 and waiting["generation"] > 0
    host.flush()
    there = host.status("file")
    row = devbucket.admin.objects(devbucket.bucket)["file"]
    assert there["state"] == "in-b2"
    assert (there["file_id"], there["sha1"]) == (row["fileId"], row["contentSha1"])
    assert "in-b2" in quietly(host, "status", str(host.path / "file"))
    os.mkdir(host.path / "directory")
    assert host.status("directory")["kind"] == "directory"


@pytest.mark.slow
def test_state_as_attributes(new_host: NewHost, devbucket: DevBucket) -> None:
    """`getfattr -n user.b2fs.state FILE` (and file_id, sha1, generation) says what `b2fs status FILE` says; the names are
    not listed, so that no copy of the file gets them, and nobody can set them.
    """
    host = new_host(quiet_period=LONG)
    host.start()
    path = host.path / "file"

    def said() -> dict[str, str]:
        names = ("state", "file_id", "sha1", "generation")
        return {name: os.getxattr(path, f"user.b2fs.{name}").decode() for name in names}

    path.write_bytes(b"content")
    assert said()["state"] == "scratch" and int(said()["generation"]) > 0
    host.flush()
    version = devbucket.admin.objects(devbucket.bucket)["file"]
    assert said() == {
        "state": "in-b2", "file_id": version["fileId"], "sha1": version["contentSha1"], "generation": "0",
    }  # fmt: skip
    status = host.status("file")
    assert said() == {name: str(status[name]) for name in said()}
    assert os.listxattr(path) == []
    with pytest.raises(OSError):
        os.setxattr(path, "user.b2fs.state", b"in-b2")
    host.stop()


@pytest.mark.slow
def test_stats(new_host: NewHost, devbucket: DevBucket) -> None:
    """`stats` counts cache hits and misses, bytes, dirty files, uploads and requests by class, as B2 counts them."""
    devbucket.admin.put(devbucket.bucket, "there", b"0123456789")
    mount = new_host(quiet_period=LONG)
    mount.start_listed()
    write(mount.path)
    mount.flush()
    (mount.path / "a.txt").write_bytes(b"waits")
    stats = mount.stats()
    assert stats["transfers"]["uploads"] >= len(FILES)
    assert stats["transfers"]["uploaded_bytes"] == sum(map(len, FILES.values()))
    assert stats["dirty"]["files"] >= 1 and stats["dirty"]["bytes"] == len(b"waits") and stats["dirty"]["limit"] > 0
    mount.flush()
    assert mount.stats()["dirty"]["files"] == 0
    counted, seen = mount.stats()["requests"], devbucket.admin.counters()
    assert counted["calls"] == seen["calls"]
    assert counted["classes"] == seen["classes"]
    text = quietly(mount, "stats", str(mount.path))
    for part in ("cache reads", "not in B2 yet", "uploads", "requests by class", "b2_upload_file"):
        assert part in text


@pytest.mark.slow
def test_stats_of_the_cache(new_host: NewHost, devbucket: DevBucket) -> None:
    """The first read of a file is a miss and a fetch, reads after a restart are hits."""
    devbucket.admin.put(devbucket.bucket, "there", bytes(1000))
    host = new_host()
    host.start_listed()
    (host.path / "there").read_bytes()
    stats = host.stats()
    assert (stats["cache"]["misses"], stats["cache"]["objects"], stats["cache"]["bytes"]) == (1, 1, 1000)
    assert (stats["transfers"]["fetches"], stats["transfers"]["fetched_bytes"]) == (1, 1000)
    host.stop()
    host.start()
    (host.path / "there").read_bytes()
    stats = host.stats()
    assert (stats["cache"]["hits"], stats["cache"]["misses"], stats["transfers"]["fetches"]) == (1, 0, 0)


@pytest.mark.slow
def test_flush_of_a_file(new_host: NewHost, devbucket: DevBucket) -> None:
    """`flush FILE` returns once that file is in the bucket, and does not wait for others."""
    devbucket.admin.latency(0.5, "b2_upload_file")
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path)
    assert quietly(host, "flush", str(host.path / "dir/deep/er/blob.bin")) == ""
    assert in_bucket(devbucket) == {"dir/deep/er/blob.bin": FILES["dir/deep/er/blob.bin"]}
    assert quietly(host, "flush", str(host.path / "dir")) == ""
    assert in_bucket(devbucket).keys() == {"dir/deep/er/blob.bin", "dir/empty"}
    assert quietly(host, "flush", str(host.path)) == ""
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_flush_of_an_open_file(new_host: NewHost, devbucket: DevBucket) -> None:
    """`flush` covers what was written to a file that is still open; later writes go on."""
    host = new_host(quiet_period=LONG)
    host.start()
    descriptor = os.open(host.path / "log", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"one\n")
    quietly(host, "flush", str(host.path / "log"))
    assert in_bucket(devbucket) == {"log": b"one\n"}
    os.write(descriptor, b"two\n")
    os.close(descriptor)
    quietly(host, "flush", str(host.path))
    assert in_bucket(devbucket) == {"log": b"one\ntwo\n"}


@pytest.mark.slow
@pytest.mark.parametrize("way", ["file", "directory", "parent"])
def test_flush_after_a_rename_of_its_directory(new_host: NewHost, devbucket: DevBucket, way: str) -> None:
    """`flush` of a file waits also for the move of a directory above it."""
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path, {"top/old/file": b"content"})
    os.rename(host.path / "top/old", host.path / "top/new")
    path = {"file": "top/new/file", "directory": "top/new", "parent": "top"}[way]
    quietly(host, "flush", str(host.path / path))
    assert in_bucket(devbucket) == {"top/new/file": b"content"}


@pytest.mark.slow
def test_flush_through_a_symbolic_link(new_host: NewHost, devbucket: DevBucket) -> None:
    """`flush` of a path that leads through a link in the mount waits for the file that it leads to."""
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path, {"dir/file": b"content"})
    os.symlink("dir", host.path / "link")
    quietly(host, "flush", str(host.path / "link/file"))
    assert in_bucket(devbucket)["dir/file"] == b"content"


@pytest.mark.slow
def test_flush_of_a_removal(new_host: NewHost, devbucket: DevBucket) -> None:
    """`flush` of a path that was removed returns once it is hidden in the bucket."""
    devbucket.admin.put(devbucket.bucket, "dir/file", b"content")
    host = new_host(quiet_period=LONG)
    host.start_listed()
    (host.path / "dir/file").unlink()
    quietly(host, "flush", str(host.path / "dir/file"))
    assert in_bucket(devbucket) == {}


@pytest.mark.slow
def test_flush_that_b2_does_not_let_end(new_host: NewHost, devbucket: DevBucket) -> None:
    """A flush gives up after the drain timeout, with code 8 and one line that names a file; nothing is lost."""
    host = new_host(drain_timeout="500ms")
    host.start_listed()
    devbucket.admin.down()
    write(host.path, {"file": b"content"})
    line = host.command("flush", str(host.path / "file"), expect=Exit.NOT_DRAINED)
    assert line.startswith("b2fs: ") and line.count("\n") == 1 and "file" in line
    devbucket.admin.up()
    until(lambda: in_bucket(devbucket) == {"file": b"content"}, 60)
    host.stop()


@pytest.mark.slow
def test_umount_is_quiet(mount: Mount, devbucket: DevBucket) -> None:
    """In a pipe `b2fs umount` says nothing when all went well."""
    write(mount.path)
    assert quietly(mount, "umount", str(mount.path)) == ""
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("command", ["status", "stats", "flush", "umount"])
def test_path_that_is_no_mount(mount: Mount, tmp_path: Path, command: str) -> None:
    """A path outside of every mount is code 9 and one line that names the path."""
    line = mount.command(command, str(tmp_path), expect=Exit.NOT_RUNNING)
    assert line.startswith("b2fs: ") and line.count("\n") == 1 and str(tmp_path) in line


@pytest.mark.slow
def test_json_is_one_line(mount: Mount) -> None:
    """`--json` prints one line that is one object."""
    for command in (["status", "--json"], ["stats", "--json"]):
        line = quietly(mount, *command, str(mount.path))
        assert line.count("\n") == 1 and isinstance(json.loads(line), dict)
