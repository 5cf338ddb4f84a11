"""From the ready line to the exit code: what a stop, a crash, a dead network and a second start do to the bytes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import FILES, LONG, Host, NewHost, failing, in_bucket, run, write
from tests.mount.support import B2FS, until
from tests.tree import compare, tree

new_host = hosts.new_host
MANIFEST = "not-in-b2.json"


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def manifest(mount: Host) -> dict[str, dict[str, Any]]:
    """The entries of the manifest by path, without those of directories."""
    entries = json.loads((mount.state / MANIFEST).read_text())["not_in_b2"]
    return {entry["path"]: entry for entry in entries if not entry["path"].endswith(".bzEmpty")}


def kept(mount: Host) -> list[bytes]:
    """The content of all files that wait in the state directory."""
    return [path.read_bytes() for folder in ("scratch", "staged") for path in (mount.state / folder).iterdir()]


# ---------------------------------------------------------------- ready, and the ways to end it


@pytest.mark.slow
def test_prints_ready_and_stays_in_the_foreground(new_host: NewHost) -> None:
    """`ready: DIR` is all that goes to stdout, and the process serves until it is told to end."""
    mount = new_host()
    assert mount.start() == f"ready: {mount.path}"
    assert mount.mounted()
    assert mount.process is not None and mount.process.poll() is None
    assert mount.process.stdout is not None
    mount.stop()
    assert mount.process.stdout.read() == ""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains(new_host: NewHost, devbucket: DevBucket, number: signal.Signals) -> None:
    """A signal right after the last write ends with code 0 and every byte in the bucket."""
    mount = new_host(quiet_period=LONG)
    mount.start()
    write(mount.path)
    os.kill(mount.pid, number)
    mount.wait(Exit.OK)
    assert in_bucket(devbucket) == FILES
    assert not (mount.state / MANIFEST).exists()


@pytest.mark.slow
def test_signal_drains_a_file_that_is_still_open(new_host: NewHost, devbucket: DevBucket) -> None:
    """What was written to a file that nobody has closed is in the bucket too."""
    mount = new_host(quiet_period=LONG)
    mount.start()
    descriptor = os.open(mount.path / "open.log", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"line 1\n")
    os.write(descriptor, b"line 2\n")
    mount.stop()
    with failing(errno.ENOTCONN):
        os.write(descriptor, b"line 3\n")
    with failing(errno.ENOTCONN):
        os.close(descriptor)
    assert in_bucket(devbucket) == {"open.log": b"line 1\nline 2\n"}


@pytest.mark.slow
def test_signal_while_a_program_writes(new_host: NewHost, devbucket: DevBucket) -> None:
    """Every write that returned before the mount went away is in the bucket, in whole."""
    mount = new_host(quiet_period="50ms")
    mount.start()
    descriptor = os.open(mount.path / "log", os.O_WRONLY | os.O_CREAT)
    lines = 0
    with pytest.raises(OSError):
        while True:
            os.write(descriptor, b"%07d\n" % lines)
            lines += 1
            if lines == 2000:
                os.kill(mount.pid, signal.SIGTERM)
    with failing(errno.ENOTCONN):
        os.close(descriptor)
    mount.wait(Exit.OK)
    stored = in_bucket(devbucket)["log"]
    assert lines >= 2000
    assert stored == b"".join(b"%07d\n" % number for number in range(lines))


@pytest.mark.slow
def test_outside_umount_drains(new_host: NewHost, devbucket: DevBucket) -> None:
    """`umount DIR` by anybody makes the daemon upload what is left and end with code 0."""
    mount = new_host(quiet_period=LONG)
    mount.start()
    write(mount.path)
    run("umount", str(mount.path))
    mount.wait(Exit.OK)
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_lazy_umount_waits_for_open_files(new_host: NewHost, devbucket: DevBucket) -> None:
    """After `umount -l` an open file can still be written; once it is closed the daemon drains and ends."""
    mount = new_host(quiet_period=LONG)
    mount.start()
    with open(mount.path / "open.txt", "wb", buffering=0) as file:
        file.write(b"before, ")
        run("umount", "-l", str(mount.path))
        assert not mount.mounted()
        file.write(b"after")
        os.fsync(file.fileno())
    mount.wait(Exit.OK)
    assert in_bucket(devbucket) == {"open.txt": b"before, after"}


@pytest.mark.slow
def test_umount_command_waits_for_everything(new_host: NewHost, devbucket: DevBucket) -> None:
    """When `b2fs umount` returns, the bytes are in the bucket, the mount is gone and the daemon has ended."""
    devbucket.admin.latency(0.3, "b2_upload_file")
    mount = new_host(quiet_period=LONG)
    mount.start()
    write(mount.path)
    assert mount.command("umount", str(mount.path)) == ""
    assert in_bucket(devbucket) == FILES
    assert not mount.mounted()
    assert mount.process is not None and mount.process.poll() == Exit.OK


@pytest.mark.slow
def test_second_signal_ends_the_wait(new_host: NewHost, devbucket: DevBucket) -> None:
    """While B2 is away a drain waits; a second signal ends it at once, with code 8 and the manifest."""
    mount = new_host()
    mount.start_listed()
    devbucket.admin.down()
    write(mount.path)
    os.kill(mount.pid, signal.SIGTERM)
    until(lambda: mount.status()["state"] == "draining")
    os.kill(mount.pid, signal.SIGTERM)
    began = time.monotonic()
    mount.wait(Exit.NOT_DRAINED)
    assert time.monotonic() - began < 10
    assert set(manifest(mount)) == set(FILES)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["umount", "b2fs umount"])
def test_first_signal_after_an_umount_does_not_cut_the_drain(new_host: NewHost, devbucket: DevBucket, how: str) -> None:
    """A service manager's SIGTERM that follows an umount is the first signal, so the drain goes on."""
    mount = new_host(quiet_period=LONG)
    mount.start()
    write(mount.path)
    devbucket.admin.latency(1.0, "b2_upload_file")
    command = ["umount", str(mount.path)] if how == "umount" else [*B2FS, "umount", str(mount.path)]
    with subprocess.Popen(command, env=mount.environment(), stderr=subprocess.DEVNULL) as umount:
        until(lambda: devbucket.admin.calls().get("b2_upload_file"))
        os.kill(mount.pid, signal.SIGTERM)
        mount.wait(Exit.OK)
        assert umount.wait(20) == 0
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_daemon_option_detaches_once_mounted(new_host: NewHost, devbucket: DevBucket) -> None:
    """`--daemon` returns when the mount serves; the daemon has a session of its own and a private log."""
    mount = new_host()
    mount.start("--daemon")
    assert mount.process is not None and mount.process.wait(20) == 0
    pid = mount.status()["pid"]
    try:
        assert mount.mounted() and pid != mount.pid
        assert os.getsid(pid) != os.getsid(0)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        log = mount.state / "b2fs.log"
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert "serving" in log.read_text()
        write(mount.path)
        mount.command("umount", str(mount.path))
        assert in_bucket(devbucket) == FILES
    finally:
        if mount.mounted():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_daemon_option_reports_a_failure(new_host: NewHost) -> None:
    """`--daemon` with a wrong key prints one line, exits with the daemon's code, and leaves nothing behind."""
    mount = new_host(key="not-the-right-key")
    line = mount.start("--daemon", expect=Exit.DENIED)
    assert line.startswith("b2fs: ") and line.count("\n") == 1
    assert not mount.mounted()


