"""Waiting for requests: who is there is served in the same turn, and nobody starves by it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pyfuse3
import pytest
import trio

from b2fs.frontends import busy_poll
from b2fs.frontends.busy_poll import BusyPoll
from b2fs.frontends.fuse import FuseOperations

_TICK_S = 10e-6


class Clock:
    """Goes on by a tick whenever somebody looks."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def perf_counter(self) -> float:
        self.now_s += _TICK_S
        return self.now_s


class Looks:
    """In the place of select.poll: counts how often somebody looked; there is something at the look `ready_at`."""

    def __init__(self, ready_at: int = 0) -> None:
        self.count = 0
        self.ready_at = ready_at

    def register(self, descriptor: int, events: int) -> None:
        pass

    def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
        assert timeout_ms == 0, "the loop must not be held by a wait"
        self.count += 1
        return [(0, 1)] if self.count == self.ready_at else []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(busy_poll, "time", clock)
    return clock


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """What one writes the other reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def watched(monkeypatch: pytest.MonkeyPatch, processors: int = 2) -> BusyPoll:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(processors)))
    return BusyPoll()


async def a_request(polling: BusyPoll, pair: tuple[socket.socket, socket.socket]) -> None:
    """One that comes at once, though the loop slept."""
    ours, theirs = pair
    theirs.send(b"x")
    await polling.wait_readable(ours.fileno())
    ours.recv(1)


async def looks_of(polling: BusyPoll, pair: tuple[socket.socket, socket.socket], ready_at: int = 0) -> int:
    """How often it looks for a request that comes at the look `ready_at`, 0: when the loop sleeps."""
    looks = Looks(ready_at)
    polling._poll = looks  # type: ignore[assignment]
    ours, theirs = pair
    if not ready_at:
        theirs.send(b"x")
    await polling.wait_readable(ours.fileno())
    if not ready_at:
        ours.recv(1)
    return looks.count


@asynccontextmanager
async def somebody() -> AsyncIterator[list[int]]:
    """Another task that wants a turn; the list has an entry once it had one."""
    turns: list[int] = []

    async def take() -> None:
        turns.append(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        yield turns


async def test_a_request_that_is_there_is_served_in_the_same_turn(
    pair: tuple[socket.socket, socket.socket], clock: Clock
) -> None:
    """Nobody else had a turn between two requests."""
    ours, theirs = pair
    polling = BusyPoll()
    await a_request(polling, pair)
    theirs.send(b"x")
    async with somebody() as others:
        await polling.wait_readable(ours.fileno())
        assert not others


async def test_others_have_a_turn_while_requests_keep_coming(
    pair: tuple[socket.socket, socket.socket], clock: Clock
) -> None:
    """A stream of requests holds the loop for a turn, two where trio's random order has it first again; no longer."""
    ours, theirs = pair
    polling = BusyPoll()
    await a_request(polling, pair)
    theirs.send(b"x")  # and nobody reads it: there is always one more
    began_s = clock.now_s
    async with somebody() as others:
        while not others:
            await polling.wait_readable(ours.fileno())
            assert clock.now_s - began_s < 2.5 * busy_poll._TURN_S


async def test_a_stream_of_requests_can_be_cancelled(pair: tuple[socket.socket, socket.socket]) -> None:
    """Cancelling works as everywhere in trio."""
    ours, theirs = pair
    theirs.send(b"x")
    polling = BusyPoll()
    with trio.move_on_after(0) as scope:
        for _ in range(10_000_000):
            await polling.wait_readable(ours.fileno())
    assert scope.cancelled_caught


