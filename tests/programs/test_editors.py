"""Editors save: vim itself, in each of its ways, and the atomic save of all others."""

from __future__ import annotations

import os
from pathlib import Path

from tests.mount.hosts import Host
from tests.programs.support import fill, here_and_elsewhere, run, same

HOW = {
    "renamed": "set backup backupcopy=no",
    "copied": "set backup backupcopy=yes",
    "automatic": "set nobackup writebackup backupcopy=auto",
    "bare": "set nobackup nowritebackup",
}
"""Names of files, and how vim is to write them: 'no' renames the old file away, 'yes' copies it and writes in place."""


def save(root: Path) -> None:
    fill(root)
    for name, options in HOW.items():
        (root / name).write_text("first\nsecond\n" * 400)
        os.chmod(root / name, 0o640)
        os.symlink(name, root / f"{name} link")
        for file, command in ((name, "%s/first/1st/"), (name, "$d"), (f"{name} link", "1s/1st/one/")):
            run(
                "ex",
                "-u",
                "NONE",
                "-i",
                "NONE",
                "-s",
                "-c",
                f"{options} directory=. fsync",
                "-c",
                command,
                "-c",
                "wq",
                file,
                cwd=root,
            )
    save_atomically(root / "document.json", b"old")
    save_atomically(root / "document.json", b"new" * 1000)


def save_atomically(path: Path, data: bytes) -> None:
    """As most editors and databases do it: beside it, on the disk, in its place, and the name on the disk."""
    beside = path.with_name(f".{path.name}.tmp")
    with open(beside, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)


def test_vim(host: Host, plain: Path) -> None:
    """What vim saves in four ways, through links too, with its swap and backup files: as on a plain disk."""
    save(plain)
    save(host.path)
    assert not [each for each in os.listdir(host.path) if each.endswith(".swp")]
    for _ in here_and_elsewhere(host):
        same(plain, host.path)
