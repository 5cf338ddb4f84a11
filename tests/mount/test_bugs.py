"""A bug is an EIO: whatever fails unexpectedly is logged with its key, one program hears of it, and the mount lives."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from b2fs.errors import Exit
from tests.devbucket_fixture import DevBucket
from tests.mount.hosts import LONG, Host, failing, in_bucket
from tests.mount.support import until


class Broken(Host):
    """A host whose daemon fails where `plant` says."""

    def __init__(self, bucket: DevBucket, **settings: str) -> None:
        super().__init__(bucket, **settings)
        self.bugs = self.base / "bugs"
        self.plant()
        self.program = (sys.executable, "-m", "tests.mount.planted", str(self.bugs))

    def plant(self, *names: str) -> None:
        new = self.bugs.with_suffix(".new")
        new.write_text("\n".join(names))
        new.replace(self.bugs)


@pytest.fixture
def broken(devbucket: DevBucket) -> Iterator[Broken]:
    host = Broken(devbucket, quiet_period=LONG)
    try:
        host.start_listed()
        (host.path / "d").mkdir()
        (host.path / "d" / "file").write_bytes(b"content")
        (host.path / "link").symlink_to("d/file")
        yield host
    finally:
        host.remove()


def _on_open_file(call: Callable[[int], object]) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        descriptor = os.open(root / "d" / "file", os.O_RDWR)
        try:
            call(descriptor)
        finally:
            os.close(descriptor)

    return act


def _read(descriptor: int) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # the kernel has it cached
    os.pread(descriptor, 7, 0)


def _on_directory(call: Callable[[int], object]) -> Callable[[Path], object]:
    def act(root: Path) -> None:
        descriptor = os.open(root / "d", os.O_RDONLY)
        try:
            call(descriptor)
        finally:
            os.close(descriptor)

    return act


HANDLERS: dict[str, tuple[Callable[[Path], object], str]] = {
    # method of the engine: what reaches it, and how the log names the file
    "lookup": (lambda root: os.stat(root / "d" / "other"), "d/other"),
    "set_attributes": (lambda root: os.chmod(root / "d" / "file", 0o600), "d/file"),
    "make_node": (lambda root: os.mkdir(root / "d" / "new"), "d/new"),
    "make_link": (lambda root: os.symlink("x", root / "d" / "new"), "d/new"),
    "link": (lambda root: os.link(root / "d" / "file", root / "d" / "new"), "d/file"),
    "read_link": (lambda root: os.readlink(root / "link"), "link"),
    "unlink": (lambda root: os.unlink(root / "d" / "file"), "d/file"),
    "rmdir": (lambda root: os.rmdir(root / "d"), "d"),
    "rename": (lambda root: os.rename(root / "d" / "file", root / "x"), "d/file"),
    "open_directory": (lambda root: os.listdir(root / "d"), "d"),
    "entries": (lambda root: os.listdir(root / "d"), "d"),
    "sync_directory": (_on_directory(os.fsync), "d"),
    "create": (lambda root: os.open(root / "d" / "new", os.O_CREAT | os.O_WRONLY), "d/new"),
    "open": (lambda root: os.open(root / "d" / "file", os.O_RDONLY), "d/file"),
    "read": (_on_open_file(_read), "d/file"),
    "write": (_on_open_file(lambda fd: os.pwrite(fd, b"more", 0)), "d/file"),
    "sync": (_on_open_file(os.fsync), "d/file"),
    "space": (lambda root: os.statvfs(root), ""),
    "file_status": (lambda root: os.getxattr(root / "d" / "file", "user.b2fs.state"), "d/file"),
}


@pytest.mark.slow
def test_exception_in_any_handler(broken: Broken) -> None:
    """Each handler in turn fails by a bug: the program gets EIO, the log has key and traceback, and the next call works."""
    tree = sorted(os.listdir(broken.path))
    for name, (act, key) in HANDLERS.items():
        lines = len(broken.log_text())
        broken.plant(name)
        with pytest.raises(OSError) as caught:
            act(broken.path)
            pytest.fail(f"{name}: no error")
        assert caught.value.errno == errno.EIO, name
        broken.plant()
        logged = broken.log_text()[lines:]
        assert f"RuntimeError: planted in {name}" in logged, logged
        assert repr(key) in logged if key else True, (name, logged)
        assert (broken.path / "d" / "file").read_bytes() == b"content", name
        assert sorted(os.listdir(broken.path)) == tree, name
    broken.stop()
    assert in_bucket(broken.bucket)["d/file"] == b"content"


@pytest.mark.slow
def test_exception_in_what_no_program_waits_for(broken: Broken) -> None:
    """Release and forget have no answer: their bugs are logged, and the mount lives."""
    for name in ("release", "forget"):
        lines = len(broken.log_text())
        broken.plant(name)
        path = broken.path / f"passing-{name}"
        path.write_bytes(b"x")
        if name == "forget":
            path.unlink()  # the kernel lets go of the inode
        until(lambda name=name, lines=lines: f"planted in {name}" in broken.log_text()[lines:])  # type: ignore[misc]
        broken.plant()
        assert (broken.path / "d" / "file").read_bytes() == b"content"


@pytest.mark.slow
def test_exception_in_background_work(broken: Broken) -> None:
    """The uploader's loop fails by a bug: it is logged and begins anew, and everything gets to B2."""
    broken.stop()
    broken.plant("_next", "refresh")
    broken.settings["quiet_period"] = "100ms"
    broken.start()
    (broken.path / "new").write_bytes(b"new")
    until(lambda: "planted in _next" in broken.log_text() and "planted in refresh" in broken.log_text())
    assert (broken.path / "d" / "file").read_bytes() == b"content"
    broken.plant()
    until(lambda: in_bucket(broken.bucket).get("new") == b"new", 60.0)
    broken.stop()


