"""What Backblaze B2 accepts, as pure functions: names, header budget, info keys, ids, call prices.

Rules
  Nothing here does I/O, reads a clock, or draws a random number.
  A check returns nothing when all is well and raises `Refused` with B2's own status and code otherwise.
  These are the rules of the *server* (facts: b2.md 1.5, 1.6): ``/x``, ``a//b``, ``dir/`` and ``a\\b`` are
  accepted, because other clients can create them and b2fs has to live with them.

Units: sizes in bytes, of UTF-8 or of percent-encoded text; ``*_ms`` milliseconds since the epoch.
"""

from __future__ import annotations

import mimetypes
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote_to_bytes

MIN_PART_SIZE = 5_000_000
"""B2's smallest part of a large file, except for the last part (apidocs/b2-start-large-file)."""
RECOMMENDED_PART_SIZE = 100_000_000
MAX_UPLOAD_SIZE = 5_000_000_000
"""One b2_upload_file, one part, or the result of one b2_copy_file."""
MAX_PARTS = 10_000
MAX_NAME_BYTES = 1024
MAX_HEADER_BYTES = 2048
"""Percent-encoded name and info together; 2048 and not 7000 since every bucket has SSE-B2 (facts: b2.md 0.5)."""
MAX_INFO_KEY_BYTES = 50
MAX_LIST_COUNT = 10_000
MAX_BUCKET_INFO = 10
MAX_LIFECYCLE_RULES = 100

ALL_CAPABILITIES = [
    "listKeys",
    "writeKeys",
    "deleteKeys",
    "listAllBucketNames",
    "listBuckets",
    "readBuckets",
    "writeBuckets",
    "deleteBuckets",
    "readBucketEncryption",
    "writeBucketEncryption",
    "readBucketRetentions",
    "writeBucketRetentions",
    "readBucketReplications",
    "writeBucketReplications",
    "readBucketNotifications",
    "writeBucketNotifications",
    "readBucketLogging",
    "writeBucketLogging",
    "listFiles",
    "readFiles",
    "shareFiles",
    "writeFiles",
    "deleteFiles",
    "readFileRetentions",
    "writeFileRetentions",
    "readFileLegalHolds",
    "writeFileLegalHolds",
    "bypassGovernance",
]

# Percent-encoding keeps these (apidocs: string encoding); everything else counts three bytes.
_SAFE = "._-/~!$'()*;=:@"
_INFO_KEY = re.compile(r"[A-Za-z0-9\-_.`~!#$%^&*'|+]+")
_BUCKET_NAME = re.compile(r"[A-Za-z0-9-]{6,63}")
_FILE_ID = re.compile(r"4_z([0-9a-f]{24})_f([0-9a-f]{16})_d\d{8}_m\d{6}_c002_v0001000_t0000_u0(\d{13})")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_B2_INFO_KEYS = frozenset(
    [
        "b2-cache-control",
        "b2-expires",
        "b2-content-disposition",
        "b2-content-language",
        "b2-content-encoding",
    ]
)
_LIFECYCLE_DAYS = (
    "daysFromHidingToDeleting",
    "daysFromUploadingToHiding",
    "daysFromStartingToCancelingUnfinishedLargeFiles",
)

PRICE_CLASS: Mapping[str, str] = {
    **dict.fromkeys(
        [
            "b2_upload_file",
            "b2_upload_part",
            "b2_start_large_file",
            "b2_finish_large_file",
            "b2_cancel_large_file",
            "b2_get_upload_url",
            "b2_get_upload_part_url",
            "b2_hide_file",
            "b2_delete_file_version",
            "b2_delete_bucket",
            "b2_delete_key",
            "b2_update_file_retention",
            "b2_update_file_legal_hold",
        ],
        "A",
    ),
    **dict.fromkeys(
        [
            "b2_download_file_by_id",
            "b2_download_file_by_name",
            "head_file_by_id",
            "head_file_by_name",
            "b2_get_file_info",
        ],
        "B",
    ),
}
"""Transaction class of a call (facts: b2.md 2); whatever is not here is class C."""


