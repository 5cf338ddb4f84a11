"""How large files are cut: every byte once, no part that B2 refuses, no changed byte taken from the old version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2fs.core import parts
from b2fs.core.parts import Limits, Part

MB = 1_000_000
B2 = Limits(least=5 * MB, wanted=32 * MB, largest_copy=1000 * MB, worth=8 * MB, most=10_000)
MOST = 400


@st.composite
def limits(draw: st.DrawFn) -> Limits:
    least = draw(st.integers(1, 6))
    return Limits(
        least=least,
        wanted=least + draw(st.integers(0, 20)),
        largest_copy=2 * least + draw(st.integers(0, 40)),
        worth=least + draw(st.integers(0, 8)),
        most=draw(st.sampled_from([3, 10, 10_000])),
    )


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """(size, ranges that equal the base)."""
    size = draw(st.integers(1, MOST))
    cuts = sorted(draw(st.sets(st.integers(0, size), max_size=12)))
    return size, list(zip(cuts[::2], cuts[1::2], strict=False))


def check(size: int, same: list[tuple[int, int]], limit: Limits, found: list[Part]) -> None:
    assert [part.number for part in found] == list(range(1, len(found) + 1))
    end = 0
    for part in found:
        assert part.offset == end
        assert part.size > 0
        end += part.size
    assert end == size
    assert all(part.size >= limit.least for part in found[:-1])
    assert 2 <= len(found) <= limit.most
    for part in found:
        if part.copied:
            assert any(start <= part.offset and part.offset + part.size <= stop for start, stop in same)
            assert part.size <= limit.largest_copy
        else:
            assert part.size < 2 * limit.wanted


@given(files(), limits())
def test_any_cut(file: tuple[int, list[tuple[int, int]]], limit: Limits) -> None:
    """The parts cover the file, are large enough, hold no changed byte that is copied, and cost less than a whole upload."""
    size, same = file
    found = parts.cut_on(size, same, limit)
    if found:
        check(size, same, limit, found)
        sent = sum(part.size for part in found if not part.copied)
        copies = sum(part.copied for part in found)
        assert sent + copies * limit.worth < size


@given(st.integers(1, 10**13), st.integers(5 * MB, 10**9))
def test_any_plain_cut(size: int, part_size: int) -> None:
    """Without a base the parts are of one size, the last one of what is left."""
    if size // part_size > 10_000:
        size = part_size * 10_000
    found = parts.cut(size, part_size)
    assert sum(part.size for part in found) == size
    assert {part.size for part in found[:-1]} <= {part_size}
    assert not any(part.copied for part in found)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (20_001, [10_000, 10_000, 1]),
        (20_000, [10_000, 10_000]),
        (1, [1]),
    ],
)
def test_plain_cut(size: int, sizes: list[int]) -> None:
    """The last part has what is left, if anything is."""
    assert [part.size for part in parts.cut(size, 10_000)] == sizes


@pytest.mark.parametrize(
    ("size", "same", "sent", "copies"),
    [
        pytest.param(1000 * MB, [(0, 500 * MB), (501 * MB, 1000 * MB)], 5, 2, id="a change in the middle"),
        pytest.param(1000 * MB, [(1 * MB, 1000 * MB)], 5, 1, id="at the beginning"),
        pytest.param(1000 * MB, [(0, 999 * MB)], 1, 1, id="at the end"),
        pytest.param(1100 * MB, [(0, 1000 * MB)], 100, 1, id="an extension"),
        pytest.param(700 * MB, [(0, 700 * MB)], 0, 2, id="cut, or attributes alone"),
        pytest.param(5000 * MB, [(0, 2400 * MB), (2401 * MB, 5000 * MB)], 5, 6, id="copies have a size too"),
        pytest.param(1000 * MB, [(0, 900 * MB), (901 * MB, 908 * MB)], 100, 1, id="a short range is sent along"),
    ],
)
def test_a_changed_file(size: int, same: list[tuple[int, int]], sent: int, copies: int) -> None:
    """What is sent (MB) and how many copies it takes, with B2's own limits."""
    found = parts.cut_on(size, same, B2)
    check(size, same, B2, found)
    assert sum(part.size for part in found if not part.copied) == sent * MB
    assert sum(part.copied for part in found) == copies


@pytest.mark.parametrize(
    ("size", "same"),
    [
        pytest.param(1000 * MB, [], id="nothing is the same"),
        pytest.param(20 * MB, [(0, 16 * MB)], id="a small file"),
        pytest.param(1000 * MB, [(n * 10 * MB, n * 10 * MB + 8 * MB) for n in range(100)], id="changes everywhere"),
    ],
)
def test_a_whole_upload_is_not_dearer(size: int, same: list[tuple[int, int]]) -> None:
    """Where copies would save nothing, there is no cut."""
    assert parts.cut_on(size, same, B2) == []
