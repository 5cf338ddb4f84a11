"""`b2fs status [PATH]`."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from b2fs.cli import options, render
from b2fs.ops import client
from b2fs.units import show_duration, show_size

# More lines than this are for `--json`.
_SHOWN = 10


@click.command()
@click.argument("path", required=False)
@options.as_json
def command(path: str | None, as_json: bool) -> None:
    """Show what a mount is doing, or where the bytes of one file are.

    PATH is a mountpoint, or a file or directory in a mount; it may be left out where there is one mount only.
    """
    target = client.find(path)
    answer = client.call(target.mount, "status", {"path": target.path} if target.path else {})
    if as_json:
        click.echo(json.dumps(answer))
    elif target.path:
        render.facts(_of_file(answer))
    else:
        render.facts(_of_mount(answer))


def _of_mount(answer: dict[str, Any]) -> list[tuple[str, str]]:
    """The answer as lines; what is wrong comes first."""
    dirty, listing = answer["dirty"], answer["listing"]
    online = "yes" if answer["online"] else f"no: {answer['last_error'] or 'not reached yet'}"
    rows = [
        ("mountpoint", answer["mountpoint"]),
        ("state", answer["state"]),
        ("B2 reachable", online),
        ("not in B2 yet", _dirty(dirty)),
        ("bucket", f"{answer['bucket']}/{answer['prefix']} at {answer['endpoint']}"),
        ("objects", f"{listing['objects']}{_listing_note(listing)}"),
        ("state directory", answer["state_dir"]),
        ("daemon", f"pid {answer['pid']}, up {show_duration(max(0, time.time() - answer['started_s']))},"
                   f" b2fs {answer['version']}"),
    ]  # fmt: skip
    if answer["pins"]["left_out"]:
        rows.append(("not pinned", render.left_out(answer["pins"])))
    for title, found in (("problem", answer["problems"]), ("ignored", answer["ignored"])):
        rows += [(title, f"{each['key']}: {each['why']}") for each in found[:_SHOWN]]
        if len(found) > _SHOWN:
            rows.append((title, f"… and {len(found) - _SHOWN} more (--json shows all)"))
    return rows


def _of_file(answer: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("path", answer["path"]), ("kind", answer["kind"]), ("state", answer["state"])]
    if answer.get("size") is not None:
        rows.append(("size", f"{answer['size']} bytes"))
    named = (("generation", "generation"), ("file id", "file_id"), ("SHA-1", "sha1"))
    return rows + [(title, str(answer[name])) for title, name in named if answer.get(name)]


def _dirty(dirty: dict[str, Any]) -> str:
    if not dirty["files"]:
        return "nothing"
    age = f", oldest {show_duration(dirty['oldest_age_s'])} old" if dirty.get("oldest_age_s") else ""
    return f"{render.count(dirty['files'], 'file')}, {show_size(dirty['bytes'])}{age}"


def _listing_note(listing: dict[str, Any]) -> str:
    if listing["running"]:
        return " so far, listing goes on"
    return "" if listing["complete"] else ", the listing is not complete"
