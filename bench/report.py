"""Rows, tables and what is said of them: medians, ratios, whether a row reaches what it should. No measuring here.

Rules
  A ratio is always of times: 2 means twice as slow, also where the row counts bytes per second.
  A peer without samples in a row is a dash, and never counts as reached.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Reach:
    """What a row should reach: `peer` takes at most `times` the time of `against`, or, where that is '', `times` units."""

    times: float
    against: str = ""
    peer: str = "b2fs"


@dataclass
class Row:
    name: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    """Peer to what was measured, in the order of the rounds."""
    more_is_better: bool = False
    reach: tuple[Reach, ...] = ()
    note: str = ""
    """Shown below the table."""

    def median(self, peer: str) -> float:
        """NaN for a peer that was not measured."""
        values = self.samples.get(peer)
        return median(values) if values else math.nan

    def times(self, peer: str, against: str) -> float:
        """How many times as long `peer` takes as `against`; NaN if one is missing or nothing."""
        mine, other = self.median(peer), self.median(against)
        if self.more_is_better:
            mine, other = other, mine
        return mine / other if other else math.nan

    def is_reached(self, reach: Reach) -> bool | None:
        """None: it was not measured."""
        if reach.against:
            found, limit = self.times(reach.peer, reach.against), reach.times
        elif self.more_is_better:
            found, limit = -self.median(reach.peer), -reach.times
        else:
            found, limit = self.median(reach.peer), reach.times
        return None if math.isnan(found) else found <= limit


@dataclass
class Table:
    key: str
    """The word that chooses it on the command line."""
    title: str
    peers: list[str]
    rows: list[Row] = field(default_factory=list)
    intro: str = ""
    ratios: tuple[tuple[str, str], ...] = (("b2fs", "pyfuse3"), ("rclone", "b2fs"))
    """Pairs (a, b): a column says how many times as long a takes as b."""
    notes: list[str] = field(default_factory=list)
    """Peers that are absent and why, and what else a reader has to know."""
    measured: str = ""
    """When and on what."""

    def count(self) -> int:
        """The least number of samples of a cell."""
        return min((len(values) for row in self.rows for values in row.samples.values()), default=0)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Table:
        rows = [
            Row(
                row["name"], row["unit"], row["samples"], row["more_is_better"],
                tuple(Reach(**each) for each in row["reach"]), row["note"],
            )
            for row in found["rows"]
        ]  # fmt: skip
        ratios = tuple((first, second) for first, second in found["ratios"])
        keys = ("key", "title", "peers", "intro", "notes", "measured")
        return cls(**{key: found[key] for key in keys}, rows=rows, ratios=ratios)

    def to_json(self) -> dict[str, Any]:
        found = asdict(self)
        for each, row in zip(found["rows"], self.rows, strict=True):
            each["median"] = {peer: row.median(peer) for peer in row.samples if row.samples[peer]}
            each["reached"] = [row.is_reached(reach) for reach in row.reach]
        return found


def to_json(tables: list[Table]) -> str:
    return json.dumps({"tables": [table.to_json() for table in tables]}, ensure_ascii=False, indent=1) + "\n"


def from_json(text: str) -> list[Table]:
    return [Table.from_json(each) for each in json.loads(text)["tables"]]


# ---------------------------------------------------------------- as text


def markdown(table: Table) -> str:
    """A heading, the table, and its notes."""
    peers = [peer for peer in table.peers if any(row.samples.get(peer) for row in table.rows)]
    ratios = [(first, second) for first, second in table.ratios if first in peers and second in peers]
    has_reach = any(row.reach for row in table.rows)
    head = ["", "", *peers, *(f"{first} / {second}" for first, second in ratios)]
    cells = [head + (["reach"] if has_reach else [])]
    for row in table.rows:
        line = [row.name, row.unit, *(show(row.median(peer)) for peer in peers)]
        line += [show_times(row.times(first, second)) for first, second in ratios]
        cells.append(line + ([verdicts(row)] if has_reach else []))
    lines = [f"### {table.title}"]
    if table.measured:
        lines += ["", table.measured]
    if table.intro:
        lines += ["", table.intro]
    lines += ["", *_aligned(cells)]
    notes = [f"{row.name}: {row.note}" for row in table.rows if row.note] + table.notes
    lines += ["", *(f"* {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def verdicts(row: Row) -> str:
    """``✓ ≤ 1.5 × pyfuse3`` for what is reached, ✗ with what it is instead."""
    said = []
    for reach in row.reach:
        limit = f"{show_factor(reach.times)} × {reach.against}" if reach.against else f"{show(reach.times)} {row.unit}"
        limit = ("≥ " if row.more_is_better and not reach.against else "≤ ") + limit
        reached = row.is_reached(reach)
        mark = "–" if reached is None else "✓" if reached else "✗"
        said.append(f"{mark} {limit}")
    return ", ".join(said)


def show(value: float) -> str:
    """Three digits, as many as the noise leaves."""
    if math.isnan(value):
        return "–"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".rstrip("0").rstrip(".") or "0"


def show_times(value: float) -> str:
    return "–" if math.isnan(value) else f"{show(float(f'{value:.2g}'))} ×"


def show_factor(value: float) -> str:
    """``1.5``, and ``1/4`` for what is to be faster."""
    return f"1/{show(1 / value)}" if value < 1 else show(value)


def _aligned(cells: list[list[str]]) -> list[str]:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for number, line in enumerate(cells):
        first, *rest = (
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        lines.append("| " + " | ".join([first, *rest]) + " |")
        if number == 0:
            rule = ["-" * width if column < 2 else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
            lines.append("| " + " | ".join(rule) + " |")
    return lines
