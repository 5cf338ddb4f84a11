"""Names: which there can be, and that they stay byte for byte what they were."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from tests.posix.support import KINDS, fails, get, put
from tests.posix.system import os

NAMES = (
    "a", "A", "é", unicodedata.normalize("NFD", "é"), "ﬁ", "fi", "файл", "日本語", "🎧", "👩‍👩‍👧", " leading", "trailing ",
    " ", "  ", "...", "..a", ".hidden", "a.", "-", "--help", "~", "a\\b", "a:b", "a*b?", '"quoted"', "'", "`", "$HOME",
    "a%20b", "%", "%2F", "%00", "a+b", "a&b=c", "#", "a;b", "<>", "|", "{}", "[x]", "^",
    "\u00a0", "\u200b", "\u202e", "\ufeff", "\uffff",
    "\U0010ffff", "CON", "nul", "com1.txt", "Thumbs.db", ".DS_Store", "x" * 250, "ж" * 125, "🎧" * 62, ".bzEmpty2", "bzEmpty",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_name(root: Path, kind: str) -> None:
    """Every name is one of its own, and listed as it was given."""
    names = [name for name in NAMES if kind != "socket" or len(name.encode()) < 100]
    for name in names:
        KINDS[kind](name)
    assert sorted(os.listdir()) == sorted(names)
    assert len({os.lstat(name).st_ino for name in names}) == len(names)
    for name in names:
        assert not os.path.lexists(name + "x")
        os.rename(name, "moved")
        os.rename("moved", name)
        (os.rmdir if kind == "dir" else os.unlink)(name)
    assert os.listdir() == []


def test_names_that_differ_little(root: Path) -> None:
    """Case, normal forms and spaces make different files, each with its own content."""
    for name in NAMES:
        put(name, name.encode())
    assert {name: get(name) for name in os.listdir()} == {name: name.encode() for name in NAMES}


@pytest.mark.parametrize(
    "target", ["x", "/", "/abs/olute", "../../..", "a" * 1000, "y/" * 2000 + "z", "ж" * 900, " ", "%2F", "🎧"]
)
def test_link_targets(root: Path, target: str) -> None:
    """A symlink gives back its target byte for byte; its size is the target's length."""
    os.symlink(target, "link")
    assert os.readlink("link") == target
    assert os.lstat("link").st_size == len(target.encode())


def test_too_long(root: Path) -> None:
    """A name of more than 255 bytes, a path or a target of more than 4095, is ENAMETOOLONG for every call."""
    long = "n" * 256
    put("f")
    for call in (os.stat, os.unlink, os.mkdir, os.rmdir, os.mkfifo, os.readlink, put, os.listdir):
        for path in (long, f"{long}/x", "d/" * 2048 + "x", "f/" + "x" * 5000):
            with fails("ENAMETOOLONG", "ENOTDIR") if path.startswith("f/") else fails("ENAMETOOLONG"):
                call(path)  # type: ignore[operator]
    for old, new in (("f", long), (long, "f"), ("f", "d/" * 2048)):
        with fails("ENAMETOOLONG"):
            os.rename(old, new)
    with fails("ENAMETOOLONG"):
        os.symlink("x" * 4096, "l")
    os.symlink("x" * 4095, "l")
    assert os.lstat("l").st_size == 4095


def test_link_loops(root: Path) -> None:
    """Forty links on the way are followed, a loop is ELOOP."""
    put("f")
    os.symlink("f", "0")
    for number in range(1, 39):
        os.symlink(str(number - 1), str(number))
    assert get("38") == b"content"
    os.symlink("38", "39")
    os.symlink("39", "40")
    with fails("ELOOP"):
        get("40")
    os.symlink("two", "one")
    os.symlink("one", "two")
    for call in (os.stat, os.listdir, get, put, lambda path: os.stat(path + "/x"), lambda path: os.truncate(path, 0)):
        with fails("ELOOP"):
            call("one")  # type: ignore[operator]


def test_empty_path(root: Path) -> None:
    """The empty path is ENOENT."""
    for call in (os.stat, os.unlink, os.mkdir, os.rmdir, os.mkfifo, os.readlink, put, os.listdir, os.chdir):
        with fails("ENOENT"):
            call("")  # type: ignore[operator]
