"""What a tree is, it is again on a host that knows nothing but the bucket: every kind of object, owner, mode and time."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.devbucket_fixture import devbucket
from tests.mount.hosts import NewHost, new_host
from tests.posix.support import KINDS, put
from tests.posix.system import os

__all__ = ["devbucket", "new_host"]

pytestmark = [pytest.mark.fuse, pytest.mark.slow]

TIMES = (0, 1_600_000_000_123_456_789, -1, -86_400_000_000_001, 4_102_444_800_999_999_999, 9_200_000_000_999_999_999)
NAMES = (" ", "a\\b", "é", "e\u0301", "É", "🎧", "a%2Fb", "+&?#", "x" * 250, "-rf", "...", "tail ", "\ufeff")


def shown(root: Path) -> dict[str, tuple[object, ...]]:
    """What lstat says of everything below, but for what no object carries: numbers, ctime, atime."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        each = path.lstat()
        size = 0 if stat.S_ISDIR(each.st_mode) else each.st_size
        found[str(path.relative_to(root))] = (
            stat.filemode(each.st_mode), each.st_uid, each.st_gid, each.st_nlink, size, each.st_rdev, each.st_mtime_ns,
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b"",
        )  # fmt: skip
    return found


def fill() -> None:
    for name in NAMES:
        put(name, name.encode())
    for number, time_ns in enumerate(TIMES):
        for kind, make in KINDS.items():
            name = f"{kind}-{number}"
            make(name)
            os.lchown(name, 1000 + number, 4_000_000_000 + number)
            if kind != "symlink":
                os.chmod(name, (0o600, 0o4755, 0o2755, 0o1777, 0o000, 0o7777)[number])
            os.utime(name, ns=(time_ns, time_ns), follow_symlinks=False)
    for number, device in enumerate([(0, 0), (8, 17), (4095, 1048575)]):
        os.mknod(f"block-{number}", stat.S_IFBLK | 0o660, os.makedev(*device))
        os.mknod(f"char-{number}", stat.S_IFCHR | 0o660, os.makedev(*device))


def test_every_kind_on_another_host(new_host: NewHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, directories, symlinks, FIFOs, sockets and devices come back with mode, owner, number and nanoseconds; and
    they are the same before the upload, after it, after a restart, and from the bucket alone.
    """
    host = new_host()
    host.start()
    with monkeypatch.context() as patch:
        patch.chdir(host.path)
        fill()
    before = shown(host.path)
    assert before["fifo-1"][0] == "prwsr-xr-x"
    host.flush()
    assert shown(host.path) == before
    host.stop()
    host.start()
    assert shown(host.path) == before
    host.stop()
    host.forget_state()
    host.start_listed()
    assert shown(host.path) == before
    host.stop()


def test_ctime_on_another_host(new_host: NewHost) -> None:
    """A restart keeps atime and ctime; another host, which has the bucket alone, shows the mtime for both."""
    host = new_host()
    host.start()
    path = host.path / "f"
    path.write_bytes(b"x")
    os.utime(path, ns=(5, 1_600_000_000_123_456_789))
    before = path.stat()
    host.stop()
    host.start()
    after = path.stat()
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (5, before.st_mtime_ns, before.st_ctime_ns)
    host.stop()
    host.forget_state()
    host.start_listed()
    found = path.stat()
    assert found.st_atime_ns == found.st_ctime_ns == found.st_mtime_ns == before.st_mtime_ns
    host.stop()
