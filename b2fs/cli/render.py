"""How commands show things: aligned text in a pipe, the same with colour and progress on a terminal.

Rules
  rich is imported only where there is a terminal: a pipe should not wait for it.
  Nothing but the answer goes to stdout; progress goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from b2fs.units import show_size

if TYPE_CHECKING:
    from b2fs.ops.client import Progress

Rows = Sequence[Sequence[str]]


def table(head: Sequence[str], rows: Rows) -> None:
    """Columns under a head."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        shown = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            shown.add_row(*(_plain(cell) for cell in row))
        Console().print(shown)
    else:
        click.echo(columns([head, *rows]))


def facts(rows: Rows) -> None:
    """Pairs of name and value."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(facts_text(rows), markup=False, soft_wrap=True)
    else:
        click.echo(facts_text(rows))


def facts_text(rows: Rows) -> str:
    return columns([(f"{name}:", value) for name, value in rows])


def columns(rows: Rows) -> str:
    """The rows with each column as wide as its widest cell, but the last."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def left_out(pins: dict[str, Any]) -> str:
    """What `pin` names and is not kept."""
    return f"{count(pins['left_out'], 'file')} ({show_size(pins['left_out_bytes'])}) had no room in half of the cache"


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 file`, `3 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


@contextmanager
def uploading(what: str) -> Iterator[Progress]:
    """A progress bar for reports of ``{files, bytes}`` still to upload; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]}"), TimeElapsedColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task(what, total=None, left="")
        most = 0

        def update(report: dict[str, Any]) -> None:
            nonlocal most
            files, size = int(report.get("files", 0)), int(report.get("bytes", 0))
            most = max(most, size)
            left = f"{count(files, 'file')}, {show_size(size)} left"
            bar.update(task, total=most or None, completed=most - size, left=left)

        yield update


def _plain(cell: str) -> Any:
    """A cell for rich that takes brackets as they are."""
    from rich.text import Text

    return Text(cell)
