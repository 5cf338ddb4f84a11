"""What every test session stands on: where /dev/fuse is missing, what that costs, and that nothing is left behind.

Rules
  A test that mounts is marked `fuse`. Without FUSE it is skipped and counted at the end; with
  B2FS_REQUIRE_FUSE=1 (set by .ci/run) it fails instead.
  A test of a program that install.sh does not bring (`program`) is skipped and counted where there is none.
  The session has a temporary directory of its own, and adopts every orphan: at the end there is no mount
  below that directory, no process and no file in it, or the session fails. With `pytest -n`, each process has its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from b2fs.errors import MountError
from b2fs.frontends.mountpoint import check_fuse
from b2fs.ops import mounts
from tests import summary

_PR_SET_CHILD_SUBREAPER = 36
_ROOT = Path(__file__).parent.parent

# Same examples each time: a red test is red for everybody, and a slow machine is no failure.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

_skipped: Counter[str] = Counter()
_without: Counter[str] = Counter()
"""Tests that did not run, by the program that is not here."""
_left_behind: list[str] = []


def _why_no_fuse() -> str:
    """Why nothing can be mounted here, '' if it can."""
    try:
        check_fuse()
    except MountError as error:
        return str(error)
    return ""


_NO_FUSE = _why_no_fuse()
_FUSE_REQUIRED = os.environ.get("B2FS_REQUIRE_FUSE", "") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a quarter of a second")
    config.addinivalue_line("markers", "fuse: mounts for real, so it needs /dev/fuse")
    config.addinivalue_line("markers", "program(name): runs a program that install.sh does not bring")
    # Settings of the one who runs the tests must not reach them.
    for name in [name for name in os.environ if name.startswith(("B2_", "B2FS_")) and name != "B2FS_REQUIRE_FUSE"]:
        del os.environ[name]
    # Child processes find the package from any working directory.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    # pytest's own directories stay where they are (it keeps those of three sessions).
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    tempfile.tempdir = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix="b2fs-tests-")
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("program"):
        if shutil.which(marker.args[0]) is None:
            _without[marker.args[0]] += 1
            pytest.skip(f"this machine has no {marker.args[0]}")
    if item.get_closest_marker("fuse") is None or not _NO_FUSE:
        return
    if _FUSE_REQUIRED:
        pytest.fail(f"B2FS_REQUIRE_FUSE is set, and nothing can be mounted: {_NO_FUSE}", pytrace=False)
    _skipped[str(item.path.relative_to(_ROOT))] += 1
    pytest.skip(_NO_FUSE)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    scratch = tempfile.gettempdir()
    _left_behind.extend(_mounts_below(scratch, session))
    _left_behind.extend(f"process {pid}: {line}" for pid, line in _remaining_children().items())
    _left_behind.extend(f"file {entry.path}" for entry in os.scandir(scratch))
    shutil.rmtree(scratch, ignore_errors=True)
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["b2fs"] = (_left_behind, dict(_skipped), dict(_without), summary.sections)
    if _left_behind and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of several processes (`pytest -n`) has ended: what it would have told at its own end."""
    left_behind, skipped, without, sections = getattr(node, "workeroutput", {}).get("b2fs", ([], {}, {}, {}))
    _left_behind.extend(left_behind)
    _skipped.update(skipped)
    _without.update(without)
    summary.sections.update(sections)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for heading, lines in summary.sections.items():
        terminalreporter.section(heading)
        for line in lines:
            terminalreporter.line(line)
    if _skipped:
        terminalreporter.section(f"{_skipped.total()} tests need real mounts and did not run", red=True, bold=True)
        terminalreporter.line(_NO_FUSE)
        for path, number in sorted(_skipped.items()):
            terminalreporter.line(f"{number:5} in {path}")
    for program, number in sorted(_without.items()):
        terminalreporter.section(f"{number} test(s) of {program} did not run: this machine has none", yellow=True)
    if _left_behind:
        terminalreporter.section("left behind by the tests, so the session fails", red=True, bold=True)
        for line in _left_behind:
            terminalreporter.line(line)


def _mounts_below(scratch: str, session: pytest.Session) -> Iterator[str]:
    """Detach and name each FUSE mount that a test has left in a directory of this session."""
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    ours = (scratch + os.sep, str(factory.getbasetemp()) + os.sep)
    for mount in reversed(mounts.all_mounts()):
        if mount.fstype.startswith("fuse") and mount.mountpoint.startswith(ours):
            mounts.detach(mount.mountpoint)
            yield f"mount {mount.mountpoint}"


def _remaining_children() -> dict[int, str]:
    """The processes that tests have started and not ended, daemons included (they were adopted); killed now."""
    deadline = time.monotonic() + 2.0  # for those that are just ending
    while (children := _children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return children


def _children() -> dict[int, str]:
    """Living children with their command lines; ended ones are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return {}
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ").strip()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended while we looked
    return found


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait for a condition instead of sleeping: `eventually(lambda: …)`, at most `within_s` seconds."""

    def wait(condition: Callable[[], object], within_s: float = 10.0) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s} s"
            time.sleep(0.01)

    return wait
