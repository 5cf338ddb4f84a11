"""The comparison of two trees sees every difference that it promises to see."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tree import compare, tree

OLD_NS, CLOCK_NS = 1_000_000_000_123_456_789, 1_500_000_000_000_000_000


def make(directory: Path) -> Path:
    """A small tree with one of each kind."""
    (directory / "folder" / "empty").mkdir(parents=True)
    (directory / "folder" / "file").write_bytes(b"bytes")
    (directory / "folder" / "file").chmod(0o640)
    os.utime(directory / "folder" / "file", ns=(OLD_NS, OLD_NS))
    (directory / "link").symlink_to("folder/file")
    os.utime(directory / "link", ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    return directory


def test_equal_trees_have_no_difference(tmp_path: Path) -> None:
    """Two trees made alike are equal, though their directories have different times."""
    assert compare(tree(make(tmp_path / "a")), tree(make(tmp_path / "b"))) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda b: (b / "folder" / "empty").rmdir(), "folder/empty: only in the first, a dir"),
        (lambda b: (b / "more").touch(), "more: only in the second, a file"),
        (lambda b: (b / "folder" / "file").chmod(0o600), "folder/file: mode 0640 and 0600"),
        (lambda b: (b / "folder").chmod(0o700), "folder: mode 0755 and 0700"),
        (lambda b: rewrite(b / "folder" / "file", b"BYTES"), "folder/file: sha1 "),
        (lambda b: rewrite(b / "folder" / "file", b"bytes and more"), "folder/file: size 5 and 14"),
        (lambda b: relink(b / "link", "folder"), "link: target folder/file and folder"),
        (
            lambda b: os.utime(b / "folder" / "file", ns=(OLD_NS, OLD_NS + 1)),
            f"folder/file: mtime_ns {OLD_NS} and {OLD_NS + 1}",
        ),
    ],
)
def test_each_difference_is_named(tmp_path: Path, change: Callable[[Path], object], difference: str) -> None:
    """One change in one of two equal trees gives a line that says what it is."""
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    (a / "folder").chmod(0o755)
    (b / "folder").chmod(0o755)
    change(b)
    assert compare(tree(a), tree(b))[0].startswith(difference)


def test_two_times_of_the_clock_are_equal_and_an_old_one_is_not(tmp_path: Path) -> None:
    """From `clock_ns` on times are not compared with each other; an old time that became a new one is a difference."""
    a, b = make(tmp_path / "a"), make(tmp_path / "b")
    for directory, later in ((a, 0), (b, 7)):
        os.utime(directory / "folder" / "file", ns=(0, CLOCK_NS + later))
    assert compare(tree(a), tree(b), clock_ns=CLOCK_NS) == []
    assert len(compare(tree(a), tree(b))) == 1
    assert compare(tree(a), tree(b), mtime=False) == []
    os.utime(a / "folder" / "file", ns=(0, OLD_NS))
    assert len(compare(tree(a), tree(b), clock_ns=CLOCK_NS)) == 1


def test_skip_leaves_out_a_directory(tmp_path: Path) -> None:
    """A skipped directory is not looked into."""
    assert sorted(tree(make(tmp_path), skip={"folder"})) == ["link"]


def rewrite(path: Path, content: bytes) -> None:
    """New bytes, old time."""
    path.write_bytes(content)
    os.utime(path, ns=(OLD_NS, OLD_NS))


def relink(path: Path, target: str) -> None:
    """Another target, old time."""
    path.unlink()
    path.symlink_to(target)
    os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
