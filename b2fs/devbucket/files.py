"""Native calls on versions: list, hide, delete, info, copy, download authorisation."""

from __future__ import annotations

import os
from typing import Literal

import trio

from b2fs.devbucket import rules
from b2fs.devbucket.calls import Arguments, Context, call
from b2fs.devbucket.listing import list_rows
from b2fs.devbucket.rules import Refused, bad_request
from b2fs.devbucket.store import Version
from b2fs.devbucket.wire import Json


class ListNames(Arguments, frozen=True):
    bucket_id: str
    start_file_name: str | None = None
    start_file_id: str | None = None
    max_file_count: int | None = None
    prefix: str | None = None
    delimiter: str | None = None


@call("b2_list_file_names", ListNames, "listFiles")
def list_file_names(context: Context, args: ListNames) -> Json:
    rows, following = _list(context, args, (args.start_file_name or "", 0, ""), versions=False)
    return {"files": rows, "nextFileName": following.name if following else None}


@call("b2_list_file_versions", ListNames, "listFiles")
def list_file_versions(context: Context, args: ListNames) -> Json:
    start = (args.start_file_name or "", 0, "")
    if args.start_file_id:
        if not args.start_file_name:
            raise bad_request("startFileName must be given with startFileId")
        start = (
            args.start_file_name,
            rules.check_file_id(args.start_file_id)[1],
            args.start_file_id,
        )
    rows, following = _list(context, args, start, versions=True)
    return {
        "files": rows,
        "nextFileName": following.name if following else None,
        "nextFileId": (following.file_id or None) if following else None,
    }


def _list(
    context: Context, args: ListNames, start: tuple[str, int, str], versions: bool
) -> tuple[list[Json], Version | None]:
    bucket = context.bucket(args.bucket_id)
    prefix = args.prefix or ""
    context.grant.require_name(prefix)
    limit = 100 if args.max_file_count is None else args.max_file_count
    if not 1 <= limit <= rules.MAX_LIST_COUNT:
        raise bad_request(f"maxFileCount out of range: {limit}")
    settings = context.settings
    as_of_ms = settings.frozen_list_ms
    if as_of_ms is None and settings.stale_s > 0:
        as_of_ms = context.store.clock.now_ms() - int(settings.stale_s * 1000)
    rows, following = list_rows(
        context.store,
        bucket,
        versions=versions,
        start=start,
        prefix=prefix,
        delimiter=args.delimiter or "",
        limit=limit,
        as_of_ms=as_of_ms,
    )
    context.counters.rows(len(rows))
    return [context.version_json(row) for row in rows], following


class NameInBucket(Arguments, frozen=True):
    bucket_id: str
    file_name: str


@call("b2_hide_file", NameInBucket, "writeFiles")
def hide_file(context: Context, args: NameInBucket) -> Json:
    bucket = context.bucket(args.bucket_id)
    rules.check_file_name(args.file_name)
    context.grant.require_name(args.file_name)
    return context.version_json(context.store.hide(bucket, args.file_name))


class OneVersion(Arguments, frozen=True):
    file_id: str
    file_name: str


@call("b2_delete_file_version", OneVersion, "deleteFiles")
def delete_file_version(context: Context, args: OneVersion) -> Json:
    context.grant.require_bucket(rules.check_file_id(args.file_id)[0])
    context.grant.require_name(args.file_name)
    context.store.delete(args.file_id, args.file_name)
    return {"fileId": args.file_id, "fileName": args.file_name}


class FileId(Arguments, frozen=True):
    file_id: str


@call("b2_get_file_info", FileId, "readFiles")
def get_file_info(context: Context, args: FileId) -> Json:
    return context.version_json(context.readable(find(context, args.file_id)))


def find(context: Context, file_id: str) -> Version:
    """Any version by id, whatever its action."""
    rules.check_file_id(file_id)
    version = context.store.version(file_id)
    if version is None:
        raise Refused(404, "not_found", f"File not present: {file_id}")
    return version


class CopyFile(Arguments, frozen=True):
    source_file_id: str
    file_name: str
    destination_bucket_id: str | None = None
    range: str | None = None
    metadata_directive: Literal["COPY", "REPLACE"] | None = None
    content_type: str | None = None
    file_info: dict[str, str] | None = None


