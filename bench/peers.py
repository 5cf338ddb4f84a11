"""The peers: what a program may find behind a directory. Each is started, told to forget, and ended here.

Rules
  A peer owns one scratch directory; `close` ends its processes by their ids, unmounts, and removes it, whatever happened.
  `Absent` says why a peer cannot be had on this machine; then its column is left out, and the reason printed.
  Nothing of libfuse is kept: its example is compiled from where Debian's package has put it.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from b2fs.ops import mounts
from tests.devbucket_fixture import DevBucket

ROOT = Path(__file__).parents[1]
START_S = 60.0
STOP_S = 600.0
"""A daemon may have gigabytes to bring to the bucket before it ends."""
_EXAMPLE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
_MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 2, 4, 32
_FORGETS_S = 0.1
"""What a daemon gets to work off the forgets of a dropped cache."""


class Absent(Exception):
    """This peer cannot be had here; the text says why."""


class Peer:
    """A directory for programs, and perhaps a process behind it. This one is the plain directory."""

    name = "plain"
    title = "plain directory"
    is_mount = False

    def __init__(self, base: Path) -> None:
        self.base = base
        self.base.mkdir(parents=True)
        self.path = base / "mnt"
        self.path.mkdir()
        self.backing = self.path
        """Where files lie that are put behind its back."""
        self.process: subprocess.Popen[bytes] | None = None
        self.log = base / "log"

    def start(self) -> None:
        """Serve `path`; what was there before is there again."""

    def stop(self) -> None:
        """End it in order: what is written is where it belongs."""

    def close(self) -> None:
        """End it in any case, and remove what it has on this machine."""
        shutil.rmtree(self.base, ignore_errors=True)

    def settle(self) -> None:
        """Return when everything written so far is where it belongs, and nothing runs in the background."""

    def forget_kernel(self) -> None:
        """Have the kernel drop the names, attributes and pages of this mount, and of no other."""

    def forget_local(self) -> None:
        """Throw away what the stopped peer keeps on this machine."""

    def cpu_s(self) -> float:
        """CPU seconds of its processes so far."""
        return 0.0

    def memory(self) -> int:
        """Resident bytes of its processes."""
        return 0


class Mounted(Peer):
    """A peer with a daemon that mounts `path`."""

    is_mount = True

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.base)}

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )
        wait_until(self._is_serving, START_S, self._explain)

    def _is_serving(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Absent(self._explain())
        return self.is_mounted()

    def is_mounted(self) -> bool:
        return any(mount.mountpoint == str(self.path) for mount in mounts.all_mounts())

    def _explain(self) -> str:
        log = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return f"{self.title}: {' / '.join(log[-3:]) or 'no word'}"

    def stop(self) -> None:
        if self.process is None:
            return
        self._ask_to_end()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None
        if self.is_mounted():
            mounts.detach(str(self.path))

    def _ask_to_end(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would, and take the dead mount away."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        while self.is_mounted():
            mounts.detach(str(self.path))

    def close(self) -> None:
        self.kill()
        super().close()

    def forget_kernel(self) -> None:
        """By a remount, which lets go of every name that is not in use (needs root)."""
        flags = _MS_REMOUNT | _MS_NOSUID | _MS_NODEV
        if ctypes.CDLL(None, use_errno=True).mount(b"none", os.fsencode(self.path), None, flags, None):
            number = ctypes.get_errno()
            raise OSError(number, f"remount: {os.strerror(number)}", str(self.path))
        time.sleep(_FORGETS_S)

    def cpu_s(self) -> float:
        return sum(_cpu_s(pid) for pid in self._processes())

    def memory(self) -> int:
        return sum(_memory(pid) for pid in self._processes())

    def _processes(self) -> list[int]:
        return [] if self.process is None else family(self.process.pid)


class Binding(Mounted):
    """The bare pass-through in Python: the floor of the binding."""

    name = "pyfuse3"
    title = "bare pyfuse3 pass-through"

    def __init__(self, base: Path, backing: Path | None = None) -> None:
        super().__init__(base)
        self.backing = backing or base / "backing"
        self.backing.mkdir(exist_ok=True)

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "bench.passthrough", str(self.backing), str(self.path)]


class Libfuse(Mounted):
    """libfuse's own example in C."""

    name = "C"
    title = "libfuse's passthrough_ll (C)"

    def __init__(self, base: Path, backing: Path | None = None) -> None:
        super().__init__(base)
        self.backing = backing or base / "backing"
        self.backing.mkdir(exist_ok=True)
        self._program = base / "passthrough_ll"
        if not _EXAMPLE.exists():
            shutil.rmtree(base)
            raise Absent(f"{self.title}: the package libfuse3-dev has brought no {_EXAMPLE}")
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True)
        compiler = ["gcc", "-O2", "-o", str(self._program), str(_EXAMPLE), *flags.stdout.split()]
        done = subprocess.run(compiler, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(base)
            raise Absent(f"{self.title}: {(flags.stderr or done.stderr).strip().splitlines()[-1]}")

    def command(self) -> Sequence[str]:
        options = f"source={self.backing},cache=always,timeout=3600"
        return [str(self._program), "-f", "-o", options, str(self.path)]


class Rclone(Mounted):
    """rclone's mount with its full cache. `program` mount, or mount2 where programs ask for extended attributes."""

    name = "rclone"
    title = "rclone mount --vfs-cache-mode full"

    def __init__(self, base: Path, server: DevBucket, bucket: str, program: str = "mount", *options: str) -> None:
        super().__init__(base)
        if shutil.which("rclone") is None:
            shutil.rmtree(base)
            raise Absent(f"{self.title}: not installed")
        self._server = server
        self.bucket = bucket
        self.program = program
        self.options: tuple[str, ...] = options

    def environment(self) -> dict[str, str]:
        return rclone_environment(self._server, self.base) | super().environment()

    def command(self) -> Sequence[str]:
        return [
            *("rclone", self.program, f"b2:{self.bucket}", str(self.path), "--vfs-cache-mode", "full"),
            *("--cache-dir", str(self.base / "cache"), "--dir-cache-time", "1h", "--log-level", "ERROR", *self.options),
        ]

    def settle(self) -> None:
        """When the bucket has been left alone for longer than the write-back waits."""
        quiet(self._server, 6.0)

    def forget_local(self) -> None:
        shutil.rmtree(self.base / "cache", ignore_errors=True)


class B2fs(Mounted):
    name = "b2fs"
    title = "b2fs"

    def __init__(self, base: Path, server: DevBucket, bucket: str, **settings: str) -> None:
        super().__init__(base)
        self._server = server
        self.bucket = bucket
        self.settings = settings
        self.state = base / "state"

    def environment(self) -> dict[str, str]:
        return (
            super().environment()
            | {f"B2FS_{name.upper()}": value for name, value in self.settings.items()}
            | {
                "B2_APPLICATION_KEY_ID": self._server.key_id,
                "B2_APPLICATION_KEY": self._server.key,
                "B2_BUCKET_NAME": self.bucket,
                "B2FS_ENDPOINT": self._server.url,
                "B2FS_STATE_DIR": str(self.state),
            }
        )

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "b2fs", "mount", str(self.path)]

    def _is_serving(self) -> bool:
        return super()._is_serving() and f"ready: {self.path}".encode() in self.log.read_bytes()

    def start(self) -> None:
        self.log.unlink(missing_ok=True)
        super().start()

    def run(self, *arguments: str) -> str:
        """A b2fs command with the mount's environment; what it printed."""
        command = [sys.executable, "-m", "b2fs", *arguments]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, cwd=ROOT, timeout=STOP_S)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.returncode} {done.stderr}")
        return done.stdout

    def settle(self) -> None:
        self.run("flush", str(self.path))
        quiet(self._server, 0.5)

    def statistics(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.run("stats", "--json", str(self.path)))
        return found

    def forget_local(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)


