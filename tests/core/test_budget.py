"""The budget of bytes that are not in B2, and when it is going to be full."""

from __future__ import annotations

import pytest

from b2fs.core.budget import Budget, Trend


def test_used_is_the_sum_of_what_was_set() -> None:
    """A number that is set again replaces itself, one that is dropped twice counts once."""
    budget = Budget(100)
    budget.set(1, 40)
    budget.set(2, 30)
    budget.set(1, 50)
    assert budget.used == 80
    budget.drop(2)
    budget.drop(2)
    assert budget.used == 50


@pytest.mark.parametrize(("growth", "fits"), [(50, True), (51, False), (0, True), (-10, True)])
def test_room(growth: int, fits: bool) -> None:
    """Up to the limit and no further; a file may shrink or stay, however full it is."""
    budget = Budget(100)
    budget.set(1, 50)
    assert budget.room(growth) is fits
    budget.set(2, 100)
    assert budget.room(growth) is (growth <= 0)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], None),
        ([(0, 10)], None),
        ([(0, 10), (10, 10)], None),
        ([(0, 50), (10, 10)], None),
        ([(0, 0), (10, 20)], 40.0),
        ([(0, 90), (5, 0), (10, 95)], 10.0),
        ([(0, 0), (10, 100)], 0.0),
        ([(0, 100), (10, 130)], 0.0),
        ([(0, 0), (100, 50), (110, 60)], 40.0),
    ],
)
def test_time_to_full(samples: list[tuple[float, int]], expected: float | None) -> None:
    """From the growth of the last minute: None if there is none, 0 if it is full; what is older does not count."""
    trend = Trend()
    for now_s, used in samples:
        trend.sample(now_s, used)
    assert trend.time_to_full_s(100) == expected
