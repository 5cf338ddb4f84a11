"""What must hold of a directory, and of this machine, before b2fs mounts there.

Rules
  Every refusal is one line that says what to do.
  A mountpoint that holds something is refused: the mount would hide it, and the user would miss it.
  What a dead daemon left mounted is taken away, however many lie upon each other: a mount upon a dead one
  would leave both behind.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from itertools import islice

from b2fs.errors import MountError
from b2fs.ops import mounts
from b2fs.ops.mounts import Liveness

# More dead mounts than this on one path are not an accident any more.
_MAX_STACKED = 100
_CAP_SYS_ADMIN = 21

_log = logging.getLogger(__name__)


def prepare(mountpoint: str, allow_other: bool = False) -> str:
    """Check everything and clean up; the path to mount at, absolute and free of symbolic links.

    Raises `MountError`; then nothing was changed, except that dead mounts are gone. ``/dev/fd/N``, a
    mount that somebody else has made for us, is returned as it is.
    """
    if re.fullmatch(r"/dev/fd/[0-9]+", mountpoint):
        return mountpoint
    by_helper = check_fuse(allow_other)
    points = [mount.mountpoint for mount in mounts.all_mounts() if mount.fstype.startswith("fuse")]
    path = mounts.resolve(mountpoint, points)
    _detach_dead(path)
    _check_directory(path)
    if by_helper and not os.access(path, os.W_OK):
        raise MountError(f"{path} is not writable for this user, and so fusermount3 does not mount there: chown it")
    return path


def check_fuse(allow_other: bool = False) -> bool:
    """Raise `MountError` unless this process may mount; True if it does so by way of fusermount3 (setuid)."""
    try:
        _open_device()
    except OSError as error:
        raise MountError(_device_hint(error)) from None
    status = _own_status()
    if int(status["CapEff"], 16) >> _CAP_SYS_ADMIN & 1:
        return False
    if os.geteuid() == 0:
        raise MountError("root may not mount here (no CAP_SYS_ADMIN); in a container: --cap-add SYS_ADMIN")
    if status.get("NoNewPrivs") == "1":
        raise MountError(
            "this process may not mount: NoNewPrivileges is set, so fusermount3 has no rights; give it"
            " AmbientCapabilities=CAP_SYS_ADMIN (systemd), or leave no-new-privileges out (container)"
        )
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is missing, which mounts for users: apt-get install fuse3")
    if allow_other and not _allows_other():
        raise MountError(
            "allow_other is set, and /etc/fuse.conf does not let users do that: put the line user_allow_other"
            " there, or give --allow-other false"
        )
    return True


def _detach_dead(path: str) -> None:
    """Take dead mounts off `path` until there is none, or a living one (an error where that is b2fs)."""
    for _ in range(_MAX_STACKED):
        stack = [mount for mount in mounts.all_mounts() if mount.mountpoint == path]
        if not stack or not stack[-1].fstype.startswith("fuse"):
            return
        liveness = mounts.probe(path)
        if liveness is Liveness.HUNG:
            raise MountError(
                f"{path} is a {stack[-1].fstype} mount that does not answer: stop its daemon, then start again"
            )
        if liveness is Liveness.SERVING:
            if stack[-1].is_b2fs:
                raise MountError(
                    f"{path} is a b2fs mount already: see `b2fs status {path}`; `b2fs umount {path}` ends it"
                )
            return
        mounts.detach(path)
        _log.warning("%s: took away the %s mount of a daemon that had died", path, stack[-1].fstype)
    raise MountError(f"{path} has more than {_MAX_STACKED} dead mounts upon each other: umount -l {path}")


def _check_directory(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in islice(entries, 4))
    except FileNotFoundError:
        raise MountError(f"{path} does not exist: mkdir -p {path}") from None
    except NotADirectoryError:
        raise MountError(f"{path} is not a directory; give a directory that is empty") from None
    except OSError as error:
        raise MountError(f"{path}: {error.strerror}") from None
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise MountError(
            f"{path} is not empty ({shown}), and a mount would hide that: move it away, or into the bucket,"
            " then start again"
        )


def _open_device() -> None:
    os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))


def _device_hint(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "/dev/fuse is missing: modprobe fuse; in a container: --device /dev/fuse --cap-add SYS_ADMIN"
    if error.errno == errno.EPERM:
        return "/dev/fuse may not be opened here (EPERM): give the container --device /dev/fuse (no bind mount)"
    if error.errno == errno.EACCES:
        return "no permission to open /dev/fuse: run as root, or chmod 666 /dev/fuse (as udev has it)"
    return f"/dev/fuse cannot be used ({error.strerror}): modprobe fuse"


def _own_status() -> dict[str, str]:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _allows_other() -> bool:
    try:
        with open("/etc/fuse.conf", encoding="utf-8", errors="replace") as lines:
            return any(line.strip() == "user_allow_other" for line in lines)
    except OSError:
        return False
