"""`b2fs umount DIR`."""

from __future__ import annotations

import contextlib
import os
import select
import time
from typing import Any

import click

from b2fs.cli import render
from b2fs.errors import Exit, MountError, NotDrained, NotRunning
from b2fs.ops import client, mounts

# The daemon has nothing left to do but close its files once it has answered.
LEAVE_S = 60.0
_POLL_S = 0.05


@click.command()
@click.argument("directory", metavar="DIR")
def command(directory: str) -> None:
    """Upload what is left, unmount DIR, and wait until the daemon has ended.

    Ends with 0 when everything is in B2, with 8 when something is not: then the state directory has it, and
    the next `b2fs mount` goes on with it. A mount whose daemon has died is taken away.
    """
    target = client.find(directory)
    mountpoint = target.mount.mountpoint
    if target.path:
        raise MountError(f"{directory} is not a mountpoint; `b2fs umount {mountpoint}` unmounts all of that mount")
    try:
        connection = client.Connection(target.mount)
    except NotRunning:
        _take_away_dead(mountpoint)
        return
    with connection, render.uploading("drain") as progress, _Ending(connection.pid) as ending:
        left: dict[str, Any] = {}
        failure: client.DaemonError | None = None
        try:
            left = connection.call("drain", {}, progress)
        except client.DaemonError as error:
            if error.exit_code is not Exit.NOT_DRAINED:
                raise  # it refuses, and goes on serving
            failure = error  # it gave up waiting for B2, and unmounts
        _wait_until_gone(mountpoint, ending)
    if failure:
        raise failure
    if "manifest" in left:
        raise NotDrained(
            f"not everything is in B2; {left['manifest'] or 'the log'} says what, and the next mount goes on with it"
        )


def _take_away_dead(mountpoint: str) -> None:
    """Detach every mount on `mountpoint` that no daemon stands behind. Raises if one still answers."""
    liveness = mounts.probe(mountpoint)
    if liveness is not mounts.Liveness.DEAD:
        what = "hangs" if liveness is mounts.Liveness.HUNG else "serves, but its control socket does not answer"
        raise NotRunning(f"the daemon of {mountpoint} {what}; stop it with SIGTERM (`ps -C b2fs`), then try again")
    while liveness is mounts.Liveness.DEAD and any(each.mountpoint == mountpoint for each in mounts.b2fs_mounts()):
        mounts.detach(mountpoint)
        liveness = mounts.probe(mountpoint)
    click.echo(
        f"{mountpoint}: the daemon had died; took its mount away. What it had not uploaded is in its state"
        " directory, and the next `b2fs mount` goes on with it.",
        err=True,
    )


def _wait_until_gone(mountpoint: str, ending: _Ending) -> None:
    deadline = time.monotonic() + LEAVE_S
    while any(each.mountpoint == mountpoint for each in mounts.b2fs_mounts()) or not ending.happened():
        if time.monotonic() > deadline:
            raise MountError(
                f"the daemon of {mountpoint} (pid {ending.pid}) has not left after {LEAVE_S:.0f} s;"
                f" what holds it: fuser -vm {mountpoint}"
            )
        time.sleep(_POLL_S)


class _Ending:
    """The end of a process that is not our child; held open, so that a new one with its pid is not taken for it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle: int | None = None

    def __enter__(self) -> _Ending:
        if self.pid:  # 0: it lives in another pid namespace
            with contextlib.suppress(ProcessLookupError):
                self._handle = os.pidfd_open(self.pid)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def happened(self) -> bool:
        if self._handle is None:
            return True
        readable, _, _ = select.select([self._handle], [], [], 0)
        return bool(readable)
