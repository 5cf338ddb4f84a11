"""The server as a process: start and stop, restart and SIGKILL, one clear line for bad input, flat memory."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from b2fs.devbucket.server import Config, serve
from b2fs.errors import ConfigError, Exit
from tests.devbucket.raw import Answered, Raw, connect
from tests.devbucket_fixture import DevBucket


def client(server: DevBucket) -> Raw:
    return Raw(server.url, server.key_id, server.key)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`b2fs devbucket` until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "b2fs", "devbucket", *arguments],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.slow
def test_stop_and_restart(fresh_devbucket: DevBucket) -> None:
    """SIGTERM ends it with exit code 0; started again it has everything, and old tokens are told to authorise anew."""
    server = fresh_devbucket
    with client(server) as raw:
        bucket_id = raw.bucket_id(server.bucket)
        version = raw.upload(bucket_id, "a", b"kept", info={"k": "v"})
        assert server.stop() == 0
        assert list((server.root / "incoming").iterdir()) == []
        server.restart()
        raw.connection.close()
        with pytest.raises(Answered) as answered:
            raw.call("b2_list_buckets")
        assert answered.value.words == (401, "bad_auth_token")
    with client(server) as raw:
        assert raw.bucket_id(server.bucket) == bucket_id
        assert raw.call("b2_get_file_info", fileId=version["fileId"]) == version
        assert raw.download(server.bucket, "a").data == b"kept"


@pytest.mark.slow
def test_sigkill_loses_nothing_acknowledged(fresh_devbucket: DevBucket, eventually: Callable[..., None]) -> None:
    """After SIGKILL in the middle of uploads every acknowledged version is whole, and of the others nothing is left."""
    server = fresh_devbucket
    acknowledged: dict[str, bytes] = {}
    with client(server) as raw:
        bucket_id = raw.bucket_id(server.bucket)
        url = raw.upload_url(bucket_id)
        for number in range(50):
            data = os.urandom(number * 100)
            raw.upload(bucket_id, f"{number}", data, url=url)
            acknowledged[f"{number}"] = data
        raw.call("b2_hide_file", bucketId=bucket_id, fileName="49")
        half = raw.upload_url(bucket_id)
        head = (
            f"POST {urlsplit(half['uploadUrl']).path} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: {half['authorizationToken']}\r\nX-Bz-File-Name: half\r\nContent-Type: a/b\r\n"
            "X-Bz-Content-Sha1: do_not_verify\r\nContent-Length: 9999999\r\n\r\n"
        )
        with connect(server.url) as sock:
            sock.sendall(head.encode() + bytes(3_000_000))
            eventually(lambda: list((server.root / "incoming").iterdir()))
            server.kill()
    assert len(list((server.root / "incoming").iterdir())) == 1
    server.restart()
    assert list((server.root / "incoming").iterdir()) == []
    visible = server.admin.objects(server.bucket)
    assert set(visible) == set(acknowledged) - {"49"}
    for name in visible:
        assert server.admin.content(server.bucket, name) == acknowledged[name]


@pytest.mark.slow
def test_a_large_file_goes_on_after_a_crash(fresh_devbucket: DevBucket) -> None:
    """Parts that were acknowledged before a SIGKILL are still there, and the file can be finished."""
    server = fresh_devbucket
    part = bytes(5_000_000)
    with client(server) as raw:
        bucket_id = raw.bucket_id(server.bucket)
        file_id = raw.call("b2_start_large_file", bucketId=bucket_id, fileName="big", contentType="a/b")["fileId"]
        raw.upload_part(file_id, 1, part)
        server.kill()
    server.restart()
    with client(server) as raw:
        assert [p["partNumber"] for p in raw.call("b2_list_parts", fileId=file_id)["parts"]] == [1]
        raw.upload_part(file_id, 2, b"end")
        sha1s = [hashlib.sha1(data).hexdigest() for data in (part, b"end")]
        raw.call("b2_finish_large_file", fileId=file_id, partSha1Array=sha1s)
        assert raw.download(server.bucket, "big").data == part + b"end"


@pytest.mark.slow
def test_sigint_ends_it_too(fresh_devbucket: DevBucket) -> None:
    """Ctrl-C is an orderly end, also while a client is connected."""
    with client(fresh_devbucket):
        assert fresh_devbucket._end(signal.SIGINT) == 0


def test_start_is_quick(devbucket: DevBucket) -> None:
    """It listens within half a second of CPU time, so tests can start one each."""
    ticks = Path(f"/proc/{devbucket.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    began = time.monotonic()
    server = DevBucket()
    try:
        server.start()
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        assert sum(map(int, fields)) / os.sysconf("SC_CLK_TCK") < 0.5
    finally:
        server.remove()
    assert ticks and time.monotonic() - began < 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--root", "{tmp}/r", "--port", "{port}"], Exit.CONFIG, "the port is in use"),
        (["--root", "{tmp}/r", "--bucket", "x"], Exit.CONFIG, "Invalid bucket name 'x'"),
        (["--root", "{tmp}/r", "--host", "no.such.host.invalid"], Exit.CONFIG, "set B2_APPLICATION_KEY"),
        (["--root", "{tmp}/r", "--host", "0.0.0.0"], Exit.CONFIG, "set B2_APPLICATION_KEY"),
        (["--root", "/proc/nothing"], Exit.CONFIG, "cannot use /proc/nothing"),
        (["--root", "{root}"], Exit.STATE, "another devbucket is using"),
        ([], Exit.USAGE, "Missing option '--root'"),
    ],
    ids=["port", "bucket", "host", "key", "root", "lock", "usage"],
)
def test_bad_input(devbucket: DevBucket, tmp_path: Path, arguments: list[str], code: Exit, text: str) -> None:
    """What cannot work ends at once with one clear line and its exit code."""
    words = {"tmp": str(tmp_path), "port": devbucket.url.rpartition(":")[2], "root": str(devbucket.root)}
    ended = run(*(argument.format(**words) for argument in arguments))
    assert ended.returncode == code
    assert text in ended.stderr
    assert ended.stdout == ""
    assert code is Exit.USAGE or len(ended.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_options(tmp_path: Path) -> None:
    """The options reach the server: part sizes, latency, buckets, and keys from the environment."""
    server = DevBucket(
        "--min-part-size", "7", "--recommended-part-size", "9", "--latency", "0.01", "--bucket", "second-one"
    )
    try:
        server.start()
        with client(server) as raw:
            storage = raw.account["apiInfo"]["storageApi"]
            assert (storage["absoluteMinimumPartSize"], storage["recommendedPartSize"]) == (7, 9)
            assert [b["bucketName"] for b in raw.call("b2_list_buckets")["buckets"]] == ["devbucket", "second-one"]
        assert server.admin.state()["latency_s"] == {"*": 0.01}
    finally:
        server.remove()


def test_root_and_files_are_private(devbucket: DevBucket) -> None:
    """Nobody else on the machine can read what is stored."""
    assert stat.S_IMODE(devbucket.root.stat().st_mode) == 0o700


def test_in_process_under_trio(tmp_path: Path) -> None:
    """`serve` runs in a nursery on a free port, gives its address and its insides, and frees all when cancelled."""

    async def main() -> None:
        for _ in range(2):  # the second time proves that root and port are free again
            async with trio.open_nursery() as nursery:
                url, server = await nursery.start(serve, Config(tmp_path / "root", buckets=("in-process",)))
                assert server.store.bucket_by_name("in-process")
                key_id, key = "dev", "dev"
                with await trio.to_thread.run_sync(Raw, url, key_id, key) as raw:
                    assert await trio.to_thread.run_sync(raw.bucket_id, "in-process")
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_in_process_errors(tmp_path: Path) -> None:
    """What cannot start raises `ConfigError` and leaves nothing open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match="port is in use"):
            trio.run(serve, Config(tmp_path / "root", port=port))


