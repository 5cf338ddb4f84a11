"""The files of a state directory. Blocking; knows neither the journal nor trio.

Layout (all 0700/0600)
  ``scratch/NUMBER``     the mutable content of an inode that is being written
  ``staged/NUMBER``      sealed, immutable content that waits for its upload; the number that it had as scratch
  ``cache/XX/BLOB``      clean content: ``FILE_ID`` is a whole version, ``FILE_ID.N`` its chunk N; XX are two
                         hex digits of a hash, so that no directory grows without bound
  ``part/N``             a fetch in progress, or one that came and is not on stable storage yet; becomes a blob by a rename,
                         so a blob is always whole
  ``quarantine/``        content that failed its checksum; kept for a person

Rules
  Scratch and staged are precious: nothing here deletes them except by their exact name. A number is never used
  twice, so one that lies in both folders is one file.
  What must survive power loss is put on stable storage explicitly: `secure` a content file, `sync_names` the names.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from zlib import crc32

from b2fs.core.invariants import Files
from b2fs.errors import Damaged, NoSpace, StateError

_BOOT_ID = "/proc/sys/kernel/random/boot_id"  # random(4): another one after each boot
_FOLDERS = ("scratch", "staged", "cache", "part", "quarantine")
_FICLONE = 0x40049409  # ioctl_ficlone(2): share the blocks of another file, atomically
_SYNC_FILE_RANGE_WRITE = 2  # sync_file_range(2)
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Python has no door to it
_LEFT_S = 0.5
"""How long a lock may be with a process that its owner had just begun when it was killed: until that has called exec."""
_COPY_STEP = 8 * 1024 * 1024
_SYNCED = 64
"""Files that are synced together: each takes a descriptor meanwhile."""
_HASH_STEP = 1024 * 1024


class Disk:
    """The open state directory; holds its lock until `close`."""

    def __init__(self, root: str, *, existing: bool = False) -> None:
        """Make or open it; `existing`: as it is, only the lock is touched.

        StateError: not a directory of ours, not writable, or in use by another daemon.
        """
        self.root = root
        if existing and not os.path.isfile(self.journal_path):
            raise StateError(f"{root} is no state directory of b2fs: there is no journal.db in it")
        try:
            if not existing:
                os.makedirs(root, mode=0o700, exist_ok=True)
                for name in _FOLDERS:
                    os.makedirs(os.path.join(root, name), mode=0o700, exist_ok=True)
                os.chmod(root, 0o700)
            self._lock = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot use the state directory {root}: {error.strerror}") from error
        if not _locked(self._lock):
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise StateError(
                f"the state directory {root} is in use by another b2fs (pid {owner or 'unknown'}): "
                "unmount that one, or give this one a state directory of its own"
            )
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        os.close(self._lock)

    @property
    def journal_path(self) -> str:
        return os.path.join(self.root, "journal.db")

    def scratch_path(self, number: int) -> str:
        return f"{self.root}/scratch/{number}"

    def staged_path(self, number: int) -> str:
        return f"{self.root}/staged/{number}"

    def blob_path(self, name: str) -> str:
        return f"{self.root}/cache/{crc32(name.encode()) & 0xFF:02x}/{name}"

    def part_path(self, number: int) -> str:
        return f"{self.root}/part/{number}"

    # ------------------------------------------------------------ scratch and staged

    def make_scratch(self, number: int) -> int:
        """A new, empty scratch file; its descriptor. A leftover of the same number (of a run that lost power, and its
        last numbers with it) is replaced.
        """
        path = self.scratch_path(number)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with disk_errors():
            try:
                return os.open(path, flags, 0o600)
            except FileExistsError:
                os.unlink(path)
                return os.open(path, flags, 0o600)

    def open_scratch(self, number: int) -> int:
        with disk_errors():
            return os.open(self.scratch_path(number), os.O_RDWR | os.O_CLOEXEC)

    def open_staged(self, number: int) -> int:
        with disk_errors():
            return os.open(self.staged_path(number), os.O_RDONLY | os.O_CLOEXEC)

    def secure(self, path: str) -> str:
        """Put a content file and its name on stable storage; its hex SHA-1. Waits for the disk.

        FileNotFoundError: it has another name by now, or none.
        """
        sha1 = sha1_of(path)
        with disk_errors():
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            fsync_directory(os.path.dirname(path))
        return sha1

    def sync_names(self) -> None:
        """Put the names of all scratch and staged files on stable storage. Waits for the disk."""
        with disk_errors():
            fsync_directory(os.path.join(self.root, "scratch"))
            fsync_directory(os.path.join(self.root, "staged"))

    def sync_root(self) -> None:
        """Put the layout itself, and the names of the journal's files, on stable storage. Waits for the disk."""
        with disk_errors():
            fsync_directory(self.root)
            with contextlib.suppress(PermissionError):  # somebody else made it, long ago
                fsync_directory(os.path.dirname(self.root))

    def clone(self, source: int, fd: int, length: int) -> None:
        """Copy the first `length` bytes of one descriptor to the beginning of another.

        Shares blocks where the file system can. After an error the target range is undefined.
        """
        if os.fstat(source).st_size == length and _reflink(source, fd):
            return
        copy_range(source, 0, fd, 0, length)

    def stage(self, number: int) -> None:
        """Give a scratch file its staged name too; `drop_scratch` follows once the journal knows it."""
        with disk_errors():
            _link(self.scratch_path(number), self.staged_path(number))

    def unstage(self, number: int) -> None:
        """The reverse: content that the journal still calls scratch gets back that name, where a crash took it."""
        with disk_errors():
            _link(self.staged_path(number), self.scratch_path(number))

    def drop_scratch(self, number: int) -> None:
        _unlink(self.scratch_path(number))

    def drop_staged(self, number: int) -> None:
        _unlink(self.staged_path(number))

    def make_staged(self, number: int, data: bytes) -> str:
        """A staged file of the daemon's own making (symlink target, empty body); its path."""
        path = self.staged_path(number)
        with disk_errors(), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        return path

    def stage_blob(self, name: str, number: int) -> str:
        """Hold clean content for an upload, whatever the eviction does meanwhile; its path.

        FileNotFoundError: it was evicted.
        """
        path = self.staged_path(number)
        with disk_errors():
            os.link(self.blob_path(name), path)
        return path

    def staged_to_blob(self, number: int, name: str) -> None:
        """Confirmed content becomes clean: the staged file is a blob too; `drop_staged` follows once the journal
        is on stable storage.
        """
        with disk_errors():
            source, target = self.staged_path(number), self.blob_path(name)
            try:
                _link(source, target)
            except FileNotFoundError:
                _make_folder_of(target)
                _link(source, target)

    def has_content(self, folder: str, number: int) -> bool:
        return os.path.exists(f"{self.root}/{folder}/{number}")

    def quarantine(self, number: int) -> str:
        """Move content aside, from both folders, and put its new name on stable storage (waits for the disk); that name
        in ``quarantine/``, '' if there was none.
        """
        name, tries = str(number), 0
        with disk_errors():
            while os.path.exists(self.quarantine_path(name)):
                tries += 1
                name = f"{number}.{tries}"
            for path in (self.scratch_path(number), self.staged_path(number)):
                if os.path.exists(path):
                    os.rename(path, self.quarantine_path(name))  # of two names of one file the second just goes
                    _unlink(path)  # rename(2) leaves both where both are one file
            fsync_directory(os.path.join(self.root, "quarantine"))
        return name if os.path.exists(self.quarantine_path(name)) else ""

    def quarantine_path(self, name: str) -> str:
        return f"{self.root}/quarantine/{name}"

    def numbers(self, folder: str) -> Iterator[int]:
        """The numbers of the files in ``scratch`` or ``staged`` or ``part``."""
        for name in os.listdir(os.path.join(self.root, folder)):
            if name.isdecimal():
                yield int(name)

    # ------------------------------------------------------------ cache

    def secure_part(self, number: int) -> None:
        """Put a fetched file on stable storage, before it gets a name that makes it true. Waits for the disk."""
        with disk_errors():
            fd = os.open(self.part_path(number), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def secure_parts(self, blobs: Mapping[int, str]) -> set[int]:
        """The same for many, together, numbers to the names that they get; of which ones it is true now. Their folders are
        made too, which takes a file system longer than a file. Waits for the disk.
        """
        kept, numbers = set[int](), list(blobs)
        for start in range(0, len(numbers), _SYNCED):
            fds = dict[int, int]()
            try:
                for number in numbers[start : start + _SYNCED]:
                    with contextlib.suppress(OSError):
                        fds[number] = os.open(self.part_path(number), os.O_RDONLY | os.O_CLOEXEC)
                        _begin_to_write(fds[number])
                for number, fd in fds.items():
                    with contextlib.suppress(OSError):
                        os.fsync(fd)
                        _make_folder_of(self.blob_path(blobs[number]))
                        kept.add(number)
            finally:
                for fd in fds.values():
                    os.close(fd)
        return kept

    def part_to_blob(self, number: int, name: str) -> None:
        with disk_errors():
            target = self.blob_path(name)
            try:
                os.rename(self.part_path(number), target)
            except FileNotFoundError:
                _make_folder_of(target)
                os.rename(self.part_path(number), target)

    def drop_part(self, number: int) -> None:
        _unlink(self.part_path(number))

    def rename_blob(self, old: str, new: str) -> bool:
        """Whether there was one."""
        with disk_errors():
            target = self.blob_path(new)
            _make_folder_of(target)
            try:
                os.rename(self.blob_path(old), target)
            except FileNotFoundError:
                return False
            return True

    def drop_blob(self, name: str) -> None:
        _unlink(self.blob_path(name))

    def has_blob(self, name: str) -> bool:
        return os.path.exists(self.blob_path(name))

    def open_blob(self, name: str) -> int:
        """Its descriptor, or -1 if it is not there."""
        return _open_if_there(self.blob_path(name))

    def open_part(self, number: int) -> int:
        """The same for what has not become a blob yet."""
        return _open_if_there(self.part_path(number))

    def same_as_blobs(self, number: int, blobs: Iterable[tuple[str, int]], step: int) -> list[tuple[int, int]]:
        """Where staged content equals clean content that lies here, in steps of `step` bytes: half-open ranges, in order.

        `blobs`: name and offset (a multiple of `step`), in order; one that is not here, or cannot be read, equals nothing.
        Reads all of both.
        """
        found: list[tuple[int, int]] = []
        with contextlib.suppress(OSError), open(self.staged_path(number), "rb", buffering=0) as staged:
            for name, offset in blobs:
                with contextlib.suppress(OSError), open(self.blob_path(name), "rb", buffering=0) as blob:
                    for start, end in _same(staged.fileno(), blob.fileno(), offset, step):
                        if found and found[-1][1] == start:
                            found[-1] = found[-1][0], end
                        else:
                            found.append((start, end))
        return found

    def blob_folders(self) -> list[str]:
        """The folders of the cache directory: 256 at most."""
        return os.listdir(os.path.join(self.root, "cache"))

    def blob_names(self, folder: str) -> list[str]:
        """The files in one of them."""
        return os.listdir(os.path.join(self.root, "cache", folder))

    # ------------------------------------------------------------ all of it

    def files(self) -> Files:
        """What lies where, with sizes. Long when there is much; nobody else may have the directory open."""
        found = Files()
        for folder, numbered in (("scratch", found.scratch), ("staged", found.staged), ("part", found.part)):
            for name, size in self._sizes(folder, found.strangers):
                if name.isdecimal() and name == str(int(name)):
                    numbered[int(name)] = size
                else:
                    found.strangers.append(f"{folder}/{name}")
        found.quarantine.update(self._sizes("quarantine", found.strangers))
        for folder in self._folders("cache", found.strangers):
            for name, size in self._sizes(f"cache/{folder}", found.strangers):
                if self.blob_path(name) == f"{self.root}/cache/{folder}/{name}":
                    found.blobs[name] = size
                else:
                    found.strangers.append(f"cache/{folder}/{name}")
        return found

    def path_in(self, folder: str, name: str) -> str:
        """The path of a file that `files` found in ``staged`` or ``cache``."""
        return self.blob_path(name) if folder == "cache" else f"{self.root}/{folder}/{name}"

    def _sizes(self, folder: str, strangers: list[str]) -> Iterator[tuple[str, int]]:
        """The regular files of a folder with their sizes; whatever else there is goes to the strangers."""
        for entry in self._entries(folder):
            if entry.is_file(follow_symlinks=False):
                yield entry.name, entry.stat(follow_symlinks=False).st_size
            else:
                strangers.append(f"{folder}/{entry.name}")

    def _folders(self, folder: str, strangers: list[str]) -> Iterator[str]:
        for entry in self._entries(folder):
            if entry.is_dir(follow_symlinks=False):
                yield entry.name
            else:
                strangers.append(f"{folder}/{entry.name}")

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What a folder holds; a folder that was never made holds nothing."""
        with disk_errors():
            try:
                with os.scandir(os.path.join(self.root, folder)) as entries:
                    return list(entries)
            except FileNotFoundError:
                return []

    # ------------------------------------------------------------ whole disk

    def space(self) -> tuple[int, int, int]:
        """(block size, blocks, free blocks for us) of the disk."""
        stat = os.statvfs(self.root)
        return stat.f_frsize, stat.f_blocks, stat.f_bavail

    def free(self) -> int:
        """Bytes that can still be written."""
        return shutil.disk_usage(self.root).free


def sha1_of(path: str) -> str:
    """Hex SHA-1 of a file."""
    digest = hashlib.sha1(usedforsecurity=False)
    with disk_errors(), open(path, "rb", buffering=0) as file:
        while block := file.read(_HASH_STEP):
            digest.update(block)
    return digest.hexdigest()


def copy_range(source: int, source_offset: int, target: int, offset: int, length: int) -> None:
    """Copy bytes between two descriptors, in the kernel. Damaged if the source ends before."""
    done = 0
    with disk_errors():
        while done < length:
            step = os.copy_file_range(
                source, target, min(_COPY_STEP, length - done), source_offset + done, offset + done
            )
            if step == 0:
                raise Damaged("a file of the state directory is shorter than the journal says")
            done += step


def _same(whole: int, part: int, offset: int, step: int) -> Iterator[tuple[int, int]]:
    """The steps in which `whole`, from `offset` on, equals `part`. At the end of either the last one is shorter."""
    length = min(os.fstat(whole).st_size - offset, os.fstat(part).st_size)
    for start in range(0, length, step):
        size = min(step, length - start)
        if os.pread(whole, size, offset + start) == os.pread(part, size, start):
            yield offset + start, offset + start + size


def _locked(fd: int) -> bool:
    """Take the lock of a state directory; whether it could be had, within `_LEFT_S`."""
    until_s = time.monotonic() + _LEFT_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > until_s:
                return False
            time.sleep(0.01)
        else:
            return True


def _make_folder_of(blob_path: str) -> None:
    """The folder of a blob; most are there once some hundred blobs were."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(blob_path), 0o700)


def _open_if_there(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1


def _begin_to_write(fd: int) -> None:
    """Have the kernel begin to write a file, without waiting: of files whose blocks are on their way one fsync puts all into
    the file system's journal, else each costs a commit of it.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def fsync(fd: int) -> None:
    """Content and size of a descriptor on stable storage. Waits for the disk."""
    with disk_errors():
        os.fsync(fd)


def fsync_directory(path: str) -> None:
    """The names of a directory on stable storage. Waits for the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class disk_errors:
    """Turns the disk's own errors into ours: full is NoSpace, anything else Damaged."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FileExistsError | FileNotFoundError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(f"the disk of the state directory is full ({error.filename or 'write'})") from error
            raise Damaged(f"the disk of the state directory fails: {error}") from error


def _reflink(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def boot_id() -> str:
    """Names this boot of the machine, '' where the kernel does not say: then every start counts as the same boot."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _link(path: str, name: str) -> None:
    """Give a file another name; a file of that name is this one already."""
    try:
        os.link(path, name)
    except FileExistsError:
        return


def _unlink(path: str) -> None:
    with disk_errors(), contextlib.suppress(FileNotFoundError):
        os.unlink(path)
