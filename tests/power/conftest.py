"""Every test here mounts for real: the disk whose power is cut is a file system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import _no_bug_in_the_log, order
from tests.power.support import Layer

__all__ = ["_no_bug_in_the_log", "order"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/power" in str(item.path):
            item.add_marker(pytest.mark.fuse)


@pytest.fixture(scope="module")
def layer() -> Iterator[Layer]:
    made = Layer()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture
def disk(layer: Layer) -> Iterator[Path]:
    """An empty directory on a disk whose power can be cut."""
    with layer.directory() as path:
        yield path
