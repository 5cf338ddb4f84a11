"""Directories: link counts, listings that go on while entries come and go, removal, moves of whole trees."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.posix.support import (
    GROUP,
    KINDS,
    OTHER,
    OWNER,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Directory,
    fails,
    get,
    opened,
    outcome,
    put,
    renameat2,
    user,
)
from tests.posix.system import os


def links(*paths: str) -> list[int]:
    return [os.stat(path).st_nlink for path in paths]


# ---------------------------------------------------------------- link counts


def test_link_counts(root: Path) -> None:
    """A directory has two links and one for each subdirectory, whatever else comes and goes."""
    os.mkdir("d")
    os.mkdir("e")
    assert links(".", "d", "e") == [4, 2, 2]
    os.mkdir("d/sub")
    put("d/file")
    os.symlink("sub", "d/link")
    assert links("d") == [3]
    os.rename("d/sub", "e/sub")
    assert links("d", "e") == [2, 3]
    os.rename("e/sub", "e/other")
    assert links("e") == [3]
    os.mkdir("d/empty")
    os.rename("e/other", "d/empty")
    assert links("d", "e") == [3, 2]
    renameat2("d/empty", "e", RENAME_EXCHANGE)
    assert links(".", "d", "e") == [4, 3, 2]
    renameat2("d/file", "e", RENAME_EXCHANGE)
    assert links(".", "d") == [3, 4]
    os.rmdir("d/empty")
    assert links("d") == [3]


@pytest.mark.parametrize("how", ["rmdir", "rename over", "exchange"])
def test_removed_directory_that_is_open(root: Path, how: str) -> None:
    """A removed directory has no links and no entries, and nothing can be made in it."""
    os.mkdir("d")
    os.mkdir("new")
    with opened("d", os.O_RDONLY) as fd:
        if how == "rmdir":
            os.rmdir("d")
        elif how == "rename over":
            os.rename("new", "d")
        else:
            renameat2("new", "d", RENAME_EXCHANGE)
            os.rmdir("new")
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        for call in (
            lambda: os.mkdir("x", dir_fd=fd),
            lambda: os.symlink("x", "x", dir_fd=fd),
            lambda: os.mkfifo("x", dir_fd=fd),
            lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd),
            lambda: os.rename("new" if how == "rmdir" else "d", "x", dst_dir_fd=fd),
            lambda: os.stat("x", dir_fd=fd),
            lambda: os.unlink("x", dir_fd=fd),
        ):
            with fails("ENOENT"):
                call()
        os.fchmod(fd, 0o700)
        os.fsync(fd)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o700


# ---------------------------------------------------------------- listings


def test_dots(root: Path) -> None:
    """`.` and `..` are listed with their numbers; `..` follows a move."""
    os.makedirs("a/b")
    os.mkdir("c")
    with Directory("a/b") as stream:
        entries = {name: number for name, number, _ in iter(stream.read, None)}  # type: ignore[misc]
    assert entries == {".": os.stat("a/b").st_ino, "..": os.stat("a").st_ino}
    os.rename("a/b", "c/b")
    assert os.stat("c/b/..").st_ino == os.stat("c").st_ino
    with Directory("c/b") as stream:
        entries = {name: number for name, number, _ in iter(stream.read, None)}  # type: ignore[misc]
    assert entries[".."] == os.stat("c").st_ino


def test_types_and_numbers(root: Path) -> None:
    """A listing says the type and number that stat says."""
    for name, make in KINDS.items():
        make(name)
    with Directory(".") as stream:
        found = {name: (number, kind) for name, number, kind in iter(stream.read, None)}  # type: ignore[misc]
    expected = {name: (os.lstat(name).st_ino, stat.S_IFMT(os.lstat(name).st_mode) >> 12) for name in KINDS}
    assert {name: found[name] for name in KINDS} == expected


@pytest.mark.parametrize("count", [0, 1, 2, 50, 1000])
def test_positions(root: Path, count: int) -> None:
    """seekdir goes back to each position that telldir gave, in any order."""
    os.mkdir("d")
    for number in range(count):
        os.mkfifo(f"d/{number:04}-a-name-that-is-long-enough-to-need-more-than-one-buffer")
    with Directory("d") as stream:
        seen = []
        while True:
            position, entry = stream.tell(), stream.read()
            if entry is None:
                break
            seen.append((position, entry[0]))
        assert len({name for _, name in seen}) == len(seen) == count + 2
        for position, name in seen[:: max(1, count // 20)][::-1]:
            stream.seek(position)
            entry = stream.read()
            assert entry is not None and entry[0] == name
        stream.rewind()
        assert stream.names() == [name for _, name in seen]


@pytest.mark.parametrize("step", [1, 7, 100])
def test_removal_while_listing(root: Path, step: int) -> None:
    """Each entry that stays is listed exactly once while others are removed, and removing what was read removes all."""
    names = {f"{number:04}-{'x' * 60}" for number in range(700)}
    for name in names:
        os.mkfifo(name)
    seen: list[str] = []
    with Directory(".") as stream:
        while entry := stream.read():
            seen.append(entry[0])
            if len(seen) % step == 0:
                for name in seen[-step:]:
                    if name not in (".", ".."):
                        os.unlink(name)
    assert len(seen) == len(set(seen))
    assert set(seen) == names | {".", ".."}
    if step == 1:
        assert os.listdir() == []


def test_creation_while_listing(root: Path) -> None:
    """Entries that were there before are listed exactly once while others come and are renamed."""
    names = [f"{number:04}-{'x' * 60}" for number in range(400)]
    for name in names:
        os.mkfifo(name)
    seen: list[str] = []
    with Directory(".") as stream:
        while entry := stream.read():
            seen.append(entry[0])
            if len(seen) < 300:
                os.mkfifo(f"new-{len(seen)}")
        assert len(seen) == len(set(seen))
        assert {name for name in seen if not name.startswith("new")} == {*names, ".", ".."}
        stream.rewind()
        assert set(stream.names()) == set(os.listdir()) | {".", ".."}


def test_names_after_rewind(root: Path) -> None:
    """rewinddir looks at the directory as it is then."""
    put("a")
    with Directory(".") as stream:
        assert sorted(stream.names()) == [".", "..", "a"]
        put("b")
        os.unlink("a")
        stream.rewind()
        assert sorted(stream.names()) == [".", "..", "b"]


# ---------------------------------------------------------------- removal


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("d/.", "EINVAL"),
        (".", "EINVAL"),
        ("d/sub/..", "ENOTEMPTY"),
        ("d", "ENOTEMPTY"),
        ("f", "ENOTDIR"),
        ("f/", "ENOTDIR"),
        ("l", "ENOTDIR"),
        ("l/", "ENOTDIR"),
        ("none", "ENOENT"),
        ("none/x", "ENOENT"),
        ("f/x", "ENOTDIR"),
        ("/", "EBUSY"),
    ],
)
def test_rmdir_refuses(root: Path, path: str, error: str) -> None:
    """rmdir's errnos; nothing changes."""
    os.makedirs("d/sub")
    put("f")
    os.symlink("d", "l")
    with fails(error):
        os.rmdir(path)
    assert sorted(os.listdir()) == ["d", "f", "l"] and os.listdir("d") == ["sub"]


