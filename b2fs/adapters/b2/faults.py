"""Every way in which a B2 request can fail, as one of b2fs's errors. The only table of them.

Rules
  Every exception of b2sdk, requests, urllib3, of a malformed answer and of a local file ends here.
  A message is one line and holds no secret: text of a transport error, which may quote URLs and
  headers, is never copied, only the host and the kind of failure; text that B2 sent is copied with the
  secrets of its request blotted out.
"""

from __future__ import annotations

import errno
import http.client
import re
from collections.abc import Iterable

import msgspec
import requests
import urllib3
from b2sdk._internal.exception import (  # type: ignore[import-untyped]  # v3 does not export them
    ResourceNotFound,
    UploadTokenUsedConcurrently,
)
from b2sdk.v3 import exception as b2  # type: ignore[import-untyped]

from b2fs.errors import B2fsError, BucketError, Damaged, Fault, NoSpace


class Refusal(BucketError):
    """A `BucketError` that remembers the exception it was, for the few callers whom it concerns."""

    def __init__(self, fault: Fault, message: str, retry_after_s: float, cause: Exception) -> None:
        super().__init__(fault, message, retry_after_s)
        self.kind = type(cause)
        self.text = str(cause)

    @property
    def token_expired(self) -> bool:
        """Whether a new token may help. A HEAD is refused without a body, hence without a code (b2sdk)."""
        return issubclass(self.kind, b2.InvalidAuthToken) or (
            issubclass(self.kind, b2.Unauthorized) and "(None)" in self.text
        )

    @property
    def key_refused(self) -> bool:
        """Whether B2 does not know who we are (rather than: not allow what we want)."""
        return self.kind in (b2.Unauthorized, b2.InvalidAuthToken)

    @property
    def nothing_there(self) -> bool:
        """Whether B2 says that there is no such visible object: for a hide, that is success."""
        return issubclass(self.kind, ResourceNotFound | b2.FileAlreadyHidden)

    @property
    def not_active(self) -> bool:
        """Whether the large file is not being uploaded any more: finished, perhaps by us, or cancelled."""
        return "no active upload" in self.text.lower()


class SourceFailed(b2.B2Error):  # type: ignore[misc]  # b2sdk ships no types
    """A local file could not be read while it was being sent; carries the error to raise.

    It is a `B2Error` because b2sdk passes only those through a request unchanged (facts: b2.md 4.7).
    """

    def __init__(self, error: B2fsError) -> None:
        super().__init__(str(error))
        self.error = error


_CAPS = "reached for today: raise it in B2's “Caps & Alerts”, or wait for 00:00 UTC"

# First match wins, so a subclass stands before its base. An empty text means: what B2 said.
_TABLE: tuple[tuple[type[Exception], Fault, str], ...] = (
    # the key, its token, the account
    (b2.InvalidAuthToken, Fault.TRANSIENT, "B2 does not accept the token that it has just given"),
    (b2.Unauthorized, Fault.DENIED, ""),
    (b2.StorageCapExceeded, Fault.CAPPED, f"storage cap {_CAPS}"),
    (b2.TransactionCapExceeded, Fault.CAPPED, f"transaction cap {_CAPS}"),
    (b2.CapExceeded, Fault.CAPPED, f"a cap is {_CAPS}"),
    (b2.AccessDenied, Fault.DENIED, "B2 does not allow this call with this key"),
    (b2.TooManyRequests, Fault.THROTTLED, "B2 asks for fewer requests (429)"),
    # what is not there
    (ResourceNotFound, Fault.MISSING, ""),
    (b2.FileAlreadyHidden, Fault.MISSING, ""),
    # what may work at the next try: `ServiceError` is 5xx, `RequestTimeout` 408
    (b2.ServiceError, Fault.TRANSIENT, ""),
    (b2.RequestTimeout, Fault.TRANSIENT, "B2 gave up waiting for the request (408)"),
    (UploadTokenUsedConcurrently, Fault.TRANSIENT, "the upload URL is in use"),
    (b2.BadUploadUrl, Fault.TRANSIENT, "the upload URL is not valid"),
    (b2.B2ConnectionError, Fault.TRANSIENT, ""),
    (b2.B2RequestTimeout, Fault.TRANSIENT, ""),
    (b2.BrokenPipe, Fault.TRANSIENT, ""),
    (b2.ConnectionReset, Fault.TRANSIENT, ""),
    (b2.UnknownHost, Fault.TRANSIENT, ""),
    # bytes that are not the promised ones
    (b2.ChecksumMismatch, Fault.CORRUPT, ""),
    (b2.PartSha1Mismatch, Fault.CORRUPT, ""),
    (b2.UnsatisfiableRange, Fault.CORRUPT, "the version is shorter than promised"),
    # what B2 will never accept
    (b2.PotentialS3EndpointPassedAsRealm, Fault.REFUSED, "this is an S3 endpoint: b2fs speaks B2's own API"),
    (b2.UnknownError, Fault.TRANSIENT, ""),  # refined by its status in `translate`
    (b2.B2Error, Fault.REFUSED, ""),
    # below b2sdk: reading a body, and answers that are not what the API promises. Malformed is
    # TRANSIENT, for a write whose answer cannot be read may have been committed.
    (requests.RequestException, Fault.TRANSIENT, ""),
    (urllib3.exceptions.HTTPError, Fault.TRANSIENT, ""),
    (http.client.HTTPException, Fault.TRANSIENT, ""),
    (OSError, Fault.TRANSIENT, ""),
    (msgspec.ValidationError, Fault.TRANSIENT, "B2's answer is malformed"),
    (ValueError, Fault.TRANSIENT, "B2's answer is malformed"),
    (LookupError, Fault.TRANSIENT, "B2's answer is malformed"),
    (AssertionError, Fault.TRANSIENT, "B2's answer is malformed"),
)

