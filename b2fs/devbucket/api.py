"""From HTTP to B2's native API: routing, tokens, faults, counters, and the wording of errors.

Rules
  Every request goes the same way: name the call and the key → count it → latency and faults → token →
  the call → the answer. A refusal is B2's error JSON; anything unexpected is a logged 500, never a dead connection.
  Calls are named as in B2's documentation; HEAD is ``head_file_by_name`` and ``head_file_by_id``.
  Tokens and keys are never logged.
"""

from __future__ import annotations

import logging
import os
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import msgspec
import trio

from b2fs.devbucket import buckets, files, large, rules, transfer, wire  # noqa: F401  (they register calls)
from b2fs.devbucket.auth import Auth, Grant
from b2fs.devbucket.calls import CALLS, Call, Context, Settings
from b2fs.devbucket.clock import Clock
from b2fs.devbucket.counters import Counters, Exchange
from b2fs.devbucket.faults import Fault, Faults, Kind
from b2fs.devbucket.http import (
    Cut,
    Disconnected,
    Reply,
    Request,
    Reset,
    Shape,
    Stall,
    matches,
)
from b2fs.devbucket.rules import Refused, bad_request
from b2fs.devbucket.store import Store

log = logging.getLogger(__name__)

MAX_JSON = 4 << 20
"""Largest JSON body taken (10 000 part digests are 0.5 MB)."""
_JSON_TYPE = ("Content-Type", "application/json;charset=UTF-8")
_WRONG_SHA1 = "0" * 40
_NO_GRANT = Grant("", "", frozenset(), None, "", 0.0)


class Route(msgspec.Struct, frozen=True):
    """Where a request goes."""

    call: str
    api: int = 4
    target: str = ""
    """Bucket id or large file id of an upload URL; file id of a download by id."""
    bucket_name: str = ""
    name: str = ""
    """Decoded object name, where the head tells it."""


