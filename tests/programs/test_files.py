"""The everyday tools on files: cp, tar, zip, sed, perl, mv, find, du."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from tests.mount.hosts import Host
from tests.programs.support import (
    KEEPS_LINKS,
    KEEPS_XATTRS,
    bytes_of,
    directory_times,
    fill,
    here_and_elsewhere,
    move,
    run,
    same,
)
from tests.tree import tree

BLOCK = 4096
"""Of the plain directory's disk; the mount counts in units of 512 bytes."""


def test_what_the_mount_keeps(host: Host) -> None:
    """KEEPS_LINKS and KEEPS_XATTRS say what this mount does, with its errnos: the other tests here believe them."""
    file = host.path / "file"
    file.write_bytes(b"1")

    def number(call: object, *arguments: object) -> int:
        try:
            call(*arguments)  # type: ignore[operator]
        except OSError as error:
            return error.errno or -1
        return 0

    assert number(os.link, file, host.path / "second name") == (0 if KEEPS_LINKS else errno.EPERM)
    assert number(os.setxattr, file, "user.colour", b"green") == (0 if KEEPS_XATTRS else errno.ENOTSUP)


# ---------------------------------------------------------------- cp


def test_cp(host: Host, plain: Path) -> None:
    """`cp -a` into the mount, inside it, and out of it keeps bytes, modes, times and links, here and elsewhere."""
    fill(plain)
    if KEEPS_XATTRS:
        os.setxattr(plain / "large.bin", "user.colour", b"green")
    if KEEPS_LINKS:
        os.link(plain / "large.bin", plain / "large too.bin")
    inside, outside = host.path / "in", plain.parent / "out"
    run("cp", "-a", plain, inside)
    run("cp", "-a", "--sparse=always", "--reflink=auto", inside, host.path / "again")
    run("cp", "-a", host.path / "again", outside)
    for _ in here_and_elsewhere(host):
        for each in (inside, host.path / "again", outside):
            same(plain, each)
            assert directory_times(each) == directory_times(plain)
            if KEEPS_XATTRS:
                assert os.getxattr(each / "large.bin", "user.colour") == b"green"
            if KEEPS_LINKS:
                assert os.path.samefile(each / "large.bin", each / "large too.bin")


# ---------------------------------------------------------------- tar, zip


def test_tar(host: Host, plain: Path) -> None:
    """`tar -d` finds no difference between archive and files: made here, extracted here, read elsewhere."""
    fill(plain)
    run("tar", "--format=posix", "-C", plain, "-cf", host.path / "from plain.tar", ".")
    (host.path / "out").mkdir()
    run("tar", "-C", host.path / "out", "-xpf", host.path / "from plain.tar")
    # while uploads go on: tar takes a changed ctime for a changed file, and says so
    run("tar", "--format=posix", "-C", host.path / "out", "-czSf", host.path / "from mount.tar.gz", ".")
    run("tar", "-C", host.path, "-rf", host.path / "from plain.tar", "out/read me.txt")
    run("tar", "-f", host.path / "from plain.tar", "--delete", "out/read me.txt")
    for _ in here_and_elsewhere(host):
        same(plain, host.path / "out")
        for archive in ("from plain.tar", "from mount.tar.gz"):
            assert run("tar", "-C", host.path / "out", "-df", host.path / archive) == ""
            assert run("tar", "-C", plain, "-df", host.path / archive) == ""


def test_zip(host: Host, plain: Path) -> None:
    """zip makes, updates and shortens an archive; `unzip -t` finds it whole, and what it holds is what was put in."""
    fill(plain)
    archive = host.path / "all.zip"
    run("cp", "-a", plain, host.path / "tree")
    run("zip", "-q", "-r", "-y", archive, ".", cwd=host.path / "tree")
    (host.path / "tree/code/main.c").write_bytes(b"int main(void) { return 1; }\n")
    (host.path / "tree/large.bin").unlink()
    (plain / "code/main.c").write_bytes(b"int main(void) { return 1; }\n")
    (plain / "large.bin").unlink()
    run("zip", "-q", "-u", archive, "code/main.c", cwd=host.path / "tree")
    run("zip", "-q", "-d", archive, "large.bin")
    run("unzip", "-q", "-K", archive, "-d", host.path / "out")
    wanted = {name: (each.mode, each.sha1, each.target) for name, each in tree(plain).items()}
    for _ in here_and_elsewhere(host):
        assert run("unzip", "-tq", archive).startswith("No errors detected")
        found = tree(host.path / "out")
        assert {name: (each.mode, each.sha1, each.target) for name, each in found.items()} == wanted


# ---------------------------------------------------------------- sed, perl, mv


def edit_in_place(root: Path) -> None:
    fill(root)
    run("sed", "-i", "s/second/2nd/", "read me.txt", cwd=root)
    run("sed", "-i.bak", "-e", "1d", "-e", "$a the end", "code/main.c", "code/lib/util.c", cwd=root)
    run("sed", "-i", "--follow-symlinks", "s/first/1st/", "link", cwd=root)
    run("perl", "-i", "-pe", "s/third/3rd/", "read me.txt", cwd=root)
    run("perl", "-i.orig", "-ne", "print if $. % 2", *sorted(str(each) for each in (root / "many").iterdir()))


