"""The door to b2sdk: one HTTP request, one attempt, bounded, counted, its failure translated.

Rules
  b2sdk is imported here and in `faults` only, by its public names: `B2Http` sends, `B2RawHTTPApi` knows
  the URLs, headers and checks of each call. What lies above them in b2sdk (session, bucket, up- and
  download managers) retries with sleeps of its own, keeps its own thread pools and can hang, so it is
  not used (facts: b2.md 0.6, 0.8, 4).
  Nothing is retried here.
"""

from __future__ import annotations

import logging
import re
import threading
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import requests
from b2sdk.v3 import (  # type: ignore[import-untyped]
    B2Http,
    B2HttpApiConfig,
    B2RawHTTPApi,
    MetadataDirectiveMode,
)
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool

import b2fs
from b2fs.adapters.b2.faults import translate
from b2fs.adapters.b2.settings import Settings
from b2fs.adapters.b2.source import Source
from b2fs.core.bucket import Requests

# b2sdk logs whole answers and headers, tokens among them.
logging.getLogger("b2sdk").setLevel(logging.CRITICAL + 1)

REPLACE = MetadataDirectiveMode.REPLACE

BY_NAME = "b2_download_file_by_name"
"""GET and HEAD by name have no call in their URL; B2 bills them under this one."""

_CLASS_B = {BY_NAME, "b2_download_file_by_id", "b2_get_file_info"}
_CLASS_C = {
    "b2_authorize_account",
    "b2_list_buckets",
    "b2_list_file_names",
    "b2_list_file_versions",
    "b2_list_parts",
    "b2_list_unfinished_large_files",
    "b2_copy_file",
    "b2_copy_part",
    "b2_update_bucket",
    "b2_get_download_authorization",
}


def class_of(call: str) -> str:
    """The transaction class of an API call (facts: b2.md 2)."""
    return "B" if call in _CLASS_B else "C" if call in _CLASS_C else "A"


class Counter:
    """Counts requests and bytes; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, int] = {}
        self._sent = 0
        self._received = 0
        self._copied = 0

    def add(self, call: str = "", sent: int = 0, received: int = 0, copied: int = 0) -> None:
        with self._lock:
            if call:
                self._calls[call] = self._calls.get(call, 0) + 1
            self._sent += sent
            self._received += received
            self._copied += copied

    def snapshot(self) -> Requests:
        with self._lock:
            calls, sent, received, copied = dict(self._calls), self._sent, self._received, self._copied
        classes: dict[str, int] = {}
        for call, count in calls.items():
            classes[class_of(call)] = classes.get(class_of(call), 0) + count
        return Requests(calls, classes, sent, received, copied)


class Account(msgspec.Struct, frozen=True):
    """What b2_authorize_account and b2_list_buckets said; replaced as a whole, compared by identity."""

    token: str
    api_url: str
    download_url: str
    minimum_part: int
    recommended_part: int
    bucket_id: str


class _Adapter(HTTPAdapter):
    """Connections, and requests' errors for their failures. What requests looks up and copies for each request is left
    out: environment, proxies, cookies.
    """

    def __init__(self, connections: int) -> None:
        self._pools = WeakValueDictionary[str, HTTPConnectionPool]()
        """By origin; the manager holds them, and lets go of those that were made the longest ago."""
        # Upload pods are hosts of their own, hence as many pools as connections.
        super().__init__(pool_connections=connections, pool_maxsize=connections)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        # http.client sends a body in blocks of this size; its 16 KiB cost four times the calls.
        super().init_poolmanager(*args, **kwargs, blocksize=65536)

    def get_connection_with_tls_context(
        self, request: requests.PreparedRequest, verify: Any, proxies: Any = None, cert: Any = None
    ) -> HTTPConnectionPool:
        url = request.url or ""
        origin = url[: _path_at(url)]
        pool = self._pools.get(origin)
        if pool is None:
            pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
            super().cert_verify(pool, url, verify, cert)
            self._pools[origin] = pool
        return pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Was done when the pool was made."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        url = request.url or ""
        return url[_path_at(url) :]

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = resp.status
        response.headers = resp.headers  # as insensitive to case as what requests makes of it
        response.raw = resp
        response.url = req.url or ""
        return response


class _Session(requests.Session):
    """As its base, without what no request to B2 has: cookies, redirects, proxies, parameters, ~/.netrc. Half the CPU."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        self._adapter = _Adapter(connections)
        self.mount("https://", self._adapter)
        self.mount("http://", self._adapter)

    def request(  # type: ignore[override]  # what b2sdk passes
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str],
        data: Source | bytes | None,
        params: None,
        timeout: tuple[float, float],
        stream: bool,
    ) -> requests.Response:
        prepared = requests.PreparedRequest()
        prepared.method, prepared.url = method, url
        prepared.headers = CaseInsensitiveDict(headers, **{"Accept-Encoding": "identity"})
        if data is not None:
            prepared.body = data
            prepared.headers["Content-Length"] = str(len(data))
        response = self._adapter.send(prepared, stream, timeout)
        if not stream:
            _ = response.content  # reads it, and gives the connection back
        return response


