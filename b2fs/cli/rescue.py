"""`b2fs rescue STATE_DIR`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import click

from b2fs.cli import options, render
from b2fs.errors import Exit, NotDrained


@click.command()
@click.argument("state_dir", metavar="STATE_DIR")
@click.option(
    "--power-lost", is_flag=True, help="The machine lost power: content that no fsync put on its disk is set aside."
)
@options.some("key_id", "key_file", "drain_timeout", "uploads", "log_level", "log_format")
def command(state_dir: str, power_lost: bool, **flags: Any) -> int:
    """Upload what the state directory of a mount that is gone still holds; from any machine, without mounting.

    Which bucket it is stands in the state directory; only the key comes from the settings. Ends with 0 when
    everything is in B2, with 8 when something is not: then STATE_DIR/not-in-b2.json says what. Ctrl-C and SIGTERM
    end it in order, and it can be started again.
    """
    config = replace(options.read(flags), state_dir=os.path.abspath(state_dir))
    from b2fs import rescue

    with render.uploading("rescue") as progress:
        outcome = rescue.run(config, progress, power_lost=power_lost)
    if outcome.left:
        count = render.count(outcome.left, "change")
        raise NotDrained(
            f"{count} not in B2; {outcome.manifest or 'the log'} says what, and another rescue or mount goes on with it"
        )
    click.echo(f"{render.count(outcome.uploads, 'object')} uploaded; all that {state_dir} held is in {outcome.bucket}")
    return Exit.OK
