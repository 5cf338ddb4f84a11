"""What the app does to the file system, flow by flow, counted from a trace by strace.

    with serve(data_dir, command=strace(log)) as url:
        run_story(url)
    counts = read_trace(log, data_dir)

Only calls on names and descriptors below the data directory count. The flow is read from the requests themselves: the
driver sends its name in the header X-Flow.
"""

from __future__ import annotations

import os
import re
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.app.server import TEMPORARY


class Counts(NamedTuple):
    """System calls of one flow, named as in the table of the workload."""

    stat: int = 0
    """By path (stat and lstat)."""
    enoent: int = 0
    """Of those, the names that do not exist."""
    probes: int = 0
    """Opens of names that do not exist."""
    opens_r: int = 0
    opens_w: int = 0
    dirs: int = 0
    """Directories opened: listed, or entered by rmtree."""
    read: int = 0
    write: int = 0
    sendfile: int = 0
    utimensat: int = 0
    mkdir: int = 0
    unlink: int = 0
    rmdir: int = 0
    rename: int = 0
    fsync: int = 0


END_TIMEOUT_S = 10.0

_STRING = 1000
"""Bytes of a string that strace shows: the whole head of a request."""
_CALLS = "%file,%desc,recvfrom"
_LINE = re.compile(r"^(?:\d+\s+)?(?P<name>\w+)\((?P<arguments>.*)\)\s+= (?P<result>.*)$")
_FLOW = re.compile(r"X-Flow: (\w+)")
_PATH = re.compile(r'[<"](?P<path>/[^">]*)[">]')
_DATA = {"read": "read", "pread64": "read", "write": "write", "pwrite64": "write", "sendfile": "sendfile"}
_NAMES = ("utimensat", "mkdir", "rename", "fsync")


def strace(log: Path) -> list[str]:
    """The command before the server's: strace as a grandchild (-D), so that the server keeps its pid."""
    return [
        "strace",
        "-D",
        "-f",
        "-y",
        "-s",
        str(_STRING),
        "-e",
        f"trace={_CALLS}",
        "-e",
        "signal=none",
        "-o",
        str(log),
    ]


def read_trace(log: Path, data_dir: Path) -> dict[str, Counts]:
    """Counts per flow. The temporary directory inside the data directory is left out."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    flow = ""
    for line in finished(log):
        if not (call := _LINE.match(line)):
            continue
        name, arguments, result = call["name"], call["arguments"], call["result"]
        if name == "recvfrom":
            if found := _FLOW.search(arguments):
                flow = found[1]
        elif is_inside(arguments, data_dir) and (kind := kind_of(name, arguments, result)):
            counts[flow][kind] += 1
            if kind == "stat" and "ENOENT" in result:
                counts[flow]["enoent"] += 1
    return {flow: Counts(**kinds) for flow, kinds in counts.items()}


def finished(log: Path) -> list[str]:
    """The lines of the trace, once strace (nobody's child) has written that the first process has ended."""
    deadline = time.monotonic() + END_TIMEOUT_S
    while True:
        lines = log.read_text(errors="replace").splitlines()
        master = lines[0].split()[0] if lines else "none"
        if any(line.startswith(master) and line.endswith("+++") for line in lines[-10:]):
            return lines
        if time.monotonic() > deadline:
            raise TimeoutError(f"strace has not finished {log}")
        time.sleep(0.02)


def is_inside(arguments: str, data_dir: Path) -> bool:
    """Does the call name a path, or a descriptor of one, in the data directory but not in its temporary one?"""
    inside = os.fspath(data_dir) + "/"
    temporary = inside + TEMPORARY
    paths = (found["path"] for found in _PATH.finditer(arguments))
    return any(path.startswith(inside) and not path.startswith(temporary) for path in paths)


def kind_of(name: str, arguments: str, result: str) -> str:
    """The field of `Counts` that a call belongs to, '' for one that is not counted."""
    if name in {"stat", "lstat"} or (name == "newfstatat" and "AT_EMPTY_PATH" not in arguments):
        return "stat"
    if name in {"open", "openat"}:
        if "ENOENT" in result or "ENOTDIR" in result:
            return "probes"
        if "O_DIRECTORY" in arguments:
            return "dirs"
        return "opens_w" if "O_WRONLY" in arguments or "O_RDWR" in arguments else "opens_r"
    if name in {"unlink", "unlinkat", "rmdir"}:
        return "rmdir" if name == "rmdir" or "AT_REMOVEDIR" in arguments else "unlink"
    if name in _NAMES:
        return name
    return _DATA.get(name, "")
