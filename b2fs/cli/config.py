"""`b2fs config show` and `b2fs config list`."""

from __future__ import annotations

import json
from typing import Any

import click

from b2fs.cli import options, render
from b2fs.config import SETTINGS, Config
from b2fs.core.policy import Patterns
from b2fs.secret import Secret


@click.group()
def command() -> None:
    """The settings in force, and where they come from."""


@command.command("show")
@options.as_json
@options.settings
def show(as_json: bool, **flags: Any) -> None:
    """Show what is in force, and where each value came from. Secrets are masked.

    Takes the same flags as `b2fs mount`, so it tells what that would do.
    """
    config = options.read(flags)
    if as_json:
        click.echo(json.dumps({name: _entry(config, name) for name in SETTINGS}))
        return
    rows = [
        (name, setting.show(getattr(config, name)) or "(not set)", config.sources[name])
        for name, setting in SETTINGS.items()
    ]
    render.table(("setting", "value", "from"), rows)


@command.command("list")
def list_settings() -> None:
    """List every setting with its names, default and meaning, as a Markdown table."""
    click.echo("| setting (TOML) | variables | flag of `mount` | default | meaning |")
    click.echo("|---|---|---|---|---|")
    for each in SETTINGS.values():
        variables = " ".join(f"`{name}`" for name in (each.app_variable, each.variable) if name)
        flag = f"`{each.flag}`" if each.flag else "–"
        click.echo(f"| `{each.name}` | {variables} | {flag} | {each.shown_default or '–'} | {each.help} |")


def _entry(config: Config, name: str) -> dict[str, object]:
    value = getattr(config, name)
    if isinstance(value, Secret):
        value = repr(value)
    elif isinstance(value, Patterns):
        value = list(value.globs)
    return {"value": value, "from": config.sources[name]}
