"""fio and stress-ng, which check what they read.

Stressors of stress-ng's file-system class that do not run here, and why:
  access, chown, open, link, symlink count names or bits until an errno that they expect of ext4; see `LEFT_OUT`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.mount.hosts import Host
from tests.programs.support import LONG_S, move, run

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
        *("--verify=crc32c", "--verify_fatal=1", "--group_reporting", "--output-format=terse", *options),
    )


@pytest.mark.parametrize("engine", ["psync", "mmap"])
def test_fio(host: Host, engine: str) -> None:
    """Three jobs write and verify by crc32c, in three ways; another host verifies what they have left."""
    names = {way: way.replace(" ", "-") for way in WAYS}
    for way, options in WAYS.items():
        fio(host.path, names[way], f"--ioengine={engine}", *options)
        if LONG_S:
            fio(host.path, "long", f"--ioengine={engine}", *options, "--time_based", f"--runtime={LONG_S // len(WAYS)}")
    move(host)
    for way, options in WAYS.items():
        fio(host.path, names[way], "--ioengine=psync", "--verify_only", *options)
