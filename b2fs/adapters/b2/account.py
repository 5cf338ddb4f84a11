"""Who we are to B2: authorise, find the bucket, check the key; and do so once, however many threads ask.

Rules
  One b2_authorize_account at a time (facts: b2.md 2: 32 threads with one expired token made ten). Whoever
  needs a new account while one is being fetched gets that one's result, success or failure.
  An `Account` is replaced as a whole, so no thread sees half of an old and half of a new one.
  A key that was accepted before is not believed to be gone at the first word: `_BELIEVED` refusals in a row make it
  DENIED, fewer are a passing fault, for a reader must not get an error by one odd answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec

from b2fs.adapters.b2.faults import Refusal
from b2fs.adapters.b2.settings import Settings
from b2fs.adapters.b2.transport import Account, Api
from b2fs.errors import BucketError, Fault

T = TypeVar("T")

NEEDED = ("listBuckets", "listFiles", "readFiles", "writeFiles")
"""Capabilities of a mount; deleteFiles is not among them (facts: b2.md 1.7)."""
_BELIEVED = 3
"""Refusals in a row."""


class Authority:
    """Holds the account; gets it when first asked, and anew when B2 says that its token has expired."""

    def __init__(self, settings: Settings, api: Api) -> None:
        self._settings = settings
        self._api = api
        self._lock = threading.Lock()
        self._account: Account | None = None
        self._was_accepted = settings.bucket_id != ""
        """By an earlier transfer process, or by this one."""
        self._refusals = 0
        self._flight: Future[Account] | None = None

    def connect(self) -> Account:
        """Authorise and check the key and the bucket, even if that was done before."""
        return self._renew(self._account, look_up=True)

    def call(self, request: Callable[[Account], T]) -> T:
        """`request` with a valid account; repeated once with a new one if the token turns out expired."""
        account = self._account or self._renew(None)
        try:
            return request(account)
        except Refusal as refusal:
            if not refusal.token_expired:
                raise
        return request(self._renew(account))

    def _renew(self, stale: Account | None, look_up: bool = False) -> Account:
        """An account that is not `stale`. A failure leaves the old one in place."""
        with self._lock:
            if self._account is not None and self._account is not stale:
                return self._account
            flight, mine = self._flight, self._flight is None
            if flight is None:
                flight = self._flight = Future()
        if mine:
            try:
                bucket_id = stale.bucket_id if stale and not look_up else ""
                account = _authorise(self._settings, self._api, bucket_id)
            except BaseException as exc:
                error = self._doubted(exc)
                with self._lock:
                    self._flight = None
                flight.set_exception(error)
                raise error from None
            self._was_accepted, self._refusals = True, 0
            with self._lock:
                self._account, self._flight = account, None
            flight.set_result(account)
        return flight.result()

    def _doubted(self, error: BaseException) -> BaseException:
        """The error, or a passing one instead of a refusal that is not believed yet."""
        if not isinstance(error, BucketError) or error.fault is not Fault.DENIED or not self._was_accepted:
            return error
        self._refusals += 1
        return error if self._refusals >= _BELIEVED else BucketError(Fault.TRANSIENT, str(error))


def _authorise(settings: Settings, api: Api, bucket_id: str) -> Account:
    """One b2_authorize_account, and one b2_list_buckets unless `bucket_id` is known already."""
    try:
        answer = api.authorize_account(settings.endpoint, settings.key_id, settings.key)
    except Refusal as refusal:
        if refusal.key_refused:
            text = f"B2 does not accept the application key {settings.key_id}: wrong, deleted or expired"
            raise BucketError(Fault.DENIED, text) from None
        if refusal.fault is Fault.MISSING:
            raise BucketError(Fault.MISSING, f"no B2 service at {settings.endpoint}") from None
        raise
    storage = answer["apiInfo"]["storageApi"]
    _check_key(settings, storage["allowed"])
    account = Account(
        token=answer["authorizationToken"],
        api_url=storage["apiUrl"],
        download_url=storage["downloadUrl"],
        minimum_part=storage["absoluteMinimumPartSize"],
        recommended_part=storage["recommendedPartSize"],
        bucket_id=bucket_id,
    )
    if bucket_id:
        return account
    buckets = api.list_buckets(account.api_url, account.token, answer["accountId"], bucket_name=settings.bucket)[
        "buckets"
    ]
    found = [bucket["bucketId"] for bucket in buckets if bucket["bucketName"] == settings.bucket]
    if not found:
        raise BucketError(Fault.MISSING, f"no bucket named {settings.bucket!r} in this account")
    if settings.bucket_id not in ("", found[0]):
        text = f"bucket {settings.bucket!r} is not the one it was: its id changed to {found[0]}"
        raise BucketError(Fault.MISSING, text)
    return msgspec.structs.replace(account, bucket_id=found[0])


def _check_key(settings: Settings, allowed: dict[str, Any]) -> None:
    """Raises DENIED when the key cannot serve this mount, in words that say what to change."""
    lacking = [name for name in NEEDED if name not in allowed["capabilities"]]
    if lacking:
        plural = "y" if len(lacking) == 1 else "ies"
        text = f"the key lacks the capabilit{plural} {', '.join(lacking)}; a mount needs {', '.join(NEEDED)}"
        raise BucketError(Fault.DENIED, text)
    names = [bucket["name"] for bucket in allowed.get("buckets") or []]
    if names and settings.bucket not in names:
        text = f"the key is restricted to the bucket {', '.join(map(repr, names))}, not {settings.bucket!r}"
        raise BucketError(Fault.DENIED, text)
    restriction = allowed.get("namePrefix") or ""
    if not settings.prefix.startswith(restriction):
        text = f"the key is restricted to names that start with {restriction!r}, and the prefix is {settings.prefix!r}"
        raise BucketError(Fault.DENIED, text)
