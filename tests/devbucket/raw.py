"""A B2 client without cleverness: one request, one answer, and B2's own error when it is refused."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

Json = dict[str, Any]


class Answered(Exception):
    """The server refused; `status` and `code` are B2's."""

    def __init__(self, status: int, answer: Json, headers: Mapping[str, str]) -> None:
        super().__init__(f"{status} {answer}")
        self.status = status
        self.code = answer.get("code", "")
        self.message = answer.get("message", "")
        self.headers = headers

    @property
    def words(self) -> tuple[int, str]:
        return self.status, self.code


@dataclass
class Body:
    status: int
    headers: http.client.HTTPMessage
    data: bytes


class Raw:
    """One keep-alive connection, authorised as one key."""

    def __init__(self, url: str, key_id: str, key: str, api: int = 4, timeout: float = 10.0) -> None:
        self.url = url
        self.api = api
        parts = urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout)
        self.token = ""
        basic = base64.b64encode(f"{key_id}:{key}".encode()).decode()
        answer = self.send("GET", f"/b2api/v{api}/b2_authorize_account", headers={"Authorization": f"Basic {basic}"})
        self.account: Json = json.loads(answer.data)
        self.token = self.account["authorizationToken"]

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def send(self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> Body:
        given = dict(headers)
        if self.token:
            given.setdefault("Authorization", self.token)
        try:
            self.connection.request(method, path, body, given)
            response = self.connection.getresponse()
            data = response.read()
        except BaseException:
            self.connection.close()
            raise
        if response.status >= 400 and not self.token:
            self.connection.close()  # it may be the constructor that fails
        if response.status >= 400:
            raise Answered(response.status, json.loads(data) if data else {}, response.headers)
        return Body(response.status, response.headers, data)

    def call(self, name: str, **arguments: Any) -> Json:
        body = json.dumps(arguments).encode()
        answer: Json = json.loads(self.send("POST", f"/b2api/v{self.api}/{name}", body).data)
        return answer

    def bucket_id(self, name: str) -> str:
        return str(self.call("b2_list_buckets", bucketName=name)["buckets"][0]["bucketId"])

    def upload_url(self, bucket_id: str) -> Json:
        return self.call("b2_get_upload_url", bucketId=bucket_id)

    def upload(
        self,
        bucket_id: str,
        name: str,
        data: bytes = b"",
        *,
        info: Mapping[str, str] = {},
        sha1: str | None = None,
        url: Json | None = None,
        tail: bytes = b"",
        **headers: str,
    ) -> Json:
        """Upload by a new upload URL (or `url`); `headers` with '_' for '-' are added or replaced, '' removes one."""
        url = url or self.upload_url(bucket_id)
        given = {
            "Authorization": url["authorizationToken"],
            "X-Bz-File-Name": quote(name),
            "Content-Type": "b2/x-auto",
            "X-Bz-Content-Sha1": sha1 or hashlib.sha1(data).hexdigest(),
        }
        given |= {f"X-Bz-Info-{key}": quote(value) for key, value in info.items()}
        given |= {key.replace("_", "-"): value for key, value in headers.items()}
        given = {key: value for key, value in given.items() if value}
        answer: Json = json.loads(self.send("POST", urlsplit(url["uploadUrl"]).path, data + tail, given).data)
        return answer

    def upload_part(self, file_id: str, number: int, data: bytes) -> Json:
        url = self.call("b2_get_upload_part_url", fileId=file_id)
        headers = {
            "Authorization": url["authorizationToken"],
            "X-Bz-Part-Number": str(number),
            "X-Bz-Content-Sha1": hashlib.sha1(data).hexdigest(),
        }
        answer: Json = json.loads(self.send("POST", urlsplit(url["uploadUrl"]).path, data, headers).data)
        return answer

    def download(self, bucket: str, name: str, method: str = "GET", **headers: str) -> Body:
        return self.send(method, f"/file/{bucket}/{quote(name)}", headers=headers)

    def download_by_id(self, file_id: str, method: str = "GET", **headers: str) -> Body:
        return self.send(method, f"/b2api/v{self.api}/b2_download_file_by_id?fileId={file_id}", headers=headers)


def connect(url: str, timeout: float = 10.0) -> socket.socket:
    """A bare TCP connection to the server."""
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout)


def receive_all(sock: socket.socket) -> bytes:
    """What arrives until the server closes in order; ConnectionResetError if it resets."""
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data