@pytest.mark.slow
def test_journal_that_cannot_be_written(broken: Broken) -> None:
    """The mount turns read-only, loudly: EROFS for every change, also on files that are open; reads go on; nothing that
    was acknowledged is lost, and after a new start it gets to B2.
    """
    descriptor = os.open(broken.path / "open", os.O_RDWR | os.O_CREAT)
    os.pwrite(descriptor, b"acknowledged", 0)
    _, most = resource.prlimit(broken.pid, resource.RLIMIT_FSIZE)
    log = (broken.state / "journal.db-wal").stat().st_size
    resource.prlimit(broken.pid, resource.RLIMIT_FSIZE, (log, most))  # it takes no byte any more
    with failing(errno.EROFS):
        os.mkdir(broken.path / "new")
    resource.prlimit(broken.pid, resource.RLIMIT_FSIZE, (most, most))
    changes: list[Callable[[], object]] = [
        lambda: os.pwrite(descriptor, b"later", 0),
        lambda: os.ftruncate(descriptor, 0),
        lambda: os.fsync(descriptor),
        lambda: os.unlink(broken.path / "d" / "file"),
        lambda: os.rename(broken.path / "d", broken.path / "e"),
        lambda: (broken.path / "another").write_bytes(b"x"),
    ]
    for change in changes:
        with failing(errno.EROFS):
            change()
    assert (broken.path / "d" / "file").read_bytes() == b"content"
    assert os.pread(descriptor, 99, 0) == b"acknowledged"
    os.close(descriptor)
    status = broken.status()
    assert status["state"] == "read-only" and "journal" in status["last_error"]
    assert "CRITICAL" in broken.log_text()
    broken.stop(Exit.NOT_DRAINED)
    broken.start()
    assert (broken.path / "open").read_bytes() == b"acknowledged"
    broken.stop()
    assert in_bucket(broken.bucket) == {"d/file": b"content", "open": b"acknowledged", "link": b"d/file"}


def test_crash_of_the_interpreter_names_its_place(devbucket: DevBucket) -> None:
    """A bug in native code is the end of the process; the log says what it was doing, and the next start goes on."""
    host = Host(devbucket, quiet_period=LONG)
    try:
        host.start_listed()
        (host.path / "file").write_bytes(b"content")
        assert host.process is not None
        host.process.send_signal(signal.SIGSEGV)
        host.process.wait(60)
        host.detach()
        log = host.log_text()
        assert "Segmentation fault" in log and "daemon.py" in log
        assert devbucket.key not in log
        host.start()
        assert (host.path / "file").read_bytes() == b"content"
        host.stop()
    finally:
        host.remove()
