"""`B2Client`: the calls of `core.bucket.Bucket`, synchronous, for any number of threads.

Rules
  Each call is one attempt, and its time is bounded (`Settings`). Two exceptions, both without a sleep: an
  expired token is replaced and the request repeated, once; the parts of a large file are tried again one
  by one (`large`). Waiting and retrying are the engine's business.
  Bytes are asked for by file id, counted and hashed by ourselves (facts: b2.md 0.6, 0.7, 4.5).
  Every call raises `errors.BucketError`, `NoSpace` or `Damaged` (a local file failed), and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import NamedTuple
from urllib.parse import unquote_plus

import requests

from b2fs.adapters.b2 import answers, faults
from b2fs.adapters.b2.account import Authority
from b2fs.adapters.b2.large import BaseLost, Large
from b2fs.adapters.b2.settings import MAX_SINGLE, Settings
from b2fs.adapters.b2.source import Source
from b2fs.adapters.b2.transport import REPLACE, Account, Api, Counter, Http
from b2fs.core.bucket import Base, Identity, Page, Requests, Version
from b2fs.errors import BucketError, Damaged, Fault

AUTO_TYPE = "b2/x-auto"
"""Content type that lets B2 choose one by the name's extension."""

_BLOCK = 256 * 1024


def no_progress() -> None:
    """For callers that do not want to know that a long call is still moving."""


class _UploadUrl(NamedTuple):
    """Where to upload: one storage pod, one upload at a time (facts: b2.md 3)."""

    url: str
    token: str


