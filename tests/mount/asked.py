"""`b2fs` that says which extended attributes the kernel asks for: ``python -m tests.mount.asked FILE mount …``.

Each request adds a line to FILE, the name.
"""

from __future__ import annotations

import sys
from typing import Any

from b2fs.__main__ import main
from b2fs.frontends.fuse import FuseOperations

if __name__ == "__main__":
    file = sys.argv.pop(1)
    original = FuseOperations.getxattr

    async def getxattr(self: FuseOperations, inode: int, name: bytes, ctx: Any) -> bytes:
        with open(file, "ab") as log:
            log.write(name + b"\n")
        return await original(self, inode, name, ctx)

    FuseOperations.getxattr = getxattr  # type: ignore[method-assign]
    sys.exit(main())
