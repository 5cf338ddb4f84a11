"""The end of a soak: everything is in B2, and the bucket, the mount, the models and another host agree. Then fsck.

`Ending.compare` returns what does not agree, one line each.
"""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from b2fs.cli.main import COMMANDS
from b2fs.core.names import MARKER
from b2fs.errors import Exit
from tests.engine.world import fsck
from tests.soak.chaos import Chaos
from tests.soak.scene import Scene, SoakHost
from tests.tree import Entry, compare, tree

_STOP_S = 120.0

EXPECTED_LOG = (
    # a stop while the bucket misbehaves gives up at drain_timeout, and says what is left
    r"ERROR not in B2: .* \(\d+ bytes\): ",
    r"ERROR \d+ changes are not in B2; they are safe in ",
)
"""Lines of level ERROR that the chaos means to cause, with the reason."""


def bad_lines(log: str) -> list[str]:
    """Lines of a daemon's log that nothing here explains."""
    level = re.compile(r"^\S+ (ERROR|CRITICAL) |^Traceback |^Fatal Python error|Warning: ")
    return [
        line
        for line in log.splitlines()
        if level.search(line) and not any(re.search(pattern, line) for pattern in EXPECTED_LOG)
    ]


def objects(scene: Scene) -> dict[str, dict[str, Any]]:
    return scene.bucket.admin.objects(scene.bucket.bucket)


def doubles(scene: Scene) -> tuple[int, list[str]]:
    """(names with several versions, versions that repeat the one before: same bytes, same attributes).

    An answer that names another SHA-1 explains one: what B2 has is not trusted then, and goes up again.
    """
    versions: dict[str, list[dict[str, Any]]] = {}
    for row in scene.bucket.admin.versions(scene.bucket.bucket):
        versions.setdefault(row["fileName"], []).append(row)
    found = []
    for name, rows in versions.items():
        found += [
            f"{name} by {new['fileInfo'].get('b2fs')}, {new['uploadTimestamp'] - old['uploadTimestamp']} ms after "
            f"{old['fileInfo'].get('b2fs')}"
            for new, old in pairwise(rows)
            if _mark(new) == _mark(old) is not None
        ]
    return sum(len(rows) > 1 for rows in versions.values()), found


def _mark(row: dict[str, Any]) -> tuple[object, ...] | None:
    if row["action"] != "upload":
        return None
    info = dict(row["fileInfo"])
    info["b2fs"] = re.sub(r";o=[^;]*", "", info.get("b2fs", ""))  # who wrote it is not what it is
    return (row["contentSha1"], *sorted(info.items()))


class Ending:
    def __init__(self, scene: Scene, chaos: Chaos) -> None:
        self.scene = scene
        self._chaos = chaos

    def compare(self, models: list[str], spoil: Callable[[], None] | None) -> Iterator[str]:
        """`models`: what the mount shows that the models do not, found after the flush.

        `spoil` spoils the bucket, when the mount has been read: earlier its listing could show it there too.
        """
        scene, host = self.scene, self.scene.host
        yield from models
        here = tree(host.path)
        if spoil is not None:
            spoil()
        yield from (f"bucket: {line}" for line in self._bucket(here))
        self._chaos.count_life()
        assert host.process is not None
        host.process.send_signal(signal.SIGTERM)
        code = host.process.wait(_STOP_S)
        if code:
            yield f"the last stop ended with {code}"
        for folder in ("scratch", "staged", "part", "quarantine"):
            if left := sorted(each.name for each in (host.state / folder).iterdir()):
                yield f"everything is in B2, and {folder}/ holds {left[:5]}"
        yield from (f"another host: {line}" for line in self._another_host(here))
        yield from (f"fsck: {line}" for line in self._fsck())
        yield from (f"log: {line}" for line in bad_lines(host.log_text()))
        scene.note("compared")

    def flush(self) -> str:
        """Everything into B2; what went wrong, '' if nothing. What was refused or stalled before gets a second chance."""
        done = self._chaos.command("flush", self.scene.path)
        if done.returncode == Exit.NOT_DRAINED:
            done = self._chaos.command("flush", self.scene.path)
        if not done.returncode:
            return ""
        return f"the last flush: {done.returncode} {done.stderr}, {self.scene.ask('status')}"

    def _bucket(self, here: Mapping[str, Entry]) -> Iterator[str]:
        """Every file and link is an object of its size and SHA-1, every directory has its marker, and that is all."""
        found = {name: (row["contentLength"], row["contentSha1"]) for name, row in objects(self.scene).items()}
        wanted: dict[str, tuple[int, str]] = {}
        empty = hashlib.sha1(b"", usedforsecurity=False).hexdigest()
        for path, entry in here.items():
            if entry.kind == "dir":
                wanted[f"{path}/{MARKER}"] = (0, empty)
            elif entry.kind == "link":
                body = entry.target.encode()
                wanted[path] = (len(body), hashlib.sha1(body, usedforsecurity=False).hexdigest())
            else:
                wanted[path] = (entry.size, entry.sha1)
        found.pop(MARKER, None)  # the root's own
        yield from (f"{name} is missing" for name in sorted(wanted.keys() - found.keys()))
        yield from (f"{name} should not be visible" for name in sorted(found.keys() - wanted.keys()))
        for name in sorted(wanted.keys() & found.keys()):
            if wanted[name] != found[name]:
                yield f"{name}: {found[name]} in the bucket, {wanted[name]} here"

    def _another_host(self, here: Mapping[str, Entry]) -> Iterator[str]:
        other = SoakHost(self.scene.bucket)
        try:
            other.start()
            there = tree(other.path)
            yield from compare(here, there)
            other.stop()
            yield from bad_lines(other.log_text())
        finally:
            other.remove()

    def _fsck(self) -> Iterator[str]:
        state = self.scene.host.state
        if "fsck" in COMMANDS:
            done = self._chaos.command("fsck", str(state), "--remote")
            if done.returncode:
                yield f"exit code {done.returncode}: {done.stdout}{done.stderr}"
            return
        try:
            fsck(state)
        except AssertionError as error:
            yield str(error)