def test_sed_and_perl_in_place(host: Host, plain: Path) -> None:
    """`sed -i` and `perl -i`, with and without backups, through a symlink too, leave what they leave on a plain disk."""
    edit_in_place(plain)
    edit_in_place(host.path)
    for _ in here_and_elsewhere(host):
        same(plain, host.path)


def move_about(root: Path, other: Path) -> None:
    """mv inside `root`, from it to `other` (another file system) and back."""
    fill(root)
    (root / "target").mkdir()
    run("mv", "code", "target", cwd=root)
    run("mv", "many/001.txt", "many/002.txt", "target/code/lib", cwd=root)
    run("mv", "many/003.txt", "many/004.txt", cwd=root)
    run("mv", "-n", "many/005.txt", "many/006.txt", cwd=root, ok=(0, 1))
    run("mv", "--backup=numbered", "many/007.txt", "many/008.txt", cwd=root)
    run("mv", "-T", "empty directory", "many/directory", cwd=root)
    run("mv", "target", "target/code", cwd=root, ok=(1,))
    run("mv", "медіа", "large.bin", "link", "sparse.img", "many", other, cwd=root)
    run("mv", other / "many", other / "large.bin", root / "target", cwd=root)
    run("mv", other / "link", ".", cwd=root)


def test_mv(host: Host, plain: Path) -> None:
    """Between directories, over files, with backups, and across the mount's border both ways."""
    beside = {root: plain.parent / name for root, name in ((plain, "beside plain"), (host.path, "beside mount"))}
    for root, other in beside.items():
        other.mkdir()
        move_about(root, other)
    same(beside[plain], beside[host.path])
    for _ in here_and_elsewhere(host):
        same(plain, host.path)
        assert directory_times(host.path) == directory_times(plain)


# ---------------------------------------------------------------- find, du

PREDICATES = (
    ["-type", "d"],
    ["-type", "l", "-printf", "%p %l\n"],
    ["-xtype", "l"],
    ["-empty"],
    ["-size", "+100k"],
    ["-perm", "-4000", "-o", "-perm", "0600"],
    ["-newer", "large.bin"],
    ["-mtime", "+30", "-name", "*.txt"],
    ["-name", "code", "-prune", "-o", "-type", "f", "-print"],
    ["-mindepth", "2", "-maxdepth", "2", "-iname", "MAIN*"],
    ["-type", "f", "-links", "1", "-printf", "%P %s %m %T@ %u\n"],
    ["-type", "d", "-printf", "%P %n\n"],
    ["-inum", "1"],
    ["-samefile", "read me.txt"],
    ["-L", "-name", "util.c"],
)


def found(root: Path, predicates: list[str]) -> list[str]:
    first = ["-L"] if predicates[0] == "-L" else []
    return sorted(run("find", *first, ".", *predicates[len(first) :], cwd=root).splitlines())


def test_find(host: Host, plain: Path) -> None:
    """Fifteen searches find on the mount what they find in its copy, here and elsewhere; `-delete` leaves the same."""
    fill(plain)
    run("cp", "-a", plain, host.path / "tree")
    for _ in here_and_elsewhere(host):
        for predicates in PREDICATES:
            assert found(host.path / "tree", predicates) == found(plain, predicates), predicates
    for root in (host.path / "tree", plain):
        run("find", ".", "-name", "*.txt", "-size", "-2", "-delete", cwd=root)
        run("find", "code", "-delete", cwd=root)
        run("find", ".", "-type", "d", "-empty", "-delete", cwd=root)
    for _ in here_and_elsewhere(host):
        same(plain, host.path / "tree")


def sizes(root: Path, *options: str) -> dict[str, int]:
    """What du says of each file."""
    lines = run("du", "-a", *options, ".", cwd=root).splitlines()
    said = {name: int(size) for size, name in (line.split("\t") for line in lines)}
    return {name: size for name, size in said.items() if stat.S_ISREG((root / name).lstat().st_mode)}


def test_du(host: Host, plain: Path) -> None:
    """du says of each file what it says of its copy, exactly in bytes, within a block of the disk in space."""
    fill(plain)
    (plain / "sparse.img").unlink()  # the mount says nothing of holes
    for number in range(20):
        (plain / f"size {number}").write_bytes(bytes_of(number * 257, seed=number))
    run("cp", "-a", plain, host.path / "tree")
    os.sync()  # the plain disk gives a file its blocks when it is written back
    for _ in here_and_elsewhere(host):
        assert sizes(host.path / "tree", "-b") == sizes(plain, "-b")
        here, there = sizes(host.path / "tree", "-B1"), sizes(plain, "-B1")
        assert here.keys() == there.keys()
        assert [name for name in here if not here[name] <= there[name] < here[name] + BLOCK] == []


def test_removal_of_a_tree(host: Host, plain: Path) -> None:
    """`rm -rf` and shutil.rmtree take a tree away, also one that this host has not looked at yet."""
    fill(plain)
    for name in ("one", "two", "three"):
        run("cp", "-a", plain, host.path / name)
    run("rm", "-rf", host.path / "one")
    move(host)
    shutil.rmtree(host.path / "two")
    run("rm", "-r", host.path / "three/many")
    for path in (plain / "many").iterdir():
        path.unlink()
    (plain / "many").rmdir()
    for _ in here_and_elsewhere(host):
        assert os.listdir(host.path) == ["three"]
        same(plain, host.path / "three")
