"""The control socket: what daemon and commands say to each other, and what each survives."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from b2fs.errors import Exit, MountError, NotDrained, NotRunning, StateError
from b2fs.ops import address, client, control, mounts
from b2fs.secret import Secret

MOUNT = mounts.Mount("/srv/data", mounts.FSTYPE, os.geteuid())

Progress = Callable[[dict[str, Any]], Awaitable[None]]


class Daemon:
    """A handler that does what the command says."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.cancelled = trio.Event()
        self.started = trio.Event()

    async def handle(self, command: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        self.asked.append((command, args))
        self.started.set()
        match command:
            case "echo":
                return args
            case "count":
                for number in range(args["to"]):
                    await progress({"files": number})
                    await trio.testing.wait_all_tasks_blocked()
                return {"counted": args["to"]}
            case "refuse":
                raise NotDrained("3 files are not in B2: /x/manifest (key topsecretkey)")
            case "break":
                raise KeyError("oops")
            case "strange":
                return {"value": object()}
            case _:
                try:
                    await trio.sleep_forever()
                finally:
                    self.cancelled.set()
        raise AssertionError("unreachable")


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The only place where sockets are looked for; short, since a socket's address is."""
    with tempfile.TemporaryDirectory() as path:
        monkeypatch.setattr(address, "candidates", lambda uid: [path])
        yield path


@pytest.fixture
def path(directory: str) -> str:
    return os.path.join(directory, address.socket_name(MOUNT.mountpoint))


@contextlib.asynccontextmanager
async def serving(path: str) -> AsyncIterator[Daemon]:
    daemon = Daemon()
    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, path, daemon.handle)
        yield daemon
        nursery.cancel_scope.cancel()


async def ask(command: str, args: dict[str, Any] | None = None, report: client.Progress | None = None) -> Any:
    return await trio.to_thread.run_sync(client.call, MOUNT, command, args or {}, report)


async def raw(path: str, sent: bytes) -> dict[str, Any]:
    """The answer to `sent` as it is."""
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(sent)
        received = b""
        while chunk := await stream.receive_some():
            received += chunk
    answer = json.loads(received)
    assert isinstance(answer, dict)
    return answer


# ---------------------------------------------------------------- question and answer


async def test_a_question_is_answered(path: str) -> None:
    """The command reaches the handler with its arguments, and its result comes back."""
    async with serving(path) as daemon:
        assert await ask("echo", {"path": "а/🎧"}) == {"path": "а/🎧"}
        assert daemon.asked == [("echo", {"path": "а/🎧"})]


async def test_progress_arrives_in_order(path: str) -> None:
    """A client that reads sees the progress before the result, the last report included."""
    seen: list[dict[str, Any]] = []
    async with serving(path):
        assert await ask("count", {"to": 5}, seen.append) == {"counted": 5}
    assert seen == sorted(seen, key=lambda report: int(report["files"])) and {"files": 4} in seen


async def test_several_clients_at_once(path: str) -> None:
    """A long command does not keep others waiting."""
    async with serving(path) as daemon, await trio.open_unix_socket(path) as waiting:
        await waiting.send_all(b'{"command": "wait"}\n')
        await daemon.started.wait()
        assert await ask("echo", {"a": 1}) == {"a": 1}


async def test_the_daemons_refusal_keeps_its_exit_code(path: str) -> None:
    """An error of the daemon ends the command with the daemon's message and code; secrets are masked."""
    Secret("topsecretkey")
    async with serving(path):
        with pytest.raises(client.DaemonError, match=r"/x/manifest \(key \*\*\*\)") as caught:
            await ask("refuse")
    assert caught.value.exit_code is Exit.NOT_DRAINED


