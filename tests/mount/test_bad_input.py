"""What bad input gets: one line that says what to do, the right exit code, no mount, and nothing lost.

A row of the issue's list is a test here; each refused start is checked by `refused`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from b2fs.errors import Exit
from b2fs.ops import address, mounts
from tests.devbucket.raw import Raw
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import FILES, LONG, Host, NewHost, failing, in_bucket, run, write
from tests.mount.support import until

new_host = hosts.new_host
CAPABILITIES = ["listBuckets", "listFiles", "readFiles", "writeFiles"]
QUIET: dict[str, str] = {"log_level": "warning"}
"""So that stderr is the error line alone: at the level `info` the log goes there too."""
MIB = 1 << 20


@pytest.fixture
def root_client(devbucket: DevBucket) -> Iterator[Raw]:
    with Raw(devbucket.url, devbucket.key_id, devbucket.key) as client:
        yield client


def restricted(client: Raw, capabilities: list[str] = CAPABILITIES, **limits: Any) -> dict[str, str]:
    """The settings for a new application key."""
    made = client.call(
        "b2_create_key", accountId=client.account["accountId"], capabilities=capabilities, keyName="k", **limits
    )
    return {"key_id": made["applicationKeyId"], "key": made["applicationKey"]}


def refusal(host: Host, code: Exit) -> str:
    """What it says. On a later start B2 has half a second for its answer, which includes the transfer process's own start: on
    a busy machine that is too little now and then, and it serves. Then it is started again, three times in all.
    """
    for _ in range(2):
        try:
            return host.start(expect=code)
        except subprocess.TimeoutExpired:
            host.kill()
    return host.start(expect=code)


def refused(host: Host, code: Exit, *words: str, bucket: DevBucket | None = None) -> None:
    """Starting ends with `code` and one line that has `words`; nothing is mounted or changed in the bucket."""
    bucket = bucket or host.bucket
    before = bucket.admin.versions(bucket.bucket)
    already = len([each for each in mounts.all_mounts() if each.mountpoint == str(host.path)])
    line = refusal(host, code)
    assert line.startswith("b2fs: ") and line.endswith("\n") and line.count("\n") == 1, line
    for word in words:
        assert word in line, line
    assert host.settings.get("key", bucket.key) not in line and bucket.key not in line
    assert len([each for each in mounts.all_mounts() if each.mountpoint == str(host.path)]) == already
    assert bucket.admin.versions(bucket.bucket) == before


# ---------------------------------------------------------------- the account


@pytest.mark.slow
def test_wrong_key(new_host: NewHost, devbucket: DevBucket) -> None:
    """A key or key id that B2 does not know is refused with code 4, on the first start and on a later one."""
    refused(new_host(key="K004wrong-secret", **QUIET), Exit.DENIED, "B2_APPLICATION_KEY", devbucket.key_id)
    refused(new_host(key_id="004unknown", **QUIET), Exit.DENIED, "B2_APPLICATION_KEY", "004unknown")
    host = new_host(quiet_period=LONG, **QUIET)
    host.start()
    write(host.path)
    host.kill()
    host.settings["key"] = "K004wrong-secret"
    refused(host, Exit.DENIED, "B2_APPLICATION_KEY")
    del host.settings["key"]
    host.start()
    host.stop()
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_key_without_a_capability(new_host: NewHost, root_client: Raw) -> None:
    """A key that may not write is refused with code 4, and the line names what is missing and what is needed."""
    key = restricted(root_client, ["listBuckets", "listFiles", "readFiles"])
    refused(new_host(**key, **QUIET), Exit.DENIED, "writeFiles", "a mount needs listBuckets, listFiles")


@pytest.mark.slow
def test_key_for_another_prefix(new_host: NewHost, root_client: Raw, devbucket: DevBucket) -> None:
    """A key for one folder mounts that folder or one below it, and is refused with code 4 for everything else."""
    ids = [root_client.bucket_id(devbucket.bucket)]
    key = restricted(root_client, bucketIds=ids, namePrefix="sites/a/")
    for prefix in ("", "sites/", "sites/ab/"):
        refused(new_host(prefix=prefix, **key, **QUIET), Exit.DENIED, "'sites/a/'")
    host = new_host(prefix="sites/a/b/", **key)
    host.start()
    write(host.path)
    host.stop()
    assert in_bucket(devbucket) == {f"sites/a/b/{name}": data for name, data in FILES.items()}


@pytest.mark.slow
def test_key_for_another_bucket(new_host: NewHost, root_client: Raw, devbucket: DevBucket) -> None:
    """A key that is restricted to another bucket is refused with code 4, and the line names both."""
    devbucket.admin.create_bucket(f"other-{devbucket.bucket}")
    key = restricted(root_client, bucketIds=[root_client.bucket_id(f"other-{devbucket.bucket}")])
    refused(new_host(**key, **QUIET), Exit.DENIED, f"'other-{devbucket.bucket}'", f"'{devbucket.bucket}'")


@pytest.mark.slow
def test_key_without_delete_is_enough(new_host: NewHost, root_client: Raw, devbucket: DevBucket) -> None:
    """The four capabilities that b2fs asks for do for everything that it does: no version is ever deleted."""
    host = new_host(**restricted(root_client))
    host.start()
    write(host.path)
    host.flush()
    os.rename(host.path / "dir", host.path / "moved")
    (host.path / "a.txt").unlink()
    host.stop()
    content = {name.replace("dir/", "moved/"): data for name, data in FILES.items() if name != "a.txt"}
    assert in_bucket(devbucket) == content
    hidden = [row["fileName"] for row in devbucket.admin.versions(devbucket.bucket) if row["action"] == "hide"]
    assert {"a.txt", "dir/empty", "dir/deep/er/blob.bin"} <= set(hidden)
    assert len(devbucket.admin.versions(devbucket.bucket, "a.txt")) == 2


@pytest.mark.slow
def test_missing_bucket(new_host: NewHost) -> None:
    """A bucket that the account does not have is refused with code 5, and the line names it."""
    host = new_host(**QUIET)
    real, host.bucket = host.bucket, _renamed(host.bucket, "no-such-bucket")
    refused(host, Exit.BUCKET, "'no-such-bucket'", "B2_BUCKET_NAME", bucket=real)


@pytest.mark.slow
def test_no_network(new_host: NewHost) -> None:
    """On a first start nothing can be served without B2: code 5 after the deadline, and the line says why."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    host = new_host(endpoint=f"http://127.0.0.1:{closed}", read_deadline="1s", **QUIET)
    refused(host, Exit.BUCKET, "127.0.0.1", "B2FS_ENDPOINT")