async def test_the_next_request_is_looked_for_where_the_last_came_at_once(
    pair: tuple[socket.socket, socket.socket], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as a sleep would cost, and what comes meanwhile is served without one."""
    polling = watched(monkeypatch)
    await a_request(polling, pair)
    assert await looks_of(polling, pair, ready_at=3) == 3
    assert await looks_of(polling, pair) == round(busy_poll._BUSY_S / _TICK_S) + 1


async def test_it_is_not_looked_for_where_the_last_was_slow(
    pair: tuple[socket.socket, socket.socket], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One look, then the loop sleeps; a quick request later changes that again."""
    polling = watched(monkeypatch)
    await a_request(polling, pair)
    ours, theirs = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(polling.wait_readable, ours.fileno())
        await trio.testing.wait_all_tasks_blocked()
        clock.now_s += busy_poll._AT_ONCE_S
        theirs.send(b"x")
    ours.recv(1)
    assert await looks_of(polling, pair) == 1
    assert await looks_of(polling, pair) > 1


async def test_it_is_not_looked_for_while_a_handler_waits(
    pair: tuple[socket.socket, socket.socket], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program that waits for that handler asks nothing; who else has a turn is served the sooner."""
    polling = watched(monkeypatch)
    await a_request(polling, pair)
    polling.under_way = 1
    assert await looks_of(polling, pair) == 1
    polling.under_way = 0
    assert await looks_of(polling, pair) > 1


async def test_it_is_not_looked_for_on_one_processor(
    pair: tuple[socket.socket, socket.socket], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program could not ask while we look."""
    polling = watched(monkeypatch, processors=1)
    await a_request(polling, pair)
    assert await looks_of(polling, pair) == 1


async def test_the_end_of_the_mount_wakes_who_waits(pair: tuple[socket.socket, socket.socket]) -> None:
    """As `pyfuse3.terminate` does."""
    ours, _ = pair
    polling = BusyPoll()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(polling.ClosedResourceError):
                await polling.wait_readable(ours.fileno())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        polling.lowlevel.notify_closing(ours.fileno())


async def test_a_free_lock_takes_no_turn_and_a_held_one_is_waited_for() -> None:
    """Who let go may have it again first; whoever waits has it when the holder suspends elsewhere."""
    lock, order = BusyPoll.Lock(), []

    async def second() -> None:
        async with lock:
            order.append("second")

    async def somebody() -> None:
        order.append("somebody")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(second)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(somebody)
        async with lock:
            order.append("first again")
            await trio.testing.wait_all_tasks_blocked()
            order.append("first lets go")
    assert order == ["first again", "somebody", "first lets go", "second"]


async def test_who_was_cancelled_waiting_for_the_lock_does_not_have_it() -> None:
    """Nor keeps anybody else from having it."""
    lock, order = BusyPoll.Lock(), []

    async def waiter(name: str, scope: trio.CancelScope) -> None:
        with scope:
            async with lock:
                order.append(name)

    given_up, other = trio.CancelScope(), trio.CancelScope()
    async with trio.open_nursery() as nursery, lock:
        nursery.start_soon(waiter, "given up", given_up)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(waiter, "other", other)
        await trio.testing.wait_all_tasks_blocked()
        given_up.cancel()
    assert order == ["other"]


async def test_handlers_that_wait_are_counted() -> None:
    """From their beginning to their end, also where that is an error."""
    may_end = trio.Event()

    async def fail(handle: int) -> None:
        await may_end.wait()
        raise RuntimeError

    engine = SimpleNamespace(files=SimpleNamespace(sync=fail, inode_of=lambda handle: None))
    operations = FuseOperations(engine)  # type: ignore[arg-type]

    async def sync() -> None:
        with pytest.raises(pyfuse3.FUSEError):
            await operations.fsync(1, False)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync)
        nursery.start_soon(sync)
        await trio.testing.wait_all_tasks_blocked()
        assert operations.requests.under_way == 2
        may_end.set()
    assert operations.requests.under_way == 0


def test_pyfuse3_finds_what_it_uses_of_trio() -> None:
    """Read from the source that comes with the package, so that another version of it cannot surprise us."""
    folder = Path(pyfuse3.__file__).parent
    source = "\n".join(path.read_text() for path in [*folder.glob("*.pyx"), *folder.glob("*.pxi")])
    used = set(re.findall(r"\btrio\.([a-zA-Z_][\w.]*)", re.sub(r"`[^`]*`|'''.*?'''", "", source, flags=re.DOTALL)))
    assert {"Lock", "lowlevel.wait_readable", "open_nursery"} <= used
    polling = BusyPoll()
    for chain in used:
        found: object = polling
        for name in chain.split("."):
            found = getattr(found, name)
    assert polling.lowlevel.wait_readable == polling.wait_readable
