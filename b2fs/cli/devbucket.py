"""``b2fs devbucket``: run the embedded bucket."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import click
import trio

from b2fs.devbucket import rules
from b2fs.devbucket.server import DEFAULT_KEY, DEFAULT_KEY_ID, Config, serve
from b2fs.errors import B2fsError


@click.command("devbucket")
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where it keeps everything; made when missing, mode 0700.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default=True, help="0: any free port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--key-id",
    envvar="B2_APPLICATION_KEY_ID",
    default=DEFAULT_KEY_ID,
    show_default=True,
    help="Key ID of the root key [env B2_APPLICATION_KEY_ID].",
)
@click.option(
    "--key",
    envvar="B2_APPLICATION_KEY",
    default=DEFAULT_KEY,
    help="The root key; better given as B2_APPLICATION_KEY, because others can read a command line.  [default: dev]",
)
@click.option(
    "--bucket",
    "buckets",
    multiple=True,
    metavar="NAME",
    help="Create this bucket at the start if it is missing; repeatable.",
)
@click.option(
    "--latency",
    "latency_s",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait before each answer.",
)
@click.option(
    "--bandwidth",
    "bandwidth_bps",
    type=click.FloatRange(min=1),
    metavar="BYTES_PER_S",
    help="Limit for each connection and direction.",
)
@click.option(
    "--min-part-size",
    type=click.IntRange(min=1),
    default=rules.MIN_PART_SIZE,
    show_default=True,
    help="Smallest part of a large file, in bytes.",
)
@click.option(
    "--recommended-part-size",
    type=click.IntRange(min=1),
    default=rules.RECOMMENDED_PART_SIZE,
    show_default=True,
    help="Part size that clients are told to use.",
)
@click.option("--quiet", is_flag=True, help="Log nothing but errors.")
def command(quiet: bool, **options: object) -> None:
    """A Backblaze B2 bucket on this machine: real HTTP, files on disk.

    Prints one line ``ready: URL`` when it listens and serves until SIGTERM or SIGINT.
    """
    logging.basicConfig(level=logging.ERROR if quiet else logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    error: BaseException | None = None
    try:
        trio.run(_run, Config(**options))  # type: ignore[arg-type]  # click checked the types
    except* B2fsError as group:  # the nursery's wrapping of the one error that `serve` raises
        error = group.exceptions[0]
    if error is not None:
        raise error


async def _run(config: Config) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            url, _server = await nursery.start(serve, config)
            click.echo(f"ready: {url}")
            async for _ in signals:
                nursery.cancel_scope.cancel()
                break
