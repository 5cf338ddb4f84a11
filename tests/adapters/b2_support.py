"""Shared by the tests of the B2 adapter: settings for a devbucket, and the client as a `Bucket`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from b2fs.adapters.b2.client import B2Client
from b2fs.adapters.b2.settings import Settings
from b2fs.core.bucket import Base, Identity, Page, Requests, Version

if TYPE_CHECKING:  # at run time pytest imports it, as a plugin
    from tests.devbucket_fixture import DevBucket


def settings_for(devbucket: DevBucket, **change: Any) -> Settings:
    """Settings with short patience, so that a test of a stalled server takes a second."""
    values: dict[str, Any] = {
        "key_id": devbucket.key_id,
        "key": devbucket.key,
        "bucket": devbucket.bucket,
        "endpoint": devbucket.url,
        "connect_timeout_s": 2.0,
        "idle_timeout_s": 10.0,
        "upload_timeout_s": 10.0,
        "copy_timeout_s": 10.0,
        "call_timeout_s": 20.0,
    }
    return Settings(**{**values, **change})


def sha1_of(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


def pattern(size: int) -> bytes:
    """`size` bytes that differ from place to place, so that a shifted range shows."""
    return b"".join(b"%08d" % number for number in range(size // 8 + 1))[:size]


def sealed(directory: Path, data: bytes, name: str = "sealed") -> tuple[str, int, str]:
    """A file with `data`, as the (path, size, SHA-1) that an upload wants."""
    path = directory / name
    path.write_bytes(data)
    return str(path), len(data), sha1_of(data)


def store(client: B2Client, directory: Path, key: str, data: bytes, **info: str) -> Version:
    """Upload `data` as `key`."""
    return client.upload(key, *sealed(directory, data, "stored"), info, "text/plain")


def purge(client: B2Client, version: Version, prefix: str = "") -> None:
    """Delete one version for good; b2fs itself never does."""
    client._authority.call(
        lambda account: client._api.delete_file_version(
            account.api_url, account.token, version.file_id, prefix + version.key
        )
    )


class ThreadedBucket:
    """A `B2Client` as a `Bucket`: each call in a thread."""

    def __init__(self, client: B2Client) -> None:
        self._client = client

    async def connect(self) -> Identity:
        return await trio.to_thread.run_sync(self._client.connect)

    async def list_page(self, prefix: str, start: str, delimiter: str, limit: int) -> Page:
        return await trio.to_thread.run_sync(self._client.list_page, prefix, start, delimiter, limit)

    async def fetch(self, file_id: str, path: str, offset: int, length: int, sha1: str) -> None:
        await trio.to_thread.run_sync(self._client.fetch, file_id, path, offset, length, sha1)

    async def upload(
        self,
        key: str,
        path: str,
        size: int,
        sha1: str,
        info: Mapping[str, str],
        content_type: str,
        resume: bool = False,
        base: Base | None = None,
    ) -> Version:
        upload = self._client.upload
        return await trio.to_thread.run_sync(upload, key, path, size, sha1, info, content_type, resume, base)

    async def copy(self, file_id: str, key: str, size: int, info: Mapping[str, str], content_type: str) -> Version:
        return await trio.to_thread.run_sync(self._client.copy, file_id, key, size, info, content_type)

    async def hide(self, key: str) -> int:
        return await trio.to_thread.run_sync(self._client.hide, key)

    async def head(self, key: str) -> Version | None:
        return await trio.to_thread.run_sync(self._client.head, key)

    def requests(self) -> Requests:
        return self._client.requests()