class B2Client:
    """One bucket, below one prefix. Keys come and go without the prefix."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counter = Counter()
        self._api = Api(Http(settings, self._counter))
        self._authority = Authority(settings, self._api)
        self._large = Large(settings, self._api, self._authority, self._counter)
        self._urls: deque[_UploadUrl] = deque()  # append and pop are atomic

    def requests(self) -> Requests:
        """What was sent so far."""
        return self._counter.snapshot()

    def connect(self) -> Identity:
        """One b2_authorize_account, one b2_list_buckets. DENIED or MISSING say what to change.

        Optional: the first call that needs an account gets one itself.
        """
        with _translated():
            account = self._authority.connect()
        settings = self._settings
        return Identity(settings.endpoint, account.bucket_id, settings.bucket, settings.prefix)

    def list_page(self, prefix: str, start: str, delimiter: str, limit: int) -> Page:
        """See `Bucket.list_page`."""
        ours = self._settings.prefix
        first = ours + start if start else None
        with _translated():
            answer = self._authority.call(
                lambda account: self._api.list_folder(account, ours + prefix, first, delimiter or None, limit)
            )
            page = answers.page(answer, ours)
            if page.next_key is not None and page.next_key <= start:
                raise ValueError("the listing does not move on")  # its reader would never end
            return page

    def head(self, key: str) -> Version | None:
        """See `Bucket.head`. One HEAD by name: class B."""
        name = self._settings.prefix + key
        if not {".", ".."}.isdisjoint(name.split("/")):
            # No URL can name it: HTTP libraries resolve such segments on the way.
            found = self.list_page(key, key, "", 1).versions
            return found[0] if found and found[0].key == key else None
        try:
            with _translated():
                headers = self._authority.call(
                    lambda account: self._api.get_file_info_by_name(
                        account.download_url, account.token, self._settings.bucket, name
                    )
                )
                if unquote_plus(headers["X-Bz-File-Name"]) != name:
                    raise ValueError("B2 described another object")
                return answers.head(headers, key)
        except faults.Refusal as refusal:
            if refusal.nothing_there:
                return None
            raise

    def hide(self, key: str) -> int:
        """See `Bucket.hide`."""
        name = self._settings.prefix + key
        try:
            with _translated():
                answer = self._authority.call(
                    lambda account: self._api.hide_file(account.api_url, account.token, account.bucket_id, name)
                )
                return answers.row(answer).upload_timestamp
        except faults.Refusal as refusal:
            if refusal.nothing_there:
                return 0
            raise

    # ------------------------------------------------------------------------------------------ fetch

    def fetch(self, file_id: str, path: str, offset: int, length: int, sha1: str) -> None:
        """See `Bucket.fetch`. An empty range is answered without a request."""
        with _translated(), _opened(path, os.O_WRONLY | os.O_CREAT) as fd:
            # a range has no SHA-1 to be compared with (facts: b2.md 4.5)
            digest = hashlib.sha1(usedforsecurity=False) if sha1 else None
            if length:
                update = digest.update if digest is not None else None
                self._authority.call(lambda account: self._fetch(account, file_id, fd, offset, length, update))
            if digest is not None and digest.hexdigest() != sha1:
                raise BucketError(Fault.CORRUPT, f"version {file_id} arrived with another SHA-1")

    def _fetch(
        self,
        account: Account,
        file_id: str,
        fd: int,
        offset: int,
        length: int,
        whole_update: Callable[[bytes], object] | None,
    ) -> None:
        """`whole_update` takes the bytes of a whole object, in their order; None: it is a range."""
        deadline = time.monotonic() + self._settings.allowance_s(length)
        url = self._api.get_download_url_by_id(account.download_url, file_id)
        # A whole object is asked for without a range: that also proves that `length` is its size.
        span = None if whole_update is not None else (offset, offset + length - 1)
        with self._api.download_file_from_url(account.token, url, span) as response, closing(response):
            _check_promise(response, file_id, span, length)
            done = 0
            while done < length:
                if time.monotonic() > deadline:
                    raise BucketError(Fault.TRANSIENT, "the download is too slow")
                # `read1`, since `read` would wait for the whole block, however slowly it trickles in
                block = response.raw.read1(min(_BLOCK, length - done))
                if not block:
                    raise BucketError(Fault.TRANSIENT, f"the body ended after {done} of {length} bytes")
                self._counter.add(received=len(block))
                if whole_update is not None:
                    whole_update(block)
                _write(fd, block, done)
                done += len(block)

    # ------------------------------------------------------------------------------- upload and copy

    def upload(
        self,
        key: str,
        path: str,
        size: int,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        resume: bool = False,
        base: Base | None = None,
        progress: Callable[[], None] = no_progress,
    ) -> Version:
        """See `Bucket.upload`. A large file goes in parts (`large`), with a call of `progress` per part.

        `Damaged` when the file is not what `size` and `sha1` say: B2 then keeps nothing of what this call sent.
        """
        name = self._settings.prefix + key
        content_type = content_type or AUTO_TYPE
        with _translated(), _opened(path, os.O_RDONLY) as fd:
            try:
                row = self._upload(name, fd, path, size, sha1, info, content_type, resume, base, progress)
            except BaseLost:
                row = self._upload(name, fd, path, size, sha1, info, content_type, resume, None, progress)
            version = row.version(self._settings.prefix)
            _check_stored(version, key, size, sha1)
            return version

    def _upload(
        self,
        name: str,
        fd: int,
        path: str,
        size: int,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        resume: bool,
        base: Base | None,
        progress: Callable[[], None],
    ) -> answers.Row:
        if cut := self._large.cut(size, base):
            return self._large.upload(name, fd, path, cut, base, sha1, info, content_type, resume, progress)
        return self._upload_small(name, fd, path, size, sha1, info, content_type)

    def _upload_small(
        self, name: str, fd: int, path: str, size: int, sha1: str, info: Mapping[str, str], content_type: str
    ) -> answers.Row:
        source = Source(fd, path, 0, size, self._settings.allowance_s(size))

        def send(target: _UploadUrl) -> answers.Row:
            answer = self._api.upload_file(target.url, target.token, name, size, content_type, sha1, dict(info), source)
            self._urls.append(target)
            return answers.row(answer)

        try:
            target = self._urls.pop()
        except IndexError:
            target = self._new_upload_url()
        # After any failure the URL is not put back: its pod is full, gone or confused (facts: b2.md 3).
        try:
            return send(target)
        except faults.Refusal as refusal:
            if refusal.fault is Fault.CORRUPT and source.digest() != sha1:
                raise Damaged(f"local file: {path} changed since it was sealed") from None
            if not refusal.token_expired:
                raise
        return send(self._new_upload_url())

    def _new_upload_url(self) -> _UploadUrl:
        answer = self._authority.call(
            lambda account: self._api.get_upload_url(account.api_url, account.token, account.bucket_id)
        )
        return _UploadUrl(answer["uploadUrl"], answer["authorizationToken"])

    def copy(
        self,
        file_id: str,
        key: str,
        size: int,
        info: Mapping[str, str],
        content_type: str,
        progress: Callable[[], None] = no_progress,
    ) -> Version:
        """See `Bucket.copy`. A large SHA-1 of the source is carried over even if `info` lacks it."""
        name = self._settings.prefix + key
        content_type = content_type or AUTO_TYPE
        with _translated():
            if self._large.is_large(size) and answers.LARGE_SHA1 not in info:
                source = self._large.info(file_id)
                sha1 = (source.file_info or {}).get(answers.LARGE_SHA1)
                info = {**info, answers.LARGE_SHA1: sha1} if sha1 else info
            if size > MAX_SINGLE:
                row = self._large.copy(file_id, name, size, info, content_type, progress)
            else:
                answer = self._authority.call(
                    lambda account: self._api.copy_file(
                        account.api_url,
                        account.token,
                        file_id,
                        name,
                        metadata_directive=REPLACE,  # COPY would carry over info that is not ours to keep
                        content_type=content_type,
                        file_info=dict(info),
                    )
                )
                row = answers.row(answer)
                self._counter.add(copied=size)
            version = row.version(self._settings.prefix)
            _check_stored(version, key, size, "")
            return version


@contextmanager
def _translated() -> Iterator[None]:
    """The boundary of every call: whatever is not one of ours yet becomes one."""
    try:
        yield
    except Exception as exc:
        error = faults.translate(exc)
        if error is exc:
            raise
        raise error from None  # the original may quote a URL or a token


@contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise faults.local(exc, f"cannot open {path}") from exc
    try:
        yield fd
    finally:
        try:
            os.close(fd)
        except OSError as exc:  # some file systems report a full disk only here
            raise faults.local(exc, f"cannot close {path}") from exc


def _write(fd: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        try:
            written = os.pwrite(fd, view, offset)
        except OSError as exc:
            raise faults.local(exc, "cannot write what was fetched") from exc
        view, offset = view[written:], offset + written


def _check_promise(response: requests.Response, file_id: str, span: tuple[int, int] | None, length: int) -> None:
    """Refuse a body of another version, place or length before anything is written."""
    headers = response.headers
    if headers.get("X-Bz-File-Id", file_id) != file_id:
        raise BucketError(Fault.CORRUPT, "B2 sent another version than the one asked for")
    if int(headers.get("Content-Length", length)) != length:
        text = f"B2 promises {headers['Content-Length']} bytes of version {file_id}, not {length}"
        raise BucketError(Fault.CORRUPT, text)
    if span is not None and response.status_code == 206:
        if not headers.get("Content-Range", "").startswith(f"bytes {span[0]}-{span[1]}/"):
            raise BucketError(Fault.CORRUPT, "B2 sent another range than the one asked for")
    elif span is not None and span[0] != 0:
        raise BucketError(Fault.CORRUPT, "B2 ignored the range")


def _check_stored(version: Version, key: str, size: int, sha1: str) -> None:
    """B2's answer must be about what we sent. If not, a version exists that nobody wants: CORRUPT."""
    if version.key != key or version.size != size or (sha1 and version.sha1 != sha1):
        confirmed = f"{version.size} bytes with SHA-1 {version.sha1 or 'unknown'}"
        raise BucketError(Fault.CORRUPT, f"B2 confirmed {confirmed}, not {size} with {sha1 or 'any'}")
