"""Random histories whose power is cut: before any change of the disk, with any luck for what was not synced.

What may be left is in `ledger`. Then everything is brought into the bucket, and nothing else may be in it.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from b2fs.core.inode import ROOT
from tests.engine.model import Model, Step, outcome, run_step
from tests.engine.test_history import check_bucket
from tests.engine.world import Mount, World
from tests.power.ledger import Ledger
from tests.power.support import Layer, PowerPoint, PowerSeam, is_the_cut, restart, until_the_cut

PATHS = st.sampled_from(["a", "a", "a", "d/a", "d/a", "d", "e", "e/a"])
SIZES = st.sampled_from([0, 8, 8, 700, 9000])
STEPS = st.one_of(
    st.tuples(st.just("write"), PATHS, SIZES),
    st.tuples(st.just("write"), PATHS, SIZES),
    st.tuples(st.just("write_synced"), PATHS, SIZES),
    st.tuples(st.just("write_synced"), PATHS, SIZES),
    st.tuples(st.just("patch"), PATHS, st.sampled_from([0, 3, 5000]), SIZES.filter(bool)),
    st.tuples(st.just("truncate"), PATHS, st.sampled_from([0, 4, 5000])),
    st.tuples(st.just("sync"), PATHS),
    st.tuples(st.just("sync"), PATHS),
    st.tuples(st.just("sync_directory")),
    st.tuples(st.just("rename"), PATHS, PATHS, st.sampled_from([0, 0, 0, 2])),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("unlink"), PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("mkdir"), PATHS),
    st.tuples(st.just("rmdir"), PATHS),
    st.tuples(st.just("symlink"), PATHS, st.just("t")),
    st.tuples(st.just("chmod"), PATHS, st.sampled_from([0o600, 0o755])),
    st.tuples(st.just("utime"), PATHS, st.just(1_600_000_000_000_000_001)),
    st.tuples(st.just("setxattr"), PATHS, st.just("user.x"), st.sampled_from([b"1", b"\0~", None])),
    st.tuples(st.just("hold"), PATHS),
    st.tuples(st.just("append"), SIZES.filter(bool)),
    st.tuples(st.just("append"), SIZES.filter(bool)),
    st.tuples(st.just("sync_held")),
    st.tuples(st.just("release")),
)
EVENTS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.5, 2.5, 2.5, 70.0])),
    st.tuples(st.just("flush")),
    st.tuples(st.just("refresh")),
    st.tuples(st.just("evict")),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("close_gate"), st.sampled_from(["upload", "hide", "copy"])),
    st.tuples(st.just("mend")),
    st.tuples(st.just("kill")),
)
BEGINNINGS = st.sampled_from(
    [
        [("mkdir", "d"), ("write_synced", "d/a", 700), ("write", "a", 8)],
        [("write", "a", 9000), ("flush",), ("write_synced", "a", 9000)],
        [("write_synced", "a", 9000), ("close_gate", "upload"), ("wait", 2.5)],
        [("mkdir", "d"), ("write", "d/a", 8), ("flush",), ("sync_directory",)],
        [("write_synced", "a", 700), ("link", "a", "e"), ("setxattr", "e", "user.x", b"1"), ("sync", "a")],
    ]
)
HISTORIES = st.tuples(BEGINNINGS, st.lists(st.one_of(STEPS, STEPS, EVENTS), max_size=14)).map(
    lambda parts: [*parts[0], *parts[1]]
)
LUCK = st.one_of(st.none(), st.integers(0, 1000), st.integers(0, 1000))


class _Player:
    """Plays a history on a mount, on the model, and into the ledger; stops where the power goes."""

    def __init__(self, world: World, point: PowerPoint, history: list[Step]) -> None:
        self.world = world
        self.point = point
        self.todo = list(history)
        self.model = Model()
        self.ledger = Ledger()
        self._stamp = 0
        self._held = self._held_ino = 0
        """The handle that is kept open, and its inode."""

    async def play(self, m: Mount) -> None:
        """The rest of the history, up to a kill."""
        while self.todo:
            await self._step(m, self.todo.pop(0))
            self.point.hit()

    def back(self, m: Mount) -> None:
        """The start after a kill: what was held open has the mtime that the disk gave it."""
        if self._held and (path := self._held_path(m)) is not None:
            row = m.volume.journal.path_inode(path)
            assert row is not None
            self.model = Model(self.model.tree, self.model.ids)
            for name in self.model.tree[path].names or (path,):
                self.model.tree[name] = replace(self.model.tree[name], mtime_ns=row.mtime_ns)
            self.ledger.observe(m, self.model)
        self._held = 0

    async def _step(self, m: Mount, step: Step) -> None:
        self.world.now_ns += 1_000_000_007
        name = step[0]
        if name == "wait":
            await trio.sleep(step[1])
        elif name == "evict":
            m.engine.cache._evict(1 << 40)
        elif name == "refresh":
            await m.refresh()
        elif name == "checkpoint":
            await m.volume.seam.thread(m.volume.journal.checkpoint)
        elif name == "close_gate":
            self.world.bucket.gate.close(step[1])
        elif name == "kill":
            self.point.kill()
        elif name == "mend":
            self.world.bucket.gate.open()
        elif name == "flush":
            self.world.bucket.gate.open()
            assert await m.engine.drain("", 3600.0) == []
            self.point.hit()
            self.ledger.flushed(self.model)
        elif name == "sync_directory":
            await sync_directory(m)
            self.point.hit()
            self.ledger.journal_synced()
            self.ledger.names_acknowledged([path for path in self.model.tree if "/" not in path])
        elif name == "hold":
            await self._hold(m, step[1])
        elif name in ("append", "sync_held", "release"):
            if self._held:
                await getattr(self, f"_{name}")(m, *step[1:])
        elif name == "sync":
            if self._is_file(step[1]):
                await self._sync(m, step[1])
        else:
            await self._change(m, step)

    def _is_file(self, path: str) -> bool:
        entry = self.model.tree.get(path)
        return entry is not None and entry.mode & 0o170000 == 0o100000

    async def _sync(self, m: Mount, path: str) -> None:
        handle = await m.open(path)
        await m.files.sync(handle)
        self.point.hit()
        self.ledger.acknowledged(path)
        m.files.release(handle)

    # ------------------------------------------------------------ steps of the model

    def _data(self, size: int) -> bytes:
        self._stamp += 1
        return (b"%07d." % self._stamp * (size // 8 + 1))[:size]

    async def _change(self, m: Mount, step: Step) -> None:
        """A step that the model knows, `write_synced` too."""
        name, path = step[0], step[1]
        entry = self.model.tree.get(path)
        if name in ("write", "write_synced", "patch", "truncate") and entry is not None and not self._is_file(path):
            return  # the kernel opens what a link points to
        if name in ("write", "write_synced", "patch"):
            step = (*step[:-1], self._data(step[-1]))
        modelled = ("write", *step[1:]) if name == "write_synced" else step
        after, expected = outcome(self.model, modelled, self.world.now_ns)
        try:
            if name == "write_synced" and expected is None:
                await self._write_synced(m, path, step[2])
            else:
                assert await run_step(m, modelled) is expected, step
            self.point.hit()
        except BaseException:
            if expected is None:
                self.ledger.unsure(after)
                self._touched(step)
            raise
        self.model = after
        self.ledger.observe(m, self.model)
        if expected is None:
            self._touched(step)
            if name == "write_synced":
                self.ledger.acknowledged(path)
            elif name == "patch" or (name == "truncate" and step[2]):
                self.ledger.written_in_place(path)

    def _touched(self, step: Step) -> None:
        for path in step[1:3]:
            if isinstance(path, str):
                entry = self.model.tree.get(path)
                self.ledger.touched(path, *(entry.names if entry is not None else ()))

    async def _write_synced(self, m: Mount, path: str, data: bytes) -> None:
        """As an editor does that cares: made or emptied, written, fsynced, closed."""
        if await m.exists(path):
            handle = await m.open(path, os.O_WRONLY | os.O_TRUNC)
        else:
            handle = await m.create(path)
        if data:
            await m.files.write(handle, 0, data)
        await m.files.sync(handle)
        await m.close(handle)

    # ------------------------------------------------------------ a file that is kept open

    async def _hold(self, m: Mount, path: str) -> None:
        if not self._held and self._is_file(path):
            self._held = await m.open(path, os.O_RDWR)
            self._held_ino = (await m.node(path)).ino

    def _held_path(self, m: Mount) -> str | None:
        for path in self.model.tree:
            row = m.volume.journal.path_inode(path)
            if row is not None and row.ino == self._held_ino:
                return path
        return None

    async def _append(self, m: Mount, size: int) -> None:
        path = self._held_path(m)
        if path is None:
            return  # it was removed
        end, data = len(self.model.tree[path].content), self._data(size)
        after = self.model.apply(("patch", path, end, data), self.world.now_ns)
        try:
            await m.files.write(self._held, end, data)
            self.point.hit()
        except BaseException:
            self.ledger.unsure(after)
            self._touched(("patch", path))
            raise
        self.model = after
        self.ledger.observe(m, self.model)
        self._touched(("patch", path))
        self.ledger.written_in_place(path)

    async def _sync_held(self, m: Mount) -> None:
        await m.files.sync(self._held)
        self.point.hit()
        path = self._held_path(m)
        if path is not None:
            self.ledger.acknowledged(path)

    async def _release(self, m: Mount) -> None:
        handle, self._held = self._held, 0
        await m.close(handle)


async def sync_directory(m: Mount) -> None:
    """fsync of the root, as good as of any directory."""
    handle = await m.files.open_directory(ROOT)
    await m.files.sync_directory(handle)
    m.files.release(handle)


async def _cut_and_return(
    layer: Layer, history: list[Step], at: int, seed: int | None, *, stop: bool = False, again: int = 0
) -> None:
    """Play until the cut, or to the end (`stop`: and leave in peace) and cut then; start again, cut that too (`again`; 0:
    no), start again, check.
    """
    with layer.directory() as disk:
        world = World(disk)
        point = PowerPoint(layer, disk)
        player = _Player(world, point, history)

        async def play() -> None:
            is_first = True
            while True:
                try:
                    async with world.mount(seam=PowerSeam(point), check=False) as m:
                        if is_first:
                            player.ledger.observe(m, player.model)
                            await sync_directory(m)
                            point.arm(at, seed)
                        else:
                            player.back(m)
                        is_first = False
                        await player.play(m)
                        if not stop:
                            point.now(seed)
                    return
                except BaseException as error:
                    if not point.killed or not is_the_cut(error):
                        raise
                    point.revive()

        await until_the_cut(world, point, play, seed)
    if again:
        with layer.revived(point.image) as disk:
            world.root = disk
            point = PowerPoint(layer, disk)

            async def recover() -> None:
                point.arm(again, seed)
                async with restart(world, seam=PowerSeam(point), check=False) as m:
                    await m.drained()

            await until_the_cut(world, point, recover, seed)
    with layer.revived(point.image) as world.root:
        await _check_what_is_left(world, player.ledger)


async def _check_what_is_left(world: World, ledger: Ledger) -> None:
    bucket = world.bucket.files()
    async with restart(world) as m:
        contents = await ledger.check(m)
        await m.drained()
        await m.refresh()
        tree = await m.tree()
        check_bucket(world, tree)
        files = {path: entry.content for path, entry in tree.items() if stat.S_ISREG(entry.mode)}
        for path, content in files.items():
            assert content in (contents.get(path), bucket.get(path)), f"{path} came from nowhere"
        ledger.check_end(files)
    assert await world.seen_by_another() == tree


def run(main: Callable[[], Awaitable[None]]) -> None:
    random.seed(1)
    trio._core._run._r.seed(1)  # type: ignore[attr-defined]
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=True)


@pytest.mark.slow
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(history=HISTORIES, at=st.integers(1, 400), seed=LUCK, stop=st.booleans())
def test_any_history_whose_power_is_cut(
    layer: Layer, history: list[Step], at: int, seed: int | None, stop: bool
) -> None:
    """What fsync acknowledged is there, everything else is whole or absent, nothing else comes into the bucket."""
    run(partial(_cut_and_return, layer, history, at, seed, stop=stop))


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(history=HISTORIES, at=st.integers(1, 400), again=st.integers(1, 80), seed=LUCK)
def test_any_history_whose_power_is_cut_twice(
    layer: Layer, history: list[Step], at: int, again: int, seed: int | None
) -> None:
    """The same if the power goes again while the next start recovers and brings things into the bucket."""
    run(partial(_cut_and_return, layer, history, at, seed, again=again))
