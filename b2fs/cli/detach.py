"""Running a daemon in the background: the parent waits until it serves, or tells why it does not.

Rules
  The fork comes before any thread, event loop or library is there.
  The child writes one JSON line into a pipe: ready, or its error. A pipe that closes without one means
  that the child has died.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from b2fs.errors import B2fsError, Exit
from b2fs.ops.client import DaemonError
from b2fs.secret import redact

# A daemon keeps no directory busy, and answers nobody's terminal.
_WORKING_DIRECTORY = "/"


def detach(work: Callable[[Callable[[], None]], int], log_path: str) -> None:
    """Run `work(ready)` in a daemon of its own; return when it has called `ready`.

    Its stdout and stderr go to `log_path` (0600, appended). Raises `client.DaemonError` with the daemon's
    own message and code if it ends before it is ready.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _run_child(work, write_end, log_path)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        line = pipe.readline()
    if not line:
        raise DaemonError(f"the daemon died before it was ready; its log: {log_path}", Exit.BUG)
    message = json.loads(line)
    if "error" in message:
        raise DaemonError(message["error"], Exit(message["exit"]))


def _run_child(work: Callable[[Callable[[], None]], int], write_end: int, log_path: str) -> NoReturn:
    os.setsid()
    if os.fork():  # the one that is left is no session leader, so it can never get a terminal
        os._exit(0)

    def tell(message: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # the parent has gone; the daemon serves all the same
            os.write(write_end, json.dumps(message).encode() + b"\n")

    code: int = Exit.BUG
    try:
        _redirect(log_path)
        code = work(lambda: tell({"ready": True}))
    except BaseException as error:
        known = isinstance(error, B2fsError)
        code = error.exit_code if isinstance(error, B2fsError) else Exit.BUG
        line = redact(str(error) if known else f"unexpected: {type(error).__name__}: {error}; see {log_path}")
        print("b2fs:" if known else redact(traceback.format_exc()), line, file=sys.stderr)
        tell({"error": line, "exit": int(code)})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(log_path: str) -> None:
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.chdir(_WORKING_DIRECTORY)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    sys.stdout, sys.stderr = (os.fdopen(each, "w", buffering=1, closefd=False) for each in (1, 2))
