"""`os` as the tests of this suite have it: on "plain" and "mount" the machine's, on "engine" that of `tests.posix.vfs`.

Rules
  A test module takes `os` from here, and calls it as it would call the standard one; constants and what works on
  texts alone are the standard one's. The `root` fixture says for whom the calls are (`on`).
  Calls that Python has not are here too (`renameat2`, `utimensat`, …), and go the same way.
"""

from __future__ import annotations

import ctypes
import functools
import os as _os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = _libc.readdir.restype = _libc.fdopendir.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
for _name in ("telldir", "closedir", "readdir", "rewinddir"):
    getattr(_libc, _name).argtypes = [ctypes.c_void_p]
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

_AT_FDCWD = -100

# ---------------------------------------------------------------- the machine's


class _Machine:
    """`os`, and what it lacks, by way of the C library. Errors are OSError as everywhere."""

    path = _os.path

    def __getattr__(self, name: str) -> Any:
        return getattr(_os, name)

    def renameat2(self, old: str, new: str, flags: int) -> None:
        _checked(_libc.renameat2(_AT_FDCWD, _os.fsencode(old), _AT_FDCWD, _os.fsencode(new), flags), old)

    def utimensat(self, path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
        """Times are (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT)."""
        times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
        _checked(_libc.utimensat(_AT_FDCWD, _os.fsencode(path), times, flags), path)

    def utimes_now(self, path: str) -> None:
        """utimes(path, NULL), which who may write to a file may do too."""
        _checked(_libc.utimensat(_AT_FDCWD, _os.fsencode(path), None, 0), path)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        _checked(_libc.fallocate(fd, mode, ctypes.c_long(offset), ctypes.c_long(length)))

    def bind(self, path: str) -> None:
        """Make a socket."""
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)

    def stream(self, path: str) -> _Stream:
        return _Stream(path)


def _checked(result: int, *paths: str | bytes) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, _os.strerror(number), *paths[:1])
    return result


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


class _Stream:
    """An open directory stream of the C library."""

    def __init__(self, path: str) -> None:
        self._stream = _libc.opendir(_os.fsencode(path))
        if not self._stream:
            number = ctypes.get_errno()
            raise OSError(number, _os.strerror(number), path)

    def read(self) -> tuple[str, int, int] | None:
        ctypes.set_errno(0)
        found = _libc.readdir(self._stream)
        if not found:
            if number := ctypes.get_errno():
                raise OSError(number, _os.strerror(number))
            return None
        entry = ctypes.cast(found, ctypes.POINTER(_Dirent)).contents
        return _os.fsdecode(entry.name), entry.ino, entry.type

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


# ---------------------------------------------------------------- whose turn it is

MACHINE: Any = _Machine()
_current: list[Any] = [MACHINE]


@contextmanager
def on(system: Any) -> Iterator[None]:
    """Calls made inside are for `system`."""
    _current.append(system)
    try:
        yield
    finally:
        _current.pop()


_ON_TEXTS = {"fsencode", "fsdecode", "fspath", "strerror", "makedev", "major", "minor"}
_PATH_CALLS = {"exists", "lexists", "isdir", "isfile", "islink"}


class _Calls:
    """Gives every call to whose turn it is when it is called, not when it is named."""

    def __init__(self, of: Callable[[], Any], standard: ModuleType, calls: Callable[[str], bool]) -> None:
        self._of, self._standard, self._calls = of, standard, calls

    def __getattr__(self, name: str) -> Any:
        standard = getattr(self._standard, name, None)
        if name.startswith("__") or not self._calls(name):
            return getattr(self._standard, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._of(), name)(*args, **kwargs)

        self.__dict__[name] = call if standard is None else functools.wraps(standard)(call)
        return self.__dict__[name]


class _Os(_Calls):
    def __init__(self) -> None:
        super().__init__(lambda: _current[-1], _os, self._is_call)
        self.path: Any = _Calls(lambda: _current[-1].path, _os.path, _PATH_CALLS.__contains__)

    @staticmethod
    def _is_call(name: str) -> bool:
        found = getattr(_os, name, None)
        return name not in _ON_TEXTS and not isinstance(found, type) and (found is None or callable(found))


os: Any = _Os()
