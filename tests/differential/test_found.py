"""What the random operations have found, each shrunk to the steps that matter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.differential.machine import Machine
from tests.differential.rig import Rig


@pytest.fixture
def machine(rig: Rig) -> Iterator[Machine]:
    """Its directory holds a/a (open as #1 and #3), A/a, é (open as #2), and the directory a/A."""
    made = Machine(rig)
    yield made
    made.teardown()
    rig.forget()


def test_reader_that_truncates(machine: Machine) -> None:
    """O_TRUNC cuts the file, as on Linux everywhere, also when it is opened for reading alone."""
    machine.open("a/a", "RDONLY", ("TRUNC",), 0)
    machine.load("a/a")


def test_open_file_that_loses_its_name(machine: Machine) -> None:
    """Its ctime moves: by an unlink, and by a rename of another file over it."""
    machine.unlink("a/a")
    machine.rename("A/a", "é", 0)