class Refused(Exception):
    """An answer other than success, as B2 words it: HTTP status, machine-readable code, message."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


def bad_request(message: str) -> Refused:
    return Refused(400, "bad_request", message)


# ---------------------------------------------------------------- names and info


def encode(text: str) -> str:
    """Percent-encode a name or an info value as B2 does in its answers."""
    return quote(text, safe=_SAFE)


def decode(text: str) -> str:
    """Percent-decode a header or path; ``+`` is a space. Refuses what is not ASCII, or not UTF-8 when decoded."""
    if not text.isascii():
        raise bad_request("names and info values must be percent-encoded")
    if "%" not in text and "+" not in text:
        return text
    try:
        return unquote_to_bytes(text.replace("+", " ")).decode()
    except UnicodeDecodeError:
        raise bad_request("percent-encoded text is not UTF-8") from None


def check_file_name(name: str) -> None:
    size = len(name.encode("utf-8", "surrogatepass"))
    if size < 1:
        raise bad_request("File names must contain at least one character")
    if size > MAX_NAME_BYTES:
        raise bad_request(f"File name too long: {size} bytes, the maximum is {MAX_NAME_BYTES}")
    for char in name:
        if char < " " or char == "\x7f":
            raise bad_request(f"File names must not contain the character code {ord(char)}")
        if "\ud800" <= char <= "\udfff":
            raise bad_request("File names must be UTF-8")


def header_bytes(name: str, info: Mapping[str, str]) -> int:
    """What a name and its info take of the header budget."""
    return len(encode(name)) + sum(len("X-Bz-Info-") + len(k) + len(encode(v)) for k, v in info.items())


def check_info(name: str, info: Mapping[str, str]) -> dict[str, str]:
    """The info as B2 stores it (keys in lower case), or `Refused`."""
    stored: dict[str, str] = {}
    for key, value in info.items():
        key = key.lower()
        if not _INFO_KEY.fullmatch(key) or len(key) > MAX_INFO_KEY_BYTES:
            raise bad_request(f"Bad file info name: {key!r}")
        if key.startswith("b2-") and key not in _B2_INFO_KEYS:
            raise bad_request(f"File info name {key!r} is reserved")
        if not isinstance(value, str):
            raise bad_request(f"File info {key!r} must be a string")
        if key in _B2_INFO_KEYS:
            check_header_value(value)  # it is sent as it is
        stored[key] = value
    if (size := header_bytes(name, stored)) > MAX_HEADER_BYTES:
        raise bad_request(f"File name and file info are too large: {size} bytes, the maximum is {MAX_HEADER_BYTES}")
    return stored


def check_header_value(text: str) -> str:
    """The text, if it can be sent as the value of an HTTP header as it is."""
    if not text.isascii() or not text.isprintable():
        raise bad_request(f"Not a header value: {text[:80]!r}")
    return text


def check_sha1(text: str) -> None:
    if not _SHA1.fullmatch(text):
        raise bad_request(f"Invalid SHA1: {text[:80]!r}")


def content_type(given: str, name: str) -> str:
    """The type to store: ``b2/x-auto`` is resolved by the extension of the name."""
    if given != "b2/x-auto":
        return check_header_value(given)
    guess, encoding = _TYPES.guess_type(name.rpartition("/")[2])
    return guess if guess and not encoding else "application/octet-stream"


# Only Python's own table: what the host's /etc/mime.types says must not change an answer.
_TYPES = mimetypes.MimeTypes(filenames=())


# ---------------------------------------------------------------- buckets


def check_bucket_name(name: str) -> None:
    if not _BUCKET_NAME.fullmatch(name) or name.lower().startswith("b2-"):
        raise bad_request(f"Invalid bucket name {name!r}: 6 to 63 letters, digits and '-', not starting with 'b2-'")


def check_bucket_type(kind: str) -> None:
    if kind not in ("allPrivate", "allPublic"):
        raise bad_request(f"Invalid bucketType: {kind!r}")


def check_bucket_info(info: Mapping[str, Any]) -> None:
    if len(info) > MAX_BUCKET_INFO:
        raise bad_request(f"bucketInfo has more than {MAX_BUCKET_INFO} names")
    for key, value in info.items():
        if not _INFO_KEY.fullmatch(key) or len(key) > MAX_INFO_KEY_BYTES or not isinstance(value, str):
            raise bad_request(f"Bad bucketInfo name or value: {key!r}")


def check_lifecycle(lifecycle: Sequence[Mapping[str, Any]]) -> None:
    """At most 100 rules, positive whole days, and no prefix that covers another one's."""
    if len(lifecycle) > MAX_LIFECYCLE_RULES:
        raise bad_request(f"More than {MAX_LIFECYCLE_RULES} lifecycle rules")
    prefixes: list[str] = []
    for rule in lifecycle:
        prefix = rule.get("fileNamePrefix")
        if not isinstance(prefix, str):
            raise bad_request("A lifecycle rule needs fileNamePrefix")
        for name in _LIFECYCLE_DAYS:
            days = rule.get(name)
            if days is not None and (not isinstance(days, int) or isinstance(days, bool) or days < 1):
                raise bad_request(f"{name} must be a positive number")
        if any(prefix.startswith(other) or other.startswith(prefix) for other in prefixes):
            raise bad_request(f"Lifecycle rules overlap at {prefix!r}")
        prefixes.append(prefix)


# ---------------------------------------------------------------- ids and ranges


def make_file_id(bucket_id: str, unique: str, uploaded_ms: int) -> str:
    """A file id of B2's shape; `unique` is 16 hex digits."""
    utc = time.gmtime(uploaded_ms // 1000)
    stamp = time.strftime("d%Y%m%d_m%H%M%S", utc)
    return f"4_z{bucket_id}_f{unique}_{stamp}_c002_v0001000_t0000_u0{uploaded_ms:013d}"


def check_file_id(file_id: str) -> tuple[str, int]:
    """(bucket id, upload time in ms) of a well-formed file id."""
    match = _FILE_ID.fullmatch(file_id)
    if match is None:
        raise bad_request(f"Bad fileId: {file_id[:120]}")
    return match[1], int(match[3])


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """(offset, length) of a ``Range`` header clipped to `size`; None if it asks for no byte range.

    A range that starts behind the end is refused; one that ends behind it is served short.
    """
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header.strip())
    if match is None or not (match[1] or match[2]):
        return None  # RFC 9110 14.2: a range that cannot be understood is ignored
    if not match[1]:
        length = min(int(match[2]), size)
        offset = size - length
    else:
        offset = int(match[1])
        end = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < offset:
            return None
        length = end - offset + 1
    if length < 1:
        raise Refused(416, "range_not_satisfiable", "The range is outside the file")
    return offset, length
