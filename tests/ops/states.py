"""State directories with a bucket, made by the engine itself, without a mount."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from b2fs.adapters.b2.process import TransferProcess
from b2fs.adapters.b2.settings import Settings as BucketSettings
from b2fs.core.inode import Defaults
from b2fs.engine.engine import open_state, own, running
from b2fs.engine.volume import Settings
from tests.devbucket_fixture import DevBucket
from tests.engine.world import Mount

FILES = {"a.txt": b"first", "dir/b.bin": bytes(range(256)) * 20, "dir/empty": b""}


def environ(bucket: DevBucket) -> dict[str, str]:
    """All that a rescue or a remote check is told: the key. The rest would be wrong, and is in the state directory."""
    return {
        "B2_APPLICATION_KEY_ID": bucket.key_id,
        "B2_APPLICATION_KEY": bucket.key,
        "B2_BUCKET_NAME": "another-bucket",
        "B2FS_ENDPOINT": "http://127.0.0.1:9",
        "B2FS_PREFIX": "elsewhere/",
    }


def make(state: Path, bucket: DevBucket, *, drained: bool, prefix: str = "") -> None:
    """A state directory after a run that wrote `FILES` and the link ``link``; `drained`: all of it is in B2, and the
    content is cached. Else the run ended as a crash ends it, with its content in scratch.
    """

    async def work(mount: Mount) -> None:
        await mount.refresh()
        await mount.mkdir("dir")
        for path, data in FILES.items():
            await mount.write(path, data)
        await mount.symlink("link", "a.txt")
        if drained:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.engine.uploader.run)
                await mount.drained()
                nursery.cancel_scope.cancel()

    _run(state, bucket, prefix, work)


def change(state: Path, bucket: DevBucket) -> None:
    """One more run, that nothing is uploaded from: ``a.txt`` is written and sealed, ``dir/b.bin`` is in scratch."""

    async def work(mount: Mount) -> None:
        await mount.write("a.txt", b"second")
        await mount.engine.content.seal(await mount.node("a.txt"))
        await mount.patch("dir/b.bin", 3, b"patch")

    _run(state, bucket, "", work)


def _run(state: Path, bucket: DevBucket, prefix: str, work: Callable[[Mount], Awaitable[None]]) -> None:
    async def run() -> None:
        settings = BucketSettings(
            key_id=bucket.key_id, key=bucket.key, bucket=bucket.bucket, prefix=prefix, endpoint=bucket.url
        )
        disk, journal = open_state(str(state))
        async with TransferProcess.open(settings) as remote:
            own(journal, await remote.connect())
            async with running(disk, journal, remote, Settings(Defaults(1000, 1000), prefix)) as engine:
                await work(Mount(engine))

    trio.run(run)