class Api:
    def __init__(self, store: Store, auth: Auth, clock: Clock, settings: Settings, shape: Shape) -> None:
        self.store = store
        self.auth = auth
        self.clock = clock
        self.settings = settings
        self.shape = shape
        self.counters = Counters()
        self.faults = Faults()
        self.fallback_url = ""
        """How clients reach this server if they send no Host header."""
        self._date = (0, "")

    def date(self) -> str:
        """The Date header, by the server's clock."""
        second = self.clock.now_ms() // 1000
        if second != self._date[0]:
            self._date = (second, formatdate(second, usegmt=True))
        return self._date[1]

    async def handle(self, request: Request) -> Reply:
        """Answer one request. May raise `Reset`, `Stall` and `Disconnected`."""
        try:
            route = _route(request)
        except Refused as refused:
            return _error(refused)
        exchange = self.counters.begin(route.call)
        try:
            reply = await self._answer(request, route, exchange)
        except Refused as refused:
            reply = _error(refused)
        except (Reset, Stall, Disconnected, trio.Cancelled, trio.BrokenResourceError, trio.ClosedResourceError):
            exchange.received = request.received
            exchange.end()
            raise
        except Exception:
            log.exception("bug in %s", route.call)
            reply = _error(Refused(500, "internal_error", "an error occurred; see the server's log"))
        exchange.status = reply.status
        self.counters.statuses[reply.status] += 1
        exchange.received = request.received
        exchange.sent = 0 if request.method == "HEAD" else max(reply.length, len(reply.body))
        reply.on_end = exchange.end
        return reply

    # ------------------------------------------------------------ one request

    async def _answer(self, request: Request, route: Route, exchange: Exchange) -> Reply:
        body = await _json_body(request) if route.call in CALLS else b""
        exchange.key = route.name or self._key(route, body)
        delay_s, fault = self.faults.pick(route.call, exchange.key)
        delay_s += next((s for call, s in self.settings.latency_s.items() if matches(route.call, call)), 0.0)
        if delay_s > 0:
            await trio.sleep(delay_s)
        if fault is not None:
            exchange.fault = fault.kind.value
            _fail_before(fault)
            request.mishap = fault.request_mishap()
            if request.mishap is not None and route.call not in ("b2_upload_file", "b2_upload_part"):
                raise Stall if request.mishap.cut is Cut.STALL else Reset  # no body that could be cut
        self._check_caps(route.call)
        reply = await self._perform(request, route, body)
        if fault is not None:
            _fail_after(fault, reply)
        return reply

    async def _perform(self, request: Request, route: Route, body: bytes) -> Reply:
        if route.call == "b2_authorize_account":
            return _json(self._authorize(request, route.api))
        if route.call.endswith(("_by_name", "_by_id")):
            return self._download(request, route)
        context = self._context(request, route, self.auth.grant(request.headers.get("authorization")))
        if route.call == "b2_upload_file":
            return _json(await transfer.upload_file(context, request, route.target))
        if route.call == "b2_upload_part":
            return _json(await transfer.upload_part(context, request, route.target))
        return _json(await _native(context, request, CALLS[route.call], body))

    def _download(self, request: Request, route: Route) -> Reply:
        """By name from a public bucket no token is needed; a token may also come in the query."""
        token = request.headers.get("authorization")
        if token is None and "Authorization=" in request.query:
            token = parse_qs(request.query).get("Authorization", [""])[0]
        grant = self.auth.grant(token) if token is not None else _NO_GRANT
        context = self._context(request, route, grant)
        if route.target:
            bucket_id = rules.check_file_id(route.target)[0]
        else:
            bucket = self.store.bucket_by_name(route.bucket_name)
            bucket_id = bucket.id if bucket else ""
        known = any(b.id == bucket_id for b in self.store.buckets())
        if not (known and self.store.bucket(bucket_id).type == "allPublic"):
            if token is None:
                self.auth.grant(None)
            grant.require("readFiles")
        if route.target:
            version = transfer.version_by_id(context, route.target)
            if grant is not _NO_GRANT:
                context.readable(version)
        else:
            if grant is not _NO_GRANT:
                if known:
                    grant.require_bucket(bucket_id)
                grant.require_name(route.name)
            version = transfer.version_by_name(context, route.bucket_name, route.name)
        return transfer.download(context, request, version)

    def _authorize(self, request: Request, api: int) -> wire.Json:
        grant, grants = self.auth.authorize(request.headers.get("authorization", ""))
        names = {bucket.id: bucket.name for bucket in self.store.buckets()}
        allowed = [{"id": i, "name": names.get(i)} for i in grant.bucket_ids or ()]
        return wire.account_json(
            self.store.account_id,
            grant.token,
            self._base_url(request),
            grants,
            allowed,
            (self.settings.min_part_size, self.settings.recommended_part_size),
            api,
        )

    def _context(self, request: Request, route: Route, grant: Grant) -> Context:
        return Context(
            self.store,
            self.auth,
            self.counters,
            self.settings,
            grant,
            route.api,
            self._base_url(request),
        )

    def _base_url(self, request: Request) -> str:
        """The address that the client itself used: right behind port forwarding, too."""
        host = request.headers.get("host")
        return f"http://{host}" if host else self.fallback_url

    def _key(self, route: Route, body: bytes) -> str:
        """The object name that a request is about, as far as it is known before the call; for log and faults."""
        file_id = "" if route.call == "b2_upload_file" else route.target
        if body:
            try:
                names = msgspec.json.decode(body, type=_Names)
            except msgspec.DecodeError:
                return ""
            if names.file_name or names.prefix:
                return names.file_name or names.prefix or ""
            file_id = names.file_id or names.large_file_id or names.source_file_id or ""
        version = self.store.version(file_id) if file_id else None
        return version.name if version else ""

    def _check_caps(self, call: str) -> None:
        caps = self.settings.caps
        if not caps:
            return
        price = rules.PRICE_CLASS.get(call, "C")
        if "transaction" in caps and price != "A":
            raise Refused(403, "transaction_cap_exceeded", "Transaction cap exceeded")
        if "download" in caps and call.startswith("b2_download"):
            raise Refused(403, "download_cap_exceeded", "Download cap exceeded")


class _Names(msgspec.Struct, rename="camel"):
    """The fields of a call's JSON that say which object it is about."""

    file_name: str | None = None
    prefix: str | None = None
    file_id: str | None = None
    large_file_id: str | None = None
    source_file_id: str | None = None


