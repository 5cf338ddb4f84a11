"""Who may do what: application keys, the tokens made from them, and their restrictions.

Rules
  A token is a `Grant`. Grants live in memory: after a restart of the server a client gets 401
  ``bad_auth_token`` and authorises again, as it must be able to at any time.
  The root key is given at every start and never stored; of other keys only a digest is.
  No secret and no token is ever logged or shown by the admin interface.

Units: ``*_s`` seconds; expiry is on the monotonic clock, except a key's own expiry (``expires_ms``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from b2fs.devbucket import rules
from b2fs.devbucket.rules import Refused
from b2fs.devbucket.store import Store

TOKEN_LIFETIME_S = 24 * 3600.0
"""Account and upload tokens live 24 hours (facts: b2.md 1.7)."""


@dataclass
class Grant:
    """What one token allows. `bucket_ids` None means all buckets; `prefix` '' means all names."""

    token: str
    key_id: str
    capabilities: frozenset[str]
    bucket_ids: tuple[str, ...] | None
    prefix: str
    expires_at: float
    file_id: str = ""
    """For a part-upload token: the large file that it belongs to."""
    busy: bool = False
    """For an upload token: an upload is running; there can be only one (facts: b2.md 3)."""

    def require(self, capability: str) -> None:
        if capability not in self.capabilities:
            raise unauthorized(f"the key lacks the capability {capability}")

    def require_bucket(self, bucket_id: str) -> None:
        if self.bucket_ids is not None and bucket_id not in self.bucket_ids:
            raise unauthorized("the key is restricted to other buckets")

    def require_name(self, name: str) -> None:
        if not name.startswith(self.prefix):
            raise unauthorized(f"the key is restricted to names that start with {self.prefix!r}")


def unauthorized(message: str) -> Refused:
    return Refused(401, "unauthorized", message)


class Auth:
    def __init__(self, store: Store, key_id: str, key: str) -> None:
        self._store = store
        self._root = (key_id, _digest(key))
        self._grants: dict[str, Grant] = {}
        self._swept_at = time.monotonic()
        self.lifetime_s = TOKEN_LIFETIME_S
        """Of tokens made from now on."""

    def authorize(self, header: str) -> tuple[Grant, dict[str, Any]]:
        """A new account token for ``Basic`` credentials, and the grants of the key."""
        try:
            kind, _, value = header.partition(" ")
            key_id, _, key = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Refused(401, "bad_auth_token", "") from None
        grants = self._check_key(key_id, key) if kind == "Basic" else None
        if grants is None:
            raise Refused(401, "bad_auth_token", "")  # Backblaze/B2_Command_Line_Tool#645
        grant = self.issue(key_id, grants["capabilities"], grants["bucketIds"], grants["namePrefix"] or "")
        return grant, grants

    def issue(
        self,
        key_id: str,
        capabilities: Sequence[str],
        bucket_ids: Sequence[str] | None,
        prefix: str,
        lifetime_s: float | None = None,
        file_id: str = "",
    ) -> Grant:
        now = time.monotonic()
        if now - self._swept_at > 60:
            self._swept_at = now
            # An hour later a token is "bad" instead of "expired"; clients treat both alike.
            self._grants = {t: g for t, g in self._grants.items() if g.expires_at > now - 3600}
        token = f"4_{secrets.token_urlsafe(36)}"
        self._grants[token] = grant = Grant(
            token,
            key_id,
            frozenset(capabilities),
            None if bucket_ids is None else tuple(bucket_ids),
            prefix,
            now + (self.lifetime_s if lifetime_s is None else lifetime_s),
            file_id,
        )
        return grant

    def grant(self, token: str | None) -> Grant:
        """The grant of a token that is still valid."""
        if not token:
            raise unauthorized("")
        grant = self._grants.get(token)
        if grant is None:
            raise Refused(401, "bad_auth_token", "Invalid authorization token")
        if grant.expires_at <= time.monotonic():
            raise Refused(401, "expired_auth_token", "Authorization token has expired")
        return grant

    def expire_all(self) -> int:
        """Let every token expire now; how many there were."""
        for grant in self._grants.values():
            grant.expires_at = 0.0
        return len(self._grants)

    def create_key(self, grants: dict[str, Any]) -> tuple[str, str]:
        """(key id, secret) of a new key; this is the only time that the secret is seen."""
        key_id = "004" + secrets.token_hex(11)
        key = "K004" + secrets.token_urlsafe(20)
        self._store.add_key(key_id, _digest(key), grants)
        return key_id, key

    def delete_key(self, key_id: str) -> None:
        """Forget the key; its tokens end with it."""
        self._store.delete_key(key_id)
        self._grants = {t: g for t, g in self._grants.items() if g.key_id != key_id}

    def _check_key(self, key_id: str, key: str) -> dict[str, Any] | None:
        digest = _digest(key)
        if key_id == self._root[0]:
            everything = {
                "capabilities": rules.ALL_CAPABILITIES,
                "bucketIds": None,
                "namePrefix": None,
            }
            return everything if hmac.compare_digest(digest, self._root[1]) else None
        found = self._store.key(key_id)
        if found is None or not hmac.compare_digest(digest, found[0]):
            return None
        expires_ms = found[1].get("expires_ms")
        if expires_ms is not None and expires_ms <= self._store.clock.now_ms():
            return None
        return found[1]


def _digest(key: str) -> str:
    # Application keys are long random strings, so a plain digest is enough.
    return hashlib.sha256(key.encode()).hexdigest()