@pytest.mark.slow
def test_not_a_b2_service(new_host: NewHost, devbucket: DevBucket) -> None:
    """An address where something else answers is refused with code 5, and the line names the address."""
    host = new_host(endpoint=f"{devbucket.url}/elsewhere", **QUIET)
    refused(host, Exit.BUCKET, "/elsewhere", "B2FS_ENDPOINT")


@pytest.mark.slow
def test_missing_settings(new_host: NewHost) -> None:
    """Without a bucket's name there is nothing to mount: code 3, and the line names the variable."""
    host = new_host(**QUIET)
    real, host.bucket = host.bucket, _renamed(host.bucket, "")
    refused(host, Exit.CONFIG, "B2_BUCKET_NAME", bucket=real)


def _renamed(bucket: DevBucket, name: str) -> DevBucket:
    """The same server under the name of another bucket."""
    other = object.__new__(DevBucket)
    other.__dict__.update(bucket.__dict__, bucket=name)
    return other


@pytest.mark.slow
def test_cap_reached_at_a_later_start(new_host: NewHost, devbucket: DevBucket) -> None:
    """A daily cap is like B2 being away: a later start mounts, serves what is here, and takes writes."""
    devbucket.admin.put(devbucket.bucket, "cached", b"read before")
    host = new_host()
    host.start_listed()
    assert (host.path / "cached").read_bytes() == b"read before"
    host.stop()
    devbucket.admin.caps("transaction")
    host.start()
    assert (host.path / "cached").read_bytes() == b"read before"
    write(host.path)
    host.kill()
    devbucket.admin.caps()
    host.start()
    host.stop()
    assert in_bucket(devbucket) == {**FILES, "cached": b"read before"}


# ---------------------------------------------------------------- the mountpoint


