"""The group of all commands. Each is a module of its own, imported when it is called.

Rules
  `b2fs status` must start in the time of a shell command, so nothing here imports a command, and a
  command imports the heavy libraries (b2sdk, pyfuse3, trio, rich) inside the function that needs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import click

# Name → (module in b2fs.cli, what `b2fs --help` says), in the order in which help shows them.
COMMANDS = {
    "mount": ("mount", "Mount the bucket at a directory."),
    "umount": ("umount", "Upload what is left, then unmount."),
    "status": ("status", "What a mount, or one file, is doing."),
    "stats": ("stats", "Counters of a mount: cache, uploads, requests."),
    "flush": ("flush", "Wait until everything written so far is in B2."),
    "fsck": ("fsck", "Check a state directory, and the bucket with it; changes nothing."),
    "rescue": ("rescue", "Upload what an orphaned state directory still holds."),
    "config": ("config", "The settings in force, and where they come from."),
    "devbucket": ("devbucket", "Serve an embedded B2 bucket for trials and tests."),
    "try": ("tryout", "Mount a sample bucket at ./static/data (make run)."),
    "version": ("version", "The versions of b2fs and of what it stands on."),
}


@dataclass
class Options:
    """The options before the command's name."""

    debug: bool = False


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"b2fs.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.pass_obj
def cli(options: Options, debug: bool) -> None:
    """b2fs: a Backblaze B2 bucket as plain files."""
    options.debug = debug
