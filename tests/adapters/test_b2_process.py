"""The transfer process: how it lives, dies, hangs, is cancelled, and what it does not give away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
import trio.testing

from b2fs.adapters.b2 import wire
from b2fs.adapters.b2.client import B2Client
from b2fs.adapters.b2.process import TransferProcess, _Outbox, next_pause
from b2fs.adapters.b2.settings import Settings
from b2fs.core.bucket import Requests, Version
from b2fs.errors import B2fsError, BucketError, Damaged, Fault, NoSpace
from tests.adapters.b2_support import pattern, sealed, settings_for, sha1_of, store

if TYPE_CHECKING:  # at run time pytest imports it, as a plugin
    from tests.devbucket_fixture import DevBucket


DATA = pattern(10_000)


async def until(condition: Callable[[], object], within_s: float = 10.0) -> None:
    """Wait for a condition of the world outside, which cannot notify us."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.01)


async def running(transfer: TransferProcess) -> int:
    """The pid of a child that has answered, and so is past its start."""
    assert await transfer.head("never") is None
    assert transfer.pid is not None
    return transfer.pid


async def outcome(call: Callable[[], Awaitable[object]], into: list[object]) -> None:
    """Make a call and keep its result or error."""
    try:
        into.append(await call())
    except B2fsError as error:
        into.append(error)


@pytest.fixture
def there(devbucket: DevBucket, tmp_path: Path) -> Version:
    """An object in the bucket."""
    return store(B2Client(settings_for(devbucket)), tmp_path, "there", DATA)


# -------------------------------------------------------------------------------------- life and death


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_dead_or_hung_child_is_replaced(
    devbucket: DevBucket, there: Version, tmp_path: Path, number: signal.Signals
) -> None:
    """Calls in flight fail with TRANSIENT, the child is replaced, later calls work, counts only grow."""
    settings = settings_for(devbucket, heartbeat_s=0.1, silence_timeout_s=0.5)
    async with TransferProcess.open(settings) as transfer:
        pid = await running(transfer)
        before = transfer.requests()
        devbucket.admin.fault("latency", "b2_download_file_by_id", seconds=60)
        results: list[object] = []
        async with trio.open_nursery() as nursery:
            target = str(tmp_path / "f")

            async def fetch() -> None:
                await transfer.fetch(there.file_id, target, 0, there.size, there.sha1)

            nursery.start_soon(outcome, fetch, results)
            await until(lambda: devbucket.admin.calls().get("b2_download_file_by_id"))
            os.kill(pid, number)
        assert isinstance(results[0], BucketError) and results[0].fault is Fault.TRANSIENT
        await transfer.fetch(there.file_id, target, 0, there.size, there.sha1)
        assert Path(target).read_bytes() == DATA
        assert transfer.restarts == 1 and transfer.pid != pid
        assert not Path(f"/proc/{pid}").exists()
        after = transfer.requests()
        assert all(after.calls[call] >= count for call, count in before.calls.items())
        assert after.calls["b2_authorize_account"] == 2
        assert after.calls["b2_download_file_by_name"] == 1


async def test_child_dies_with_the_scope(devbucket: DevBucket) -> None:
    """When `open` is left, the child is dead and reaped, and calls in flight are cancelled."""
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        pid = await running(transfer)
    assert not Path(f"/proc/{pid}").exists()


async def test_child_dies_with_its_parent(devbucket: DevBucket) -> None:
    """A daemon that is killed outright leaves no transfer process behind."""
    settings = settings_for(devbucket)
    program = """
import sys, msgspec, trio
from b2fs.adapters.b2.process import TransferProcess
from b2fs.adapters.b2.settings import Settings
async def main():
    settings = msgspec.json.decode(sys.stdin.read(), type=Settings)
    async with TransferProcess.open(settings) as transfer:
        await transfer.connect()
        print(transfer.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write(msgspec.json.encode(settings))
        parent.stdin.close()
        pid = int(await trio.to_thread.run_sync(parent.stdout.readline))
        assert Path(f"/proc/{pid}").exists()
        parent.kill()

    def gone() -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return True

    await until(gone)


async def test_signals_of_the_terminal_are_ignored(devbucket: DevBucket) -> None:
    """Ctrl-C, and the SIGTERM that an init system sends to the whole group, do not end the child."""
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        pid = await running(transfer)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        assert await running(transfer) == pid
        assert transfer.restarts == 0


async def test_child_that_never_starts(devbucket: DevBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a child that ends at once, every call is TRANSIENT within its deadline, and starts go on, with pauses."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    async with TransferProcess.open(settings_for(devbucket, call_timeout_s=0.5)) as transfer:
        started = trio.current_time()
        for _ in range(3):
            with pytest.raises(BucketError) as caught:
                await transfer.head("k")
            assert caught.value.fault is Fault.TRANSIENT
        await until(lambda: transfer.restarts == 3)
        assert trio.current_time() - started >= 0.1 + 0.2, "paused before the second and third start"


async def test_program_that_is_missing(devbucket: DevBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the child cannot even be started, that is no reason for the daemon to end."""
    real = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        await until(lambda: transfer.restarts)
        monkeypatch.setattr(sys, "executable", real)
        assert await running(transfer)


