"""What a tree is, it is again on a host that knows nothing but the bucket: every kind of object, owner, mode and time."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.devbucket_fixture import devbucket
from tests.mount.hosts import Host, new_host
from tests.posix.support import KINDS, get, put, stats
from tests.posix.system import MACHINE, on, os
from tests.posix.vfs.host import EngineHost

__all__ = ["devbucket", "new_host"]

pytestmark = pytest.mark.slow

TIMES = (0, 1_600_000_000_123_456_789, -1, -86_400_000_000_001, 4_102_444_800_999_999_999, 9_200_000_000_999_999_999)
NAMES = (" ", "a\\b", "é", "e\u0301", "É", "🎧", "a%2Fb", "+&?#", "x" * 250, "-rf", "...", "tail ", "\ufeff")


@pytest.fixture(params=[pytest.param("mount", marks=pytest.mark.fuse), "engine"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host | EngineHost]:
    """A host with an empty bucket of its own, not started yet."""
    if request.param == "mount":
        yield request.getfixturevalue("new_host")()
        return
    engine = EngineHost(tmp_path)
    yield engine
    engine.stop()


@contextmanager
def inside(host: Host | EngineHost) -> Iterator[None]:
    """Work in its root directory."""
    system, path = (host.system, "/") if isinstance(host, EngineHost) else (MACHINE, str(host.path))
    with on(system):
        before = os.getcwd()
        os.chdir(path)
        try:
            yield
        finally:
            os.chdir(before)


Shown = dict[str, tuple[object, ...]]


def shown(host: Host | EngineHost) -> Shown:
    """What lstat says of everything, but for what no object carries: numbers, ctime, atime."""
    found: Shown = {}
    with inside(host):
        for path, each in sorted(stats().items()):
            size = 0 if stat.S_ISDIR(each.st_mode) else each.st_size
            mtime_ns = 0 if path == "." else each.st_mtime_ns
            found[path] = (
                stat.filemode(each.st_mode), each.st_uid, each.st_gid, each.st_nlink, size, each.st_rdev, mtime_ns,
                os.readlink(path) if stat.S_ISLNK(each.st_mode) else get(path) if stat.S_ISREG(each.st_mode) else b"",
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


def test_every_kind_on_another_host(host: Host | EngineHost) -> None:
    """Files, directories, symlinks, FIFOs, sockets and devices come back with mode, owner, number and nanoseconds; and
    they are the same before the upload, after it, after a restart, and from the bucket alone.
    """
    host.start()
    with inside(host):
        fill()
    before = shown(host)
    assert before["./fifo-1"][0] == "prwsr-xr-x"
    host.flush()
    assert shown(host) == before
    host.stop()
    host.start()
    assert shown(host) == before
    host.stop()
    host.forget_state()
    host.start_listed()
    assert shown(host) == before
    host.stop()


def test_ctime_on_another_host(host: Host | EngineHost) -> None:
    """A restart keeps atime and ctime; another host, which has the bucket alone, shows the mtime for both."""
    host.start()
    with inside(host):
        put("f", b"x")
        os.utime("f", ns=(5, 1_600_000_000_123_456_789))
        before = os.stat("f")
    host.stop()
    host.start()
    with inside(host):
        after = os.stat("f")
    assert (after.st_atime_ns, after.st_mtime_ns, after.st_ctime_ns) == (5, before.st_mtime_ns, before.st_ctime_ns)
    host.stop()
    host.forget_state()
    host.start_listed()
    with inside(host):
        found = os.stat("f")
    assert found.st_atime_ns == found.st_ctime_ns == found.st_mtime_ns == before.st_mtime_ns
    host.stop()