@pytest.mark.slow
def test_bad_mountpoints(new_host: NewHost) -> None:
    """A mountpoint that is missing, no directory or not empty is refused with code 7, and is not changed."""
    host = new_host(**QUIET)
    host.path.rmdir()
    refused(host, Exit.MOUNT, f"mkdir -p {host.path}")
    assert not host.path.exists()
    host.path.write_bytes(b"a file")
    refused(host, Exit.MOUNT, "is not a directory")
    assert host.path.read_bytes() == b"a file"
    host.path.unlink()
    host.path.mkdir()
    (host.path / "precious").write_bytes(b"mine")
    refused(host, Exit.MOUNT, "is not empty", "precious")
    assert (host.path / "precious").read_bytes() == b"mine"
    assert not host.state.exists()


@pytest.mark.slow
def test_mounted_already(new_host: NewHost) -> None:
    """A second mount on one directory is refused with code 7; the first goes on."""
    first, second = new_host(), new_host(**QUIET)
    first.start()
    second.path.rmdir()
    second.path = first.path
    refused(second, Exit.MOUNT, "is a b2fs mount already", f"b2fs umount {first.path}")
    write(first.path)
    first.stop()


@pytest.mark.slow
def test_dead_mount_is_taken_away(new_host: NewHost, devbucket: DevBucket) -> None:
    """What a killed daemon leaves (`Transport endpoint is not connected`) does not stop the next start."""
    host = new_host(quiet_period=LONG)
    host.start()
    write(host.path)
    assert host.process is not None
    host.process.kill()
    host.process.wait()
    with failing(errno.ENOTCONN):
        os.listdir(host.path)
    host.start()
    assert [each.mountpoint for each in mounts.all_mounts()].count(str(host.path)) == 1
    assert {name: (host.path / name).read_bytes() for name in FILES} == FILES
    host.stop()
    assert in_bucket(devbucket) == FILES


# ---------------------------------------------------------------- the state directory


@pytest.mark.slow
def test_state_of_another_bucket(new_host: NewHost, devbucket: DevBucket, root_client: Raw) -> None:
    """A state directory never goes to another bucket, prefix or endpoint: code 6; its bytes wait for the right one."""
    owner = new_host(quiet_period=LONG, prefix="site/", **QUIET)
    owner.start()
    write(owner.path)
    owner.kill()

    devbucket.admin.create_bucket(f"second-{devbucket.bucket}")
    elsewhere = devbucket.url.replace("127.0.0.1", "localhost")
    wrong: list[tuple[str, str, dict[str, str]]] = [
        ("bucket", f"second-{devbucket.bucket}", {"prefix": "site/"}),
        ("prefix", devbucket.bucket, {"prefix": "other/"}),
        ("endpoint", devbucket.bucket, {"prefix": "site/", "endpoint": elsewhere}),
    ]
    for what, bucket, settings in wrong:
        thief = new_host(_renamed(devbucket, bucket), state_dir=str(owner.state), **settings, **QUIET)
        refused(thief, Exit.STATE, what, "B2FS_STATE_DIR", bucket=devbucket)
    owner.start()
    owner.stop()
    assert in_bucket(devbucket) == {f"site/{name}": data for name, data in FILES.items()}
    assert devbucket.admin.versions(f"second-{devbucket.bucket}") == []


@pytest.mark.slow
def test_state_of_a_bucket_made_anew(new_host: NewHost, devbucket: DevBucket, root_client: Raw) -> None:
    """A bucket that was deleted and made again under its name is another one: code 6, nothing is uploaded to it."""
    host = new_host(quiet_period=LONG, **QUIET)
    host.start()
    write(host.path)
    host.kill()
    account = root_client.account["accountId"]
    root_client.call("b2_delete_bucket", accountId=account, bucketId=root_client.bucket_id(devbucket.bucket))
    devbucket.admin.create_bucket(devbucket.bucket)
    refused(host, Exit.STATE, "B2FS_STATE_DIR", "made anew")
    assert any((host.state / "scratch").iterdir())


