"""rsync onto the mount: a second run has nothing to do, here and elsewhere; changes arrive in all its ways."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.hosts import Host
from tests.programs.support import KEEPS_LINKS, KEEPS_XATTRS, bytes_of, directory_times, fill, move, run, same

LARGE = "large.bin"


def rsync(source: Path, target: Path, *options: str) -> str:
    """What it changed, one line for each."""
    kept = "-aHX" if KEEPS_LINKS else "-aX"
    return run("rsync", kept, "--itemize-changes", *options, f"{source}/", f"{target}/")


def test_rsync(host: Host, plain: Path) -> None:
    """rsync -aX twice, the second transfers nothing; --inplace, --append, --delete and backups; and out again elsewhere."""
    fill(plain)
    if KEEPS_XATTRS:
        os.setxattr(plain / LARGE, "user.colour", b"green")
    if KEEPS_LINKS:
        os.link(plain / LARGE, plain / "z.bin")
    target = host.path / "copy"
    assert LARGE in rsync(plain, target)
    assert rsync(plain, target) == ""
    with open(plain / LARGE, "r+b") as file:
        file.seek(1_000_000)
        file.write(bytes_of(1000, seed=3))
    assert rsync(plain, target, "--inplace", "--no-whole-file").split()[1] == LARGE
    with open(plain / LARGE, "ab") as file:
        file.write(bytes_of(100_000, seed=4))
    assert rsync(plain, target, "--append", "--no-whole-file").split()[1] == LARGE
    (plain / "many/007.txt").unlink()
    (plain / "many/008.txt").write_bytes(b"replaced\n")
    changed = rsync(plain, target, "--delete", "--backup", "--backup-dir=../old", "--fsync")
    assert changed.count("\n") == 3, changed  # one deleted, one sent, the time of their directory
    move(host)
    same(plain, target)
    assert directory_times(target) == directory_times(plain)
    assert rsync(plain, target) == ""
    assert rsync(plain, target, "--checksum") == ""
    assert {each.name for each in (host.path / "old/many").iterdir()} == {"007.txt", "008.txt"}
    back = plain.parent / "back"
    rsync(target, back)
    same(plain, back)
