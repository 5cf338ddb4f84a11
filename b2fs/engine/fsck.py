"""The check of a state directory that nobody has open: against itself, and against the bucket.

Rules
  Nothing is changed, here or there. The caller holds the lock (an open `Disk`) all the time.
  What must hold is said in `core.invariants`; this reads, hashes, lists and asks it.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from b2fs.adapters import disk as disk_module
from b2fs.adapters.disk import Disk
from b2fs.adapters.journal_check import read_all
from b2fs.core import invariants
from b2fs.core.bucket import Bucket, Version
from b2fs.core.invariants import Finding, Rows, Severity
from b2fs.engine import retry
from b2fs.engine.engine import check_bucket
from b2fs.errors import Damaged, StateError

_PAGE = 1000
"""Names per request: B2 bills a listing per thousand."""


class Report(msgspec.Struct):
    """What was looked at, and what does not hold; the gravest first."""

    rows: Rows
    findings: list[Finding]
    objects: int | None = None
    """How many objects the bucket shows; None if it was not asked."""

    def add(self, findings: list[Finding]) -> None:
        self.findings = sorted([*self.findings, *findings], key=lambda each: each.severity is Severity.NOTE)

    @property
    def problems(self) -> list[Finding]:
        return [each for each in self.findings if each.severity is Severity.PROBLEM]

    @property
    def notes(self) -> list[Finding]:
        return [each for each in self.findings if each.severity is Severity.NOTE]

    def counts(self) -> dict[str, int]:
        """How much there was to look at."""
        kinds = Counter("directories" if inode.is_dir else "files" for inode in self.rows.inodes.values())
        return {
            "files": kinds["files"],
            "directories": kinds["directories"],
            "waiting": len(self.rows.intents),
            "blobs": len(self.rows.blobs),
        }


def check(disk: Disk) -> Report:
    """The state directory against itself; blocks for as long as hashing takes. StateError: no journal of ours."""
    rows, files = read_all(disk.journal_path), disk.files()
    report = Report(rows, [])
    report.add(invariants.check(rows, files))
    if not rows.corruption:
        report.add([found for each in invariants.sums(rows, files) if (found := _compare(disk, each)) is not None])
    return report


def _compare(disk: Disk, expected: invariants.Sum) -> Finding | None:
    try:
        found = disk_module.sha1_of(disk.path_in(expected.folder, expected.name))
    except Damaged as error:
        found = f"unknown ({error})"
    return invariants.wrong_sum(expected, found)


async def check_remote(report: Report, bucket: Bucket, deadline_s: float) -> None:
    """Add what the bucket shows to a report. StateError: another bucket; BucketError, Unavailable: no answer."""
    if not report.rows.meta.get("bucket_id"):
        raise StateError("the state directory never belonged to a bucket, so there is none to compare it with")
    identity = await retry.until(deadline_s, bucket.connect, "the bucket")
    check_bucket(report.rows.meta["bucket_id"], identity)
    listed: dict[str, Version] = {}
    start: str | None = ""
    while start is not None:
        page = await retry.until(
            deadline_s,
            lambda at=start: bucket.list_page("", at, "", _PAGE),  # type: ignore[misc]
            "the listing of the bucket",
        )
        listed.update((version.key, version) for version in page.versions)
        start = page.next_key
    report.objects = len(listed)
    report.add(invariants.check_remote(report.rows, listed))