@pytest.mark.parametrize("command", ["break", "strange"])
async def test_a_bug_in_a_handler_is_logged_and_answered(
    path: str, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception, or an answer that is no JSON, costs that question alone."""
    async with serving(path):
        with pytest.raises(client.DaemonError, match="its log says why") as caught:
            await ask(command)
        assert caught.value.exit_code is Exit.BUG
        assert await ask("echo") == {}
    assert [record.levelno for record in caplog.records] == [logging.ERROR] and caplog.records[0].exc_info


@pytest.mark.parametrize("sent", [b"nonsense\n", b"[]\n", b'{"path": 1}\n', b"\xff\n", b"[" * 60_000 + b"\n"])
async def test_a_broken_question_is_refused(path: str, sent: bytes) -> None:
    """What is no question, or is nested too deep, is answered as such and reaches no handler."""
    async with serving(path) as daemon:
        answer = await raw(path, sent)
        assert answer["exit"] == Exit.USAGE and "bad request" in answer["error"]
        assert not daemon.asked and await ask("echo") == {}


async def test_a_question_without_an_end_is_cut_off(path: str) -> None:
    """The daemon keeps no more of a line than a question can need."""
    async with serving(path) as daemon:
        async with await trio.open_unix_socket(path) as stream:
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
                while True:
                    await stream.send_all(b"x" * 4096)
        assert not daemon.asked and await ask("echo") == {}


# ---------------------------------------------------------------- clients that go, and clients that stop


async def test_a_client_that_vanishes_cancels_its_handler(path: str) -> None:
    """Hanging up ends what the daemon does for that client."""
    async with serving(path) as daemon:
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b'{"command": "wait"}\n')
        await daemon.started.wait()
        await stream.aclose()
        with trio.fail_after(5):
            await daemon.cancelled.wait()
        assert await ask("echo") == {}


async def test_a_client_that_does_not_read_stops_nobody(path: str) -> None:
    """A handler with much progress ends although its client has been stopped."""
    done = trio.Event()

    async def chatty(command: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
        for number in range(1000):
            await progress({"text": f"{number}" + "x" * 4096})
            await trio.sleep(0)
        done.set()
        return {}

    async with trio.open_nursery() as nursery:
        await nursery.start(control.serve, path, chatty)
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"command": "drain"}\n')
            with trio.fail_after(5):
                await done.wait()
        nursery.cancel_scope.cancel()


async def test_a_silent_client_is_dismissed(path: str, autojump_clock: MockClock) -> None:
    """Who connects and asks nothing is told so after a while."""
    async with serving(path):
        answer = await raw(path, b'{"comm')
    assert "too slow" in answer["error"]
    assert control.PATIENCE_S <= autojump_clock.current_time() < control.PATIENCE_S + 1


async def test_a_busy_daemon_gives_signs_of_life(path: str, autojump_clock: MockClock) -> None:
    """While a handler works silently, empty progress tells the client that the daemon lives."""
    async with serving(path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(b'{"command": "wait"}\n')
        received = await stream.receive_some()
        assert json.loads(received.splitlines()[0]) == {"progress": {}}
        assert autojump_clock.current_time() < control.KEEPALIVE_S + 1
    assert control.KEEPALIVE_S < client.SILENCE_S / 3


async def test_the_answer_to_drain_arrives_although_the_daemon_stops(path: str) -> None:
    """A handler whose result ends the daemon is answered before the socket closes."""
    async with trio.open_nursery() as nursery:

        async def drain(command: str, args: dict[str, Any], progress: Progress) -> dict[str, Any]:
            nursery.cancel_scope.cancel()
            return {"pid": 1}

        await nursery.start(control.serve, path, drain)
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b'{"command": "drain"}\n')
        with trio.CancelScope(shield=True):
            received = await stream.receive_some()
            await stream.aclose()
    assert json.loads(received) == {"result": {"pid": 1}}


# ---------------------------------------------------------------- the socket file


async def test_only_the_owner_may_command(path: str) -> None:
    """The socket is 0600 from its first moment, and gone when the daemon ends."""
    async with serving(path):
        info = os.stat(path)
        assert stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == []


async def test_a_socket_of_a_dead_daemon_is_replaced(path: str) -> None:
    """A file that nobody listens on does not keep the next daemon away."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    async with serving(path):
        assert await ask("echo") == {}


async def test_a_second_daemon_on_one_mountpoint_is_refused(path: str) -> None:
    """Where a living daemon listens, a second one ends with a clear error and leaves the first alone."""
    async with serving(path) as first:
        with pytest.raises(StateError, match="already serves"):
            await control.serve(path, first.handle)
        assert await ask("echo") == {}


async def test_a_daemon_does_not_remove_its_successors_socket(path: str) -> None:
    """The socket that a daemon removes at its end is its own."""
    async with serving(path):
        os.unlink(path)
        Path(path).write_text("the successor's")
    assert os.path.exists(path)


# ---------------------------------------------------------------- the client


def listening(path: str, answer: bytes) -> socket.socket:
    """A peer that has already said `answer` to the first client that will come."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        with contextlib.suppress(OSError), server.accept()[0] as stream:
            stream.recv(1000)
            stream.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [(b"", "ended without"), (b"{", "lost the daemon"), (b'{"progress": {}}\n', "ended without")],
)
def test_a_daemon_that_dies_is_reported(path: str, answer: bytes, complaint: str) -> None:
    """No answer, half an answer, or progress without an end: the command says that the daemon is lost."""
    with listening(path, answer), pytest.raises(NotRunning, match=complaint):
        client.call(MOUNT, "status")


def test_a_daemon_that_hangs_is_reported(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that accepts and says nothing is given up on."""
    monkeypatch.setattr(client, "SILENCE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        with pytest.raises(NotRunning, match=r"hangs: no answer"):
            client.call(MOUNT, "status")


def test_no_daemon_is_reported_with_what_to_do(directory: str) -> None:
    """A mount without a daemon names the command that cleans up."""
    with pytest.raises(NotRunning, match="b2fs umount /srv/data"):
        client.call(MOUNT, "status")


def test_the_daemons_pid_comes_from_the_kernel(path: str) -> None:
    """The pid that a command waits for is not what the peer claims."""
    with listening(path, b'{"result": {"pid": 1}}\n'), client.Connection(MOUNT) as connection:
        assert connection.pid == os.getpid()


def test_a_strangers_socket_is_not_believed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket in /tmp that neither the mount's user nor root listens on is no daemon."""
    monkeypatch.setattr(client, "_peer", lambda stream: (1, 4242))
    with listening(path, b'{"result": {}}\n'), pytest.raises(NotRunning, match="no daemon answers"):
        client.call(MOUNT, "status")


# ---------------------------------------------------------------- which mount


def machine(monkeypatch: pytest.MonkeyPatch, *mountpoints: str) -> None:
    found = [mounts.Mount(each, mounts.FSTYPE, 0) for each in mountpoints]
    monkeypatch.setattr(mounts, "b2fs_mounts", lambda: found)


def test_any_path_in_a_mount_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The mount is found from the mountpoint, from below it, through links, and from the working directory."""
    data = tmp_path / "static" / "data"
    data.mkdir(parents=True)
    (tmp_path / "link").symlink_to("static")
    machine(monkeypatch, "/elsewhere", str(data))
    monkeypatch.chdir(tmp_path)
    for path, inside in (
        (str(data), ""),
        ("static/data/", ""),
        ("link/data/a/../b", "b"),
        (f"{data}/a/b", "a/b"),
        ("./static/../link/data/ё", "ё"),
    ):
        target = client.find(path)
        assert (target.mount.mountpoint, target.path) == (str(data), inside)


def test_a_path_outside_of_all_mounts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line lists the mounts that there are; a sibling with the same beginning is not one of them."""
    machine(monkeypatch, "/srv/data")
    for path in ("/srv/data2", "/srv", "/"):
        with pytest.raises(NotRunning, match="there is /srv/data"):
            client.find(path)


def test_without_a_path_there_must_be_one_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    """No path means the only mount; with none or several the line says what to do."""
    machine(monkeypatch)
    with pytest.raises(NotRunning, match="b2fs mount DIR"):
        client.find(None)
    machine(monkeypatch, "/a", "/b")
    with pytest.raises(NotRunning, match="/a, /b"):
        client.find(None)
    machine(monkeypatch, "/a")
    assert client.find(None).mount.mountpoint == "/a"


def test_a_mount_is_never_touched_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing at or below a mountpoint is looked at: its daemon may hang, and the command with it."""
    touched: list[str] = []
    monkeypatch.setattr(mounts, "_link_target", lambda path: touched.append(path))
    machine(monkeypatch, "/srv/data")
    assert client.find("/srv/data/a/b/../c").path == "a/c"
    assert touched == ["/srv"]


def test_a_loop_of_links_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Links that lead to each other are an error, not a hang."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(MountError, match="too many symbolic links"):
        mounts.resolve(str(tmp_path / "a"), [])


def test_mountinfo_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    """Escapes, optional fields and other file systems: each line gives its mountpoint, type and owner."""
    text = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        "36 22 0:51 / /mnt/my\\040data\\134x rw,nosuid shared:7 master:2 - fuse.b2fs b2fs rw,user_id=1000,group_id=0\n"
        "37 22 0:52 / /mnt/ё rw - fuse.rclone r: rw,user_id=0\n"
    )
    (tmp_path / "mountinfo").write_text(text)
    found = mounts.all_mounts(str(tmp_path / "mountinfo"))
    assert found == [
        mounts.Mount("/", "ext4", None),
        mounts.Mount("/mnt/my data\\x", "fuse.b2fs", 1000),
        mounts.Mount("/mnt/ё", "fuse.rclone", 0),
    ]
    assert [each.is_b2fs for each in found] == [False, True, False]


# ---------------------------------------------------------------- where the socket lies


def test_the_address_fits_into_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """However long the mountpoint and XDG_RUNTIME_DIR are, the address stays below 108 bytes."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(os, "geteuid", lambda: 4242)  # root has its place in /run
    for uid in (0, 4242):
        for each in address.candidates(uid):
            assert len(os.path.join(each, address.socket_name("/srv/" + "ё" * 3000))) < 108


def test_a_directory_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In /tmp anybody may have made the directory first, or let others in."""
    place = tmp_path / "b2fs"
    monkeypatch.setattr(address, "candidates", lambda uid: [str(place)])
    assert address.runtime_dir() == str(place) and address.is_private(str(place), os.geteuid())
    assert not address.is_private(str(place), os.geteuid() + 1)
    place.chmod(0o750)
    with pytest.raises(StateError, match="not a private directory"):
        address.runtime_dir()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(StateError, match="not a private directory"):
        address.runtime_dir()


def test_the_next_place_is_taken_when_one_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container may have a read-only /run: then the socket lies in /tmp."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(address, "candidates", lambda uid: [str(tmp_path / "file" / "b2fs"), str(tmp_path / "tmp")])
    assert address.runtime_dir() == str(tmp_path / "tmp")
