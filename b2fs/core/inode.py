"""The inode row, and how its attributes travel in an object's fileInfo.

Rules
  An `Inode` is immutable: a change is a new row, committed to the journal and then put into memory.
  Attributes are compared with the bucket in one canonical form (`attributes`), so that an object that
  nobody changed is never uploaded again, whoever wrote it.

Units: sizes in bytes, times in ns since the epoch.

The fileInfo of an object written by b2fs: ``src_last_modified_millis`` (the convention of the B2 tools)
and ``b2fs``: fields ``letter=value`` joined by ';': m mode (octal, with type), u uid, g gid, n the
nanoseconds that the milliseconds lost, d device number, l the link id (see `Inode.link`) and a checksum of the key, o the
operation that wrote it. The checksum tells a name of ours from a copy that another tool made, fileInfo and all. A symlink's
target is the object's body, and stands in ``b2fs_link`` too where the header has room. ``b2fs_xattr`` holds the
extended attributes (`core.xattrs`), if there are any.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from b2fs.core import names, xattrs
from b2fs.core.bucket import Version

INFO_MTIME = "src_last_modified_millis"
INFO_B2FS = "b2fs"
INFO_LINK = "b2fs_link"
INFO_XATTR = "b2fs_xattr"
SYMLINK_TYPE = "application/vnd.b2fs.symlink"
AUTO_TYPE = "b2/x-auto"
"""B2 chooses the content type by the name's extension."""

ROOT = 1
"""The inode number of the root (FUSE fixes it)."""