@pytest.mark.parametrize(
    ("path", "error"), [("d", "EISDIR"), ("d/", "EISDIR"), ("f/", "ENOTDIR"), ("none", "ENOENT"), (".", "EISDIR")]
)
def test_unlink_refuses(root: Path, path: str, error: str) -> None:
    """unlink's errnos; nothing changes."""
    os.mkdir("d")
    put("f")
    with fails(error):
        os.unlink(path)
    assert sorted(os.listdir()) == ["d", "f"]


@pytest.mark.parametrize("path", ["d", "d/", "f", "l", "dangling", "."])
def test_mkdir_on_what_is_there(root: Path, path: str) -> None:
    """mkdir over anything is EEXIST, a dangling link too."""
    os.mkdir("d")
    put("f")
    os.symlink("d", "l")
    os.symlink("none", "dangling")
    with fails("EEXIST"):
        os.mkdir(path)


def test_deep_tree(root: Path) -> None:
    """A tree forty levels deep is made, walked, moved, and removed from the bottom."""
    os.makedirs("/".join(["t"] + ["d"] * 40))
    put("/".join(["t"] + ["d"] * 40 + ["f"]))
    os.rename("t", "u")
    assert get("/".join(["u"] + ["d"] * 40 + ["f"])) == b"content"
    removed = 0
    for directory, directories, files in os.walk("u", topdown=False):
        for name in files:
            os.unlink(os.path.join(directory, name))
        for name in directories:
            os.rmdir(os.path.join(directory, name))
            removed += 1
    os.rmdir("u")
    assert removed == 40


