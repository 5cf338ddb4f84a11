"""The state directory: who may use it, and what each step leaves if the next one never comes."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from b2fs.adapters import disk as disk_module
from b2fs.adapters.disk import Disk
from b2fs.errors import Damaged, NoSpace, StateError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def disk(root: Path) -> Iterator[Disk]:
    disk = Disk(str(root))
    yield disk
    disk.close()


def _write(fd: int, data: bytes) -> None:
    os.pwrite(fd, data, 0)
    os.close(fd)


def test_second_opener_is_refused_by_name(disk: Disk, root: Path) -> None:
    """Only one daemon at a time; the message names the other one's pid."""
    with pytest.raises(StateError, match=f"pid {os.getpid()}"):
        Disk(str(root))


def test_lock_ends_with_its_holder(root: Path) -> None:
    """After close the next opener gets it."""
    Disk(str(root)).close()
    Disk(str(root)).close()


def test_lock_that_is_left_in_a_moment_is_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was killed while it began a process has left the lock with that one, until it has called exec."""
    holder = Disk(str(root))
    monkeypatch.setattr(disk_module.time, "sleep", lambda seconds: holder.close())
    Disk(str(root)).close()


def test_only_the_owner_may_look(root: Path) -> None:
    """Directories are 0700 and files 0600 whatever the umask, also when the directory was there with other modes."""
    root.mkdir(mode=0o755)
    old = os.umask(0o022)
    try:
        disk = Disk(str(root))
        _write(disk.make_scratch(1), b"1")
        disk.stage(1)
        disk.make_staged(3, b"link target")
        _write(disk.make_scratch(4), b"1")
        disk.stage(4)
        disk.staged_to_blob(4, "blob")
        disk.close()
    finally:
        os.umask(old)
    for path in [root, *root.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_not_a_directory(root: Path) -> None:
    """A file in its place is a StateError, and stays."""
    root.write_text("mine")
    with pytest.raises(StateError):
        Disk(str(root))
    assert root.read_text() == "mine"


def test_new_scratch_replaces_a_leftover(disk: Disk) -> None:
    """A scratch file is empty when it is made, whatever lay there; who has the old one open keeps it."""
    old = disk.make_scratch(1)
    os.pwrite(old, b"leftover", 0)
    new = disk.make_scratch(1)
    assert os.fstat(new).st_size == 0
    assert os.pread(old, 9, 0) == b"leftover"
    os.close(old)
    os.close(new)


def test_stage_then_crash(disk: Disk) -> None:
    """Between stage and drop_scratch both names lead to the same bytes; dropping either keeps the other."""
    _write(disk.make_scratch(1), b"content")
    disk.stage(1)
    assert list(disk.numbers("scratch")) == list(disk.numbers("staged")) == [1]
    disk.stage(1)  # as after a crash before the commit
    disk.drop_scratch(1)
    disk.drop_scratch(1)
    assert Path(disk.staged_path(1)).read_bytes() == b"content"
    _write(disk.make_scratch(2), b"other")
    disk.stage(2)
    disk.drop_staged(2)
    disk.drop_staged(2)
    assert Path(disk.scratch_path(2)).read_bytes() == b"other"
    disk.stage(2)
    disk.drop_scratch(2)
    disk.unstage(2)
    assert Path(disk.scratch_path(2)).read_bytes() == b"other"


def test_staged_becomes_blob(disk: Disk) -> None:
    """The blob is the staged file under one more name, so that either may go first; a blob that is there stays."""
    _write(disk.make_scratch(1), b"one")
    disk.stage(1)
    disk.staged_to_blob(1, "id")
    disk.staged_to_blob(1, "id")
    assert list(disk.numbers("staged")) == [1]
    disk.drop_staged(1)
    assert Path(disk.blob_path("id")).read_bytes() == b"one"
    assert [name for folder in disk.blob_folders() for name in disk.blob_names(folder)] == ["id"]


def test_quarantine(disk: Disk) -> None:
    """Content leaves both folders and is kept under one name; the same number once more does not replace it."""
    for content in (b"one", b"two"):
        _write(disk.make_scratch(1), content)
        disk.stage(1)
        file = disk.quarantine(1)
        assert Path(disk.quarantine_path(file)).read_bytes() == content
        assert list(disk.numbers("scratch")) == list(disk.numbers("staged")) == []
    assert disk.quarantine(9) == ""
    assert len(os.listdir(os.path.join(disk.root, "quarantine"))) == 2


def test_secure(disk: Disk) -> None:
    """Says the SHA-1 of what it has put on stable storage; a name that is gone is for the caller to judge."""
    _write(disk.make_scratch(1), b"content")
    assert disk.secure(disk.scratch_path(1)) == "040f06fd774092478d450774f5ba30c5da78acc8"
    disk.drop_scratch(1)
    with pytest.raises(FileNotFoundError):
        disk.secure(disk.scratch_path(1))


def test_part_becomes_blob_whole(disk: Disk) -> None:
    """Before the rename there is no blob; dropping the part afterwards is harmless."""
    Path(disk.part_path(3)).write_bytes(b"part")
    assert not disk.has_blob("id")
    assert disk.open_blob("id") == -1
    disk.part_to_blob(3, "id")
    disk.drop_part(3)
    fd = disk.open_blob("id")
    assert os.pread(fd, 9, 0) == b"part"
    disk.drop_blob("id")
    assert os.pread(fd, 9, 0) == b"part", "an open blob outlives its eviction"
    os.close(fd)


def test_rename_blob(disk: Disk) -> None:
    """Says whether there was one."""
    Path(disk.part_path(3)).write_bytes(b"part")
    disk.part_to_blob(3, "old")
    assert disk.rename_blob("old", "new")
    assert not disk.rename_blob("old", "new")
    assert Path(disk.blob_path("new")).read_bytes() == b"part"


def test_stage_blob_outlives_eviction(disk: Disk) -> None:
    """Clean content that an upload holds is still there when the cache drops it; once evicted it cannot be held."""
    Path(disk.part_path(3)).write_bytes(b"part")
    disk.part_to_blob(3, "id")
    path = disk.stage_blob("id", 9)
    disk.drop_blob("id")
    assert Path(path).read_bytes() == b"part"
    with pytest.raises(FileNotFoundError):
        disk.stage_blob("id", 10)


def test_sha1(tmp_path: Path) -> None:
    """Of an empty file, and of one longer than a step."""
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "long").write_bytes(b"a" * 1_000_000 * 2)
    assert disk_module.sha1_of(str(tmp_path / "empty")) == "da39a3ee5e6b4b0d3255bfef95601890afd80709"
    assert disk_module.sha1_of(str(tmp_path / "long")) == "46aa62723f78ff6e2e381d21988a801db99c2a32"


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EFBIG, NoSpace),
        (errno.EIO, Damaged),
        (errno.EROFS, Damaged),
    ],
)
def test_errors_of_the_disk(number: int, error: type[Exception]) -> None:
    """Full in any of its forms is NoSpace, everything else Damaged."""
    with pytest.raises(error), disk_module.disk_errors():
        raise OSError(number, "of the disk")


def test_errors_that_the_engine_expects() -> None:
    """A file that is not there, or there already, is for the caller to judge."""
    with pytest.raises(FileNotFoundError), disk_module.disk_errors():
        raise FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(FileExistsError), disk_module.disk_errors():
        raise FileExistsError(errno.EEXIST, "there")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_full_tmpfs(tmp_path: Path) -> None:
    """On a disk that is really full making content is NoSpace, and what was there is unharmed."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", small], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        disk = Disk(str(small / "state"))
        _write(disk.make_scratch(1), b"precious")
        with pytest.raises(NoSpace):
            disk.make_staged(2, bytes(1 << 20))
        disk.stage(1)
        assert Path(disk.staged_path(1)).read_bytes() == b"precious"
        disk.close()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_parts_are_secured_together(disk: Disk) -> None:
    """However many there are; one that is gone is not among those that are safe."""
    for number in range(1, 201):
        Path(disk.part_path(number)).write_bytes(b"content")
    disk.drop_part(7)
    assert disk.secure_parts({number: f"blob{number}" for number in range(1, 201)}) == {*range(1, 201)} - {7}
    assert all(os.path.isdir(os.path.dirname(disk.blob_path(f"blob{number}"))) for number in range(8, 201))
