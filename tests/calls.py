"""System calls that Python's `os` has not, by way of the C library."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW = 0x100
_ENTRY = struct.Struct("=QqHB")
"""The head of a linux_dirent64: inode, position, length, type."""
_ONE_ENTRY = 32
"""Bytes for an entry with a name of up to 12 bytes, and not for two."""

NOREPLACE, EXCHANGE = 1, 2
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
"""What utimensat takes in place of nanoseconds."""


class _Timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_int64), ("tv_nsec", ctypes.c_long)]


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: str, new: str, flags: int) -> None:
    _checked(_LIBC.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags))


def utimensat(path: str, times: tuple[int, int], follow: bool = True) -> None:
    """Access and modification time: each in ns, or `NOW`, or `OMIT`."""
    pair = (_Timespec * 2)(*(_timespec(each) for each in times))
    _checked(_LIBC.utimensat(_AT_FDCWD, os.fsencode(path), pair, 0 if follow else _AT_SYMLINK_NOFOLLOW))


def _timespec(time_ns: int) -> tuple[int, int]:
    return (0, time_ns) if time_ns in (NOW, OMIT) else divmod(time_ns, 1_000_000_000)


def next_entries(fd: int) -> list[str]:
    """The next names of an open directory, as few at a time as there can be; none at its end."""
    buffer = ctypes.create_string_buffer(_ONE_ENTRY)
    size = _checked(_LIBC.getdents64(fd, buffer, _ONE_ENTRY))
    return list(_names(buffer.raw[:size]))


def _names(data: bytes) -> Iterator[str]:
    while data:
        _, _, length, _ = _ENTRY.unpack_from(data)
        yield os.fsdecode(data[_ENTRY.size : length].split(b"\0", 1)[0])
        data = data[length:]