# ---------------------------------------------------------------- crashes


@pytest.mark.slow
def test_sigkill_after_close_loses_nothing(new_host: NewHost, devbucket: DevBucket) -> None:
    """After SIGKILL the next start has every closed file: content, mode, ns mtime; and brings them to B2."""
    mount = new_host(quiet_period=LONG)
    mount.start()
    write(mount.path)
    os.chmod(mount.path / "a.txt", 0o640)
    os.utime(mount.path / "a.txt", ns=(1, 1_600_000_000_123_456_789))
    os.rename(mount.path / "dir/deep", mount.path / "moved")
    os.symlink("../a.txt", mount.path / "moved/link")
    os.mkdir(mount.path / "void", 0o711)
    (mount.path / "gone").write_bytes(b"x")
    (mount.path / "gone").unlink()
    before = tree(mount.path)
    mount.kill()
    assert in_bucket(devbucket) == {}

    mount.start()
    assert compare(tree(mount.path), before) == []
    mount.stop()
    content = {name.replace("dir/deep", "moved"): data for name, data in FILES.items()}
    assert in_bucket(devbucket) == {**content, "moved/link": b"../a.txt"}

    other = new_host()
    other.start()
    assert compare(tree(other.path), before) == []


@pytest.mark.slow
def test_sigkill_keeps_what_write_acknowledged(new_host: NewHost, devbucket: DevBucket) -> None:
    """After SIGKILL the bytes of a file that was still open are there, those of a changed old file too."""
    devbucket.admin.put(devbucket.bucket, "old", b"0123456789")
    mount = new_host(quiet_period=LONG)
    mount.start()
    new = os.open(mount.path / "new", os.O_WRONLY | os.O_CREAT)
    old = os.open(mount.path / "old", os.O_RDWR)
    os.write(new, b"not closed")
    os.pwrite(old, b"____", 4)
    mount.kill()
    for descriptor in (new, old):
        with failing(errno.ENOTCONN):
            os.close(descriptor)
    mount.start()
    assert (mount.path / "new").read_bytes() == b"not closed"
    assert (mount.path / "old").read_bytes() == b"0123____89"
    mount.stop()
    assert in_bucket(devbucket) == {"new": b"not closed", "old": b"0123____89"}


