"""The admin interface: ``/admin/`` on the same port, JSON, for loopback clients only.

Rules
  Admin requests need no token, are not counted, and work while the server is ``down``. A POST must have the
  type ``application/json``, so that no web page can send one behind its user's back.
  An error is 400 with ``{"error": text}``.

Requests
  GET  /admin/state                     settings in force, buckets, address of nothing secret
  POST /admin/settings {..}             change what is named, see `SettingsChange`
  POST /admin/reset                     settings, faults and counters as at the start; objects stay
  GET  /admin/faults                    faults in force, with how often each fired
  POST /admin/faults {kind, call, key, count, probability, seed, args}    see `faults`; answers with its id
  DELETE /admin/faults[/ID]             remove one or all
  GET  /admin/counters                  see `counters`
  POST /admin/counters/reset
  GET  /admin/log?last=N                the last requests, newest last
  POST /admin/disconnect                reset every other connection, also in the middle of a request
  POST /admin/expire_tokens             every token is expired now
  POST /admin/create_bucket {bucket}    a private bucket; answers with its id
  POST /admin/put {bucket, name, data | text, info, contentType, sha1, uploadedMs}    store a foreign object
  POST /admin/hide {bucket, name}
  GET  /admin/objects?bucket=B          all versions in B2's order, as in b2_list_file_versions
  GET  /admin/content?fileId=ID         the bytes of a version
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import msgspec

from b2fs.devbucket import rules, wire
from b2fs.devbucket.auth import TOKEN_LIFETIME_S
from b2fs.devbucket.faults import FaultSpec
from b2fs.devbucket.http import Connection, Reply, Request, is_loopback
from b2fs.devbucket.listing import list_rows
from b2fs.devbucket.rules import Refused
from b2fs.devbucket.store import BucketRow, Version

if TYPE_CHECKING:
    from b2fs.devbucket.server import Server

_MAX_BODY = 64 << 20
_CAPS = frozenset({"storage", "transaction", "download"})


class ClockSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See `clock.Clock`; all three are set together."""

    offset_s: float = 0.0
    frozen_ms: int | None = None
    ties: bool = False


class SettingsChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Only the fields that are given change; null sets a limit back to none."""

    latency_s: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    """Glob of calls to seconds, replacing the whole table."""
    down_bps: float | msgspec.UnsetType | None = msgspec.UNSET
    up_bps: float | msgspec.UnsetType | None = msgspec.UNSET
    token_lifetime_s: float | msgspec.UnsetType | None = msgspec.UNSET
    clock: ClockSetting | msgspec.UnsetType | None = msgspec.UNSET
    stale_s: float | msgspec.UnsetType | None = msgspec.UNSET
    """Listings answer as of that many seconds ago."""
    freeze_listings: bool | msgspec.UnsetType = msgspec.UNSET
    """Listings answer as of now, until it is false again."""
    caps: list[str] | msgspec.UnsetType = msgspec.UNSET
    """Caps that are exceeded: 'storage', 'transaction', 'download'."""
    down: bool | msgspec.UnsetType = msgspec.UNSET
    """Reset every connection that does not speak to the admin interface."""
    min_part_size: int | msgspec.UnsetType = msgspec.UNSET
    recommended_part_size: int | msgspec.UnsetType = msgspec.UNSET


class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    bucket: str
    name: str
    data: bytes = b""
    """Base64 in JSON."""
    text: str = ""
    info: dict[str, str] = {}
    content_type: str = "b2/x-auto"
    sha1: str = ""
    """What to store instead of the true SHA-1, for example 'none'."""
    uploaded_ms: int | None = None


class NewBucket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bucket: str


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bucket: str
    name: str


class Admin:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def handle(self, request: Request) -> Reply:
        try:
            if not is_loopback(request.peer) or not is_loopback(_host(request)):
                raise Refused(403, "", "the admin interface is for loopback clients only")
            body = b""
            if request.method == "POST":
                if not request.headers.get("content-type", "").startswith("application/json"):
                    raise Refused(415, "", "POST needs Content-Type: application/json")
                body = await request.read(_MAX_BODY) or b""
            return self._dispatch(request, body)
        except Refused as refused:
            return _json({"error": refused.message, "code": refused.code}, refused.status)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _json({"error": str(error)}, 400)

    def _dispatch(self, request: Request, body: bytes) -> Reply:
        server = self._server
        counters, faults = server.api.counters, server.api.faults
        path = request.path.removeprefix("/admin/")
        query = {name: values[0] for name, values in parse_qs(request.query).items()}
        match request.method, path:
            case "GET", "state":
                return _json(self._state())
            case "POST", "settings":
                self._change(msgspec.json.decode(body, type=SettingsChange), request.connection)
                return _json(self._state())
            case "POST", "reset":
                server.restore_settings()
                counters.reset()
                return _json(self._state())
            case "GET", "faults":
                return _json({"faults": [fault.as_dict() for fault in faults.all()]})
            case "POST", "faults":
                return _json(faults.add(msgspec.json.decode(body, type=FaultSpec)).as_dict())
            case "DELETE", "faults":
                faults.remove()
                return _json({})
            case "DELETE", _ if path.startswith("faults/"):
                faults.remove(_number(path.removeprefix("faults/")))
                return _json({})
            case "GET", "counters":
                return _json(counters.as_dict())
            case "POST", "counters/reset":
                counters.reset()
                return _json({})
            case "GET", "log":
                return _json({"log": counters.log(_number(query.get("last", "1000")))})
            case "POST", "expire_tokens":
                return _json({"expired": server.auth.expire_all()})
            case "POST", "disconnect":
                server.reset_connections(request.connection)
                return _json({})
            case "POST", "create_bucket":
                name = msgspec.json.decode(body, type=NewBucket).bucket
                rules.check_bucket_name(name)
                return _json({"bucketId": server.store.create_bucket(name, "allPrivate", {}).id})
            case "POST", "put":
                return _json(self._version(self._put(msgspec.json.decode(body, type=Put))))
            case "POST", "hide":
                hide = msgspec.json.decode(body, type=Name)
                return _json(self._version(server.store.hide(self._bucket(hide.bucket), hide.name)))
            case "GET", "objects":
                return _json({"files": self._objects(self._bucket(query.get("bucket", "")))})
            case "GET", "content":
                return self._content(query.get("fileId", ""))
            case _:
                raise Refused(404, "not_found", f"no such admin request: {request.method} {request.path}")

    # ------------------------------------------------------------ requests

    def _state(self) -> dict[str, Any]:
        server = self._server
        settings = server.settings
        return {
            "account_id": server.store.account_id,
            "buckets": {bucket.name: bucket.id for bucket in server.store.buckets()},
            "latency_s": settings.latency_s,
            "down_bps": server.shape.down_bps,
            "up_bps": server.shape.up_bps,
            "token_lifetime_s": server.auth.lifetime_s,
            "stale_s": settings.stale_s,
            "freeze_listings": settings.frozen_list_ms is not None,
            "caps": sorted(settings.caps),
            "down": settings.down,
            "min_part_size": settings.min_part_size,
            "recommended_part_size": settings.recommended_part_size,
            "now_ms": server.clock.now_ms(),
            "connections": len(server.connections),
        }

    def _change(self, change: SettingsChange, connection: Connection) -> None:
        server = self._server
        settings = server.settings
        given = {
            name: value for name in change.__struct_fields__ if (value := getattr(change, name)) is not msgspec.UNSET
        }
        if unknown := set(given.get("caps", ())) - _CAPS:
            raise Refused(400, "", f"unknown caps: {', '.join(sorted(unknown))}")
        for name, value in given.items():
            match name:
                case "down_bps" | "up_bps":
                    setattr(server.shape, name, value or None)
                case "token_lifetime_s":
                    server.auth.lifetime_s = TOKEN_LIFETIME_S if value is None else value
                case "clock":
                    clock = value or ClockSetting()
                    server.clock.set(clock.offset_s, clock.frozen_ms, clock.ties)
                case "stale_s":
                    settings.stale_s = value or 0.0
                case "freeze_listings":
                    settings.frozen_list_ms = server.clock.now_ms() if value else None
                case "caps":
                    settings.caps = frozenset(value)
                case "down":
                    settings.down = value
                    if value:
                        server.reset_connections(connection)
                case _:
                    setattr(settings, name, value)
        server.store.keep_gone = settings.stale_s > 0 or settings.frozen_list_ms is not None

    def _put(self, put: Put) -> Version:
        store = self._server.store
        bucket = self._bucket(put.bucket)
        rules.check_file_name(put.name)
        info = rules.check_info(put.name, put.info)
        data = put.data or put.text.encode()
        file_id, stamp_ms = store.begin(bucket.id, put.uploaded_ms)
        incoming = store.bodies.new(file_id)
        incoming.hold(data)
        sha1 = incoming.close()
        kind = rules.content_type(put.content_type, put.name)
        return store.add(
            Version(bucket.id, put.name, stamp_ms, file_id, "upload", len(data), put.sha1 or sha1, kind, info)
        )

    def _objects(self, bucket: BucketRow) -> list[wire.Json]:
        rows, _ = list_rows(
            self._server.store,
            bucket,
            versions=True,
            start=("", 0, ""),
            prefix="",
            delimiter="",
            limit=10**9,
        )
        return [self._version(row) for row in rows]

    def _content(self, file_id: str) -> Reply:
        version = self._server.store.version(file_id)
        if version is None or version.action != "upload":
            raise Refused(404, "not_found", f"no such version: {file_id[:120]}")
        fd = self._server.store.bodies.open(file_id)
        headers = [("Content-Type", "application/octet-stream")]
        if version.size:
            return Reply(200, headers, fd=fd, length=version.size)
        os.close(fd)
        return Reply(200, headers)

    # ------------------------------------------------------------ inside

    def _bucket(self, name: str) -> BucketRow:
        bucket = self._server.store.bucket_by_name(name)
        if bucket is None:
            raise Refused(404, "not_found", f"no such bucket: {name[:80]}")
        return bucket

    def _version(self, version: Version) -> wire.Json:
        return wire.version_json(version, self._server.store.account_id, 4)


def _host(request: Request) -> str:
    """The host that the client believes to speak to: a name that a web page resolved to this machine is not ours."""
    return urlsplit(f"//{request.headers.get('host', '')}").hostname or "localhost"


def _json(answer: Any, status: int = 200) -> Reply:
    return Reply(status, [("Content-Type", "application/json")], msgspec.json.encode(answer))


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise Refused(400, "", f"not a number: {text[:40]!r}") from None