def test_pauses_between_restarts() -> None:
    """They double, are bounded, and end after a long life."""
    pauses = [0.0]
    for _ in range(12):
        pauses.append(next_pause(pauses[-1], lived_s=0.5, max_s=30.0))
    assert pauses[1:4] == [0.1, 0.2, 0.4]
    assert pauses[-1] == 30.0
    assert next_pause(30.0, lived_s=120.0, max_s=30.0) == 0.0


async def test_restarted_child_keeps_to_the_bucket(devbucket: DevBucket) -> None:
    """After a connect, a new child refuses a bucket of the same name that was made anew."""
    settings = settings_for(devbucket)
    async with TransferProcess.open(settings) as transfer:
        identity = await transfer.connect()
        client = B2Client(settings)
        client._authority.call(
            lambda account: client._api.delete_bucket(
                account.api_url,
                account.token,
                devbucket.admin.state()["account_id"],
                identity.bucket_id,
            )
        )
        devbucket.admin.create_bucket(devbucket.bucket)
        assert transfer.pid is not None
        os.kill(transfer.pid, signal.SIGKILL)
        with pytest.raises(BucketError) as caught:
            while True:
                try:
                    await transfer.list_page("", "", "", 1)
                except BucketError as error:  # the call may have met the dying child
                    if error.fault is not Fault.TRANSIENT:
                        raise
        assert caught.value.fault is Fault.MISSING
        assert "is not the one it was" in str(caught.value)


# ---------------------------------------------------------------------------------------------- calls


async def test_cancelled_call_is_forgotten(devbucket: DevBucket, there: Version, tmp_path: Path) -> None:
    """A cancelled call returns at once, its late answer is dropped, and the child goes on as it was."""
    target = tmp_path / "f"
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        pid = await running(transfer)
        devbucket.admin.fault("latency", "b2_download_file_by_id", seconds=0.3)
        with trio.move_on_after(0.1) as scope:
            await transfer.fetch(there.file_id, str(target), 0, there.size, there.sha1)
        assert scope.cancelled_caught
        assert transfer._calls == {}
        await until(lambda: target.exists() and target.read_bytes() == DATA)  # it still arrives
        assert await running(transfer) == pid
        assert transfer._calls == {}


async def test_deadline(devbucket: DevBucket, there: Version) -> None:
    """A call that B2 does not answer ends with TRANSIENT when its allowance is over."""
    async with TransferProcess.open(settings_for(devbucket, call_timeout_s=2.0)) as transfer:
        await until(lambda: transfer.requests().calls or transfer.pid)
        await transfer.connect()
        devbucket.admin.fault("stall", "head_file_by_name")
        with pytest.raises(BucketError, match="did not answer within") as caught:
            await transfer.head("there")
        assert caught.value.fault is Fault.TRANSIENT
        assert await transfer.head("there") == there


async def test_progress_extends_the_deadline(devbucket: DevBucket, tmp_path: Path) -> None:
    """A large upload may take longer than its allowance as long as its parts keep moving."""
    devbucket.admin.settings(min_part_size=10_000)
    settings = settings_for(
        devbucket,
        call_timeout_s=2.0,
        slowest=10**9,
        part_size=10_000,
        large_size=20_000,
        part_lanes=1,
    )
    data = pattern(100_000)
    async with TransferProcess.open(settings) as transfer:
        await transfer.connect()
        devbucket.admin.latency(0.3, "b2_upload_part")
        started = trio.current_time()
        version = await transfer.upload("large", *sealed(tmp_path, data), {}, "")
        assert trio.current_time() - started > 2.0
    assert version.sha1 == sha1_of(data)
    assert devbucket.admin.content(devbucket.bucket, "large") == data


