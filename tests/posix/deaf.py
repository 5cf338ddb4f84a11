"""`b2fs` whose kernel is not told what others changed: ``python -m tests.posix.deaf mount …``.

What a program meets in the moment between a listing and the notice to the kernel is here for as long as a test wants.
"""

from __future__ import annotations

import sys

from b2fs.__main__ import main
from b2fs.frontends.fuse import FuseMount

if __name__ == "__main__":
    FuseMount._changed = lambda self, changed: None  # type: ignore[method-assign]
    sys.exit(main())
