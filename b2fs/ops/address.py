"""Where the control socket of a mount lies: the one rule that daemon and commands share.

Rules
  The name is a hash of the mountpoint: a socket's address has room for 107 bytes, a path has none.
  The directory belongs to the daemon's user alone (0700); a directory of somebody else is refused, since
  in /tmp anybody may have made it first.
"""

from __future__ import annotations

import hashlib
import os
import stat

from b2fs.errors import StateError


def runtime_dir() -> str:
    """The directory for this process's socket, made if it is missing. Raises `StateError`."""
    uid, reason = os.geteuid(), ""
    for path in candidates(uid):
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as error:  # for instance a read-only /run in a container
            reason = f"{path}: {error.strerror}"
        else:
            if is_private(path, uid):
                return path
            reason = f"{path} is not a private directory (0700) of this user"
    raise StateError(f"no place for the control socket: {reason}")


def candidates(uid: int) -> list[str]:
    """The directories where the socket of a daemon of `uid` may be, best first."""
    if uid == 0:
        return ["/run/b2fs", "/tmp/b2fs-0"]  # noqa: S108  # `is_private` refuses what others made
    session = [f"/run/user/{uid}"]
    if uid == os.geteuid():
        session.insert(0, os.environ.get("XDG_RUNTIME_DIR", ""))
    # A longer one would leave no room in a socket's address.
    found = [os.path.join(each, "b2fs") for each in session if os.path.isdir(each) and len(os.fsencode(each)) <= 80]
    return [*dict.fromkeys(found), f"/tmp/b2fs-{uid}"]  # noqa: S108


def socket_name(mountpoint: str) -> str:
    """The file name of the socket of `mountpoint`, which is absolute and free of symbolic links."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16] + ".sock"


def is_private(directory: str, uid: int) -> bool:
    """Whether `directory` is one, belongs to `uid`, and lets nobody else in."""
    try:
        info = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == uid and not info.st_mode & 0o077
