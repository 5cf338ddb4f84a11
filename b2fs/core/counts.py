"""Counts of many things whose numbers were handed out in a row: how often the kernel was told of each inode.

Rule: the numbers stand in blocks, 4 bytes for each number of a block, with a count or without (a dict takes 85 for each
count). A block goes when nothing is left of it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

_BITS = 8
"""A block has 2^8 numbers, 1 KiB: what a number costs that stands alone, no more than its node did."""
_PLACE = (1 << _BITS) - 1
_MOST = (1 << 32) - 1
"""What a count can say. Who forgets more than that forgets all."""


class Counts:
    """Counts by number; 0 where there is none."""

    def __init__(self) -> None:
        self._blocks: dict[int, array[int]] = {}
        self._empty = array("I", bytes(4 << _BITS))

    def __getitem__(self, number: int) -> int:
        return self._blocks.get(number >> _BITS, self._empty)[number & _PLACE]

    def among(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that have a count."""
        blocks = self._blocks
        return [each for each in numbers if each >> _BITS in blocks and blocks[each >> _BITS][each & _PLACE]]

    def put(self, number: int, count: int) -> None:
        block = self._blocks.get(number >> _BITS)
        if block is None:
            block = self._blocks[number >> _BITS] = self._empty[:]
        block[number & _PLACE] = count if count < _MOST else _MOST

    def take(self, number: int) -> int:
        """A count, which is 0 from now on."""
        block = self._blocks.get(number >> _BITS)
        if block is None:
            return 0
        count = block[number & _PLACE]
        block[number & _PLACE] = 0
        if block == self._empty:
            del self._blocks[number >> _BITS]
        return count
