"""Programs that read while others write: no read may give anything but one whole version.

Rules
  A file of the writers is read between two looks at its stamps. Where they are even and equal the bytes must be
  those of the model; else somebody was at it, and nothing is claimed.
  A cell is a file that is only ever replaced by a rename and never goes: whoever reads it, whenever, gets a whole
  version, not older than the last one acknowledged before. That is claimed of every read.
  Half of the reads drop the kernel's pages first, so that the daemon is asked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
from collections.abc import Sequence

from tests.soak.model import content, other
from tests.soak.scene import Scene
from tests.soak.writer import Writer

CELLS = 12
_FOLDER = "cells"
_LARGEST = 400_000


class Cells:
    """The cells and their only writer."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self.scene = scene
        self.begun = [0] * CELLS
        """The newest generation of each that may be there."""
        self.known = [0] * CELLS
        """The newest generation of each that was acknowledged."""
        self._random = random.Random(f"{seed} cells")

    def path(self, cell: int) -> str:
        return f"{_FOLDER}/ячейка-{cell}.bin"

    def content(self, cell: int, generation: int) -> bytes:
        size = random.Random(f"{cell} {generation}").choice((0, 700, 5_000, 60_000, _LARGEST))
        return content(f"cell {cell} generation {generation}", max(size, 64))

    def begin(self) -> None:
        os.mkdir(self.scene.inside(_FOLDER))
        for cell in range(CELLS):
            with open(self.scene.inside(self.path(cell)), "wb") as file:
                file.write(self.content(cell, 0))

    def run(self) -> None:
        self.scene.run("cells", self._turn)

    def _turn(self) -> None:
        cell = self._random.randrange(CELLS)
        generation = self.begun[cell] + 1
        data = self.content(cell, generation)
        temporary = self.scene.inside(f"{_FOLDER}/.{cell}.tmp")

        def save() -> None:
            with open(temporary, "wb") as file:
                file.write(data)

        try:
            self.scene.call("cells", f"save {temporary}", save)
            self.begun[cell] = generation
            self.scene.call(
                "cells", f"replace {cell}", lambda: os.replace(temporary, self.scene.inside(self.path(cell)))
            )
            self.known[cell] = generation
            self.scene.count("replace")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                self.scene.fail(f"cells: {error}")
            self.scene.count("no room (ENOSPC)")
        self.scene.over.wait(self._random.uniform(0, 0.15))

    def wrong(self, cell: int, found: bytes, oldest: int, newest: int) -> str:
        """What is wrong with bytes that were read from a cell, '' if nothing."""
        named = re.match(rb"\[cell (\d+) generation (\d+)\]", found)
        if not named:
            return f"not a version of any cell: {other(found, self.content(cell, oldest))}"
        generation = int(named[2])
        if found != self.content(int(named[1]), generation):
            return f"not whole: {other(found, self.content(int(named[1]), generation))}"
        if int(named[1]) != cell:
            return f"the content of cell {int(named[1])}"
        return "" if oldest <= generation <= newest else f"generation {generation}, should be {oldest} to {newest}"

    def check(self) -> list[str]:
        """Nobody writes: each cell has one of the versions that it may have, and that one counts from now on."""
        problems = []
        for cell in range(CELLS):
            path = self.path(cell)
            try:
                with open(self.scene.inside(path), "rb") as file:
                    found = file.read()
            except OSError as error:
                problems.append(f"{path}: {error}")
                continue
            if wrong := self.wrong(cell, found, self.known[cell], self.begun[cell]):
                problems.append(f"{path}: {wrong}")
            elif named := re.match(rb"\[cell \d+ generation (\d+)\]", found):
                self.known[cell] = int(named[1])
        for name in os.listdir(self.scene.inside(_FOLDER)):
            if name.endswith(".tmp"):
                os.unlink(self.scene.inside(f"{_FOLDER}/{name}"))
        return problems


class Reader:
    def __init__(self, scene: Scene, number: int, seed: int, writers: Sequence[Writer], cells: Cells) -> None:
        self.scene = scene
        self.name = f"reader{number}"
        self._random = random.Random(f"{seed} {self.name}")
        self._writers = writers
        self._cells = cells

    def run(self) -> None:
        self.scene.run(self.name, self._turn)

    def _turn(self) -> None:
        if self._random.random() < 0.3:
            self._read_cell()
        else:
            self._read_file()
        self.scene.over.wait(self._random.uniform(0, 0.03))

    def _read(self, path: str) -> bytes:
        where = self.scene.inside(path)

        def read() -> bytes:
            descriptor = os.open(where, os.O_RDONLY)
            try:
                if self._random.random() < 0.5:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                found = bytearray()
                while piece := os.read(descriptor, 1 << 20):
                    found += piece
                return bytes(found)
            finally:
                with contextlib.suppress(OSError):
                    os.close(descriptor)

        return self.scene.call(self.name, f"read {where}", read)

    def _read_cell(self) -> None:
        cell = self._random.randrange(CELLS)
        oldest = self._cells.known[cell]
        try:
            found = self._read(self._cells.path(cell))
        except OSError as error:
            self.scene.fail(f"{self.name} reads {self._cells.path(cell)}: {error}")
            return
        self.scene.count("reads of cells")
        if wrong := self._cells.wrong(cell, found, oldest, self._cells.begun[cell]):
            self.scene.fail(f"{self.name} reads {self._cells.path(cell)}: {wrong}")

    def _read_file(self) -> None:
        writer = self._random.choice(self._writers)
        with writer.lock:
            tree = writer.tree
            recent = [node for node in tree.recent if node.kind == "file" and tree.has(node)]
            nodes = recent if self._random.random() < 0.6 else tree.nodes("file")
            nodes = [node for node in nodes if node.is_quiet()]
            if not nodes:
                return
            node = self._random.choice(nodes)
            path, wanted, before = node.path(), node.data, node.signature()
        problem, found = "", b""
        try:
            found = self._read(path)
        except OSError as error:
            problem = str(error)
        with writer.lock:
            was_quiet = node.is_quiet() and node.signature() == before
        if not was_quiet:
            self.scene.count("reads overtaken")
            return
        self.scene.count("reads")
        if problem or found != wanted:
            self.scene.fail(f"{self.name} reads {path}: {problem or other(found, wanted)}")
