"""`b2fs fsck STATE_DIR`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from b2fs.cli import options, render
from b2fs.errors import Exit

if TYPE_CHECKING:
    from b2fs.config import Config
    from b2fs.core.invariants import Finding
    from b2fs.engine.fsck import Report


@click.command()
@click.argument("state_dir", metavar="STATE_DIR")
@click.option("--remote", is_flag=True, help="List the whole bucket and compare it too (one request per 1000 objects).")
@options.as_json
@options.some("key_id", "key_file", "read_deadline")
def command(state_dir: str, remote: bool, as_json: bool, **flags: Any) -> int:
    """Check the state directory of a mount that does not run. Changes nothing.

    A note is what the next start puts right by itself, or what others did in the bucket; a problem is what stays
    wrong. Ends with 0 when there is no problem, with 11 when there is one. With --remote the key comes from the
    settings, and which bucket it is from the state directory.
    """
    from b2fs.adapters.disk import Disk
    from b2fs.engine import fsck

    config = options.read(flags)
    disk = Disk(os.path.abspath(state_dir), existing=True)
    try:
        report = fsck.check(disk)
        if remote and not report.rows.corruption:
            _compare(config, disk.root, report)
    finally:
        disk.close()
    if as_json:
        click.echo(json.dumps(_as_json(disk.root, report)))
    else:
        _show(report)
    return Exit.DAMAGED if report.problems else Exit.OK


def _compare(config: Config, state_dir: str, report: Report) -> None:
    """Add what the bucket shows to the report."""
    from dataclasses import replace

    import trio

    from b2fs.adapters.b2.process import TransferProcess
    from b2fs.engine import fsck
    from b2fs.errors import BucketError, Unavailable
    from b2fs.ops import setup

    config = setup.of_bucket(replace(config, state_dir=state_dir), report.rows.meta)
    config.require_account()

    async def ask() -> None:
        async with TransferProcess.open(setup.bucket_settings(config)) as bucket:
            try:
                await fsck.check_remote(report, bucket, config.read_deadline)
            except (BucketError, Unavailable) as error:
                setup.explain(error, config)

    try:
        trio.run(ask, strict_exception_groups=True)
    except BaseExceptionGroup as group:
        setup.raise_named(group)
        raise


def _show(report: Report) -> None:
    for each in report.findings:
        click.echo(f"{each.severity}: {_plain(each.where)}: {_plain(each.what)} [{each.rule}]; {each.todo}")
    counts = report.counts()
    seen = [render.count(counts["files"], "file"), render.count(counts["directories"], "directory", "directories")]
    if report.objects is not None:
        seen.append(f"{render.count(report.objects, 'object')} in the bucket")
    waiting = f", {render.count(counts['waiting'], 'change')} not in B2 yet" if counts["waiting"] else ""
    problems, notes = render.count(len(report.problems), "problem"), render.count(len(report.notes), "note")
    click.echo(f"{problems}, {notes}; checked {', '.join(seen)}{waiting}")


def _plain(text: str) -> str:
    """One line, whatever a name holds."""
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


def _as_json(state_dir: str, report: Report) -> dict[str, object]:
    meta = report.rows.meta
    return {
        "state_dir": state_dir,
        "endpoint": meta.get("endpoint", ""),
        "bucket": meta.get("bucket_name", ""),
        "prefix": meta.get("prefix", ""),
        "problems": len(report.problems),
        "notes": len(report.notes),
        "checked": {**report.counts(), "objects": report.objects},
        "findings": _rows(report.findings),
    }


def _rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    return [
        {"severity": each.severity, "rule": each.rule, "where": each.where, "what": each.what, "todo": each.todo}
        for each in findings
    ]
