"""Which paths a setting is about: globs over paths below the mount. Pure.

Rules
  ``*`` and ``?`` stay within one part of a path, ``**`` matches any number of parts. A pattern without '/' is about
  the last part, wherever it is: ``*.json`` is every JSON file, ``users/**`` all below ``users``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

import msgspec

_PIECES = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_MEANING = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


class Patterns(msgspec.Struct, frozen=True):
    """Globs, of which one must match. ``str`` gives them back, separated by commas."""

    globs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ",".join(self.globs)

    def match(self, path: str) -> bool:
        return any(_compiled(glob).fullmatch(path) for glob in self.globs)


def parse(texts: Iterable[str]) -> Patterns:
    """ValueError if one is empty or absolute."""
    globs = tuple(text.strip() for text in texts)
    for glob in globs:
        if not glob or glob.startswith("/"):
            raise ValueError(f"the pattern {glob!r} is {'empty' if not glob else 'absolute'}")
    return Patterns(globs)


@functools.cache  # they are few, and come from the settings
def _compiled(glob: str) -> re.Pattern[str]:
    body = "".join(_MEANING.get(piece) or re.escape(piece) for piece in _PIECES.findall(glob))
    return re.compile(body if "/" in glob else "(?:.*/)?" + body, re.DOTALL)
