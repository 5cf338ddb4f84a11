"""What a listing tells us that we did not know."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from b2fs.core.bucket import Version
from b2fs.core.change import ObjectRow
from b2fs.core.merge import News, compare

BEGAN = 10


def _listed(file_id: str, uploaded_ms: int, key: str = "k") -> Version:
    return Version(key, file_id, 1, "s", uploaded_ms)


def _known(file_id: str, uploaded_ms: int, generation: int = 5, key: str = "k") -> ObjectRow:
    return ObjectRow(key, file_id, 1, "s", uploaded_ms, "", generation)


def _compare(row: ObjectRow | None, version: Version | None) -> News:
    return compare({row.key: row} if row else {}, [version] if version else [], BEGAN)


def test_new_object() -> None:
    """A key that we know nothing of is news."""
    assert _compare(None, _listed("a", 1)) == News(changed=[_listed("a", 1)])


def test_known_version_is_no_news() -> None:
    """The same file id, whatever else is said."""
    assert _compare(_known("a", 5), _listed("a", 5)) == News()


def test_newer_version_is_news_and_an_older_one_is_not() -> None:
    """B2's clock decides; a listing that shows what was before our own write is stale."""
    assert _compare(_known("a", 5), _listed("b", 6)).changed
    assert _compare(_known("a", 5), _listed("b", 4)) == News()


def test_tie_between_versions_believes_the_listing() -> None:
    """Two versions of one millisecond: the listing knows which is on top."""
    assert _compare(_known("a", 5), _listed("b", 5)).changed


def test_hidden_key_comes_back_only_by_a_newer_version() -> None:
    """What we hid stays hidden for a stale listing, and in a tie; a later upload of somebody else is news."""
    assert _compare(_known("", 5), _listed("a", 4)) == News()
    assert _compare(_known("", 5), _listed("a", 5)) == News()
    assert _compare(_known("", 5), _listed("a", 6)).changed


def test_what_we_wrote_after_the_listing_began_wins() -> None:
    """Our row is newer than a listing that was asked for before it, whatever the clocks say."""
    for row in (_known("a", 5, BEGAN), _known("", 5, BEGAN), _known("a", 5, BEGAN + 1)):
        assert _compare(row, _listed("b", 9)) == News()
        assert _compare(row, None) == News()


def test_missing_object() -> None:
    """Known and not listed is missing; a tombstone is not."""
    assert _compare(_known("a", 5), None) == News(missing=[_known("a", 5)])
    assert _compare(_known("", 5), None) == News()


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.tuples(st.sampled_from(["", "1", "2"]), st.integers(1, 3), st.integers(9, 11))
    ),
    st.dictionaries(st.sampled_from("abc"), st.tuples(st.sampled_from(["1", "2"]), st.integers(1, 3))),
)
def test_news_are_disjoint_and_of_old_rows_only(
    known: dict[str, tuple[str, int, int]], listed: dict[str, tuple[str, int]]
) -> None:
    """No key is both changed and missing, missing ones are not listed, and no row of ours that is newer is touched."""
    rows = {key: _known(file_id, ms, generation, key) for key, (file_id, ms, generation) in known.items()}
    news = compare(rows, [_listed(file_id, ms, key) for key, (file_id, ms) in listed.items()], BEGAN)
    changed, missing = {version.key for version in news.changed}, {row.key for row in news.missing}
    assert not changed & missing
    assert changed <= set(listed)
    assert not missing & set(listed)
    assert all(rows[key].generation < BEGAN for key in (changed | missing) & set(rows))
    assert set(listed) - set(rows) <= changed
