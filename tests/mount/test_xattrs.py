"""Extended attributes on a real mount, by the system calls and by the programs that copy them."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.devbucket_fixture import DevBucket
from tests.mount import hosts
from tests.mount.hosts import NewHost, failing
from tests.mount.support import Mount

new_host = hosts.new_host

CHECKED = {
    "system.posix_acl_access": struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 0x20, 4, 0xFFFFFFFF),
    "security.capability": struct.pack("<5I", 0x02000000, 1, 0, 0, 0),
}
"""Values that the kernel takes (u::rw-,g::r--,o::r--; cap_chown=p): of others it says EINVAL itself."""

SOME = {"user.mime_type": b"text/plain", "user.raw": bytes(range(256)), "user.пусто": b""}


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


@pytest.mark.slow
def test_attributes_survive_a_move_to_another_host(new_host: NewHost, devbucket: DevBucket) -> None:
    """Of a file, a directory and the mountpoint, whatever bytes: here, and on a host with an empty state directory.
    In the bucket they stand in the fileInfo, readable.
    """
    host = new_host()
    host.start()
    paths = [host.path / "d" / "x", host.path / "d", host.path]
    (host.path / "d").mkdir()
    (host.path / "d" / "x").write_bytes(b"content")
    for path in paths:
        for name, value in SOME.items():
            os.setxattr(path, name, value)
    os.setxattr(host.path / "d", "user.raw", b"raw")
    os.removexattr(host.path / "d", "user.пусто")
    expected = [attributes(path) for path in paths]
    assert expected == [SOME, {"user.mime_type": b"text/plain", "user.raw": b"raw"}, SOME]
    host.stop()
    info = devbucket.admin.objects(devbucket.bucket)["d/.bzEmpty"]["fileInfo"]
    assert info["b2fs_xattr"] == "mime_type~_text/plain~_raw~_raw"
    host.forget_state()
    host.start()
    assert [attributes(path) for path in paths] == expected
    host.stop()


@pytest.mark.slow
def test_errors_as_on_ext4(mount: Mount) -> None:
    """ENODATA, EEXIST, ERANGE, E2BIG, ENOSPC, EPERM, ENOTSUP, EINVAL: each where Linux has it, and nothing was changed."""
    path = mount.path / "x"
    path.write_bytes(b"content")
    (mount.path / "l").symlink_to("x")
    with failing(errno.ENODATA):
        os.getxattr(path, "user.none")
    with failing(errno.ENODATA):
        os.removexattr(path, "user.none")
    with failing(errno.ENODATA):
        os.setxattr(path, "user.none", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with failing(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    with failing(errno.ENOSPC):
        os.setxattr(path, "user.a", b"1" * 4096)
    with failing(errno.E2BIG):
        os.setxattr(path, "user.a", b"1" * 65537)
    with failing(errno.ERANGE):
        os.setxattr(path, "user." + "n" * 251, b"")
    for name, number in (
        ("user.b2fs.state", errno.EPERM),
        ("user.b2fs.other", errno.EPERM),
        ("user.", errno.EINVAL),
        ("security.capability", errno.ENOTSUP if os.geteuid() == 0 else errno.EPERM),
        ("trusted.x", errno.ENOTSUP if os.geteuid() == 0 else errno.EPERM),
        ("system.posix_acl_access", errno.ENOTSUP),
        ("other.x", errno.ENOTSUP),
    ):
        with failing(number):
            os.setxattr(path, name, CHECKED.get(name, b"1"))
    for name in ("security.capability", "trusted.x"):
        with failing(errno.ENODATA):
            os.getxattr(path, name)
    with failing(errno.ENOTSUP):
        os.getxattr(path, "system.posix_acl_access")
    with failing(errno.EPERM):
        os.setxattr(mount.path / "l", "user.a", b"1", follow_symlinks=False)
    assert attributes(path) == {"user.a": b"3"}


@pytest.mark.slow
def test_attributes_of_an_open_file(mount: Mount) -> None:
    """fsetxattr works, on a file whose name is gone too; it changes the ctime and not the mtime."""
    path = mount.path / "x"
    with open(path, "wb") as file:
        before = os.fstat(file.fileno())
        os.setxattr(file.fileno(), "user.a", b"1")
        after = os.fstat(file.fileno())
        assert after.st_mtime_ns == before.st_mtime_ns
        assert after.st_ctime_ns > before.st_ctime_ns
        path.unlink()
        os.setxattr(file.fileno(), "user.b", b"2")
        assert sorted(os.listxattr(file.fileno())) == ["user.a", "user.b"]


@pytest.mark.slow
def test_full_header_is_taken_by_the_bucket(new_host: NewHost) -> None:
    """The largest value that is accepted reaches B2, under a name and with a time that need much room too."""
    host = new_host()
    host.start()
    path = host.path / ("ж" * 100)
    path.write_bytes(b"content")
    size = 4096
    while True:
        try:
            os.setxattr(path, "user.a", b"\xff" * size)
            break
        except OSError as error:
            assert error.errno == errno.ENOSPC
            size -= 1
    assert size > 600
    os.utime(path, ns=(-(2**61) - 1, -(2**61) - 1))
    with failing(errno.ENAMETOOLONG):
        path.rename(host.path / ("ж" * 101))
    host.stop()
    host.forget_state()
    host.start()
    assert attributes(path) == {"user.a": b"\xff" * size}
    host.stop()


def _takes_xattrs(directory: Path) -> bool:
    try:
        os.setxattr(directory, "user.x", b"1")
    except OSError:
        return False
    os.removexattr(directory, "user.x")
    return True


@pytest.mark.slow
@pytest.mark.parametrize("program", [("cp", "-a"), ("rsync", "-aX")], ids=lambda program: program[0])
def test_programs_that_copy_them(mount: Mount, program: tuple[str, ...], tmp_path: Path) -> None:
    """`cp -a` and `rsync -aX` within the mount, and out of it where the local disk has attributes, take them along."""
    if shutil.which(program[0]) is None:
        pytest.fail(f"{program[0]} is not installed")
    source = mount.path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "x").write_bytes(b"content")
    for path in (source / "d" / "x", source / "d"):
        os.setxattr(path, "user.a", b"\x00\xff")
    targets = [mount.path / "copy"] + ([tmp_path / "copy"] if _takes_xattrs(tmp_path) else [])
    for target in targets:
        subprocess.run([*program, f"{source}/", f"{target}/"], check=True)
        assert attributes(target / "d" / "x") == attributes(target / "d") == {"user.a": b"\x00\xff"}
        shutil.rmtree(target)
