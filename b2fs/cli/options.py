"""The settings as options of a command, and the arguments that several commands share.

Rules
  The options are made from the table in `b2fs.config`: a setting that is added there is a flag here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from b2fs.config import SETTINGS, Config, load

_Function = TypeVar("_Function", bound=Callable[..., Any])


def settings(function: _Function) -> _Function:
    """Give a command ``--config`` and a flag for each setting; it receives them as keywords for `read`."""
    return some(*SETTINGS)(function)


def some(*chosen: str) -> Callable[[_Function], _Function]:
    """The same with the flags of some settings; the others still come from the environment and the file."""

    def decorate(function: _Function) -> _Function:
        for setting in (SETTINGS[name] for name in reversed(chosen)):
            if setting.flag:
                default = f" [{setting.shown_default}]" if setting.shown_default else ""
                option = click.option(setting.flag, setting.name, metavar="VALUE", help=setting.help + default)
                function = option(function)
        return click.option(
            "--config", "config_file", metavar="FILE", help="TOML file with settings (also: B2FS_CONFIG)."
        )(function)

    return decorate


def read(flags: dict[str, Any]) -> Config:
    """The configuration for these keywords; its warnings go to stderr. Raises `ConfigError`."""
    config_file = flags.pop("config_file")
    config = load(flags, config_file=config_file)
    for warning in config.warnings:
        click.echo(f"b2fs: warning: {warning}", err=True)
    return config


as_json = click.option("--json", "as_json", is_flag=True, help="Machine-readable, on one line.")