@pytest.mark.slow
def test_sigkill_amid_uploads(new_host: NewHost, devbucket: DevBucket) -> None:
    """An upload whose answer was lost with the daemon is found again, not repeated."""
    lost = devbucket.admin.fault("reply_lost", "b2_upload_file", key="*.txt", count=None)
    devbucket.admin.fault("status", "b2_download_file_by_name", count=None)
    mount = new_host(quiet_period="0")
    mount.start_listed()
    files = {f"{number}.txt": b"%d" % number for number in range(5)}
    write(mount.path, files)
    until(lambda: devbucket.admin.fired(lost) >= len(files))
    mount.kill()
    devbucket.admin.clear_faults()
    devbucket.admin.fault("status", "b2_list_file_names", count=None)  # a listing would tell it too

    mount.start()
    assert {name: (mount.path / name).read_bytes() for name in files} == files
    mount.stop()
    assert in_bucket(devbucket) == files
    assert {name: len(devbucket.admin.versions(devbucket.bucket, name)) for name in files} == dict.fromkeys(files, 1)


@pytest.mark.slow
def test_sigkill_of_the_transfer_process(new_host: NewHost, devbucket: DevBucket) -> None:
    """The daemon starts its transfer process again, and nobody notices more than a delay."""
    devbucket.admin.put(devbucket.bucket, "there", b"content")
    mount = new_host()
    mount.start()
    os.kill(mount.transfer_process(), signal.SIGKILL)
    assert (mount.path / "there").read_bytes() == b"content"
    write(mount.path)
    mount.stop()
    assert in_bucket(devbucket) == {**FILES, "there": b"content"}


# ---------------------------------------------------------------- B2 is away


@pytest.mark.slow
def test_first_names_come_before_ready(new_host: NewHost, devbucket: DevBucket) -> None:
    """A program that waited for the mount of an unknown bucket does not wait for the listing too; but ready does not wait
    for a listing that does not come.
    """
    devbucket.admin.put(devbucket.bucket, "d/file", b"content")
    mount = new_host()
    devbucket.admin.latency(0.3, "b2_list_file_names")
    mount.start()
    assert mount.status()["listing"]["objects"] == 1
    mount.kill()
    mount.forget_state()
    devbucket.admin.latency(10.0, "b2_list_file_names")
    mount.start()
    assert mount.status()["listing"]["objects"] == 0
    mount.kill()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "resets"])