# ---------------------------------------------------------------- routing


def _route(request: Request) -> Route:
    path, method = request.path, request.method
    if path.startswith("/file/"):
        bucket_name, _, name = path[len("/file/") :].partition("/")
        _require_method(method, "GET", "HEAD")
        call = "head_file_by_name" if method == "HEAD" else "b2_download_file_by_name"
        return Route(call, bucket_name=rules.decode(bucket_name), name=rules.decode(name))
    parts = path.split("/", 4)
    if len(parts) < 4 or parts[1] != "b2api" or parts[2] not in ("v1", "v2", "v3", "v4"):
        raise Refused(404, "not_found", "no such path")
    api, call = int(parts[2][1]), parts[3]
    if call == "b2_download_file_by_id":
        _require_method(method, "GET", "HEAD")
        file_id = parse_qs(request.query).get("fileId", [""])[0]
        return Route("head_file_by_id" if method == "HEAD" else call, api, file_id or "missing")
    if call in ("b2_upload_file", "b2_upload_part"):
        _require_method(method, "POST")
        name = ""
        if call == "b2_upload_file":
            name = rules.decode(request.headers.get("x-bz-file-name", ""))
        return Route(call, api, parts[4] if len(parts) > 4 else "", name=name)
    if call == "b2_authorize_account" or (call in CALLS and len(parts) == 4):
        _require_method(method, "GET", "POST")
        return Route(call, api)
    raise bad_request(f"no such API method: {call[:80]}")


def _require_method(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise Refused(405, "method_not_allowed", f"{method} is not allowed here")


async def _json_body(request: Request) -> bytes:
    body = await request.read(MAX_JSON)
    if body is None:
        raise bad_request("request body is too large")
    return body


async def _native(context: Context, request: Request, call: Call, body: bytes) -> wire.Json:
    context.grant.require(call.capability)
    try:
        if request.method == "GET":
            query: Any = {name: values[0] for name, values in parse_qs(request.query).items()}
            arguments = msgspec.convert(query, call.arguments, strict=False)
        else:
            arguments = msgspec.json.decode(body or b"{}", type=call.arguments)
    except msgspec.ValidationError as error:
        raise bad_request(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, "bad_json", str(error)) from None
    answer = call.function(context, arguments)
    if isinstance(answer, dict):
        return answer
    return await answer


# ---------------------------------------------------------------- answers


def _json(answer: wire.Json, status: int = 200) -> Reply:
    return Reply(status, [_JSON_TYPE], msgspec.json.encode(answer))


def _error(refused: Refused) -> Reply:
    answer = {"code": refused.code, "message": refused.message, "status": refused.status}
    reply = _json(answer, refused.status)
    if refused.retry_after_s is not None:
        reply.headers.append(("Retry-After", f"{refused.retry_after_s:g}"))
    return reply


def _fail_before(fault: Fault) -> None:
    """Faults that happen before anything is done."""
    args = fault.args
    match fault.kind:
        case Kind.STATUS:
            raise Refused(args.status, args.code, args.message, args.retry_after_s)
        case Kind.EXPIRED:
            raise Refused(401, "expired_auth_token", "Authorization token has expired")
        case Kind.CAP:
            raise Refused(403, args.code, "cap exceeded")
        case Kind.RESET:
            raise Reset
        case Kind.STALL:
            raise Stall
        case _:
            pass


def _fail_after(fault: Fault, reply: Reply) -> None:
    """Faults of the answer; what was asked for has been done."""
    if fault.kind is Kind.REPLY_LOST:
        if reply.fd >= 0:
            os.close(reply.fd)
        raise Reset
    if fault.kind is Kind.WRONG_SHA1:
        reply.headers = [(name, _WRONG_SHA1 if name == "X-Bz-Content-Sha1" else value) for name, value in reply.headers]
        if _JSON_TYPE in reply.headers:
            answer = msgspec.json.decode(reply.body)
            reply.body = msgspec.json.encode({**answer, "contentSha1": _WRONG_SHA1})
    reply.mishap = fault.reply_mishap()
