"""A program that does everything one can do to files, and knows exactly what was acknowledged.

Rules
  It works below a directory of its own, with few names, so that they meet again and again.
  Each system call goes through `_do`: the model changes when the call has returned. An answer that says that nothing
  was done (no room) leaves the model as it is; any other error is a failure.
  What it keeps open outlives its turns, until the mount is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.soak.model import Node, Pending, Tree, content, other, written
from tests.soak.scene import Scene

NAMES = ("a", "b.json", "файл.mp3", "caf\u00e9", "cafe\u0301", "🙂", "c d%20", "index.html")
"""Few, among them two that differ by their Unicode form only."""
DEPTH = 3
KEEP_BYTES = 24 << 20
"""With more than this a writer clears up."""
_SIZES = (
    (0.08, 0, 0),
    (0.62, 1, 12_000),
    (0.2, 12_000, 300_000),
    (0.08, 300_000, 2_000_000),
    (0.02, 2_000_000, 6_000_000),
)
"""(share, from, to) of the sizes of new files; the largest take several chunks of the cache."""
_STEP = 1 << 20
"""Longest single write."""


class Writer:
    def __init__(self, scene: Scene, number: int, seed: int) -> None:
        self.scene = scene
        self.name = f"writer{number}"
        self.tree = Tree(f"w{number}")
        self.lock = threading.Lock()
        """Held for looks at and changes of the model, never during a call."""
        self._random = random.Random(f"{seed} {self.name}")
        self._generation = 0
        self._incarnation = scene.incarnation
        self._open: list[tuple[int, Node]] = []
        """Files kept open for writing, some without a name."""
        self._turns: list[tuple[int, Callable[[], None]]] = [
            (14, self._create), (8, self._rewrite), (10, self._save), (8, self._append), (7, self._patch),
            (4, self._truncate), (7, self._unlink), (7, self._move), (4, self._move_directory), (5, self._make_directory),
            (3, self._remove_directory), (1, self._remove_tree), (3, self._link), (5, self._touch), (4, self._change_mode),
            (4, self._hold), (8, self._write_held), (3, self._orphan), (2, self._release), (8, self._read_back),
            (3, self._list),
        ]  # fmt: skip

    def begin(self) -> None:
        """Make the directory, before anything else runs."""
        os.mkdir(self.scene.inside(self.tree.root.name), 0o755)

    def run(self) -> None:
        self.scene.run(self.name, self._turn, self.forget_open)

    def forget_open(self) -> None:
        """The mount is gone, and with it what was open."""
        for descriptor, _ in self._open:
            _close_quietly(descriptor)
        self._open.clear()
        self._incarnation = self.scene.incarnation

    def _turn(self) -> None:
        if self._incarnation != self.scene.incarnation:
            self.forget_open()
        weights, turns = zip(*self._turns, strict=True)
        turn = self._random.choices(turns, weights)[0]
        if self.tree.bytes() > KEEP_BYTES:
            turn = self._random.choice((self._unlink, self._remove_tree, self._truncate))
        try:
            turn()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self.scene.count("no room (ENOSPC)")
                self.scene.over.wait(0.5)
                return
            raise
        if self._random.random() < 0.3:
            self.scene.over.wait(self._random.uniform(0, 0.1))

    # ------------------------------------------------------------ one call

    def _do(
        self,
        what: str,
        node: Node,
        action: Callable[[str], Any],
        apply: Callable[[], None] = lambda: None,
        *,
        path: str = "",
        data: tuple[int, bytes] = (0, b""),
        others: tuple[Node, ...] = (),
        always: bool = False,
    ) -> Any:
        """Make a call about `node`, whose name is its path or `path`; then the model shows it. `always`: whatever the gate."""
        where = path or self.scene.inside(node.path())
        touched = (node, *others)
        with self.lock:
            for each in touched:
                each.stamp += 1
            self.tree.pending = Pending(f"{what} {where}", node, apply, *data)
        try:  # after Gone it stays pending: the model follows what is there then
            result = self.scene.call(self.name, f"{what} {where}", lambda: action(where), always)
        except OSError as error:
            with self.lock:
                self.tree.pending = None
                for each in touched:
                    each.stamp += 1
            if error.errno != errno.ENOSPC:
                self.scene.fail(f"{what} {where}: {error}")
            raise
        with self.lock:
            apply()
            self.tree.pending = None
            self.tree.recent.append(node)
            for each in touched:
                each.stamp += 1
        self.scene.count(what)
        return result

    def _write(self, descriptor: int, node: Node, offset: int, data: bytes) -> None:
        """All of `data`, in pieces; the model takes what each call says that it took."""
        self._age(node)
        while data:
            piece = data[:_STEP]
            taken: list[int] = []

            def apply(offset: int = offset, piece: bytes = piece, taken: list[int] = taken) -> None:
                node.data = written(node.data, offset, piece[: taken[0]] if taken else piece)

            def action(_: str, offset: int = offset, piece: bytes = piece, taken: list[int] = taken) -> int:
                taken.append(os.pwrite(descriptor, piece, offset))
                return taken[0]

            done = self._do("write", node, action, apply, data=(offset, piece))
            self.scene.count("bytes written", done)
            offset, data = offset + done, data[done:]

    def _age(self, node: Node) -> None:
        with self.lock:
            node.mtime_ns = None

    @contextlib.contextmanager
    def _closing(self, descriptor: int, node: Node) -> Iterator[None]:
        """Close it at the end, also after a write for which there was no room; its time is known then, and stays."""
        try:
            try:
                yield
            finally:
                if self.tree.pending is None:
                    if self._random.random() < 0.15:
                        self._do("fsync", node, lambda _: os.fsync(descriptor))
                    own, descriptor = descriptor, -1
                    self._do("close", node, lambda _: os.close(own), always=True)
        finally:
            if descriptor >= 0:
                _close_quietly(descriptor)
        if node.parent is not None:
            status = self._do("stat", node, os.lstat)
            with self.lock:
                node.mtime_ns = status.st_mtime_ns

    def _open_file(self, node: Node, flags: int, apply: Callable[[], None] = lambda: None) -> int:
        descriptor: int = self._do("open", node, lambda where: os.open(where, flags), apply)
        return descriptor

    def _new(self, directory: Node, name: str, data: bytes) -> Node:
        """Make a file with this content, and close it."""
        node, descriptor = self._new_open(directory, name)
        with self._closing(descriptor, node):
            self._write(descriptor, node, 0, data)
        return node

    def _new_open(self, directory: Node, name: str) -> tuple[Node, int]:
        node = Node("file", 0o644)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        path = f"{self.scene.inside(directory.path())}/{name}"
        descriptor = self._do(
            "create", node, lambda where: os.open(where, flags, 0o644), lambda: directory.add(name, node), path=path
        )
        return node, descriptor

    # ------------------------------------------------------------ choices

    def _content(self, size: int = -1) -> bytes:
        self._generation += 1
        if size < 0:
            _, low, high = self._random.choices(_SIZES, [each[0] for each in _SIZES])[0]
            size = self._random.randint(low, high)
        return content(f"{self.tree.root.name} {self._generation}", size)

    def _any(self, kind: str) -> Node | None:
        found = self.tree.nodes(kind)
        return self._random.choice(found) if found else None

    def _directory(self, most: int = DEPTH) -> Node:
        found = [self.tree.root, *(n for n in self.tree.nodes("dir") if sum(1 for _ in n.chain()) <= most)]
        return self._random.choice(found)

    def _free(self, directory: Node) -> str | None:
        names = [name for name in NAMES if name not in directory.children]
        return self._random.choice(names) if names else None

    # ------------------------------------------------------------ files

    def _create(self) -> None:
        directory = self._directory(DEPTH + 1)
        if (name := self._free(directory)) is not None:
            self._new(directory, name, self._content())

    def _rewrite(self) -> None:
        """As `open(path, "wb")` does."""
        if (node := self._any("file")) is None:
            return

        def emptied() -> None:
            node.data = b""

        self._age(node)
        descriptor = self._open_file(node, os.O_WRONLY | os.O_TRUNC, emptied)
        with self._closing(descriptor, node):
            self._write(descriptor, node, 0, self._content())

    def _save(self) -> None:
        """A temporary file beside it, then a rename over it: as editors and the app do."""
        node = self._any("file")
        if node is None or node.parent is None:
            return
        directory, name = node.parent, node.name
        temporary = f".{self._generation}.tmp"
        new = self._new(directory, temporary, self._content())
        self._rename(new, directory, name)

    def _append(self) -> None:
        if (node := self._any("file")) is not None:
            descriptor = self._open_file(node, os.O_WRONLY)
            with self._closing(descriptor, node):
                self._write(descriptor, node, len(node.data), self._content(self._random.randint(1, 20_000)))

    def _patch(self) -> None:
        if (node := self._any("file")) is not None and node.data:
            descriptor = self._open_file(node, os.O_RDWR)
            with self._closing(descriptor, node):
                for _ in range(self._random.randint(1, 3)):
                    offset = self._random.randrange(len(node.data))
                    self._write(descriptor, node, offset, self._content(self._random.randint(1, 10_000)))

    def _truncate(self) -> None:
        if (node := self._any("file")) is not None:
            size = self._random.randint(0, len(node.data))

            def cut() -> None:
                node.data = node.data[:size]

            self._age(node)
            self._do("truncate", node, lambda where: os.truncate(where, size), cut)

    def _unlink(self) -> None:
        node = self._any(self._random.choice(("file", "file", "link")))
        if node is not None and node.parent is not None:
            self._do("unlink", node, os.unlink, node.drop)

    def _rename(self, node: Node, directory: Node, name: str) -> None:
        """To a name that is free or a file's."""
        target = self.scene.inside(directory.path()) + "/" + name
        replaced = directory.children.get(name)

        def moved() -> None:
            if replaced is not None:
                replaced.drop()
            node.drop()
            directory.add(name, node)

        self._do(
            "rename", node, lambda where: os.rename(where, target), moved, others=(replaced,) if replaced else ()
        )  # fmt: skip

    def _move(self) -> None:
        node, directory = self._any("file"), self._directory(DEPTH + 1)
        name = self._random.choice(NAMES)
        there = directory.children.get(name)
        if node is not None and there is not node and (there is None or there.kind != "dir"):
            self._rename(node, directory, name)

    def _link(self) -> None:
        directory = self._directory()
        if (name := self._free(directory)) is not None:
            target = self._random.choice(("a", "../файл.mp3", "ни/куда", "x" * 900))
            node = Node("link", 0o777, target.encode())
            path = f"{self.scene.inside(directory.path())}/{name}"
            self._do(
                "symlink", node, lambda where: os.symlink(target, where), lambda: directory.add(name, node), path=path
            )

    def _touch(self) -> None:
        if (node := self._any("file")) is not None and node.mtime_ns is not None:
            when = self._random.randrange(10**18, 17 * 10**17)

            def known() -> None:
                node.mtime_ns = when

            self._age(node)
            self._do("utime", node, lambda where: os.utime(where, ns=(when, when)), known)

    def _change_mode(self) -> None:
        if (node := self._any(self._random.choice(("file", "dir")))) is not None:
            mode = self._random.choice((0o644, 0o600, 0o664) if node.kind == "file" else (0o755, 0o700, 0o775))

            def changed() -> None:
                node.mode = mode

            self._do("chmod", node, lambda where: os.chmod(where, mode), changed)

    def _read_back(self) -> None:
        if (node := self._any("file")) is not None:

            def read(where: str) -> bytes:
                with open(where, "rb") as file:
                    return file.read()

            found = self._do("read back", node, read)
            if found != node.data:
                self.scene.fail(f"{self.name} reads back {node.path()}: {other(found, node.data)}")

    # ------------------------------------------------------------ files kept open

    def _hold(self) -> None:
        if len(self._open) >= 4:
            return
        directory = self._directory()
        if (name := self._free(directory)) is not None:
            node, descriptor = self._new_open(directory, name)
            self._open.append((descriptor, node))

    def _write_held(self) -> None:
        """Somewhere in a file that was opened long ago; then sometimes fsync, and go on."""
        if not self._open:
            return
        descriptor, node = self._random.choice(self._open)
        offset = self._random.choice((len(node.data), len(node.data) // 2, 0))
        self._write(descriptor, node, offset, self._content(self._random.randint(1, 30_000)))
        if self._random.random() < 0.3:
            self._do("fsync", node, lambda _: os.fsync(descriptor))
        found = self._do("read", node, lambda _: os.pread(descriptor, len(node.data) + 1, 0))
        if found != node.data:
            self.scene.fail(f"{self.name} reads an open file {node.path()}: {other(found, node.data)}")

    def _orphan(self) -> None:
        """A file without a name is there while it is open."""
        named = [(d, n) for d, n in self._open if n.parent is not None]
        if named:
            _, node = self._random.choice(named)
            self._do("unlink", node, os.unlink, node.drop)

    def _release(self) -> None:
        if self._open:
            descriptor, node = self._open.pop(self._random.randrange(len(self._open)))
            with self._closing(descriptor, node):
                pass

    # ------------------------------------------------------------ directories

    def _make_directory(self) -> None:
        directory = self._directory()
        if (name := self._free(directory)) is not None:
            node = Node("dir", 0o755)
            path = f"{self.scene.inside(directory.path())}/{name}"
            self._do("mkdir", node, lambda where: os.mkdir(where, 0o755), lambda: directory.add(name, node), path=path)

    def _remove_directory(self) -> None:
        empty = [node for node in self.tree.nodes("dir") if not node.children]
        if empty:
            node = self._random.choice(empty)
            self._do("rmdir", node, os.rmdir, node.drop)

    def _remove_tree(self) -> None:
        """As rm -r, each call by itself: a kill may come between any two."""
        if (top := self._any("dir")) is None:
            return
        for node in reversed([top, *top.below()]):
            if node.kind == "dir":
                self._do("rmdir", node, os.rmdir, node.drop)
            else:
                self._do("unlink", node, os.unlink, node.drop)

    def _move_directory(self) -> None:
        node, directory = self._any("dir"), self._directory()
        if node is None or node in directory.chain() or (name := self._free(directory)) is None:
            return
        self._rename(node, directory, name)

    def _list(self) -> None:
        node = self._directory(DEPTH + 1)
        found = self._do("list", node, os.listdir)
        if sorted(found) != sorted(node.children):
            self.scene.fail(f"{self.name} lists {node.path()}: {sorted(found)}, should be {sorted(node.children)}")


def _close_quietly(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # the mount behind it may be gone
        os.close(descriptor)