def test_second_start_without_b2(new_host: NewHost, fresh_devbucket: DevBucket, how: str) -> None:
    """A later start needs no B2: it serves what is here, takes writes, and says EIO, never ENOENT, for the rest."""
    bucket = fresh_devbucket
    bucket.admin.put(bucket.bucket, "dir/cached", b"read before")
    bucket.admin.put(bucket.bucket, "dir/uncached", b"never read")
    mount = new_host(bucket)
    mount.start_listed()
    assert (mount.path / "dir/cached").read_bytes() == b"read before"
    mount.stop()

    mount.settings["read_deadline"] = "1s"
    bucket.admin.down() if how == "resets" else bucket.stop()
    began = time.monotonic()
    mount.start()
    assert time.monotonic() - began < 3, "a second start waits for B2"
    assert sorted(os.listdir(mount.path / "dir")) == ["cached", "uncached"]
    assert (mount.path / "dir/cached").read_bytes() == b"read before"
    began = time.monotonic()
    with failing(errno.EIO):
        (mount.path / "dir/uncached").read_bytes()
    assert 0.9 < time.monotonic() - began < 6
    assert (mount.path / "dir/uncached").stat().st_size == len(b"never read")
    assert mount.status()["online"] is False
    write(mount.path)
    assert (mount.path / "a.txt").read_bytes() == FILES["a.txt"]

    bucket.admin.up() if how == "resets" else bucket.restart()
    mount.flush()
    assert FILES.items() <= in_bucket(bucket).items()
    assert (mount.path / "dir/uncached").read_bytes() == b"never read"
    until(lambda: mount.status()["online"], 90)  # the pauses between attempts have grown
    mount.stop()


@pytest.mark.slow
def test_drain_asks_b2_at_once(new_host: NewHost, devbucket: DevBucket) -> None:
    """A start without B2 that waits long for its next attempt does not make a stop wait, once B2 is back."""
    mount = new_host()
    mount.start_listed()
    mount.stop()
    devbucket.admin.fault("status", "b2_authorize_account", count=None, status=503, retry_after_s=30)
    mount.start()
    write(mount.path)
    until(lambda: "next attempt in 30" in mount.log_text())
    devbucket.admin.clear_faults()
    began = time.monotonic()
    mount.stop()
    assert time.monotonic() - began < 15
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_unlisted_name_is_never_absent(new_host: NewHost, devbucket: DevBucket) -> None:
    """As long as B2 does not list a directory, every look at a name in it is EIO; nothing is created blindly."""
    devbucket.admin.put(devbucket.bucket, "there", b"content")
    devbucket.admin.fault("status", "b2_list_file_names", count=None)
    mount = new_host(read_deadline="2s")
    mount.start()

    def errno_of(look: Callable[[], object]) -> int | None:
        try:
            look()
        except OSError as error:
            return error.errno
        return None

    looks: list[Callable[[], object]] = [
        lambda: os.stat(mount.path / "there"),
        lambda: os.stat(mount.path / "absent"),
        lambda: os.stat(mount.path / "absent too"),
        lambda: os.listdir(mount.path),
    ]
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(errno_of, looks)) == [errno.EIO] * len(looks)
    assert errno_of(lambda: (mount.path / "new").write_bytes(b"")) == errno.EIO
    devbucket.admin.clear_faults()
    assert (mount.path / "there").read_bytes() == b"content"
    assert not (mount.path / "absent").exists()
    mount.stop()
    assert in_bucket(devbucket) == {"there": b"content"}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the start", "while it serves", "B2 stalls"])
