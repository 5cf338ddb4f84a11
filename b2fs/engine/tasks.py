"""Small patterns of tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from b2fs.errors import B2fsError


async def together(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Run some at once, and return when all have ended. The first `B2fsError` is raised then, as it is and not in a group."""
    errors: list[B2fsError] = []

    async def run(task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except B2fsError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(run, task)
    if errors:
        raise errors[0]
