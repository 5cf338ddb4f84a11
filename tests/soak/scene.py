"""What all parts of a soak share: the bucket, the mount, the gate that stops the work, what failed, and the timeline.

Rules
  A worker passes `Scene.call` for each system call on the mount. A call that the daemon's end cut off, and one that
  comes while the gate is closed, ends in `Gone`; the worker then waits at the gate until the mount is there again.
  The mount is taken away only when every worker waits: a path of a mount that is gone leads into the bare directory.
  The first failure ends the work; the comparison at the end is made all the same.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from b2fs.ops import client
from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import Host

T = TypeVar("T")

GONE = (errno.ENOTCONN, errno.ECONNABORTED)
_PARK_S = 150.0
"""How long a worker may take to come to the gate: what is under way ends first."""
_LOOK_S = 0.5
"""How often one who waits at the gate looks whether the run is over."""


class Gone(Exception):
    """The mount is not there (any more)."""


class SoakHost(Host):
    """A host whose daemon writes its stacks into the log when it is aborted."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONFAULTHANDLER": "1"}


class Scene:
    def __init__(self, bucket: DevBucket, host: SoakHost, timeline: Path) -> None:
        self.bucket = bucket
        self.host = host
        self.started_s = time.monotonic()
        self.over = threading.Event()
        """Set when the time is up, or something failed."""
        self.failures: list[str] = []
        self.counts: Counter[str] = Counter()
        """Of operations and events, by name."""
        self.killed_s: float = float("inf")
        """When the daemon was killed last, while its end is not dealt with."""
        self.calls: dict[str, tuple[str, float]] = {}
        """What each worker is waiting for, and since when."""
        self._timeline = open(timeline, "a", buffering=1)  # noqa: SIM115 - it lives as long as the scene
        self._lock = threading.Lock()
        self._gate = threading.Condition()
        self._closed = False
        self.incarnation = 0
        """How often the work was resumed."""
        self.close_all = True
        """Whether workers close their files before they wait."""
        self._workers = 0
        self._waiting = 0

    # ------------------------------------------------------------ telling

    def note(self, text: str) -> None:
        """One line of the timeline."""
        with self._lock:
            self._timeline.write(f"{time.monotonic() - self.started_s:8.2f} {text}\n")

    def count(self, name: str, number: int = 1) -> None:
        with self._lock:
            self.counts[name] += number

    def fail(self, text: str) -> None:
        self.note(f"FAILURE {text}")
        with self._lock:
            self.failures.append(text)
        self.over.set()

    def close(self) -> None:
        self._timeline.close()

    # ------------------------------------------------------------ the gate

    @property
    def path(self) -> str:
        return str(self.host.path)

    @property
    def is_closed(self) -> bool:
        return self._closed

    def call(self, worker: str, what: str, action: Callable[[], T], always: bool = False) -> T:
        """Make a system call on the mount. Gone, or the error of the call. `always`: also while the gate is closed."""
        if self._closed and not always:
            raise Gone
        self.calls[worker] = (what, time.monotonic())
        try:
            return action()
        except OSError as error:
            if error.errno in GONE or (error.errno == errno.EIO and self._is_dying()):
                raise Gone from None
            raise
        finally:
            del self.calls[worker]

    def _is_dying(self) -> bool:
        """Whether the daemon was killed or has ended: a page that was being read is EIO then."""
        return self.host.ended() or time.monotonic() >= self.killed_s

    def run(self, name: str, turn: Callable[[], None], leave: Callable[[], None] = lambda: None) -> None:
        """A worker's life: one turn after the other until it is over; a turn that ends in Gone waits at the gate.

        `leave` closes what the worker has open; called at the end, and before it waits if all is to be closed.
        """
        with self._gate:
            self._workers += 1
        try:
            while not self.over.is_set():
                incarnation = self.incarnation
                try:
                    if not self._closed:
                        turn()
                        continue
                except Gone:
                    pass
                if self.close_all:
                    leave()
                self._wait(incarnation)
        except Exception as error:  # whatever it is, the run must not go on without this worker
            self.fail(f"{name} broke off: {error!r}\n{traceback.format_exc()}")
        finally:
            leave()
            with self._gate:
                self._workers -= 1
                self._gate.notify_all()

    def _wait(self, incarnation: int) -> None:
        with self._gate:
            self._waiting += 1
            self._gate.notify_all()
            while self.incarnation == incarnation and not self.over.is_set():
                self._gate.wait(_LOOK_S)
            self._waiting -= 1

    def stop_work(self, close_all: bool = True) -> bool:
        """Close the gate and wait until every worker is there; whether they came."""
        with self._gate:
            self.close_all = close_all
            self._closed = True
            came = self._gate.wait_for(lambda: self._waiting >= self._workers, _PARK_S)
        if not came:
            self.fail(f"workers do not come to the gate: {self.calls}")
        return came

    def resume_work(self) -> None:
        with self._gate:
            self._closed = False
            self.incarnation += 1
            self.killed_s = float("inf")
            self._gate.notify_all()

    def ask(self, command: str, **args: Any) -> dict[str, Any]:
        """Ask the daemon over its control socket."""
        return client.call(client.find(self.path).mount, command, args)

    def inside(self, path: str) -> str:
        return os.path.join(self.path, path)
