"""The account of the cache."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from b2fs.core.lru import CacheIndex


def test_short_counts_what_is_used_reserved_and_wanted() -> None:
    """Room is short by what passes the limit, never by less than nothing."""
    index = CacheIndex(100, cold_bytes=30, cold_count=3)
    index.add("a", 20)
    index.reserve(25)
    assert (index.used, len(index)) == (50, 4)
    assert index.short(25) == 0
    assert index.short(26) == 1
    index.release(25)
    assert index.short(60) == 10


def test_cold_blob_becomes_hot_by_use() -> None:
    """It is counted once, before and after."""
    index = CacheIndex(100, cold_bytes=30, cold_count=2)
    index.hit("a", 10)
    index.hit("a", 10)
    assert (index.used, index.cold_bytes, index.cold_count, len(index)) == (30, 20, 1, 2)
    index.forget_cold(20)
    assert (index.used, len(index)) == (10, 1)


def test_hot_blobs_go_in_the_order_of_their_last_use() -> None:
    """oldest_hot() takes the one out that was not used for the longest time."""
    index = CacheIndex(100)
    for name in "abc":
        index.add(name, 1)
    index.hit("a", 1)
    assert index.hot_names() == ["b", "c", "a"]
    assert [index.oldest_hot() for _ in range(4)] == [("b", 1), ("c", 1), ("a", 1), None]
    assert index.used == 0


def test_adding_again_replaces() -> None:
    """A blob that is added with another size is counted with that."""
    index = CacheIndex(100)
    index.add("a", 10)
    index.add("a", 30)
    assert (index.used, len(index)) == (30, 1)
    index.forget("a")
    index.forget("a")
    assert (index.used, len(index)) == (0, 0)


def test_kept_blobs_are_in_no_order() -> None:
    """Neither the hot ones nor the cold ones have them; the last to come goes first where all else is gone."""
    index = CacheIndex(100, cold_bytes=30, cold_count=2)
    index.add("a", 1)
    index.add("b", 2)
    index.keep("a", 1)
    index.keep("cold", 10)
    index.add("c", 4, kept=True)
    index.hit("a", 1)
    assert (index.used, index.kept_bytes, index.cold_bytes, len(index)) == (37, 15, 20, 5)
    assert index.hot_names() == ["b"]
    assert [index.is_kept(name) for name in ("a", "b", "c", "cold")] == [True, False, True, True]
    index.unkeep("a")
    index.unkeep("b")
    assert index.hot_names() == ["b", "a"]
    assert [index.last_kept() for _ in range(3)] == [("c", 4), ("cold", 10), None]
    assert (index.used, index.kept_bytes, len(index)) == (23, 0, 3)


_ACTIONS = st.sampled_from(["add", "hit", "keep", "unkeep", "forget", "oldest", "last"])


@given(st.lists(st.tuples(_ACTIONS, st.sampled_from("abcd")), max_size=60))
def test_account_equals_the_blobs(actions: list[tuple[str, str]]) -> None:
    """Whatever happens, `used` is the sum of the sizes of what is there, of an earlier run or of this one."""
    sizes = {"a": 1, "b": 20, "c": 300, "d": 4000}
    here = {"c": 300, "d": 4000}
    cold = {"c", "d"}
    kept = set[str]()
    index = CacheIndex(10_000, cold_bytes=4300, cold_count=2)
    for action, name in actions:
        if action == "add" and name not in here:
            index.add(name, sizes[name])
            here[name] = sizes[name]
        elif action == "hit" and name in here:
            index.hit(name, sizes[name])
            cold.discard(name)
        elif action == "keep" and name in here:
            index.keep(name, sizes[name])
            cold.discard(name)
            kept.add(name)
        elif action == "unkeep":
            index.unkeep(name)
            kept.discard(name)
        elif action == "forget" and name in here:
            index.forget_cold(sizes[name]) if name in cold else index.forget(name)
            cold.discard(name)
            kept.discard(name)
            del here[name]
        elif action == "oldest" and (oldest := index.oldest_hot()) is not None:
            del here[oldest[0]]
        elif action == "last" and (last := index.last_kept()) is not None:
            kept.remove(last[0])
            del here[last[0]]
        assert {blob for blob in here if index.is_kept(blob)} == kept
        assert set(index.hot_names()) == set(here) - cold - kept
        assert index.kept_bytes == sum(sizes[blob] for blob in kept)
        assert index.used == sum(here.values())
        assert len(index) == len(here)
        assert {blob for blob in here if index.is_hot(blob)} == set(here) - cold
