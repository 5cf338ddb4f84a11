"""fio and stress-ng, which check what they read.

Stressors of stress-ng's file-system class that do not run here, and why:

* bind-mount, binderfs, eventfd, fanotify, ioprio, procfs: they work on another file system, or on none
* chattr, fiemap, file-ioctl, inode-flags, verity: ioctls; FUSE answers ENOTTY, and they check nothing then
* fsize: files of 2 GiB that are one hole: here a hole counts as bytes, and is uploaded
* io: syncs all disks of the machine
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.hosts import Host
from tests.programs.support import KEEPS_LINKS, KEEPS_XATTRS, LONG_S, move, run, same
from tests.tree import tree

# ---------------------------------------------------------------- fio

QUICK_SIZE = "4m"
LONG_SIZE = "64m"
JOBS = 3
WAYS = {
    "random writes": ("--rw=randwrite", "--bsrange=512-64k"),
    "random reads and writes": ("--rw=randrw", "--bs=4k"),
    "in order": ("--rw=write", "--bs=128k"),
}


def fio(folder: Path, name: str, *options: str) -> None:
    """Several jobs at once; a block that is not what was written ends it with an error."""
    size = LONG_SIZE if LONG_S else QUICK_SIZE
    run(
        *("fio", f"--name={name}", f"--directory={folder}", f"--size={size}", f"--numjobs={JOBS}", "--fallocate=none"),
        *(
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--group_reporting",
            "--output-format=terse",
            *options,
        ),
    )


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio(host: Host, engine: str) -> None:
    """Three jobs write and verify by crc32c, in three ways; another host verifies what they have left."""
    names = {way: way.replace(" ", "-") for way in WAYS}
    for way, options in WAYS.items():
        fio(host.path, names[way], f"--ioengine={engine}", *options)
        if LONG_S:
            fio(host.path, "long", f"--ioengine={engine}", *options, "--time_based", f"--runtime={LONG_S // len(WAYS)}")
    left = tree(host.path)
    move(host)
    same(left, host.path)
    for way, options in WAYS.items():
        fio(host.path, names[way], "--ioengine=psync", "--verify_only", *options)


# ---------------------------------------------------------------- stress-ng

QUICK_S = 4
STRESSORS = {
    "names": (
        *("access", "chdir", "chmod", "chown", "dentry", "dir", "dirdeep", "dirmany", "dnotify", "filename", "getdent"),
        *("inotify", "mknod", "open", "rename", "symlink", "touch", "utime", *(("link",) if KEEPS_LINKS else ())),
    ),
    "content": (
        *("copy-file", "dup", "fallocate", "fpunch", "fstat", "handle", "hdd", "iomix", "sync-file"),
        *(("xattr",) if KEEPS_XATTRS else ()),
    ),
    "locks": ("fcntl", "flock", "lease", "locka", "lockf", "lockofd"),
}


@pytest.mark.parametrize("group", STRESSORS)
def test_stress_ng(host: Host, group: str) -> None:
    """All stressors of a group at once, each verifying what it does: none fails, none gives up, nothing is left over; the
    daemon has nothing to complain of, and another host sees the same.
    """
    folder = host.path / "stress"
    folder.mkdir()
    each = [option for name in STRESSORS[group] for option in (f"--{name}", "1")]
    said = run("stress-ng", "--temp-path", folder, "--verify", "--timeout", f"{LONG_S or QUICK_S}s", *each)
    assert [line for line in said.splitlines() if "fail:" in line or "skip" in line] == []
    assert os.listdir(folder) == []
    move(host)
    assert tree(host.path).keys() == {"stress"}
    assert [line for line in host.log_text().splitlines() if "ERROR" in line] == []
