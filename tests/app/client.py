"""An HTTP client that expects: what the answer should be is an argument, and what differs goes into the report.

Rules
  One request at a time over one client. gunicorn's sync worker closes each connection; the next call opens a new one.
  A wrong answer, a broken connection and a time-out are entries in the report, never exceptions: the story goes on.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from dataclasses import dataclass, field
from typing import Any

REQUEST_TIMEOUT_S = 125.0
"""A little above gunicorn's own limit (--timeout 120): the server's end should be seen first."""

_BOUNDARY = "----story-boundary-7d1c"


@dataclass
class FlowStats:
    calls: int = 0
    failures: int = 0
    took_s: list[float] = field(default_factory=list)
    """Time of each HTTP request, the driver's own work not counted."""

    @property
    def elapsed_s(self) -> float:
        return sum(self.took_s)


@dataclass
class Report:
    """What happened, flow by flow."""

    flows: dict[str, FlowStats] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def calls(self) -> int:
        return sum(stats.calls for stats in self.flows.values())

    @property
    def elapsed_s(self) -> float:
        return sum(stats.elapsed_s for stats in self.flows.values())

    def stats(self, flow: str) -> FlowStats:
        return self.flows.setdefault(flow, FlowStats())

    def fail(self, flow: str, text: str) -> None:
        self.stats(flow).failures += 1
        self.failures.append(f"{flow}: {text}")

    def __str__(self) -> str:
        rows = [f"{'flow':<18} {'calls':>6} {'failed':>6} {'ms':>8}"]
        rows += [
            f"{name:<18} {s.calls:>6} {s.failures:>6} {s.elapsed_s * 1000:>8.0f}" for name, s in self.flows.items()
        ]
        rows += [f"{'all':<18} {self.calls:>6} {len(self.failures):>6} {self.elapsed_s * 1000:>8.0f}"]
        return "\n".join(rows + self.failures[:40])


@dataclass
class Answer:
    """What came back; status 0 when nothing did."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The document in the body; an empty one when there is none, so that the story can go on."""
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


@dataclass
class Upload:
    """A file in a form."""

    field: str
    name: str
    data: bytes


class Client:
    """Sends requests to one server for the flow in `flow` and notes in `report` what was not as expected."""

    def __init__(self, base_url: str, report: Report, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        address = urllib.parse.urlsplit(base_url)
        assert address.hostname
        self._connection = http.client.HTTPConnection(address.hostname, address.port, timeout=timeout_s)
        self.report = report
        self.flow = ""
        self.token = ""

    def close(self) -> None:
        self._connection.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        send: object = None,
        form: dict[str, str] | None = None,
        upload: Upload | None = None,
        headers: dict[str, str] | None = None,
        want: int = 200,
        body: bytes | None = None,
    ) -> Answer:
        """One request. `send` goes as JSON, `form` and `upload` as multipart; `want` and `body` are what should come."""
        all_headers = {"X-Flow": self.flow, **(headers or {})}
        if self.token:
            all_headers["Authorization"] = self.token
        payload = None
        if send is not None:
            payload = json.dumps(send).encode()
            all_headers["Content-Type"] = "application/json"
        elif form is not None:
            payload = multipart(form, upload)
            all_headers["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
        stats = self.report.stats(self.flow)
        stats.calls += 1
        started = time.perf_counter()
        try:
            self._connection.request(method, urllib.parse.quote(path), payload, all_headers)
            response = self._connection.getresponse()
            answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            answer = Answer(0, {}, repr(error).encode())
        stats.took_s.append(time.perf_counter() - started)
        if answer.status != want:
            self.fail(f"{method} {path}: {answer.status} instead of {want} {answer.body[:80]!r}")
        elif body is not None and answer.body != body:
            self.fail(f"{method} {path}: {difference(answer.body, body)}")
        return answer

    def fail(self, text: str) -> None:
        self.report.fail(self.flow, text)

    def expect(self, what: str, got: object, wanted: object) -> None:
        """Note it when a value inside an answer is another than it should be."""
        if got != wanted:
            self.fail(f"{what}: {shorten(got)} instead of {shorten(wanted)}")


def multipart(form: dict[str, str], upload: Upload | None) -> bytes:
    """A form as browsers send it: names in plain UTF-8, quotes and line ends as percent codes."""
    parts = [(f'name="{name}"', value.encode()) for name, value in form.items()]
    if upload:
        name = upload.name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        file_type = "\r\nContent-Type: application/octet-stream"
        parts.append((f'name="{upload.field}"; filename="{name}"{file_type}', upload.data))
    lines = [f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + body for head, body in parts]
    return b"\r\n".join(lines) + f"\r\n--{_BOUNDARY}--\r\n".encode()


def difference(got: bytes, wanted: bytes) -> str:
    """Where two bodies part."""
    at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    return f"{len(got)} bytes instead of {len(wanted)}, other from byte {at}: {got[at : at + 16]!r}, {wanted[at : at + 16]!r}"


def shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}…"
