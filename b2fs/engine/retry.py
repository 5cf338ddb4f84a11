"""How long one keeps asking B2. The only place that knows waiting times between attempts.

Rules
  Somebody who waits for an answer (a read) gets a passing fault retried until the deadline, then
  Unavailable. Background work never gives up: its waiting time grows to `SLOWEST_S`.
  Waiting times are drawn between zero and the bound (full jitter), except where B2 named one itself.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from b2fs.errors import BucketError, Fault, Unavailable

T = TypeVar("T")

_FIRST_S = 0.5
SLOWEST_S = 300.0
"""Longest pause of background work between two attempts."""
REFUSED_S = 600.0
"""Pause after an answer that will not change by itself (key, cap, bad name)."""


def backoff_s(attempts: int, error: BucketError | None = None) -> float:
    """The pause after the `attempts`-th failure in a row (1 is the first)."""
    if error is not None and error.retry_after_s:
        return min(error.retry_after_s, SLOWEST_S)
    if error is not None and not error.may_retry:
        return REFUSED_S
    return random.uniform(0, min(SLOWEST_S, _FIRST_S * 2 ** min(attempts - 1, 16)))


_WAITING_S = 4.0
"""Longest pause between two attempts while somebody waits for the answer: the deadline shall see many of them."""
_CORRUPT_TRIES = 5
"""How often wrong bytes are asked for again: if B2 itself has them, nothing else will come."""


async def until(deadline_s: float, ask: Callable[[], Awaitable[T]], what: str) -> T:
    """Ask until an answer comes, for `deadline_s` seconds in all.

    Unavailable after that. A BucketError that no repetition can mend is raised as it is.
    """
    end = trio.current_time() + deadline_s
    last = "no answer"
    attempts = corrupt = 0
    with trio.move_on_at(end):
        while True:
            try:
                return await ask()
            except BucketError as error:
                if not error.may_retry:
                    raise
                attempts += 1
                last = str(error)
                corrupt += error.fault is Fault.CORRUPT
                if corrupt > _CORRUPT_TRIES:
                    raise
                pause_s = backoff_s(attempts, error)
                await trio.sleep(pause_s if error.retry_after_s else min(pause_s, _WAITING_S))
    raise Unavailable(f"B2 did not give {what} within {deadline_s:g} s ({last})")
