"""Random histories against the naive model: the tree, the bucket, and what another host sees are the model's.

The alphabet of names is tiny, so that names collide; what b2fs may do in its own time (a quiet period, a refresh, a
restart, B2 failing or losing answers) is part of the history.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from b2fs.core.unload import shrink
from b2fs.errors import BucketError
from tests.engine.model import Model, Step, objects_of, outcome, run_step
from tests.engine.seams import CrashPoint, CrashSeam, Dead, Killed
from tests.engine.world import DOWN, Mount, Tree, World
from tests.fakes.bucket import Planted
from tests.fsck import fsck

PATHS = st.sampled_from(["a", "a", "d/a", "d/a", "d", "d", "ж", "e", "e/a", "d/e", "d/e/a"])
DATA = st.sampled_from([b"", b"1", b"22", b"xyz" * 11])
VALUES = st.sampled_from([b"", b"text/plain", b"\x00\xff~", None])
TIMES = st.sampled_from([0, -1, 1_600_000_000_000_000_001])

STEPS = st.one_of(
    st.tuples(st.just("write"), PATHS, DATA),
    st.tuples(st.just("write"), PATHS, DATA),
    st.tuples(st.just("patch"), PATHS, st.integers(0, 3), DATA.filter(bool)),
    st.tuples(st.just("truncate"), PATHS, st.integers(0, 4)),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 0, 0, 1, 2])),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("symlink"), PATHS, st.sampled_from(["t", "u/v"])),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o755])),
    st.tuples(st.just("utime"), PATHS, TIMES),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("setxattr"), PATHS, st.sampled_from(["user.x", "user.y"]), VALUES),
)
EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.5, 12.0])),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("restart")),
    st.tuples(st.just("fault"), st.sampled_from(["upload", "copy", "hide", "*"]), st.booleans()),
    st.tuples(st.just("lost"), st.sampled_from(["upload", "upload", "copy", "hide"])),
    st.tuples(st.just("hold"), st.sampled_from(["upload", "copy", "hide"])),
    st.tuples(st.just("mend")),
    st.tuples(st.just("mend")),
    st.tuples(st.just("evict")),
    st.tuples(st.just("unload")),
    st.tuples(st.just("unload")),
)
EVENT_NAMES = ("wait", "refresh", "fault", "lost", "hold", "mend", "evict", "unload")
BEGINNINGS = st.sampled_from(
    [
        [("mkdir", "d"), ("write", "d/a", b"1"), ("write", "a", b"22")],
        [("mkdir", "d"), ("mkdir", "e"), ("write", "d/a", b"1"), ("write", "d/b", b"2"), ("wait", 12.0)],
        [("lost", "upload"), ("write", "a", b"1"), ("wait", 2.5)],
        [("mkdir", "d"), ("wait", 12.0), ("hold", "upload"), ("write", "d/a", b"1"), ("wait", 2.5)],
    ]
)
HISTORIES = st.tuples(BEGINNINGS, st.lists(st.one_of(STEPS, STEPS, EVENTS), max_size=16)).map(
    lambda parts: [*parts[0], *parts[1]]
)


class _Player:
    """Plays a history on a mount and on the model."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = Model()

    async def step(self, m: Mount, step: Step) -> None:
        if through_a_link(self.model, step):
            return
        self.world.now_ns += 1_000_000_007
        expected_tree, expected = outcome(self.model, step, self.world.now_ns)
        assert await run_step(m, step) is expected, step
        self.model = expected_tree

    async def event(self, m: Mount, event: Step) -> None:
        if event[0] == "wait":
            await trio.sleep(event[1])
        elif event[0] == "refresh":
            await _refresh(m)
        elif event[0] == "fault":
            self.world.bucket.faults.append(Planted(event[1], DOWN, after=event[2]))
        elif event[0] == "lost":
            self.world.bucket.breaks_after = event[1]
        elif event[0] == "hold":
            self.world.bucket.gate.close(event[1])
        elif event[0] == "mend":
            self.world.bucket.mend()
        elif event[0] == "evict":
            m.engine.cache._evict(1 << 40)
        elif event[0] == "unload":
            for _ in range(2):  # everything has its second chance
                shrink(m.volume.tree, 0)

    async def in_the_end(self, m: Mount) -> None:
        """The mount shows the model; drained, the bucket holds it; another host sees it."""
        self.world.bucket.mend()
        assert await m.tree() == self.model.tree
        await m.drained()
        await m.refresh()
        assert await m.tree() == self.model.tree
        check_bucket(self.world, self.model.tree)


