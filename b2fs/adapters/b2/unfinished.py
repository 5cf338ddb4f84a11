"""Unfinished large files: what earlier attempts at a write left in B2, to go on with or to cancel.

Rules
  Nothing is remembered here. The operation id in fileInfo (`core.inode`) names the write, `large_file_sha1`
  its content: an unfinished large file of the same name with exactly our fileInfo is this write.
  A part that B2 holds counts as sent if its length and SHA-1 are ours; any other is sent again, which
  replaces it (facts: b2.md 3). A part beyond our plan cannot be taken back: such a file is cancelled.
  What else our mount began under this name is abandoned, for there is one worker a key, and is cancelled:
  unfinished files cost storage. What others began is left alone.
  Only a later attempt at a large upload looks. If the file is deleted, renamed or shrinks before that, its
  parts stay until the bucket's lifecycle rule cancels them.

Costs: one class C for each 100 unfinished files whose names start with this one, and one for each 1000 parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from b2fs.adapters.b2 import answers, faults
from b2fs.core.inode import operation_of
from b2fs.errors import BucketError

if TYPE_CHECKING:
    from b2fs.adapters.b2.account import Authority
    from b2fs.adapters.b2.transport import Api

_FILES = 100
"""Most rows of one b2_list_unfinished_large_files."""
_PARTS = 1000
"""Most rows of one b2_list_parts."""


class Begun(NamedTuple):
    """A large file to go on with."""

    file_id: str
    stored: frozenset[int]
    """Numbers of the parts that need not be sent again."""


class Unfinished:
    """The unfinished large files of one bucket; safe in any number of threads."""

    def __init__(self, api: Api, authority: Authority) -> None:
        self._api = api
        self._authority = authority

    def find(
        self, name: str, info: Mapping[str, str], wanted: list[tuple[int, str]], progress: Callable[[], None]
    ) -> Begun | None:
        """The large file that an earlier attempt at this write began, None if there is none to go on with.

        `wanted`: length and SHA-1 of each part. What our mount abandoned under this name is cancelled.
        """
        mount = _mount_of(info)
        if not mount:
            return None  # not a write of a mount: nothing says whose an equal file would be
        ours = [row for row in self._list(name, progress) if _mount_of(row.file_info or {}) == mount]
        begun = None
        # The newest first: its version comes out highest.
        for row in sorted(ours, key=lambda row: row.upload_timestamp, reverse=True):
            file_id = row.file_id or ""
            stored = self._stored(file_id, wanted, progress) if not begun and row.file_info == info else None
            if stored is not None:
                begun = Begun(file_id, stored)
            else:
                self.cancel(file_id)
        return begun

    def cancel(self, file_id: str) -> None:
        """Free the parts that B2 keeps. Best effort: the bucket's lifecycle rule does it otherwise."""
        with suppress(BucketError):
            self._authority.call(lambda account: self._api.cancel_large_file(account.api_url, account.token, file_id))

    def _stored(
        self, file_id: str, wanted: list[tuple[int, str]], progress: Callable[[], None]
    ) -> frozenset[int] | None:
        """Which parts B2 holds as wanted; None if the file cannot become what is wanted, or is gone."""
        stored = set()
        try:
            for part in self._parts(file_id, progress):
                if not 1 <= part.part_number <= len(wanted):
                    return None
                if wanted[part.part_number - 1] == (part.content_length, part.content_sha1):
                    stored.add(part.part_number)
        except faults.Refusal as refusal:
            if not refusal.not_active:
                raise
            return None
        return frozenset(stored)

    def _list(self, name: str, progress: Callable[[], None]) -> Iterator[answers.Row]:
        start: str | None = None
        while True:
            rows, following = self._page(name, start)
            progress()
            yield from (row for row in rows if row.file_name == name)
            if following is None:
                return
            if following == start:
                raise ValueError("the listing does not move on")
            start = following

    def _page(self, name: str, start: str | None) -> tuple[list[answers.Row], str | None]:
        return answers.unfinished(
            self._authority.call(
                lambda account: self._api.list_unfinished_large_files(
                    account.api_url, account.token, account.bucket_id, start, _FILES, name
                )
            )
        )

    def _parts(self, file_id: str, progress: Callable[[], None]) -> Iterator[answers.Part]:
        start: int | None = 1
        while start is not None:
            parts, following = self._page_of_parts(file_id, start)
            progress()
            yield from parts
            if following is not None and following <= start:
                raise ValueError("the listing does not move on")
            start = following

    def _page_of_parts(self, file_id: str, start: int) -> tuple[list[answers.Part], int | None]:
        return answers.parts(
            self._authority.call(
                lambda account: self._api.list_parts(account.api_url, account.token, file_id, start, _PARTS)
            )
        )


def _mount_of(info: Mapping[str, str]) -> str:
    """The mount that an object's fileInfo names as its writer, '' if none."""
    return operation_of(info).rpartition(".")[0]
