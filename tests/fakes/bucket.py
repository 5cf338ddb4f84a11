"""`FakeBucket`: the `Bucket` protocol in memory, for tests of what lies above it.

Rules
  It passes the same contract suite as the real ones (tests/adapters/test_b2_contract.py).
  Deterministic: file ids and times count up from 1; no clock, no randomness.
  It misbehaves only as told: `faults` are planted errors, `gate` holds calls.

To use it
  bucket.faults.append(Planted("upload", BucketError(Fault.TRANSIENT, "down")))   the next upload fails
  bucket.faults.append(Planted("hide", error, after=True))          is done, and its answer is lost
  bucket.gate.close("fetch"); …; await bucket.gate.waiting("fetch", 2); …; bucket.gate.open()
  bucket.put("a/b", b"…")                                           as another client would
  bucket.content("a/b"), bucket.objects()                           what is visible
  bucket.log                                                        calls so far, (name, key or file id)
  bucket.resumed                                                    keys of uploads that said `resume`, in order
  bucket.bases                                                      what uploads said of an earlier version, in order
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from b2fs.core.bucket import Base, Identity, Page, Requests, Version
from b2fs.errors import BucketError, Damaged, Fault, NoSpace

_API = {
    "connect": ("b2_authorize_account", "C"),
    "list_page": ("b2_list_file_names", "C"),
    "fetch": ("b2_download_file_by_id", "B"),
    "upload": ("b2_upload_file", "A"),
    "copy": ("b2_copy_file", "C"),
    "hide": ("b2_hide_file", "A"),
    "head": ("b2_download_file_by_name", "B"),
}


@dataclass(frozen=True)
class Planted:
    """An error that the next matching call raises. It fires once and is then gone from `faults`."""

    call: str
    """Method of the protocol, or '*'."""
    error: Exception
    key: str = "*"
    """Glob of keys (or file ids, for a fetch)."""
    after: bool = False
    """The call takes effect first: a lost answer."""


@dataclass
class Stored:
    """One version, or a hide marker (`version` None)."""

    version: Version | None
    data: bytes = b""


class Gate:
    """Holds calls that want to begin until it is opened. Open at first."""

    def __init__(self) -> None:
        self._closed: set[str] = set()
        self._held: Counter[str] = Counter()
        self._changed = trio.Event()

    def close(self, call: str = "*") -> None:
        """Hold calls of this name from now on ('*': all)."""
        self._closed.add(call)

    def open(self) -> None:
        """Let all calls go, held ones and later ones."""
        self._closed.clear()
        self._notify()

    async def waiting(self, call: str, number: int = 1) -> None:
        """Return when at least `number` calls of this name are held."""
        while self._held[call] < number:
            await self._changed.wait()

    async def pass_through(self, call: str) -> None:
        while self._closed & {call, "*"}:
            self._held[call] += 1
            self._notify()
            try:
                await self._changed.wait()
            finally:
                self._held[call] -= 1

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@dataclass
class FakeBucket:
    """See the module. `prefix` as in `Identity`; it only appears there, keys are stored without it."""

    prefix: str = ""
    faults: list[Planted] = field(default_factory=list)
    gate: Gate = field(default_factory=Gate)
    log: list[tuple[str, str]] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    bases: list[Base] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stacks: dict[str, list[Stored]] = {}  # key to versions, oldest first
        self._by_id: dict[str, Stored] = {}
        self._now = 0
        self._sent = 0
        self._received = 0
        self._copied = 0

    # --------------------------------------------------------------------------------- past the protocol

    def put(
        self, key: str, data: bytes, info: Mapping[str, str] | None = None, content_type: str = "text/plain"
    ) -> Version:
        """A new version, at once and unlogged."""
        stamp = self._tick()
        version = Version(
            key=key,
            file_id=f"id{stamp}",
            size=len(data),
            sha1=hashlib.sha1(data).hexdigest(),
            uploaded_ms=stamp,
            content_type=content_type,
            info={name.lower(): value for name, value in (info or {}).items()},
        )
        stored = Stored(version, data)
        self._stacks.setdefault(key, []).append(stored)
        self._by_id[version.file_id] = stored
        return version

    def hide_now(self, key: str) -> int:
        """A hide marker, at once and unlogged."""
        self._stacks.setdefault(key, []).append(Stored(None))
        return self._tick()

    def purge(self, file_id: str) -> None:
        """Delete one version for good, as a lifecycle rule would."""
        stored = self._by_id.pop(file_id)
        for stack in self._stacks.values():
            if stored in stack:
                stack.remove(stored)

    def objects(self) -> dict[str, Version]:
        """Key to version, of what is visible, in the order of a listing."""
        visible = {}
        for key in sorted(self._stacks):  # code points sort as their UTF-8 bytes do
            version = self._newest(key)
            if version is not None:
                visible[key] = version
        return visible

    def versions(self, key: str) -> list[Version | None]:
        """All versions of a key, oldest first; None for a hide marker."""
        return [stored.version for stored in self._stacks.get(key, [])]

    def content(self, key: str) -> bytes:
        """The visible bytes. KeyError if there are none."""
        return self._by_id[self.objects()[key].file_id].data

    # ------------------------------------------------------------------------------------- the protocol

    async def connect(self) -> Identity:
        await self._begin("connect", "")
        self._end("connect", "")
        return Identity("fake:", "fake-bucket-id", "fake", self.prefix)

    async def list_page(self, prefix: str, start: str, delimiter: str, limit: int) -> Page:
        await self._begin("list_page", prefix)
        versions: list[Version] = []
        folders: list[str] = []
        following = None
        for key, version in self.objects().items():
            if key < start or not key.startswith(prefix):
                continue
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            folder = key[: cut + 1] if cut >= 0 else None
            if folder is not None and folder in folders:
                continue
            if len(versions) + len(folders) == limit:
                following = folder or key
                break
            if folder is not None:
                folders.append(folder)
            else:
                versions.append(version)
        self._end("list_page", prefix)
        return Page(versions, folders, following)

    async def fetch(self, file_id: str, path: str, offset: int, length: int, sha1: str) -> None:
        await self._begin("fetch", file_id)
        stored = self._find(file_id)
        data = stored.data[offset : offset + length]
        whole = len(stored.data) == length if sha1 else len(data) == length
        if not whole or (sha1 and hashlib.sha1(data).hexdigest() != sha1):
            raise BucketError(Fault.CORRUPT, f"version {file_id} is not what was promised")
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise NoSpace(path) from exc
            raise Damaged(f"cannot open {path}") from exc
        try:
            os.pwrite(fd, data, 0)
        finally:
            os.close(fd)
        self._received += len(data)
        self._end("fetch", file_id)

    async def upload(
        self,
        key: str,
        path: str,
        size: int,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        resume: bool = False,
        base: Base | None = None,
    ) -> Version:
        if resume:
            self.resumed.append(key)
        await self._begin("upload", key)
        try:
            with open(path, "rb") as file:
                data = file.read(size)
        except OSError as exc:
            raise Damaged(f"cannot open {path}") from exc
        if len(data) != size or hashlib.sha1(data).hexdigest() != sha1:
            raise Damaged(f"{path} changed since it was sealed")
        copied = self._copied_from(base, data) if base is not None else 0
        version = self.put(key, data, info, content_type or "application/octet-stream")
        self._sent += size - copied
        self._copied += copied
        self._end("upload", key)
        return version

    def _copied_from(self, base: Base, data: bytes) -> int:
        """Bytes that need not be sent. A wrong hint is a bug of whoever gave it, though no byte is taken on its word."""
        self.bases.append(base)
        stored = self._by_id.get(base.file_id)
        if stored is None:
            return 0
        end = 0
        for start, stop in base.same:
            assert end <= start < stop <= len(data)
            assert data[start:stop] == stored.data[start:stop], f"bytes {start} to {stop} differ from {base.file_id}"
            end = stop
        return sum(stop - start for start, stop in base.same)

    async def copy(self, file_id: str, key: str, size: int, info: Mapping[str, str], content_type: str) -> Version:
        await self._begin("copy", key)
        stored = self._find(file_id)
        version = self.put(key, stored.data, info, content_type or "application/octet-stream")
        self._end("copy", key)
        return version

    async def hide(self, key: str) -> int:
        await self._begin("hide", key)
        stamp = self.hide_now(key) if self._newest(key) is not None else 0
        self._end("hide", key)
        return stamp

    async def head(self, key: str) -> Version | None:
        await self._begin("head", key)
        self._end("head", key)
        return self._newest(key)

    def requests(self) -> Requests:
        calls: Counter[str] = Counter(_API[name][0] for name, _ in self.log)
        classes: Counter[str] = Counter(_API[name][1] for name, _ in self.log)
        return Requests(dict(calls), dict(classes), self._sent, self._received, self._copied)

    # ----------------------------------------------------------------------------------------- inside

    async def _begin(self, call: str, key: str) -> None:
        await trio.lowlevel.checkpoint()
        await self.gate.pass_through(call)
        self.log.append((call, key))
        self._raise_planted(call, key, after=False)

    def _end(self, call: str, key: str) -> None:
        self._raise_planted(call, key, after=True)

    def _raise_planted(self, call: str, key: str, after: bool) -> None:
        for planted in self.faults:
            if planted.after == after and planted.call in (call, "*") and fnmatch.fnmatchcase(key, planted.key):
                self.faults.remove(planted)
                raise planted.error

    def _find(self, file_id: str) -> Stored:
        try:
            return self._by_id[file_id]
        except KeyError:
            raise BucketError(Fault.MISSING, f"no version {file_id}") from None

    def _newest(self, key: str) -> Version | None:
        stack = self._stacks.get(key)
        return stack[-1].version if stack else None

    def _tick(self) -> int:
        self._now += 1
        return self._now
