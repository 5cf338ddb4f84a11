"""Counts by number: what a dict would say, in less memory."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from b2fs.core.counts import Counts

NUMBERS = st.sampled_from([1, 2, 255, 256, 257, 511, 512, 1 << 20, (1 << 62) + 3])
"""Neighbours, both sides of a block's edges, and far away."""


@given(st.lists(st.tuples(NUMBERS, st.integers(0, 5))))
def test_they_count_as_a_dict_does(steps: list[tuple[int, int]]) -> None:
    """Whatever is put and taken (a count of 0 here) in whatever order; and nothing is left of what was taken."""
    counts, model = Counts(), dict[int, int]()
    for number, count in steps:
        if count:
            counts.put(number, count)
            model[number] = count
        else:
            assert counts.take(number) == model.pop(number, 0)
        assert counts[number] == model.get(number, 0)
    numbers = range(600), (1 << 20, (1 << 62) + 3)
    assert [each for some in numbers for each in counts.among(some)] == sorted(model)
    for number in list(model):
        counts.take(number)
    assert not counts._blocks


def test_count_beyond_what_fits() -> None:
    """It is the most that fits, not an error."""
    counts = Counts()
    counts.put(7, 1 << 40)
    assert counts.take(7) == (1 << 32) - 1


def test_they_are_small() -> None:
    """Every other number has a count, as with inodes from a listing: 10 bytes each. A dict takes 85."""
    counts = Counts()
    for number in range(0, 200_000, 2):
        counts.put(number, 1)
    blocks = counts._blocks
    assert sys.getsizeof(blocks) + sum(map(sys.getsizeof, blocks.values())) < 10 * 100_000
