"""`b2fs flush [PATH]`."""

from __future__ import annotations

import sys

import click

from b2fs.cli import render
from b2fs.ops import client


@click.command()
@click.argument("path", required=False)
def command(path: str | None) -> None:
    """Wait until everything written so far is in B2.

    PATH is a file or a directory in a mount, or a mountpoint. When this ends with 0, the loss of this
    machine loses nothing of it. It says nothing unless it shows progress on a terminal.
    """
    target = client.find(path)
    with render.uploading("flush") as progress:
        answer = client.call(target.mount, "flush", {"path": target.path or None}, progress)
    if sys.stdout.isatty():
        click.echo(f"{render.count(int(answer['flushed']), 'file')} uploaded; all of it is in B2")
