"""Take each protection away in turn, and see its tests fail: ``python -m tests.mutants [WORD]``.

Rules
  Each row of `table.ROWS` is applied to a copy of the tree, never to the tree itself; its tests run there.
  A row passes if pytest says that tests failed. No test run, an error before the tests, or tests that pass are
  failures of the row. All the tests together must pass first, with nothing taken away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tests.mutants.table import ROWS, Row

ROOT = Path(__file__).parents[2]
_TESTS_FAILED = 1
"""pytest's exit code."""


def _copy(directory: Path) -> None:
    for name in ("b2fs", "tests", "bench"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)
    for name in ("README.md", "Makefile", "CHANGELOG.md"):
        shutil.copy(ROOT / name, directory)


def _pytest(directory: Path, tests: Iterable[str]) -> tuple[int, str]:
    """pytest's exit code, and its first line about a failure, else its last."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *tests],
        cwd=directory,
        env=dict(os.environ, PYTHONPATH=str(directory)),
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or [""]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, f"{failed[0]} ({lines[-1]})" if failed else lines[-1]


def run(row: Row, directory: Path) -> tuple[bool, str]:
    """Whether the tests of a row noticed that its protection is gone, and the last line of pytest."""
    _copy(directory)
    target = directory / row.file
    text = target.read_text()
    if text.count(row.old) != 1:
        return False, f"stale: {row.file} has its text {text.count(row.old)} times"
    target.write_text(text.replace(row.old, row.new))
    code, line = _pytest(directory, row.tests)
    return code == _TESTS_FAILED and "failed" in line, line


def main(word: str) -> int:
    survived = 0
    rows = [row for row in ROWS if word in row.name]
    with tempfile.TemporaryDirectory() as directory:
        _copy(Path(directory))
        code, line = _pytest(Path(directory), sorted({test for row in rows for test in row.tests}))
        print(f"nothing taken away: {line}", flush=True)
        if code:
            return 1
    for row in rows:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            noticed, line = run(row, Path(directory))
        survived += not noticed
        print(
            f"{'seen' if noticed else 'SURVIVED':8} {time.monotonic() - began:5.1f} s  {row.name}: {line}", flush=True
        )
    print(f"{len(rows) - survived} passed, {survived} failed")
    return 1 if survived or not rows else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
