"""The app under gunicorn, as its Dockerfile runs it: one sync worker, no threads, --timeout 120, --preload.

Rules
  The listening socket is made here and handed over: the port is free, and a request sent early waits in its backlog.
  The server is ended by the pid of its master, and waited for; no other process is touched.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
"""gunicorn gives its worker 30 s by itself; a request that hangs in the file system is then killed with the master."""

TEMPORARY = ".tmp"
"""Directory for temporary files inside the data directory; leave it out when trees are compared."""

_ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def serve(data_dir: str | os.PathLike[str], *, tmp_inside: bool = True, command: Sequence[str] = ()) -> Iterator[str]:
    """Run the app on `data_dir`; gives its base URL once /health has answered.

    `tmp_inside` puts TMPDIR into the data directory, so that /cut-audio can rename from there into the site; without
    it, that flow fails with EXDEV wherever the data directory is a mount. `command` is put before the server's own
    (a tracer that keeps the pid, say). RuntimeError, with the server's log, when it does not start.
    """
    data = Path(data_dir).absolute()
    environment = os.environ | {"DATA_DIR": str(data), "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
    environment.pop("GUNICORN_CMD_ARGS", None)
    if tmp_inside:
        (data / TEMPORARY).mkdir(exist_ok=True)
        environment["TMPDIR"] = str(data / TEMPORARY)
    with tempfile.TemporaryFile() as log:
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
            port = listening.getsockname()[1]
            server = subprocess.Popen(
                [*command, *gunicorn(listening.fileno())],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[listening.fileno()],
            )
        try:
            try:
                wait_for_health(port)
            except (OSError, http.client.HTTPException) as error:
                log.seek(0)
                raise RuntimeError(f"the server did not start: {error!r}\n{log.read().decode()[-4000:]}") from error
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(server)


def gunicorn(listening_fd: int) -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "tests.app.dictafan:app"),
        *("--bind", f"fd://{listening_fd}", "--workers", "1", "--worker-class", "sync", "--timeout", "120"),
        *("--preload", "--worker-tmp-dir", "/dev/shm", "--no-control-socket", "--log-level", "warning"),
    ]


def wait_for_health(port: int) -> None:
    """One request: it waits in the backlog until the worker is there, and breaks when the server dies."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        if (status := connection.getresponse().status) != 200:
            raise http.client.HTTPException(f"/health: {status}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the master; it ends its worker. A master that does not is killed, and its orphan ends itself."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
