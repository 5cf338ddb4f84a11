"""One picture of many rows: what each peer takes as a multiple of what b2fs takes, on a logarithmic axis. SVG, no libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from bench.report import Row, Table, show, show_times

_COLOURS = {
    "plain": "#8c8c8c",
    "C": "#4c78a8",
    "pyfuse3": "#54a24b",
    "rclone": "#e45756",
    "b2fs": "#222222",
}
_LEFT, _RIGHT, _WIDTH = 300, 90, 900
_LINE = 22
_HEAD = 70


def chart(tables: Sequence[Table]) -> str:
    """An SVG document. Rows without both b2fs and another peer are left out."""
    groups = [(table, [row for row in table.rows if _others(table, row)]) for table in tables]
    groups = [(table, rows) for table, rows in groups if rows]
    values = [row.times(peer, "b2fs") for table, rows in groups for row in rows for peer in _others(table, row)]
    low = math.floor(min((math.log10(value) for value in values), default=0))
    high = math.ceil(max((math.log10(value) for value in values), default=1))
    scale = (_WIDTH - _LEFT - _RIGHT) / max(1, high - low)
    height = _HEAD + sum((len(rows) + 2) * _LINE for _, rows in groups)

    def x(value: float) -> float:
        return round(_LEFT + (math.log10(value) - low) * scale, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_WIDTH / 2}" y="18" text-anchor="middle" font-weight="bold">'
        "time, or requests and bytes, as a multiple of what b2fs takes (right: b2fs takes less)</text>",
    ]
    shown = {peer for table, rows in groups for row in rows for peer in _others(table, row)}
    for number, (peer, colour) in enumerate((p, c) for p, c in _COLOURS.items() if p in shown):
        at = _LEFT + number * 110
        parts.append(f'<circle cx="{at}" cy="36" r="5" fill="{colour}"/><text x="{at + 10}" y="40">{peer}</text>')
    for power in range(low, high + 1):
        axis = x(10.0**power)
        style = 'stroke="#222222"' if power == 0 else 'stroke="#dddddd"'
        parts.append(f'<line x1="{axis}" y1="{_HEAD - 6}" x2="{axis}" y2="{height - 8}" {style}/>')
        parts.append(f'<text x="{axis}" y="{_HEAD - 10}" text-anchor="middle" fill="#666666">{_power(power)} ×</text>')
    y = _HEAD + _LINE
    for table, rows in groups:
        parts.append(f'<text x="8" y="{y}" font-weight="bold">{escape(table.title)}</text>')
        y += _LINE
        for row in rows:
            parts.append(f'<text x="20" y="{y}">{escape(row.name)}</text>')
            for peer in _others(table, row):
                times = row.times(peer, "b2fs")
                told = f"{row.name}: {peer} takes {show_times(times)} what b2fs takes"
                parts.append(
                    f'<circle cx="{x(times)}" cy="{y - 4}" r="5" fill="{_COLOURS[peer]}" fill-opacity="0.85">'
                    f"<title>{escape(told)}</title></circle>"
                )
            value = f"{show(row.median('b2fs'))} {row.unit}"
            parts.append(f'<text x="{_WIDTH - 8}" y="{y}" text-anchor="end" fill="#666666">{escape(value)}</text>')
            y += _LINE
        y += _LINE
    return "\n".join([*parts, "</svg>"]) + "\n"


def _others(table: Table, row: Row) -> list[str]:
    """The peers that can be shown beside b2fs in a row."""
    known = [peer for peer in table.peers if peer in _COLOURS and peer != "b2fs"]
    return [peer for peer in known if (times := row.times(peer, "b2fs")) > 0 and math.isfinite(times)]


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"1/{10**-power:,}"
