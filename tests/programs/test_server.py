"""gunicorn serves from the mount with sendfile(2)."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from tests.app.footprint import finished, strace
from tests.app.server import serve
from tests.mount.hosts import Host
from tests.programs.support import bytes_of, here_and_elsewhere

SIZE = 5_000_000
"""More than a chunk, so elsewhere it is fetched while it is sent."""


def get(url: str, headers: dict[str, str]) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        body: bytes = answer.read()
    return body


@pytest.mark.program("strace")
def test_sendfile(host: Host, tmp_path: Path) -> None:
    """A file goes out whole and in ranges by sendfile, as it was written, here and from a host that has to fetch it."""
    data = bytes_of(SIZE)
    (host.path / "sound.mp3").write_bytes(data)
    for where in here_and_elsewhere(host):
        log = tmp_path / where
        with serve(host.path, tmp_inside=False, command=strace(log)) as url:
            address = f"{url}/static/data/sound.mp3"
            assert get(address, {"Range": "bytes=3000000-3999999"}) == data[3_000_000:4_000_000]
            assert get(address, {}) == data
        sent = [line for line in finished(log) if "sendfile(" in line and str(host.path / "sound.mp3") in line]
        assert sent, "no sendfile"
