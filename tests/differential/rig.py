"""A mount and a plain directory, in which every example gets a directory of its own; and the check by a second host.

Rules
  One daemon serves all examples. It uploads while they run.
  `agree_everywhere`: what is on the mount is what is in the plain directory, and what a host sees that knows nothing
  but the bucket: paths, contents, modes, links, and the modification times to the nanosecond.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.differential.side import Side
from tests.mount.agree import check_bucket
from tests.mount.hosts import Host, NewHost
from tests.tree import compare, tree


class Rig:
    def __init__(self, host: Host, plain: Path, new_host: NewHost) -> None:
        self.host = host
        self.plain = plain
        self.began_ns = time.time_ns()
        self.notes: list[str] = []
        """The steps of the example that runs."""
        self._new_host = new_host
        self._histories: dict[str, list[str]] = {}
        self._examples = 0
        self._sides: tuple[Side, Side] | None = None

    def begin(self) -> tuple[Side, Side]:
        """A fresh directory on both sides: the plain one's first, for it is right."""
        self._examples += 1
        name = f"example{self._examples}"
        self.notes = self._histories[name] = []
        self._sides = (
            Side("plain", self.plain / name, self.began_ns),
            Side("mount", self.host.path / name, self.began_ns),
        )
        return self._sides

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None:
        """The example is over: every byte is the same, too."""
        assert self._sides is not None
        plain, mount = self._sides
        assert mount.content() == plain.content(), self.notes

    def agree_everywhere(self) -> None:
        """Flush, and compare all examples since `forget`, here and on another host."""
        self.host.flush()
        here, wanted = tree(self.host.path), tree(self.plain)
        self._check("the mount", compare(wanted, here, clock_ns=self.began_ns))
        check_bucket(self.host.bucket, here)
        other = self._new_host()
        other.start()
        try:
            there = tree(other.path)
            self._check("another host", compare(here, there))
        finally:
            other.remove()

    def forget(self) -> None:
        """Remove all examples."""
        for folder in (self.plain, self.host.path):
            for each in folder.iterdir():
                shutil.rmtree(each)
        self._histories.clear()

    def _check(self, who: str, differences: list[str]) -> None:
        """With the steps of the first example that differs."""
        if differences:
            name = differences[0].split("/")[0].split(":")[0]
            raise AssertionError("\n".join([f"{who} differs:", *differences, "", *self._histories.get(name, [])]))
