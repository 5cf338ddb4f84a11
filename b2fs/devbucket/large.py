"""Native calls for large files: start, list, copy a part, finish, cancel. (Parts arrive in `transfer`.)

Rules
  A large file's id and upload timestamp are those of its start (facts: b2.md 0.3). Its parts are kept apart
  until finish joins them into one body; a part that arrives again replaces the earlier one.
"""

from __future__ import annotations

import os

import trio

from b2fs.devbucket import rules
from b2fs.devbucket.bodies import part_name
from b2fs.devbucket.calls import Arguments, Context, call
from b2fs.devbucket.files import (
    FileId,
    copy_body,
    copy_range,
    copy_source,
    require_storage,
)
from b2fs.devbucket.listing import after_prefix
from b2fs.devbucket.rules import Refused, bad_request
from b2fs.devbucket.store import Part, Version
from b2fs.devbucket.wire import Json, part_json


class StartLargeFile(Arguments, frozen=True):
    bucket_id: str
    file_name: str
    content_type: str
    file_info: dict[str, str] | None = None


@call("b2_start_large_file", StartLargeFile, "writeFiles")
def start_large_file(context: Context, args: StartLargeFile) -> Json:
    bucket = context.bucket(args.bucket_id)
    rules.check_file_name(args.file_name)
    context.grant.require_name(args.file_name)
    info = rules.check_info(args.file_name, args.file_info or {})
    require_storage(context)
    file_id, stamp_ms = context.store.begin(bucket.id)
    kind = rules.content_type(args.content_type, args.file_name)
    version = Version(bucket.id, args.file_name, stamp_ms, file_id, "start", 0, "none", kind, info)
    return context.version_json(context.store.add(version))


@call("b2_get_upload_part_url", FileId, "writeFiles")
def get_upload_part_url(context: Context, args: FileId) -> Json:
    version = _started(context, args.file_id)
    grant = context.auth.issue(context.grant.key_id, ["uploadPart"], [version.bucket_id], "", file_id=version.file_id)
    return {
        "authorizationToken": grant.token,
        "fileId": version.file_id,
        "uploadUrl": f"{context.base_url}/b2api/v{context.api}/b2_upload_part/{version.file_id}",
    }


class CopyPart(Arguments, frozen=True):
    source_file_id: str
    large_file_id: str
    part_number: int
    range: str | None = None


@call("b2_copy_part", CopyPart, "writeFiles")
async def copy_part(context: Context, args: CopyPart) -> Json:
    context.grant.require("readFiles")
    check_part_number(args.part_number)
    target = _started(context, args.large_file_id)
    source = copy_source(context, args.source_file_id)
    offset, length = copy_range(source, args.range)
    if length > rules.MAX_UPLOAD_SIZE:
        raise Refused(400, "source_too_large", f"Copy source too big: {length}")
    require_storage(context)
    name = part_name(target.file_id, args.part_number)
    sha1 = await copy_body(context, source.file_id, name, offset, length)
    part = context.store.add_part(target.file_id, args.part_number, name, length, sha1)
    return part_json(part)


class ListParts(Arguments, frozen=True):
    file_id: str
    start_part_number: int | None = None
    max_part_count: int | None = None


@call("b2_list_parts", ListParts, "writeFiles")
def list_parts(context: Context, args: ListParts) -> Json:
    version = _started(context, args.file_id)
    limit = 100 if args.max_part_count is None else args.max_part_count
    if not 1 <= limit <= 1000:
        raise bad_request(f"maxPartCount out of range: {limit}")
    parts = context.store.parts(version.file_id, args.start_part_number or 1, limit + 1)
    return {
        "parts": [part_json(part) for part in parts[:limit]],
        "nextPartNumber": parts[limit].number if len(parts) > limit else None,
    }


class ListUnfinished(Arguments, frozen=True):
    bucket_id: str
    start_file_id: str | None = None
    max_file_count: int | None = None
    name_prefix: str | None = None


