"""Extended attributes of the name space `user`."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.posix.support import OLD_NS, OTHER, OWNER, fails, opened, put, user
from tests.posix.system import os

MAKE = {"file": put, "dir": os.mkdir}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("value", [b"", b"x", bytes(range(256)), b"a" * 500], ids=["empty", "one", "bytes", "long"])
def test_set_and_get(root: Path, make: object, value: bytes) -> None:
    """A value comes back byte for byte, is listed, is replaced, and is gone when it was removed."""
    make("x")  # type: ignore[operator]
    os.setxattr("x", "user.name", b"before")
    os.setxattr("x", "user.name", value)
    os.setxattr("x", "user.other", b"2")
    assert os.getxattr("x", "user.name") == value
    assert sorted(os.listxattr("x")) == ["user.name", "user.other"]
    os.removexattr("x", "user.other")
    assert os.listxattr("x") == ["user.name"]
    with fails("ENODATA"):
        os.getxattr("x", "user.other")


@pytest.mark.parametrize("name", ["user.a", "user.Ä", "user.a.b.c", "user. ", "user." + "n" * 200, "user.%2F=;"])
def test_names(root: Path, name: str) -> None:
    """Names are kept as they are."""
    put("f")
    os.setxattr("f", name, b"v")
    assert os.listxattr("f") == [name] and os.getxattr("f", name) == b"v"


def test_create_and_replace(root: Path) -> None:
    """XATTR_CREATE wants it absent, XATTR_REPLACE present."""
    put("f")
    with fails("ENODATA"):
        os.setxattr("f", "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr("f", "user.a", b"1", os.XATTR_CREATE)
    with fails("EEXIST"):
        os.setxattr("f", "user.a", b"2", os.XATTR_CREATE)
    os.setxattr("f", "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr("f", "user.a") == b"3"


@pytest.mark.parametrize(
    ("name", "error"),
    [("user.", "EINVAL"), ("a", "ENOTSUP"), ("other.a", "ENOTSUP"), ("user." + "n" * 251, "ERANGE"), ("", "ERANGE")],
)
def test_names_that_are_none(root: Path, name: str, error: str) -> None:
    """What is no name has its errno."""
    put("f")
    with fails(error):
        os.setxattr("f", name, b"1")
    assert os.listxattr("f") == []


def test_too_large(root: Path) -> None:
    """A value of more than 64 KiB is E2BIG."""
    put("f")
    with fails("E2BIG"):
        os.setxattr("f", "user.a", bytes(65537))


@pytest.mark.parametrize("call", [os.getxattr, os.removexattr])
def test_absent(root: Path, call: object) -> None:
    """What is not set is ENODATA, in every name space that there is."""
    put("f")
    for name in ("user.none", "trusted.none", "security.capability"):
        with fails("ENODATA"):
            call("f", name)  # type: ignore[operator]
    with fails("ENOENT"):
        call("none", "user.a")  # type: ignore[operator]


def test_only_files_and_directories(root: Path) -> None:
    """A symlink and a FIFO have none: EPERM; through a symlink the file's are meant."""
    put("f")
    os.symlink("f", "l")
    os.mkfifo("p")
    for path in ("l", "p"):
        with fails("EPERM"):
            os.setxattr(path, "user.a", b"1", follow_symlinks=False)
    os.setxattr("l", "user.a", b"1")
    assert os.getxattr("f", "user.a") == b"1"


def test_rights(root: Path) -> None:
    """Setting needs write permission, getting read permission; those of a sticky directory are its owner's."""
    put("f", mode=0o644)
    put("secret", mode=0o600)
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    for name in ("f", "secret"):
        os.chown(name, OWNER, OWNER)
        os.setxattr(name, "user.a", b"1")
    with user(OTHER):
        assert os.getxattr("f", "user.a") == b"1"
        for call, error in (
            (lambda: os.setxattr("f", "user.a", b"2"), "EACCES"),
            (lambda: os.removexattr("f", "user.a"), "EACCES"),
            (lambda: os.getxattr("secret", "user.a"), "EACCES"),
            (lambda: os.setxattr("sticky", "user.a", b"1"), "EPERM"),
        ):
            with fails(error):
                call()


def test_times(root: Path) -> None:
    """A change of an attribute changes the ctime alone; reading one nothing."""
    put("f")
    os.utime("f", ns=(OLD_NS, OLD_NS))
    before = os.stat("f")
    os.setxattr("f", "user.a", b"1")
    after = os.stat("f")
    assert after.st_ctime_ns > before.st_ctime_ns and after.st_mtime_ns == OLD_NS
    os.getxattr("f", "user.a")
    assert os.stat("f").st_ctime_ns == after.st_ctime_ns
    os.removexattr("f", "user.a")
    assert os.stat("f").st_ctime_ns > after.st_ctime_ns


def test_they_belong_to_the_file(root: Path) -> None:
    """They go with a rename, outlive the name for who has the file open, and are not those of the next of its name."""
    put("f")
    os.setxattr("f", "user.a", b"1")
    os.rename("f", "g")
    assert os.getxattr("g", "user.a") == b"1"
    with opened("g") as fd:
        os.unlink("g")
        assert os.getxattr(fd, "user.a") == b"1"
        os.setxattr(fd, "user.b", b"2")
        assert sorted(os.listxattr(fd)) == ["user.a", "user.b"]
        put("g")
        assert os.listxattr("g") == []


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_access_control_lists_that_are_not_there(root: Path, target: str, name: str) -> None:
    """There are no ACLs: ENOTSUP, where ext4 says that none is set."""
    os.mkdir("d")
    with pytest.raises(OSError) as caught:
        os.getxattr("d", name)
    assert caught.value.errno == (errno.ENODATA if target == "plain" else errno.ENOTSUP)
