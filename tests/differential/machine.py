"""The same random operations on a mount and on a plain directory, compared after every step.

Rules
  Names are few, so that they collide: plain, another case, composed and decomposed; two directories deep, and further
  through symbolic links.
  A step is one call of `_do`: results and errnos are equal, then everything that stat can see of all names and all
  open files, then which times moved and which inode is found where.
  Nothing depends on the clock: not the steps, and not what is compared.
"""

from __future__ import annotations

import mmap
import os
import shutil
import stat
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests import calls
from tests.differential.rig import Rig
from tests.differential.side import Reading, Side, changes, names_in

HARD_LINKS = True
"""Whether the mount has hard links (today link is EPERM)."""

_NAMES = ("a", "A", "\u00e9", "e\u0301")
_TARGETS = ("a", "A", ".", "a/a", "\u00e9/a", "nowhere")
"""Of links: none leads out of the example's directory."""
_PAGE = 4096
_OFFSETS = (0, 1, 7, _PAGE - 1, _PAGE, _PAGE + 1, 3 * _PAGE + 5, (2 << 20) - 1)
"""At and around the borders of pages, and of the chunks of the cache."""
_SIZES = (0, 1, 6, _PAGE - 1, _PAGE, 2 * _PAGE + 3)
_MODES = (0o644, 0o600, 0o755, 0o000, 0o1777, 0o2755, 0o4755, 0o6711)
_STAMPS = (0, 1, -1, 999_999_999, 1_000_000_000_000_000_001, 1_234_567_890_123_456_789, 7_000_000_000_000_000_005)
_MOST_OPEN = 4

_FOLDERS = ("", "a/", "A/", "\u00e9/", "a/a/", "a/A/", "A/a/")

_name = st.sampled_from(_NAMES)
_new = st.sampled_from([folder + name for folder in _FOLDERS for name in _NAMES])
"""A path that need not be there."""
_there = st.integers(0, 15)
"""A path that is there: so many names on in the list of all, directories last."""
_path = st.one_of(_there, _there, _there, _new)
_which = st.integers(0, _MOST_OPEN - 1)
_offset = st.sampled_from(_OFFSETS)
_size = st.sampled_from(_SIZES)
_mode = st.sampled_from(_MODES)
_stamp = st.sampled_from((*_STAMPS, calls.NOW, calls.OMIT))
_flags = st.tuples(
    st.sampled_from((("CREAT",), ("CREAT",), ("CREAT", "EXCL"), ())),
    st.sampled_from(
        (("TRUNC",), ("APPEND",), ("APPEND", "TRUNC"), ("NOFOLLOW",), ("DIRECTORY",), ("SYNC",), ("DSYNC",), ())
    ),
).map(lambda pair: pair[0] + pair[1])
_access = st.sampled_from(("RDWR", "RDWR", "RDWR", "RDONLY", "WRONLY"))