def test_drain_timeout_leaves_a_manifest(new_host: NewHost, devbucket: DevBucket, when: str) -> None:
    """A drain that B2 does not let end exits with 8, says what is missing, keeps it, and the next run ends it."""
    mount = new_host(drain_timeout="1s")
    mount.start_listed()
    if when == "before the start":
        mount.stop()
        devbucket.admin.down()
        mount.start()
    elif when == "B2 stalls":
        devbucket.admin.fault("stall", "b2_upload_file", count=None)
    else:
        devbucket.admin.down()
    write(mount.path)
    began = time.monotonic()
    mount.stop(Exit.NOT_DRAINED)
    assert time.monotonic() - began < 4, "a host that gives a stop ten seconds kills what takes eleven"
    assert stat.S_IMODE((mount.state / MANIFEST).stat().st_mode) == 0o600
    found = manifest(mount)
    assert set(found) == set(FILES)
    assert {name: entry["size"] for name, entry in found.items()} == {name: len(data) for name, data in FILES.items()}
    assert all(entry["why"] for entry in found.values())
    assert {data for data in FILES.values() if data} <= set(kept(mount))
    assert {name: entry["sha1"] for name, entry in found.items()} == {n: sha1(data) for n, data in FILES.items()}

    devbucket.admin.reset()
    mount.settings["drain_timeout"] = "1m"
    mount.start()
    assert {name: (mount.path / name).read_bytes() for name in FILES} == FILES
    mount.stop(Exit.OK)
    assert in_bucket(devbucket) == FILES
    assert not (mount.state / MANIFEST).exists()


@pytest.mark.slow
def test_drain_does_not_wait_for_what_b2_refuses(new_host: NewHost, devbucket: DevBucket) -> None:
    """A reached storage cap ends the drain long before its deadline, with code 8 and the cap as the reason."""
    mount = new_host()
    mount.start_listed()
    devbucket.admin.caps("storage")
    write(mount.path)
    began = time.monotonic()
    mount.stop(Exit.NOT_DRAINED)
    assert time.monotonic() - began < 20
    found = manifest(mount)
    assert set(found) == set(FILES)
    assert all("cap" in entry["why"] for entry in found.values())
    devbucket.admin.caps()
    mount.start()
    mount.stop()
    assert in_bucket(devbucket) == FILES


@pytest.mark.slow
def test_umount_command_says_what_is_left(new_host: NewHost, devbucket: DevBucket) -> None:
    """`b2fs umount` exits with 8 and names the manifest when B2 did not take everything in time."""
    mount = new_host(drain_timeout="500ms")
    mount.start_listed()
    devbucket.admin.down()
    write(mount.path)
    line = mount.command("umount", str(mount.path), expect=Exit.NOT_DRAINED)
    assert str(mount.state / MANIFEST) in line and line.count("\n") == 1
    mount.wait(Exit.NOT_DRAINED)
    assert set(manifest(mount)) == set(FILES)


