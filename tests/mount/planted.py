"""`b2fs` with bugs on demand: ``python -m tests.mount.planted FILE mount …``.

FILE holds the names of the methods of the engine that shall fail with an exception that nobody expects, one a line;
it is read at each call, so a test plants and removes a bug while the mount serves.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from b2fs.__main__ import main
from b2fs.engine.engine import Engine
from b2fs.engine.filesystem import FileSystem
from b2fs.engine.listing import Listing
from b2fs.engine.upload import Uploader


def _plant(owner: type, name: str, planted: Path) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def failing(*args: Any, **kwargs: Any) -> Any:
        if name in planted.read_text().split():
            raise RuntimeError(f"planted in {name}")
        return original(*args, **kwargs)

    setattr(owner, name, failing)


if __name__ == "__main__":
    file = Path(sys.argv.pop(1))
    for name, member in list(vars(FileSystem).items()):
        if callable(member) and not name.startswith("_"):
            _plant(FileSystem, name, file)
    _plant(Engine, "file_status", file)
    _plant(Listing, "refresh", file)
    _plant(Uploader, "_next", file)
    sys.exit(main())
