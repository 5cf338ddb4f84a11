"""``make bench``: measure b2fs beside its peers, print the tables, and keep them: ``python -m bench --help``."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from bench import app, cold, cost, foreground, growth, large, warm
from bench.chart import chart
from bench.measure import Session, is_root, session
from bench.report import Table, from_json, markdown, to_json

TABLES: dict[str, Callable[[Session], list[Table]]] = {
    "warm": warm.measure,
    "cold": cold.measure,
    "latency": cold.latencies,
    "cost": cost.measure,
    "large": large.measure,
    "foreground": foreground.measure,
    "growth": growth.measure,
    "app": app.measure,
}
"""In the order in which they are measured and printed. One may give several tables, of keys ``KEY-…``."""
_HERE = Path(__file__).parent
_BEGIN, _END = "<!-- tables -->\n", "<!-- end of tables -->\n"
"""Between them RESULTS.md is written anew."""
_ROUNDS = 5
_QUICK_ROUNDS = 2
_QUICK_SLOW_ROUNDS = 1


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", default="", metavar="WORDS", help=f"these tables: {','.join(TABLES)}")
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        help=f"samples of each cell ({_ROUNDS}; quick {_QUICK_ROUNDS}, of slow rows {_QUICK_SLOW_ROUNDS})",
    )
    parser.add_argument("--out", type=Path, help="where results.json and chart.svg go (bench/, quick: build/bench)")
    parsed = parser.parse_args(given)
    parsed.only = chosen(parsed.only)
    quick = parsed.quick and not parsed.rounds
    parsed.slow_rounds = _QUICK_SLOW_ROUNDS if quick else parsed.rounds or _ROUNDS
    parsed.rounds = _QUICK_ROUNDS if quick else parsed.rounds or _ROUNDS
    parsed.out = parsed.out or (_HERE.parent / "build" / "bench" if parsed.quick else _HERE)
    return parsed


def chosen(words: str) -> list[str]:
    """The tables that were asked for, in their order; all for ''. SystemExit for a word that names none."""
    asked = [word for word in words.split(",") if word]
    if unknown := sorted(set(asked) - set(TABLES)):
        raise SystemExit(f"no such table: {', '.join(unknown)}; there are {', '.join(TABLES)}")
    return [key for key in TABLES if not asked or key in asked]


def main() -> None:
    asked = arguments(sys.argv[1:])
    if not is_root():
        raise SystemExit("bench: run it as root, for a cold kernel cache is made by remounts")
    signal.signal(signal.SIGTERM, _end)
    tables: dict[str, Table] = {}
    for key in asked.only:
        print(f"{key} …", file=sys.stderr, flush=True)
        started_s = time.monotonic()
        with session(asked.quick, asked.rounds, asked.slow_rounds) as running:
            made = TABLES[key](running)
        took_s = time.monotonic() - started_s
        for table in made:
            table.measured = f"{_when()}, {table.count()} samples a cell, {took_s:.0f} s. {machine()}"
            tables[table.key] = table
            print(markdown(table), flush=True)
        keep(asked.out, tables)


def keep(out: Path, tables: dict[str, Table]) -> None:
    """Write results.json, chart.svg, and the tables of RESULTS.md if there is one; what was not measured now stays."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "results.json"
    known = {table.key: table for table in from_json(kept.read_text())} if kept.exists() else {}
    known |= tables
    order = list(TABLES)
    every = sorted(known.values(), key=lambda table: order.index(table.key.partition("-")[0]))
    kept.write_text(to_json(every))
    (out / "chart.svg").write_text(chart(every))
    page = out / "RESULTS.md"
    if page.exists():
        before, _, rest = page.read_text().partition(_BEGIN)
        _, _, after = rest.partition(_END)
        page.write_text(before + _BEGIN + "\n" + "\n".join(map(markdown, every)) + _END + after)


def machine() -> str:
    """The machine, in words."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    parts = [
        f"{os.cpu_count()} cores, {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in ("pyfuse3", "trio", "b2sdk")),
    ]
    if shutil.which("rclone"):
        told = subprocess.run(["rclone", "version"], capture_output=True, text=True).stdout.split()
        parts.append(f"rclone {told[1]}")
    commit = subprocess.run(["git", "-C", _HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if commit.returncode == 0:
        parts.append(f"b2fs at {commit.stdout.strip()}")
    return ", ".join(parts) + "."


def _when() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
