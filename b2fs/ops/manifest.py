"""The manifest: what an end left behind, for people and for whoever takes the state directory over.

It is there exactly while something is left: a stop that brought everything to B2 takes it away.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from typing import Any

from b2fs.adapters.disk import fsync_directory
from b2fs.config import Config

log = logging.getLogger(__name__)

NAME = "not-in-b2.json"


def write(config: Config, left: list[dict[str, Any]]) -> str:
    """Write what is `left` (see `Uploader.left`) and log it; the manifest's path, '' if nothing is, or the disk takes none.

    On stable storage on return, and in whole: a manifest that is there is never half of one.
    """
    path = os.path.join(config.state_dir, NAME)
    if not left:
        _remove(path)
        return ""
    for entry in left:
        log.error("not in B2: %s (%d bytes): %s", entry["path"], entry["size"], entry["why"])
    content = {"bucket": config.bucket, "prefix": config.prefix, "not_in_b2": left}
    try:
        descriptor = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(descriptor)
        os.rename(path + ".new", path)
        fsync_directory(config.state_dir)
    except OSError as error:  # a full disk, of all times: the log has the list, and the end goes on
        log.error("the manifest %s cannot be written: %s", path, error)
        _remove(path + ".new")
        return ""
    return path


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
