"""Which versions are pinned: kept in the cache, up to a limit of bytes. Pure.

Rules
  A pin belongs to an inode and is the version that holds its content. Who comes when there is no room is left out, and is
  like any other file until there is.
  Whoever is left out is looked at again when somebody went: a few at a time, in turn.

Units: bytes.
"""

from __future__ import annotations

import itertools

import msgspec

from b2fs.core import chunks

MOST = 100_000
"""Files that are pinned, and that are left out and remembered: about 0.4 kB of memory each."""
_LOOKS = 500
"""Files that are looked at again at once: well under 1 ms."""


class Pin(msgspec.Struct, frozen=True, gc=False):
    """A version that is to stay, or should have."""

    file_id: str
    size: int

    @property
    def stem(self) -> str:
        """What the names of its blobs begin with."""
        return chunks.whole(self.file_id)


class Pins:
    """INVARIANT: ``bytes`` is the sum of the sizes of `kept`, and at most ``limit``; ``left_out_bytes`` that of `left_out`.
    Nobody is in both.
    """

    def __init__(self, limit: int, most: int = MOST) -> None:
        self.limit = limit
        self.bytes = 0
        self.kept: dict[int, Pin] = {}
        self.left_out: dict[int, Pin] = {}
        self.left_out_bytes = 0
        self._most = most
        self._owners: dict[str, int] = {}
        """Stems of what is kept, to inodes."""
        self._gone = False
        """Somebody went since the last look at who is left out."""

    def put(self, ino: int, pin: Pin) -> bool:
        """The content of an inode that is to be pinned is this version; whether it is kept."""
        if self.get(ino) != pin:
            self.drop(ino)
            if not self._take(ino, pin) and len(self.left_out) < self._most:
                self._leave_out(ino, pin)
        return ino in self.kept

    def get(self, ino: int) -> Pin | None:
        return self.kept.get(ino) or self.left_out.get(ino)

    def drop(self, ino: int) -> None:
        """The inode is gone, or is to be pinned no more."""
        if ino in self.left_out:
            self.left_out_bytes -= self.left_out.pop(ino).size
        pin = self.kept.pop(ino, None)
        if pin is not None:
            self.bytes -= pin.size
            self._gone = True
            if self._owners[pin.stem] == ino:  # else a new inode has the same version already
                del self._owners[pin.stem]

    def owner(self, blob: str) -> int | None:
        """The inode that a blob is kept for, None if it may go."""
        return self._owners.get(blob.partition(".")[0])

    def look_again(self) -> list[int]:
        """Who was left out and is kept from now on."""
        found: list[int] = []
        if self._gone:
            self._gone = False
            for ino, pin in list(itertools.islice(self.left_out.items(), _LOOKS)):
                del self.left_out[ino]
                self.left_out_bytes -= pin.size
                if self._take(ino, pin):
                    found.append(ino)
                else:
                    self._leave_out(ino, pin)
        return found

    def _leave_out(self, ino: int, pin: Pin) -> None:
        self.left_out[ino] = pin
        self.left_out_bytes += pin.size

    def _take(self, ino: int, pin: Pin) -> bool:
        if self.bytes + pin.size > self.limit or len(self.kept) >= self._most:
            return False
        self.kept[ino] = pin
        self.bytes += pin.size
        self._owners[pin.stem] = ino
        return True
