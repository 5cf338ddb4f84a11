"""Main program of the transfer process: ``python -P -m b2fs.adapters.b2.worker FD``.

Rules
  Everything it has to know comes over the socket FD, the secret too. It keeps nothing that is precious
  and may be killed at any time.
  It ends when the socket closes, that is, when the daemon closes it or dies. SIGINT, SIGTERM and SIGHUP,
  which a terminal or an init system sends to the whole group, are for the daemon: it may have to drain.
  Each kind of call has its own threads, so that fetches never wait behind uploads, nor a listing behind both.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from b2fs.adapters.b2 import wire
from b2fs.adapters.b2.client import B2Client
from b2fs.adapters.b2.faults import translate
from b2fs.adapters.b2.settings import Settings
from b2fs.core.bucket import Requests
from b2fs.errors import B2fsError

_READ = 65536
_UPLOAD_NICE = 10
"""How far uploads stand behind programs, the daemon, and fetches, which somebody waits for."""


class Worker:
    """Serves one socket with one client."""

    def __init__(self, sock: socket.socket, settings: Settings) -> None:
        self._sock = sock
        self._settings = settings
        self._client = B2Client(settings)
        self._send_lock = threading.Lock()
        others = ThreadPoolExecutor(settings.list_lanes, "list")
        self._lanes = {
            wire.Fetch: ThreadPoolExecutor(settings.fetch_lanes, "fetch"),
            # nobody waits for an upload, and each thread has a priority of its own (setpriority(2), Linux)
            wire.Upload: ThreadPoolExecutor(settings.upload_lanes, "upload", os.nice, (_UPLOAD_NICE,)),
            wire.Copy: ThreadPoolExecutor(settings.copy_lanes, "copy"),
            wire.Connect: others,
            wire.ListPage: others,
            wire.Head: others,
            wire.Hide: others,
        }

    def serve(self, bodies: Iterable[bytes]) -> None:
        """Hand every `Ask` to its lane until the stream ends. Answers are sent by the lanes."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        decoder = msgspec.msgpack.Decoder(wire.Ask)
        for body in bodies:
            ask = decoder.decode(body)
            self._lanes[type(ask.request)].submit(self._run, ask)

    def _run(self, ask: wire.Ask) -> None:
        answer: wire.Answer
        try:
            answer = perform(self._client, ask.request, lambda: self._tell(ask.id, wire.Moving()))
        except B2fsError as exc:
            answer = wire.Failed.of(exc)
        except Exception as exc:  # a bug: say so, but keep serving
            traceback.print_exc()
            answer = wire.Failed.of(translate(exc))
        self._tell(ask.id, answer)

    def _tell(self, id: int, answer: wire.Answer) -> None:
        requests: Requests = self._client.requests()
        data = wire.frame(wire.Tell(id, answer, requests))
        with self._send_lock:
            try:
                self._sock.sendall(data)
            except OSError:
                os._exit(0)  # the daemon is gone

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(self._settings.heartbeat_s):
            self._tell(0, wire.Alive())


def perform(client: B2Client, request: wire.Request, progress: Callable[[], None]) -> wire.Done:
    """Make the call that `request` asks for. Raises what the client raises."""
    match request:
        case wire.Fetch():
            client.fetch(request.file_id, request.path, request.offset, request.length, request.sha1)
            return wire.Done()
        case wire.Upload(key, path, size, sha1, info, content_type, resume, base):
            return wire.Done(version=client.upload(key, path, size, sha1, info, content_type, resume, base, progress))
        case wire.Copy(file_id, key, size, info, content_type):
            return wire.Done(version=client.copy(file_id, key, size, info, content_type, progress))
        case wire.ListPage(prefix, start, delimiter, limit):
            return wire.Done(page=client.list_page(prefix, start, delimiter, limit))
        case wire.Head(key):
            return wire.Done(version=client.head(key))
        case wire.Hide(key):
            return wire.Done(hidden_ms=client.hide(key))
        case wire.Connect():
            return wire.Done(identity=client.connect())


def _bodies(sock: socket.socket) -> Iterator[bytes]:
    """The frames' bodies until the other end closes."""
    deframer = wire.Deframer()
    while data := sock.recv(_READ):
        yield from deframer.feed(data)


def main(fd: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    warnings.filterwarnings("ignore", module="b2sdk")  # it would print what B2 said, unredacted
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    try:
        bodies = _bodies(sock)
        settings = next(bodies, None)
        if settings is not None:
            Worker(sock, msgspec.msgpack.decode(settings, type=Settings)).serve(bodies)
    except ConnectionError:
        pass  # the daemon died: same as a close
    # Not `sys.exit`: that would wait for threads that wait for B2.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
