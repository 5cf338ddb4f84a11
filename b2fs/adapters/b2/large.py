"""Large files: upload and server-side copy in parts.

Rules
  A part that fails is tried again a few times, at once and with a new URL: one busy pod among hundreds of
  parts is normal (facts: b2.md 3) and must not cost the whole transfer. If B2 says how long to wait, that
  is waited, up to `_PAUSE_MAX_S`. It is the only sleep of this package, and no lane but this one's waits.
  A failure that is definite cancels the large file. After an ambiguous one (the answer to the finish was
  lost, and B2 cannot say) nothing is cancelled: it may be the newest version already.
  The file is read and hashed once before anything is sent, so a damaged file never reaches the bucket.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING

from b2fs.adapters.b2 import answers, faults
from b2fs.adapters.b2.settings import MAX_PARTS, Settings
from b2fs.adapters.b2.source import Source
from b2fs.errors import BucketError, Damaged, Fault

if TYPE_CHECKING:
    from b2fs.adapters.b2.account import Authority
    from b2fs.adapters.b2.transport import Api

_PART_TRIES = 5
_PAUSE_MAX_S = 10.0
_FINISH_TRIES = 3
_HASH_BLOCK = 1024 * 1024

Part = tuple[int, int, int]
"""Number (from 1), offset and size."""


def plan_parts(size: int, part_size: int) -> list[Part]:
    """Cut `size` bytes into parts of `part_size`, the last one smaller. Pure."""
    starts = range(0, size, part_size)
    return [(number, start, min(part_size, size - start)) for number, start in enumerate(starts, 1)]


class Large:
    """Uploads and copies in parts for one client; safe in any number of threads."""

    def __init__(self, settings: Settings, api: Api, authority: Authority) -> None:
        self._settings = settings
        self._api = api
        self._authority = authority

    def upload(
        self,
        name: str,
        fd: int,
        path: str,
        size: int,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        progress: Callable[[], None],
    ) -> answers.Row:
        """The stored version's row. `Damaged` when the file does not have `size` and `sha1`."""
        parts = self._plan(size)
        sums = _hash_parts(fd, path, parts, sha1, progress)
        urls: deque[tuple[str, str]] = deque()  # of this file; append and pop are atomic

        def new_url(file_id: str) -> tuple[str, str]:
            answer = self._authority.call(
                lambda account: self._api.get_upload_part_url(account.api_url, account.token, file_id)
            )
            return answer["uploadUrl"], answer["authorizationToken"]

        def send(file_id: str, part: Part) -> None:
            number, offset, length = part
            url, token = _popped(urls) or new_url(file_id)
            source = Source(fd, path, offset, length, self._settings.allowance_s(length))
            self._api.upload_part(url, token, number, length, sums[number - 1], source)
            urls.append((url, token))  # not after a failure: its pod is full, gone or confused

        info = {**info, answers.LARGE_SHA1: sha1}
        return self._transfer(name, info, content_type, parts, lambda _: sums, send, progress)

    def copy(
        self,
        source_id: str,
        name: str,
        size: int,
        info: Mapping[str, str],
        content_type: str,
        progress: Callable[[], None],
    ) -> answers.Row:
        """The new version's row."""
        parts = self._plan(size)
        sums: dict[int, str] = {}

        def send(file_id: str, part: Part) -> None:
            number, offset, length = part
            answer = self._authority.call(
                lambda account: self._api.copy_part(
                    account.api_url,
                    account.token,
                    source_id,
                    file_id,
                    number,
                    bytes_range=(offset, offset + length - 1),
                )
            )
            sums[number] = answer["contentSha1"]

        def collect(parts: list[Part]) -> list[str]:
            return [sums[number] for number, _, _ in parts]

        return self._transfer(name, info, content_type, parts, collect, send, progress)

    def info(self, file_id: str) -> answers.Row:
        """b2_get_file_info: one version, or a large file that is not finished (action ``start``)."""
        return answers.row(
            self._authority.call(lambda account: self._api.get_file_info_by_id(account.api_url, account.token, file_id))
        )

    def _plan(self, size: int) -> list[Part]:
        minimum = self._authority.call(lambda account: account.minimum_part)
        return plan_parts(size, max(self._settings.part_size, minimum, math.ceil(size / MAX_PARTS)))

    def _transfer(
        self,
        name: str,
        info: Mapping[str, str],
        content_type: str,
        parts: list[Part],
        sums: Callable[[list[Part]], list[str]],
        send: Callable[[str, Part], None],
        progress: Callable[[], None],
    ) -> answers.Row:
        """Start, `send` every part, finish."""
        started = self._authority.call(
            lambda account: self._api.start_large_file(
                account.api_url, account.token, account.bucket_id, name, content_type, dict(info)
            )
        )
        file_id: str = started["fileId"]
        try:
            self._send_all(file_id, parts, send, progress)
        except BaseException:
            self._cancel(file_id)
            raise
        return self._finish(file_id, sums(parts))

    def _send_all(
        self, file_id: str, parts: list[Part], send: Callable[[str, Part], None], progress: Callable[[], None]
    ) -> None:
        """Send the parts, some at a time. The first part that fails for good ends it; raises its error."""

        def one(part: Part) -> None:
            _retried(lambda: send(file_id, part))
            progress()

        with ThreadPoolExecutor(self._settings.part_lanes, "part") as pool:
            futures = [pool.submit(one, part) for part in parts]
            ended, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
        for future in ended:
            future.result()

    def _finish(self, file_id: str, sums: list[str]) -> answers.Row:
        """b2_finish_large_file; when it is unclear whether that worked, ask, and perhaps do it again."""
        for attempt in range(1, _FINISH_TRIES + 1):
            try:
                return answers.row(
                    self._authority.call(
                        lambda account: self._api.finish_large_file(account.api_url, account.token, file_id, sums)
                    )
                )
            except BucketError as exc:
                not_active = isinstance(exc, faults.Refusal) and exc.not_active
                if not exc.may_retry and not not_active:
                    self._cancel(file_id)
                    raise
                row = self.info(file_id)
                if row.action == "upload":
                    return row
                if attempt == _FINISH_TRIES:
                    raise
        raise AssertionError("not reached")

    def _cancel(self, file_id: str) -> None:
        """Free the parts that B2 keeps. Best effort: the bucket's lifecycle rule does it otherwise."""
        with suppress(BucketError):
            self._authority.call(lambda account: self._api.cancel_large_file(account.api_url, account.token, file_id))


