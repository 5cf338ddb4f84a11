"""A small synchronous client of the admin interface, for tests and benchmarks. Standard library only.

Rules
  One connection, opened at need and again after it broke. An error answer is an `AdminError`.
  `admin` documents the requests; this file only makes them pleasant to write.
"""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit


class AdminError(Exception):
    """The server refused an admin request."""


class DevBucketAdmin:
    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)

    def close(self) -> None:
        self._connection.close()

    # ------------------------------------------------------------ misbehave

    def fault(
        self,
        kind: str,
        call: str = "*",
        *,
        key: str = "*",
        count: int | None = 1,
        probability: float = 1.0,
        seed: int = 0,
        **args: Any,
    ) -> int:
        """Add a fault (kinds and `args`: see `faults`); its id. `count` None means for ever."""
        spec: dict[str, Any] = {"kind": kind, "call": call, "key": key, "count": count}
        spec.update(probability=probability, seed=seed, args=args)
        return int(self._post("faults", spec)["id"])

    def faults(self) -> list[dict[str, Any]]:
        return list(self._request("GET", "faults")["faults"])

    def fired(self, number: int) -> int:
        """How often a fault happened."""
        return next(int(f["fired"]) for f in self.faults() if f["id"] == number)

    def clear_faults(self, number: int | None = None) -> None:
        self._request("DELETE", "faults" if number is None else f"faults/{number}")

    def settings(self, **change: Any) -> dict[str, Any]:
        """Change settings (see `admin.SettingsChange`); the state afterwards."""
        return self._post("settings", change)

    def latency(self, seconds: float, call: str = "*") -> None:
        """Let matching calls wait; 0 for all calls ends it."""
        self.settings(latency_s={call: seconds} if seconds else {})

    def bandwidth(self, down_bps: float | None = None, up_bps: float | None = None) -> None:
        self.settings(down_bps=down_bps, up_bps=up_bps)

    def clock(self, offset_s: float = 0.0, frozen_ms: int | None = None, ties: bool = False) -> None:
        self.settings(clock={"offset_s": offset_s, "frozen_ms": frozen_ms, "ties": ties})

    def caps(self, *caps: str) -> None:
        self.settings(caps=list(caps))

    def down(self) -> None:
        self.settings(down=True)

    def up(self) -> None:
        self.settings(down=False)

    def expire_tokens(self) -> int:
        return int(self._post("expire_tokens", {})["expired"])

    def disconnect(self) -> None:
        """Reset every connection but this one, also in the middle of a request."""
        self._post("disconnect", {})

    def reset(self) -> None:
        """Settings, faults and counters as at the start; objects stay."""
        self._post("reset", {})

    # ------------------------------------------------------------ look

    def state(self) -> dict[str, Any]:
        return dict(self._request("GET", "state"))

    def counters(self) -> dict[str, Any]:
        return dict(self._request("GET", "counters"))

    def calls(self) -> dict[str, int]:
        """Requests so far, by call."""
        return dict(self.counters()["calls"])

    def reset_counters(self) -> None:
        self._post("counters/reset", {})

    def log(self, last: int = 1000) -> list[dict[str, Any]]:
        """The last requests, newest last: number, call, key, status, fault, received, sent."""
        return list(self._request("GET", f"log?last={last}")["log"])

    # ------------------------------------------------------------ objects, past the API and uncounted

    def create_bucket(self, bucket: str) -> str:
        """Make a private bucket; its id."""
        return str(self._post("create_bucket", {"bucket": bucket})["bucketId"])

    def put(
        self,
        bucket: str,
        name: str,
        data: bytes = b"",
        *,
        info: Mapping[str, str] | None = None,
        content_type: str = "b2/x-auto",
        sha1: str = "",
        uploaded_ms: int | None = None,
    ) -> dict[str, Any]:
        """Store an object as another client would; its version as in listings."""
        return self._post(
            "put",
            {
                "bucket": bucket,
                "name": name,
                "data": base64.b64encode(data).decode(),
                "info": dict(info or {}),
                "contentType": content_type,
                "sha1": sha1,
                "uploadedMs": uploaded_ms,
            },
        )

    def hide(self, bucket: str, name: str) -> dict[str, Any]:
        return self._post("hide", {"bucket": bucket, "name": name})

    def versions(self, bucket: str, name: str | None = None) -> list[dict[str, Any]]:
        """All versions (of one name) in B2's order: names by bytes, newest first."""
        rows = self._request("GET", f"objects?bucket={quote(bucket)}")["files"]
        return [row for row in rows if name is None or row["fileName"] == name]

    def objects(self, bucket: str) -> dict[str, dict[str, Any]]:
        """Name to newest version, of the names that are visible."""
        seen: dict[str, dict[str, Any]] = {}
        for row in self.versions(bucket):
            if row["action"] != "start":
                seen.setdefault(row["fileName"], row)
        return {name: row for name, row in seen.items() if row["action"] == "upload"}

    def content(self, bucket: str, name: str) -> bytes:
        """The bytes of the visible version of a name. KeyError if there is none."""
        return self.content_by_id(self.objects(bucket)[name]["fileId"])

    def content_by_id(self, file_id: str) -> bytes:
        return self._raw("GET", f"content?fileId={quote(file_id)}", None)

    # ------------------------------------------------------------ inside

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self._request("POST", path, body))

    def _request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(self._raw(method, path, None if body is None else json.dumps(body).encode()))

    def _raw(self, method: str, path: str, body: bytes | None) -> bytes:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._connection.request(method, f"/admin/{path}", body, headers)
            response = self._connection.getresponse()
        except (ConnectionError, http.client.HTTPException):
            self._connection.close()  # an idle connection that broke; try a new one
            self._connection.request(method, f"/admin/{path}", body, headers)
            response = self._connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise AdminError(f"{method} /admin/{path}: {response.status} {data.decode(errors='replace')}")
        return data
