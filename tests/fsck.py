"""`b2fs fsck` as the tests run it after every engine and every mount: in process, on a directory that nobody has open."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from b2fs.adapters.disk import Disk
from b2fs.core.bucket import Version
from b2fs.core.invariants import check_remote
from b2fs.engine.fsck import Report, check

REMOTE_NOTES = {"remote-changed", "remote-new"}
"""What others did in the bucket is no fault of a mount."""


def fsck(state: Path, objects: Mapping[str, Version] | None = None, known: Collection[str] = ()) -> Report:
    """The report, in which there must be no problem but of the rules `known`. `objects`: what the bucket shows, compared
    as ``--remote`` does.
    """
    disk = Disk(str(state), existing=True)
    try:
        report = check(disk)
    finally:
        disk.close()
    if objects is not None:
        report.add(check_remote(report.rows, objects))
    problems = [each for each in report.problems if each.rule not in known]
    assert problems == [], problems
    return report
