"""Which b2fs mounts this machine has, and in what state: from /proc/self/mountinfo.

Rules
  A daemon may hang, and then every file operation on its mount hangs with it. So a mount is found by
  its path alone: nothing here looks at a mountpoint or below it, except `probe`, which does so in a
  thread that it can leave behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from b2fs.errors import MountError

FSTYPE = "fuse.b2fs"

# As the kernel: after this many symbolic links a path is a loop.
_MAX_LINKS = 40
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `owner` is the uid of the daemon, None where the file system tells none."""

    mountpoint: str
    fstype: str
    owner: int | None

    @property
    def is_b2fs(self) -> bool:
        return self.fstype == FSTYPE


class Liveness(StrEnum):
    SERVING = "serving"
    DEAD = "dead"  # ENOTCONN: the daemon ended without unmounting
    HUNG = "hung"  # no answer in time


def all_mounts(mountinfo: str = "/proc/self/mountinfo") -> list[Mount]:
    """Every mount that this process sees, in the order of mounting: of two on one path the last is on top."""
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
        return [_parse(line) for line in lines]


def b2fs_mounts() -> list[Mount]:
    return [mount for mount in all_mounts() if mount.is_b2fs]


def find(path: str, mounts: Iterable[Mount]) -> tuple[Mount, str] | None:
    """The mount of `mounts` that `path` is in, and the path inside of it ('' on the mountpoint itself)."""
    by_point = {mount.mountpoint: mount for mount in mounts}
    resolved = resolve(path, by_point)
    point = resolved
    while point not in by_point and point != "/":
        point = os.path.dirname(point)
    return (by_point[point], resolved[len(point) :].strip("/")) if point in by_point else None


def resolve(path: str, mountpoints: Iterable[str]) -> str:
    """The absolute path without symbolic links, as realpath(3), but never touching one of `mountpoints`.

    From the first of them on, the rest of the path is taken as it is written.
    """
    untouchable = set(mountpoints)
    whole = path if path.startswith("/") else os.path.join(os.getcwd(), path)
    todo = [part for part in reversed(whole.split("/")) if part]
    resolved, links, inside = "/", 0, False
    while todo:
        part = todo.pop()
        if part == "..":
            resolved = os.path.dirname(resolved)
            inside = _is_inside(resolved, untouchable)
        elif part != ".":
            resolved = os.path.join(resolved, part)
            inside = inside or resolved in untouchable
            target = None if inside else _link_target(resolved)
            if target is not None:
                links += 1
                if links > _MAX_LINKS:
                    raise MountError(f"{path}: too many symbolic links")
                resolved = "/" if target.startswith("/") else os.path.dirname(resolved)
                todo.extend(part for part in reversed(target.split("/")) if part)
    return resolved


def probe(mountpoint: str, timeout_s: float = 5.0) -> Liveness:
    """Whether a daemon answers behind `mountpoint`. Waits `timeout_s` at most.

    statfs is never answered from the kernel's cache. The thread of a hung probe stays until the process ends.
    """
    answer: list[Liveness] = []

    def ask() -> None:
        try:
            os.statvfs(mountpoint)
        except OSError as error:
            # ECONNABORTED: the connection went down while the question was on its way.
            dead = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            answer.append(Liveness.DEAD if dead else Liveness.SERVING)
        else:
            answer.append(Liveness.SERVING)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answer[0] if answer else Liveness.HUNG


def detach(mountpoint: str) -> None:
    """Take the topmost mount off `mountpoint`, also a dead or busy one. Raises `MountError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return
    reason = os.strerror(ctypes.get_errno())
    if helper := shutil.which("fusermount3"):  # setuid: lets a user unmount what is the user's own
        done = subprocess.run([helper, "-uz", mountpoint], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        reason = done.stderr.strip() or reason
    raise MountError(f"cannot detach {mountpoint}: {reason}; as root: umount -l {mountpoint}")


def _parse(line: str) -> Mount:
    # 36 35 0:51 / /mnt/data rw,nosuid shared:1 - fuse.b2fs b2fs rw,user_id=0,group_id=0,allow_other
    left, _, right = line.rstrip("\n").partition(" - ")
    fstype, _, options = right.split(" ")[:3]
    owner = re.search(r"(?:^|,)user_id=([0-9]+)", options)
    return Mount(_unescape(left.split(" ")[4]), fstype, int(owner[1]) if owner else None)


def _unescape(field: str) -> str:
    """Undo the kernel's octal escapes: ``\\040`` is a space."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), field)


def _is_inside(path: str, mountpoints: set[str]) -> bool:
    while path != "/":
        if path in mountpoints:
            return True
        path = os.path.dirname(path)
    return False


def _link_target(path: str) -> str | None:
    """Where the symbolic link `path` leads to, None if it is none or does not exist."""
    try:
        return os.readlink(path)
    except OSError:
        return None