_MS = 1_000_000
_FARTHEST_NS = ((1 << 63) // _MS - 2) * _MS
"""Times are between this and its negative (the years 1677 and 2262): what 64 bits can say in ns, whole milliseconds."""
_UNREADABLE = -1
_LINK_ID = re.compile("[0-9a-f]{1,32}")
_CHECKSUM = 8
"""Hex digits of the key's SHA-1: enough to tell a copy made by accident."""
_LARGEST_ID = (1 << 32) - 1
_LONGEST_TIME = -(1 << 63) + 1
_LONGEST_OPERATION = "00000000.ffffffffffffffff"
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_LONGEST_TARGET = 4095
"""Bytes of a symlink's target (PATH_MAX without its NUL): a larger object is none, whatever its fileInfo says."""
_LINK_ROOM = 400
"""Bytes of the header that a symlink's target may take; a longer one is in the body alone."""


class Inode(msgspec.Struct, frozen=True, gc=False):
    """One row of the namespace: what stat() says, and where the content is."""

    ino: int
    mode: int
    """File type and permissions."""
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    atime_ns: int
    rdev: int = 0
    target: str = ""
    """Symlinks: where they point, '' when only the object's body knows."""
    file_id: str = ""
    """All but directories: the version that holds the content (of a symlink, its target), '' if it was never uploaded. The
    base of what follows."""
    sha1: str = ""
    """SHA-1 of the staged content, else of the version `file_id`; '' if unknown."""
    staged: int = 0
    """Files: the name (a generation) of the staged file that holds the content, 0 if none; it shadows `file_id`."""
    scratch: int = 0
    """Files: the number of the scratch file that holds the content, 0 if none; it shadows the other two, and its own
    stat is size and mtime."""
    synced: int = 0
    """Files: the newest content that is surely on stable storage, where that is not the staged content with its `sha1`
    (which always is): the scratch file, or the staged one without `sha1`, that an fsync covered; or what that staged
    one replaced, kept until it has its SHA-1. 0: there is none."""
    xattrs: str = ""
    """Files and directories: the extended attributes as they travel (`core.xattrs.pack`), '' if there are none."""
    link: str = ""
    """An id that the objects of all names of the file carry, '' if it never had two; so another host knows them for one."""
    complete: bool = False
    """Directories: all names are known, so a missing name is proven absent."""

    @property
    def unsealed(self) -> int:
        """The number of the content that has no SHA-1 yet, 0 if there is none."""
        return self.scratch or (0 if self.sha1 else self.staged)

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Defaults(msgspec.Struct, frozen=True):
    """Attributes of objects that say nothing about themselves (written by other tools)."""

    uid: int
    gid: int
    file_mode: int = 0o644
    dir_mode: int = 0o755


def attributes(inode: Inode) -> str:
    """The canonical form of the attributes that an object carries, for comparison with the bucket."""
    fields = f"m={inode.mode:o};u={inode.uid};g={inode.gid};t={inode.mtime_ns}"
    if inode.rdev:
        fields += f";d={inode.rdev}"
    if inode.xattrs:
        fields += f";x={inode.xattrs}"
    if inode.link:
        fields += f";l={inode.link}"
    return fields


def to_info(inode: Inode, operation: str, key: str) -> dict[str, str]:
    """The fileInfo for the object of this inode at `key`; `operation` names the write (``mount.generation``)."""
    millis, rest = divmod(inode.mtime_ns, _MS)
    packed = f"m={inode.mode:o};u={inode.uid};g={inode.gid};n={rest}"
    if inode.rdev:
        packed += f";d={inode.rdev}"
    if inode.link:
        packed += f";l={_link_field(inode.link, key)}"
    info = {INFO_MTIME: str(millis), INFO_B2FS: f"{packed};o={operation}"}
    if inode.target and names.header_size("", {INFO_LINK: inode.target}) <= _LINK_ROOM:
        info[INFO_LINK] = inode.target
    if inode.xattrs:
        info[INFO_XATTR] = inode.xattrs
    return info


def largest_info(inode: Inode) -> dict[str, str]:
    """The fileInfo at its longest: whatever owner and times the inode is given, and whatever writes it."""
    return to_info(replace(inode, uid=_LARGEST_ID, gid=_LARGEST_ID, mtime_ns=_LONGEST_TIME), _LONGEST_OPERATION, "")


def restored(inode: Inode, size: int, sha1: str, described: str) -> Inode:
    """The file with its version in B2 as content again; `described`: the `attributes` of that version."""
    mtime_ns = int(_fields(described)["t"])
    return replace(inode, scratch=0, staged=0, synced=0, size=size, sha1=sha1, mtime_ns=mtime_ns)


def nearest_time(time_ns: int) -> int:
    """The time that a row can keep: a farther one becomes the farthest, as on every file system of Linux."""
    return min(max(time_ns, -_FARTHEST_NS), _FARTHEST_NS)


def without_set_id(mode: int) -> int:
    """What is left of a mode when somebody without privileges has changed the content."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def content_type(inode: Inode) -> str:
    return SYMLINK_TYPE if inode.is_link else AUTO_TYPE


def operation_of(info: Mapping[str, str]) -> str:
    """Which write made this object ('' if not b2fs)."""
    return _fields(info.get(INFO_B2FS, "")).get("o", "")


def link_of(described: str) -> str:
    """The link id in `attributes`, '' if there is none."""
    return _fields(described).get("l", "")


def _link_field(link: str, key: str) -> str:
    return f"{link}.{hashlib.sha1(key.encode(errors='replace'), usedforsecurity=False).hexdigest()[:_CHECKSUM]}"


def _link(field: str, key: str) -> str:
    link = field.partition(".")[0]
    return link if _LINK_ID.fullmatch(link) and field == _link_field(link, key) else ""


def from_version(version: Version, ino: int, defaults: Defaults) -> Inode:
    """The inode that an object of the bucket describes. Whatever its fileInfo says badly is as if unsaid."""
    fields = _fields(version.info.get(INFO_B2FS, ""))
    is_marker = names.marked_directory(version.key) is not None
    fallback = stat.S_IFDIR | defaults.dir_mode if is_marker else stat.S_IFREG | defaults.file_mode
    mode = max(0, _number(fields.get("m", ""), 8))
    is_odd = stat.S_ISLNK(mode) and version.size > _LONGEST_TARGET
    if stat.S_ISDIR(mode) != is_marker or stat.S_IFMT(mode) not in _TYPES or is_odd:
        mode = fallback
    mtime_ns = _mtime_ns(version, fields)
    uid, gid, rdev = _number(fields.get("u", "")), _number(fields.get("g", "")), _number(fields.get("d", ""))
    is_file = stat.S_ISREG(mode)
    extended = version.info.get(INFO_XATTR, "") if is_file or is_marker else ""
    return Inode(
        ino=ino,
        mode=mode,
        uid=defaults.uid if uid == _UNREADABLE else uid,
        gid=defaults.gid if gid == _UNREADABLE else gid,
        nlink=2 if is_marker else 1,
        size=version.size if is_file or stat.S_ISLNK(mode) else 0,
        mtime_ns=mtime_ns,
        ctime_ns=mtime_ns,
        atime_ns=mtime_ns,
        rdev=0 if rdev == _UNREADABLE else rdev,
        target=version.info.get(INFO_LINK, "") if stat.S_ISLNK(mode) else "",
        file_id="" if is_marker else version.file_id,
        sha1="" if is_marker else version.sha1,
        xattrs=extended if extended and xattrs.unpack(extended) else "",
        link=_link(fields["l"], version.key) if "l" in fields and not is_marker else "",
    )


def _mtime_ns(version: Version, fields: Mapping[str, str]) -> int:
    try:
        millis = int(version.info[INFO_MTIME])
    except (KeyError, ValueError):
        return version.uploaded_ms * _MS
    if abs(millis) * _MS > _FARTHEST_NS:
        return version.uploaded_ms * _MS
    rest = _number(fields.get("n", ""))
    return millis * _MS + (rest if 0 <= rest < _MS else 0)


def _fields(packed: str) -> dict[str, str]:
    if not packed:  # what other tools wrote
        return {}
    return dict(field.split("=", 1) for field in packed.split(";") if "=" in field)


def _number(text: str, base: int = 10) -> int:
    if not text:  # most objects say little
        return _UNREADABLE
    try:
        value = int(text, base)
    except ValueError:
        return _UNREADABLE
    return value if 0 <= value < 1 << 32 else _UNREADABLE
