"""Patterns of paths, as settings use them."""

from __future__ import annotations

import pytest

from b2fs.core.policy import Patterns, parse


@pytest.mark.parametrize(
    ("glob", "matching", "others"),
    [
        ("*.json", ["a.json", "d/e/a.json", ".json", "d/Ж.json"], ["a.jsonx", "json", "d.json/a"]),
        ("users/**", ["users/a", "users/a/b"], ["users", "x/users/a", "usersx/a"]),
        ("users/*", ["users/a"], ["users/a/b", "users"]),
        ("**/info.json", ["info.json", "a/info.json", "a/b/info.json"], ["xinfo.json", "a/xinfo.json"]),
        ("a/**/z", ["a/z", "a/b/z", "a/b/c/z"], ["a/bz", "z"]),
        ("?.mp3", ["a.mp3", "d/ж.mp3"], ["ab.mp3", ".mp3"]),
        ("a+(b)[c].d", ["a+(b)[c].d"], ["aab[c].d", "a+(b)c.d"]),
        ("**", ["a", "a/b", "a\nb"], []),
    ],
)
def test_globs(glob: str, matching: list[str], others: list[str]) -> None:
    """`*` and `?` stay within a part, `**` does not, a pattern without '/' is about the last part; nothing else is special."""
    patterns = parse([glob])
    assert [path for path in [*matching, *others] if patterns.match(path)] == matching


def test_one_of_several_is_enough() -> None:
    """Any pattern may match; none never does; as text they are what they were made of."""
    patterns = parse([" *.json ", "users/**"])
    assert patterns.match("x.json") and patterns.match("users/x") and not patterns.match("x")
    assert str(patterns) == "*.json,users/**"
    assert not Patterns().match("x")


@pytest.mark.parametrize("text", ["", " ", "/users"])
def test_bad_patterns(text: str) -> None:
    """An empty or absolute pattern is refused: it would match nothing, and nobody would notice."""
    with pytest.raises(ValueError, match="pattern"):
        parse([text])
