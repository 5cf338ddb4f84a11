"""B2's answers, checked and turned into `core.bucket` types. Pure.

Rules
  A field that names, sizes or orders a version must be there and have its type, else the whole answer is
  malformed (a row silently left out could be taken for a deleted file). The others are taken as they come.
  fileInfo is never interpreted: foreign values such as a src_last_modified_millis of "1234.5" are data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

import msgspec

from b2fs.core.bucket import Page, Version

LARGE_SHA1 = "large_file_sha1"
"""fileInfo key under which every B2 tool stores the SHA-1 of a file that was uploaded in parts."""

_SHA1 = re.compile(r"[0-9a-f]{40}")
_INFO = "x-bz-info-"

# A HEAD tells these of fileInfo as plain HTTP headers. Cache-Control is missing on purpose: B2 also
# sends the bucket's own, which is not the object's.
_INFO_AS_HEADER = {
    "content-disposition": "b2-content-disposition",
    "content-language": "b2-content-language",
    "content-encoding": "b2-content-encoding",
    "expires": "b2-expires",
}


class Row(msgspec.Struct, frozen=True, rename="camel"):
    """One file version, as listings and most calls answer it."""

    action: str
    file_name: str
    upload_timestamp: int
    file_id: str | None = None
    content_length: int | None = None
    content_sha1: str | None = None
    content_type: str | None = None
    file_info: dict[str, Any] | None = None

    def version(self, prefix: str) -> Version:
        """Raises ValueError for a row that is no version, or that is not below `prefix`."""
        if self.action not in ("upload", "copy") or self.file_id is None or self.content_length is None:
            raise ValueError(f"not a file version: {self.action}")
        if not self.file_name.startswith(prefix):
            raise ValueError("a name without the prefix")
        self.file_name.encode()  # a lone surrogate cannot be a name
        info = {str(key).lower(): str(value) for key, value in (self.file_info or {}).items()}
        return Version(
            key=self.file_name[len(prefix) :],
            file_id=self.file_id,
            size=self.content_length,
            sha1=_known_sha1(self.content_sha1, info),
            uploaded_ms=self.upload_timestamp,
            content_type=self.content_type or "",
            info=info,
        )


class _Listing(msgspec.Struct, frozen=True, rename="camel"):
    files: list[Row]
    next_file_name: str | None = None


class Part(msgspec.Struct, frozen=True, rename="camel"):
    """One part of an unfinished large file."""

    part_number: int
    content_length: int
    content_sha1: str


class _Unfinished(msgspec.Struct, frozen=True, rename="camel"):
    files: list[Row]
    next_file_id: str | None = None


class _Parts(msgspec.Struct, frozen=True, rename="camel"):
    parts: list[Part]
    next_part_number: int | None = None


def row(answer: Any) -> Row:
    return msgspec.convert(answer, Row)


def unfinished(answer: Any) -> tuple[list[Row], str | None]:
    """A page of b2_list_unfinished_large_files, and where the next one starts."""
    page = msgspec.convert(answer, _Unfinished)
    return page.files, page.next_file_id


def parts(answer: Any) -> tuple[list[Part], int | None]:
    """A page of b2_list_parts, and where the next one starts."""
    page = msgspec.convert(answer, _Parts)
    return page.parts, page.next_part_number


def page(answer: Any, prefix: str) -> Page:
    """A page of b2_list_file_names; `prefix` is taken off every name."""
    listing = msgspec.convert(answer, _Listing)
    following = listing.next_file_name
    return Page(
        versions=[row.version(prefix) for row in listing.files if row.action == "upload"],
        folders=[row.file_name.removeprefix(prefix) for row in listing.files if row.action == "folder"],
        next_key=following.removeprefix(prefix) if following and following.startswith(prefix) else None,
    )


def head(headers: Mapping[str, str], key: str) -> Version:
    """The version that the headers of a download by name describe."""
    info = {}
    for name, value in headers.items():
        name = name.lower()
        if name.startswith(_INFO):
            info[name[len(_INFO) :]] = unquote_plus(value)
        elif name in _INFO_AS_HEADER:
            info[_INFO_AS_HEADER[name]] = value
    return Version(
        key=key,
        file_id=headers["X-Bz-File-Id"],
        size=int(headers["Content-Length"]),
        sha1=_known_sha1(headers.get("X-Bz-Content-Sha1"), info),
        uploaded_ms=int(headers["X-Bz-Upload-Timestamp"]),
        content_type=headers.get("Content-Type", ""),
        info=info,
    )


def _known_sha1(content_sha1: str | None, info: Mapping[str, str]) -> str:
    """B2's SHA-1, else what the uploader of a large file promised, else ''.

    "unverified:<sha1>" is nobody's promise: B2 was told not to look (facts: b2.md 1.6).
    """
    for sha1 in (content_sha1 or "", info.get(LARGE_SHA1, "").lower()):
        if _SHA1.fullmatch(sha1):
            return sha1
    return ""
