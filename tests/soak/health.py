"""Watches the daemon while the soak runs: what it takes, whether its limits hold, whether anybody waits too long.

Units: bytes, seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import traceback
from collections import Counter
from pathlib import Path

from b2fs.errors import B2fsError
from tests.mount.support import B2FS
from tests.soak.scene import Scene

LONGEST_CALL_S = 60.0
_LOOK_S = 1.0
_LOG_TAIL = 6000
_SLACK = 8 << 20
"""What may lie in the cache beyond its limit: the largest file that one confirmed upload brings in (6 MiB), and a chunk."""


class Health:
    def __init__(self, scene: Scene, cache_size: int, dirty_size: int) -> None:
        self.scene = scene
        self.maxima: Counter[str] = Counter()
        self._cache_size = cache_size
        self._dirty_size = dirty_size

    def run(self) -> None:
        """Until the run is over."""
        try:
            while not self.scene.over.wait(_LOOK_S):
                self.look()
        except Exception:
            self.scene.fail(f"the watch broke off\n{traceback.format_exc()}")

    def look(self) -> None:
        self._watch_calls()
        host = self.scene.host
        if self.scene.is_closed or host.process is None:
            return
        if host.ended():
            time.sleep(1.0)  # a kill that is just being made known
            if host.ended() and not self.scene.is_closed and self.scene.killed_s == float("inf"):
                self.scene.fail(f"the daemon has ended by itself with {host.process.returncode}; its log ends:\n"
                                + host.log_text()[-_LOG_TAIL:])  # fmt: skip
            return
        with contextlib.suppress(OSError, KeyError):  # it is just ending
            self._look_at_process(host.pid)
        with contextlib.suppress(FileNotFoundError):
            self._look_at_cache(host.state)
        with contextlib.suppress(B2fsError):
            dirty = self.scene.ask("stats")["dirty"]
            self._most("dirty bytes", dirty["bytes"])
            self._most("dirty files", dirty["files"])
            self._most("oldest dirty age, s", round(dirty["oldest_age_s"]))
            if dirty["bytes"] > self._dirty_size:
                self.scene.fail(f"{dirty['bytes']} bytes wait for B2, the limit is {self._dirty_size}")

    def _most(self, name: str, value: int) -> None:
        self.maxima[name] = max(self.maxima[name], value)

    def _look_at_process(self, pid: int) -> None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        self._most("daemon RSS, KiB", int(status["VmRSS"].split()[0]))
        self._most("daemon threads", int(status["Threads"]))
        self._most("daemon descriptors", len(os.listdir(f"/proc/{pid}/fd")))

    def _look_at_cache(self, state: Path) -> None:
        used = 0
        for folder in os.scandir(state / "cache"):
            for blob in os.scandir(folder.path):
                with contextlib.suppress(FileNotFoundError):
                    used += blob.stat().st_size
        self._most("cache bytes", used)
        if used > self._cache_size + _SLACK:
            self.scene.fail(f"{used} bytes in the cache directory, the limit is {self._cache_size}")

    # ------------------------------------------------------------ calls that take too long

    def _watch_calls(self) -> None:
        now = time.monotonic()
        for worker, (what, since_s) in list(self.scene.calls.items()):
            self._most("longest call, s", round(now - since_s))
            if now - since_s > LONGEST_CALL_S:
                self.scene.fail(f"{worker} waits for {now - since_s:.0f} s: {what}\n{self.dump()}")
                return

    def dump(self) -> str:
        """What the daemon is at; it is ended by that, so that nobody waits any longer."""
        host = self.scene.host
        text = [f"log:\n{host.log_text()[-_LOG_TAIL:]}"]
        if host.process is None or host.ended():
            return "\n".join([*text, "the daemon has ended"])
        for command in (("status", "--json"), ("stats", "--json")):
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = subprocess.run(
                    [*B2FS, *command, self.scene.path],
                    env=host.environment(), capture_output=True, text=True, timeout=40, check=False,
                )  # fmt: skip
                text.append(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        size = len(host.log_text())
        self.scene.killed_s = time.monotonic()
        host.process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            host.process.wait(20)
        return "\n".join([*text, f"stacks:\n{host.log_text()[size:]}"])
