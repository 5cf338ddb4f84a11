"""Programs that know nothing of b2fs, run on a mount and on a plain directory.

Rules
  A test is a function of a directory (the *job*), run on a plain directory and on a mount: what it leaves must be equal.
  Then the mount is moved: flush, SIGKILL, an empty state directory, a start at the same mountpoint. What is looked at
  then came from the bucket alone, by the promise of the flush alone, and absolute paths in it are still right.
  Programs get the same environment everywhere: fixed language, zone, and umask, nothing of the one who runs the tests.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from b2fs.units import parse_duration
from tests.mount.hosts import Host
from tests.tree import Entry, compare, tree

PROGRAM_S = 120.0
"""More than any program here takes on a busy machine; one that hangs fails the test."""
LONG_S = int(parse_duration(os.environ.get("PROGRAMS_TIME", "0")))
"""Seconds for each of the stress tests, told by `make programs TIME=…`; 0: the quick form of all tests."""
CLOCK_NS = 1_735_689_600_000_000_000
"""2025-01-01. The jobs set times before it; later ones come from the clock, and differ between two runs."""
LONG_AGO_NS = 1_600_000_000_123_456_789

KEEPS_LINKS = True
"""Does the mount have hard links? `test_what_the_mount_keeps` fails when this is no longer true."""
KEEPS_XATTRS = True
"""Does the mount keep extended attributes? The same test watches it."""


def run(*command: str | os.PathLike[str], cwd: Path | None = None, ok: Collection[int] = (0,), **more: str) -> str:
    """Run a program to its end; what it printed. AssertionError, with all that it said, for another exit code.

    `more` are variables of its environment.
    """
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PROGRAM_S + LONG_S,
    )
    said = done.stdout.decode(errors="replace")
    assert done.returncode in ok, (command, done.returncode, said[-4000:], done.stderr.decode(errors="replace")[-4000:])
    return said


def environment(**more: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "TMPDIR", "HOME") if name in os.environ}
    return kept | {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | more


def move(host: Host) -> None:
    """What a flush promised is all that the next host has: this one is lost with its state directory."""
    host.flush()
    host.kill()
    host.forget_state()
    host.start()


def here_and_elsewhere(host: Host) -> Iterator[str]:
    """For what is checked twice: before and after the mount is moved."""
    yield "here"
    move(host)
    yield "elsewhere"


def same(first: Path | Mapping[str, Entry], second: Path | Mapping[str, Entry]) -> None:
    """Two trees hold the same; times from the clock may differ."""
    one = tree(first) if isinstance(first, Path) else first
    other = tree(second) if isinstance(second, Path) else second
    assert one, "nothing was made"
    assert compare(one, other, clock_ns=CLOCK_NS) == []


def bytes_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(root: Path) -> None:
    """A tree with something of everything that programs copy: modes, times, links, names, sizes, holes."""
    files = {
        "read me.txt": b"first line\nsecond line\nthird line\n" * 40,
        "code/main.c": b"int main(void) { return 0; }\n",
        "code/lib/util.c": b"int one = 1;\n" * 300,
        "code/empty": b"",
        "медіа/пісня.raw": bytes_of(300_000),
        "large.bin": bytes_of(3_000_000, seed=2),
        "-dash": b"a name that looks like an option\n",
    }
    for number in range(30):
        files[f"many/{number:03}.txt"] = f"{number}\n".encode() * number
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    with open(root / "sparse.img", "wb") as file:
        file.write(b"head")
        file.seek(2_000_000)
        file.write(b"middle")
        file.truncate(5_000_000)
    (root / "empty directory").mkdir()
    os.symlink("read me.txt", root / "link")
    os.symlink("../large.bin", root / "code/up")
    os.symlink("no/where", root / "dangling")
    os.symlink("code", root / "link to code")
    modes = {"code/main.c": 0o600, "code/empty": 0o444, "-dash": 0o4755, "many": 0o2750, "empty directory": 0o1777}
    for name, mode in modes.items():
        os.chmod(root / name, mode)
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS + number * 1_000_000_007), follow_symlinks=False)


def directory_times(root: Path) -> dict[str, int]:
    """The mtimes of all directories that were set, not left by the clock."""
    found = {str(path.relative_to(root)): path.lstat().st_mtime_ns for path in root.rglob("*") if path.is_dir()}
    return {name: mtime_ns for name, mtime_ns in found.items() if mtime_ns < CLOCK_NS}
