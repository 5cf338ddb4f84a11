"""Put together: a root directory, an API, a port.

Rules
  `serve` runs until it is cancelled. It raises `errors.ConfigError` or `errors.StateError`, each with one clear line, when it
  cannot start; once it has reported its address it serves.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from b2fs.devbucket import rules
from b2fs.devbucket.admin import Admin
from b2fs.devbucket.api import Api
from b2fs.devbucket.auth import TOKEN_LIFETIME_S, Auth
from b2fs.devbucket.calls import Settings
from b2fs.devbucket.clock import Clock
from b2fs.devbucket.http import Connection, Reply, Request, Reset, Shape, is_loopback
from b2fs.devbucket.rules import Refused
from b2fs.devbucket.store import Store
from b2fs.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT_KEY_ID = "dev"
DEFAULT_KEY = "dev"
"""Not a secret: the server listens on the loopback interface unless it is told otherwise."""


@dataclass(frozen=True)
class Config:
    root: Path
    host: str = "127.0.0.1"
    port: int = 0
    """0: any free port."""
    key_id: str = DEFAULT_KEY_ID
    key: str = field(default=DEFAULT_KEY, repr=False)
    buckets: tuple[str, ...] = ()
    """Private buckets to create if they are missing."""
    latency_s: float = 0.0
    bandwidth_bps: float | None = None
    """Bytes per second, for each connection and direction; None: unlimited."""
    min_part_size: int = rules.MIN_PART_SIZE
    recommended_part_size: int = rules.RECOMMENDED_PART_SIZE


class Server:
    """The open state of a devbucket. `close` it when done."""

    def __init__(self, config: Config) -> None:
        if config.key == DEFAULT_KEY and not is_loopback(config.host):
            raise ConfigError(f"set B2_APPLICATION_KEY to a secret of your own to listen on {config.host}")
        self.clock = Clock()
        self.shape = Shape(config.bandwidth_bps, config.bandwidth_bps)
        latency_s = {"*": config.latency_s} if config.latency_s else {}
        self.settings = Settings(config.min_part_size, config.recommended_part_size, latency_s)
        try:
            self.store = Store(config.root, self.clock)
        except OSError as error:
            raise ConfigError(f"cannot use {config.root} as root: {os.strerror(error.errno or 0)}") from None
        try:
            self._create_buckets(config.buckets)
        except BaseException:
            self.store.close()
            raise
        self.auth = Auth(self.store, config.key_id, config.key)
        self.api = Api(self.store, self.auth, self.clock, self.settings, self.shape)
        self.connections: set[Connection] = set()
        self._defaults = config
        self.admin = Admin(self)

    def close(self) -> None:
        self.store.close()

    def restore_settings(self) -> None:
        """Everything that the admin interface can change, back to what it was at the start."""
        config = self._defaults
        self.clock.set()
        self.shape.down_bps = self.shape.up_bps = config.bandwidth_bps
        fresh = Settings(config.min_part_size, config.recommended_part_size)
        fresh.latency_s = {"*": config.latency_s} if config.latency_s else {}
        self.settings.__dict__.update(fresh.__dict__)
        self.api.faults.remove()
        self.auth.lifetime_s = TOKEN_LIFETIME_S
        self.store.keep_gone = False

    async def handle(self, request: Request) -> Reply:
        if request.path.startswith("/admin/"):
            return await self.admin.handle(request)
        if self.settings.down:
            raise Reset
        return await self.api.handle(request)

    async def connection(self, stream: trio.SocketStream) -> None:
        connection = Connection(stream, self.shape, self.api.date)
        self.connections.add(connection)
        try:
            await connection.serve(self.handle)
        except Exception:
            log.exception("bug on a connection from %s", connection.peer)
        finally:
            self.connections.discard(connection)

    def reset_connections(self, but: Connection) -> None:
        """Break every connection but one, also in the middle of a request."""
        for connection in self.connections - {but}:
            connection.reset()

    def _create_buckets(self, names: tuple[str, ...]) -> None:
        for name in names:
            if self.store.bucket_by_name(name):
                continue
            try:
                rules.check_bucket_name(name)
            except Refused as refused:
                raise ConfigError(refused.message) from None
            self.store.create_bucket(name, "allPrivate", {})


async def serve(config: Config, *, task_status: trio.TaskStatus[tuple[str, Server]] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled; reports (address, server) when it listens."""
    server = Server(config)
    try:
        try:
            listeners = await trio.open_tcp_listeners(config.port, host=config.host, backlog=1024)
        except OSError as error:
            raise ConfigError(_explain(error, config)) from None
        host, port = listeners[0].socket.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server.api.fallback_url = url
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(trio.serve_listeners, server.connection, listeners))
            task_status.started((url, server))
    finally:
        server.close()


def _explain(error: OSError, config: Config) -> str:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.EADDRINUSE:
        reason = "the port is in use; give another --port, or 0 for any free one"
    return f"cannot listen on {config.host}:{config.port}: {reason}"
