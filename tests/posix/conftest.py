"""Each test runs three times: in a directory of the host's disk ("plain"), in one of a real mount ("mount"), and on the
engine in this process without a kernel ("engine", `tests.posix.vfs`).

Rules
  What differs is a defect, or stands in `test_deviations.py` and in SEMANTICS.md.
  What the kernel does without asking a file system (maps, locks, pipes, programs, …) is there on "plain" and "mount"
  only: such a test, or case, is marked `kernel` with what it is about. The end of the session counts both kinds.
  One daemon serves the suite and one engine a module, with uploads going on meanwhile; at the end they drain, and their
  state is checked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import summary
from tests.devbucket_fixture import DevBucket, _shared_devbucket
from tests.mount.hosts import Host
from tests.posix.support import rmtree
from tests.posix.system import MACHINE, on, os
from tests.posix.vfs.host import EngineHost

__all__ = ["_shared_devbucket"]

TARGETS = ["plain", pytest.param("mount", marks=pytest.mark.fuse), "engine"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel(what): about what the kernel does on its own, so not on the engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `kernel` does not run on the engine. How many cases there are of both kinds is said in the end."""

    def target(item: pytest.Item) -> str:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        return str(params.get("target", params.get("agrees", "")))  # `agrees` looks at the plain directory too

    cases = Counter[str]()
    for item in items:
        if target(item) == "mount":
            mark = item.get_closest_marker("kernel")
            cases[mark.args[0] if mark else ""] += 1
    if (everywhere := cases.pop("", 0)) and cases:
        what = ", ".join(f"{name} {number}" for name, number in sorted(cases.items()))
        summary.sections["the POSIX suite"] = [
            f"{everywhere} cases on a plain directory, the mount and the engine in this process",
            f"{cases.total()} on a plain directory and the mount, about the kernel's own part: {what}",
        ]
    items[:] = [item for item in items if not (target(item) == "engine" and item.get_closest_marker("kernel"))]


@pytest.fixture(scope="session")
def mounted() -> Iterator[Host]:
    """A mount of an empty bucket for the suite: to start and to drain one takes seconds."""
    server = DevBucket()
    try:
        server.start()
        host = Host(server, quiet_period="1s")
        try:
            host.start_listed()
            yield host
            host.stop()
        finally:
            host.remove()
    finally:
        server.remove()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    """An engine on an empty bucket for the module."""
    host = EngineHost(tmp_path_factory.mktemp("engine"))
    host.start_listed()
    yield host
    host.stop()


@pytest.fixture
def plain() -> Iterator[Path]:
    """A directory of the host's disk."""
    path = Path(tempfile.mkdtemp(prefix="plain-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    return str(request.param)


@pytest.fixture
def root(request: pytest.FixtureRequest, target: str) -> Iterator[Path]:
    """An empty directory, mode 0755, of that kind; the working directory of the test."""
    system = MACHINE
    if target == "plain":
        path = request.getfixturevalue("plain")
    elif target == "mount":
        path = Path(tempfile.mkdtemp(dir=request.getfixturevalue("mounted").path))
    else:
        system, path = request.getfixturevalue("engine").system, Path("/", request.node.name.partition("[")[0])
        with on(system):
            os.mkdir(path)
    with on(system):
        os.chmod(path, 0o755)
        mask = os.umask(0o022)
        before = os.getcwd()
        os.chdir(path)
        yield path
        os.chdir(before)
        os.umask(mask)
        if target == "engine":
            system.exit()
        if target != "plain":
            rmtree(str(path))