@pytest.mark.slow
def test_two_gigabytes_in_flat_memory(devbucket: DevBucket) -> None:
    """A body of 2 GB goes in, through a server-side copy, and out again, while the server's memory stays flat."""

    def peak() -> int:
        status = Path(f"/proc/{devbucket.pid}/status").read_text()
        return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024

    size = 2_000_000_000
    block = bytes(1 << 20)
    before = peak()
    with client(devbucket) as raw:
        bucket_id = raw.bucket_id(devbucket.bucket)
        url = raw.upload_url(bucket_id)
        head = (
            f"POST {urlsplit(url['uploadUrl']).path} HTTP/1.1\r\nHost: x\r\nAuthorization: {url['authorizationToken']}"
            f"\r\nX-Bz-File-Name: big\r\nContent-Type: a/b\r\nX-Bz-Content-Sha1: do_not_verify\r\n"
            f"Content-Length: {size}\r\n\r\n"
        )
        with connect(devbucket.url, timeout=60) as sock:
            sock.sendall(head.encode())
            for start in range(0, size, len(block)):
                sock.sendall(block[: size - start])
            assert sock.recv(65536).startswith(b"HTTP/1.1 200")
        source = devbucket.admin.objects(devbucket.bucket)["big"]
        raw.call("b2_copy_file", sourceFileId=source["fileId"], fileName="copy")
        with connect(devbucket.url, timeout=60) as sock:
            sock.sendall(
                f"GET /file/{devbucket.bucket}/copy HTTP/1.1\r\nHost: x\r\nAuthorization: {raw.token}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            received = 0
            while piece := sock.recv(1 << 20):
                received += len(piece)
    assert received > size
    assert peak() - before < 48 << 20
