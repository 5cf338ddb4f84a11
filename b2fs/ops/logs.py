"""The daemon's log: lines on stderr, as text or JSON. No line shows a secret.

Rule: one event a line; WARNING or above only when a person should look.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import sys

from b2fs.secret import redact


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return redact(json.dumps(event, ensure_ascii=False))


def set_up(level: str, form: str) -> None:
    """Log to stderr from now on; `level` and `form` as in the settings ``log_level`` and ``log_format``.

    A crash of the interpreter itself is written there too, as a list of functions and lines, whatever `form`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    faulthandler.enable()
