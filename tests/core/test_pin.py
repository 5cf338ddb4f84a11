"""Which versions are pinned, and who is left out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2fs.core import pin
from b2fs.core.pin import Pin, Pins


def test_a_pin_owns_its_blobs() -> None:
    """The whole blob and the chunks of a version, and those of no other one; an odd file id is no exception."""
    pins = Pins(100)
    assert pins.put(7, Pin("id", 10))
    assert pins.put(8, Pin("odd/id", 10))
    assert [pins.owner(blob) for blob in ("id", "id.0", "id.12", "id2", "i")] == [7, 7, 7, None, None]
    assert pins.owner(Pin("odd/id", 10).stem) == 8
    pins.drop(7)
    assert pins.owner("id") is None


def test_a_new_version_takes_the_place_of_the_old_one() -> None:
    """It has the room of that before anybody who was left out; too large, it is left out itself."""
    pins = Pins(100)
    assert pins.put(1, Pin("a1", 90))
    assert not pins.put(2, Pin("b", 20))
    assert pins.put(1, Pin("a2", 100))
    assert pins.owner("a1") is None
    assert pins.look_again() == []
    assert not pins.put(1, Pin("a3", 101))
    assert pins.look_again() == [2]
    assert (pins.bytes, set(pins.kept), set(pins.left_out)) == (20, {2}, {1})


def test_two_inodes_with_one_version() -> None:
    """A file that came anew keeps its version when the inode that had it before goes."""
    pins = Pins(100)
    pins.put(1, Pin("a", 10))
    pins.put(2, Pin("a", 10))
    pins.drop(1)
    assert pins.owner("a") == 2
    assert pins.bytes == 10


def test_everybody_who_was_left_out_gets_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few at each look; those that are too large keep nobody else out; without a loss nobody is looked at."""
    monkeypatch.setattr(pin, "_LOOKS", 3)
    pins = Pins(100)
    pins.put(0, Pin("first", 100))
    for ino in range(1, 10):
        pins.put(ino, Pin(f"large{ino}", 200))
    pins.put(10, Pin("small", 5))
    assert pins.look_again() == []
    pins.drop(0)
    for ino in range(20, 23):
        assert pins.look_again() == []
        assert pins.look_again() == [], "nobody went"
        pins.put(ino, Pin(f"passing{ino}", 1))
        pins.drop(ino)
    assert pins.look_again() == [10]


def test_only_so_many() -> None:
    """Not more are pinned, and not more of the others are remembered."""
    pins = Pins(100, most=2)
    assert [pins.put(ino, Pin(str(ino), 1)) for ino in range(6)] == [True, True, False, False, False, False]
    assert len(pins.left_out) == 2
    assert pins.get(5) is None


@given(
    st.lists(st.tuples(st.sampled_from(["put", "drop", "look"]), st.integers(0, 4), st.integers(1, 60)), max_size=60)
)
def test_the_account_is_right(actions: list[tuple[str, int, int]]) -> None:
    """`bytes` is the sum of what is kept and within the limit; nobody is in both; each kept one owns its version."""
    pins = Pins(100, most=3)
    for action, ino, size in actions:
        if action == "put":
            pins.put(ino, Pin(f"{ino}-{size}", size))
        elif action == "drop":
            pins.drop(ino)
        else:
            pins.look_again()
        assert pins.bytes == sum(each.size for each in pins.kept.values()) <= 100
        assert pins.left_out_bytes == sum(each.size for each in pins.left_out.values())
        assert not pins.kept.keys() & pins.left_out.keys()
        assert {blob: pins.owner(blob) for blob in pins._owners} == {p.stem: ino for ino, p in pins.kept.items()}
