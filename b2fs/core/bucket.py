"""What the engine knows of a bucket: the value types and the `Bucket` protocol.

Rules
  A version is immutable and named by its file id; bytes are only ever asked for by file id, never by
  name, so that two reads of one id cannot see two contents (facts: b2.md 0.7).
  Keys are object names without the mount's prefix; the adapter adds and removes the prefix.
  Bytes never pass through these calls: requests name files of the state directory.

Units: sizes and offsets in bytes, ``*_ms`` milliseconds since the epoch on B2's clock, ``*_s`` seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec


class Version(msgspec.Struct, frozen=True):
    """One immutable version of an object, as B2 reports it."""

    key: str
    file_id: str
    size: int
    sha1: str
    """40 lower-case hex digits, or '' where B2 does not know it (large file without large_file_sha1)."""
    uploaded_ms: int
    """B2's clock when the upload *began*; orders the versions of one key, nothing else."""
    content_type: str = ""
    info: dict[str, str] = {}
    """fileInfo, decoded; keys are lower-case."""


class Page(msgspec.Struct, frozen=True):
    """One answer to a listing: newest visible versions in the byte order of their keys."""

    versions: list[Version]
    folders: list[str]
    """Common prefixes (with the trailing '/'), only for a listing with delimiter."""
    next_key: str | None
    """Where the next page starts; None after the last page."""


class Identity(msgspec.Struct, frozen=True):
    """Which bucket this is. A state directory belongs to one identity for ever."""

    endpoint: str
    bucket_id: str
    bucket_name: str
    prefix: str
    """'' or a string that ends with '/'."""


class Requests(msgspec.Struct, frozen=True):
    """How many requests were sent to B2 since the start, by call and by transaction class."""

    calls: dict[str, int] = {}
    """API call (``b2_upload_file`` …) to count; retries count again, as B2 bills them."""
    classes: dict[str, int] = {}
    """``A``, ``B``, ``C`` to count (facts: b2.md 2)."""
    sent: int = 0
    """Bytes of bodies sent."""
    received: int = 0
    """Bytes of bodies received."""
    copied: int = 0
    """Bytes that B2 copied on the server."""


class Base(msgspec.Struct, frozen=True):
    """An earlier version that a file is like."""

    file_id: str
    same: list[tuple[int, int]]
    """Where the file seems to equal that version: half-open ranges of both, in order, disjoint. (A hint: B2 and the
    bucket's adapter see to it that no other byte is taken.)"""


class Bucket(Protocol):
    """The bucket as the engine uses it. Every call is one attempt with a bounded time: retrying is the
    engine's business. Every call may raise `errors.BucketError`; after a TRANSIENT one a write may
    nevertheless have been committed, and after one that `may_pass` a large upload may have left parts.
    """

    async def connect(self) -> Identity:
        """Authorise and find the bucket. `errors.BucketError` DENIED (key, capability), MISSING (bucket)."""
        ...

    async def list_page(self, prefix: str, start: str, delimiter: str, limit: int) -> Page:
        """The newest visible versions whose key starts with `prefix`, from key `start` on ('' = first).

        With `delimiter` '/' deeper names are folded into `Page.folders`. `limit` is 1 to 1000 (B2 bills
        per 1000). Rows that are not uploads are left out.
        """
        ...

    async def fetch(self, file_id: str, path: str, offset: int, length: int, sha1: str) -> None:
        """Write the bytes [offset, offset+length) of a version to the beginning of the file at `path`.

        `path` is created 0600 when missing and is never truncated. With `sha1` the range is the whole
        object and is checked against it. On return exactly `length` bytes were written (not fsynced);
        after an error they are undefined.
        """
        ...

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
        """Store the sealed file at `path` as the newest version of `key`. B2 has confirmed the SHA-1.

        `base`: what of it B2 may copy from another version instead, if that is cheaper. It need not exist any more.

        `resume`: an attempt at this write (same key, same operation in `info`, see `core.inode`) may have been
        made before. What B2 holds of it is used, and the version is then as old as that attempt: it can lie
        below one that came since.
        """
        ...

    async def copy(self, file_id: str, key: str, size: int, info: Mapping[str, str], content_type: str) -> Version:
        """Server-side copy of a version to `key`, with new `info`. MISSING when the source is gone."""
        ...

    async def hide(self, key: str) -> int:
        """Put a hide marker on `key`; its time in B2's milliseconds, or 0 if there was nothing to hide."""
        ...

    async def head(self, key: str) -> Version | None:
        """The newest visible version of `key`, None if B2 says that there is none."""
        ...

    def requests(self) -> Requests:
        """What was sent so far, as last reported by the side that sends."""
        ...
