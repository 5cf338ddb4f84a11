"""Large files: upload and server-side copy in parts.

Rules
  A part that fails is tried again a few times, at once and with a new URL: one busy pod among hundreds of
  parts is normal (facts: b2.md 3) and must not cost the whole transfer. If B2 says how long to wait, that
  is waited, up to `_PAUSE_MAX_S`. It is the only sleep of this package, and no lane but this one's waits.
  The file is read and hashed once before anything is sent, so a damaged file never reaches the bucket.
  How a file is cut follows from its size, the settings, what B2 recommends and what is known of its base, never
  from chance: a later attempt cuts it alike and sends only what is missing (`unfinished`).
  Where B2 has a base (an earlier version, equal in places), what is equal is copied on the server. Each copied part must
  have the SHA-1 of the local bytes; if one has not, or cannot be copied (the base is gone, a cap is reached), the
  large file is cancelled and the caller uploads all of it (`BaseLost`).
  So a failure that may pass leaves an upload's large file as it is; one that is definite cancels it. A copy
  is not resumed: every failure cancels it. After an ambiguous finish (its answer was lost, and B2 cannot
  say) nothing is cancelled: it may be the newest version already.
  The version is as old as its start (facts: b2.md 0.3): what was written to the name since then, by whomever,
  lies above it. Who resumes compares `Version.uploaded_ms`.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from b2fs.adapters.b2 import answers, faults
from b2fs.adapters.b2.settings import MAX_PARTS, MAX_SINGLE, Settings
from b2fs.adapters.b2.source import Source
from b2fs.adapters.b2.unfinished import Begun, Unfinished
from b2fs.core import parts
from b2fs.core.bucket import Base
from b2fs.core.parts import WORTH, Limits, Part
from b2fs.errors import BucketError, Damaged, Fault

if TYPE_CHECKING:
    from b2fs.adapters.b2.account import Authority
    from b2fs.adapters.b2.transport import Account, Api, Counter

_PART_TRIES = 5
_PAUSE_MAX_S = 10.0
_FINISH_TRIES = 3
_HASH_BLOCK = 1024 * 1024


class BaseLost(BucketError):
    """The base is of no use: the bucket is as if nothing had been tried."""

    def __init__(self, why: str) -> None:
        super().__init__(Fault.MISSING, f"the earlier version cannot be copied from: {why}")


class Large:
    """Uploads and copies in parts for one client; safe in any number of threads."""

    def __init__(self, settings: Settings, api: Api, authority: Authority, counter: Counter) -> None:
        self._settings = settings
        self._api = api
        self._authority = authority
        self._counter = counter
        self._unfinished = Unfinished(api, authority)

    def is_large(self, size: int) -> bool:
        """Whether a file of `size` bytes is uploaded in parts: from `large_size` on, or from twice what B2
        recommends for a part, if that is less. B2 wants at least two parts.
        """
        least = min(self._settings.large_size, 2 * self._account().recommended_part)
        return size > MAX_SINGLE or (size >= least and len(self._plan(size)) > 1)

    def cut(self, size: int, base: Base | None) -> list[Part]:
        """The parts in which a file is uploaded, with copies where that is cheaper; none for a file that goes as one."""
        found = parts.cut_on(size, base.same, self._limits(size)) if base is not None else []
        return found or (self._plan(size) if self.is_large(size) else [])

    def upload(
        self,
        name: str,
        fd: int,
        path: str,
        cut: list[Part],
        base: Base | None,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        resume: bool,
        progress: Callable[[], None],
    ) -> answers.Row:
        """The stored version's row. `Damaged` when the file is not as long as `cut`, or does not have `sha1`.

        `resume`: an attempt may have been made before; what it sent is used, what we abandoned is cancelled.
        `BaseLost`: a part cannot be copied from `base`.
        """
        sums = _hash_parts(fd, path, cut, sha1, progress)
        urls: deque[tuple[str, str]] = deque()  # of this file; append and pop are atomic

        def new_url(file_id: str) -> tuple[str, str]:
            answer = self._authority.call(
                lambda account: self._api.get_upload_part_url(account.api_url, account.token, file_id)
            )
            return answer["uploadUrl"], answer["authorizationToken"]

        def send(file_id: str, part: Part) -> None:
            if part.copied and base is not None:
                self._copy_same(base.file_id, file_id, part, sums[part.number - 1])
                return
            url, token = _popped(urls) or new_url(file_id)
            source = Source(fd, path, part.offset, part.size, self._settings.allowance_s(part.size))
            try:
                self._api.upload_part(url, token, part.number, part.size, sums[part.number - 1], source)
            except faults.Refusal as refusal:
                if refusal.fault is Fault.CORRUPT and source.digest() != sums[part.number - 1]:
                    raise Damaged(f"local file: {path} changed since it was sealed") from None
                raise
            urls.append((url, token))  # not after a failure: its pod is full, gone or confused

        info = {**info, answers.LARGE_SHA1: sha1}
        begun = None
        if resume:
            wanted = [(part.size, part_sha1) for part, part_sha1 in zip(cut, sums, strict=True)]
            begun = self._unfinished.find(name, info, wanted, progress)
        if begun is None:
            begun = self._start(name, info, content_type)
        return self._transfer(begun, cut, lambda _: sums, send, progress, keep=True)

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
        sums: dict[int, str] = {}

        def send(file_id: str, part: Part) -> None:
            sums[part.number] = self._copy_part(source_id, file_id, part)

        def collect(cut: list[Part]) -> list[str]:
            return [sums[part.number] for part in cut]

        begun = self._start(name, info, content_type)
        return self._transfer(begun, self._plan(size), collect, send, progress, keep=False)

    def info(self, file_id: str) -> answers.Row:
        """b2_get_file_info: one version, or a large file that is not finished (action ``start``)."""
        return answers.row(
            self._authority.call(lambda account: self._api.get_file_info_by_id(account.api_url, account.token, file_id))
        )

    def _copy_part(self, source_id: str, file_id: str, part: Part) -> str:
        """b2_copy_part; the SHA-1 of what was copied."""
        answer = self._authority.call(
            lambda account: self._api.copy_part(
                account.api_url,
                account.token,
                source_id,
                file_id,
                part.number,
                bytes_range=(part.offset, part.offset + part.size - 1),
            )
        )
        self._counter.add(copied=part.size)
        sha1: str = answer["contentSha1"]
        return sha1

    def _copy_same(self, source_id: str, file_id: str, part: Part, sha1: str) -> None:
        try:
            copied = self._copy_part(source_id, file_id, part)
        except faults.Refusal as refusal:
            passing = refusal.fault in (Fault.TRANSIENT, Fault.THROTTLED)
            if passing or refusal.token_expired or refusal.not_active:
                raise
            raise BaseLost(str(refusal)) from None
        if copied != sha1:
            raise BaseLost("it has other bytes than what lay here of it")

    def _account(self) -> Account:
        return self._authority.call(lambda account: account)

    def _plan(self, size: int) -> list[Part]:
        return parts.cut(size, self._limits(size).wanted)

    def _limits(self, size: int) -> Limits:
        account, settings = self._account(), self._settings
        wanted = min(settings.part_size, account.recommended_part)
        return Limits(
            least=account.minimum_part,
            wanted=max(wanted, account.minimum_part, math.ceil(size / MAX_PARTS)),
            largest_copy=max(settings.copy_part_size, 2 * account.minimum_part),
            worth=max(WORTH, account.minimum_part),
            most=MAX_PARTS,
        )

    def _start(self, name: str, info: Mapping[str, str], content_type: str) -> Begun:
        started = self._authority.call(
            lambda account: self._api.start_large_file(
                account.api_url, account.token, account.bucket_id, name, content_type, dict(info)
            )
        )
        return Begun(started["fileId"], frozenset())

    def _transfer(
        self,
        begun: Begun,
        cut: list[Part],
        sums: Callable[[list[Part]], list[str]],
        send: Callable[[str, Part], None],
        progress: Callable[[], None],
        *,
        keep: bool,
    ) -> answers.Row:
        """`send` every part that is not stored, finish. `keep`: a later attempt can go on with what was sent."""
        file_id = begun.file_id
        missing = [part for part in cut if part.number not in begun.stored]
        try:
            self._send_all(file_id, missing, send, progress)
        except Exception as exc:
            error = faults.translate(exc)
            if _not_active(error):
                return self._ended(file_id)
            if not (keep and isinstance(error, BucketError) and error.may_pass):
                self._unfinished.cancel(file_id)
            raise
        return self._finish(file_id, sums(cut), keep)

    def _send_all(
        self, file_id: str, cut: list[Part], send: Callable[[str, Part], None], progress: Callable[[], None]
    ) -> None:
        """Send the parts, some at a time. The first part that fails for good ends it; raises its error."""

        def one(part: Part) -> None:
            _retried(lambda: send(file_id, part))
            progress()

        with ThreadPoolExecutor(self._settings.part_lanes, "part") as pool:
            futures = [pool.submit(one, part) for part in cut]
            ended, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
        for future in ended:
            future.result()

    def _finish(self, file_id: str, sums: list[str], keep: bool) -> answers.Row:
        """b2_finish_large_file; when it is unclear whether that worked, ask, and perhaps do it again."""
        for attempt in range(1, _FINISH_TRIES + 1):
            try:
                return answers.row(
                    self._authority.call(
                        lambda account: self._api.finish_large_file(account.api_url, account.token, file_id, sums)
                    )
                )
            except BucketError as exc:
                if _not_active(exc):
                    return self._ended(file_id)
                if not exc.may_retry:
                    if not (keep and exc.may_pass):
                        self._unfinished.cancel(file_id)
                    raise
                row = self.info(file_id)
                if row.action == "upload":
                    return row
                if attempt == _FINISH_TRIES:
                    raise
        raise AssertionError("not reached")

    def _ended(self, file_id: str) -> answers.Row:
        """What became of a large file that takes no parts any more: the row, if it was finished, perhaps by an
        attempt of ours that nobody waits for. If it was cancelled, TRANSIENT: the next attempt begins anew.
        """
        try:
            row = self.info(file_id)
        except BucketError as exc:
            if exc.may_pass:
                raise
        else:
            if row.action == "upload":
                return row
        raise BucketError(Fault.TRANSIENT, "the large file was cancelled, or is being finished, by somebody else")


def _not_active(error: Exception) -> bool:
    return isinstance(error, faults.Refusal) and error.not_active


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


def _hash_parts(fd: int, path: str, cut: list[Part], sha1: str, progress: Callable[[], None]) -> list[str]:
    """The SHA-1 of each part, after a check of the whole file against `sha1`."""
    whole = hashlib.sha1(usedforsecurity=False)
    sums = []
    for _, offset, length, _ in cut:
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
