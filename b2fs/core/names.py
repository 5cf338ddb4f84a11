"""Names: what may be an object key, and how keys, paths and directories correspond.

Rules
  A file's key is its path below the mount, joined by '/', as UTF-8; nothing is escaped, so that every
  other B2 tool reads the bucket as it is.
  A directory is implied by the keys below it and confirmed by a marker object ``DIR/.bzEmpty`` (zero
  bytes, the convention of Backblaze's own web page), which carries its mode and times and keeps it
  alive when its last file goes.
  The bucket may hold keys that no path can have (``a//b``, ``/x``, ``..``): they are left alone and
  reported, never changed.

Source of the limits: facts b2.md 1.5 and 1.6.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from b2fs.errors import BadName, NameTooLong

MARKER = ".bzEmpty"
NAME_MAX = 250
"""Longest name in one directory, bytes: what b2sdk lets through to B2."""
FUSE_NAME_MAX = 255
"""Longest name that the kernel hands through, bytes; foreign objects may use it up."""
KEY_MAX = 1000
"""Longest key with the mount's prefix, bytes; B2 takes 1024, b2sdk 1000."""
HEADER_BUDGET = 2048
"""Bytes for the percent-encoded name and fileInfo in a bucket with default encryption (SSE-B2)."""
HEADER_RESERVE = 100
"""Bytes of the budget kept free for headers that B2 or a copy adds itself."""

INFO_MOST = 700
"""Bytes that the fileInfo takes at most, but for extended attributes (core.inode.largest_info)."""

_CONTROL = frozenset(chr(code) for code in (*range(32), 127))
_SAFE = "._-/~!$'()*;=:@"
"""What B2's percent-encoding leaves as it is (facts b2.md 1.6)."""


def decode(name: bytes) -> str:
    """The name of a new directory entry as text, or why it cannot be one.

    BadName: not UTF-8, a control character, '.', '..', '', or the marker's own name. NameTooLong.
    """
    if len(name) > NAME_MAX:
        raise NameTooLong(f"a name may have {NAME_MAX} bytes, this one has {len(name)}")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise BadName(f"object names are UTF-8, {name!r} is not") from None
    if not _CONTROL.isdisjoint(text):
        raise BadName(f"object names cannot hold control characters: {name!r}")
    if text in ("", ".", ".."):
        raise BadName(f"{text!r} is not a name")
    if text == MARKER:
        raise BadName(f"b2fs keeps directories in objects of the name {MARKER!r}")
    return text


def can_be(name: bytes) -> bool:
    """Whether an object of the bucket could have this name in some directory."""
    try:
        return unusable(name.decode()) is None and b"/" not in name
    except UnicodeDecodeError:
        return False


def check_key(prefix: str, key: str, info: Mapping[str, str] | None = None) -> None:
    """Raise NameTooLong unless B2 takes this key with this fileInfo."""
    full = prefix + key
    if len(full.encode()) > KEY_MAX:
        raise NameTooLong(f"an object name may have {KEY_MAX} bytes, this path needs {len(full.encode())}")
    if header_size(full, info or {}) > HEADER_BUDGET - HEADER_RESERVE:
        raise NameTooLong(f"the path with its attributes does not fit into B2's {HEADER_BUDGET} bytes of headers")


def room_below(prefix: str, directory: str) -> int:
    """What may be below a directory and surely fits: thrice its path and its extended attributes, in bytes."""
    return HEADER_BUDGET - HEADER_RESERVE - INFO_MOST - 3 * len(f"{prefix}{directory}/{MARKER}".encode())


def header_size(full_key: str, info: Mapping[str, str]) -> int:
    """Bytes of B2's header budget that a name with its fileInfo uses (upper bound)."""
    used = len(quote(full_key, safe=_SAFE))
    for name, value in info.items():
        used += len("x-bz-info-") + len(name) + len(quote(value, safe=_SAFE))
    return used


def unusable(key: str) -> str | None:
    """Why a key of the bucket cannot be a path, or None. The marker and ``dir/`` forms are usable."""
    if not key.isprintable() and not _CONTROL.isdisjoint(key):  # the former alone is quick, and a little too strict
        return "has a control character"
    body = key.removesuffix("/")
    if not body:
        return "is empty"
    for segment in body.split("/"):
        if segment == "":
            return "has an empty part ('//' or a leading '/')"
        if segment in (".", ".."):
            return f"has the part {segment!r}"
        if len(segment.encode()) > FUSE_NAME_MAX:
            return f"has a part of more than {FUSE_NAME_MAX} bytes"
    return None


def join(directory: str, name: str) -> str:
    """The key of `name` in `directory` ('' is the root)."""
    return f"{directory}/{name}" if directory else name


def marker(directory: str) -> str:
    """The key of a directory's marker ('' is the root)."""
    return join(directory, MARKER)


def split(key: str) -> tuple[str, str]:
    """Directory and name of a key; the directory of a top-level key is ''."""
    directory, _, name = key.rpartition("/")
    return directory, name


def marked_directory(key: str) -> str | None:
    """The directory that this key is the marker of (``d/.bzEmpty``, or ``d/`` of S3 tools), else None."""
    if key.endswith("/"):
        return key[:-1]
    directory, name = split(key)
    return directory if name == MARKER else None
