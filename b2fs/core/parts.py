"""How a large file is cut into parts, and which of them B2 can take from a version that it has. Pure.

Rules
  The parts cover the file once, in order; all but the last have the least size that B2 takes.
  A part is copied only if all of it is known to equal the same range of the base version. That is a hint about cost,
  not about truth: whoever copies compares the SHA-1 that B2 gives with that of the local bytes.
  A copy is a class C transaction, of which an account has 2,500 a day for nothing, and an upload is free: it pays from
  `worth` bytes on.

Units: bytes; ranges are half-open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

BLOCK = 1024 * 1024
"""The step in which a changed file is compared with its base: a fifth of the smallest part."""

WORTH = 32 * 1024 * 1024
"""What a copy must save: as much as one part of an upload. A database of some tens of MiB that changes every minute is
sent each time; else its copies would use up the day's class C transactions, which listings need too."""


class Part(NamedTuple):
    """One part of a large file."""

    number: int
    """From 1."""
    offset: int
    size: int
    copied: bool = False
    """The same range of the base version is copied on the server."""


class Limits(NamedTuple):
    """What parts can be."""

    least: int
    """Of all parts but the last."""
    wanted: int
    """Of an uploaded part; at least `least`."""
    largest_copy: int
    """Of a copied part."""
    worth: int
    """A copied part must save more than this; at least `least`."""
    most: int
    """Number of parts."""


def cut(size: int, part_size: int) -> list[Part]:
    """Cut `size` bytes into parts of `part_size`, the last one smaller; nothing is copied."""
    starts = range(0, size, part_size)
    return [Part(number, start, min(part_size, size - start)) for number, start in enumerate(starts, 1)]


def cut_on(size: int, same: Sequence[tuple[int, int]], limits: Limits) -> list[Part]:
    """The same with copies: `same` are the ranges that equal the base's, in order, disjoint, within the file.

    Empty where uploading all of it is not dearer, or no such cut exists.
    """
    pieces: list[tuple[int, int, bool]] = []
    done = saved = 0
    for start, end in same:
        if done < start < done + limits.least:
            start = done + limits.least  # what is uploaded before it must be a part of its own
        copies = _copies(end - start, limits)
        if copies == 0:
            continue
        pieces += _split(done, start, (start - done) // limits.wanted, copied=False)
        pieces += _split(start, end, copies, copied=True)
        saved += end - start - copies * limits.worth
        done = end
    # a large file costs requests that a small one does not (start, finish): they count as one copy
    if saved <= limits.worth:
        return []
    pieces += _split(done, size, (size - done) // limits.wanted, copied=False)
    if len(pieces) == 1:  # B2 wants two parts, and it is worth two
        pieces = list(_split(0, size, 2, copied=True))
    if len(pieces) > limits.most:
        return []
    return [Part(number, start, end - start, copied) for number, (start, end, copied) in enumerate(pieces, 1)]


def _copies(length: int, limits: Limits) -> int:
    """In how many parts a range is copied; 0 if that does not pay."""
    number = -(-length // limits.largest_copy)
    return number if length > number * limits.worth else 0


def _split(start: int, end: int, number: int, *, copied: bool) -> Iterator[tuple[int, int, bool]]:
    """Cut a range into `number` (at least one) pieces of nearly the same size."""
    number = max(1, number)
    length = end - start
    for index in range(number if length else 0):
        yield start + length * index // number, start + length * (index + 1) // number, copied
