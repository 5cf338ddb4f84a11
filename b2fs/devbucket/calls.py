"""The table of native calls, and what a call sees of the server.

Rules
  A call is a function of a `Context` and its decoded arguments; it returns the JSON of its answer or raises
  `Refused`. It is registered with the arguments' type and the capability that its token needs. Restrictions to
  buckets and names are checked by the call, because only it knows which ones it touches.
  Only what handles bodies is ``async``: everything else is one uninterrupted step.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from b2fs.devbucket import rules
from b2fs.devbucket.auth import Auth, Grant
from b2fs.devbucket.counters import Counters
from b2fs.devbucket.store import BucketRow, Store, Version
from b2fs.devbucket.wire import Json, version_json


@dataclass
class Settings:
    """What the admin interface can change while the server runs."""

    min_part_size: int = rules.MIN_PART_SIZE
    recommended_part_size: int = rules.RECOMMENDED_PART_SIZE
    latency_s: dict[str, float] = field(default_factory=dict)
    """Glob of calls to seconds before a request is looked at; the first glob that matches counts."""
    stale_s: float = 0.0
    """Listings answer as of that long ago."""
    frozen_list_ms: int | None = None
    """Listings answer as of this time (server's clock) until it is None again."""
    caps: frozenset[str] = frozenset()
    """Caps that are exceeded: of 'storage', 'transaction', 'download'."""
    down: bool = False
    """Every connection that does not speak to the admin interface is reset."""


@dataclass
class Context:
    """One request's view of the server."""

    store: Store
    auth: Auth
    counters: Counters
    settings: Settings
    grant: Grant
    api: int
    """1 to 4: the version in the request's path."""
    base_url: str
    """How this client reaches this server."""

    @property
    def account_id(self) -> str:
        return self.store.account_id

    def bucket(self, bucket_id: str) -> BucketRow:
        """A bucket that the token may use."""
        self.grant.require_bucket(bucket_id)
        return self.store.bucket(bucket_id)

    def version_json(self, version: Version) -> Json:
        return version_json(version, self.store.account_id, self.api)

    def readable(self, version: Version) -> Version:
        """The version, if the token's restrictions cover it."""
        self.grant.require_bucket(version.bucket_id)
        self.grant.require_name(version.name)
        return version


Function = Callable[[Context, Any], Json | Awaitable[Json]]
_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Call:
    function: Function
    arguments: type[msgspec.Struct]
    capability: str


CALLS: dict[str, Call] = {}


def call(name: str, arguments: type[msgspec.Struct], capability: str) -> Callable[[_F], _F]:
    """Register a function as the native call `name`."""

    def register(function: _F) -> _F:
        CALLS[name] = Call(function, arguments, capability)
        return function

    return register


class Arguments(msgspec.Struct, frozen=True, rename="camel"):
    """Base of all arguments: camelCase in JSON; unknown fields are ignored, as B2 does."""
