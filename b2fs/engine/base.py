"""What of a changed file B2 has already, in an earlier version of it.

Rule: nothing is remembered of what a program writes. When a sealed file's turn comes it is compared with what the cache
still holds of its base: that finds what is equal whichever way it was written (in place, anew, by a renamed copy),
before and after a crash, and takes a fraction of the upload's time. What was evicted counts as changed.
"""

from __future__ import annotations

from b2fs.core import chunks
from b2fs.core.bucket import Base
from b2fs.core.change import ObjectRow
from b2fs.core.inode import Inode
from b2fs.core.parts import BLOCK, WORTH
from b2fs.engine.volume import Volume


async def find(volume: Volume, live: Inode, row: ObjectRow | None) -> Base | None:
    """What staged content has in common with the version that it came from, else with the one at its key (`row`).

    None where no copy on the server could be cheaper than its upload.
    """
    if not live.staged or live.size <= 2 * WORTH:
        return None
    for file_id in dict.fromkeys((live.file_id, row.file_id if row is not None else "")):
        if file_id:
            same = await volume.seam.thread(_same, volume, live, file_id)
            if same:
                return Base(file_id, same)
    return None


def _same(volume: Volume, live: Inode, file_id: str) -> list[tuple[int, int]]:
    whole = chunks.whole(file_id)
    if volume.disk.has_blob(whole):
        blobs = [(whole, 0)]
    else:
        blobs = [(chunks.part(file_id, index), index * chunks.CHUNK) for index in range(chunks.count(live.size))]
    found = volume.disk.same_as_blobs(live.staged, blobs, BLOCK)
    return [(start, end) for start, end in found if end - start > WORTH]
