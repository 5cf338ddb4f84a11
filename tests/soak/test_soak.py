"""The soak itself: a short run ends in peace, and its comparison finds what is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.fuse]

_DEADLINE_S = 170.0


def soak(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """(exit code, output) of a run whose files are below `tmp_path`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=_DEADLINE_S,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_short_soak_loses_nothing(tmp_path: Path) -> None:
    """15 seconds of work with faults and a kill: all agree in the end, and nothing is left."""
    code, output = soak(tmp_path, "--time", "15s", "--seed", "1")
    assert code == 0, output
    assert re.search(r"daemon killed +[1-9]", output), output
    assert re.search(r"faults that fired:\n +\w+ +[1-9]", output), output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("bucket", r"bucket: cells/.*-0\.bin: .* in the bucket"),
        ("model", r"cells/.*-0\.bin: generation \d+, should be \d+"),
    ],
)
def test_the_comparison_finds_a_loss(tmp_path: Path, where: str, found: str) -> None:
    """Other bytes in the bucket, or an acknowledged save that is not there, fail the run; all is kept and named."""
    code, output = soak(tmp_path, "--time", "3s", "--seed", "1", "--tamper", where)
    assert code == 1, output
    assert re.search(found, output), output
    (kept,) = tmp_path.iterdir()
    assert str(kept) in output
    assert (kept / "timeline").is_file()
