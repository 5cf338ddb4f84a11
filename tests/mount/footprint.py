"""What a daemon takes while it has nothing to do: descriptors, threads, tasks, memory, inodes, bytes in its state directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from tests.mount.support import Mount

_LOG = (".db-wal", ".db-shm")
"""The journal's log is used again from its beginning, and bounded by itself."""


class Footprint(NamedTuple):
    descriptors: int
    threads: int
    tasks: int
    """Of trio; pyfuse3 keeps one that waits for a request, or two."""
    inodes: int
    memory: int
    state: int
    """Bytes of all files in the state directory but the journal's log."""


def footprint(mount: Mount) -> Footprint:
    status = Path(f"/proc/{mount.pid}/status").read_text()
    (kib,), (threads,) = re.findall(r"VmRSS:\s+(\d+)", status), re.findall(r"Threads:\s+(\d+)", status)
    stats = mount.stats()
    files = [Path(folder) / name for folder, _, names in os.walk(mount.state) for name in names]
    return Footprint(
        descriptors=len(os.listdir(f"/proc/{mount.pid}/fd")),
        threads=int(threads),
        tasks=stats["loop"]["tasks"],
        inodes=stats["names"]["inodes"],
        memory=int(kib) * 1024,
        state=sum(file.stat().st_size for file in files if not file.is_socket() and file.suffix not in _LOG),
    )
