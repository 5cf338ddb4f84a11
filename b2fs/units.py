"""Quantities as people write them: sizes, durations, file modes; and back again for display.

Rules
  A parser takes a string and returns the value or raises ``ValueError``; it never guesses: `10G` is
  refused because half the tools read it as 10⁹ and the other half as 2³⁰.
  What `show_x` prints, `parse_x` reads; large values are rounded to one decimal for the eye.

Units: bytes, seconds.
"""

from __future__ import annotations

import re

_SIZE: dict[str, int] = {
    "": 1,
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_DURATION: dict[str, float] = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

# At most 15 digits: more would lose precision as a float, and nobody means it.
_QUANTITY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)")


def parse_size(text: str) -> int:
    """Bytes: `4096`, `512MiB`, `10GiB`, `1GB`, `1.5GiB`."""
    number, unit = _quantity(text)
    if unit.lower() not in _SIZE:
        raise ValueError(f"unit {unit!r} is unknown")
    size = round(float(number) * _SIZE[unit.lower()]) if "." in number else int(number) * _SIZE[unit.lower()]
    if size >= 2**63:
        raise ValueError("it is larger than any disk")
    return size


def parse_duration(text: str) -> float:
    """Seconds: `500ms`, `2s`, `5m`, `1h`, `1d`; a bare number is seconds."""
    number, unit = _quantity(text)
    if unit not in _DURATION:
        raise ValueError(f"unit {unit!r} is unknown")
    return float(number) * _DURATION[unit]


def parse_mode(text: str) -> int:
    """Permission bits in octal, as chmod(1) takes them: `644`, `0644`, `0o644`."""
    if not re.fullmatch(r"(0o?)?[0-7]{3}", text):
        raise ValueError("it is not three octal digits")
    return int(text.removeprefix("0o"), 8)


def show_size(size: int) -> str:
    """`10GiB` where that is exact, else rounded to one decimal: `1.4MiB`, `812B`."""
    value, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"


def show_duration(seconds: float) -> str:
    """The largest unit that keeps it a small number: `500ms`, `2s`, `5m`, `1h`, `2d`."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    for unit in ("d", "h", "m"):
        if seconds >= _DURATION[unit]:
            return f"{seconds / _DURATION[unit]:.1f}".removesuffix(".0") + unit
    return f"{seconds:.1f}".removesuffix(".0") + "s"


def show_mode(mode: int) -> str:
    return f"{mode:04o}"


def _quantity(text: str) -> tuple[str, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError("it is not a number with a unit")
    return match[1], match[2]