@call("b2_list_unfinished_large_files", ListUnfinished, "listFiles")
def list_unfinished_large_files(context: Context, args: ListUnfinished) -> Json:
    bucket = context.bucket(args.bucket_id)
    prefix = args.name_prefix or ""
    context.grant.require_name(prefix)
    limit = 100 if args.max_file_count is None else args.max_file_count
    if not 1 <= limit <= 100:
        raise bad_request(f"maxFileCount out of range: {limit}")
    found = context.store.unfinished(bucket, prefix.encode(), after_prefix(prefix.encode()))
    found = [row for row in found if row.file_id >= (args.start_file_id or "")]
    return {
        "files": [context.version_json(row) for row in found[:limit]],
        "nextFileId": found[limit].file_id if len(found) > limit else None,
    }


@call("b2_cancel_large_file", FileId, "writeFiles")
def cancel_large_file(context: Context, args: FileId) -> Json:
    version = _started(context, args.file_id)
    context.store.delete(version.file_id, version.name)
    return {
        "accountId": context.account_id,
        "bucketId": version.bucket_id,
        "fileId": version.file_id,
        "fileName": version.name,
    }


class FinishLargeFile(Arguments, frozen=True):
    file_id: str
    part_sha1_array: list[str]


@call("b2_finish_large_file", FinishLargeFile, "writeFiles")
async def finish_large_file(context: Context, args: FinishLargeFile) -> Json:
    version = _started(context, args.file_id)
    parts = context.store.parts(version.file_id)
    _check_parts(parts, args.part_sha1_array, context.settings.min_part_size)
    require_storage(context)
    if version.file_id in _finishing:
        raise bad_request(f"No active upload for: {version.file_id}")
    _finishing.add(version.file_id)
    try:
        return context.version_json(await _finish(context, version, parts))
    finally:
        _finishing.discard(version.file_id)


_finishing: set[str] = set()
"""Large files that are being joined now; file ids are unique across servers."""


async def _finish(context: Context, version: Version, parts: list[Part]) -> Version:
    await trio.to_thread.run_sync(_join, context, version.file_id, parts)
    try:
        version = context.store.started(version.file_id)  # it may have been cancelled meanwhile
        if context.store.parts(version.file_id) != parts:
            raise bad_request("parts changed while the file was being finished")
    except Refused:
        context.store.bodies.discard(version.file_id)
        raise
    return context.store.finish(version, parts)


def _check_parts(parts: list[Part], sha1s: list[str], min_part_size: int) -> None:
    """The checks of b2_finish_large_file: numbers 1..n without a gap, the same SHA-1s, sizes."""
    if not sha1s:
        raise bad_request("partSha1Array must not be empty")
    for number, sha1 in enumerate(sha1s, 1):
        if number > len(parts) or parts[number - 1].number != number:
            raise Refused(400, "missing_part", f"Part number {number} has not been uploaded")
        if parts[number - 1].sha1.removeprefix("unverified:") != sha1:
            raise Refused(400, "part_sha1_mismatch", f"Part number {number} has another SHA1")
    if len(parts) > len(sha1s):
        raise bad_request(f"{len(parts)} parts were uploaded, but partSha1Array has {len(sha1s)}")
    for part in parts[:-1]:
        if part.size < min_part_size:
            raise bad_request(f"Part number {part.number} is smaller than {min_part_size} bytes")


def _join(context: Context, file_id: str, parts: list[Part]) -> None:
    """Copy the parts into one body in ``incoming/``. Blocks."""
    incoming = context.store.bodies.new(file_id)
    try:
        for part in parts:
            fd = context.store.bodies.open(part.body)
            try:
                incoming.append(fd, part.size)
            finally:
                os.close(fd)
        incoming.close()
    except BaseException:
        incoming.drop()
        raise


def check_part_number(number: int) -> None:
    if not 1 <= number <= rules.MAX_PARTS:
        raise bad_request(f"Part number must be between 1 and {rules.MAX_PARTS}: {number}")


def _started(context: Context, file_id: str) -> Version:
    """An unfinished large file that the token may use."""
    rules.check_file_id(file_id)
    return context.readable(context.store.started(file_id))
