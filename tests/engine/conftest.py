"""Fixtures of the engine's tests: a world each, and no unexpected exception in the log."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.seams import Dead
from tests.engine.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture(autouse=True)
def _no_bug_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The engine survives bugs by logging them with a traceback: for a test that is a failure."""
    random.seed(20240229)  # the jitter of retries
    caplog.set_level(logging.INFO, logger="b2fs")
    yield
    bugs = [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.exc_info and record.exc_info[0] is not Dead
    ]
    assert not bugs, f"logged with a traceback: {bugs}"
