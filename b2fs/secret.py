"""A value that must never be shown, and the filter for texts that other libraries wrote.

Rules
  The value comes out through `Secret.reveal` alone; whoever calls it hands the value straight on.
  Each `Secret` is remembered for `redact`, which every log line and error line passes through.
"""

from __future__ import annotations

# A shorter secret would blank out ordinary words of a log line.
_REDACT_FROM_LENGTH = 8
_known: set[str] = set()


class Secret:
    """A value that shows itself as ``***`` everywhere, except to `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        if len(value) >= _REDACT_FROM_LENGTH:
            _known.add(value)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "***" if self._value else ""

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)


def redact(text: str) -> str:
    """`text` without any secret that this process has read."""
    for secret in _known:
        text = text.replace(secret, "***")
    return text
