"""Bodies in and out: b2_upload_file, b2_upload_part, and the downloads.

Rules
  An upload's timestamp is taken when its head arrived; the version appears when the whole body did and its
  SHA-1 is right, never before. A body that breaks off leaves nothing behind.
  One upload at a time for each upload token (facts: b2.md 3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs

import trio

from b2fs.devbucket import rules, wire
from b2fs.devbucket.auth import Grant
from b2fs.devbucket.bodies import HELD_SIZE, Incoming, part_name
from b2fs.devbucket.calls import Context
from b2fs.devbucket.files import find, require_storage
from b2fs.devbucket.http import Reply, Request
from b2fs.devbucket.large import check_part_number
from b2fs.devbucket.rules import Refused, bad_request
from b2fs.devbucket.store import Version

_DIGITS = 40
"""SHA-1 hex digits behind the body, with ``hex_digits_at_end``."""
_SMALL_BODY = 128 * 1024
"""A body up to this size is sent in one piece with its headers."""


async def upload_file(context: Context, request: Request, bucket_id: str) -> wire.Json:
    grant = context.grant
    grant.require("uploadFile")
    grant.require_bucket(bucket_id)
    with _one_at_a_time(grant):
        store = context.store
        bucket = store.bucket(bucket_id)
        name = rules.decode(_header(request, "x-bz-file-name"))
        rules.check_file_name(name)
        grant.require_name(name)
        kind = rules.content_type(_header(request, "content-type"), name)
        info = rules.check_info(name, _info(request))
        expected, length = _expected(request)
        require_storage(context)
        file_id, stamp_ms = store.begin(bucket.id)
        incoming, sha1 = await _receive(context, request, file_id, expected, length)
        version = Version(bucket.id, name, stamp_ms, file_id, "upload", incoming.size, sha1, kind, info)
        return context.version_json(store.add(version))


async def upload_part(context: Context, request: Request, file_id: str) -> wire.Json:
    grant = context.grant
    grant.require("uploadPart")
    if grant.file_id != file_id:
        raise Refused(401, "bad_auth_token", "the token belongs to another large file")
    with _one_at_a_time(grant):
        version = context.store.started(file_id)
        try:
            number = int(_header(request, "x-bz-part-number"))
        except ValueError:
            raise bad_request("X-Bz-Part-Number must be a number") from None
        check_part_number(number)
        expected, length = _expected(request)
        if length < 1:
            raise bad_request("A part must have at least one byte")
        require_storage(context)
        name = part_name(version.file_id, number)
        incoming, sha1 = await _receive(context, request, name, expected, length)
        return wire.part_json(context.store.add_part(file_id, number, name, incoming.size, sha1))


def download(context: Context, request: Request, version: Version) -> Reply:
    """The reply to GET or HEAD of a version that the token may read; the reply owns its descriptor."""
    headers = _with_overrides(wire.download_headers(version), request)
    status, offset, length = 200, 0, version.size
    if "range" in request.headers:
        found = rules.parse_range(request.headers["range"], version.size)
        if found is not None:
            status, (offset, length) = 206, found
            headers.append(("Content-Range", f"bytes {offset}-{offset + length - 1}/{version.size}"))
    if request.method == "HEAD":
        return Reply(status, headers, length=length)
    fd = context.store.bodies.open(version.file_id)
    if length > _SMALL_BODY:
        return Reply(status, headers, fd=fd, offset=offset, length=length)
    try:
        return Reply(status, headers, os.pread(fd, length, offset))
    finally:
        os.close(fd)


def version_by_id(context: Context, file_id: str) -> Version:
    version = find(context, file_id)
    if version.action != "upload":
        raise Refused(404, "not_found", f"File with id {file_id} not found.")
    return version


def version_by_name(context: Context, bucket_name: str, name: str) -> Version:
    bucket = context.store.bucket_by_name(bucket_name)
    version = context.store.current(bucket, name) if bucket else None
    if version is None or version.action != "upload":
        raise Refused(404, "not_found", f"File with such name does not exist: {bucket_name}/{name}")
    return version


# ---------------------------------------------------------------- inside


@contextmanager
def _one_at_a_time(grant: Grant) -> Iterator[None]:
    if grant.busy:
        raise Refused(400, "auth_token_limit", f"more than one upload using auth token {grant.token}")
    grant.busy = True
    try:
        yield
    finally:
        grant.busy = False


def _header(request: Request, name: str) -> str:
    try:
        return request.headers[name]
    except KeyError:
        raise bad_request(f"Missing header: {name}") from None


def _info(request: Request) -> dict[str, str]:
    prefix = "x-bz-info-"
    return {
        name[len(prefix) :]: rules.decode(value) for name, value in request.headers.items() if name.startswith(prefix)
    }


def _expected(request: Request) -> tuple[str, int]:
    """(the SHA-1 header, length of the content): Content-Length counts the digits at the end, too."""
    length = request.length
    if length is None:
        raise bad_request("Missing header: Content-Length")
    expected = _header(request, "x-bz-content-sha1")
    if expected == "hex_digits_at_end":
        length -= _DIGITS
        if length < 0:
            raise bad_request("Content-Length is too small for hex_digits_at_end")
    elif expected != "do_not_verify":
        expected = expected.lower()
        rules.check_sha1(expected)
    if length > rules.MAX_UPLOAD_SIZE:
        raise bad_request(f"Content-Length is more than {rules.MAX_UPLOAD_SIZE}: use a large file")
    return expected, length


async def _receive(context: Context, request: Request, name: str, expected: str, length: int) -> tuple[Incoming, str]:
    """Take in `length` bytes as the body `name` and check them; (the closed body, SHA-1 to store)."""
    incoming = context.store.bodies.new(name)
    tail = bytearray()
    seen = 0
    try:
        async for chunk in request.chunks():
            if seen + len(chunk) > length:
                cut = max(0, length - seen)
                tail += chunk[cut:]
                seen += len(chunk)
                chunk = chunk[:cut]
            else:
                seen += len(chunk)
            incoming.hold(chunk)
            if incoming.held >= HELD_SIZE:
                await trio.to_thread.run_sync(incoming.flush)
        sha1 = incoming.close()
        if expected == "hex_digits_at_end":
            expected = tail.decode("latin-1").lower()
            rules.check_sha1(expected)
        if expected == "do_not_verify":
            return incoming, f"unverified:{sha1}"
        if expected != sha1:
            raise bad_request(f"Sha1 did not match data received: expected {expected}, got {sha1}")
        return incoming, sha1
    except BaseException:
        incoming.drop()
        raise


def _with_overrides(headers: list[tuple[str, str]], request: Request) -> list[tuple[str, str]]:
    """Apply ``?b2ContentType=`` and its like (apidocs/b2-download-file-by-name)."""
    if "b2Content" not in request.query:
        return headers
    wanted = {
        header: rules.check_header_value(values[0])
        for name, values in parse_qs(request.query).items()
        if (header := _OVERRIDES.get(name))
    }
    return [pair for pair in headers if pair[0] not in wanted] + list(wanted.items())


_OVERRIDES = {
    "b2ContentType": "Content-Type",
    "b2ContentDisposition": "Content-Disposition",
    "b2ContentLanguage": "Content-Language",
    "b2ContentEncoding": "Content-Encoding",
}