def through_a_link(model: Model, step: Step) -> bool:
    """The kernel opens what a link points to; the engine is never asked to write to the link itself."""
    entry = model.tree.get(step[1])
    return step[0] in ("write", "patch", "truncate") and entry is not None and entry.mode & 0o170000 == 0o120000


def check_bucket(world: World, tree: Tree) -> None:
    visible = {key: world.bucket.content(key) for key in world.bucket.objects() if key != ".bzEmpty"}
    assert visible == objects_of(tree)


async def _refresh(m: Mount) -> None:
    with contextlib.suppress(BucketError):  # a planted fault: then nothing is refreshed
        await m.refresh()


def _run(main: Any, *args: Any) -> None:
    random.seed(1)
    trio._core._run._r.seed(1)  # type: ignore[attr-defined]
    trio.run(main, *args, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)


async def _history(world: World, history: list[Step]) -> None:
    player = _Player(world)
    todo = list(history)
    while True:
        async with world.mount() as m:
            while todo and todo[0][0] != "restart":
                step = todo.pop(0)
                if step[0] in EVENT_NAMES:
                    await player.event(m, step)
                else:
                    await player.step(m, step)
            if not todo:
                await player.in_the_end(m)
                break
            todo.pop(0)
            world.bucket.mend()
    assert await world.seen_by_another() == player.model.tree


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(history=HISTORIES)
def test_any_history_ends_as_the_model(history: list[Step]) -> None:
    """Same error classes on the way, same tree (contents, modes, ns mtimes) here, in the bucket, and on another host."""
    with tempfile.TemporaryDirectory() as root:
        _run(_history, World(Path(root)), history)


# ---------------------------------------------------------------- SIGKILL


async def _until_killed(world: World, history: list[Step], point: CrashPoint) -> tuple[list[Model], str, bool]:
    """Play until the crash; which trees the disk may hold now, the path of an unanswered step, and whether there
    was a crash.
    """
    player = _Player(world)
    possible, unsure = [player.model], ""
    try:
        async with world.mount(seam=CrashSeam(point), check=False) as m:
            world.bucket.tap = point.hit
            for step in history:
                if step[0] in EVENT_NAMES:
                    await player.event(m, step)
                    continue
                possible = [player.model, *_stations(player.model, step, world.now_ns + 1_000_000_007)]
                unsure = step[1]
                await player.step(m, step)
                possible, unsure = [player.model], ""
            world.bucket.mend()
            left = await m.engine.drain("", 3600.0)
            assert left == [] or point.crashed
    except BaseException as error:
        if not point.crashed or not _is_the_kill(error):
            raise
    finally:
        world.bucket.tap = None
        world.bucket.mend()
    return possible, unsure, point.crashed


def _is_the_kill(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_the_kill, error.exceptions))
    return isinstance(error, Killed | Dead | trio.Cancelled)


def _stations(model: Model, step: Step, now_ns: int) -> list[Model]:
    """What a step that was not answered may have left: done, or between its system calls."""
    after, error = outcome(model, step, now_ns)
    if error is not None:
        return []
    if step[0] == "write":
        emptied = model.apply(("write", step[1], b""), now_ns)
        return [after, emptied]
    return [after]


def _same(found: Tree, expected: Tree, unsure: str) -> bool:
    """Equal; of the path that was just being written the mtime may be the disk's own."""
    if set(found) != set(expected):
        return False
    for path, entry in found.items():
        other = expected[path]
        if replace(entry, mtime_ns=0) != replace(other, mtime_ns=0):
            return False
        if entry.mtime_ns != other.mtime_ns and unsure not in (path, *other.names):
            return False
    return True