async def test_lanes_do_not_starve_each_other(devbucket: DevBucket, there: Version, tmp_path: Path) -> None:
    """While every upload lane waits, and more uploads queue, fetches, listings and copies go through."""
    settings = settings_for(devbucket, upload_lanes=4)
    async with TransferProcess.open(settings) as transfer:
        await transfer.connect()
        devbucket.admin.reset_counters()
        devbucket.admin.latency(60, "b2_upload_file")
        async with trio.open_nursery() as nursery:
            for number in range(8):
                path = sealed(tmp_path, DATA, f"source{number}")
                nursery.start_soon(transfer.upload, f"k{number}", *path, {}, "")
            await until(lambda: devbucket.admin.calls().get("b2_upload_file") == 4)
            with trio.fail_after(5):
                await transfer.fetch(there.file_id, str(tmp_path / "f"), 0, there.size, there.sha1)
                await transfer.list_page("", "", "", 10)
                await transfer.copy(there.file_id, "copy", there.size, {}, "")
                await transfer.hide("copy")
            assert devbucket.admin.calls()["b2_upload_file"] == 4
            nursery.cancel_scope.cancel()


async def test_uploads_stand_behind_all_else(devbucket: DevBucket, there: Version, tmp_path: Path) -> None:
    """Their threads have a lower priority, and only theirs: for a fetch somebody waits."""

    def priorities(pid: int) -> list[int]:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        return [int(stat.rpartition(")")[2].split()[16]) for stat in stats]  # proc(5): nice

    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        pid = await running(transfer)
        await transfer.fetch(there.file_id, str(tmp_path / "part"), 0, there.size, there.sha1)
        assert set(priorities(pid)) == {0}
        await transfer.upload("new", *sealed(tmp_path, DATA), {}, "")
        assert sorted(set(priorities(pid))) == [0, 10]
        assert os.getpriority(os.PRIO_PROCESS, pid) == 0


async def test_answers_come_as_they_are_ready(devbucket: DevBucket, there: Version, tmp_path: Path) -> None:
    """A slow fetch does not hold back the answer to a later quick one."""
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        await transfer.connect()
        devbucket.admin.fault("latency", "b2_download_file_by_id", seconds=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer.fetch, there.file_id, str(tmp_path / "slow"), 0, there.size, "")
            await until(lambda: devbucket.admin.calls().get("b2_download_file_by_id"))
            with trio.fail_after(5):
                await transfer.fetch(there.file_id, str(tmp_path / "quick"), 0, there.size, there.sha1)
            nursery.cancel_scope.cancel()


async def test_local_failures_arrive_as_such(devbucket: DevBucket, there: Version, tmp_path: Path) -> None:
    """A full disk in the child is `NoSpace` here, a missing source `Damaged`."""
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        with pytest.raises(NoSpace):
            await transfer.fetch(there.file_id, "/dev/full", 0, there.size, there.sha1)
        with pytest.raises(Damaged):
            await transfer.upload("k", str(tmp_path / "missing"), 1, sha1_of(b"x"), {}, "")


async def test_one_authorisation_for_many_calls(devbucket: DevBucket, there: Version, tmp_path: Path) -> None:
    """32 fetches at once on a fresh child, and 32 more after the token expired, cost one authorisation each."""
    async with TransferProcess.open(settings_for(devbucket)) as transfer:
        for round in range(2):
            devbucket.admin.reset_counters()
            async with trio.open_nursery() as nursery:
                for number in range(32):
                    path = str(tmp_path / f"{round}-{number}")
                    nursery.start_soon(transfer.fetch, there.file_id, path, 0, there.size, there.sha1)
            assert devbucket.admin.calls()["b2_authorize_account"] == 1
            devbucket.admin.expire_tokens()


async def test_counters_reach_the_parent(devbucket: DevBucket) -> None:
    """A request is in `requests()` when its call returns, and the heartbeat reports what is still running."""
    async with TransferProcess.open(settings_for(devbucket, heartbeat_s=0.05)) as transfer:
        await transfer.connect()
        assert transfer.requests().calls == {"b2_authorize_account": 1, "b2_list_buckets": 1}
        devbucket.admin.fault("latency", "b2_list_file_names", seconds=60)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transfer.list_page, "", "", "", 10)
            await until(lambda: transfer.requests().calls.get("b2_list_file_names"))
            nursery.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------- secrets


