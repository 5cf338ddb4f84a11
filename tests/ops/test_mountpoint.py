"""What is checked of a mountpoint and of the machine before b2fs mounts."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from pathlib import Path

import pytest

from b2fs.errors import Exit, MountError
from b2fs.frontends import mountpoint as subject
from b2fs.frontends.mountpoint import prepare
from b2fs.ops import mounts
from tests.ops.conftest import Stub


@pytest.fixture
def fuse_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is in question, not the machine."""
    monkeypatch.setattr(subject, "check_fuse", lambda allow_other=False: False)


def refusal(path: object) -> str:
    with pytest.raises(MountError) as caught:
        prepare(str(path))
    assert "\n" not in str(caught.value) and caught.value.exit_code is Exit.MOUNT
    return str(caught.value)


# ---------------------------------------------------------------- the directory


@pytest.mark.usefixtures("fuse_works")
class TestDirectory:
    def test_an_empty_directory_is_good(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The answer is the real path, so that commands find the same mount by any name."""
        (tmp_path / "data").mkdir()
        (tmp_path / "link").symlink_to("data")
        monkeypatch.chdir(tmp_path)
        for name in ("data", "./data/", "link", str(tmp_path / "data")):
            assert prepare(name) == str(tmp_path / "data")

    def test_a_missing_directory(self, tmp_path: Path) -> None:
        """It is not made silently: a typing error would become a mountpoint. The line says how to make it."""
        assert f"mkdir -p {tmp_path}/a/b" in refusal(tmp_path / "a/b")
        assert not (tmp_path / "a").exists()

    def test_a_file(self, tmp_path: Path) -> None:
        """A file cannot be a mountpoint."""
        (tmp_path / "file").touch()
        assert "not a directory" in refusal(tmp_path / "file")

    def test_a_directory_that_is_not_empty(self, tmp_path: Path) -> None:
        """Three of the entries are named, so that the user sees what the mount would have hidden."""
        for name in ("b", "a", "c"):
            (tmp_path / name).touch()
        assert "not empty (a, b, c)," in refusal(tmp_path)
        (tmp_path / "d").touch()
        assert ", …)" in refusal(tmp_path) and len(list(tmp_path.iterdir())) == 4

    def test_a_directory_that_cannot_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The reason is the system's."""

        def refused(path: str) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "scandir", refused)
        assert refusal(tmp_path) == f"{tmp_path}: Permission denied"

    def test_a_file_descriptor_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``/dev/fd/N`` is a mount that somebody else has made for us; nothing is checked."""
        monkeypatch.setattr(mounts, "all_mounts", None)
        assert prepare("/dev/fd/7") == "/dev/fd/7"

    def test_a_user_needs_to_own_the_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """fusermount3 mounts for a user only where the user may write."""
        monkeypatch.setattr(subject, "check_fuse", lambda allow_other=False: True)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert "not writable" in refusal(tmp_path)


# ---------------------------------------------------------------- mounts that are there already


@pytest.mark.fuse
@pytest.mark.slow
class TestMounted:
    def test_a_b2fs_mount_is_refused(self, stub: Stub, mountpoint: str) -> None:
        """Two mounts on one directory would hide each other."""
        stub()
        assert "is a b2fs mount already" in refusal(mountpoint)

    def test_a_hung_mount_is_refused(self, stub: Stub, mountpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A daemon that does not answer may still hold bytes: it is not swept away, and nothing hangs on it."""
        stub("hang")
        probe = mounts.probe
        monkeypatch.setattr(mounts, "probe", lambda path: probe(path, 0.1))
        assert "does not answer" in refusal(mountpoint)

    def test_dead_mounts_are_taken_away(self, stub: Stub, mountpoint: str, caplog: pytest.LogCaptureFixture) -> None:
        """After a crash, or several upon each other, the directory is usable again; each one is logged."""
        for process in [stub("mute") for _ in range(3)]:
            process.kill()
            process.wait()
        assert_dead(mountpoint)
        assert prepare(mountpoint) == mountpoint and os.listdir(mountpoint) == []
        assert not [mount for mount in mounts.all_mounts() if mount.mountpoint == mountpoint]
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * 3

    def test_what_a_dead_mount_hid_is_found(self, stub: Stub, mountpoint: str) -> None:
        """Files under the dead mount are seen once it is gone, and refuse the start."""
        (Path(mountpoint) / "hidden").touch()
        process = stub("hang")
        process.kill()
        process.wait()
        assert_dead(mountpoint)
        assert "not empty (hidden)" in refusal(mountpoint)


def assert_dead(mountpoint: str) -> None:
    """The kernel knows that the daemon is gone as soon as its process has ended."""
    assert mounts.probe(mountpoint) is mounts.Liveness.DEAD


# ---------------------------------------------------------------- the machine


class Machine:
    """A process without rights, on a machine with a usable /dev/fuse; each test takes something away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.user(1000)
        self.opening(None)
        self.patch.setattr(shutil, "which", lambda name: "/usr/bin/fusermount3")
        self.patch.setattr(subject, "_allows_other", lambda: False)

    def user(self, uid: int, *, capable: bool = False, confined: bool = False) -> None:
        status = {"CapEff": "0000000000200000" if capable else "0000000000000000", "NoNewPrivs": str(int(confined))}
        self.patch.setattr(os, "geteuid", lambda: uid)
        self.patch.setattr(subject, "_own_status", lambda: status)

    def opening(self, number: int | None) -> None:
        def opened() -> None:
            if number is not None:
                raise OSError(number, os.strerror(number))

        self.patch.setattr(subject, "_open_device", opened)

    def refusal(self, allow_other: bool = False) -> str:
        with pytest.raises(MountError) as caught:
            subject.check_fuse(allow_other)
        return str(caught.value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOENT, "--device /dev/fuse"),
        (errno.EPERM, "no bind mount"),
        (errno.EACCES, "run as root"),
        (errno.ENODEV, "modprobe fuse"),
    ],
)
def test_a_device_that_cannot_be_opened(machine: Machine, number: int, hint: str) -> None:
    """Each way in which /dev/fuse is not usable has its own advice (deployment facts 2.1)."""
    machine.opening(number)
    assert hint in machine.refusal()


def test_root_without_the_capability(machine: Machine) -> None:
    """Root in a container may not mount without CAP_SYS_ADMIN; the line names the container's flag."""
    machine.user(0)
    assert "--cap-add SYS_ADMIN" in machine.refusal()
    machine.user(0, capable=True)
    assert subject.check_fuse(allow_other=True) is False


def test_a_user_mounts_by_fusermount(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user needs fusermount3, the right to use it, and the administrator's word for allow_other."""
    assert subject.check_fuse() is True
    assert "user_allow_other" in machine.refusal(allow_other=True)
    machine.user(1000, confined=True)
    assert "NoNewPrivileges" in machine.refusal()
    machine.user(1000)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "apt-get install fuse3" in machine.refusal()
    machine.user(1000, capable=True, confined=True)  # the unit of deployment facts 3.9
    assert subject.check_fuse(allow_other=True) is False
