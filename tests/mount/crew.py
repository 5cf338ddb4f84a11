"""Many workers on one mount at the same time, and a watch that ends a mount on which nothing moves any more.

    crew = Crew(host)
    crew.run(writers, readers)      writers work until they are done, readers read until the writers are

Rules
  A worker calls its `beat` after each operation. If no worker does for `silence_s`, the daemon writes the stacks of its
  threads to its log and is ended, so that every call that hangs returns; the run fails with those stacks.
  What a worker raises fails the run; the others are asked to stop at their next beat.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable

from tests.mount.hosts import Host
from tests.mount.support import STOP_S, until

SILENCE_S = 60.0
"""As long as b2fs may wait for B2 before it says so."""
_LOOK_S = 0.2

Beat = Callable[[], None]
Worker = Callable[[Beat], object]


class WatchedHost(Host):
    """Its daemon can be asked for its stacks."""

    def environment(self) -> dict[str, str]:
        return super().environment() | {"PYTHONFAULTHANDLER": "1"}


class Stopped(Exception):
    """Another worker has failed."""


class Crew:
    def __init__(self, host: WatchedHost, silence_s: float = SILENCE_S) -> None:
        self.host = host
        self.operations = 0
        self._silence_s = silence_s
        self._failures: list[str] = []

    def run(self, writers: Iterable[Worker], readers: Iterable[Worker] = ()) -> None:
        """Each writer once; each reader again and again while they work, and once afterwards."""
        first = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in writers]
        are_done = threading.Event()
        others = [threading.Thread(target=self._read, args=(each, are_done), daemon=True) for each in readers]
        for thread in [*first, *others]:
            thread.start()
        self._watch(first)
        are_done.set()
        self._watch(others)
        assert self._failures == [], "\n".join(self._failures)

    def _beat(self) -> None:
        self.operations += 1  # two at once may count as one: only that it moves matters
        if self._failures:
            raise Stopped

    def _work(self, worker: Worker) -> None:
        try:
            worker(self._beat)
        except Stopped:
            pass
        except BaseException:  # whatever it is, it is the test's
            self._failures.append(traceback.format_exc())

    def _read(self, worker: Worker, are_done: threading.Event) -> None:
        while not self._failures:
            is_last = are_done.is_set()
            self._work(worker)
            if is_last:
                return

    def _watch(self, threads: Iterable[threading.Thread]) -> None:
        seen, since_s = self.operations, time.monotonic()
        for thread in threads:
            while thread.is_alive():
                thread.join(_LOOK_S)
                if self.operations != seen:
                    seen, since_s = self.operations, time.monotonic()
                elif time.monotonic() - since_s > self._silence_s:
                    self._failures.append(f"nothing moved for {self._silence_s} s\n{self._stacks()}")
                    thread.join(STOP_S)
                    assert not thread.is_alive(), "\n".join(self._failures)

    def _stacks(self) -> str:
        """Ends the daemon; what its threads were at."""
        size = len(self.host.log_text())
        os.kill(self.host.pid, signal.SIGABRT)
        os.kill(self.host.pid, signal.SIGCONT)
        until(self.host.ended, STOP_S)
        self.host.detach()
        return self.host.log_text()[size:]
