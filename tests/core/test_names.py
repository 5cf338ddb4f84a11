"""Which names and keys may be, and what they cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from b2fs.core import names
from b2fs.errors import BadName, NameTooLong


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (b"", BadName), (b".", BadName), (b"..", BadName), (b"\xff", BadName), (b"\xed\xa0\x80", BadName),
        (b"a\nb", BadName), (b"\x7f", BadName), (b"\x00", BadName), (b".bzEmpty", BadName),
        (b"x" * 251, NameTooLong), ("ж".encode() * 126, NameTooLong),
    ],
)  # fmt: skip
def test_name_that_cannot_be(name: bytes, error: type[Exception]) -> None:
    """A new entry whose object B2 would not take, or that is ours, is refused with its errno."""
    with pytest.raises(error):
        names.decode(name)


@pytest.mark.parametrize(
    "name", ["x" * 250, "ж" * 125, "🦊", " a ", "...", ".hidden", "a\\b", "%2F", "-", "\u200b", "\x80"]
)
def test_name_that_can_be(name: str) -> None:
    """Everything else is a name, unescaped."""
    assert names.decode(name.encode()) == name
    assert names.can_be(name.encode())


@given(st.binary(max_size=300))
def test_any_bytes_are_a_name_or_an_error(name: bytes) -> None:
    """Whatever the kernel hands in, decode answers with a usable name or one of its two errors."""
    try:
        text = names.decode(name)
    except (BadName, NameTooLong):
        return
    assert text.encode() == name
    assert "/" in text or names.unusable(text) is None


@pytest.mark.parametrize(
    "key", ["a//b", "/x", "//", "..", "../x", "a/../b", "./x", "a/.", "", "/", "a\x01", "a/\x7f", "s" * 256, "d/" + "s" * 300]
)  # fmt: skip
def test_unusable_key(key: str) -> None:
    """A key that no path can have says why."""
    assert names.unusable(key)


@pytest.mark.parametrize("key", ["a", "a/b", "a/", "d/.bzEmpty", "...", "..a", "s" * 255, "ж/🦊"])
def test_usable_key(key: str) -> None:
    """Markers, odd but possible names, and names up to the kernel's limit can be shown."""
    assert names.unusable(key) is None


def test_can_be_is_about_one_name() -> None:
    """A slash, bytes that are no UTF-8 and impossible segments are in no object's last part."""
    assert not any(map(names.can_be, [b"a/b", b"\xff", b"..", b"", b"a\n", b"x" * 256]))
    assert names.can_be(b"x" * 255)


def test_key_length_counts_the_prefix() -> None:
    """A key may have 1000 bytes with the prefix, not one more."""
    names.check_key("p/", "x" * 998)
    with pytest.raises(NameTooLong):
        names.check_key("p/", "x" * 999)
    with pytest.raises(NameTooLong):
        names.check_key("", "ж" * 501)


def test_header_budget_is_percent_encoded() -> None:
    """Name and fileInfo share 2048 bytes less the reserve, each byte outside the safe set three times its size."""
    limit = names.HEADER_BUDGET - names.HEADER_RESERVE
    assert names.header_size("a/b.txt", {}) == 7
    assert names.header_size("ж", {}) == 6
    assert names.header_size("a", {"k": "v v"}) == 1 + len("x-bz-info-k") + 5
    fits = {"k": "v" * (limit - 1 - len("x-bz-info-k"))}
    names.check_key("", "a", fits)
    with pytest.raises(NameTooLong):
        names.check_key("", "aa", fits)
    with pytest.raises(NameTooLong):
        names.check_key("", "ж" * 400)


@pytest.mark.parametrize(
    ("key", "directory"),
    [
        ("d/.bzEmpty", "d"),
        (".bzEmpty", ""),
        ("d/e/", "d/e"),
        ("d/x", None),
        ("x.bzEmpty", None),
        ("d/.bzEmpty/x", None),
    ],
)
def test_markers(key: str, directory: str | None) -> None:
    """Both forms of a directory's marker are known, and nothing else is one."""
    assert names.marked_directory(key) == directory


@given(st.sampled_from(["", "d", "d/e"]), st.sampled_from(["a", "ж"]))
def test_join_and_split(directory: str, name: str) -> None:
    """split undoes join, and a directory's marker is marked."""
    key = names.join(directory, name)
    assert names.split(key) == (directory, name)
    assert names.marked_directory(names.marker(directory)) == directory
