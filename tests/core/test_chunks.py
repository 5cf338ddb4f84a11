"""How versions are cut into blobs."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from b2fs.core import chunks

SIZES = st.one_of(
    st.integers(1, 10**13), st.sampled_from([1, chunks.CHUNK - 1, chunks.CHUNK, chunks.CHUNK + 1, 2 * chunks.CHUNK])
)


@given(SIZES.filter(lambda size: size < 10**10))
def test_chunks_cover_the_version_once(size: int) -> None:
    """One after the other, none empty, none longer than a chunk, the last one ending at the end."""
    number = chunks.count(size)
    first, last = chunks.span(size, 0), chunks.span(size, number - 1)
    assert first[0] == 0
    assert sum(last) == size
    assert 0 < last[1] <= chunks.CHUNK
    if number > 1:
        assert chunks.span(size, number - 2)[0] + chunks.CHUNK == last[0]


def test_border_sizes() -> None:
    """An empty version counts as one chunk; exactly one chunk is small, one byte more is not."""
    assert chunks.count(0) == 1
    assert chunks.is_small(chunks.CHUNK)
    assert chunks.count(chunks.CHUNK) == 1
    assert not chunks.is_small(chunks.CHUNK + 1)
    assert chunks.count(chunks.CHUNK + 1) == 2


@given(st.text(max_size=300))
def test_blob_names_are_safe_file_names(file_id: str) -> None:
    """Whatever an id looks like, its blobs' names have no slash and no dot but the one before the number."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,200}", chunks.whole(file_id))
    assert chunks.part(file_id, 3) == chunks.whole(file_id) + ".3"


@given(st.text(max_size=20), st.text(max_size=20))
def test_blob_names_differ(one: str, other: str) -> None:
    """Different ids have different blobs."""
    assert (chunks.whole(one) == chunks.whole(other)) == (one == other)
