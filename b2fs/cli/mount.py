"""`b2fs mount DIR`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import click

from b2fs.cli import options
from b2fs.config import Config
from b2fs.errors import Exit, StateError


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--daemon", "background", is_flag=True, help="Return once it serves; the log is STATE_DIR/b2fs.log.")
@options.settings
def command(directory: str, background: bool, **flags: Any) -> int:
    """Mount the bucket at DIR, an empty directory.

    Stays in the foreground and prints `ready: DIR` once it serves. SIGTERM, Ctrl-C, `b2fs umount` or an
    outside umount end it: it uploads what is left, and exits with 0 when everything is in B2.
    """
    config = options.read(flags)
    if not config.enabled:
        click.echo(f"b2fs is switched off ({config.sources['enabled']} says so): {directory} is left as it is")
        return Exit.OK
    config.require_account()
    from b2fs.frontends import mountpoint

    path = mountpoint.prepare(directory, config.allow_other)
    if background:
        from b2fs.cli.detach import detach

        detach(lambda ready: _serve(config, path, ready), _log_path(config))
        _say_ready(directory)
        return Exit.OK
    return _serve(config, path, lambda: _say_ready(directory))


def _serve(config: Config, path: str, ready: Callable[[], None]) -> int:
    from b2fs import daemon

    return daemon.run(config, path, ready=ready)


def _say_ready(directory: str) -> None:
    """Scripts wait for this line; where nobody listens any more, the mount goes on."""
    try:
        print(f"ready: {directory}", flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # else the flush at exit fails again


def _log_path(config: Config) -> str:
    try:
        os.makedirs(config.state_dir, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"state directory {config.state_dir}: {error.strerror}; give another with --state-dir"
        ) from None
    return os.path.join(config.state_dir, "b2fs.log")