_TRANSPORT = (
    b2.B2ConnectionError,
    b2.B2RequestTimeout,
    b2.BrokenPipe,
    b2.ConnectionReset,
    b2.UnknownHost,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
)


def translate(error: Exception, secrets: Iterable[str] = ()) -> B2fsError:
    """The b2fs error that `error` means. `secrets` are blotted out of what B2 said.

    An exception that is in no row is a bug; it becomes TRANSIENT too, with its type as the message, so
    that nothing that waits for B2 is thrown away because of it.
    """
    if isinstance(error, B2fsError):
        return error
    if isinstance(error, SourceFailed):
        return error.error
    bug = (Fault.TRANSIENT, f"internal error: {type(error).__name__}")
    fault, text = next(((fault, text) for kind, fault, text in _TABLE if isinstance(error, kind)), bug)
    retry_after_s = float(getattr(error, "retry_after_seconds", None) or 0.0)
    if isinstance(error, _TRANSPORT):
        text = _transport(str(error), type(error).__name__)
    elif isinstance(error, b2.ServiceError) and retry_after_s:
        fault = Fault.THROTTLED
    elif type(error) is b2.UnknownError:
        fault, text = _unknown(str(error.args[0]))
    elif isinstance(error, b2.BadRequest) and _is_checksum(str(error)):
        fault = Fault.CORRUPT
    if _is_short_body(error):
        fault, text = Fault.TRANSIENT, "the body ended before its promised length"
    message = _one_line(text or str(error), secrets)
    return Refusal(fault, message, retry_after_s, error)


def local(error: OSError, doing: str) -> B2fsError:
    """The b2fs error for a failure of a local file: `NoSpace`, or `Damaged` for everything else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left on the local disk: {doing}")
    return Damaged(f"local file: {doing}: {error.strerror or type(error).__name__}")


def _transport(text: str, kind: str) -> str:
    """'no answer from HOST (KIND)', from an exception text that may hold URLs."""
    host = re.search(r"host='([^'/?\s]+)'", text)
    names = re.findall(r"\b([A-Z]\w*(?:Error|Disconnected|Refused|Timeout|IncompleteRead))\b", text)
    if "timed out" in text:
        names.append("timed out")
    return f"no answer from {host[1] if host else 'B2'} ({names[-1] if names else kind})"


def _unknown(text: str) -> tuple[Fault, str]:
    """b2sdk's `UnknownError`: either '403 code message' or the repr of an exception that it did not expect."""
    status = re.match(r"([45]\d\d) (\w+) ", text)
    if status is None:
        return Fault.TRANSIENT, _transport(text, "unexpected answer")
    if "cap_exceeded" in status[2]:
        return Fault.CAPPED, f"{status[2].removesuffix('_cap_exceeded')} cap {_CAPS}"
    return (Fault.DENIED if status[1] == "403" else Fault.REFUSED), text


def _is_checksum(text: str) -> bool:
    return "checksum" in text.lower() or "sha1" in text.lower()


def _is_short_body(error: Exception) -> bool:
    return isinstance(error, urllib3.exceptions.IncompleteRead) or (
        isinstance(error, urllib3.exceptions.ProtocolError)
        and any(isinstance(arg, urllib3.exceptions.IncompleteRead) for arg in error.args)
    )


def _one_line(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, "…")
    text = re.sub(r"Basic\s+[\w+/=-]+", "…", text)
    return " ".join(text.split())[:300]
