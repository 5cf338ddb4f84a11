"""The commands, as a shell runs them: what they print, their exit codes, and what bad input gets."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from b2fs import __main__, daemon
from b2fs.cli import detach, render
from b2fs.cli.main import COMMANDS, cli
from b2fs.config import SETTINGS, Config
from b2fs.errors import Exit, NoBucket
from b2fs.frontends import mountpoint as mountpoint_module
from b2fs.ops import client, mounts
from b2fs.secret import Secret
from tests.ops.conftest import B2fs, Stub

SECRET = "K005verysecretapplicationkey+02"
ACCOUNT = {"B2_APPLICATION_KEY_ID": "005aa", "B2_APPLICATION_KEY": SECRET, "B2_BUCKET_NAME": "dictafan"}


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The app's variables are set, and the state directory is a temporary one."""
    for name, value in {**ACCOUNT, "B2FS_STATE_DIR": str(tmp_path / "state")}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_fuse_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountpoint_module, "check_fuse", lambda allow_other=False: False)


# ---------------------------------------------------------------- the command line itself


def test_status_starts_light() -> None:
    """`b2fs status` loads neither b2sdk nor pyfuse3, trio, rich or the engine."""
    code = "import sys; from b2fs.__main__ import run; run(['status']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "b2fs.cli.status" in loaded
    assert not loaded & {"b2sdk", "pyfuse3", "trio", "rich", "sqlite3", "requests", "b2fs.engine", "b2fs.daemon"}


def test_help_lists_every_command_without_loading_them(capsys: pytest.CaptureFixture[str]) -> None:
    """The first page of help names each command."""
    assert __main__.run(["--help"]) == Exit.OK
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} +\S", shown, re.M) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each module has a command with help of its own."""
    assert __main__.run([name, "--help"]) == Exit.OK
    assert "Usage: b2fs" in capsys.readouterr().out
    with cli.make_context("b2fs", ["--debug"], resilient_parsing=True) as context:
        command = cli.get_command(context, name)
    assert command and command.help