def _popped(urls: deque[tuple[str, str]]) -> tuple[str, str] | None:
    try:
        return urls.pop()
    except IndexError:
        return None


def _retried(send: Callable[[], None]) -> None:
    for attempt in range(1, _PART_TRIES + 1):
        try:
            send()
            return
        except BucketError as exc:
            expired = isinstance(exc, faults.Refusal) and exc.token_expired
            if attempt == _PART_TRIES or not (exc.may_retry or expired):
                raise
            if exc.fault is Fault.THROTTLED:
                time.sleep(min(max(exc.retry_after_s, 1.0), _PAUSE_MAX_S))


def _hash_parts(fd: int, path: str, parts: list[Part], sha1: str, progress: Callable[[], None]) -> list[str]:
    """The SHA-1 of each part, after a check of the whole file against `sha1`."""
    whole = hashlib.sha1(usedforsecurity=False)
    sums = []
    for _, offset, length in parts:
        part = hashlib.sha1(usedforsecurity=False)
        end = offset + length
        while offset < end:
            try:
                block = os.pread(fd, min(_HASH_BLOCK, end - offset), offset)
            except OSError as exc:
                raise faults.local(exc, f"cannot read {path}") from exc
            if not block:
                raise Damaged(f"local file: {path} is shorter than when it was sealed")
            part.update(block)
            whole.update(block)
            offset += len(block)
        sums.append(part.hexdigest())
        progress()
    if whole.hexdigest() != sha1:
        raise Damaged(f"local file: {path} changed since it was sealed")
    return sums
