"""Every error that b2fs raises on purpose, with its errno and its exit code.

Rules
  This is the only table of errnos and exit codes: code below the front ends raises one of these
  classes and never names an errno; a front end turns ``error.errno`` into its reply, a command turns
  ``error.exit_code`` into its own.
  The message is one line for a person and says what to do where something can be done. It may name
  keys, paths and buckets, never a secret.
  Anything that is not a ``B2fsError`` is a bug: a front end logs it with its traceback and answers EIO.
"""

from __future__ import annotations

import errno
from enum import IntEnum, StrEnum


class Exit(IntEnum):
    """Exit codes of the ``b2fs`` commands; documented in README, so never renumbered."""

    OK = 0
    BUG = 1  # unexpected: a traceback is in the log
    USAGE = 2  # wrong option or argument (click's own code)
    CONFIG = 3  # a setting is missing or wrong
    DENIED = 4  # B2 refuses the key, or the key lacks a capability
    BUCKET = 5  # no such bucket, or B2 cannot be reached
    STATE = 6  # the state directory is in use, or belongs to another bucket or prefix
    MOUNT = 7  # the mountpoint is missing, not empty, busy, or FUSE is not available
    NOT_DRAINED = 8  # not everything is in B2; the manifest says what
    NOT_RUNNING = 9  # no daemon serves this path
    DISK = 10  # the local disk is full or failing
    DAMAGED = 11  # fsck found something wrong that no start repairs


class B2fsError(Exception):
    """Base class. ``errno`` is what a file operation answers, ``exit_code`` what a command exits with."""

    errno: int = errno.EIO
    exit_code: Exit = Exit.BUG


# ---------------------------------------------------------------- file operations: the answer to a program


class NotFound(B2fsError):
    """The name is proven absent. Never raised because B2 did not answer."""

    errno = errno.ENOENT
    exit_code = Exit.USAGE


class Exists(B2fsError):
    errno = errno.EEXIST


class Stale(B2fsError):
    """What the caller knows of the name has changed meanwhile: he is to look it up again."""

    errno = errno.ESTALE


class NotDirectory(B2fsError):
    errno = errno.ENOTDIR


class IsDirectory(B2fsError):
    errno = errno.EISDIR


class NotEmpty(B2fsError):
    errno = errno.ENOTEMPTY


class NameTooLong(B2fsError):
    """The name, or the name with its attributes, does not fit into B2's limits (facts: b2.md 1.5, 1.6)."""

    errno = errno.ENAMETOOLONG


class BadName(B2fsError):
    """The name cannot be an object name: not UTF-8, a control character, or a name that b2fs uses itself."""

    errno = errno.EINVAL


class Invalid(B2fsError):
    """The request makes no sense (rename into itself, unknown flags)."""

    errno = errno.EINVAL


class BadHandle(B2fsError):
    """The handle was not opened for this (write on a read-only handle)."""

    errno = errno.EBADF


class NotPermitted(B2fsError):
    errno = errno.EPERM


class Forbidden(B2fsError):
    errno = errno.EACCES


class NotSupported(B2fsError):
    errno = errno.ENOTSUP


class NoAttribute(B2fsError):
    """The extended attribute is not set."""

    errno = errno.ENODATA


class TooLarge(B2fsError):
    """The file would pass B2's limit of 10 TB."""

    errno = errno.EFBIG


class NoSpace(B2fsError):
    """The local disk, the budget for bytes that are not in B2 yet, or the space for attributes in the object's header
    is full. Nothing was written.
    """

    errno = errno.ENOSPC
    exit_code = Exit.DISK


class ReadOnly(B2fsError):
    """The journal cannot be written, so nothing may be acknowledged any more."""

    errno = errno.EROFS


class Unavailable(B2fsError):
    """B2 did not answer within the deadline, and the bytes are not here. Local state is unchanged."""

    errno = errno.EIO
    exit_code = Exit.BUCKET


class Damaged(B2fsError):
    """Local content does not match its checksum or is gone; it was set aside, not served."""

    errno = errno.EIO
    exit_code = Exit.DISK


# ---------------------------------------------------------------- commands and start-up


class ConfigError(B2fsError):
    exit_code = Exit.CONFIG


class AccessDenied(B2fsError):
    errno = errno.EACCES
    exit_code = Exit.DENIED


class NoBucket(B2fsError):
    exit_code = Exit.BUCKET


class StateError(B2fsError):
    exit_code = Exit.STATE


class MountError(B2fsError):
    exit_code = Exit.MOUNT


class NotDrained(B2fsError):
    exit_code = Exit.NOT_DRAINED


class NotRunning(B2fsError):
    exit_code = Exit.NOT_RUNNING


# ---------------------------------------------------------------- what B2 answered


class Fault(StrEnum):
    """What an unsuccessful answer of B2 means for the one who asked."""

    TRANSIENT = "transient"  # no answer, 408, 5xx, broken connection, cut body: the same request may work later
    THROTTLED = "throttled"  # 429, or 503 with Retry-After: wait, then ask again
    DENIED = "denied"  # key unknown, expired, or without the capability
    CAPPED = "capped"  # a cap of the account is reached: works again when it is raised, or after midnight UTC
    MISSING = "missing"  # no such file id, name or bucket
    REFUSED = "refused"  # B2 will never accept this request: bad name, header too long
    CORRUPT = "corrupt"  # the bytes that arrived are not those that were promised


class BucketError(B2fsError):
    """A bucket request failed. The bucket is unchanged, unless ``fault`` is TRANSIENT: then a write may
    have been committed and its answer lost.

    ``retry_after_s`` is B2's own wish (Retry-After), 0.0 where it expressed none.
    """

    exit_code = Exit.BUCKET

    def __init__(self, fault: Fault, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.fault = fault
        self.retry_after_s = retry_after_s

    @property
    def may_retry(self) -> bool:
        """Whether the same request can succeed later without anybody changing anything."""
        return self.fault in (Fault.TRANSIENT, Fault.THROTTLED, Fault.CORRUPT)

    @property
    def may_pass(self) -> bool:
        """Whether it can succeed later, if only after somebody did something (raised a cap, mended the key).

        What the request left half done (parts of a large file) is then kept for the next attempt.
        """
        return self.fault not in (Fault.MISSING, Fault.REFUSED)