@pytest.mark.slow
def test_second_daemon_on_one_state(new_host: NewHost, devbucket: DevBucket) -> None:
    """A state directory serves one daemon: the second is refused with code 6, the first does not notice."""
    first = new_host(quiet_period=LONG)
    first.start()
    write(first.path)
    refused(new_host(state_dir=str(first.state), **QUIET), Exit.STATE, "is in use", str(first.pid))
    assert {name: (first.path / name).read_bytes() for name in FILES} == FILES
    first.stop()
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_unusable_state_directory(new_host: NewHost) -> None:
    """A state directory that is a file, or whose journal is no journal, is refused with code 6 and left as it is."""
    host = new_host(**QUIET)
    host.damaged = True
    host.state.write_bytes(b"a file")
    refused(host, Exit.STATE, str(host.state))
    host.state.unlink()
    host.state.mkdir()
    (host.state / "journal.db").write_bytes(b"not a database" * 1000)
    refused(host, Exit.STATE, "journal")
    assert (host.state / "journal.db").read_bytes() == b"not a database" * 1000


# ---------------------------------------------------------------- foreign objects

IMPOSSIBLE = ("a//b", "/x", "..", "up/../down", "up/./now", "s" * 300, "long/" + "s" * 300 + "/file", "//", "/")


@pytest.mark.slow
@pytest.mark.parametrize("refresh", ["0", "300ms"])
def test_impossible_names(new_host: NewHost, devbucket: DevBucket, refresh: str) -> None:
    """Objects that no path can name are left alone and listed as ignored; all others are there."""
    admin, bucket = devbucket.admin, devbucket.bucket
    for name in IMPOSSIBLE:
        admin.put(bucket, name, b"impossible")
    usable = {"a/c": b"1", "back\\slash": b"2", "long/name": b"3", "x" * 255: b"4", "up/file": b"5"}
    for name, data in usable.items():
        admin.put(bucket, name, data)
    before = admin.versions(bucket)

    host = new_host(refresh_interval=refresh)
    host.start_listed()
    assert {name: (host.path / name).read_bytes() for name in usable} == usable
    assert sorted(os.listdir(host.path)) == sorted({name.partition("/")[0] for name in usable})
    assert os.listdir(host.path / "a") == ["c"]
    until(lambda: {entry["key"] for entry in host.status()["ignored"]} == set(IMPOSSIBLE))
    assert all(entry["why"] for entry in host.status()["ignored"])
    assert host.command("status", str(host.path)).count("ignored") == len(IMPOSSIBLE)
    host.stop()
    assert admin.versions(bucket) == before


@pytest.mark.slow
def test_file_and_directory_of_one_name(new_host: NewHost, devbucket: DevBucket) -> None:
    """The directory is shown, the file is listed as ignored, for as long as both are there; neither is changed."""
    admin, bucket = devbucket.admin, devbucket.bucket
    admin.put(bucket, "both", b"the file")
    admin.put(bucket, "both/inside", b"the directory")
    admin.put(bucket, "deep/er/both", b"the file")
    admin.put(bucket, "deep/er/both/inside/it", b"the directory")
    before = admin.versions(bucket)
    host = new_host(refresh_interval="200ms")
    host.start_listed()
    listings = devbucket.admin.calls()["b2_list_file_names"]
    until(lambda: devbucket.admin.calls()["b2_list_file_names"] >= listings + 3)
    assert (host.path / "both/inside").read_bytes() == b"the directory"
    assert (host.path / "deep/er/both/inside/it").read_bytes() == b"the directory"
    until(lambda: {entry["key"] for entry in host.status()["ignored"]} == {"both", "deep/er/both"}, 5)
    host.stop()
    assert admin.versions(bucket) == before


@pytest.mark.slow
def test_directory_over_a_file_that_was_changed_here(new_host: NewHost, devbucket: DevBucket) -> None:
    """A file with a new mode that waits for B2 is not hidden there when somebody makes a directory of its name."""
    admin, bucket = devbucket.admin, devbucket.bucket
    admin.put(bucket, "both", b"the file")
    host = new_host(refresh_interval="200ms", quiet_period=LONG)
    host.start_listed()
    os.chmod(host.path / "both", 0o600)
    admin.put(bucket, "both/inside", b"the directory")
    until(lambda: host.status()["ignored"])
    host.stop()
    assert in_bucket(devbucket) == {"both": b"the file", "both/inside": b"the directory"}