class Http(B2Http):  # type: ignore[misc]  # b2sdk ships no types
    """b2sdk's HTTP layer with its retries off, short time limits, and every failure translated."""

    def __init__(self, settings: Settings, counter: Counter) -> None:
        super().__init__(
            B2HttpApiConfig(
                http_session_factory=lambda: _Session(settings.connections),
                # It would raise after B2 has committed an upload (facts: b2.md 3).
                install_clock_skew_hook=False,
                user_agent_append=f"b2fs/{b2fs.__version__}",
                decode_content=True,  # "do not replace my adapter"; we read bodies undecoded
            )
        )
        self.CONNECTION_TIMEOUT = settings.connect_timeout_s
        self._idle_timeout_s = settings.idle_timeout_s
        self._timeouts_s = {
            "b2_upload_file": settings.upload_timeout_s,
            "b2_upload_part": settings.upload_timeout_s,
            "b2_copy_file": settings.copy_timeout_s,
            "b2_copy_part": settings.copy_timeout_s,
            "b2_finish_large_file": settings.copy_timeout_s,
        }
        self._key = settings.key
        self._counter = counter

    def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        data: Source | bytes | None = None,
        try_count: int = 1,
        params: dict[str, str] | None = None,
        *,
        stream: bool = False,
        _timeout: float | None = None,
    ) -> requests.Response:
        """One request. Every HTTP request of b2fs passes here.

        Raises a `B2fsError`, never anything else of b2sdk or below.
        """
        call = call_of(url)
        self._counter.add(call)
        try:
            response: requests.Response = super().request(
                method,
                url,
                headers,
                data,
                1,
                params,
                stream=stream,
                _timeout=self._timeouts_s.get(call, self._idle_timeout_s),
            )
        except Exception as exc:  # the table in `faults` decides
            # `from None`: the original may quote the headers, and a traceback would print it.
            raise translate(exc, (self._key, headers.get("Authorization", ""))) from None
        finally:
            self._counter.add(sent=data.sent if isinstance(data, Source) else len(data or b""))
        if not stream:
            self._counter.add(received=len(response.content))
        return response


class Api(B2RawHTTPApi):  # type: ignore[misc]  # b2sdk ships no types
    """B2's calls, one method each, with the listing that b2sdk lacks."""

    def list_folder(self, account: Account, prefix: str, start: str | None, delimiter: str | None, limit: int) -> Any:
        """b2_list_file_names with a delimiter (facts: b2.md 0.9)."""
        return self.b2_http.post_json_return_json(
            f"{account.api_url}/b2api/{self.API_VERSION}/b2_list_file_names",
            {"Authorization": account.token},
            {
                "bucketId": account.bucket_id,
                "prefix": prefix,
                "startFileName": start,
                "delimiter": delimiter,
                "maxFileCount": limit,
            },
        )


def _path_at(url: str) -> int:
    """Where the path of a URL of B2 begins."""
    return url.index("/", len("https://"))


def call_of(url: str) -> str:
    """The API call that a request to `url` is billed as."""
    match = re.match(r"https?://[^/]+/b2api/v\d+/(b2_\w+)", url)
    return match[1] if match else BY_NAME
