"""What goes wrong during a soak, and when: a shuffled deck of mishaps, drawn by the seed.

Rules
  One mishap at a time, but faults stay while others come: a kill may meet a bucket that misbehaves.
  After every end of the daemon, wanted or not, the work waits, the mount is taken away and made anew on the same
  state directory, and what it shows is compared with what was acknowledged.
  Only this thread touches the bucket's process and its admin interface.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from b2fs.devbucket.faults import Kind
from tests.mount.support import B2FS
from tests.soak.scene import Scene

_UPLOADS = ("b2_upload_file", "b2_hide_file", "b2_copy_file", "b2_get_upload_url")
_READS = ("b2_download_file_by_id", "b2_list_file_names")
_STATUSES = (
    (503, "service_unavailable"),
    (500, "internal_error"),
    (429, "too_many_requests"),
    (408, "request_timeout"),
)
_ONCE = (Kind.STALL, Kind.STALL_UPLOAD, Kind.STALL_DOWNLOAD)
"""Each costs whoever meets it up to a minute: one at a time."""
LONG_RUN_S = 60.0
"""A shorter run has no stalls: it would be over before they are."""
_COMMAND_S = 240.0

DECK = {
    "fault": 22, "disconnect": 2, "expire_tokens": 2, "bucket_outage": 3, "kill": 5, "kill_both": 1, "terminate": 2,
    "kill_drain": 1, "unmount": 2, "kill_transfer": 3, "flush": 3, "lose_cache": 3,
}  # fmt: skip
"""How often each mishap comes in one pass through the deck."""


class Chaos:
    def __init__(self, scene: Scene, seed: int, check: Callable[[], list[str]], long: bool) -> None:
        """`check`: what the mount shows that is not so, called after each restart while nobody works."""
        self.scene = scene
        self.fired: Counter[str] = Counter()
        """How often each kind of fault happened."""
        self.transfers: Counter[str] = Counter()
        """The daemon's own counters, summed over its lives."""
        self.is_long = long
        self._check = check
        self._random = random.Random(f"{seed} chaos")
        self._deck: list[str] = ["fault", "kill", "fault", "flush", "fault", "terminate"][::-1]
        """Popped from the end. A short run sees these."""
        self._lift_s = 0.0

    def run(self) -> None:
        try:
            while not self.scene.over.wait(self._random.uniform(0.3, 3.0)):
                if not self._deck:
                    self._deck = [name for name, number in DECK.items() for _ in range(number)]
                    self._random.shuffle(self._deck)
                if time.monotonic() > self._lift_s:
                    self.lift()
                getattr(self, f"_{self._deck.pop()}")()
        except Exception as error:
            self.scene.fail(f"chaos broke off: {error!r}\n{traceback.format_exc()}")

    # ------------------------------------------------------------ the bucket

    def _fault(self) -> None:
        kind = self._random.choice(list(Kind))
        if kind in _ONCE and not self.is_long:
            kind = Kind.RESET
        args: dict[str, Any] = {}
        key = "*"
        call, count, chance = "b2_*", self._random.randint(2, 25), self._random.choice((0.1, 0.4, 0.8))
        match kind:
            case Kind.STATUS:
                status, code = self._random.choice(_STATUSES)
                args = {"status": status, "code": code}
                if status == 429:
                    args["retry_after_s"] = self._random.choice((0.5, 2.0))
                call = self._random.choice((*_UPLOADS, *_READS, "b2_*"))
            case Kind.CAP:
                call, count, chance = "b2_upload_file", 1, 1.0
                args = {"code": "storage_cap_exceeded"}
            case Kind.LATENCY:
                args, count = {"seconds": self._random.choice((0.05, 0.3, 1.5))}, 200
            case Kind.RESET_UPLOAD | Kind.STALL_UPLOAD | Kind.WRONG_SHA1:
                call = "b2_upload_file"
            case Kind.REPLY_LOST:
                call = self._random.choice(_UPLOADS[:3])
            case Kind.RESET_DOWNLOAD | Kind.STALL_DOWNLOAD | Kind.TRUNCATE:
                call = self._random.choice(("b2_download_file_by_id", "b2_upload_file", "b2_list_file_names"))
            case Kind.CORRUPT:  # objects that are fetched whole: B2 gives no checksum of a range
                call, key, count, chance = "b2_download_file_by_id", "site/*", 5, min(chance, 0.4)
        if kind in _ONCE:
            count, chance = 1, 1.0
        if kind in (Kind.RESET_UPLOAD, Kind.RESET_DOWNLOAD, Kind.TRUNCATE, Kind.CORRUPT):
            args["after"] = self._random.choice((0, 1, 1000))
        self.scene.note(f"fault {kind.value} at {call}, {count} times, chance {chance}, {args}")
        self.scene.bucket.admin.fault(
            kind.value, call, key=key, count=count, probability=chance, seed=self._random.randrange(1 << 30), **args
        )
        self._lift_s = max(self._lift_s, time.monotonic() + self._random.uniform(2, 12))

    def lift(self) -> None:
        """No faults any more."""
        self._tally()
        self.scene.bucket.admin.clear_faults()

    def _tally(self) -> None:
        for fault in self.scene.bucket.admin.faults():
            if fault["fired"]:
                self.fired[fault["kind"]] += fault["fired"]

    def _disconnect(self) -> None:
        self._note("connections to the bucket reset")
        self.scene.bucket.admin.disconnect()

    def _expire_tokens(self) -> None:
        self._note("tokens expired")
        self.scene.bucket.admin.expire_tokens()

    def _bucket_outage(self) -> None:
        self._stop_bucket()
        self.scene.over.wait(self._random.uniform(0.5, 8.0))
        self._start_bucket()

    def _stop_bucket(self) -> None:
        self._note("bucket killed")
        self.lift()
        self.scene.bucket.kill()

    def _start_bucket(self) -> None:
        self.scene.bucket.restart()
        self.scene.note("bucket back")

    # ------------------------------------------------------------ the daemon

    def _kill(self) -> None:
        self._kill_daemon()
        self._begin_again("kill")

    def _kill_both(self) -> None:
        """The daemon comes back while B2 does not answer: what it has is served all the same."""
        self._stop_bucket()
        try:
            self._kill_daemon()
            self.scene.host.start()
            self.scene.note("daemon back, without B2")
            self.scene.over.wait(self._random.uniform(0, 2))
        finally:
            self._start_bucket()
        self._compare_and_resume("kill_both")

    def _kill_daemon(self) -> None:
        host, scene = self.scene.host, self.scene
        self._note("daemon killed")
        self.count_life()
        scene.killed_s = time.monotonic()
        assert host.process is not None
        host.process.kill()
        scene.stop_work()
        host.kill()

    def _terminate(self) -> None:
        """SIGTERM: all of it goes to B2, or the exit code and the manifest say what does not."""
        self.scene.stop_work(close_all=self._random.random() < 0.5)
        self._note("SIGTERM")
        self.count_life()
        assert self.scene.host.process is not None
        self.scene.host.process.send_signal(signal.SIGTERM)
        self._ended()

    def _kill_drain(self) -> None:
        """SIGTERM, and SIGKILL before the drain has come to its end."""
        host = self.scene.host
        self.scene.stop_work(close_all=self._random.random() < 0.5)
        self._note("daemon killed while it drains")
        self.count_life()
        assert host.process is not None
        host.process.send_signal(signal.SIGTERM)
        self.scene.over.wait(self._random.uniform(0, 1))
        host.kill()
        self._begin_again("kill_drain")

    def _unmount(self) -> None:
        self.scene.stop_work()
        self._note("umount from outside")
        self.count_life()
        command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*command, self.scene.path], check=True, capture_output=True, timeout=_COMMAND_S)
        self._ended()

    def _ended(self) -> None:
        host = self.scene.host
        assert host.process is not None
        code = host.process.wait(_COMMAND_S)
        manifest = Path(host.state, "not-in-b2.json")
        self.scene.note(f"daemon ended with {code}")
        self.scene.count(f"stops with exit code {code}")
        if code not in (0, 8) or manifest.exists() != (code == 8):
            self.scene.fail(f"a stop ended with {code}, manifest: {manifest.exists()}")
        if host.mounted():
            self.scene.fail("it ended and left its mount")
            host.detach()
        self._begin_again("stop")

    def _begin_again(self, why: str) -> None:
        self.scene.host.start()
        self._compare_and_resume(why)

    def _compare_and_resume(self, why: str) -> None:
        began = time.monotonic()
        problems = self._check()
        self.scene.note(f"daemon back, compared in {time.monotonic() - began:.1f} s: {len(problems)} differences")
        if problems:
            self.scene.fail(f"after {why}: " + "\n  ".join(problems[:20]))
        self.scene.count("restarts")
        self.scene.resume_work()

    def _kill_transfer(self) -> None:
        self._note("transfer process killed")
        try:
            os.kill(self.scene.host.transfer_process(), signal.SIGKILL)
        except (ValueError, ProcessLookupError):
            pass  # it is just being started again

    def _flush(self) -> None:
        """`b2fs flush` comes back: with 0, or with 8 when something was refused."""
        began = time.monotonic()
        done = self.command("flush", self.scene.path)
        self._note(f"flush: exit code {done.returncode} after {time.monotonic() - began:.1f} s")
        if done.returncode not in (0, 8):
            self.scene.fail(f"flush ended with {done.returncode}: {done.stderr}")

    def _lose_cache(self) -> None:
        """Somebody tidies up the cache directory."""
        blobs = [path for path in (self.scene.host.state / "cache").glob("*/*") if self._random.random() < 0.5]
        for path in blobs:
            path.unlink(missing_ok=True)
        self._note(f"{len(blobs)} files of the cache deleted")

    # ------------------------------------------------------------ pieces

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*B2FS, *arguments], env=self.scene.host.environment(), capture_output=True, text=True, timeout=_COMMAND_S
        )

    def count_life(self) -> None:
        """Add the daemon's counters to the sums. Once a life, just before its end."""
        try:
            found = self.scene.ask("stats")
        except Exception as error:  # a daemon that cannot answer now is seen by what comes next
            self.scene.note(f"no counters of this life: {error}")
            return
        self.transfers.update(found["transfers"])
        self.transfers.update({"cache hits": found["cache"]["hits"], "cache misses": found["cache"]["misses"]})

    def _note(self, text: str) -> None:
        self.scene.note(text)
        self.scene.count(f"chaos: {text.split(':')[0].lstrip('0123456789 ')}")