@pytest.mark.slow
def test_queue_outlives_a_bad_time(new_host: NewHost, devbucket: DevBucket) -> None:
    """Errors of every passing kind delay uploads and lose none."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("status", {"status": 503}), ("status", {"status": 429, "code": "too_many_requests", "retry_after_s": 0.1}),
        ("status", {"status": 408, "code": "request_timeout"}), ("expired", {}), ("reset", {}),
        ("reset_upload", {"after": 10}), ("reply_lost", {}), ("wrong_sha1", {}),
    ]  # fmt: skip
    mount = new_host(quiet_period="0")
    mount.start()
    for kind, arguments in kinds:
        devbucket.admin.fault(kind, "b2_upload_file", count=2, **arguments)
    files = {f"{number:02}.bin": bytes([number]) * 3000 for number in range(20)}
    write(mount.path, files)
    mount.stop()
    assert in_bucket(devbucket) == files
    assert sum(fault["fired"] for fault in devbucket.admin.faults()) == 2 * len(kinds)
    stored = sum(row["fileName"] in files for row in devbucket.admin.versions(devbucket.bucket))
    assert stored == len(files), "a version whose answer was lost, or wrong, is found again"


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2, 3])
def test_token_that_expires_again_is_no_refusal(new_host: NewHost, devbucket: DevBucket, times: int) -> None:
    """A token that B2 refuses right after it was given is a passing fault: a drain goes on trying."""
    mount = new_host(quiet_period=LONG)
    mount.start_listed()
    expired = devbucket.admin.fault("expired", "b2_upload_file", key="file", count=times)
    write(mount.path, {"file": b"content"})
    mount.stop(Exit.OK)
    assert devbucket.admin.fired(expired) == times
    assert in_bucket(devbucket) == {"file": b"content"}


# ---------------------------------------------------------------- somebody else writes


@pytest.mark.slow
def test_refresh_shows_what_others_do(new_host: NewHost, devbucket: DevBucket) -> None:
    """What others put, change and hide becomes visible, also where the kernel knew that there was nothing."""
    admin, bucket = devbucket.admin, devbucket.bucket
    admin.put(bucket, "changed", b"old", info={"src_last_modified_millis": "1000000000000"})
    admin.put(bucket, "hidden", b"going")
    admin.put(bucket, "dir/one", b"1")
    mount = new_host(refresh_interval="500ms")
    mount.start()
    assert (mount.path / "changed").read_bytes() == b"old"
    assert (mount.path / "hidden").read_bytes() == b"going"
    assert os.listdir(mount.path / "dir") == ["one"]
    for name in ("new", "dir/two", "fresh"):
        assert not (mount.path / name).exists()

    admin.put(bucket, "new", b"put by another")
    admin.put(bucket, "dir/two", b"2")
    admin.put(bucket, "fresh/er/file", b"3")
    admin.put(bucket, "changed", b"newer and longer", info={"src_last_modified_millis": "1100000000123"})
    admin.hide(bucket, "hidden")
    until(lambda: (mount.path / "new").exists())
    assert (mount.path / "new").read_bytes() == b"put by another"
    until(lambda: sorted(os.listdir(mount.path / "dir")) == ["one", "two"])
    assert (mount.path / "dir/two").read_bytes() == b"2"
    until(lambda: (mount.path / "fresh/er/file").exists())
    assert (mount.path / "fresh/er/file").read_bytes() == b"3"
    until(lambda: not (mount.path / "hidden").exists())
    until(lambda: (mount.path / "changed").stat().st_mtime_ns == 1100000000123000000)
    assert (mount.path / "changed").read_bytes() == b"newer and longer"
    assert sorted(os.listdir(mount.path)) == ["changed", "dir", "fresh", "new"]


@pytest.mark.slow
def test_open_handle_keeps_its_version(new_host: NewHost, devbucket: DevBucket) -> None:
    """Who opened a file before it was changed reads the old version to its end; who opens it now, the new one."""
    old, new = os.urandom(5 << 20), os.urandom(3 << 20)
    devbucket.admin.put(devbucket.bucket, "video", old)
    mount = new_host(refresh_interval="500ms")
    mount.start()
    with open(mount.path / "video", "rb", buffering=0) as before:
        assert before.read(10) == old[:10]
        devbucket.admin.put(devbucket.bucket, "video", new)
        until(lambda: (mount.path / "video").stat().st_size == len(new))
        assert (mount.path / "video").read_bytes() == new
        before.seek(0)
        assert before.read(6 << 20) == old
        assert os.fstat(before.fileno()).st_size == len(old)


@pytest.mark.slow
def test_refresh_leaves_our_changes_alone(new_host: NewHost, devbucket: DevBucket) -> None:
    """A file that was changed here and by somebody else keeps our content; theirs is the version below it."""
    admin, bucket = devbucket.admin, devbucket.bucket
    admin.put(bucket, "both", b"base")
    mount = new_host(refresh_interval="300ms", quiet_period=LONG)
    mount.start()
    (mount.path / "both").write_bytes(b"ours")
    admin.put(bucket, "both", b"theirs")
    until(lambda: "'both' was changed in the bucket and here" in mount.log_text())
    assert (mount.path / "both").read_bytes() == b"ours"
    mount.stop()
    versions = [admin.content_by_id(row["fileId"]) for row in admin.versions(bucket, "both")]
    assert versions == [b"ours", b"theirs", b"base"]