# ---------------------------------------------------------------- moves


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("a", "a/b", "EINVAL"),
        ("a", "a/x", "EINVAL"),
        ("a", "a/b/c/x", "EINVAL"),
        ("a/b/c", "a", "ENOTEMPTY"),
        ("a/b", "a", "ENOTEMPTY"),
        ("a/b/c", "a/b", "ENOTEMPTY"),
        ("a", "full", "ENOTEMPTY"),
        ("a", "f", "ENOTDIR"),
        ("f", "a", "EISDIR"),
        ("f", "empty", "EISDIR"),
        ("l", "empty", "EISDIR"),
        ("a", "l", "ENOTDIR"),
        ("a", "none/x", "ENOENT"),
        ("none", "x", "ENOENT"),
        ("f/x", "y", "ENOTDIR"),
        ("a", "f/x", "ENOTDIR"),
        ("f", "x/", "ENOTDIR"),
        ("f/", "x", "ENOTDIR"),
        ("a/.", "x", "EBUSY"),
        ("a", "empty/.", "EBUSY"),
        ("a/..", "x", "EBUSY"),
        (".", "x", "EBUSY"),
        ("", "x", "ENOENT"),
        ("f", "", "ENOENT"),
    ],
)
def test_rename_refuses(root: Path, old: str, new: str, error: str) -> None:
    """rename's errnos; nothing changes."""
    os.makedirs("a/b/c")
    os.mkdir("empty")
    os.makedirs("full/x")
    put("f")
    os.symlink("empty", "l")
    before = sorted(os.walk("."))
    with fails(error):
        os.rename(old, new)
    assert sorted(os.walk(".")) == before


@pytest.mark.parametrize(
    ("old", "new", "flags", "error"),
    [
        ("a", "a/b", RENAME_EXCHANGE, "EINVAL"),
        ("a/b", "a", RENAME_EXCHANGE, "EINVAL"),
        ("a", "none", RENAME_EXCHANGE, "ENOENT"),
        ("none", "a", RENAME_EXCHANGE, "ENOENT"),
        ("f", "f", RENAME_NOREPLACE, "EEXIST"),
        ("f", "g", RENAME_NOREPLACE, "EEXIST"),
        ("f", "a", RENAME_NOREPLACE, "EEXIST"),
        ("f", "dangling", RENAME_NOREPLACE, "EEXIST"),
        ("f", "g", RENAME_EXCHANGE | RENAME_NOREPLACE, "EINVAL"),
        ("f", "g", 1 << 10, "EINVAL"),
    ],
)
def test_rename_with_flags_refuses(root: Path, old: str, new: str, flags: int, error: str) -> None:
    """renameat2's errnos; nothing changes."""
    os.makedirs("a/b")
    put("f")
    put("g")
    os.symlink("nowhere", "dangling")
    before = sorted(os.walk("."))
    with fails(error):
        renameat2(old, new, flags)
    assert sorted(os.walk(".")) == before


def test_exchange(root: Path) -> None:
    """RENAME_EXCHANGE swaps a file with a whole directory; both keep their numbers and open handles."""
    os.makedirs("d/sub")
    put("d/in", b"in")
    put("f", b"file")
    numbers = os.stat("d").st_ino, os.stat("f").st_ino
    with opened("f") as fd:
        renameat2("d", "f", RENAME_EXCHANGE)
        os.write(fd, b"FI")
    assert (os.stat("f").st_ino, os.stat("d").st_ino) == numbers
    assert sorted(os.listdir("f")) == ["in", "sub"] and get("d") == b"FIle" and get("f/in") == b"in"
    renameat2("f", "f", RENAME_EXCHANGE)
    assert get("f/in") == b"in"


def test_noreplace(root: Path) -> None:
    """RENAME_NOREPLACE moves to a name that is free."""
    put("f")
    renameat2("f", "g", RENAME_NOREPLACE)
    assert os.listdir() == ["g"]


def test_rename_keeps_what_it_moves(root: Path) -> None:
    """A moved directory is the same one: number, mode, times, and everything in it."""
    os.makedirs("a/b")
    put("a/b/f", b"x")
    os.chmod("a", 0o751)
    os.utime("a", ns=(5, 6))
    before, inner = os.stat("a"), os.stat("a/b/f")
    os.rename("a", "z")
    after = os.stat("z")
    assert (after.st_ino, after.st_mode, after.st_mtime_ns) == (before.st_ino, before.st_mode, before.st_mtime_ns)
    assert os.stat("z/b/f").st_ino == inner.st_ino
    with fails("ENOENT"):
        os.stat("a/b/f")


def test_working_directory_is_moved_and_removed(root: Path) -> None:
    """A working directory goes with a rename; when it is removed, relative names are ENOENT."""
    os.makedirs("a/b")
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir("a/b")
        os.rename("../../a", "../../z")
        put("f")
        assert os.getcwd().endswith("/z/b")
        os.unlink("f")
        os.rmdir("../b")
        assert outcome(os.getcwd) == "ENOENT"
        assert outcome(lambda: put("f")) == "ENOENT"
        assert os.listdir(".") == []
    finally:
        os.fchdir(here)
        os.close(here)
    assert os.listdir("z") == []


