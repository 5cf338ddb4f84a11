"""A process that mounts an empty file system as b2fs does, and answers the control socket with fixed values.

    stub_daemon.py DIR [hang|mute|serve|left|refuse]

`hang` mounts and never answers, `mute` serves the mount but no control socket. The others serve both; at
`drain` they unmount and end (`serve`), report files that are not in B2, then unmount and end (`left`), or
refuse and go on (`refuse`). Prints ``ready`` once it serves.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import Any

import pyfuse3
import trio

from b2fs.errors import Exit, MountError, NotDrained, NotFound
from b2fs.ops import address, control

PINS = {
    "files": 8, "bytes": 3 << 20, "here_bytes": 2 << 20, "limit": 5 << 30, "left_out": 2, "left_out_bytes": 6 << 30
}  # fmt: skip
STATUS = {
    "mountpoint": "", "bucket": "dictafan", "prefix": "a/", "endpoint": "http://127.0.0.1:1", "state_dir": "/state",
    "version": "0.1.0", "pid": os.getpid(), "started_s": time.time() - 125, "state": "serving", "online": False,
    "last_error": "no route to host", "listing": {"running": True, "complete": False, "objects": 566},
    "dirty": {"files": 3, "bytes": 5 << 20, "oldest_age_s": 12.0}, "pins": PINS,
    "problems": [{"key": "x.mp3", "why": "cap reached"}], "ignored": [{"key": "a//b", "why": "empty segment"}] * 12,
}  # fmt: skip
FILE = {
    "path": "", "kind": "file", "state": "in-b2", "size": 6, "generation": 7, "file_id": "4_z1", "sha1": "f" * 40
}  # fmt: skip
STATS = {
    "cache": {"hits": 90, "misses": 10, "bytes": 1 << 20, "limit": 10 << 30, "objects": 4, "evictions": 1},
    "prefetch": {"requests": 50, "useful": 40, "wasted": 3, "wasted_bytes": 3072, "unread": 7, "on": False},
    "pins": PINS,
    "dirty": {"files": 3, "bytes": 5 << 20, "limit": 5 << 30, "oldest_age_s": 12.0, "time_to_full_s": 90.0},
    "queue": {"waiting": 2, "in_flight": 1, "failed": 0},
    "transfers": {"uploads": 5, "uploaded_bytes": 2048, "fetches": 6, "fetched_bytes": 4096},
    "requests": {"calls": {"b2_upload_file": 5}, "classes": {"A": 5, "C": 1}, "sent": 2048, "received": 4096, "copied": 0},
    "names": {"inodes": 570, "directories_loaded": 40},
    "loop": {"tasks": 23},
}  # fmt: skip


class Empty(pyfuse3.Operations):
    """An empty root directory."""

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o755
        return entry

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return pyfuse3.StatvfsData()


async def serve(mountpoint: str, manner: str) -> None:
    async def handle(command: str, args: dict[str, Any], progress: control.Progress) -> dict[str, Any]:
        match command:
            case "status" if "path" in args:
                return {**FILE, "path": args["path"]}
            case "status":
                return {**STATUS, "mountpoint": mountpoint}
            case "stats":
                return STATS
            case "flush" if args["path"] == "missing":
                raise NotFound("missing: no such file")
            case "flush":
                await progress({"files": 1, "bytes": 6})
                return {"flushed": 1}
        if manner == "refuse":
            raise MountError("busy")
        await progress({"files": 1, "bytes": 6})
        await trio.sleep(0.05)  # so that it is shown before the answer comes
        nursery.start_soon(leave)
        if manner == "left":
            raise NotDrained("1 file is not in B2; /state/manifest says which")
        return {"pid": os.getpid()}

    async def leave() -> None:
        await trio.sleep(0.1)  # the command has to wait for this
        pyfuse3.terminate()

    async def announce() -> None:
        await trio.to_thread.run_sync(os.statvfs, mountpoint)
        print("ready", flush=True)

    async with trio.open_nursery() as nursery:
        if manner != "mute":
            path = os.path.join(address.runtime_dir(), address.socket_name(mountpoint))
            await nursery.start(control.serve, path, handle)
        nursery.start_soon(announce)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    pyfuse3.close(unmount=True)


def main() -> None:
    mountpoint, manner = sys.argv[1], (sys.argv[2:] or ["serve"])[0]
    pyfuse3.init(Empty(), mountpoint, {*pyfuse3.default_options, "fsname=b2fs", "subtype=b2fs"})
    if manner == "hang":
        print("ready", flush=True)
        time.sleep(3600)
    trio.run(serve, mountpoint, manner)
    sys.exit(Exit.OK)


if __name__ == "__main__":
    main()
