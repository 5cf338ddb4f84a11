"""A real mount for tests: the daemon in a child process, as a user runs it.

Rules
  The daemon is `b2fs mount` with its settings in the environment, nothing else.
  Every daemon is ended by its pid, every mount is taken away, however the test ends.
  When a daemon has ended, its state directory is checked as `b2fs fsck` does.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from b2fs.ops import mounts
from tests.devbucket_fixture import DevBucket
from tests.fsck import fsck

START_S = 30.0
STOP_S = 60.0
B2FS = (sys.executable, "-m", "b2fs")


class Mount:
    """One daemon with a mountpoint and a state directory of its own; both survive `stop` and `kill`."""

    program: Sequence[str] = B2FS

    def __init__(self, bucket: DevBucket, **settings: str) -> None:
        self.bucket = bucket
        self.base = Path(tempfile.mkdtemp(prefix="mount-"))
        self.path = self.base / "mnt"
        self.state = self.base / "state"
        self.log = self.base / "log"
        self.path.mkdir()
        self.settings = {"quiet_period": "200ms", "refresh_interval": "0"} | settings
        self.program = B2FS
        """What is started; a test may put another main program in its place."""
        self.process: subprocess.Popen[str] | None = None
        self.damaged = False
        """The test breaks the state directory on purpose: then it is not checked."""
        self.lost_power = False
        """It came out of a power loss: content may have been set aside."""

    def environment(self) -> dict[str, str]:
        settings = {f"B2FS_{name.upper()}": value for name, value in self.settings.items()}
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "TMPDIR": tempfile.gettempdir(),
            "B2_APPLICATION_KEY_ID": self.bucket.key_id,
            "B2_APPLICATION_KEY": self.bucket.key,
            "B2_BUCKET_NAME": self.bucket.bucket,
            "B2FS_ENDPOINT": self.bucket.url,
            "B2FS_STATE_DIR": str(self.state),
        } | settings

    def start(self, *arguments: str, expect: int | None = None) -> str:
        """Start it and wait for its ready line; with `expect`, wait for it to fail with that code instead.

        Returns what it printed: the ready line, or its error line.
        """
        self.launch(*arguments, catch_errors=expect is not None)
        assert self.process is not None
        if expect is not None:
            _, errors = self.process.communicate(timeout=START_S)
            assert self.process.returncode == expect, (self.process.returncode, errors)
            return errors
        line = _first_line(self.process, START_S)
        assert line == f"ready: {self.path}", (line, self.log_text())
        return line

    def launch(self, *arguments: str, catch_errors: bool = False) -> None:
        """Start it and wait for nothing."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "mount", *arguments, str(self.path)],
                env=self.environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if catch_errors else log,
                text=True,
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def stop(self, expect: int = 0) -> None:
        """SIGTERM, and wait: drained and unmounted."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.wait(expect)

    def wait(self, expect: int = 0) -> None:
        assert self.process is not None
        code = self.process.wait(STOP_S)
        assert code == expect, (code, self.log_text())
        assert not self.mounted()
        self.check(notes=False)

    def kill(self) -> None:
        """SIGKILL, and take the dead mount away."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_S)
        self.detach()
        self.check()

    def check(self, notes: bool = True) -> None:
        """What `b2fs fsck` says of the state directory of a daemon that has ended; notes are what a crash leaves."""
        if self.damaged or not (self.state / "journal.db").exists():
            return
        report = fsck(self.state, known=("damaged",) if self.lost_power else ())
        left = [
            each for each in report.notes if each.rule != "part-left"
        ]  # a fetch that the transfer process still wrote
        assert notes or self.lost_power or left == [], left

    def detach(self) -> None:
        for mount in mounts.all_mounts():
            if mount.mountpoint == str(self.path):
                mounts.detach(str(self.path))

    def mounted(self) -> bool:
        return any(mount.mountpoint == str(self.path) for mount in mounts.all_mounts())

    def forget_state(self) -> None:
        """Throw the state directory away: the next start is that of another host."""
        shutil.rmtree(self.state)

    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def command(self, *arguments: str, expect: int = 0) -> str:
        """Run a b2fs command with this mount's environment; what it printed on stdout, else on stderr."""
        done = subprocess.run(
            [*B2FS, *arguments], env=self.environment(), capture_output=True, text=True, timeout=STOP_S
        )
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done.stdout if expect == 0 else done.stderr

    def flush(self) -> None:
        self.command("flush", str(self.path))

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("stats", "--json", str(self.path)))
        return found

    def status(self, path: str = "") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.command("status", "--json", str(self.path / path)))
        return found

    def remove(self) -> None:
        """End whatever is left of it."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(STOP_S)
            for stream in (self.process.stdout, self.process.stderr):
                if stream is not None:
                    stream.close()
        self.detach()
        try:
            self.check()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)


@contextmanager
def mount(bucket: DevBucket, settings: Mapping[str, str] | None = None) -> Iterator[Mount]:
    """A mount that serves; gone afterwards."""
    mounted = Mount(bucket, **(settings or {}))
    try:
        mounted.start()
        yield mounted
    finally:
        mounted.remove()


def until(condition: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait for a condition; AssertionError when it does not come."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.02)


def _first_line(process: subprocess.Popen[str], within_s: float) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(within_s):
            return "(nothing within the deadline)"
    return process.stdout.readline().rstrip("\n")
