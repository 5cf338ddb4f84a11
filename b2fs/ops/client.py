"""The commands' side of the control socket: find the daemon, ask, wait with a limit.

Rules
  Synchronous, standard library only: `b2fs status` must start fast and work when the daemon does not.
  The daemon sends a line at least every few seconds while it works (see `b2fs.ops.control`), so silence
  for `SILENCE_S` means that it hangs, however long the work takes.
  The peer is trusted after the kernel has named its uid: that of the mount, or root.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from b2fs.errors import B2fsError, Exit, MountError, NotRunning
from b2fs.ops import address, mounts

CONNECT_S = 5.0
SILENCE_S = 30.0

Progress = Callable[[dict[str, Any]], None]


class DaemonError(B2fsError):
    """The daemon's own refusal, with the exit code that it chose."""

    def __init__(self, message: str, exit_code: Exit) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Target:
    """A mount, and a path in it."""

    mount: mounts.Mount
    path: str
    """Relative to the mountpoint; '' for the mountpoint itself."""


def find(path: str | None) -> Target:
    """The mount that `path` is in; without a path the only one there is. Raises `NotRunning`."""
    running = mounts.b2fs_mounts()
    if not running:
        raise NotRunning("no b2fs mount on this machine; `b2fs mount DIR` makes one")
    listing = ", ".join(mount.mountpoint for mount in running)
    if path is None:
        if len({mount.mountpoint for mount in running}) > 1:
            raise NotRunning(f"there are several b2fs mounts, name one of them: {listing}")
        return Target(running[-1], "")
    found = mounts.find(path, running)
    if found is None:
        raise NotRunning(f"{path} is not in a b2fs mount; there is {listing}")
    return Target(*found)


class Connection:
    """One question to one daemon. Use as a context manager."""

    def __init__(self, mount: mounts.Mount) -> None:
        """Connect. Raises `NotRunning` when no daemon listens for `mount`, `MountError` when it is another user's."""
        self._mount = mount
        self._socket, self.pid = _connect(mount)
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def call(self, command: str, args: Mapping[str, Any], on_progress: Progress | None = None) -> dict[str, Any]:
        """Ask and wait for the result. Raises `DaemonError`, or `NotRunning` when the daemon is lost meanwhile."""
        question = json.dumps({**args, "command": command}) + "\n"
        try:
            self._socket.sendall(question.encode())
            for line in self._lines:
                answer = json.loads(line)
                if "result" in answer:
                    return dict(answer["result"])
                if "error" in answer:
                    raise DaemonError(str(answer["error"]), _exit_code(answer.get("exit")))
                if on_progress and answer.get("progress"):
                    on_progress(answer["progress"])
        except TimeoutError:
            raise NotRunning(
                f"the daemon of {self._mount.mountpoint} (pid {self.pid}) hangs: no answer for {SILENCE_S:.0f} s"
            ) from None
        except (OSError, ValueError) as error:
            raise NotRunning(f"lost the daemon of {self._mount.mountpoint} (pid {self.pid}): {error}") from None
        raise NotRunning(f"the daemon of {self._mount.mountpoint} (pid {self.pid}) ended without an answer")


def call(
    mount: mounts.Mount, command: str, args: Mapping[str, Any] | None = None, on_progress: Progress | None = None
) -> dict[str, Any]:
    """One question on a connection of its own."""
    with Connection(mount) as connection:
        return connection.call(command, args or {}, on_progress)


def _connect(mount: mounts.Mount) -> tuple[socket.socket, int]:
    owner = mount.owner if mount.owner is not None else os.geteuid()
    name = address.socket_name(mount.mountpoint)
    for directory in address.candidates(owner):
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stream.settimeout(CONNECT_S)
            stream.connect(os.path.join(directory, name))
            pid, uid = _peer(stream)
            if uid in (owner, 0):
                stream.settimeout(SILENCE_S)
                return stream, pid
        except PermissionError:
            stream.close()
            raise MountError(
                f"{mount.mountpoint} belongs to another user (uid {owner}): run this as that user"
            ) from None
        except OSError:  # not here, or left behind by a dead daemon
            pass
        stream.close()
    raise NotRunning(
        f"no daemon answers for {mount.mountpoint}; if it has died: `b2fs umount {mount.mountpoint}` cleans up"
    )


def _peer(stream: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that listens, as the kernel knows it; pid 0 where it is not visible from here."""
    layout = struct.Struct("iII")
    pid, uid, _gid = layout.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
    return pid, uid


def _exit_code(number: object) -> Exit:
    return next((code for code in Exit if code == number), Exit.BUG)
