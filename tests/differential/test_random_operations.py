"""Random operations on a mount and on a plain directory: no program can tell the two apart.

`make differential EXAMPLES=2000 SEED=7` runs more of them, and others.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.differential.machine import Machine
from tests.differential.rig import Rig

_EXAMPLES = int(os.environ.get("EXAMPLES", "80"))
_SEED = int(os.environ.get("SEED", "0"))
_BATCH = 40
"""After so many examples a second host looks at them."""
_STEPS = 50
_PHASES = [Phase.generate] + [Phase.shrink] * ("EXAMPLES" in os.environ)
"""Shrinking a failure takes minutes: `make differential` does it, the daily run says what the steps were."""


@pytest.mark.parametrize("batch", range(-(-_EXAMPLES // _BATCH)))
def test_mount_and_plain_directory(rig: Rig, batch: int) -> None:
    """Same results, errnos, attributes and moved times after every step; then the same tree in B2, for another host."""

    @seed(f"{_SEED} {batch}")
    class Examples(Machine):
        def __init__(self) -> None:
            super().__init__(rig)

    try:
        run_state_machine_as_test(
            Examples,
            settings=settings(
                max_examples=_BATCH,
                stateful_step_count=_STEPS,
                database=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
                phases=_PHASES,
            ),
        )
        rig.agree_everywhere()
    finally:
        rig.forget()