# ---------------------------------------------------------------- helpers


def rclone_environment(server: DevBucket, home: Path) -> dict[str, str]:
    """Makes ``b2:`` the embedded bucket."""
    (home / "rclone.conf").touch()
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "RCLONE_CONFIG": str(home / "rclone.conf"),
        "RCLONE_CONFIG_B2_TYPE": "b2",
        "RCLONE_CONFIG_B2_ACCOUNT": server.key_id,
        "RCLONE_CONFIG_B2_KEY": server.key,
        "RCLONE_CONFIG_B2_ENDPOINT": server.url,
    }


def wait_until(condition: Callable[[], bool], within_s: float, explain: Callable[[], str]) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise Absent(f"not within {within_s:g} s: {explain()}")
        time.sleep(0.005)


def quiet(server: DevBucket, for_s: float, within_s: float = 600.0) -> None:
    """Return when nothing was asked of the bucket for so long; its latency is included."""
    deadline_s = time.monotonic() + within_s
    seen, since_s = None, time.monotonic()
    while time.monotonic() - since_s < for_s and time.monotonic() < deadline_s:
        counters = server.admin.counters()
        now = (counters["running"], counters["calls"], counters["sent"], counters["received"])
        if now != seen or counters["running"]:
            seen, since_s = now, time.monotonic()
        time.sleep(0.05)


def family(pid: int) -> list[int]:
    """A process and its descendants that live."""
    parents: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo[-1])
        todo += parents.get(todo.pop(), [])
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; [] if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cpu_s(pid: int) -> float:
    """Of all its threads that live, to the nanosecond."""
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total_ns += int(thread.read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total_ns / 1e9


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0
