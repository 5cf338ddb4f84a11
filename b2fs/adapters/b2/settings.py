"""What a B2 client and its transfer process have to know. The first frame on the transfer process's socket.

Rules
  Immutable, and the only carrier of the secret: `repr` hides it, and it never enters a command line, an
  environment or a message.

Units: ``*_s`` seconds, sizes in bytes, rates in bytes per second.
"""

from __future__ import annotations

import msgspec

MIB = 1024 * 1024

PRODUCTION = "https://api.backblazeb2.com"
"""Where accounts are authorised, unless the endpoint says otherwise (a devbucket)."""

MAX_PARTS = 10_000
"""Parts of one large file (facts: b2.md 1.6)."""

MAX_SINGLE = 5_000_000_000
"""Largest result of one b2_upload_file or b2_copy_file (facts: b2.md 1.4, 1.6)."""


class Settings(msgspec.Struct, frozen=True):
    """Which bucket, with which key, and how patient to be."""

    key_id: str
    key: str
    """The application key: the secret."""
    bucket: str
    prefix: str = ""
    """'' or a string that ends with '/': what this mount sees of the bucket."""
    endpoint: str = PRODUCTION
    """URL of the realm, without a trailing '/'."""
    bucket_id: str = ""
    """When set, a bucket of this name with another id is not our bucket: it was deleted and made anew."""

    connect_timeout_s: float = 10.0
    """One TCP connect; also the longest pause while 64 KiB of a body are being sent (urllib3's choice)."""
    idle_timeout_s: float = 30.0
    """The longest silence while an answer is awaited or read."""
    upload_timeout_s: float = 60.0
    """The longest silence between the end of an uploaded body and B2's answer."""
    copy_timeout_s: float = 1200.0
    """A server-side copy, or the end of a large file, is silent until it is done (facts: b2.md 1.4)."""
    call_timeout_s: float = 90.0
    """A whole call without its body: connect, wait, and perhaps authorise anew and repeat."""
    slowest: int = 32 * 1024
    """A body that moves more slowly than this is given up."""

    large_size: int = 200 * MIB
    """From this size on a file is uploaded in parts (`large.Large.is_large`); at most `MAX_SINGLE`."""
    part_size: int = 32 * MIB
    """Wanted size of a part; B2 may recommend a smaller one, its minimum and `MAX_PARTS` may force a larger one."""
    copy_part_size: int = 1024 * MIB
    """Largest part that is copied on the server: each is a class C transaction, and silent until it is done."""
    part_lanes: int = 8
    """Parts of one large file in flight: one connection to B2 is slower than most lines."""

    fetch_lanes: int = 32
    upload_lanes: int = 16
    list_lanes: int = 4
    """Shared by connect, list, head and hide."""
    copy_lanes: int = 4

    start_timeout_s: float = 60.0
    """A transfer process that has said nothing after this long is replaced."""
    heartbeat_s: float = 1.0
    silence_timeout_s: float = 15.0
    """A transfer process that stays silent this long, heartbeats included, is replaced."""
    restart_max_s: float = 30.0
    """The longest pause before a transfer process that keeps dying is started again."""

    def __repr__(self) -> str:
        return f"Settings({self.endpoint!r}, key_id={self.key_id!r}, bucket={self.bucket!r}, prefix={self.prefix!r})"

    @property
    def connections(self) -> int:
        """Connections that may be wanted at once; every pool of them has at least this size."""
        lanes = self.fetch_lanes + self.list_lanes
        return lanes + (self.upload_lanes + self.copy_lanes) * self.part_lanes

    def allowance_s(self, size: int = 0) -> float:
        """How long one call that moves `size` bytes may take."""
        return self.call_timeout_s + size / self.slowest
