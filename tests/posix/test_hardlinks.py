"""Hard links: one file under several names."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path

import pytest

from tests.posix.support import KINDS, OLD_NS, OTHER, OWNER, RENAME_EXCHANGE, fails, get, opened, put, renameat2, user
from tests.posix.system import os


def test_link_is_the_same_file(root: Path) -> None:
    """Two names, one number, one content, one set of attributes, two links."""
    put("a")
    os.mkdir("d")
    os.link("a", "d/b")
    one, other = os.stat("a"), os.stat("d/b")
    assert (one.st_ino, one.st_nlink, other.st_nlink) == (other.st_ino, 2, 2)
    put("d/b", b"changed", mode=0o600)
    os.utime("a", ns=(OLD_NS, OLD_NS))
    assert get("a") == b"changed"
    found = os.stat("d/b")
    assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o600, OLD_NS)
    os.truncate("a", 3)
    assert get("d/b") == b"cha" and os.stat("d/b").st_size == 3


def test_names_come_and_go(root: Path) -> None:
    """The file stays until the last name goes; the count follows, and so does the ctime."""
    put("a")
    before = os.stat("a")
    names = [f"n{number}" for number in range(20)]
    for number, name in enumerate(names):
        os.link("a" if number == 0 else names[number - 1], name)
        assert os.stat("a").st_nlink == number + 2
    after = os.stat("a")
    assert after.st_ctime_ns > before.st_ctime_ns and after.st_mtime_ns == before.st_mtime_ns
    os.unlink("a")
    for left, name in zip(range(20, 0, -1), names, strict=True):
        assert (os.stat(name).st_nlink, get(name)) == (left, b"content")
        os.unlink(name)
    assert os.listdir() == []


def test_unlinked_name_changes_ctime(root: Path) -> None:
    """When one of two names goes, the other shows a new ctime and the old mtime."""
    put("a")
    os.link("a", "b")
    os.utime("a", ns=(OLD_NS, OLD_NS))
    before = os.stat("b")
    os.unlink("a")
    after = os.stat("b")
    assert after.st_ctime_ns > before.st_ctime_ns and after.st_mtime_ns == OLD_NS


def test_open_handle_sees_all_names(root: Path) -> None:
    """A handle opened by one name sees what another writes, and fstat counts the names."""
    put("a", b"0123456789")
    os.link("a", "b")
    with opened("a") as fd, opened("b") as other:
        os.pwrite(other, b"X", 5)
        assert os.pread(fd, 10, 0) == b"01234X6789"
        os.unlink("a")
        assert os.fstat(fd).st_nlink == 1
        os.unlink("b")
        assert os.fstat(other).st_nlink == 0
        os.pwrite(fd, b"Y", 6)
        assert os.pread(other, 10, 0) == b"01234XY789"


@pytest.mark.kernel("maps")
def test_map_sees_all_names(root: Path) -> None:
    """A map of a file shows what is written by another name."""
    put("a", b"0123456789")
    os.link("a", "b")
    with opened("a") as fd, mmap.mmap(fd, 10) as area, opened("b") as other:
        os.pwrite(other, b"X", 5)
        assert area[4:7] == b"4X6"


@pytest.mark.parametrize("rename", [os.rename, os.replace])
def test_rename_onto_another_name_of_the_file(root: Path, rename: object) -> None:
    """POSIX: nothing happens, both names stay."""
    put("a")
    os.mkdir("d")
    os.link("a", "b")
    os.link("a", "d/c")
    for new in ("b", "d/c", "a"):
        rename("a", new)  # type: ignore[operator]
    assert sorted(os.listdir()) == ["a", "b", "d"] and os.stat("a").st_nlink == 3


def test_names_are_moved_on_their_own(root: Path) -> None:
    """A rename, an exchange and a replacement of one name leave the others."""
    put("a", b"a")
    put("x", b"x")
    os.link("a", "b")
    os.rename("b", "c")
    assert os.stat("c").st_ino == os.stat("a").st_ino
    renameat2("c", "x", RENAME_EXCHANGE)
    assert (get("c"), get("x"), get("a")) == (b"x", b"a", b"a")
    os.rename("c", "x")
    assert (get("x"), get("a"), os.stat("a").st_nlink) == (b"x", b"a", 1)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dir"])
def test_every_kind_but_directories(root: Path, kind: str) -> None:
    """Files, symlinks, FIFOs, sockets and device nodes have further names; a link to a symlink is to the symlink."""
    KINDS[kind]("a")
    os.link("a", "b", follow_symlinks=False)
    assert os.lstat("b").st_ino == os.lstat("a").st_ino
    assert os.lstat("a").st_nlink == 2
    before = os.lstat("a")
    os.unlink("a")
    after = os.lstat("b")
    assert (after.st_mode, after.st_rdev, after.st_nlink) == (before.st_mode, before.st_rdev, 1)


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("d", "x", "EPERM"),
        (".", "x", "EPERM"),
        ("f", "f", "EEXIST"),
        ("f", "d", "EEXIST"),
        ("f", "dangling", "EEXIST"),
        ("f", "none/x", "ENOENT"),
        ("f", "f/x", "ENOTDIR"),
        ("none", "x", "ENOENT"),
        ("f/x", "x", "ENOTDIR"),
        ("f", "x/", "ENOENT"),
        ("f", "n" * 256, "ENAMETOOLONG"),
        ("f", "", "ENOENT"),
        ("", "x", "ENOENT"),
        ("loop/x", "x", "ELOOP"),
    ],
)
def test_link_refuses(root: Path, old: str, new: str, error: str) -> None:
    """link's errnos; nothing changes."""
    os.mkdir("d")
    put("f")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    before = sorted(os.listdir())
    with fails(error):
        os.link(old, new)
    assert sorted(os.listdir()) == before and os.stat("f").st_nlink == 1


def test_who_may_link(root: Path) -> None:
    """Linking needs write permission for the directory, and is possible for the file's owner."""
    put("f")
    os.chown("f", OWNER, OWNER)
    os.mkdir("open")
    os.chmod("open", 0o777)
    with user(OWNER):
        with fails("EACCES"):
            os.link("f", "x")
        os.link("f", "open/x")
        assert os.listdir("open") == ["x"]


def test_set_id_bits_go_for_all_names(root: Path) -> None:
    """A write by a stranger clears the bits, and every name shows it."""
    put("a", mode=0o666)
    os.link("a", "b")
    os.chmod("a", 0o6777)
    with user(OTHER), opened("b") as fd:
        os.write(fd, b"X")
    assert stat.S_IMODE(os.stat("a").st_mode) == 0o777
