"""Draining: wait until B2 has what was written before a certain moment, and say what it does not have.

Rules
  A number that only grows (`Drain.mark`) is the moment; what is written after it is not waited for, so who goes on
  writing does not keep a drain from ending.
  What B2 refuses is tried once and named (ARCHITECTURE.md, Drain).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from b2fs.core import names
from b2fs.core.writeback import Entry
from b2fs.engine.content import Content
from b2fs.engine.upload import Uploader
from b2fs.engine.volume import Volume
from b2fs.errors import B2fsError

log = logging.getLogger(__name__)

_LOOK_EACH_S = 20e-6
"""Pause between two looks, for each key that is left: several times what the look costs."""
_LOOK_S = 0.25
"""How often a drain looks at what is left, at least."""


class Drain:
    def __init__(self, volume: Volume, content: Content, uploader: Uploader) -> None:
        self._volume = volume
        self._content = content
        self._uploader = uploader

    def mark(self) -> int:
        """A number for `run`, `seal` and `left`: they are about what was written before it."""
        return self._volume.journal.next_number()

    async def run(self, path: str, mark: int, report: Callable[[], Awaitable[None]] | None = None) -> None:
        """Return once B2 has everything at or below `path` ('': all) that was written before `mark`, and the journal
        knows it for good; cancel it to give up. Who goes on writing does not keep it from ending.

        Files are sealed even if a program still writes. What B2 refuses is tried once more, then left; everything
        is, once the journal cannot be written.
        """
        volume, uploader = self._volume, self._uploader
        for entry in self._waiting(path, mark):
            entry.attempts = 0
            volume.schedule.hurry(entry, trio.current_time())
        uploader.hurrying += 1
        try:
            while not volume.read_only and not all(map(self._is_stuck, waiting := self._waiting(path, mark))):
                if report is not None:
                    await report()
                for entry in waiting:
                    if not entry.error and not entry.waits_for:
                        volume.schedule.hurry(entry, trio.current_time())
                volume.wake()
                with trio.move_on_after(_LOOK_S):
                    await uploader.finished.wait()
                await trio.sleep(len(waiting) * _LOOK_EACH_S)
        finally:
            uploader.hurrying -= 1
        if not volume.read_only:
            with contextlib.suppress(B2fsError):  # the disk fails, which is logged; the bytes are in B2 all the same
                await volume.sync()
                await volume.reaper.reap()

    def _is_stuck(self, entry: Entry) -> bool:
        """Whether a drain can do nothing about a key: it is refused, or waits for one that is."""
        if entry.lasting and entry.attempts:
            return True
        keys = self._volume.journal.keys_of(entry.waits_for) if entry.waits_for else []
        others = (self._volume.schedule.entries.get(key) for key in keys)
        return any(other is not None and other.lasting and other.attempts > 0 for other in others)

    async def seal(self, path: str, mark: int) -> None:
        """Seal what is not in B2 at or below `path`, so that its size and SHA-1 are known and final."""
        for entry in self._waiting(path, mark):
            node = None if entry.key.endswith("/") else await self._volume.resolve(entry.key)
            if node is None or self._volume.read_only:
                continue
            try:
                await self._content.seal(node)
            except B2fsError as error:  # a full disk: it stays scratch, and the next start goes on with it
                log.warning("%r (generation %d) cannot be sealed: %s", entry.key, entry.generation, error)

    def left(self, path: str, mark: int) -> list[dict[str, Any]]:
        """What is not in B2 at or below `path`, for the manifest: key, bytes, SHA-1 where known, why."""
        found = []
        for entry in sorted(self._waiting(path, mark), key=lambda entry: entry.key):
            row = self._volume.journal.path_inode(entry.key)
            found.append(
                {
                    "path": entry.key,
                    "size": row.size if row is not None else 0,
                    "sha1": row.sha1 if row is not None else "",
                    "why": self._volume.read_only or entry.error or "not uploaded yet",
                }
            )
        return found

    def _waiting(self, path: str, mark: int) -> list[Entry]:
        entries = self._volume.schedule.entries
        below = path + "/" if path else ""

        def concerns(key: str) -> bool:
            above = key.endswith("/") and below.startswith(key)  # a moved directory that the path is in
            return key == path or key.startswith(below) or above

        return [
            entry
            for key, entry in entries.items()
            if concerns(key) and entry.reached <= mark and not self._is_later(entry, mark)
        ]

    def _is_later(self, entry: Entry, mark: int) -> bool:
        """Whether a dirty key says nothing about what was written before `mark`: it was in line then, and what became
        dirty there is a newer file, a deletion, or attributes of a directory. Not so what came to it by a rename.
        """
        if entry.born <= mark or entry.key.endswith("/"):
            return False
        tree, directory = self._volume.tree, names.marked_directory(entry.key)
        above, name = names.split(entry.key if directory is None else directory)
        parent = tree.find(above)
        if parent is None or parent.children is None:
            return False  # nobody knows
        node = tree.child(parent, name.encode()) if name else parent
        if node is None or node.ino > mark:
            return True
        row = self._volume.journal.object(entry.key) if directory is not None else None
        return row is not None and row.file_id != ""