# ---------------------------------------------------------------- groups and owners


@pytest.mark.parametrize(
    "make", [os.mkdir, put, lambda path: os.symlink("x", path), os.mkfifo], ids=["mkdir", "put", "symlink", "mkfifo"]
)
def test_set_group_id_of_a_directory(root: Path, make: Callable[[str], object]) -> None:
    """What is made in a setgid directory has its group, a directory also the bit; elsewhere the caller's group."""
    os.mkdir("d")
    os.chown("d", OWNER, GROUP)
    os.chmod("d", 0o2777)
    os.mkdir("plain")
    os.chmod("plain", 0o777)
    with user(OTHER):
        make("d/x")
        make("plain/x")
    for path, gid in (("d/x", GROUP), ("plain/x", OTHER)):
        found = os.lstat(path)
        assert (found.st_uid, found.st_gid) == (OTHER, gid)
        inherits = path == "d/x" and stat.S_ISDIR(found.st_mode)
        assert bool(found.st_mode & stat.S_ISGID) == inherits


def test_set_group_id_needs_the_group(root: Path) -> None:
    """Who is not in a file's group cannot make it setgid, by chmod or by creating it in a setgid directory."""
    os.mkdir("d")
    os.chown("d", OWNER, GROUP)
    os.chmod("d", 0o2777)
    with user(OTHER):
        os.close(os.open("d/f", os.O_CREAT | os.O_WRONLY, 0o2777))
        assert os.stat("d/f").st_mode & stat.S_ISGID == 0
        os.chmod("d/f", 0o2755)
        assert os.stat("d/f").st_mode & 0o7777 == 0o755
    with user(OTHER, groups=(GROUP,)):
        os.chmod("d/f", 0o2755)
    assert os.stat("d/f").st_mode & 0o7777 == 0o2755


@pytest.mark.parametrize("who", [OWNER, GROUP, OTHER])
@pytest.mark.parametrize(
    "call", [os.unlink, lambda path: os.rename(path, "sticky/moved"), lambda path: os.rename("sticky/mine", path)]
)
def test_sticky(root: Path, call: Callable[[str], object], who: int) -> None:
    """In a sticky directory a name goes only by the hand of its file's owner, the directory's, or root."""
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    put("sticky/f", mode=0o666)
    os.chown("sticky/f", OWNER, GROUP)
    put("sticky/mine", mode=0o666)
    os.chown("sticky/mine", who, who)
    with user(who):
        if who == OWNER:
            call("sticky/f")
        else:
            with fails("EPERM"):
                call("sticky/f")
    assert outcome(lambda: call("sticky/f")) in (None, "ENOENT")


@pytest.mark.parametrize(("uid", "gid"), [(OTHER, -1), (-1, OTHER), (-1, GROUP), (OWNER, GROUP), (OWNER, -1), (-1, -1)])
@pytest.mark.parametrize("who", [OWNER, OTHER])
def test_chown_rights(root: Path, who: int, uid: int, gid: int) -> None:
    """Only root gives files away; the owner may give one to a group that he is in."""
    put("f", mode=0o666)
    os.chown("f", OWNER, OWNER)
    with user(who, groups=(GROUP,)):
        result = outcome(lambda: os.chown("f", uid, gid))
    may = (uid, gid) == (-1, -1) or (who == OWNER and uid != OTHER and gid != OTHER)
    assert result == (None if may else "EPERM")
    assert os.stat("f").st_gid == (GROUP if may and gid == GROUP else OWNER)


@pytest.mark.parametrize(("mode", "left"), [(0o6777, 0o777), (0o4755, 0o755), (0o2755, 0o755), (0o1777, 0o1777)])
@pytest.mark.parametrize("who", [0, OWNER])
def test_chown_clears_set_id_bits(root: Path, mode: int, left: int, who: int) -> None:
    """A chown of a file takes its set-id bits away, root's too; of a directory it does not."""
    put("f")
    os.mkdir("d")
    for name in ("f", "d"):
        os.chown(name, OWNER, OWNER)
        os.chmod(name, mode)
        if who:
            with user(who, groups=(GROUP,)):
                os.chown(name, -1, GROUP)
        else:
            os.chown(name, OTHER, GROUP)
    assert os.stat("f").st_mode & 0o7777 == left
    assert os.stat("d").st_mode & 0o7777 == mode


def test_chown_to_nobody_else_clears_set_id_bits(root: Path) -> None:
    """Also where neither owner nor group is named."""
    put("f")
    os.chmod("f", 0o6777)
    os.chown("f", -1, -1)
    assert os.stat("f").st_mode & 0o7777 == 0o777