@call("b2_copy_file", CopyFile, "writeFiles")
async def copy_file(context: Context, args: CopyFile) -> Json:
    context.grant.require("readFiles")
    source = copy_source(context, args.source_file_id)
    bucket = context.bucket(args.destination_bucket_id or source.bucket_id)
    rules.check_file_name(args.file_name)
    context.grant.require_name(args.file_name)
    if args.metadata_directive == "REPLACE":
        if not args.content_type:
            raise bad_request("contentType is required when metadataDirective is REPLACE")
        content_type, info = args.content_type, args.file_info or {}
    else:
        if args.content_type is not None or args.file_info is not None:
            raise bad_request("contentType and fileInfo are not allowed when metadataDirective is COPY")
        content_type, info = source.content_type, source.info
    info = rules.check_info(args.file_name, info)
    offset, length = copy_range(source, args.range)
    if length > rules.MAX_UPLOAD_SIZE:
        raise Refused(400, "source_too_large", f"Copy source too big: {length}")
    require_storage(context)
    store = context.store
    file_id, stamp_ms = store.begin(bucket.id)
    if args.range is None:
        store.bodies.link(source.file_id, file_id)  # no bytes move: bodies never change
        sha1 = source.sha1
    else:
        sha1 = await copy_body(context, source.file_id, file_id, offset, length)
    content_type = rules.content_type(content_type, args.file_name)
    version = Version(bucket.id, args.file_name, stamp_ms, file_id, "upload", length, sha1, content_type, info)
    return context.version_json(store.add(version))


def copy_source(context: Context, file_id: str) -> Version:
    source = context.readable(find(context, file_id))
    if source.action != "upload":
        raise Refused(404, "not_found", f"File not present: {file_id}")
    return source


def copy_range(source: Version, text: str | None) -> tuple[int, int]:
    """(offset, length) of the bytes to copy; unlike a download's, the range must lie inside the source."""
    if text is None:
        return 0, source.size
    found = rules.parse_range(text, source.size)
    if found is None:
        raise bad_request(f"Invalid range: {text[:80]!r}")
    offset, length = found
    if not text.strip().endswith(("-", f"-{offset + length - 1}")):
        raise Refused(416, "range_not_satisfiable", "The range is outside the file")
    return found


async def copy_body(context: Context, source: str, name: str, offset: int, length: int) -> str:
    """Make `name` in ``incoming/`` a copy of a range of a settled body; its SHA-1."""
    bodies = context.store.bodies
    incoming = bodies.new(name)
    fd = bodies.open(source)

    def work() -> str:
        incoming.copy_from(fd, offset, length)
        return incoming.close()

    try:
        return await trio.to_thread.run_sync(work)
    except BaseException:
        incoming.drop()
        raise
    finally:
        os.close(fd)


def require_storage(context: Context) -> None:
    if "storage" in context.settings.caps:
        raise Refused(403, "storage_cap_exceeded", "Cannot upload or copy files, storage cap exceeded")


class DownloadAuthorization(Arguments, frozen=True):
    bucket_id: str
    file_name_prefix: str
    valid_duration_in_seconds: int


@call("b2_get_download_authorization", DownloadAuthorization, "shareFiles")
def get_download_authorization(context: Context, args: DownloadAuthorization) -> Json:
    bucket = context.bucket(args.bucket_id)
    context.grant.require_name(args.file_name_prefix)
    if not 1 <= args.valid_duration_in_seconds <= 604_800:
        raise bad_request("validDurationInSeconds must be between 1 and 604800")
    grant = context.auth.issue(
        context.grant.key_id,
        ["readFiles"],
        [bucket.id],
        args.file_name_prefix,
        args.valid_duration_in_seconds,
    )
    return {
        "authorizationToken": grant.token,
        "bucketId": bucket.id,
        "fileNamePrefix": args.file_name_prefix,
    }


class LegalHold(Arguments, frozen=True):
    file_id: str
    file_name: str


@call("b2_update_file_legal_hold", LegalHold, "writeFileLegalHolds")
@call("b2_update_file_retention", LegalHold, "writeFileRetentions")
def update_file_lock(context: Context, args: LegalHold) -> Json:
    raise bad_request("The bucket is not file lock enabled")