@pytest.mark.slow
def test_directory_goes_and_the_file_of_its_name_appears(new_host: NewHost, devbucket: DevBucket) -> None:
    """When the directory that hid a file is removed by others, the file is shown."""
    admin, bucket = devbucket.admin, devbucket.bucket
    admin.put(bucket, "both", b"the file")
    admin.put(bucket, "both/inside", b"the directory")
    host = new_host(refresh_interval="200ms")
    host.start_listed()
    assert (host.path / "both").is_dir()
    admin.hide(bucket, "both/inside")
    until(lambda: (host.path / "both").is_file(), 5)
    assert (host.path / "both").read_bytes() == b"the file"


@pytest.mark.slow
def test_bad_times(new_host: NewHost, devbucket: DevBucket) -> None:
    """A src_last_modified_millis that is no time counts as unsaid: the time of the upload is taken."""
    admin, bucket = devbucket.admin, devbucket.bucket
    said = {
        "word": "yesterday", "fraction": "1234.5", "huge": "9" * 40, "empty": "", "negative": "-86400000",
        "hex": "0x10", "good": "1000000000123", "beyond": str(1 << 62),
    }  # fmt: skip
    for name, value in said.items():
        admin.put(bucket, name, name.encode(), info={"src_last_modified_millis": value})
    admin.put(bucket, "packed", b"packed", info={"b2fs": "m=zzz;u=-1;g=99999999999;n=9999999999;=;x"})
    before = admin.versions(bucket)
    uploaded = {row["fileName"]: row["uploadTimestamp"] * 1_000_000 for row in before}
    host = new_host()
    host.start_listed()
    times = {name: (host.path / name).stat().st_mtime_ns for name in [*said, "packed"]}
    assert {name: (host.path / name).read_bytes() for name in said} == {name: name.encode() for name in said}
    exact = {"good": 1000000000123000000, "negative": -86400000000000}
    assert times == uploaded | exact
    assert stat.S_IMODE((host.path / "packed").stat().st_mode) == 0o644
    host.stop()
    assert admin.versions(bucket) == before


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk))
    try:
        yield disk
    finally:
        run("umount", "-l", str(disk))