@pytest.mark.parametrize("args", [[], ["nonsense"], ["umount"], ["mount", "--nonsense", "x"], ["status", "a", "b"]])
def test_a_wrong_command_line(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error is told on stderr with the code 2."""
    assert __main__.run(args) == Exit.USAGE
    captured = capsys.readouterr()
    assert "Usage" in captured.err and not captured.out


def test_a_known_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A `B2fsError` becomes one line on stderr and its own exit code, without a secret."""
    Secret(SECRET)
    assert _failing(monkeypatch, NoBucket(f"no bucket\nwith {SECRET}")) == Exit.BUCKET
    assert capsys.readouterr().err == "b2fs: no bucket with ***\n"


def test_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected error is one line; its traceback comes with --debug, and neither shows a secret."""
    Secret(SECRET)
    assert _failing(monkeypatch, RuntimeError(f"bad {SECRET}")) == Exit.BUG
    assert re.fullmatch(r"b2fs: unexpected: RuntimeError: bad \*\*\* \(.*--debug.*\)\n", capsys.readouterr().err)
    assert _failing(monkeypatch, RuntimeError(f"bad {SECRET}"), "--debug") == Exit.BUG
    shown = capsys.readouterr().err
    assert "Traceback" in shown and SECRET not in shown


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends a command with the shell's code and without a traceback."""
    assert _failing(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, *options: str) -> int:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "get_command", lambda ctx, name: click.Command("fail", callback=fail))
    return __main__.run([*options, "fail"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`b2fs … | head` ends as programs in a pipe end: silently, with 128 + SIGPIPE."""
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "b2fs", "config", "list"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


# ---------------------------------------------------------------- config, version


@pytest.mark.usefixtures("account")
def test_config_show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting is shown with its value and its source; the key is masked; a warning goes to stderr."""
    monkeypatch.setenv("B2FS_UPLOAD", "3")
    assert __main__.run(["config", "show", "--cache-size", "5GB"]) == Exit.OK
    captured = capsys.readouterr()
    rows = {line.split()[0]: line.split()[1:] for line in captured.out.splitlines()}
    assert set(rows) == {"setting", *SETTINGS}
    assert rows["key"] == ["***", "B2_APPLICATION_KEY"] and SECRET not in captured.out + captured.err
    assert rows["cache_size"] == ["5000000000", "--cache-size"] and rows["uploads"] == ["16", "default"]
    assert captured.err == "b2fs: warning: B2FS_UPLOAD is not a setting of b2fs; did you mean B2FS_UPLOADS?\n"


@pytest.mark.usefixtures("account")
def test_config_show_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    """``--json`` gives the same in one line, with plain numbers."""
    assert __main__.run(["config", "show", "--json"]) == Exit.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["cache_size"] == {"value": 10 * 1024**3, "from": "default"}
    assert shown["key"] == {"value": "***", "from": "B2_APPLICATION_KEY"} and set(shown) == set(SETTINGS)


def test_config_list(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of all settings names each one's TOML key, variables and flag."""
    assert __main__.run(["config", "list"]) == Exit.OK
    shown = capsys.readouterr().out
    for setting in SETTINGS.values():
        names = [f"`{setting.name}`", f"`{setting.variable}`", *([f"`{setting.flag}`"] if setting.flag else [])]
        assert all(name in shown for name in names)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The line has what a bug report needs."""
    assert __main__.run(["version"]) == Exit.OK
    assert re.fullmatch(r"b2fs \S+ \(python .*pyfuse3 .*b2sdk .*trio .*\)\n", capsys.readouterr().out)


# ---------------------------------------------------------------- mount


Run = Callable[..., int]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str]]:
    """What reached the daemon, which is ready at once and ends well."""
    calls: list[tuple[Config, str]] = []

    def run(config: Config, mountpoint: str, *, ready: Callable[[], None]) -> Exit:
        calls.append((config, mountpoint))
        ready()
        return Exit.OK

    monkeypatch.setattr(daemon, "run", run)
    return calls


@pytest.mark.usefixtures("account", "no_fuse_needed")
def test_mount_hands_over_to_the_daemon(
    served: list[tuple[Config, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The daemon gets the parsed settings and the real path; stdout gets the one line that scripts wait for."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert __main__.run(["mount", "data", "--uploads", "3", "--prefix", "/a"]) == Exit.OK
    [(config, path)] = served
    assert (config.uploads, config.prefix, path) == (3, "a/", str(tmp_path / "data"))
    assert capsys.readouterr().out == "ready: data\n"


@pytest.mark.usefixtures("account", "no_fuse_needed")
def test_mount_ends_with_the_daemons_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A daemon that could not upload everything makes `b2fs mount` exit with 8."""
    monkeypatch.setattr(daemon, "run", lambda *args, **more: Exit.NOT_DRAINED)
    (tmp_path / "data").mkdir()
    assert __main__.run(["mount", str(tmp_path / "data")]) == Exit.NOT_DRAINED


@pytest.mark.usefixtures("account")
@pytest.mark.parametrize("word", ["false", "no", "0"])
def test_mount_when_switched_off(
    word: str,
    served: list[tuple[Config, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """B2_ENABLED=false: one line, exit code 0, nothing mounted and nothing checked, whatever else is wrong."""
    monkeypatch.setenv("B2_ENABLED", word)
    monkeypatch.delenv("B2_APPLICATION_KEY")
    assert __main__.run(["mount", str(tmp_path / "none")]) == Exit.OK
    shown = capsys.readouterr().out
    assert "switched off (B2_ENABLED says so)" in shown and shown.count("\n") == 1 and not served


@pytest.mark.usefixtures("account", "no_fuse_needed")
@pytest.mark.parametrize(
    ("environ", "args", "code", "hint"),
    [
        ({"B2_APPLICATION_KEY": ""}, [], Exit.CONFIG, "not set: key"),
        ({"B2FS_CACHE_SIZE": "10G"}, [], Exit.CONFIG, "give 10GiB"),
        ({}, ["--config", "none.toml"], Exit.CONFIG, "No such file"),
        ({}, ["--drain-timeout", "soon"], Exit.CONFIG, "--drain-timeout"),
        ({}, [], Exit.MOUNT, "mkdir -p"),
    ],
)
def test_mount_with_bad_input(
    environ: dict[str, str],
    args: list[str],
    code: Exit,
    hint: str,
    served: list[tuple[Config, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong is told in one line with its code, before anything starts; no secret is in it."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert __main__.run(["mount", str(tmp_path / "none"), *args]) == code
    captured = capsys.readouterr()
    assert hint in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("b2fs: ")
    assert SECRET not in captured.err and not served and not captured.out


def test_no_secret_is_a_flag() -> None:
    """A command line can be read by everybody on the machine, so the key has no place there."""
    assert not SETTINGS["key"].flag and all(setting.flag for setting in SETTINGS.values() if setting.name == "key_file")


# ---------------------------------------------------------------- mount --daemon


def _detached(work: Callable[[Callable[[], None]], int], log: Path) -> None:
    detach.detach(work, str(log))


def test_a_detached_daemon_outlives_the_command(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """The parent returns when the daemon is ready; the daemon has a session, a log and a directory of its own."""
    go_on, log = tmp_path / "go-on", tmp_path / "b2fs.log"

    def work(ready: Callable[[], None]) -> int:
        print("serving", os.getcwd(), os.getsid(0) != os.getpid(), flush=True)
        ready()
        while not go_on.exists():
            signal.sigtimedwait([], 0.01)
        print("done", file=sys.stderr)
        return 0

    _detached(work, log)
    assert log.read_text() == "serving / True\n" and log.stat().st_mode & 0o777 == 0o600
    go_on.touch()
    eventually(lambda: log.read_text().endswith("done\n"))


def test_a_daemon_that_cannot_start_tells_its_parent(tmp_path: Path) -> None:
    """The error of the daemon is the error of the command: same line, same code; the log has it too."""

    def work(ready: Callable[[], None]) -> int:
        raise NoBucket("no such bucket: dictafan")

    with pytest.raises(client.DaemonError, match="no such bucket: dictafan") as caught:
        _detached(work, tmp_path / "log")
    assert caught.value.exit_code is Exit.BUCKET
    assert (tmp_path / "log").read_text() == "b2fs: no such bucket: dictafan\n"


def test_a_bug_at_the_start_is_in_the_log(tmp_path: Path) -> None:
    """The parent tells the error in a line, the log has the traceback, neither has the secret."""
    Secret(SECRET)

    def work(ready: Callable[[], None]) -> int:
        raise RuntimeError(f"bad {SECRET}")

    with pytest.raises(client.DaemonError, match=r"RuntimeError: bad \*\*\*; see .*log") as caught:
        _detached(work, tmp_path / "log")
    assert caught.value.exit_code is Exit.BUG
    assert "Traceback" in (tmp_path / "log").read_text() and SECRET not in (tmp_path / "log").read_text()


def test_a_daemon_that_dies_at_the_start(tmp_path: Path) -> None:
    """A daemon that is killed before it was ready is reported, with the place of its log."""

    def work(ready: Callable[[], None]) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    with pytest.raises(client.DaemonError, match=r"died before it was ready; its log: .*log"):
        _detached(work, tmp_path / "log")


def test_a_daemon_that_ends_before_it_is_ready(tmp_path: Path) -> None:
    """Switched off by a signal while it starts: no `ready`, so the command does not claim it."""
    with pytest.raises(client.DaemonError, match="before it was ready"):
        _detached(lambda ready: 0, tmp_path / "log")


# ---------------------------------------------------------------- commands that talk to a daemon


def test_commands_without_a_mount(b2fs: B2fs, tmp_path: Path) -> None:
    """Where nothing is mounted, each command says so and ends with 9."""
    for args in (["status"], ["stats"], ["flush"], ["umount"]):
        done = b2fs(*args, str(tmp_path))
        assert done.returncode == Exit.NOT_RUNNING and done.stderr.startswith("b2fs: ") and not done.stdout


@pytest.mark.fuse
@pytest.mark.slow
def test_what_a_mount_tells(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """status, stats and flush find the daemon from any path in the mount; in a pipe they are plain text."""
    stub()
    shown = b2fs("status", mountpoint).stdout
    for line in (
        "B2 reachable:     no: no route to host",
        "not in B2 yet:    3 files, 5MiB, oldest 12s old",
        "objects:          566 so far, listing goes on",
        "problem:          x.mp3: cap reached",
        "ignored:          … and 2 more (--json shows all)",
    ):
        assert line in shown.splitlines()
    assert json.loads(b2fs("status", "--json", mountpoint).stdout)["bucket"] == "dictafan"
    assert "path:        a/б.mp3\n" in b2fs("status", f"{mountpoint}/a/б.mp3").stdout
    shown = b2fs("stats", mountpoint).stdout
    assert "90 hits, 10 misses (90.0% hits)" in shown and "b2_upload_file" in shown and "A 5, C 1" in shown
    assert "event loop:" in shown and "23 tasks" in shown
    assert "50, 40 of them read, 3 wasted (3KiB), 7 not read yet; off where too few were read" in shown
    left_out = "2 files (6GiB) had no room in half of the cache"
    assert f"8 files, 3MiB of 5GiB, 2MiB of it here; {left_out}" in shown
    assert left_out in b2fs("status", mountpoint).stdout
    assert "of 5GiB, oldest 12s old, full in 1.5m at this rate" in shown
    assert json.loads(b2fs("stats", "--json", mountpoint).stdout)["queue"]["waiting"] == 2
    done = b2fs("flush", f"{mountpoint}/a")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = b2fs("flush", f"{mountpoint}/missing")
    assert done.returncode and done.stderr == "b2fs: missing: no such file\n"


@pytest.mark.fuse
@pytest.mark.slow
def test_stats_again_and_again(stub: Stub, mountpoint: str) -> None:
    """``--watch`` in a pipe gives a line at once and then one at a time, until Ctrl-C."""
    stub()
    command = [sys.executable, "-m", "b2fs", "stats", "--json", "--watch", mountpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout and watching.stderr
        assert json.loads(watching.stdout.readline())["cache"]["hits"] == 90
        watching.send_signal(signal.SIGINT)
        assert watching.wait() == 130 and watching.stderr.read() == ""


@pytest.mark.fuse
@pytest.mark.slow
def test_umount_waits_for_the_end(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """When `b2fs umount` returns, the mount is gone and the daemon has ended; in a pipe it says nothing."""
    process = stub()
    done = b2fs("umount", mountpoint)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert process.poll() == 0 and not [each for each in mounts.b2fs_mounts() if each.mountpoint == mountpoint]


@pytest.mark.fuse
@pytest.mark.slow
def test_umount_tells_what_is_not_in_b2(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """A drain that did not get everything into B2: unmounted all the same, code 8, and the manifest is named."""
    process = stub("left")
    done = b2fs("umount", mountpoint)
    assert done.returncode == Exit.NOT_DRAINED and "/state/manifest" in done.stderr
    assert process.poll() == 0


@pytest.mark.fuse
@pytest.mark.slow
def test_umount_that_is_refused(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """A daemon that refuses goes on serving, and the command does not wait for its end."""
    process = stub("refuse")
    done = b2fs("umount", mountpoint)
    assert (done.returncode, done.stderr) == (Exit.MOUNT, "b2fs: busy\n")
    assert process.poll() is None and mounts.probe(mountpoint) is mounts.Liveness.SERVING


@pytest.mark.fuse
@pytest.mark.slow
def test_umount_of_a_directory_in_a_mount(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """umount takes the mountpoint only: a path below it is more likely a mistake."""
    process = stub()
    done = b2fs("umount", f"{mountpoint}/a")
    assert done.returncode == Exit.MOUNT and f"`b2fs umount {mountpoint}`" in done.stderr and process.poll() is None


@pytest.mark.fuse
@pytest.mark.slow
def test_umount_of_a_dead_mount(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """What a killed daemon left is taken away, and the line says where its bytes are."""
    process = stub()
    process.kill()
    process.wait()
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        os.listdir(mountpoint)
    done = b2fs("status", mountpoint)
    assert done.returncode == Exit.NOT_RUNNING and f"`b2fs umount {mountpoint}` cleans up" in done.stderr
    done = b2fs("umount", mountpoint)
    assert done.returncode == 0 and "the daemon had died" in done.stderr and os.listdir(mountpoint) == []


@pytest.mark.fuse
@pytest.mark.slow
def test_umount_of_a_mount_without_a_socket(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """A daemon that still serves, but cannot be asked, is not torn down."""
    process = stub("mute")
    done = b2fs("umount", mountpoint)
    assert done.returncode == Exit.NOT_RUNNING and "its control socket does not answer" in done.stderr
    assert process.poll() is None and mounts.probe(mountpoint) is mounts.Liveness.SERVING


@pytest.mark.fuse
@pytest.mark.slow
def test_a_hung_mount_hangs_no_command(b2fs: B2fs, stub: Stub, mountpoint: str) -> None:
    """A daemon that answers nothing: the commands end with an error instead of joining it."""
    stub("hang")
    done = b2fs("status", f"{mountpoint}/a/b")
    assert done.returncode == Exit.NOT_RUNNING and "no daemon answers" in done.stderr


# ---------------------------------------------------------------- on a terminal


@pytest.mark.fuse
@pytest.mark.slow
def test_a_terminal_shows_progress(stub: Stub, mountpoint: str) -> None:
    """On a terminal the drain shows what is left, and the same commands use colour."""
    stub()
    code, shown = _on_a_terminal("umount", mountpoint)
    assert code == 0 and "drain" in shown and "left" in shown and "\x1b[" in shown


def _on_a_terminal(*args: str) -> tuple[int, str]:
    """Exit code and output of `b2fs ARGS` with a terminal for stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(
        [sys.executable, "-m", "b2fs", *args], stdin=theirs, stdout=theirs, stderr=theirs, env=environ
    )
    os.close(theirs)
    shown = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                shown.extend(chunk)
        except OSError:
            pass  # EIO: the terminal's other end is closed

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait()
    reader.join()
    os.close(ours)
    return code, shown.decode()


def test_columns_are_aligned() -> None:
    """Each column but the last is as wide as its widest cell."""
    assert render.columns([("a", "bb", "c"), ("aaa", "b", "")]) == "a    bb  c\naaa  b"
    assert render.count(1, "file") == "1 file" and render.count(2, "file") == "2 files"
