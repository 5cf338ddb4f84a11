"""Fixtures of the engine's tests: a world each, and no unexpected exception in the log."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.engine.seams import Dead
from tests.engine.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def order(request: pytest.FixtureRequest) -> int:
    """In which order tasks go on that could go on at the same moment (trio reverses them at random), and the
    jitter of retries: the same each time. Modules that are about races ask for several.
    """
    number = getattr(request, "param", 0)
    random.seed(number)
    trio._core._run._r.seed(number)  # type: ignore[attr-defined]  # trio has no public way
    return number


@pytest.fixture(autouse=True)
def _no_bug_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The engine survives bugs by logging them with a traceback: for a test that is a failure."""
    caplog.set_level(logging.INFO, logger="b2fs")
    yield
    bugs = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.exc_info and record.exc_info[0] is not Dead
    ]
    assert not bugs, f"logged with a traceback: {bugs}"