async def test_child_gives_nothing_away(devbucket: DevBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is in no argument and in no variable of the child, which gets no descriptor but its own."""
    monkeypatch.setenv("B2_APPLICATION_KEY", devbucket.key)
    monkeypatch.setenv("B2FS_SOMETHING", "private")
    read, write = os.pipe()
    os.set_inheritable(read, True)
    try:
        async with TransferProcess.open(settings_for(devbucket)) as transfer:
            pid = await running(transfer)
            assert devbucket.key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            environ = Path(f"/proc/{pid}/environ").read_bytes()
            assert devbucket.key.encode() not in environ and b"private" not in environ
            kinds = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert os.readlink(f"/proc/self/fd/{read}") not in kinds
            assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()
    finally:
        os.close(read)
        os.close(write)


# ------------------------------------------------------------------------------------------------- wire


def test_frames_survive_any_cut() -> None:
    """Messages come out whole and in order, however the stream is cut."""
    asks = [wire.Ask(number, wire.Head("k" * number * 50)) for number in range(1, 20)]
    stream = b"".join(wire.frame(ask) for ask in asks)
    decoder = msgspec.msgpack.Decoder(wire.Ask)
    for step in (1, 2, 3, 7, 100, len(stream)):
        deframer = wire.Deframer()
        bodies = [body for start in range(0, len(stream), step) for body in deframer.feed(stream[start : start + step])]
        assert [decoder.decode(body) for body in bodies] == asks


def test_endless_frame_is_refused() -> None:
    """A length that no message has is an error at once, not a wait for gigabytes."""
    with pytest.raises(ValueError, match="a frame of"):
        wire.Deframer().feed(b"\xff\xff\xff\xff")


@pytest.mark.parametrize(
    "error",
    [
        *[BucketError(fault, "text ü", 2.5) for fault in Fault],
        NoSpace("full"),
        Damaged("gone"),
    ],
    ids=str,
)
def test_errors_survive_the_wire(error: B2fsError) -> None:
    """Type, fault, message and Retry-After are the same at both ends."""
    tell = wire.Tell(1, wire.Failed.of(error), Requests({"c": 1}, {"A": 1}, 1, 2))
    back = msgspec.msgpack.decode(wire.frame(tell)[4:], type=wire.Tell)
    assert back == tell and isinstance(back.answer, wire.Failed)
    copy = back.answer.error()
    assert (type(copy), str(copy)) == (type(error), str(error))
    assert vars(copy) == vars(error)


async def test_child_that_dies_as_soon_as_it_is_up() -> None:
    """A call that was just let through to a child that is gone again waits for the next one; it is no bug."""
    transfer = TransferProcess(Settings("id", "key", "bucket"))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = _Outbox(ours)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transfer.head, "key")
        await trio.testing.wait_all_tasks_blocked()
        transfer._outbox = outbox
        transfer._up.set()
        transfer._lost()  # before the call could go on
        await trio.testing.wait_all_tasks_blocked()
        assert transfer._calls == {}
        transfer._outbox = outbox
        transfer._up.set()
        with trio.fail_after(10):
            await trio.lowlevel.wait_readable(theirs)
        nursery.cancel_scope.cancel()
    ours.close()
    theirs.close()


async def test_child_that_does_not_keep_up() -> None:
    """What the socket does not take at once is sent later, whole and in order, and what comes meanwhile after it."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = _Outbox(ours)
    frames = [wire.frame(wire.Ask(number, wire.Head(f"{number:01000}"))) for number in range(1, 1001)]
    deframer, received = wire.Deframer(), list[bytes]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        for number, data in enumerate(frames):
            outbox.put(data)
            if number > 800:
                await trio.lowlevel.checkpoint()
                received += deframer.feed(theirs.recv(1000))
        with trio.fail_after(10):
            while len(received) < len(frames):
                await trio.lowlevel.wait_readable(theirs)
                received += deframer.feed(theirs.recv(65536))
        nursery.cancel_scope.cancel()
    assert [wire.frame(msgspec.msgpack.decode(body, type=wire.Ask)) for body in received] == frames
    ours.close()
    theirs.close()


async def test_cancelled_caller_asks_for_nothing() -> None:
    """A call in a scope that is cancelled already never reaches the child: it might write."""
    transfer = TransferProcess(Settings("id", "key", "bucket"))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    transfer._outbox = _Outbox(ours)
    with trio.CancelScope() as scope:
        scope.cancel()
        await transfer.hide("key")
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    ours.close()
    theirs.close()