def fill(path: Path) -> None:
    """Take every byte that the disk of `path` has left."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    with failing(errno.ENOSPC):
        while True:
            os.write(descriptor, bytes(4096))
    os.close(descriptor)


@pytest.mark.slow
def test_full_disk_while_writing(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """The writer gets ENOSPC; what was acknowledged is there and reaches B2; with room again writes work."""
    host = new_host(state_dir=str(small_disk / "state"), quiet_period=LONG, dirty_wait="200ms")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 * MIB))
    host.start_listed()
    away = devbucket.admin.fault("status", "b2_upload_file", count=None, status=503)  # else uploads make room
    written: dict[str, bytes] = {}
    with failing(errno.ENOSPC):
        for number in range(100):
            name = f"{number}.bin"
            written[name] = b""
            descriptor = os.open(host.path / name, os.O_WRONLY | os.O_CREAT)
            try:
                for piece in range(8):
                    data = bytes([number, piece]) * 32768
                    written[name] += data[: os.write(descriptor, data)]
            finally:
                os.close(descriptor)
    assert sum(map(len, written.values())) > 3 * MIB
    # the file that could not be opened at all is none
    written = {name: data for name, data in written.items() if data or (host.path / name).exists()}
    assert {name: (host.path / name).read_bytes() for name in os.listdir(host.path)} == written
    assert host.status()["state"] == "serving"

    ballast.unlink()
    devbucket.admin.clear_faults(away)
    write(host.path)
    (host.path / "0.bin").write_bytes(b"short")
    host.stop()
    assert in_bucket(devbucket) == {**written, **FILES, "0.bin": b"short"}


@pytest.mark.slow
def test_disk_without_a_byte_left(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """Every change is refused with ENOSPC and changes nothing; what is here is read; with room all works again."""
    devbucket.admin.put(devbucket.bucket, "cached", b"read before")
    host = new_host(state_dir=str(small_disk / "state"), quiet_period=LONG)
    host.start_listed()
    assert (host.path / "cached").read_bytes() == b"read before"
    write(host.path)
    fill(small_disk / "ballast")
    before = hosts_tree(host)
    for _ in range(50):  # the journal's log may have some room of its own
        with contextlib.suppress(OSError):
            os.mkdir(host.path / "new")
            os.rmdir(host.path / "new")
    with failing(errno.ENOSPC):
        for number in range(200):
            os.mkdir(host.path / f"directory-{number}")
    for name in [name for name in os.listdir(host.path) if name.startswith("directory-")]:
        with contextlib.suppress(OSError):
            os.rmdir(host.path / name)
    assert (host.path / "cached").read_bytes() == b"read before"
    assert {name: data for name, data in hosts_tree(host).items() if "directory-" not in name} == before
    assert host.status()["state"] == "serving", host.log_text()

    (small_disk / "ballast").unlink()
    os.mkdir(host.path / "directory")
    (host.path / "directory/file").write_bytes(b"with room again")
    host.stop()
    assert in_bucket(devbucket) == {**FILES, "cached": b"read before", "directory/file": b"with room again"}
    assert "Traceback" not in host.log_text()


@pytest.mark.slow
def test_full_disk_for_a_long_time(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """A full disk that stops the journal's own housekeeping does not end the daemon."""
    host = new_host(state_dir=str(small_disk / "state"), quiet_period=LONG)
    host.start_listed()
    log, directories = small_disk / "state/journal.db-wal", 0
    while log.stat().st_size <= 4 * MIB:  # then it is moved into the database with the next second
        os.mkdir(host.path / str(directories))
        directories += 1
    fill(small_disk / "ballast")
    until(lambda: host.ended() or "journal" in host.log_text())
    assert host.status()["state"] == "serving"
    assert len(os.listdir(host.path)) == directories
    (small_disk / "ballast").unlink()
    write(host.path)
    host.stop()
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 3, 5])
def test_failed_write_harms_nothing(new_host: NewHost, devbucket: DevBucket, small_disk: Path, offset: int) -> None:
    """A write that the disk has no room for leaves the bytes that were there before it, and the size."""
    host = new_host(state_dir=str(small_disk / "state"), quiet_period=LONG, dirty_wait="2s")
    host.start_listed()
    write(host.path)
    descriptor = os.open(host.path / "a.txt", os.O_RDWR)
    fill(small_disk / "ballast")
    os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - 2 * 4096)
    model = bytearray(b"first")
    with failing(errno.ENOSPC):
        while True:
            at = max(offset, len(model)) if len(model) > 5 else offset
            written = os.pwrite(descriptor, b"0123456789abcdef" * 4096, at)
            model[len(model) :] = bytes(max(0, at - len(model)))
            model[at : at + written] = (b"0123456789abcdef" * 4096)[:written]
    assert os.fstat(descriptor).st_size == len(model)
    assert os.pread(descriptor, MIB, 0) == model
    os.close(descriptor)
    (small_disk / "ballast").unlink()
    host.stop()
    assert in_bucket(devbucket) == {**FILES, "a.txt": bytes(model)}


@pytest.mark.slow
def test_full_disk_under_a_shared_map(new_host: NewHost, small_disk: Path) -> None:
    """A program that writes through a shared map hears of a full disk: at msync, fsync or close, not never."""
    host = new_host(state_dir=str(small_disk / "state"), quiet_period=LONG)
    host.start_listed()
    descriptor = os.open(host.path / "map", os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, MIB)
    fill(small_disk / "ballast")
    os.truncate(small_disk / "ballast", (small_disk / "ballast").stat().st_size - 10 * 4096)
    with pytest.raises(OSError) as caught, mmap.mmap(descriptor, MIB) as mapped:
        mapped[:] = b"x" * MIB
        mapped.flush()
        os.fsync(descriptor)
    assert caught.value.errno in (errno.ENOSPC, errno.EIO)
    with contextlib.suppress(OSError):
        os.close(descriptor)


def hosts_tree(host: Host) -> dict[str, bytes]:
    found = {}
    for folder, _, names in os.walk(host.path):
        for name in names:
            path = Path(folder, name)
            found[str(path.relative_to(host.path))] = path.read_bytes()
    return found


