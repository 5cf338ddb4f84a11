"""`python -m tests.soak --time 20m --seed 7`: the app's workload and more, under faults and kills, then a full comparison.

Rules
  Everything it makes is below one temporary directory. After a success that is gone; after a failure it stays, with
  the state directory, the bucket, the log and the timeline, and is named.
  Exit code 0: nothing was lost, no limit broken, no error unexplained. 1: something was, and the output says what.
  The seed decides what is done and what goes wrong; in which order the two meet the machine decides.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from b2fs import units
from tests.devbucket_fixture import DevBucket
from tests.soak.chaos import LONG_RUN_S, Chaos
from tests.soak.ending import Ending, doubles, objects
from tests.soak.health import Health
from tests.soak.reader import Cells, Reader
from tests.soak.scene import Scene, SoakHost
from tests.soak.site import Site
from tests.soak.writer import Writer

CACHE_SIZE = 24 << 20
DIRTY_SIZE = 64 << 20
"""Both a fraction of what is written: the cache evicts all the time, and writers wait when B2 does not answer."""
SETTINGS = {
    "cache_size": str(CACHE_SIZE),
    "dirty_size": str(DIRTY_SIZE),
    "quiet_period": "300ms",
    "max_dirty_age": "4s",
    "drain_timeout": "20s",
    "read_deadline": "50s",
    "refresh_interval": "7s",
}
_WRITERS, _READERS = 2, 2
_LIVE_S = 5.0
"""How often the live line is renewed."""
_JOIN_S = 180.0


def main() -> int:
    arguments = _arguments()
    base = tempfile.mkdtemp(prefix="b2fs-soak-")
    tempfile.tempdir = os.environ["TMPDIR"] = base
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    os.umask(0o022)
    bucket = DevBucket()
    host = SoakHost(bucket, **SETTINGS)
    try:
        bucket.start()
        host.start_listed()
        scene = Scene(bucket, host, Path(base, "timeline"))
        soak = Soak(scene, arguments.seed, arguments.time, arguments.tamper)
        soak.run()
        ok = not scene.failures
        soak.report(arguments.seed)
    except BaseException:
        print(f"broke off; everything is kept in {base}", flush=True)
        _end(host, bucket)
        raise
    _end(host, bucket)
    if ok:
        shutil.rmtree(base)
    else:
        print(f"kept in {base}: timeline, state {host.state}, log {host.log}, bucket {bucket.root}")
    print(f"{'PASSED' if ok else 'FAILED'}; again: make soak TIME={arguments.given} SEED={arguments.seed}")
    return 0 if ok else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--time", dest="given", default="20m", help="how long the work goes on: 90s, 20m, 2h")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="what to repeat")
    parser.add_argument(
        "--tamper", choices=("bucket", "model"), help="spoil one file before the comparison, to see that it is found"
    )
    arguments = parser.parse_args()
    arguments.time = units.parse_duration(arguments.given)
    return arguments


def _end(host: SoakHost, bucket: DevBucket) -> None:
    """End what runs; files stay."""
    if not host.ended():
        host.kill()
    host.detach()
    try:
        bucket.kill()
    except AssertionError:
        pass  # it is not running


class Soak:
    def __init__(self, scene: Scene, seed: int, time_s: float, tamper: str | None) -> None:
        self.scene = scene
        self._time_s = time_s
        self._tamper = tamper
        self.writers = [Writer(scene, number, seed) for number in range(_WRITERS)]
        self.cells = Cells(scene, seed)
        self.site = Site(scene)
        self.readers = [Reader(scene, number, seed, self.writers, self.cells) for number in range(_READERS)]
        self.chaos = Chaos(scene, seed, self._settle, time_s >= LONG_RUN_S)
        self.health = Health(scene, CACHE_SIZE, DIRTY_SIZE)
        self._versions = (0, list[str]())

    # ------------------------------------------------------------ the run

    def run(self) -> None:
        scene = self.scene
        for part in (*self.writers, self.cells, self.site):
            part.begin()
        workers = [*self.writers, self.cells, self.site, *self.readers, self.chaos, self.health]
        threads = [threading.Thread(target=worker.run, name=type(worker).__name__, daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        end = time.monotonic() + self._time_s
        try:
            while (left_s := end - time.monotonic()) > 0 and not scene.over.wait(min(_LIVE_S, left_s)):
                self._live(left_s)
        finally:  # after Ctrl-C too: the app's server is a worker's to end
            scene.over.set()
            deadline = time.monotonic() + _JOIN_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := [thread.name for thread in threads if thread.is_alive()]:
            scene.fail(f"these do not end: {hanging}; they wait for {scene.calls}\n{self.health.dump()}")
            return
        if scene.host.ended() or not scene.host.mounted():
            return  # that is a failure already, and said so
        self._end()

    def _end(self) -> None:
        scene = self.scene
        print("\rtime is up: flush, compare, fsck", flush=True)
        self.chaos.lift()
        scene.bucket.admin.disconnect()  # what stalls
        ending = Ending(scene, self.chaos)
        if problem := ending.flush():
            scene.fail(problem)
            return
        if self._tamper == "model":
            self._lose_a_save()
        models = self._settle()
        spoil = self._spoil_an_object if self._tamper == "bucket" else None
        if problems := list(ending.compare(models, spoil)):
            scene.fail("in the end: " + "\n  ".join(problems[:40]))
        self._versions = doubles(scene)

    def _settle(self) -> list[str]:
        """What the mount shows that is not so; nobody works."""
        problems = [line for writer in self.writers for line in writer.tree.settle(self.scene.path)]
        return problems + self.cells.check() + self.site.check()

    def _lose_a_save(self) -> None:
        """For the test of this program: a save that was acknowledged and is not there."""
        self.cells.begun[0] += 1
        self.cells.known[0] = self.cells.begun[0]

    def _spoil_an_object(self) -> None:
        """For the test of this program: a file with other bytes in the bucket."""
        bucket, name = self.scene.bucket, self.cells.path(0)
        row = objects(self.scene)[name]
        bucket.admin.put(bucket.bucket, name, b"x" * row["contentLength"], info=row["fileInfo"])

    # ------------------------------------------------------------ output

    def _live(self, left_s: float) -> None:
        if sys.stdout.isatty():
            counts = self.scene.counts
            print(
                f"\r{left_s:5.0f} s left, {counts['app rounds']} rounds, {counts['write']} writes, {counts['reads']} reads,"
                f" {counts['restarts']} restarts, {sum(self.chaos.fired.values())} faults ",
                end="", flush=True,
            )  # fmt: skip

    def report(self, seed: int) -> None:
        scene, counts = self.scene, dict(self.scene.counts)
        chaos = {name.removeprefix("chaos: "): counts.pop(name) for name in list(counts) if name.startswith("chaos: ")}
        repeated, same = self._versions
        _table("soak", {"seed": seed, "time, s": round(time.monotonic() - scene.started_s)})
        _table("operations", counts)
        _table("chaos", chaos)
        _table("faults that fired", self.chaos.fired)
        _table("transfers of all lives", self.chaos.transfers)
        _table("maxima", self.health.maxima)
        _table("objects", {"names with several versions": repeated, "versions that repeat the one before": len(same)})
        for name in same[:10]:
            print(f"  repeated: {name}")
        for text in scene.failures:
            print(f"FAILURE {text}", flush=True)
        scene.close()


def _table(title: str, rows: Mapping[str, object]) -> None:
    print(f"{title}:")
    for name in sorted(rows):
        print(f"  {name:<44} {rows[name]:>12}")


if __name__ == "__main__":
    sys.exit(main())
