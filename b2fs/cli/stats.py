"""`b2fs stats [PATH]`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from b2fs.cli import options, render
from b2fs.ops import client
from b2fs.units import show_duration, show_size

WATCH_S = 2.0


@click.command()
@click.argument("path", required=False)
@options.as_json
@click.option("--watch", is_flag=True, help=f"Again every {WATCH_S:.0f} seconds, until Ctrl-C.")
def command(path: str | None, as_json: bool, watch: bool) -> None:
    """Show the counters of a mount since its daemon started."""
    mount = client.find(path).mount
    if watch and not as_json and sys.stdout.isatty():
        _watch_screen(mount.mountpoint, lambda: client.call(mount, "stats"))
        return
    while True:
        answer = client.call(mount, "stats")
        if as_json:
            click.echo(json.dumps(answer))
        else:
            render.facts(_rows(answer))
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(WATCH_S)


def _watch_screen(mountpoint: str, ask: Any) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            live.update(Text(f"{mountpoint}\n{render.facts_text(_rows(ask()))}"), refresh=True)
            time.sleep(WATCH_S)


def _rows(answer: dict[str, Any]) -> list[tuple[str, str]]:
    cache, dirty, queue = answer["cache"], answer["dirty"], answer["queue"]
    transfers, requests, names = answer["transfers"], answer["requests"], answer["names"]
    asked = cache["hits"] + cache["misses"]
    rate = f" ({100 * cache['hits'] / asked:.1f}% hits)" if asked else ""
    classes = ", ".join(f"{name} {number}" for name, number in sorted(requests["classes"].items())) or "none"
    rows = [
        ("cache reads", f"{cache['hits']} hits, {cache['misses']} misses{rate}"),
        ("cache", f"{show_size(cache['bytes'])} of {show_size(cache['limit'])},"
                  f" {render.count(cache['objects'], 'object')}, {cache['evictions']} evicted"),
        ("prefetched", _prefetched(answer["prefetch"])),
        ("pinned", _pinned(answer["pins"])),
        ("not in B2 yet", f"{render.count(dirty['files'], 'file')}, {show_size(dirty['bytes'])}"
                          f" of {show_size(dirty['limit'])}{_age(dirty)}{_full(dirty)}"),
        ("queue", f"{queue['waiting']} waiting, {queue['in_flight']} in flight, {queue['failed']} failed"),
        ("uploads", f"{transfers['uploads']}, {show_size(transfers['uploaded_bytes'])}"),
        ("fetches", f"{transfers['fetches']}, {show_size(transfers['fetched_bytes'])}"),
        ("requests by class", classes),
        ("request bodies", f"{show_size(requests['sent'])} sent, {show_size(requests['received'])} received"),
        ("copied in B2", show_size(requests["copied"])),
        ("names", f"{names['inodes']} inodes, {names['directories_loaded']} directories loaded"),
        ("event loop", render.count(answer["loop"]["tasks"], "task")),
    ]  # fmt: skip
    by_number = sorted(requests["calls"].items(), key=lambda item: (-item[1], item[0]))
    return rows + [(f"  {call}", str(number)) for call, number in by_number]


def _prefetched(prefetch: dict[str, Any]) -> str:
    return (
        f"{prefetch['requests']}, {prefetch['useful']} of them read, {prefetch['wasted']} wasted"
        f" ({show_size(prefetch['wasted_bytes'])}), {prefetch['unread']} not read yet"
        f"{'' if prefetch['on'] else '; off where too few were read'}"
    )


def _pinned(pins: dict[str, Any]) -> str:
    left_out = f"; {render.left_out(pins)}" if pins["left_out"] else ""
    room = f"{show_size(pins['bytes'])} of {show_size(pins['limit'])}"
    return f"{render.count(pins['files'], 'file')}, {room}, {show_size(pins['here_bytes'])} of it here{left_out}"


def _full(dirty: dict[str, Any]) -> str:
    left_s = dirty.get("time_to_full_s")
    return "" if left_s is None else f", full in {show_duration(left_s)} at this rate" if left_s else ", full"


def _age(dirty: dict[str, Any]) -> str:
    return f", oldest {show_duration(dirty['oldest_age_s'])} old" if dirty.get("oldest_age_s") else ""