@pytest.mark.slow
def test_disk_full_of_clean_content(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """Clean bytes give way: on a disk that the cache has filled reads go on, and so do writes."""
    files = {f"{number}.bin": bytes([number]) * MIB for number in range(20)}
    for name, data in files.items():
        devbucket.admin.put(devbucket.bucket, name, data)
    host = new_host(state_dir=str(small_disk / "state"), read_deadline="10s")
    host.start_listed()
    assert {name: (host.path / name).read_bytes() for name in files} == files
    (host.path / "new").write_bytes(bytes(2 * MIB))
    host.stop()
    assert in_bucket(devbucket)["new"] == bytes(2 * MIB)


@pytest.mark.slow
def test_full_disk_at_the_start(new_host: NewHost, devbucket: DevBucket, small_disk: Path) -> None:
    """A start on a full disk is refused with one line, or serves; what waited for B2 is there afterwards."""
    host = new_host(state_dir=str(small_disk / "state"), quiet_period=LONG, **QUIET)
    host.start()
    write(host.path)
    host.kill()
    fill(small_disk / "ballast")
    refused(host, Exit.DISK, "full")
    (small_disk / "ballast").unlink()
    host.start()
    assert {name: (host.path / name).read_bytes() for name in FILES} == FILES
    host.stop()
    assert in_bucket(devbucket) == FILES


# ---------------------------------------------------------------- secrets and permissions


@pytest.mark.slow
def test_secret_is_nowhere(new_host: NewHost, devbucket: DevBucket) -> None:
    """The key is in no command line, not in the transfer process's environment, log, status, stats or error."""
    host = new_host(log_level="debug", drain_timeout="300ms")
    host.start_listed()
    write(host.path)
    host.flush()
    transfer = host.transfer_process()
    seen = {
        "argv": Path(f"/proc/{host.pid}/cmdline").read_text(),
        "argv of the transfer process": Path(f"/proc/{transfer}/cmdline").read_text(),
        "environment of the transfer process": Path(f"/proc/{transfer}/environ").read_text(),
        "status": host.command("status", "--json", str(host.path)) + host.command("status", str(host.path)),
        "stats": host.command("stats", "--json", str(host.path)) + host.command("stats", str(host.path)),
        "config": host.command("config", "show") + host.command("config", "show", "--json"),
    }
    devbucket.admin.fault("expired", "*", count=3)
    devbucket.admin.fault("status", "b2_upload_file", count=2, status=400, code="bad_request", message=devbucket.key)
    (host.path / "a.txt").write_bytes(b"changed")
    until(lambda: devbucket.admin.calls().get("b2_upload_file", 0) > 0)
    devbucket.admin.down()
    (host.path / "left").write_bytes(b"behind")
    host.stop(Exit.NOT_DRAINED)
    devbucket.admin.up()
    seen["log"] = host.log_text()
    seen["manifest"] = (host.state / "not-in-b2.json").read_text()
    wrong = new_host(key="K004another-secret", log_level="debug")
    seen["error"] = wrong.command("--debug", "mount", str(wrong.path), expect=Exit.DENIED)
    seen["files"] = "".join(
        path.read_text(errors="replace") for path in host.state.rglob("*") if path.is_file() and path.suffix != ".sock"
    )
    for where, text in seen.items():
        assert devbucket.key not in text, where
        assert "K004another-secret" not in text, where
    assert "***" in seen["config"]


@pytest.mark.slow
def test_state_and_sockets_are_private(new_host: NewHost) -> None:
    """Under a loose umask everything that b2fs makes is 0700 or 0600: state, log, manifest and control socket."""
    host = new_host(quiet_period="50ms")
    old = os.umask(0)
    try:
        host.start("--daemon")
    finally:
        os.umask(old)
    write(host.path)
    os.symlink("a.txt", host.path / "link")
    host.flush()
    descriptor = os.open(host.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"in scratch")
    loose = {
        str(path.relative_to(host.state)): oct(path.stat().st_mode)
        for path in [host.state, *host.state.rglob("*")]
        if path.lstat().st_mode & 0o077
    }
    control = Path(address.runtime_dir(), address.socket_name(str(host.path)))
    modes = [stat.S_IMODE(path.lstat().st_mode) for path in (control, control.parent)]
    os.close(descriptor)
    host.command("umount", str(host.path))
    assert loose == {}
    assert modes == [0o600, 0o700]
    shutil.rmtree(host.state)