async def _crash_and_return(world: World, history: list[Step], at: int) -> bool:
    """Kill at the `at`-th call; start again; check. Whether the history was long enough to be killed."""
    point = CrashPoint(world.state(), world.state("crashed"), at)
    possible, unsure, crashed = await _until_killed(world, history, point)
    if not crashed:
        return False
    fsck(world.state("crashed"), world.bucket.objects())
    async with world.mount("crashed", listing=False, crashed=True) as m:
        tree = await m.tree()
        assert any(_same(tree, model.tree, unsure) for model in possible), [tree, [model.tree for model in possible]]
        await m.drained()
        await m.refresh()
        assert await m.tree() == tree, "the bucket has nothing else"
        check_bucket(world, tree)
    assert await world.seen_by_another() == tree
    return True


STORY: list[Step] = [
    ("mkdir", "d"),
    ("write", "d/x", b"first"),
    ("write", "d/y", b"other"),
    ("wait", 3.0),
    ("write", "d/x", b"second"),
    ("rename", "d/x", "d/z"),
    ("patch", "d/y", 2, b"patch"),
    ("rename", "d", "e"),
    ("write", "e/new", b"new"),
    ("wait", 3.0),
    ("unlink", "e/y"),
    ("symlink", "l", "e/z"),
    ("chmod", "e/z", 0o600),
    ("utime", "e/z", 1_600_000_000_000_000_001),
    ("setxattr", "e/z", "user.x", b"text/plain"),
    ("setxattr", "e", "user.x", b"\x00\xff"),
    ("rename", "e/z", "z"),
    ("evict",),
    ("patch", "z", 0, b"S"),
    ("wait", 12.0),
    ("rename", "z", "e/new"),
    ("refresh",),
    ("truncate", "e/new", 3),
    ("setxattr", "e/new", "user.x", None),
]


LINKS: list[Step] = [
    ("mkdir", "d"),
    ("write", "a", b"first"),
    ("link", "a", "d/b"),
    ("wait", 3.0),
    ("write", "d/b", b"second"),
    ("link", "d/b", "c"),
    ("rename", "d", "e"),
    ("wait", 3.0),
    ("unlink", "a"),
    ("wait", 3.0),
    ("patch", "c", 1, b"E"),
    ("write", "new", b"new"),
    ("rename", "new", "e/b"),
    ("wait", 3.0),
    ("link", "e/b", "f"),
    ("unlink", "e/b"),
    ("evict",),
    ("chmod", "f", 0o600),
    ("wait", 12.0),
    ("rename", "f", "c"),
    ("refresh",),
]


@pytest.mark.slow
@pytest.mark.parametrize("story", [STORY, LINKS], ids=["files", "links"])
def test_killed_at_every_call_of_a_story(tmp_path: Path, story: list[Step]) -> None:
    """SIGKILL before each call to the disk, the journal and the bucket, and after each of the bucket's: nothing that was
    acknowledged is lost, nothing is invented, and the bucket ends equal to the tree.
    """
    at = 0
    crashed = True
    while crashed:
        at += 1
        with tempfile.TemporaryDirectory(dir=tmp_path) as root:
            try:
                crashed = False
                crashed = _run_crash(Path(root), story, at)
            except BaseException as error:
                error.add_note(f"killed at call {at}")
                raise
    assert at > 120


def _run_crash(root: Path, history: list[Step], at: int) -> bool:
    found: list[bool] = []

    async def main() -> None:
        found.append(await _crash_and_return(World(root), history, at))

    _run(main)
    return found[0]


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(history=HISTORIES.map(lambda steps: [step for step in steps if step[0] != "restart"]), at=st.integers(1, 150))
def test_killed_anywhere_in_any_history(history: list[Step], at: int) -> None:
    """The same for random histories and moments."""
    with tempfile.TemporaryDirectory() as root:
        _run_crash(Path(root), history, at)
