"""Recovery: take up what the last run left, and set aside content that is not what it should be.

Rules
  A start after SIGKILL adopts everything: the page cache has it all. After a power loss (another boot, and the last
  run did not end in order) content is trusted only where the journal says that it was on stable storage.
  Content that cannot be trusted goes to ``quarantine/``, with a row in ``damaged`` for people, and is never
  uploaded. Its file falls back to the older content that is here, else to its version in B2; where there is none,
  the name is forgotten and its directory listed again, so that the bucket decides.
  Nothing here needs B2.

Inconsistencies that this repairs: the table in ARCHITECTURE.md.
"""

from __future__ import annotations

import logging
import os

from msgspec.structs import replace

from b2fs.adapters import disk as disk_module
from b2fs.core import names
from b2fs.core.change import Change, Damage
from b2fs.core.inode import Inode, restored
from b2fs.core.tree import Node
from b2fs.engine.volume import Changed, Volume
from b2fs.errors import B2fsError

log = logging.getLogger(__name__)


class Recovery:
    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._suspects: list[int] = []
        """Inodes whose staged content outlived a power loss and was not checked yet."""
        self.set_aside: list[Damage] = []
        """Content that this run has set aside."""
        self._there: set[int] = set()
        """The content that lay here at the start, in either folder."""

    # ------------------------------------------------------------ at the start

    def start(self, lost_power: bool) -> None:
        """Make journal and disk agree: called once, before anything else. `lost_power`: see above."""
        volume, disk = self._volume, self._volume.disk
        for damage in volume.journal.damaged():
            if not damage.file or not os.path.exists(disk.quarantine_path(damage.file)):
                volume.journal.forget_damage(damage)  # a person has dealt with it, or has had a whole run to read it
        kept = {folder: set[int]() for folder in ("scratch", "staged")}
        self._there = {number for folder in kept for number in disk.numbers(folder)}
        adopted = Change()
        for inode in volume.journal.dirty_inodes():
            going_on = self._adopt(inode, lost_power, adopted)
            if going_on is None:
                continue
            kept["scratch"].add(going_on.scratch)
            kept["staged"] |= {going_on.staged, going_on.synced}
            if going_on.staged and lost_power:
                self._suspects.append(going_on.ino)
        volume.journal.commit(adopted)
        volume.tree.apply(adopted)
        unnamed = {folder: set(disk.numbers(folder)) - kept[folder] for folder in kept}
        if any(unnamed.values()):  # the last run may have been killed before its journal was on the disk
            disk.sync_names()
            volume.journal.sync()
        for folder, drop in (("scratch", disk.drop_scratch), ("staged", disk.drop_staged)):
            for number in unnamed[folder]:
                drop(number)  # never acknowledged, or in B2
        for number in disk.numbers("part"):
            disk.drop_part(number)

    def _adopt(self, inode: Inode, lost_power: bool, adopted: Change) -> Inode | None:
        """The inode as it goes on; None if its name was forgotten. What is only news of a file's size and times is put
        into `adopted`.
        """
        volume, disk = self._volume, self._volume.disk
        change, found = Change(), inode
        older = inode.synced if inode.synced not in (inode.scratch, inode.staged) else 0
        if older and self._distrust("staged", older, False):
            older = 0
        if found.scratch:
            why = self._distrust("scratch", found.scratch, lost_power and found.synced != found.scratch)
            if why:
                self._quarantine(change, found, found.scratch, why)
                found = replace(found, scratch=0)
            else:
                try:
                    stat = os.stat(disk.scratch_path(found.scratch))
                except FileNotFoundError:
                    disk.unstage(found.scratch)
                    stat = os.stat(disk.scratch_path(found.scratch))
                found = replace(found, size=stat.st_size, mtime_ns=stat.st_mtime_ns)
                volume.budget.set(found.scratch, stat.st_size)
        if found.staged:
            why = self._distrust("staged", found.staged, lost_power and not found.sha1 and found.synced != found.staged)
            if why:
                self._quarantine(change, found, found.staged, why)
                found = replace(found, staged=older, sha1="" if older or found.scratch else found.sha1)
        for number in {found.staged, older} - {0}:
            if not disk.has_content("staged", number):
                disk.stage(number)
            volume.budget.set(number, os.stat(disk.staged_path(number)).st_size)
        if found.staged and not found.scratch:
            found = replace(found, size=os.stat(disk.staged_path(found.staged)).st_size)
        if found.synced not in (found.scratch, found.staged, older):
            found = replace(found, synced=0)
        settled = self._settle(change, found)
        if not change.damaged and settled == found:
            adopted.inodes += [found] if found != inode else []
        elif change.damaged or found != inode:
            volume.journal.commit(change)
            volume.tree.apply(change)
        return settled

    def _distrust(self, folder: str, number: int, unsafe: bool) -> str:
        """Why the content `number` cannot go on, '' if it can."""
        if number not in self._there:
            return f"it is gone from {folder}/"
        return "the power went before it was on the disk, and no program had asked for that (fsync)" if unsafe else ""

    # ------------------------------------------------------------ while running

    async def verify(self) -> None:
        """After a power loss: check the staged content against its SHA-1, in the background."""
        while self._suspects:
            inode = self._volume.journal.inode(self._suspects.pop())
            if inode is not None and inode.staged and inode.sha1:
                await self.examine(inode.ino, inode.staged, inode.sha1)

    async def examine(self, ino: int, staged: int, sha1: str) -> bool:
        """Set staged content aside if it is not what was sealed; whether it was. What cannot be read stays."""
        volume = self._volume
        try:
            found = await volume.seam.thread(disk_module.sha1_of, volume.disk.staged_path(staged))
        except FileNotFoundError:
            found = ""
        except B2fsError as error:
            log.error("staged content %d cannot be read: %s", staged, error)
            return False
        if found == sha1:
            return False
        node = volume.tree.nodes.get(ino)
        inode = node.inode if node is not None else volume.journal.inode(ino)
        if inode is None or inode.staged != staged:
            return False  # it was replaced meanwhile
        change = Change()
        why = f"its SHA-1 is {found}, it was sealed with {sha1}" if found else "it is gone from staged/"
        self._quarantine(change, inode, staged, why)
        inode = replace(inode, staged=0, sha1="" if inode.scratch else inode.sha1)
        self._settle(change, inode)
        volume.commit(change)
        for key, _ in change.settled:  # the name is unknown now, not gone: its turn must not come and hide what B2 has
            volume.schedule.forget(key)
        self._tell(node, change)
        return True

    def _tell(self, node: Node | None, change: Change) -> None:
        for parent, name in change.unlinks:
            self._volume.on_change(Changed(parent, name))
        if node is not None:
            self._volume.on_change(Changed(node.ino, None))

    # ------------------------------------------------------------ pieces

    def _quarantine(self, change: Change, inode: Inode, number: int, why: str) -> None:
        volume = self._volume
        key = next((key for _, _, key in self._places(inode.ino)), f"inode {inode.ino}")
        file = volume.disk.quarantine(number)
        self._there.discard(number)
        volume.free(number)
        change.damaged.append(Damage(key, file, why, volume.now_ns()))
        self.set_aside += change.damaged[-1:]
        where = f"it is kept as {volume.disk.quarantine_path(file)}" if file else "nothing was left to keep"
        log.error("content of %r was set aside (%s); %s", key, why, where)

    def _settle(self, change: Change, inode: Inode) -> Inode | None:
        """Add to `change` how a file goes on whose content was looked at; None if its name is forgotten."""
        volume = self._volume
        if inode.scratch or inode.staged:
            change.inodes.append(inode)
            return inode
        row = volume.journal.object_of(inode.file_id) if inode.file_id else None
        if row is not None:
            base = restored(inode, row.size, row.sha1, row.attributes)
            change.inodes.append(base)
            return base
        intents = {intent.key: intent.generation for intent in volume.journal.intents()}
        change.gone.append(inode.ino)
        for parent, name, key in self._places(inode.ino):
            change.unlinks.append((parent, name))
            change.lost_objects.append(key)
            if key in intents:
                change.settled.append((key, intents[key]))
            above = volume.tree.nodes[parent].inode if parent in volume.tree.nodes else volume.journal.inode(parent)
            if above is not None:
                change.inodes.append(replace(above, complete=False))
        volume.journal.set_meta("listed", "")
        volume.forgotten += 1
        return None

    def _places(self, ino: int) -> list[tuple[int, bytes, str]]:
        """(parent, name, key) of every name of a file."""
        journal = self._volume.journal
        return [
            (parent, name, names.join(journal.path_of(parent), name.decode())) for parent, name in journal.names_of(ino)
        ]
