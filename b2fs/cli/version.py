"""`b2fs version`."""

from __future__ import annotations

import click


@click.command()
def command() -> None:
    """Show the versions of b2fs and of what it stands on: give them with a bug report."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from b2fs import __version__

    parts = [f"python {platform.python_version()}", f"linux {platform.release()}"]
    for name in ("pyfuse3", "b2sdk", "trio"):
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    click.echo(f"b2fs {__version__} ({', '.join(parts)})")