class Machine(RuleBasedStateMachine):
    """Made with the rig on whose mount and directory it works."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.rig = rig
        self.host, self.mount = self.sides = rig.begin()
        self._agree = True
        self.next = 0
        """Number of the next handle, map or reading."""
        self.before = [side.look() for side in self.sides]

        for path in ("a", "A", "a/A"):
            self.mkdir(path, 0o755)
        for path in ("a/a", "A/a", "\u00e9"):
            self.save(path, 6)
        for path in ("a/a", "\u00e9", "a/a"):
            self.open(path, "RDWR", (), 0)
        self.map(1, 6)

    # ------------------------------------------------------------ a step

    def _do(self, text: str, call: Callable[[Side], Any], times: bool = True) -> Any:
        """One step on both sides; what it gave. `times`: compare which times it has moved."""
        self.rig.note(text)
        self._agree = False
        before = self.before
        wanted, got = (side.outcome(call) for side in self.sides)
        assert got == wanted, self._report(f"gave {got!r} instead of {wanted!r}")
        self.before = [side.look() for side in self.sides]
        for side, now in zip(self.sides, self.before, strict=True):
            side.follow(now)
        looks = [
            {path: side.looks(path, status) for path, status in now.items()}
            for side, now in zip(self.sides, self.before, strict=True)
        ]
        assert looks[1] == looks[0], self._report(_differences(looks[1], looks[0]))
        if times:
            moved = [changes(old, new) for old, new in zip(before, self.before, strict=True)]
            assert moved[1] == moved[0], self._report("moved " + _differences(moved[1], moved[0]))
        self._agree = True
        return wanted

    def _report(self, what: str) -> str:
        return "\n".join([what, "after these steps:", *self.rig.notes])

    def _at(self, path: str | int) -> str:
        if isinstance(path, str):
            return path
        found = self.before[0]
        names = [each for each in found if each and each[0] != "#"]
        if not names:
            return "a"
        return sorted(names, key=lambda each: (stat.S_ISDIR(found[each].st_mode), each))[path % len(names)]

    def _number(self) -> int:
        self.next += 1
        return self.next

    @staticmethod
    def _pick(numbers: dict[int, Any], which: int) -> int:
        return list(numbers)[which % len(numbers)]

    def _bytes(self, size: int) -> bytes:
        """Bytes that tell which step wrote them."""
        return f"<{len(self.rig.notes)}>".encode().ljust(size, b".")[:size]

    # ------------------------------------------------------------ names

    @rule(path=_new, mode=_mode)
    def mkdir(self, path: str | int, mode: int) -> None:
        path = self._at(path)
        self._do(f"mkdir {path} {mode:o}", lambda side: os.mkdir(side.at(path), mode))

    @rule(path=_path)
    def rmdir(self, path: str | int) -> None:
        path = self._at(path)
        self._do(f"rmdir {path}", lambda side: os.rmdir(side.at(path)))

    @rule(path=_path)
    def unlink(self, path: str | int) -> None:
        path = self._at(path)
        self._do(f"unlink {path}", lambda side: os.unlink(side.at(path)))

    @rule(path=_path)
    def remove_tree(self, path: str | int) -> None:
        path = self._at(path)
        self._do(f"rmtree {path}", lambda side: shutil.rmtree(side.at(path)), times=False)

    @rule(path=_new, points_to=st.sampled_from(_TARGETS))
    def symlink(self, path: str | int, points_to: str) -> None:
        path = self._at(path)
        self._do(f"symlink {path} -> {points_to}", lambda side: os.symlink(points_to, side.at(path)))

    @precondition(lambda self: HARD_LINKS)
    @rule(old=_path, new=_new)
    def link(self, old: str | int, new: str | int) -> None:
        old, new = self._at(old), self._at(new)
        self._do(f"link {old} {new}", lambda side: os.link(side.at(old), side.at(new), follow_symlinks=False))

    @rule(old=_path, new=st.one_of(_new, _path), flags=st.sampled_from((0, 0, calls.NOREPLACE, calls.EXCHANGE)))
    def rename(self, old: str | int, new: str | int, flags: int) -> None:
        old, new = self._at(old), self._at(new)
        self._do(f"rename {old} {new} {flags}", lambda side: calls.renameat2(side.at(old), side.at(new), flags))

    @rule(path=_path, follow=st.booleans())
    def look_at(self, path: str | int, follow: bool) -> None:
        path = self._at(path)

        def call(side: Side) -> Any:
            status = os.stat(side.at(path), follow_symlinks=follow)
            return stat.S_IFMT(status.st_mode), os.access(side.at(path), os.X_OK)

        self._do(f"stat {path} {follow}", call)

    # ------------------------------------------------------------ attributes

    @rule(path=_path, mode=_mode)
    def chmod(self, path: str | int, mode: int) -> None:
        path = self._at(path)
        self._do(f"chmod {path} {mode:o}", lambda side: os.chmod(side.at(path), mode))

    @rule(path=_path, uid=st.sampled_from((-1, 0, 7)), gid=st.sampled_from((-1, 0, 8)), follow=st.booleans())
    def chown(self, path: str | int, uid: int, gid: int, follow: bool) -> None:
        path = self._at(path)
        self._do(f"chown {path} {uid}:{gid}", lambda side: os.chown(side.at(path), uid, gid, follow_symlinks=follow))

    @rule(path=_path, atime=_stamp, mtime=_stamp, follow=st.booleans())
    def utimens(self, path: str | int, atime: int, mtime: int, follow: bool) -> None:
        path = self._at(path)

        def call(side: Side) -> Any:
            calls.utimensat(side.at(path), (atime, mtime), follow)
            status = os.stat(side.at(path), follow_symlinks=follow)
            return status.st_atime_ns if atime not in (calls.NOW, calls.OMIT) else None

        self._do(f"utimens {path} {atime} {mtime} {follow}", call)

    @rule(path=_path, size=st.sampled_from(_OFFSETS))
    def truncate(self, path: str | int, size: int) -> None:
        path = self._at(path)
        self._do(f"truncate {path} {size}", lambda side: os.truncate(side.at(path), size))

    # ------------------------------------------------------------ open files

    @rule(path=st.one_of(_new, _path), access=_access, flags=_flags, mode=_mode)
    def open(self, path: str | int, access: str, flags: tuple[str, ...], mode: int) -> None:
        """CREAT is there twice, so that there is something to open."""
        path = self._at(path)
        number = self._number()
        bits = getattr(os, f"O_{access}")
        for flag in flags:
            bits |= getattr(os, f"O_{flag}")

        def call(side: Side) -> None:
            side.handles[number] = os.open(side.at(path), bits, mode)

        self._do(f"#{number} = open {path} {access} {' '.join(flags)} {mode:o}", call)
        if len(self.host.handles) > _MOST_OPEN:
            self.close(0)

    @rule(path=_path, data=_size)
    def save(self, path: str | int, data: int) -> None:
        """Write a file anew, as most programs do."""
        path = self._at(path)
        content = self._bytes(data)

        def call(side: Side) -> None:
            with open(side.at(path), "wb", buffering=0) as file:
                file.write(content)

        self._do(f"save {path} {data}", call)

    @rule(path=_path)
    def load(self, path: str | int) -> None:
        path = self._at(path)

        def call(side: Side) -> bytes:
            with open(side.at(path), "rb") as file:
                return file.read()

        self._do(f"load {path}", call)

    @precondition(lambda self: len(self.host.handles) > 1)
    @rule(which=_which)
    def close(self, which: int) -> None:
        number = self._pick(self.host.handles, which)
        self._do(f"close #{number}", lambda side: os.close(side.handles.pop(number)))

    @rule(which=_which, size=_size)
    def read(self, which: int, size: int) -> None:
        number = self._pick(self.host.handles, which)
        self._do(f"read #{number} {size}", lambda side: os.read(side.handles[number], size))

    @rule(which=_which, size=_size, offset=_offset)
    def pread(self, which: int, size: int, offset: int) -> None:
        number = self._pick(self.host.handles, which)
        self._do(f"pread #{number} {size} at {offset}", lambda side: os.pread(side.handles[number], size, offset))

    @rule(which=_which, size=_size)
    def write(self, which: int, size: int) -> None:
        number, data = self._pick(self.host.handles, which), self._bytes(size)
        self._do(f"write #{number} {size}", lambda side: os.write(side.handles[number], data))

    @rule(which=_which, size=_size, offset=_offset)
    def pwrite(self, which: int, size: int, offset: int) -> None:
        number, data = self._pick(self.host.handles, which), self._bytes(size)
        self._do(f"pwrite #{number} {size} at {offset}", lambda side: os.pwrite(side.handles[number], data, offset))

    @rule(which=_which, offset=st.sampled_from((0, 1, -1, _PAGE)), whence=st.sampled_from(("SET", "CUR", "END", "END")))
    def seek(self, which: int, offset: int, whence: str) -> None:
        number, how = self._pick(self.host.handles, which), getattr(os, f"SEEK_{whence}")

        def call(side: Side) -> Any:
            if stat.S_ISDIR(os.fstat(side.handles[number]).st_mode):
                return None
            return os.lseek(side.handles[number], offset, how)

        self._do(f"seek #{number} {offset} {whence}", call)

    @rule(which=_which, size=st.sampled_from(_OFFSETS))
    def ftruncate(self, which: int, size: int) -> None:
        number = self._pick(self.host.handles, which)
        self._do(f"ftruncate #{number} {size}", lambda side: os.ftruncate(side.handles[number], size))

    @rule(which=_which, mode=_mode, mtime=st.sampled_from(_STAMPS))
    def fchmod_and_futimens(self, which: int, mode: int, mtime: int) -> None:
        number = self._pick(self.host.handles, which)

        def call(side: Side) -> None:
            os.fchmod(side.handles[number], mode)
            os.utime(side.handles[number], ns=(mtime, mtime))

        self._do(f"fchmod and futimens #{number} {mode:o} {mtime}", call)

    @rule(which=_which, data=st.booleans())
    def fsync(self, which: int, data: bool) -> None:
        number = self._pick(self.host.handles, which)
        self._do(f"fsync #{number}", lambda side: (os.fdatasync if data else os.fsync)(side.handles[number]))

    @rule(source=_which, sink=_which, size=_size, offset=_offset)
    def copy_range(self, source: int, sink: int, size: int, offset: int) -> None:
        first, second = self._pick(self.host.handles, source), self._pick(self.host.handles, sink)

        def call(side: Side) -> int:
            return os.copy_file_range(side.handles[first], side.handles[second], size, 0, offset)

        self._do(f"copy_file_range #{first} #{second} {size} to {offset}", call)

    @rule(which=_which, name=_name, flags=st.sampled_from((os.O_CREAT, os.O_CREAT | os.O_EXCL)))
    def create_at(self, which: int, name: str, flags: int) -> None:
        """In an open directory, which may have been removed."""
        number = self._pick(self.host.handles, which)

        def call(side: Side) -> None:
            os.close(os.open(name, os.O_WRONLY | flags, 0o644, dir_fd=side.handles[number]))

        self._do(f"openat #{number} {name} {flags:o}", call)

    # ------------------------------------------------------------ shared memory maps

    @precondition(lambda self: len(self.host.maps) < _MOST_OPEN)
    @rule(which=_which, length=st.sampled_from((6, _PAGE, _PAGE + 1)))
    def map(self, which: int, length: int) -> None:
        number, key = self._pick(self.host.handles, which), self._number()

        def call(side: Side) -> str:
            try:
                side.maps[key] = mmap.mmap(side.handles[number], length)
            except ValueError as error:  # longer than the file
                return str(error)
            return "mapped"

        self._do(f"map {key} = mmap #{number} {length}", call)

    @rule(which=_which, at=st.sampled_from((0, 5, _PAGE)), size=st.sampled_from((1, 6)))
    def store(self, which: int, at: int, size: int) -> None:
        """A store and its msync. When a file's time moves by a store is the file system's affair."""
        key, data = self._pick(self.host.maps, which), self._bytes(size)

        def call(side: Side) -> str:
            shared = side.maps[key]
            end = at + size
            if end > len(shared) or end > shared.size():  # behind the file's end it would be a SIGBUS
                return "too short"
            shared[at:end] = data
            shared.flush()
            return "stored"

        self._do(f"store map {key} {size} at {at}", call, times=False)

    @rule(which=_which)
    def see(self, which: int) -> None:
        key = self._pick(self.host.maps, which)
        self._do(f"see map {key}", lambda side: side.maps[key][: min(len(side.maps[key]), side.maps[key].size())])

    @precondition(lambda self: len(self.host.maps) > 1)
    @rule(which=_which)
    def unmap(self, which: int) -> None:
        key = self._pick(self.host.maps, which)
        self._do(f"unmap {key}", lambda side: side.maps.pop(key).close())

    # ------------------------------------------------------------ directories that change while they are read

    @rule(path=st.one_of(st.just(""), _path))
    def open_directory(self, path: str | int) -> None:
        path = self._at(path)
        number = self._number()

        def call(side: Side) -> None:
            fd = os.open(side.at(path), os.O_RDONLY | os.O_DIRECTORY)
            side.readings[number] = Reading(fd, os.fstat(fd).st_ino)

        if self._do(f"reading {number} = opendir {path or '.'}", call) is None:
            self._rewind(number)
        if len(self.host.readings) > _MOST_OPEN:
            self.close_directory(0)

    def _rewind(self, number: int) -> None:
        for side, now in zip(self.sides, self.before, strict=True):
            reading = side.readings[number]
            path = [each for each, status in now.items() if each[:1] != "#" and status.st_ino == reading.inode]
            reading.rewind(names_in(now, path[0]) if path else set())

    @precondition(lambda self: self.host.readings)
    @rule(which=_which, most=st.sampled_from((1, 2, 3, 100)))
    def read_directory(self, which: int, most: int) -> None:
        """On, by up to so many entries; at the end every name that was there all the time was seen exactly once."""
        number = self._pick(self.host.readings, which)

        def call(side: Side) -> None:
            reading = side.readings[number]
            for _ in range(most):
                names = calls.next_entries(reading.fd)
                reading.seen.update(names)
                if not names:
                    assert reading.problems() == [], (side.name, reading.problems())
                    break

        self._do(f"readdir {number} {most}", call)

    @precondition(lambda self: self.host.readings)
    @rule(which=_which)
    def rewind_directory(self, which: int) -> None:
        number = self._pick(self.host.readings, which)
        self._do(f"rewinddir {number}", lambda side: os.lseek(side.readings[number].fd, 0, os.SEEK_SET))
        self._rewind(number)

    @precondition(lambda self: self.host.readings)
    @rule(which=_which)
    def close_directory(self, which: int) -> None:
        number = self._pick(self.host.readings, which)
        self._do(f"closedir {number}", lambda side: os.close(side.readings.pop(number).fd))

    # ------------------------------------------------------------ the end

    def teardown(self) -> None:
        for side in self.sides:
            side.close()
        if self._agree:
            self.rig.end()


def _differences(got: dict[str, Any], wanted: dict[str, Any]) -> str:
    lines = [
        f"{path or '.'}: {got.get(path)} instead of {wanted.get(path)}"
        for path in sorted(got.keys() | wanted.keys())
        if got.get(path) != wanted.get(path)
    ]
    return "; ".join(lines)
